//! [`FileStamps`]: what tells whether the files of an image have been changed.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// How long files must have been left alone before anything is kept of them: two changes within the granularity of a file system's time stamps cannot be
/// told apart.
pub(super) const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// What tells whether a file was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let ns = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether a change from now on has another time.
    fn is_settled(&self) -> bool {
        let settled = SystemTime::now().checked_sub(SETTLED_AFTER).and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let settled_ns = settled.and_then(|since_epoch| i128::try_from(since_epoch.as_nanos()).ok());
        settled_ns.is_some_and(|settled_ns| self.modified_ns.max(self.changed_ns) < settled_ns)
    }
}

/// What tells whether the files that a disk's content depends on have been changed: which files they are, their lengths, and when they were changed
/// last. They are the image's own, then those it is based on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamps(Vec<Stamp>);

impl FileStamps {
    /// Those of open files; none if one is a device, whose time stamps say nothing.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn of<'a>(files: impl Iterator<Item = &'a File>) -> io::Result<Option<Self>> {
        let files = files.map(File::metadata).collect::<io::Result<Vec<_>>>()?;
        let is_device = |file: &Metadata| file.file_type().is_block_device();
        Ok((!files.iter().any(is_device)).then(|| Self(files.iter().map(Stamp::of).collect())))
    }

    /// These and others after them.
    pub(super) fn with(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// Whether a change of any of them from now on would show.
    pub(super) fn are_settled(&self) -> bool {
        self.0.iter().all(Stamp::is_settled)
    }

    /// The same of the files that the image is based on.
    pub(super) fn are_bases_settled(&self) -> bool {
        self.0.iter().skip(1).all(Stamp::is_settled)
    }
}
