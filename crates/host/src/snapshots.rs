//! Snapshots of VMs. Each is a file in the VM's folder on the host that the VM ran on, and goes with that folder.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use api::client::CallError;
use api::messages::{CreateSnapshot, SnapshotView, StartVm, VmView};
use api::status::Role;
use axum::http::Method;
use machine::snapshot::disk::SnapshotBase;
use replication::channel::Peer;
use spec::{EngineKind, SnapshotName, VmSpec};
use storage::disk::{DiskImage, DiskOptions, settle};
use terminal::error_text::error_text;

use super::backups::is_for_backup;
use super::daemon::Daemon;
use super::disk_jobs;
use super::error::HostError;
use super::folder::private_folder;
use super::registry::KnownVm;
use super::settings::at_next_start;
use super::vm_users::share;
use crate::foreground::open;
use crate::foreground::snapshots::{has_disks_of, open_snapshot};
use crate::replica::config::{self, ReplicaConfig};
use crate::replica::control::Request;
use crate::replica::process::{DiskJob, DiskWork};

/// How long a replica may take to write a snapshot: as long as all of its disks take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long another host may take to remove one.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(30);
/// How its file's name ends.
const ENDING: &str = ".snapshot";

/// A snapshot that a VM can go on from.
struct Restorable {
    name: SnapshotName,
    /// The spec of the VM with the files that are here.
    local: VmSpec,
    has_memory: bool,
}

impl Daemon {
    /// The snapshots of a VM that is at home here, the oldest first: also those that hosts have on which it was before.
    pub fn snapshots(&self, vm: &str) -> Result<Vec<SnapshotView>, HostError> {
        let vm = self.known(vm)?;
        self.require_home(&vm)?;
        let mut views = self.kept_snapshots(&vm)?;
        views.extend(self.snapshots_elsewhere(&vm)?);
        views.sort_by(|a, b| (a.created_unix_ms, &a.name).cmp(&(b.created_unix_ms, &b.name)));
        Ok(views)
    }

    /// Those that other hosts have which are alive.
    fn snapshots_elsewhere(&self, vm: &KnownVm) -> Result<Vec<SnapshotView>, HostError> {
        let answers = self.ask_others::<Vec<SnapshotView>>(&self.registry.alive_hosts()?, &kept_path(&vm.name));
        Ok(answers.into_iter().flat_map(|(_, views)| views).collect())
    }

    /// Those of a VM that is at home on `client`, and was here before.
    pub fn snapshots_for(&self, vm: &str, client: &Peer) -> Result<Vec<SnapshotView>, HostError> {
        let vm = self.known_at(vm, client)?;
        self.kept_snapshots(&vm)
    }

    /// Removes one of those.
    pub fn remove_snapshot_for(&self, vm: &str, snapshot: &str, client: &Peer) -> Result<(), HostError> {
        let vm = self.known_at(vm, client)?;
        match self.kept_snapshot(&vm, snapshot) {
            Some(snapshot) => self.remove_kept(&vm, &snapshot),
            None => Err(HostError::not_found(format!("VM {} has no snapshot named {snapshot} here", vm.name))),
        }
    }

    /// A VM about whose snapshots here its home asks.
    fn known_at(&self, vm: &str, client: &Peer) -> Result<KnownVm, HostError> {
        let vm = self.known(vm)?;
        if client.host() == Some(vm.home()) {
            return Ok(vm);
        }
        Err(HostError::not_entitled(format!("VM {} is at home on host {}, not on {client}", vm.name, vm.home())))
    }

