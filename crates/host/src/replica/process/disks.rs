//! A replica's disks: opening them, and noting what they are copies of.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use machine::bus::lock;
use protocol::{DiskWatch, Generation};
use replication::disk::{CopyMark, CopyState};
use replication::driver::Primary;
use spec::{SnapshotName, VmSpec};
use storage::disk::{Backing, DiskImage, DiskOptions, settle};

use super::Process;
use crate::foreground::open::base_files;
use crate::foreground::snapshots::{Holds, OpenSnapshot, Restoring, Saved, open_snapshot, take};
use crate::replica::config::{self, ReplicaConfig};

/// How long the end of a VM waits for its snapshots to be given up, and how often it looks.
const END_PATIENCE: Duration = Duration::from_secs(5);
const END_INTERVAL: Duration = Duration::from_millis(20);

impl Process {
    pub(super) fn copy_mark(&self) -> CopyMark {
        CopyMark::of(&self.config.folder)
    }

    /// Notes the generation of this host's copy of the disks, which is the VM's from now on. What was noted before is not wrong either, so nothing
    /// waits for it.
    pub(super) fn mark_copy(&self, generation: Generation) {
        let (mark, marking) = (self.copy_mark(), self.marking.clone());
        thread::spawn(move || {
            let _alone = lock(&marking);
            if let Err(error) = mark.write(CopyState::consistent(generation)) {
                tracing::warn!(%error, "the generation of the disks cannot be noted");
            }
        });
    }

    /// Keeps what is known of what the disks hold for the next replica here, unless a disk is broken: the end of this one does not wait for it.
    pub(super) fn record_digests(&self) {
        let watch = DiskWatch::new(self.options().disk_patience);
        if watch.is_broken(self.disks.health()) {
            return;
        }
        if let Err(error) = self.disks.record_digests() {
            tracing::warn!("the next first copy will read all of the disks: {error}");
        }
    }

    /// Saves the VM to a snapshot in its folder, and waits for that of another request first. The guest stands still only while it is frozen; answers how long.
    pub(super) fn take_snapshot(&self, primary: &Primary, name: &SnapshotName, holds: Holds) -> Result<Duration> {
        let _alone = lock(&self.snapshots.alone);
        let file = config::snapshot(&self.config.folder, name);
        take(&self.spec, &self.saved_disks, &file, holds, &self.snapshots.is_over, |prepared| {
            primary.while_paused(move |vm| prepared.freeze(vm))?
        })
    }
}

/// Snapshots that are being written.
#[derive(Default)]
pub(super) struct Snapshots {
    /// Held by the one that is.
    alone: Mutex<()>,
    /// The VM has ended here: what is not complete is given up.
    is_over: AtomicBool,
}

impl Snapshots {
    /// Gives up what is being written, and returns when nothing of it is left, or when that takes too long.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + END_PATIENCE;
        while matches!(self.alone.try_lock(), Err(TryLockError::WouldBlock)) {
            if Instant::now() >= deadline {
                return;
            }
            thread::sleep(END_INTERVAL);
        }
    }
}

/// Where a replica's disks come from.
pub(super) enum DiskSource {
    /// The files that are there, open.
    Files(Vec<DiskImage>),
    /// A snapshot's, which has not been read further than what it says of itself.
    Snapshot(PathBuf, Box<OpenSnapshot>),
}

impl DiskSource {
    /// Opens it, for a process that is not confined yet.
    pub fn open(config: &ReplicaConfig, spec: &VmSpec) -> Result<Self> {
        for disk in &spec.disks {
            settle(&disk.path)?;
        }
        let Some(name) = &config.snapshot else { return Ok(Self::Files(open_disks(spec)?)) };
        let file = config::snapshot(&config.folder, name);
        let (_, mut snapshot) = open_snapshot(&file)?;
        snapshot.set_host_choices(spec.backing(), spec.translator);
        Ok(Self::Snapshot(file, Box::new(snapshot)))
    }

    /// The files that disks are based on, and where their digests are kept.
    pub fn base_files(&self) -> Result<Vec<PathBuf>> {
        let files = match self {
            Self::Files(images) => {
                images.iter().map(|image| base_files(image.backing().cloned())).collect::<Result<Vec<_>>>()?
            }
            Self::Snapshot(_, snapshot) => {
                let bases = snapshot.head().disks.iter().filter_map(|disk| disk.base.clone());
                let backings = bases.map(|base| Some(Backing { path: base.path, format: base.format }));
                backings.map(base_files).collect::<Result<Vec<_>>>()?
            }
        };
        Ok(files.concat())
    }

    /// The disks, and what goes on with them from the snapshot.
    pub fn disks(self, spec: &VmSpec) -> Result<(Vec<DiskImage>, Option<Box<Saved>>)> {
        match self {
            Self::Files(images) => Ok((images, None)),
            Self::Snapshot(file, snapshot) => {
                let Restoring { disks, saved } = Restoring::begin(&file, spec, *snapshot)?;
                Ok((disks, Some(Box::new(saved))))
            }
        }
    }
}

fn open_disks(spec: &VmSpec) -> Result<Vec<DiskImage>> {
    let disks = spec.disks.iter().map(|disk| {
        let options = DiskOptions { format: disk.format, read_only: disk.readonly, direct: false };
        Ok(DiskImage::open(&disk.path, options)?)
    });
    disks.collect()
}
