//! Recovery points of VMs: taken here of VMs that are at home here, and brought back here.
//!
//! A backup is read from a snapshot of the disks alone, in the VM's folder, that is removed when it is done. Whoever reads it is confined and has no key;
//! this process has the key, and looks at nothing of what is in the disks.

use std::collections::btree_map::Entry;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow, bail};
use api::backups::{
    BackUpVm, BackupProgress, ForgetPoints, Forgotten, PointView, PruneRepository, RepositoryView, RestorePoint,
    VolumeView,
};
use api::events::EventKind;
use api::messages::{CloneVm, CreateSnapshot, StartVm, VmView};
use api::time::unix_ms_now;
use backup::{
    Backup, BackupError, Damage, PointId, PointOf, Pruned, RecoveryPoint, Repository, Retention, Verification, Volume,
    When, back_up_stream,
};
use machine::bus::lock;
use spec::{DiskFormat, SnapshotName, VmSpec};
use storage::disk::{DiskImage, DiskOptions, create_qcow2};
use tempfile::TempDir;
use terminal::error_text::error_text;

use super::daemon::Daemon;
use super::disk_jobs;
use super::error::HostError;
use super::folder::private_folder;
use super::names::spec_of_clone;
use super::repositories::Repositories;
use crate::replica::process::DiskWork;

/// What the name of a snapshot begins with that a backup is read from: no other has such a name.
const SNAPSHOT: &str = "backup-under-way.";
/// What folders are called in which a VM is put together that is restored.
const RESTORING: &str = ".restoring-";

/// Whether a snapshot is one that a backup is read from.
pub(super) fn is_for_backup(snapshot: &str) -> bool {
    snapshot.starts_with(SNAPSHOT)
}

/// A backup that is being written.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    bytes: AtomicU64,
    is_cancelled: AtomicBool,
}

/// A VM of which no second backup is begun as long as this is there.
struct Alone<'a>(&'a Daemon, String);

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        lock(&self.0.backing_up).remove(&self.1);
    }
}

impl Daemon {
    fn repositories(&self) -> Repositories {
        Repositories::of(&self.folder)
    }

    /// The repositories that this host knows.
    pub fn backup_repositories(&self) -> Result<Vec<RepositoryView>, HostError> {
        Ok(self.repositories().list()?)
    }

    fn open_repository(&self, name: &str) -> Result<Repository, HostError> {
        self.repositories().open(name).map_err(|error| HostError::refused(error_text(&error)))
    }

    /// Backs up a VM that is at home here, running or not.
    pub fn back_up(self: &Arc<Self>, name: &str, how: &BackUpVm) -> Result<PointView, HostError> {
        let vm = self.known(name)?;
        self.require_home(&vm)?;
        let repository_name = match &how.repository {
            Some(repository) => repository.clone(),
            None => self.repositories().only().map_err(|error| HostError::refused(error_text(&error)))?,
        };
        let repository = self.open_repository(&repository_name)?;
        let under_way = self.begin_backup(name)?;
        let _alone = Alone(self, name.to_owned());
        self.remove_snapshots_for_backup(name)?;
        let snapshot: SnapshotName = format!("{SNAPSHOT}{}", unix_ms_now()).parse().map_err(anyhow::Error::from)?;
        let taken = self.take_snapshot(name, &CreateSnapshot { name: snapshot.clone(), memory: false })?;
        let written = self.write_point(name, &snapshot, taken.created_unix_ms, &repository, &under_way);
        let removed = self.remove_snapshots_for_backup(name);
        let point = match written {
            Ok(point) => point,
            Err(error) => {
                self.events.note(EventKind::Failed, Some(name), format!("was not backed up: {error}"));
                return Err(error);
            }
        };
        if let Err(error) = removed {
            tracing::warn!("VM {name}: {error}");
        }
        let text = format!("was backed up to {repository_name} as {}", point.id);
        self.events.note(EventKind::Done, Some(name), text);
        Ok(view(&repository_name, point))
    }

