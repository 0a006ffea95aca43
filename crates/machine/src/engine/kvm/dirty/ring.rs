//! [`DirtyRing`]: the ring into which the kernel puts the pages that one vCPU writes.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn};
use kvm_ioctls::VcpuFd;

/// Bytes of an entry.
pub(super) const ENTRY_BYTES: u64 = size_of::<kvm_dirty_gfn>() as u64;

/// The entry was written by the kernel (KVM_DIRTY_GFN_F_DIRTY).
const DIRTY: u32 = 1;
/// It was read and may be taken back (KVM_DIRTY_GFN_F_RESET).
const RESET: u32 = 2;
/// The part of an entry's slot that is the slot's number; above it is the address space.
const SLOT_MASK: u32 = 0xffff;

/// One vCPU's ring, mapped.
#[derive(Debug)]
pub(super) struct DirtyRing {
    entries: NonNull<kvm_dirty_gfn>,
    /// A power of two.
    len: u32,
    /// Entries read so far, which wraps around.
    read: u32,
    /// Those of them that the kernel has not taken back.
    outstanding: u32,
}

// SAFETY: the mapping is shared memory that only this owner reads; access takes `&mut self`.
unsafe impl Send for DirtyRing {}

impl DirtyRing {
    /// Maps the ring of `vcpu`, which has so many entries.
    pub fn new(vcpu: &VcpuFd, len: u32) -> io::Result<Self> {
        // SAFETY: sysconf has no preconditions.
        let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        // SAFETY: a new mapping at an address of the kernel's choice; it overlaps nothing.
        let entries = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len as usize * size_of::<kvm_dirty_gfn>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                page_bytes * libc::off_t::from(KVM_DIRTY_LOG_PAGE_OFFSET),
            )
        };
        if entries == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let entries = NonNull::new(entries.cast()).ok_or_else(|| io::Error::other("mmap returned address 0"))?;
        Ok(Self { entries, len, read: 0, outstanding: 0 })
    }

    /// Reads the entries that the kernel has written since the last call: number of the memory slot, and page in it. Whoever reads all of
    /// them has them taken back by KVM_RESET_DIRTY_RINGS.
    pub fn entries(&mut self) -> impl Iterator<Item = (u32, u64)> + '_ {
        // No more than the ring holds: a vCPU goes on writing.
        (self.outstanding..self.len).map_while(|_| self.next())
    }

    /// Whether the kernel may have overwritten entries that were not read. It stops a vCPU long before the ring is full, so a full ring is one that
    /// it has not looked after.
    pub fn is_overrun(&self) -> bool {
        self.outstanding >= self.len
    }

    /// The kernel has taken back all entries that were read.
    pub fn was_reset(&mut self) {
        self.outstanding = 0;
    }

    fn next(&mut self) -> Option<(u32, u64)> {
        let index = self.read & (self.len - 1);
        // SAFETY: `index` is below `len`, the number of entries mapped.
        let entry = unsafe { self.entries.as_ptr().add(index as usize) };
        // SAFETY: the field is aligned, in the mapping, and accessed atomically by both sides.
        let flags = unsafe { AtomicU32::from_ptr(&raw mut (*entry).flags) };
        if flags.load(Ordering::Acquire) & (DIRTY | RESET) != DIRTY {
            return None;
        }
        // SAFETY: the kernel wrote the entry before it set the flag, and does not touch it again until it was taken back.
        let (slot, page) = unsafe { ((*entry).slot, (*entry).offset) };
        flags.store(RESET, Ordering::Release);
        self.read = self.read.wrapping_add(1);
        self.outstanding += 1;
        Some((slot & SLOT_MASK, page))
    }
}

impl Drop for DirtyRing {
    fn drop(&mut self) {
        let bytes = self.len as usize * size_of::<kvm_dirty_gfn>();
        // SAFETY: exactly the range that `new` mapped.
        unsafe { libc::munmap(self.entries.as_ptr().cast(), bytes) };
    }
}
