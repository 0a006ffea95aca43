//! The memfd and its mapping: where raw guest pointers live.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::ptr::NonNull;

use spec::{HugePages, MemoryBacking};

/// A shared, read-write mapping of a memfd, unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len_bytes: usize,
    /// What is mapped: as much, or the next whole number of huge pages.
    mapped_bytes: usize,
    file: File,
}

// SAFETY: the mapping is plain shared memory that lives until drop; all access goes through the bounds-checked methods
// below, none of which forms a reference to guest memory, so that concurrent access by vCPU and device threads is the
// guest's own race, as on real hardware.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// Bytes of the pages that transparent huge pages are made of on x86-64.
const TRANSPARENT_BYTES: usize = 2 << 20;
/// Most NUMA nodes of a host (CONFIG_NODES_SHIFT is at most 10 on x86-64).
const NUMA_NODES_MAX: usize = 1024;
/// Allocate on the given nodes alone (linux/mempolicy.h).
const MPOL_BIND: libc::c_long = 2;

impl Mapping {
    /// Maps `len_bytes` of fresh zeroed memory. Pages are allocated by the kernel on first touch, from what `backing` says.
    pub(crate) fn new(len_bytes: usize, backing: &MemoryBacking) -> io::Result<Self> {
        let (flags, page_bytes) = match backing.huge_pages {
            HugePages::Hugetlbfs => (libc::MFD_HUGETLB, huge_page_bytes()?),
            HugePages::Transparent => (0, TRANSPARENT_BYTES),
            HugePages::Off => (0, 1),
        };
        // SAFETY: the name is a NUL-terminated constant; the call touches no memory of ours.
        let fd = unsafe { libc::memfd_create(c"twinvm-ram".as_ptr(), libc::MFD_CLOEXEC | flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is a fresh descriptor that nobody else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        let is_hugetlbfs = backing.huge_pages == HugePages::Hugetlbfs;
        // Such files have whole pages only.
        let mapped_bytes = if is_hugetlbfs { len_bytes.next_multiple_of(page_bytes) } else { len_bytes };
        file.set_len(mapped_bytes as u64)?;
        // Pages of a pool are reserved here and now: a guest that finds the pool empty later would be killed.
        let reserve = if is_hugetlbfs { 0 } else { libc::MAP_NORESERVE };
        let base = map_aligned(&file, mapped_bytes, page_bytes, libc::MAP_SHARED | reserve)?;
        let mapping = Self { base, len_bytes, mapped_bytes, file };
        if backing.huge_pages == HugePages::Transparent {
            // SAFETY: the range is the mapping. A kernel without transparent huge pages refuses, and small pages do as well.
            let _ = unsafe { libc::madvise(base.as_ptr().cast(), mapped_bytes, libc::MADV_HUGEPAGE) };
        }
        if let Some(node) = backing.numa_node {
            mapping.bind(node as usize)?;
        }
        Ok(mapping)
    }

    /// Has all of it allocated on one NUMA node.
    fn bind(&self, node: usize) -> io::Result<()> {
        let mut nodes = [0u64; NUMA_NODES_MAX / 64];
        let word = nodes.get_mut(node / 64).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        *word = 1 << (node % 64);
        // SAFETY: the range is the mapping, and `nodes` has as many bits as are said. The kernel counts one less than it is told.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.base.as_ptr(),
                self.mapped_bytes,
                MPOL_BIND,
                nodes.as_ptr(),
                NUMA_NODES_MAX + 1,
                0,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped_bytes) };
    }
}

/// Bytes of a page of the host's pool.
fn huge_page_bytes() -> io::Result<usize> {
    let info = std::fs::read_to_string("/proc/meminfo")?;
    let kib =
        info.lines().find_map(|line| line.strip_prefix("Hugepagesize:")?.trim().strip_suffix(" kB")?.parse().ok());
    kib.map(|kib: usize| kib << 10)
        .filter(|bytes| bytes.is_power_of_two())
        .ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "this host has no huge pages"))
}

/// Maps a file from its start at a multiple of `alignment`, a power of two: only there can large pages of the file be large pages of
/// the address space.
fn map_aligned(file: &File, len_bytes: usize, alignment: usize, flags: libc::c_int) -> io::Result<NonNull<u8>> {
    let spare = if alignment > 1 { alignment } else { 0 };
    // SAFETY: a new mapping, without access, at an address of the kernel's choice; it overlaps nothing.
    let reserved = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len_bytes + spare,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if reserved == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = reserved as usize;
    let aligned = start.next_multiple_of(alignment);
    let unmap = |from: usize, to: usize| {
        if from < to {
            // SAFETY: a part of what was reserved above and is not used.
            unsafe { libc::munmap(from as *mut libc::c_void, to - from) };
        }
    };
    // SAFETY: the range lies within what was reserved above, which nobody else knows of and this replaces.
    let base = unsafe {
        libc::mmap(
            aligned as *mut libc::c_void,
            len_bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            flags | libc::MAP_FIXED,
            file.as_raw_fd(),
            0,
        )
    };
    if base == libc::MAP_FAILED {
        let error = io::Error::last_os_error();
        unmap(start, start + len_bytes + spare);
        return Err(error);
    }
    unmap(start, aligned);
    unmap((aligned + len_bytes).next_multiple_of(4096), start + len_bytes + spare);
    NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned address 0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 6 << 20;

    fn backing(huge_pages: HugePages) -> MemoryBacking {
        MemoryBacking { huge_pages, numa_node: None }
    }

    #[test]
    fn memory_for_huge_pages_is_aligned_and_all_there() {
        for huge_pages in [HugePages::Off, HugePages::Transparent] {
            let mapping = Mapping::new(SIZE, &backing(huge_pages)).unwrap();
            assert!(huge_pages == HugePages::Off || (mapping.base() as usize).is_multiple_of(TRANSPARENT_BYTES));
            let last = SIZE as u64 - 8;
            assert!(mapping.store(last, 7u64) && mapping.load::<u64>(last) == Some(7));
            assert!(!mapping.store(SIZE as u64, 7u8));
        }
    }

    /// There may be huge pages in the pool or not; either way nobody is killed by touching memory.
    #[test]
    fn memory_from_the_pool_is_there_or_refused() {
        match Mapping::new(5 << 20, &backing(HugePages::Hugetlbfs)) {
            Ok(mapping) => {
                assert_eq!(mapping.mapped_bytes % huge_page_bytes().unwrap(), 0);
                assert!(mapping.store((5 << 20) - 1, 1u8));
                assert!(!mapping.store(5 << 20, 1u8), "the guest has what it was given");
            }
            Err(error) => eprintln!("no huge pages in the pool: {error}"),
        }
    }

    #[test]
    fn memory_of_a_node_that_does_not_exist_is_refused() {
        let bound = |node| Mapping::new(SIZE, &MemoryBacking { numa_node: Some(node), ..MemoryBacking::default() });
        for node in [NUMA_NODES_MAX as u32 - 1, NUMA_NODES_MAX as u32, u32::MAX] {
            assert_eq!(bound(node).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{node}");
        }
        // A kernel without NUMA has one node and knows no policies.
        match bound(0) {
            Ok(mapping) => assert!(mapping.store(0, 1u8)),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOSYS)),
        }
    }
}
