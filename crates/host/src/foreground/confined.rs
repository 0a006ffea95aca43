//! What is left to a VM in the foreground once its files are open.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use machine::engine::kvm;
use spec::{EngineKind, VmSpec};
use storage::disk::{Backing, DiskImage};

use super::open::{self, GuestFiles, base_files};
use super::snapshots::OpenSnapshot;
use crate::sandbox::{self, Confinement, Enforced, Kind};

/// Confines this process to what the VM needs: the files of its spec, what its disks are based on, the folder of its records, and what says what the machine
/// can do. It must not have more threads than one. It stays whoever has started it, whose disks they are.
///
/// A VM that goes on from a snapshot may write to the folders of its disks: new files take the place of those there, all of them or none.
pub(super) fn confine(
    spec: &VmSpec,
    engine: EngineKind,
    guest: Option<&GuestFiles>,
    images: &[DiskImage],
    snapshot: Option<(&Path, &OpenSnapshot)>,
) -> Result<Enforced> {
    if engine == EngineKind::Kvm {
        kvm::keep_open()?;
    }
    let mut readable: Vec<PathBuf> = sandbox::MACHINE.map(PathBuf::from).into();
    let mut writable = vec![PathBuf::from("/dev/null")];
    readable.extend(guest.into_iter().flat_map(|guest| [Some(guest.kernel.clone()), guest.initrd.clone()]).flatten());
    for disk in &spec.disks {
        let place = if disk.readonly { &mut readable } else { &mut writable };
        place.push(disk.path.clone());
    }
    for image in images {
        readable.extend(base_files(image.backing().cloned())?);
    }
    if let Some(folder) = &spec.record {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        writable.push(folder.clone());
        // A record needs what the disks are based on: that is noted when it is begun.
        let images = open::images()?;
        let notes: Vec<PathBuf> = readable.iter().filter_map(|base| images.notes_of(base)).collect();
        writable.extend(notes);
    }
    if let Some((file, snapshot)) = snapshot {
        readable.push(file.to_owned());
        for disk in &snapshot.head().disks {
            let base = disk.base.as_ref().map(|base| Backing { path: base.path.clone(), format: base.format });
            // One that is not there is missed when its content is compared, which says more.
            readable.extend(base_files(base).unwrap_or_default());
            // The disk itself may be a link to elsewhere.
            let real = fs::canonicalize(&disk.path).unwrap_or_else(|_| disk.path.clone());
            let folders = [&disk.path, &real].map(|path| path.parent().map(PathBuf::from));
            writable.extend(folders.into_iter().flatten().filter(|_| !disk.read_only));
        }
    }
    let confinement = Confinement { kind: Kind::Replica, user: None, readable, writable };
    confinement.enter().context("the process cannot be confined")
}
