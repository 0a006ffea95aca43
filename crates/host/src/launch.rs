//! The start of a VM's primary on this host.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use api::messages::StartVm;
use api::status::Role;
use machine::bus::lock;
use spec::{EngineKind, SnapshotName, VmSpec};
use terminal::error_text::error_text;

use super::daemon::Daemon;
use super::error::HostError;
use super::process::ReplicaProcess;
use super::registry::{KnownVm, Registry};
use super::settings::at_next_start;
use super::vm_folder::VmFolder;
use crate::replica::config::ReplicaConfig;
use crate::replica::disk_copy;
use crate::replica::end::ReplicaEnd;

/// What a forced start starts from, in words. Refuses a copy that no VM may start from.
pub(super) fn start_from(folder: &Path, how: StartVm) -> Result<Option<String>, HostError> {
    let copy = disk_copy::startable(folder, how.from_stale_disks);
    let copy = copy.map_err(|error| HostError::refused(error_text(&error)))?;
    Ok(copy.filter(|_| how.from_stale_disks))
}

impl Daemon {
    /// Makes this host the VM's and starts it, if there is room for it here, which `admit` says. One that cannot be started is off then, unless it is to be
    /// tried again (`is_restart`).
    pub(super) fn launch(
        self: &Arc<Self>,
        vm: &KnownVm,
        from_stale_disks: bool,
        snapshot: Option<SnapshotName>,
        is_restart: bool,
        admit: impl FnOnce(&Registry, &KnownVm) -> Result<(), HostError>,
    ) -> Result<(), HostError> {
        let name = &vm.name;
        let run_lease = self.run_lease_for(vm)?;
        self.settle_files(vm)?;
        // It becomes the VM's when the VM is this host's: until then a secondary may take over with the one that it has now.
        let vm = at_next_start(vm.clone())?;
        let folder = self.vm_folder(name);
        start_from(folder.path(), StartVm { from_stale_disks })?;
        let local = self.startable_spec(&vm, &folder, snapshot.is_some())?;
        // Until the claim is this host's, another VM could be given the same memory.
        let admission = self.admission();
        admit(&self.registry, &vm)?;
        let network_ends = self.end_sockets(&vm.spec);
        let user = self.vm_users.assign(folder.path())?;
        self.ends
            .ensure(&self.exe, &vm.spec, &network_ends, user)
            .map_err(|error| HostError::refused(format!("VM {name}: {}", error_text(&error))))?;
        let engine = self.engine_of(&vm);
        // Of the end before: the next daemon would take it for that of this start, if this one is killed.
        ReplicaEnd::clear(folder.path());
        lock(&self.powered_off).remove(&vm.record.name);
        self.registry.update(name, |record| {
            record.begin_start(vm.claim.generation);
            record.power_on();
            record.engine = Some(engine);
            record.network_ends.clone_from(&network_ends);
        })?;
        // No replica of an earlier time may run from now on, wherever it is.
        self.registry.claim_for_start(&vm, run_lease.is_some())?;
        // Until now the host that ran it before may have noted that it is off there.
        self.registry.note_power_on(name)?;
        self.note_spec(&vm)?;
        drop(admission);
        let config = ReplicaConfig {
            store_keys: self.config.store_keys.clone(),
            run_lease,
            snapshot,
            user,
            network_ends,
            ..self.replica_config(&vm, &local, Role::Primary, engine)?
        };
        self.start_primary(&config, is_restart)
    }

    /// What each process is told that has the disks of a VM here: who it is and how the VM is replicated. It goes on from no snapshot, under no run lease, as the
    /// daemon's user, and reaches neither network ends, other hosts, nor a store that asks for keys.
    pub(super) fn replica_config(
        &self,
        vm: &KnownVm,
        local: &VmSpec,
        role: Role,
        engine: EngineKind,
    ) -> Result<ReplicaConfig, HostError> {
        let ft = &vm.record.ft;
        Ok(ReplicaConfig {
            vm: vm.name.clone(),
            host: self.host().to_owned(),
            spec: spec::to_toml(local).context("the spec cannot be written")?,
            role,
            engine,
            store: self.config.store.nearest_first(),
            store_keys: None,
            identity: None,
            folder: self.folder.vm(&vm.name),
            user: None,
            run_lease: None,
            snapshot: None,
            network_ends: Vec::new(),
            listen: None,
            suspicion_ms: ft.suspicion_ms,
            suspicion_ms_min: ft.suspicion_ms_min,
            epoch_ms_max: ft.epoch_ms_max,
            mode: ft.mode,
            lag_ms_max: ft.lag_ms_max,
        })
    }

    /// The spec with the files that are here. Refuses disks whose bases have changed; a snapshot brings its own disks, and has its bases checked.
    pub(super) fn startable_spec(
        &self,
        vm: &KnownVm,
        folder: &VmFolder,
        is_restored: bool,
    ) -> Result<VmSpec, HostError> {
        let local = folder.local_spec(&vm.spec, &self.vm_files);
        let checked = local.and_then(|local| {
            if !is_restored {
                folder.of_disks(&vm.spec, &self.vm_files)?.bases().check()?;
            }
            Ok(local)
        });
        checked.map_err(|error| HostError::refused(error_text(&error)))
    }

    fn start_primary(self: &Arc<Self>, config: &ReplicaConfig, is_restart: bool) -> Result<(), HostError> {
        let name = &config.vm;
        let started = ReplicaProcess::start(&self.exe, config);
        let (process, status) = started.map_err(|error| {
            if !is_restart {
                self.vm_powered_off(name);
            }
            HostError::refused(format!("VM {name} cannot be started: {}", error_text(&error)))
        })?;
        if config.snapshot.is_some()
            && let Err(error) = self.vm_folder(name).note_restored(&self.images)
        {
            // The VM runs. It cannot be protected until this is mended.
            tracing::warn!("VM {name}: what its disks are since the restore was not noted: {}", error_text(&error));
        }
        Ok(self.watch_replica(name.to_owned(), process, Some(status))?)
    }
}
