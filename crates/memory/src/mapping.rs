//! The memfd and its mapping: where raw guest pointers live.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::ptr::NonNull;

/// A shared, read-write mapping of a memfd, unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len_bytes: usize,
    file: File,
}

// SAFETY: the mapping is plain shared memory that lives until drop; all access goes through the bounds-checked methods
// below, none of which forms a reference to guest memory, so that concurrent access by vCPU and device threads is the
// guest's own race, as on real hardware.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len_bytes` of fresh zeroed memory. Pages are allocated by the kernel on first touch.
    pub(crate) fn new(len_bytes: usize) -> io::Result<Self> {
        // SAFETY: the name is a NUL-terminated constant; the call touches no memory of ours.
        let fd = unsafe { libc::memfd_create(c"twinvm-ram".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is a fresh descriptor that nobody else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len_bytes as u64)?;
        // SAFETY: a new mapping at an address of the kernel's choice, of a file of that length; it overlaps nothing.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                fd,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned address 0"))?;
        Ok(Self { base, len_bytes, file })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The next stretch at or after `from` (bytes) that the kernel has allocated: all else reads as 0. `None` if there is none. Where
    /// the kernel cannot tell, everything counts as allocated.
    pub(crate) fn allocated(&self, from: u64) -> Option<Range<u64>> {
        let len = self.len_bytes as u64;
        let seek = |offset: u64, whence| {
            // SAFETY: the descriptor is ours, and nobody uses the file position that this moves.
            let found = unsafe { libc::lseek(self.file.as_raw_fd(), offset as libc::off_t, whence) };
            u64::try_from(found).map_err(|_| io::Error::last_os_error())
        };
        let start = match seek(from, libc::SEEK_DATA) {
            Ok(start) => start,
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return None,
            Err(_) => from,
        };
        let end = seek(start, libc::SEEK_HOLE).unwrap_or(len).min(len);
        (start < end).then_some(start..end)
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    #[inline]
    pub(crate) fn contains(&self, offset: u64, len: usize) -> bool {
        offset <= self.len_bytes as u64 && len as u64 <= self.len_bytes as u64 - offset
    }

    /// Reads a scalar at any alignment.
    #[inline(always)]
    pub(crate) fn load<T: Copy>(&self, offset: u64) -> Option<T> {
        if !self.contains(offset, size_of::<T>()) {
            return None;
        }
        // SAFETY: in bounds by the check above; `T` is one of the unsigned integers (sealed trait), so any bytes are a value.
        Some(unsafe { self.base.as_ptr().add(offset as usize).cast::<T>().read_unaligned() })
    }

    /// Writes a scalar at any alignment; false when out of bounds.
    #[inline(always)]
    pub(crate) fn store<T: Copy>(&self, offset: u64, value: T) -> bool {
        if !self.contains(offset, size_of::<T>()) {
            return false;
        }
        // SAFETY: in bounds by the check above.
        unsafe { self.base.as_ptr().add(offset as usize).cast::<T>().write_unaligned(value) };
        true
    }

    /// Copies within guest memory; the ranges may overlap. False when out of bounds.
    pub(crate) fn copy(&self, from: u64, to: u64, len: usize) -> bool {
        if !self.contains(from, len) || !self.contains(to, len) {
            return false;
        }
        // SAFETY: both ranges are in bounds by the check above; `copy_to` allows them to overlap.
        unsafe { self.base.as_ptr().add(from as usize).copy_to(self.base.as_ptr().add(to as usize), len) };
        true
    }

    /// Writes a scalar `count` times in a row, at any alignment; false when out of bounds.
    pub(crate) fn fill<T: Copy>(&self, offset: u64, value: T, count: usize) -> bool {
        let Some(len) = count.checked_mul(size_of::<T>()) else { return false };
        if !self.contains(offset, len) {
            return false;
        }
        for index in 0..count {
            // SAFETY: in bounds by the check above, as `index` is below `count`.
            unsafe { self.base.as_ptr().add(offset as usize).cast::<T>().add(index).write_unaligned(value) };
        }
        true
    }

    /// Copies out of guest memory; false when out of bounds.
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> bool {
        if !self.contains(offset, buf.len()) {
            return false;
        }
        // SAFETY: in bounds by the check above; `buf` is ours, so the two do not overlap.
        unsafe { self.base.as_ptr().add(offset as usize).copy_to_nonoverlapping(buf.as_mut_ptr(), buf.len()) };
        true
    }

    /// Copies into guest memory; false when out of bounds.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> bool {
        if !self.contains(offset, bytes.len()) {
            return false;
        }
        // SAFETY: in bounds by the check above; `bytes` is ours, so the two do not overlap.
        unsafe { self.base.as_ptr().add(offset as usize).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        true
    }
}

impl Mapping {
    /// XORs bytes into guest memory; false when out of bounds.
    pub(crate) fn xor(&self, offset: u64, bytes: &[u8]) -> bool {
        if !self.contains(offset, bytes.len()) {
            return false;
        }
        // SAFETY: in bounds by the check above.
        let start = unsafe { self.base.as_ptr().add(offset as usize) };
        let (words, rest) = bytes.as_chunks::<8>();
        for (index, word) in words.iter().enumerate() {
            // SAFETY: as `index` is below `bytes.len() / 8`, the word is in bounds.
            let at = unsafe { start.cast::<u64>().add(index) };
            // SAFETY: as above; every bit pattern is a value.
            unsafe { at.write_unaligned(at.read_unaligned() ^ u64::from_ne_bytes(*word)) };
        }
        for (index, byte) in rest.iter().enumerate() {
            // SAFETY: the rest lies behind the words and in bounds.
            let at = unsafe { start.add(words.len() * 8 + index) };
            // SAFETY: as above.
            unsafe { at.write(at.read() ^ byte) };
        }
        true
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `new` mapped; views of it (`DmaMemory`) hold an `Arc` of this mapping.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len_bytes) };
    }
}
