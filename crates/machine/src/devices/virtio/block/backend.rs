//! What a disk needs of its image.

use std::io;

use storage::disk::DiskImage;

/// The bytes of a virtual disk. Whatever must stand between a guest and its image, such as a replica's copy of each
/// write, wraps the image in a type of its own.
///
/// All methods block until done; offsets and lengths are in bytes. The device asks only for whole sectors of 512 bytes
/// within the disk, and never asks a read-only disk to change. An error makes the guest's request fail with `IOERR`.
pub trait BlockBackend: Send {
    /// Size of the disk; it does not change.
    fn size_bytes(&self) -> u64;

    /// Whether writes are refused.
    fn is_read_only(&self) -> bool;

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// The host's.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes `data` at `offset`. It need not survive a power failure before the next [`BlockBackend::flush`].
    ///
    /// # Errors
    /// The host's; the range's content is undefined then.
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Returns when everything written is on stable storage.
    ///
    /// # Errors
    /// The host's; what was written since the last flush may be lost then.
    fn flush(&mut self) -> io::Result<()>;

    /// The guest does not need the range's content any more.
    ///
    /// # Errors
    /// The host's.
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()>;

    /// The range reads as zeros from now on; with `may_unmap` it need not keep its space.
    ///
    /// # Errors
    /// The host's; the range's content is undefined then.
    fn write_zeroes(&mut self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()>;
}

impl BlockBackend for DiskImage {
    fn size_bytes(&self) -> u64 {
        Self::size_bytes(self)
    }

    fn is_read_only(&self) -> bool {
        Self::is_read_only(self)
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        Ok(Self::read_at(self, offset, buf)?)
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        Ok(Self::write_at(self, offset, data)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(Self::flush(self)?)
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        Ok(Self::discard(self, offset, len)?)
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        Ok(Self::write_zeroes(self, offset, len, may_unmap)?)
    }
}
