//! What a disk needs of its image.

use std::io;

/// The bytes of a disk. All methods block until done; offsets and lengths are in bytes.
pub trait BlockBackend: Send {
    /// Size of the disk.
    fn size_bytes(&self) -> u64;
    /// Whether writes are refused.
    fn is_read_only(&self) -> bool;
    /// Fills `buf` from `offset` on.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes `data` at `offset`.
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Returns when everything written is on stable storage.
    fn flush(&mut self) -> io::Result<()>;
    /// The range's content may become anything.
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()>;
    /// The range reads as zeros from now on; `may_unmap`: it need not keep its space.
    fn write_zeroes(&mut self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()>;
}
