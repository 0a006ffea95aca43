//! Opening a replica's disks.

use std::path::PathBuf;

use anyhow::Result;
use spec::VmSpec;
use storage::disk::{BaseIdentity, DiskImage, DiskOptions};

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
