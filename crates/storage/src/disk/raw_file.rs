//! The content of a raw image, which is its file's.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::SeekFrom as Find;
use rustix::io::{Errno, ReadWriteFlags};

use super::freezer::{Content, Freezer};
use super::{Allocation, DiskError, Extent};

/// Reads and writes a raw image by any number of threads at the same time, beside the image: there are no tables that could be found in the
/// middle of a change.
#[derive(Debug)]
pub struct RawFile {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    read_only: bool,
    /// The file system cannot say whether a read takes a wait.
    never_cached: AtomicBool,
    /// The image's.
    freezer: Arc<Freezer>,
}

impl RawFile {
    pub(super) fn new(path: PathBuf, file: File, size_bytes: u64, read_only: bool, freezer: Arc<Freezer>) -> Self {
        Self { path, file, size_bytes, read_only, never_cached: AtomicBool::new(false), freezer }
    }

    /// The same file as that of a disk of another size.
    pub(super) fn with_size(&self, size_bytes: u64) -> io::Result<Self> {
        Ok(Self::new(self.path.clone(), self.file.try_clone()?, size_bytes, self.read_only, self.freezer.clone()))
    }

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`], [`DiskError::Io`].
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.check_range(offset, buffer.len())?;
        self.file.read_exact_at(buffer, offset).map_err(|source| self.io("read", source))
    }

    /// Fills `buffer` from `offset` on if the host can do that without a wait, as it has the content in its page cache. False if it cannot,
    /// or cannot tell: then the buffer's content is undefined.
    pub fn read_cached(&self, offset: u64, buffer: &mut [u8]) -> bool {
        if self.never_cached.load(Ordering::Relaxed) || self.check_range(offset, buffer.len()).is_err() {
            return false;
        }
        let length = buffer.len();
        match rustix::io::preadv2(&self.file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) {
            Ok(read) => read == length,
            Err(error) => {
                self.never_cached.fetch_or(error == Errno::OPNOTSUPP, Ordering::Relaxed);
                false
            }
        }
    }

    /// Writes `data` at `offset`. It survives a power failure only after the image's next flush.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`], [`DiskError::ReadOnly`], [`DiskError::Io`].
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly { path: self.path.clone() });
        }
        self.check_range(offset, data.len())?;
        let _change = self.freezer.begin_change(&mut &*self, offset, data.len() as u64);
        self.file.write_all_at(data, offset).map_err(|source| self.io("write", source))
    }

    fn check_range(&self, offset: u64, length: usize) -> Result<(), DiskError> {
        let (length, size_bytes) = (length as u64, self.size_bytes);
        match offset.checked_add(length) {
            Some(end) if end <= size_bytes => Ok(()),
            _ => Err(DiskError::OutOfRange { path: self.path.clone(), offset, length, size_bytes }),
        }
    }

    fn io(&self, action: &'static str, source: io::Error) -> DiskError {
        DiskError::Io { path: self.path.clone(), action, source }
    }
}

impl Content for &RawFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn extent_at(&mut self, offset: u64) -> Result<Extent, DiskError> {
        self.check_range(offset, 1)?;
        let (allocation, length) = raw_extent(&self.file, offset);
        Ok(Extent { allocation, length: length.clamp(1, self.size_bytes - offset) })
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        RawFile::read_at(self, offset, buffer)
    }
}

/// Where the content of a raw image at `offset` comes from, and how far that holds, by the holes in its file. Where the file system knows of none,
/// everything is data.
pub(super) fn raw_extent(file: &File, offset: u64) -> (Allocation, u64) {
    let all = (Allocation::Data, u64::MAX);
    match rustix::fs::seek(file, Find::Data(offset)) {
        Ok(data) if data > offset => (Allocation::Absent, data - offset),
        Ok(_) => match rustix::fs::seek(file, Find::Hole(offset)) {
            Ok(hole) => (Allocation::Data, hole.saturating_sub(offset)),
            Err(_) => all,
        },
        // No data from here on.
        Err(Errno::NXIO) => (Allocation::Absent, u64::MAX),
        Err(_) => all,
    }
}
