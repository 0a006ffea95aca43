//! Snapshots of VMs. Each is a file in the VM's folder on the host that the VM ran on, and goes with that folder.

use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use api::messages::{SnapshotView, StartVm, VmView};
use machine::snapshot::disk::SnapshotBase;
use spec::{SnapshotName, VmSpec};
use storage::disk::{DiskImage, DiskOptions, settle};

use super::daemon::Daemon;
use super::error::HostError;
use super::folder::private_folder;
use super::registry::KnownVm;
use super::settings::at_next_start;
use super::vm_users::share;
use crate::foreground::open;
use crate::foreground::snapshots::{has_disks_of, open_snapshot};
use crate::replica::config;
use crate::replica::control::Request;

/// How long a replica may take to write a snapshot: as long as all of its disks take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3600);
/// How its file's name ends.
const ENDING: &str = ".snapshot";

impl Daemon {
    /// The snapshots of a VM that is at home here, the oldest first.
    pub fn snapshots(&self, vm: &str) -> Result<Vec<SnapshotView>, HostError> {
        let vm = self.known(vm)?;
        self.require_home(&vm)?;
        let folder = config::snapshots(&self.folder.vm(&vm.name));
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(anyhow!(error).context(format!("cannot look into {}", folder.display())).into()),
        };
        let view = |entry: fs::DirEntry| {
            let name = entry.file_name().to_str()?.strip_suffix(ENDING)?.parse().ok()?;
            Some(self.snapshot_view(&vm, name, &entry.metadata().ok()?))
        };
        let mut views: Vec<_> = entries.flatten().filter_map(view).collect();
        views.sort_by(|a, b| (a.created_unix_ms, &a.name).cmp(&(b.created_unix_ms, &b.name)));
        Ok(views)
    }

    fn snapshot_view(&self, vm: &KnownVm, name: SnapshotName, file: &Metadata) -> SnapshotView {
        let created = file.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        SnapshotView {
            name,
            vm: vm.name.clone(),
            host: self.host().to_owned(),
            created_unix_ms: u64::try_from(created.as_millis()).unwrap_or(u64::MAX),
            bytes: file.len(),
        }
    }

    /// Saves a running VM, which goes on.
    pub fn create_snapshot(&self, name: &str, snapshot: &SnapshotName) -> Result<SnapshotView, HostError> {
        let vm = self.known(name)?;
        self.require_home(&vm)?;
        let Some(replica) = self.replica(name).filter(|replica| replica.is_primary()) else {
            return Err(HostError::conflict(format!("VM {name} does not run: there is no memory to save"))
                .hint(format!("start it with `twinvm vm start {name}`")));
        };
        let folder = self.folder.vm(name);
        let file = config::snapshot(&folder, snapshot);
        if file.exists() {
            return Err(HostError::conflict(format!("VM {name} has a snapshot named {snapshot} already")).hint(
                format!("choose another name, or remove that one with `twinvm vm snapshot rm {name} {snapshot}`"),
            ));
        }
        private_folder(&config::snapshots(&folder))?;
        share(&folder, &config::snapshots(&folder))?;
        remove_left_behind(&config::snapshots(&folder));
        let asked = replica.ask(&Request::Snapshot { name: snapshot.clone() }, WRITE_TIMEOUT);
        asked.map_err(|error| HostError::conflict(format!("VM {name}: {error:#}")))?;
        if let Err(error) = self.note_bases(&file) {
            // It can be restored all the same, as long as nobody removes the image.
            tracing::warn!("VM {name}: what snapshot {snapshot} is based on was not noted: {error:#}");
        }
        let metadata = fs::metadata(&file).with_context(|| format!("cannot find {}", file.display()))?;
        tracing::info!("VM {name}: snapshot {snapshot} taken");
        Ok(self.snapshot_view(&vm, snapshot.clone(), &metadata))
    }

    /// Notes with the images that a snapshot is based on them: they are not removed as long as it is there.
    fn note_bases(&self, file: &Path) -> anyhow::Result<()> {
        let (_, snapshot) = open_snapshot(file)?;
        let bases = snapshot.head().disks.iter().filter_map(|disk| disk.base.as_ref());
        let bases: Vec<&Path> = bases.map(|base| base.path.as_path()).collect();
        Ok(self.images.note_snapshot(&std::path::absolute(file)?, &bases)?)
    }

    /// Removes a snapshot. For the VM's owner.
    pub fn remove_snapshot(&self, name: &str, snapshot: &str) -> Result<(), HostError> {
        let vm = self.known(name)?;
        self.require_home(&vm)?;
        let snapshot = self.found_snapshot(&vm, snapshot)?;
        let file = config::snapshot(&self.folder.vm(name), &snapshot);
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        tracing::info!("VM {name}: snapshot {snapshot} removed");
        Ok(())
    }

    /// Starts a VM that is off from a snapshot; what its disks hold is lost.
    pub fn restore_snapshot(self: &Arc<Self>, name: &str, snapshot: &str) -> Result<VmView, HostError> {
        let (vm, wanted) = (name.to_owned(), snapshot.to_owned());
        let snapshot = self.owned(name, move |daemon| daemon.restorable(&vm, &wanted))?;
        let view = self.start_vm_from(name, StartVm::default(), Some(snapshot.clone()))?;
        tracing::info!("VM {name} goes on from snapshot {snapshot}");
        Ok(view)
    }

    /// The snapshot of a VM that is off, if the VM can go on from it. For the VM's owner.
    fn restorable(&self, name: &str, snapshot: &str) -> Result<SnapshotName, HostError> {
        let vm = at_next_start(self.known(name)?)?;
        self.require_home(&vm)?;
        let snapshot = self.found_snapshot(&vm, snapshot)?;
        if self.replica(name).is_some_and(|replica| !replica.is_gone()) {
            return Err(HostError::conflict(format!("VM {name} runs"))
                .hint(format!("stop it first with `twinvm vm stop {name}`, or pull the plug with --force")));
        }
        let folder = self.vm_folder(name);
        let refused = |error: anyhow::Error| {
            HostError::conflict(format!("snapshot {snapshot} of VM {name} cannot be restored: {error:#}"))
        };
        let local = folder.local_spec(&vm.spec, &self.vm_files).map_err(refused)?;
        self.check_snapshot(&config::snapshot(folder.path(), &snapshot), &local).map_err(refused)?;
        Ok(snapshot)
    }

    fn found_snapshot(&self, vm: &KnownVm, snapshot: &str) -> Result<SnapshotName, HostError> {
        let found = snapshot.parse::<SnapshotName>().ok();
        let found = found.filter(|name| config::snapshot(&self.folder.vm(&vm.name), name).is_file());
        found.ok_or_else(|| {
            HostError::not_found(format!("VM {} has no snapshot named {snapshot} on host {}", vm.name, self.host()))
                .hint(format!("see `twinvm vm snapshot list {}`", vm.name))
        })
    }

    /// Refuses a snapshot of the VM as it was with other disks or other hardware, and one that would have the replica read what is not for a VM: the
    /// process that wrote it parses what a guest sends.
    fn check_snapshot(&self, file: &Path, spec: &VmSpec) -> anyhow::Result<()> {
        let (_, snapshot) = open_snapshot(file)?;
        let head = snapshot.head();
        if !has_disks_of(head, spec) {
            anyhow::bail!("the VM's disks were made anew since, in other files");
        }
        if !open::config(spec)?.is_same_hardware(&head.config) {
            anyhow::bail!("the VM has had other hardware since: then {}", hardware(&head.config));
        }
        head.disks.iter().filter_map(|disk| disk.base.as_ref()).try_for_each(|base| self.check_base(base))
    }

    fn check_base(&self, base: &SnapshotBase) -> anyhow::Result<()> {
        let (_, path) = self.vm_files.open(&base.path)?;
        let options = DiskOptions { format: Some(base.format), read_only: true, direct: false };
        self.vm_files.check_backing(&DiskImage::open(&path, options)?)
    }
}