    /// Notes that a backup of a VM is under way, unless one is.
    fn begin_backup(&self, name: &str) -> Result<Arc<UnderWay>, HostError> {
        match lock(&self.backing_up).entry(name.to_owned()) {
            Entry::Occupied(_) => {
                Err(HostError::refused(format!("a backup of VM {name} is under way")).hint("wait until it is done"))
            }
            Entry::Vacant(free) => Ok(free.insert(Arc::default()).clone()),
        }
    }

    /// Writes what a snapshot holds to a repository.
    fn write_point(
        &self,
        name: &str,
        snapshot: &SnapshotName,
        taken_unix_ms: u64,
        repository: &Repository,
        under_way: &UnderWay,
    ) -> Result<RecoveryPoint, HostError> {
        let vm = self.known(name)?;
        let local = self.vm_folder(name).local_spec(&vm.spec, &self.vm_files)?;
        let job = self.disk_job(&vm, &local, DiskWork::Tell(snapshot.clone()))?;
        let spec = spec::to_toml(&vm.spec).context("the spec cannot be written")?;
        let of = PointOf { vm: name.to_owned(), host: self.host().to_owned(), taken_unix_ms, spec };
        let mut backup = Backup::begin(repository, of).map_err(refused)?;
        let goes_on = |bytes| {
            under_way.bytes.store(bytes, Ordering::Relaxed);
            !under_way.is_cancelled.load(Ordering::Relaxed)
        };
        disk_jobs::run_with(&self.exe, &job, |told| back_up_stream(told, &mut backup, goes_on))
            .map_err(|error| HostError::refused(format!("VM {name} was not backed up: {}", error_text(&error))))?;
        backup.commit().map_err(refused)
    }

    /// How far the backup of a VM is, if one is being written here.
    pub fn backup_progress(&self, name: &str) -> Option<BackupProgress> {
        let under_way = lock(&self.backing_up).get(name).cloned()?;
        Some(BackupProgress { bytes: under_way.bytes.load(Ordering::Relaxed) })
    }

