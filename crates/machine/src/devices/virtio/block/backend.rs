//! What a disk needs of its image.

use std::io;
use std::sync::{Arc, Mutex};

use storage::disk::{DiskFreezer, DiskImage, FrozenDisk, RawFile, Spill};

use crate::bus::lock;

/// The bytes of a virtual disk. Whatever must stand between a guest and its image, such as a replica's copy of each
/// write, wraps the image in a type of its own.
///
/// All methods block until done; offsets and lengths are in bytes. The device asks only for whole sectors of 512 bytes
/// within the disk, and never asks a read-only disk to change. An error makes the guest's request fail with `IOERR`.
///
/// Several threads may call at the same time. Of changes whose ranges overlap and that are under way together, any order may result, but one
/// for all of the range. A flush should not keep others waiting: it may take seconds.
pub trait BlockBackend: Send + Sync {
    /// Size of the disk; it does not change.
    fn size_bytes(&self) -> u64;

    /// Whether writes are refused.
    fn is_read_only(&self) -> bool;

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// The host's.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Fills `buf` from `offset` on if that takes no wait. False if it may take one, or fails: then the content of `buf` is undefined, and
    /// [`BlockBackend::read_at`] is the way.
    fn read_cached(&self, _offset: u64, _buf: &mut [u8]) -> bool {
        false
    }

    /// Writes `data` at `offset`. It need not survive a power failure before the next [`BlockBackend::flush`].
    ///
    /// # Errors
    /// The host's; the range's content is undefined then.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Returns when everything is on stable storage whose write had returned before the call.
    ///
    /// # Errors
    /// The host's; what was written since the last flush may be lost then.
    fn flush(&self) -> io::Result<()>;

    /// The guest does not need the range's content any more.
    ///
    /// # Errors
    /// The host's.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// The range reads as zeros from now on; with `may_unmap` it need not keep its space.
    ///
    /// # Errors
    /// The host's; the range's content is undefined then.
    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()>;

    /// Freezes the content for a snapshot: what it is after the changes whose calls have returned, and possibly those that are under way. Waits neither
    /// for them nor for anything else, as the guest stands still.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] for a disk that has no image; [`storage::disk::DiskError::InUse`] while another snapshot is taken.
    fn freeze(&self, _spill: &Arc<Spill>) -> io::Result<FrozenDisk> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// An image that nothing stands in front of.
pub struct ImageDisk {
    image: Arc<Mutex<DiskImage>>,
    freezer: DiskFreezer,
    /// Content that is read and written without the lock.
    raw: Option<Arc<RawFile>>,
}

impl ImageDisk {
    /// The disk that `image` holds.
    pub fn new(image: DiskImage) -> Self {
        Self { raw: image.raw_file().cloned(), freezer: image.freezer(), image: Arc::new(Mutex::new(image)) }
    }
}

impl BlockBackend for ImageDisk {
    fn size_bytes(&self) -> u64 {
        lock(&self.image).size_bytes()
    }

    fn is_read_only(&self) -> bool {
        lock(&self.image).is_read_only()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        Ok(match &self.raw {
            Some(raw) => raw.read_at(offset, buf),
            None => lock(&self.image).read_at(offset, buf),
        }?)
    }

    fn read_cached(&self, offset: u64, buf: &mut [u8]) -> bool {
        self.raw.as_ref().is_some_and(|raw| raw.read_cached(offset, buf))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        Ok(match &self.raw {
            Some(raw) => raw.write_at(offset, data),
            None => lock(&self.image).write_at(offset, data),
        }?)
    }

    fn flush(&self) -> io::Result<()> {
        let write_back = lock(&self.image).write_back()?;
        // Most of the time is spent here, without the lock.
        write_back.run()?;
        if write_back.is_flush() { Ok(()) } else { Ok(lock(&self.image).flush()?) }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        Ok(lock(&self.image).discard(offset, len)?)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        Ok(lock(&self.image).write_zeroes(offset, len, may_unmap)?)
    }

    fn freeze(&self, spill: &Arc<Spill>) -> io::Result<FrozenDisk> {
        Ok(self.freezer.freeze(self.image.clone(), spill)?)
    }
}
