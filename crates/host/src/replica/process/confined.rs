//! What is left to a replica once its files and sockets are open.

use std::path::PathBuf;

use anyhow::{Context, Result};
use machine::engine::kvm;
use spec::{EngineKind, VmSpec};

use super::disks::DiskSource;
use crate::replica::config::ReplicaConfig;
use crate::sandbox::{self, Confinement, Kind};

/// Confines this process to what a replica needs. It must not have more threads than one.
pub(super) fn confine(config: &ReplicaConfig, spec: &VmSpec, source: &DiskSource) -> Result<()> {
    if config.engine == EngineKind::Kvm {
        // Who may open it is the administrator's choice, and need not be this VM's user.
        kvm::keep_open()?;
    }
    let mut confinement = confinement(config, spec);
    confinement.readable.extend(source.base_files()?);
    sandbox::log(&confinement.enter().context("the process cannot be confined")?);
    Ok(())
}

/// What a replica needs, but for what its disks are based on: its folder, the files of its spec, and what says what the machine can do.
fn confinement(config: &ReplicaConfig, spec: &VmSpec) -> Confinement {
    let mut readable: Vec<PathBuf> = sandbox::MACHINE.map(PathBuf::from).into();
    readable.extend(spec.kernel.iter().chain(&spec.initrd).cloned());
    let mut writable = vec![config.folder.clone()];
    for disk in &spec.disks {
        let place = if disk.readonly { &mut readable } else { &mut writable };
        place.push(disk.path.clone());
    }
    Confinement { kind: Kind::Replica, user: config.user, readable, writable }
}