    /// Gives the backup of a VM up that is being written here. It ends soon, and leaves no recovery point.
    pub fn cancel_backup(&self, name: &str) -> Result<(), HostError> {
        let under_way = lock(&self.backing_up).get(name).cloned();
        let under_way = under_way.ok_or_else(|| HostError::refused(format!("no backup of VM {name} is under way")))?;
        under_way.is_cancelled.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Removes snapshots that backups were read from, also of one that was cut short.
    fn remove_snapshots_for_backup(self: &Arc<Self>, name: &str) -> Result<(), HostError> {
        for snapshot in
            self.kept_snapshots(&self.known(name)?)?.iter().filter(|snapshot| is_for_backup(&snapshot.name.to_string()))
        {
            let (vm, snapshot) = (name.to_owned(), snapshot.name.to_string());
            self.owned(name, move |daemon| daemon.remove_snapshot(&vm, &snapshot))?;
        }
        Ok(())
    }

    /// The recovery points in a repository, the oldest first.
    pub fn recovery_points(&self, repository: &str) -> Result<Vec<PointView>, HostError> {
        let listed = self.open_repository(repository)?.points().map_err(refused)?;
        let points = listed.points.into_iter().map(|point| view(repository, point));
        let unreadable = listed.unreadable.into_iter().map(|(id, damage)| unreadable(repository, &id, &damage));
        Ok(points.chain(unreadable).collect())
    }

    /// Makes a VM on this host of a recovery point.
    pub fn restore_point(
        self: &Arc<Self>,
        repository: &str,
        point: &str,
        how: &RestorePoint,
    ) -> Result<VmView, HostError> {
        let repository = self.open_repository(repository)?;
        let point = repository.find(point).map_err(refused)?;
        let spec = restored_spec(&point, how)?;
        self.admit_new(&spec)?;
        let staging = self.staging()?;
        let staged = lay_out(&repository, &point, &spec, staging.path()).map_err(|error| {
            HostError::refused(format!("recovery point {} cannot be restored: {}", point.id, error_text(&error)))
        })?;
        let (name, id) = (spec.name.clone(), point.id);
        let made = self.owned(&name, move |daemon| daemon.make_restored(&staged))?;
        drop(staging);
        self.events.note(EventKind::Created, Some(&name), format!("was restored from recovery point {id}"));
        if how.start { self.start_vm(&name, StartVm::default()) } else { Ok(made) }
    }

    /// Makes the VM whose files were laid out. For its owner.
    fn make_restored(self: &Arc<Self>, staged: &VmSpec) -> Result<VmView, HostError> {
        self.admit_new(staged)?;
        let folder = self.vm_folder(&staged.name);
        let made = folder.create(staged, &self.images, &self.vm_files);
        let mut kept = made.map_err(|error| HostError::refused(error_text(&error)))?;
        // From now on these are its files.
        let local = folder.local_spec(&kept, &self.vm_files)?;
        (kept.kernel, kept.initrd) = (local.kernel, local.initrd);
        for (disk, own) in kept.disks.iter_mut().zip(local.disks) {
            disk.path = own.path;
        }
        self.keep_made(&folder, &kept)
    }

    /// A folder in which a VM is put together.
    fn staging(&self) -> Result<TempDir> {
        let files = self.folder.files();
        private_folder(&files)?;
        let made = tempfile::Builder::new().prefix(RESTORING).tempdir_in(&files);
        made.with_context(|| format!("cannot make a folder in {}", files.display()))
    }

    /// Removes folders of restores that were cut short with the daemon before this one.
    pub(super) fn remove_cut_restores(&self) {
        for entry in fs::read_dir(self.folder.files()).into_iter().flatten().flatten() {
            let is_left = entry.file_name().to_str().is_some_and(|name| name.starts_with(RESTORING));
            if is_left && let Err(error) = fs::remove_dir_all(entry.path()) {
                tracing::warn!("what a restore has left in {} stays: {error}", entry.path().display());
            }
        }
    }

    /// Forgets one recovery point.
    pub fn forget_point(&self, repository: &str, point: &str) -> Result<Forgotten, HostError> {
        let repository = self.open_repository(repository)?;
        // By its whole name also one that cannot be read.
        let id = match PointId::try_from(point.to_owned()) {
            Ok(id) => id,
            Err(_) => repository.find(point).map_err(refused)?.id,
        };
        repository.forget(&id).map_err(refused)?;
        let kept = repository.points().map_err(refused)?.points.len() as u64;
        Ok(Forgotten { points: vec![id.to_string()], kept })
    }

    /// Forgets what is not to be kept, of each VM by itself.
    pub fn forget_points(&self, repository: &str, how: &ForgetPoints) -> Result<Forgotten, HostError> {
        let ForgetPoints { vm, last, hourly, daily, weekly, monthly, dry_run } = how;
        let retention = Retention { last: *last, hourly: *hourly, daily: *daily, weekly: *weekly, monthly: *monthly };
        if retention.is_empty() {
            return Err(HostError::invalid("nothing would be kept").hint("say what is, such as --keep-daily 7"));
        }
        let repository = self.open_repository(repository)?;
        let mut points = repository.points().map_err(refused)?.points;
        points.retain(|point| vm.as_ref().is_none_or(|vm| *vm == point.vm));
        let mut forgotten = Forgotten { points: Vec::new(), kept: points.len() as u64 };
        points.sort_by(|a, b| a.vm.cmp(&b.vm));
        for of_one in points.chunk_by(|a, b| a.vm == b.vm) {
            for id in retention.forgets(of_one) {
                if !dry_run {
                    repository.forget(&id).map_err(refused)?;
                }
                forgotten.points.push(id.to_string());
                forgotten.kept -= 1;
            }
        }
        Ok(forgotten)
    }

    /// Reads all of a repository, and says what is damaged.
    pub fn verify_repository(&self, repository: &str) -> Result<Verification, HostError> {
        self.open_repository(repository)?.verify(|_| ()).map_err(refused)
    }

    /// Gives space back that no recovery point needs.
    pub fn prune_repository(&self, repository: &str, how: PruneRepository) -> Result<Pruned, HostError> {
        let when = if how.now { When::Now } else { When::Later };
        self.open_repository(repository)?.prune(when, SystemTime::now()).map_err(refused)
    }
}

/// The spec of the VM that a point becomes, whose files are not known yet.
fn restored_spec(point: &RecoveryPoint, how: &RestorePoint) -> Result<VmSpec, HostError> {
    let before = VmSpec::parse(&point.spec)
        .map_err(|error| HostError::refused(format!("recovery point {}: {error}", point.id)))?;
    let name = how.name.clone().unwrap_or_else(|| before.name.clone());
    let (mac, id) = (before.networks.clone(), before.id);
    let is_same = name == before.name;
    let mut spec = spec_of_clone(&before, &CloneVm { name, forward: how.forward.clone() })?;
    if is_same {
        // It is that VM again.
        spec.id = id;
        if how.forward.is_none() {
            spec.networks = mac;
        }
    }
    Ok(spec)
}

/// Writes the files of a VM to a folder; its spec with these.
fn lay_out(repository: &Repository, point: &RecoveryPoint, spec: &VmSpec, folder: &Path) -> Result<VmSpec> {
    let mut staged = VmSpec { image: None, ..spec.clone() };
    for volume in &point.volumes {
        match volume.name.as_str() {
            name @ ("kernel" | "initrd") => {
                let path = folder.join(name);
                write_file(repository, volume, &path).with_context(|| name.to_owned())?;
                let place = if name == "kernel" { &mut staged.kernel } else { &mut staged.initrd };
                *place = Some(path);
            }
            name => {
                let number = name.strip_prefix("disk").and_then(|number| number.parse::<usize>().ok());
                let disk = number.and_then(|number| staged.disks.get_mut(number)).filter(|disk| !disk.readonly);
                let disk = disk.ok_or_else(|| anyhow!("it holds {name}, which its spec does not know"))?;
                let path = folder.join(format!("{name}.qcow2"));
                write_disk(repository, volume, &path).with_context(|| name.to_owned())?;
                (disk.path, disk.format, disk.base_image) = (path, Some(DiskFormat::Qcow2), None);
            }
        }
    }
    if let Some(disk) = staged.disks.iter().find(|disk| !disk.readonly && !disk.path.starts_with(folder)) {
        bail!("it does not hold disk {}", disk.path.display());
    }
    Ok(staged)
}

/// Makes a file of a volume.
fn write_file(repository: &Repository, volume: &Volume, path: &Path) -> Result<()> {
    let file = File::create_new(path)?;
    file.set_len(volume.bytes)?;
    repository.read_volume(volume, |at, data| {
        file.write_all_at(data, at).map_err(|error| BackupError::Target(error.to_string()))
    })?;
    Ok(())
}

/// Makes a disk image of a volume.
fn write_disk(repository: &Repository, volume: &Volume, path: &Path) -> Result<()> {
    create_qcow2(path, volume.bytes, None)?;
    let options = DiskOptions { format: Some(DiskFormat::Qcow2), read_only: false, direct: false };
    let mut image = DiskImage::open(path, options)?;
    repository.read_volume(volume, |at, data| {
        image.write_at(at, data).map_err(|error| BackupError::Target(error_text(&error.into())))
    })?;
    Ok(image.flush()?)
}

fn view(repository: &str, point: RecoveryPoint) -> PointView {
    let volumes = point.volumes.into_iter().map(|volume| VolumeView { name: volume.name, bytes: volume.bytes });
    PointView {
        id: point.id.to_string(),
        repository: repository.to_owned(),
        vm: Some(point.vm),
        host: Some(point.host),
        taken_unix_ms: Some(point.taken_unix_ms),
        finished_unix_ms: Some(point.finished_unix_ms),
        volumes: volumes.collect(),
        data_bytes: point.data_bytes,
        added_bytes: point.added_bytes,
        unreadable: None,
    }
}

fn unreadable(repository: &str, id: &PointId, damage: &Damage) -> PointView {
    PointView {
        id: id.to_string(),
        repository: repository.to_owned(),
        vm: None,
        host: None,
        taken_unix_ms: None,
        finished_unix_ms: None,
        volumes: Vec::new(),
        data_bytes: 0,
        added_bytes: 0,
        unreadable: Some(damage.why.clone()),
    }
}

fn refused(error: BackupError) -> HostError {
    let is_missing = matches!(error, BackupError::NoPoint(_));
    let text = error_text(&error.into());
    if is_missing {
        return HostError::not_found(text).hint("see `twinvm backup list`");
    }
    HostError::refused(text)
}
