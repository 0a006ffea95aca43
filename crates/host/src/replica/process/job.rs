//! What is done with the disks of a VM that is off: by a process that is confined as its replica is, since it reads what a guest has left.

use std::io::{BufWriter, Read, stdout};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use spec::SnapshotName;

use super::confined::confine;
use super::disks::DiskSource;
use crate::foreground::snapshots::{restore_disks, tell_disks, write_disks};
use crate::replica::config::{self, ReplicaConfig};

/// Bytes that are told at once.
const TOLD_BYTES: usize = 1 << 20;

/// A job, as its process is told at its standard input, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskJob {
    /// What to do.
    pub work: DiskWork,
    /// Where the VM's files are, and as whom the process is to run.
    pub replica: ReplicaConfig,
}

/// What to do with the disks of a VM that is off.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum DiskWork {
    /// Save them to a snapshot in the VM's folder.
    Save(SnapshotName),
    /// Bring them back from one.
    Restore(SnapshotName),
    /// Tell at standard output what a backup holds: the disks of a snapshot in the VM's folder, kernel and initial RAM disk. The VM may run.
    Tell(SnapshotName),
}

impl DiskJob {
    /// Reads a job.
    pub fn read(mut from: impl Read) -> Result<Self> {
        let mut text = String::new();
        from.read_to_string(&mut text).context("cannot read the job")?;
        serde_json::from_str(&text).context("the job")
    }

    /// Confines the process, which must not have more threads than one, and does it.
    pub fn run(self) -> Result<()> {
        let Self { work, mut replica } = self;
        let spec = replica.vm_spec()?;
        let (DiskWork::Save(name) | DiskWork::Restore(name) | DiskWork::Tell(name)) = &work;
        let file = config::snapshot(&replica.folder, name);
        replica.snapshot = match &work {
            DiskWork::Save(_) => None,
            DiskWork::Restore(name) | DiskWork::Tell(name) => Some(name.clone()),
        };
        let source = DiskSource::open(&replica, &spec)?;
        confine(&replica, &spec, &source)?;
        match source {
            // They stay open meanwhile: nobody else writes to them.
            DiskSource::Files(images) => write_disks(&spec, images, &file),
            DiskSource::Snapshot(file, snapshot) if matches!(work, DiskWork::Tell(_)) => {
                tell_disks(&file, &spec, *snapshot, BufWriter::with_capacity(TOLD_BYTES, stdout()))
            }
            DiskSource::Snapshot(file, snapshot) => restore_disks(&file, &spec, *snapshot),
        }
    }
}