    /// Those in the VM's folder here.
    pub(super) fn kept_snapshots(&self, vm: &KnownVm) -> Result<Vec<SnapshotView>, HostError> {
        // An earlier VM of this name may have left a folder.
        let contents = self.vm_folder(&vm.name).contents();
        if contents.is_none_or(|contents| contents.created_unix_ms != vm.record.created_unix_ms) {
            return Ok(Vec::new());
        }
        let folder = config::snapshots(&self.folder.vm(&vm.name));
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(anyhow!(error).context(format!("cannot look into {}", folder.display())).into()),
        };
        let view = |entry: fs::DirEntry| {
            let name = entry.file_name().to_str()?.strip_suffix(ENDING)?.parse().ok()?;
            self.snapshot_view(vm, name, &entry.path()).ok()
        };
        Ok(entries.flatten().filter_map(view).collect())
    }

    fn snapshot_view(&self, vm: &KnownVm, name: SnapshotName, path: &Path) -> io::Result<SnapshotView> {
        let file = fs::metadata(path)?;
        let opened = open_snapshot(path).ok();
        let head = opened.as_ref().map(|(_, snapshot)| snapshot.head());
        // A file's own time is that of its last copy. It says something where the snapshot does not.
        let taken = match head {
            Some(head) => Duration::from_nanos(head.taken_unix_ns),
            None => file.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default(),
        };
        Ok(SnapshotView {
            name,
            vm: vm.name.clone(),
            host: self.host().to_owned(),
            created_unix_ms: u64::try_from(taken.as_millis()).unwrap_or(u64::MAX),
            bytes: file.len(),
            memory: head.map(|head| head.has_memory),
            notices: head.filter(|head| head.has_memory).map(|head| head.heeds_generation),
            pause_ms: None,
        })
    }

    /// Saves a running VM, which goes on, or the disks of one that is off.
    pub fn create_snapshot(self: &Arc<Self>, name: &str, create: &CreateSnapshot) -> Result<SnapshotView, HostError> {
        if is_for_backup(&create.name.to_string()) {
            return Err(HostError::invalid(format!("{} is a name for a backup's own snapshots", create.name))
                .hint("choose another name"));
        }
        self.take_snapshot(name, create)
    }

    /// The same under any name.
    pub(super) fn take_snapshot(
        self: &Arc<Self>,
        name: &str,
        create: &CreateSnapshot,
    ) -> Result<SnapshotView, HostError> {
        let vm = self.known(name)?;
        self.require_home(&vm)?;
        let CreateSnapshot { name: snapshot, memory } = create.clone();
        if let Some(other) = self.snapshots_elsewhere(&vm)?.iter().find(|other| other.name == snapshot) {
            return Err(HostError::refused(format!(
                "VM {name} has a snapshot named {snapshot} already, on host {}",
                other.host
            ))
            .hint(other_name(name, &snapshot)));
        }
        let Some(replica) = self.replica(name).filter(|replica| replica.is_primary()) else {
            let name = name.to_owned();
            return self.owned(&vm.name, move |daemon| daemon.save_disks(&name, &snapshot));
        };
        let file = self.room_for_snapshot(name, &snapshot)?;
        let asked = replica.take_snapshot(&Request::Snapshot { name: snapshot.clone(), memory }, WRITE_TIMEOUT);
        let pause_us = asked.map_err(|error| HostError::refused(format!("VM {name}: {}", error_text(&error))))?;
        let taken = self.snapshot_taken(&vm, snapshot, &file)?;
        Ok(SnapshotView { pause_ms: pause_us.map(|us| us.div_ceil(1000)), ..taken })
    }

    /// Saves the disks of a VM that is off. For its owner.
    fn save_disks(&self, name: &str, snapshot: &SnapshotName) -> Result<SnapshotView, HostError> {
        let vm = self.off_here(name)?;
        let file = self.room_for_snapshot(name, snapshot)?;
        let folder = self.vm_folder(name);
        let local = self.startable_spec(&vm, &folder, false)?;
        self.do_with_disks(&vm, &local, DiskWork::Save(snapshot.clone()))?;
        self.snapshot_taken(&vm, snapshot.clone(), &file)
    }

    /// Where a new snapshot is to be.
    fn room_for_snapshot(&self, name: &str, snapshot: &SnapshotName) -> Result<PathBuf, HostError> {
        let folder = self.folder.vm(name);
        let file = config::snapshot(&folder, snapshot);
        if file.exists() {
            return Err(HostError::refused(format!("VM {name} has a snapshot named {snapshot} already"))
                .hint(other_name(name, snapshot)));
        }
        private_folder(&config::snapshots(&folder))?;
        share(&folder, &config::snapshots(&folder))?;
        remove_left_behind(&config::snapshots(&folder));
        Ok(file)
    }

    fn snapshot_taken(&self, vm: &KnownVm, snapshot: SnapshotName, file: &Path) -> Result<SnapshotView, HostError> {
        let name = &vm.name;
        if let Err(error) = self.note_bases(file) {
            // It can be restored all the same, as long as nobody removes the image.
            tracing::warn!("VM {name}: what snapshot {snapshot} is based on was not noted: {}", error_text(&error));
        }
        tracing::info!("VM {name}: snapshot {snapshot} taken");
        let view = self.snapshot_view(vm, snapshot, file);
        Ok(view.with_context(|| format!("cannot find {}", file.display()))?)
    }

    /// Does something with the disks of a VM that is off.
    fn do_with_disks(&self, vm: &KnownVm, local: &VmSpec, work: DiskWork) -> Result<(), HostError> {
        let job = self.disk_job(vm, local, work)?;
        let done = disk_jobs::run(&self.exe, &job);
        done.map_err(|error| HostError::refused(format!("VM {}: {}", vm.name, error_text(&error))))
    }

    /// What the process is told that does it.
    pub(super) fn disk_job(&self, vm: &KnownVm, local: &VmSpec, work: DiskWork) -> Result<DiskJob, HostError> {
        // No engine runs.
        let common = self.replica_config(vm, local, Role::Primary, EngineKind::Soft)?;
        let replica = ReplicaConfig { user: self.vm_users.assign(&common.folder)?, ..common };
        Ok(DiskJob { work, replica })
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
        if let Some(snapshot) = self.kept_snapshot(&vm, snapshot) {
            return self.remove_kept(&vm, &snapshot);
        }
        let elsewhere = self.snapshots_elsewhere(&vm)?;
        let found = elsewhere.iter().find(|view| *view.name == *snapshot);
        let Some(found) = found else { return Err(self.no_snapshot(&vm, snapshot)) };
        let target = self.registry.alive_host(&found.host)?;
        let target = target.ok_or_else(|| HostError::unreachable(format!("host {} is not alive", found.host)))?;
        let path = format!("{}/{}", kept_path(name), found.name);
        let removed = self.client().call(&target, Method::DELETE, &path, None::<&()>, REMOVE_TIMEOUT);
        let removed: Result<(), CallError> = self.wait_for(removed);
        removed.map_err(|error| HostError::unreachable(error.to_string()))
    }

    fn remove_kept(&self, vm: &KnownVm, snapshot: &SnapshotName) -> Result<(), HostError> {
        let file = config::snapshot(&self.folder.vm(&vm.name), snapshot);
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        tracing::info!("VM {}: snapshot {snapshot} removed", vm.name);
        Ok(())
    }

    /// Starts a VM that is off from a snapshot, or brings its disks back from one without memory; what its disks hold is lost.
    pub fn restore_snapshot(self: &Arc<Self>, name: &str, snapshot: &str) -> Result<VmView, HostError> {
        let (vm, wanted) = (name.to_owned(), snapshot.to_owned());
        let (snapshot, has_memory) = self.owned(name, move |daemon| {
            let restorable = daemon.restorable(&vm, &wanted)?;
            if !restorable.has_memory {
                daemon.restore_disks(&vm, &restorable)?;
            }
            Ok((restorable.name, restorable.has_memory))
        })?;
        if !has_memory {
            return self.vm(name);
        }
        let view = self.start_vm_from(name, StartVm::default(), Some(snapshot.clone()))?;
        tracing::info!("VM {name} goes on from snapshot {snapshot}");
        Ok(view)
    }

    /// Brings the disks of a VM that is off back. For its owner.
    fn restore_disks(&self, name: &str, snapshot: &Restorable) -> Result<(), HostError> {
        let vm = self.off_here(name)?;
        self.do_with_disks(&vm, &snapshot.local, DiskWork::Restore(snapshot.name.clone()))?;
        if let Err(error) = self.vm_folder(name).note_restored(&self.images) {
            // It can be started. It cannot be protected until this is mended.
            tracing::warn!("VM {name}: what its disks are since the restore was not noted: {}", error_text(&error));
        }
        tracing::info!("VM {name} has the disks of snapshot {}", snapshot.name);
        Ok(())
    }

    /// The snapshot of a VM that is off, if the VM can go on from it. For the VM's owner.
    fn restorable(&self, name: &str, snapshot: &str) -> Result<Restorable, HostError> {
        let known = self.known(name)?;
        let vm = at_next_start(known.clone())?;
        self.require_home(&vm)?;
        let snapshot = self.found_snapshot(&vm, snapshot)?;
        if self.replica(name).is_some_and(|replica| !replica.is_gone()) {
            return Err(HostError::refused(format!("VM {name} runs"))
                .hint(format!("stop it first with `twinvm vm stop {name}`, or pull the plug with --force")));
        }
        self.settle_files(&known)?;
        let folder = self.vm_folder(name);
        let refused = |error: anyhow::Error| {
            HostError::refused(format!("snapshot {snapshot} of VM {name} cannot be restored: {}", error_text(&error)))
        };
        let local = folder.local_spec(&vm.spec, &self.vm_files).map_err(refused)?;
        let has_memory = self.check_snapshot(&config::snapshot(folder.path(), &snapshot), &local).map_err(refused)?;
        Ok(Restorable { name: snapshot, local, has_memory })
    }

    /// A snapshot that is here; or where it is instead.
    fn found_snapshot(&self, vm: &KnownVm, snapshot: &str) -> Result<SnapshotName, HostError> {
        if let Some(found) = self.kept_snapshot(vm, snapshot) {
            return Ok(found);
        }
        let elsewhere = self.snapshots_elsewhere(vm)?;
        let Some(found) = elsewhere.iter().find(|view| *view.name == *snapshot) else {
            return Err(self.no_snapshot(vm, snapshot));
        };
        let (name, host) = (&vm.name, &found.host);
        Err(HostError::refused(format!("snapshot {snapshot} of VM {name} is on host {host}, and the VM on host {}", self.host()))
            .hint(format!(
                "bring the VM there while it runs, with `twinvm vm migrate {name} {host}`, stop it, and restore the snapshot then"
            )))
    }

    fn kept_snapshot(&self, vm: &KnownVm, snapshot: &str) -> Option<SnapshotName> {
        let name = snapshot.parse::<SnapshotName>().ok()?;
        config::snapshot(&self.folder.vm(&vm.name), &name).is_file().then_some(name)
    }

    /// Why a snapshot is not found. Hosts that are not alive may have it.
    fn no_snapshot(&self, vm: &KnownVm, snapshot: &str) -> HostError {
        let (name, host) = (&vm.name, self.host());
        let silent = self.registry.state().map(|state| {
            let now = self.registry.now();
            let silent = state.hosts.iter().filter(|host| !host.is_alive(&now));
            silent.map(|host| host.name.to_string()).collect::<Vec<_>>()
        });
        let asked = match silent {
            Ok(silent) if !silent.is_empty() => {
                format!("on host {host} or another one that is alive; not alive: {}", silent.join(", "))
            }
            _ => format!("on host {host} or another one"),
        };
        HostError::not_found(format!("VM {name} has no snapshot named {snapshot} {asked}"))
            .hint(format!("see `twinvm vm snapshot list {name}`"))
    }

    /// Refuses a snapshot of the VM as it was with other disks or other hardware, and one that would have the replica read what is not for a VM: the
    /// process that wrote it parses what a guest sends. Answers whether it has memory.
    fn check_snapshot(&self, file: &Path, spec: &VmSpec) -> anyhow::Result<bool> {
        let (_, snapshot) = open_snapshot(file)?;
        let head = snapshot.head();
        if !has_disks_of(head, spec) {
            anyhow::bail!("the VM has had other disks since, or they were made anew in other files");
        }
        if head.has_memory && !open::config(spec)?.is_same_hardware(&head.config) {
            anyhow::bail!("the VM has had other hardware since: then {}", hardware(&head.config));
        }
        head.disks.iter().filter_map(|disk| disk.base.as_ref()).try_for_each(|base| self.check_base(base))?;
        Ok(head.has_memory)
    }

    fn check_base(&self, base: &SnapshotBase) -> anyhow::Result<()> {
        let (_, path) = self.vm_files.open(&base.path)?;
        let options = DiskOptions { format: Some(base.format), read_only: true, direct: false };
        self.vm_files.check_backing(&DiskImage::open(&path, options)?)
    }
}

/// Where a host is asked by another one for the snapshots that it has of a VM.
fn kept_path(vm: &str) -> String {
    format!("/v1/kept/vms/{vm}/snapshots")
}

fn other_name(vm: &str, snapshot: &SnapshotName) -> String {
    format!("choose another name, or remove that one with `twinvm vm snapshot rm {vm} {snapshot}`")
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
