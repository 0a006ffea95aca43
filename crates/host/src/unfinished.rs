//! VMs that are being made or renamed on this host. Each note of that (`vm_folder`) is written before anything is done, so that the next daemon takes back, or
//! finishes, what was half done when this one was killed.

use std::fs;
use std::sync::Arc;

use api::messages::VmView;
use api::time::unix_ms_now;
use cluster::records::{ClusterError, Power, VmRecord};
use spec::{VmName, VmSpec};

use super::daemon::Daemon;
use super::error::{HostError, Kind};
use super::protection::Removed;
use super::registry::KnownVm;
use super::vm_folder::{Unfinished, VmFolder};

impl Daemon {
    /// Keeps a new VM whose folder was filled; removes that if the VM cannot be kept.
    pub(super) fn keep_made(self: &Arc<Self>, folder: &VmFolder, spec: &VmSpec) -> Result<VmView, HostError> {
        let created_unix_ms = folder.contents().map_or_else(unix_ms_now, |contents| contents.created_unix_ms);
        if let Err(error) = self.registry.add_vm(spec, &self.config, created_unix_ms) {
            self.remove_disks_on_datastore(spec);
            folder.remove_after_failure();
            return Err(error);
        }
        folder.finished()?;
        self.vm(&spec.name)
    }

    /// Has the store know a VM by both names. Until its folder has the new one, the VM is the one of the old name.
    pub(super) fn begin_rename(&self, vm: &KnownVm, spec: &VmSpec) -> Result<(), HostError> {
        let to: VmName = spec.name.parse().map_err(ClusterError::from)?;
        let folder = self.vm_folder(&vm.name);
        folder.note_unfinished(&Unfinished::Renamed { from: vm.record.name.clone(), to: to.clone() })?;
        let added = self.registry.add_record(&VmRecord {
            name: to,
            spec: spec::to_toml(spec).map_err(anyhow::Error::from)?.into(),
            power: Power::Off,
            network_ends: Vec::new(),
            syncing_to: None,
            operation: None,
            ..vm.record.clone()
        });
        // Whether a store that does not answer has added it is not known: the next daemon finds out.
        if added.as_ref().is_err_and(|error| error.kind != Kind::Unreachable) {
            folder.finished()?;
        }
        added
    }

    /// Has the store forget the old name of a VM whose folder has the new one.
    pub(super) fn end_rename(&self, vm: &KnownVm, spec: &VmSpec) -> Result<(), HostError> {
        if let Err(error) = self.registry.remove_vm(vm) {
            // Whether a store that does not answer has done it is not known: then both stay.
            return if error.kind == Kind::Refused { Err(self.undo_rename(vm, spec, error)) } else { Err(error) };
        }
        self.vm_folder(&spec.name).finished()?;
        self.drop_secondaries(vm, Removed::Copies)?;
        self.ends.stop(&self.end_sockets(&vm.spec));
        Ok(())
    }

    /// Takes a rename back whose VM was started elsewhere before it was done.
    fn undo_rename(&self, vm: &KnownVm, spec: &VmSpec, error: HostError) -> HostError {
        let folder = self.vm_folder(&vm.name);
        let moved = self.vm_folder(&spec.name).move_to(&folder, &self.images);
        let undone = moved.map_err(HostError::from).and_then(|()| self.known(&spec.name));
        let undone = undone.and_then(|new| self.registry.remove_vm(&new)).and_then(|()| Ok(folder.finished()?));
        if let Err(why) = undone {
            tracing::warn!("VM {}: its rename to {} was not undone: {why}", vm.name, spec.name);
        }
        error
    }

    /// Takes back, or finishes, what the daemon before this one has left half done. What cannot be seen to now, the next one does.
    pub(super) fn finish_unfinished(&self) {
        for entry in fs::read_dir(self.folder.vms()).into_iter().flatten().flatten() {
            let Some(name) = entry.file_name().to_str().and_then(|name| name.parse::<VmName>().ok()) else { continue };
            if let Err(error) = self.finish(&name) {
                tracing::warn!("VM {name}: what was begun before this daemon was started stays half done: {error}");
            }
        }
    }

    fn finish(&self, name: &VmName) -> Result<(), HostError> {
        let folder = self.vm_folder(name);
        match folder.unfinished() {
            // The daemon may have been killed before it could note anything. A folder that is not empty stays.
            None => drop(fs::remove_dir(folder.path())),
            Some(Unfinished::Made { disks }) => {
                let made = folder.contents().map(|contents| contents.created_unix_ms);
                let kept = self.registry.vm(name)?.map(|vm| vm.record.created_unix_ms);
                if made.is_some() && made == kept {
                    return Ok(folder.finished()?);
                }
                tracing::warn!("VM {name} was not made to the end: what there is of it is removed");
                if let Some(disks) = disks {
                    VmFolder::new(disks).remove()?;
                }
                folder.remove()?;
            }
            Some(Unfinished::Renamed { from, to }) => self.finish_rename(name, &from, &to)?,
        }
        Ok(())
    }

    /// The record of the name that the folder does not have is removed, if it is the same VM's.
    fn finish_rename(&self, name: &VmName, from: &VmName, to: &VmName) -> Result<(), HostError> {
        let identity = |vm: &KnownVm| (vm.spec.id, vm.record.created_unix_ms, vm.home().to_owned());
        if let (Some(before), Some(after)) = (self.registry.vm(from)?, self.registry.vm(to)?)
            && identity(&before) == identity(&after)
        {
            if name == to {
                tracing::warn!("VM {from} was not renamed to {to} to the end: it is now");
                return self.end_rename(&before, &after.spec);
            }
            if name == from {
                tracing::warn!("VM {from} was not renamed to {to} to the end: it keeps its name");
                self.registry.remove_vm(&after)?;
            }
        }
        Ok(self.vm_folder(name).finished()?)
    }
}
