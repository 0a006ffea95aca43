//! A replica's disks: opening them, and noting what they are copies of.

use std::path::PathBuf;
use std::thread;

use anyhow::Result;
use machine::bus::lock;
use protocol::Generation;
use replication::disk::{CopyMark, CopyState};
use spec::VmSpec;
use storage::disk::{BaseIdentity, DiskImage, DiskOptions};

use super::Process;

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
}

pub(super) fn open_disks(spec: &VmSpec) -> Result<Vec<DiskImage>> {
    let disks = spec.disks.iter().map(|disk| {
        let options = DiskOptions { format: disk.format, read_only: disk.readonly, direct: false };
        Ok(DiskImage::open(&disk.path, options)?)
    });
    disks.collect()
}

/// The files that an image is based on, and where their digests are kept.
pub(super) fn base_files(image: &DiskImage) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut next = image.backing().cloned();
    while let Some(backing) = next {
        files.push(BaseIdentity::kept_at(&backing.path).unwrap_or_default());
        files.push(backing.path.clone());
        let options = DiskOptions { format: Some(backing.format), read_only: true, direct: false };
        next = DiskImage::open(&backing.path, options)?.backing().cloned();
    }
    Ok(files)
}
