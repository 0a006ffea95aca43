//! What a snapshot says of a disk, besides the content of its file.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use spec::DiskFormat;
use storage::disk::BaseIdentity;

/// A disk of a VM in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotDisk {
    /// Its file, as the spec names it.
    pub path: PathBuf,
    /// Whether the guest may only read it: then the file's content is no part of the snapshot.
    pub read_only: bool,
    /// Permission bits of the file: for one that has to be made anew.
    pub mode: u32,
    /// What the guest sees where the snapshot has nothing of the disk, if that is not all zeros.
    pub base: Option<SnapshotBase>,
}

/// An image whose content a snapshot relies on: what a disk is based on, or a read-only disk as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotBase {
    /// The image.
    pub path: PathBuf,
    /// The image's format.
    pub format: DiskFormat,
    /// What it shows, with all that it is based on itself.
    pub content: BaseIdentity,
}
