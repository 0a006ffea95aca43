//! Where a snapshot keeps what is written over before it has read it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Longest file, in bytes: the most that an offset of the system can say.
const BYTES_MAX: u64 = i64::MAX as u64;

/// A file without a name that several readers of frozen content share: each has regions of its own. It is sparse, so a region takes the space of what
/// was put there.
#[derive(Debug)]
pub struct Spill {
    file: File,
    end: AtomicU64,
}

impl Spill {
    /// Keeps things in `file`, which is empty and nobody else's.
    pub fn new(file: File) -> Self {
        Self { file, end: AtomicU64::new(0) }
    }

    /// Where a new region of this length begins.
    ///
    /// # Errors
    /// [`io::ErrorKind::FileTooLarge`].
    pub fn reserve(&self, length: u64) -> io::Result<u64> {
        let add = |end: u64| end.checked_add(length).filter(|&end| end <= BYTES_MAX);
        let reserved = self.end.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        reserved.map_err(|_| io::ErrorKind::FileTooLarge.into())
    }

    /// Keeps bytes at a place in a region.
    ///
    /// # Errors
    /// The host's: its datastore may be full.
    pub fn put(&self, place: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, place)
    }

    /// Takes bytes that were put there.
    ///
    /// # Errors
    /// The host's.
    pub fn get(&self, place: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, place)
    }
}
