//! A replica's disks: opening them, and noting what they are copies of.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use anyhow::Result;
use machine::bus::lock;
use protocol::{DiskWatch, Generation};
use replication::disk::{CopyMark, CopyState};
use replication::driver::Primary;
use spec::{SnapshotName, VmSpec};
use storage::disk::{Backing, DiskImage, DiskOptions, settle};

use super::Process;
use crate::foreground::open::base_files;
use crate::foreground::snapshots::{Holds, OpenSnapshot, Restoring, Saved, open_snapshot, write};
use crate::replica::config::{self, ReplicaConfig};

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

    /// Saves the VM to a snapshot in its folder; the guest stands still meanwhile.
    pub(super) fn take_snapshot(self: &Arc<Self>, primary: &Primary, name: &SnapshotName, holds: Holds) -> Result<()> {
        // Here rather than in the pause.
        self.saved_disks.identify()?;
        let (own, file) = (self.clone(), config::snapshot(&self.config.folder, name));
        primary.while_paused(move |vm| write(vm, &own.spec, &own.saved_disks, &file, holds))?
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