/// Removes what snapshots that were cut short have left of files, whatever their names. One that is being written is locked, and stays.
fn remove_left_behind(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((snapshot, _)) = name.to_str().and_then(|name| name.split_once(".restoring-")) else { continue };
        if let Err(error) = settle(&folder.join(snapshot)) {
            tracing::warn!("{error}");
        }
    }
}

fn hardware(config: &machine::vm::VmConfig) -> String {
    format!("{} vCPUs ({}) and {} MiB of memory", config.cpus, config.cpu, config.memory_bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// They take as much space as the guest's memory and disks, and were removed only when a snapshot of the same name was taken.
    #[test]
    fn what_was_left_of_a_snapshot_is_removed_whatever_its_name() {
        let folder = tempfile::tempdir().unwrap();
        for file in [
            "a.snapshot",
            "a.snapshot.restoring-18ecb567c4518986-30987-1",
            "b.snapshot.restoring-18ecb567c4518986-30987-2",
        ] {
            fs::write(folder.path().join(file), "x").unwrap();
        }
        let mut written = storage::disk::Replacement::new();
        written.add_private(&folder.path().join("c.snapshot")).unwrap();
        remove_left_behind(folder.path());
        let new = written.new_path(0).unwrap().to_owned();
        let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        left.sort();
        assert_eq!(left, [folder.path().join("a.snapshot"), new]);
    }
}
