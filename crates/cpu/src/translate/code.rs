//! [`CodeMemory`]: memory that holds translated code.
//!
//! It is mapped twice, once to write and once to execute, so that no mapping is writable and executable at once.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;

/// Bytes of code that a machine may have. Pages are allocated as they are written.
const LEN_BYTES: usize = 32 << 20;

/// More than the code of a block takes: 64 instructions of at most some 200 bytes each.
const BLOCK_BYTES_MAX: usize = 32 << 10;

/// Memory for translated code: written through one mapping, executed through another.
///
/// Places in it are *offsets* from its start.
pub(super) struct CodeMemory {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
    used: usize,
}

// SAFETY: the mappings are plain memory that lives until drop, reached through `&self` only to execute it, which
// `super::Translator` does on the thread that owns it, and through `&mut self` only to write it.
unsafe impl Send for CodeMemory {}

impl CodeMemory {
    /// Fails where the host refuses executable memory.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: the name is a NUL-terminated constant; the call touches no memory of ours.
        let fd = unsafe { libc::memfd_create(c"twinvm-code".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is a fresh descriptor that nobody else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(LEN_BYTES as u64)?;
        let writable = map(&file, libc::PROT_READ | libc::PROT_WRITE)?;
        match map(&file, libc::PROT_READ | libc::PROT_EXEC) {
            Ok(executable) => Ok(Self { writable, executable, used: 0 }),
            Err(error) => {
                unmap(writable);
                Err(error)
            }
        }
    }

    /// Where the next code will be.
    pub(super) fn next(&self) -> usize {
        self.used
    }

    /// Appends code, and returns its offset. `None` when there is no more room.
    pub(super) fn append(&mut self, code: &[u8]) -> Option<usize> {
        let offset = self.used;
        if code.len() > LEN_BYTES - offset {
            return None;
        }
        // SAFETY: the range is within the mapping by the check above, and nothing else refers to it.
        unsafe { self.writable.as_ptr().add(offset).copy_from_nonoverlapping(code.as_ptr(), code.len()) };
        self.used += code.len();
        Some(offset)
    }

    /// Whether less is left than the largest block may need.
    pub(super) fn is_full(&self) -> bool {
        LEN_BYTES - self.used < BLOCK_BYTES_MAX
    }

    /// Overwrites four bytes of code.
    pub(super) fn patch(&mut self, offset: usize, bytes: [u8; 4]) {
        if offset + bytes.len() <= self.used {
            // SAFETY: the range is within what was appended.
            unsafe { self.writable.as_ptr().add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        }
    }

    /// Forgets all code from an offset on.
    pub(super) fn truncate(&mut self, offset: usize) {
        self.used = self.used.min(offset);
    }

    /// The address at which code can be executed.
    pub(super) fn address(&self, offset: usize) -> u64 {
        self.executable.as_ptr() as u64 + offset as u64
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        unmap(self.writable);
        unmap(self.executable);
    }
}

fn map(file: &File, protection: i32) -> io::Result<NonNull<u8>> {
    // SAFETY: a fresh mapping at an address that the kernel chooses overlaps nothing.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), LEN_BYTES, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(io::Error::last_os_error)
}

fn unmap(start: NonNull<u8>) {
    // SAFETY: the range is one of the two mappings, which its owner is done with.
    unsafe { libc::munmap(start.as_ptr().cast(), LEN_BYTES) };
}
