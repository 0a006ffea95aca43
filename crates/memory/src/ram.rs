//! [`GuestRam`]: the RAM of one VM.

use std::collections::BTreeSet;
use std::ops::{Deref, Range};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use spec::{HugePages, MemoryBacking};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::frozen::{FrozenPages, FrozenSet};
use crate::frozen_all::{FrozenMemory, PageStore};
use crate::harvest::Harvest;
use crate::layout::{Layout, PAGE_BYTES, PAGE_SHIFT};
use crate::mapping::Mapping;
use crate::tracker::{RegionBitmap, Tracker, code_line_mask};

/// The view of guest memory that devices and the loader use; its writes are tracked.
pub type DmaMemory = GuestMemoryMmap<RegionBitmap>;

/// Why guest memory could not be made or accessed.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is no multiple of the page size, zero, or beyond what the host can address.
    #[error("memory size of {0} bytes is not a multiple of 4096 between 4096 and 1 TiB")]
    Size(u64),
    /// The host refused the mapping.
    #[error("cannot map {size_bytes} bytes of guest memory{}: {source}", made_of(backing))]
    Map {
        /// Bytes asked for.
        size_bytes: u64,
        /// What it was to be made of.
        backing: MemoryBacking,
        /// The host's error.
        source: std::io::Error,
    },
    /// An access to where there is no RAM.
    #[error("no RAM at guest-physical {guest_address:#x}..+{len:#x}")]
    NoRam {
        /// First address.
        guest_address: u64,
        /// Bytes.
        len: u64,
    },
}

/// What may be the reason that the host refused.
fn made_of(backing: &MemoryBacking) -> String {
    let pool =
        if backing.huge_pages == HugePages::Hugetlbfs { " from its pool of huge pages (vm.nr_hugepages)" } else { "" };
    let node = backing.numa_node.map(|node| format!(" on NUMA node {node}")).unwrap_or_default();
    format!("{pool}{node}")
}

/// Integers (and 128-bit vectors of them) that can be read from and written to guest memory, little-endian as x86 is.
pub trait Scalar: Copy + sealed::Sealed {
    /// Zero-extends.
    fn to_u128(self) -> u128;
    /// Truncates.
    fn from_u128(value: u128) -> Self;
}

pub(crate) mod sealed {
    pub trait Sealed {}
}

macro_rules! scalars {
    ($($type:ty),*) => { $(
        impl sealed::Sealed for $type {}

        impl Scalar for $type {
            #[inline(always)]
            fn to_u128(self) -> u128 {
                self.into()
            }

            #[inline(always)]
            fn from_u128(value: u128) -> Self {
                value as Self
            }
        }
    )* };
}
scalars!(u8, u16, u32, u64, u128);

/// The RAM of one VM. Clones share it.
#[derive(Clone, Debug)]
pub struct GuestRam {
    mapping: Arc<Mapping>,
    tracker: Arc<Tracker>,
    frozen: Arc<FrozenSet>,
    dma: DmaMemory,
    layout: Layout,
}

impl GuestRam {
    /// Largest RAM of a VM, in bytes.
    pub const SIZE_BYTES_MAX: u64 = 1 << 40;

    /// Zeroed RAM of `size_bytes`: a multiple of 4096, at most [`GuestRam::SIZE_BYTES_MAX`]. No page is dirty.
    pub fn new(size_bytes: u64) -> Result<Self, MemoryError> {
        Self::with_backing(size_bytes, &MemoryBacking::default())
    }

    /// As [`GuestRam::new`], made of what `backing` says.
    pub fn with_backing(size_bytes: u64, backing: &MemoryBacking) -> Result<Self, MemoryError> {
        if size_bytes == 0 || !size_bytes.is_multiple_of(PAGE_BYTES) || size_bytes > Self::SIZE_BYTES_MAX {
            return Err(MemoryError::Size(size_bytes));
        }
        let map_error = |source| MemoryError::Map { size_bytes, backing: *backing, source };
        let mapping = Arc::new(Mapping::new(size_bytes as usize, backing).map_err(map_error)?);
        let tracker = Arc::new(Tracker::new(size_bytes >> PAGE_SHIFT));
        let frozen = Arc::new(FrozenSet::new(mapping.clone(), size_bytes >> PAGE_SHIFT));
        let layout = Layout::new(size_bytes);
        let dma = dma_view(&mapping, &tracker, &frozen, &layout).map_err(map_error)?;
        Ok(Self { mapping, tracker, frozen, dma, layout })
    }

    /// Where RAM lies in the guest-physical address space.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Bytes of RAM.
    pub fn size_bytes(&self) -> u64 {
        self.layout.size_bytes()
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.tracker.pages()
    }

    /// The tracked view for devices and the loader, by guest-physical address.
    pub fn dma(&self) -> &DmaMemory {
        &self.dma
    }

    /// The memfd, for a process that maps the same RAM.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.mapping.fd()
    }

    /// The next pages at or after page `from` that the host has allocated. All others are zero, and reading them would allocate them, so a
    /// walk through all of memory goes from one such range to the next. `None` after the last.
    pub fn allocated_pages(&self, from: u64) -> Option<Range<u64>> {
        let start = from.checked_mul(PAGE_BYTES).filter(|&start| start < self.size_bytes())?;
        let bytes = self.mapping.allocated(start)?;
        Some(bytes.start >> PAGE_SHIFT..bytes.end.div_ceil(PAGE_BYTES))
    }

    /// Address of RAM offset 0 in this process, for the kernel's memory slots.
    pub fn host_address(&self) -> u64 {
        self.mapping.base() as u64
    }

    /// Reads a scalar at an offset in RAM, or `None` out of bounds. Any alignment.
    #[inline(always)]
    pub fn load<T: Scalar>(&self, offset: u64) -> Option<T> {
        self.mapping.load(offset)
    }

    /// Writes a scalar at an offset in RAM without tracking: for a vCPU that has marked the page before
    /// ([`GuestRam::mark_dirty_page`]). False out of bounds.
    #[inline(always)]
    pub fn store_premarked<T: Scalar>(&self, offset: u64, value: T) -> bool {
        self.mapping.store(offset, value)
    }

    /// Copies `len` bytes within RAM, as if through a buffer, without tracking: for a vCPU that has marked the pages it writes
    /// before. False out of bounds.
    pub fn copy_premarked(&self, from: u64, to: u64, len: u64) -> bool {
        usize::try_from(len).is_ok_and(|len| self.mapping.copy(from, to, len))
    }

    /// Writes a scalar `count` times in a row without tracking, as [`GuestRam::store_premarked`] does once.
    pub fn fill_premarked<T: Scalar>(&self, offset: u64, value: T, count: u64) -> bool {
        usize::try_from(count).is_ok_and(|count| self.mapping.fill(offset, value, count))
    }

    /// Copies bytes at an offset in RAM into `buf`. False out of bounds.
    pub fn read_offset(&self, offset: u64, buf: &mut [u8]) -> bool {
        self.mapping.read(offset, buf)
    }

    /// Writes bytes at an offset in RAM and tracks them. False out of bounds.
    pub fn write_offset(&self, offset: u64, bytes: &[u8]) -> bool {
        self.frozen.before_write_range(offset, bytes.len() as u64);
        let written = self.mapping.write(offset, bytes);
        if written {
            self.tracker.mark_write(offset, bytes.len() as u64);
        }
        written
    }

    /// XORs bytes into those at an offset in RAM without tracking: for replica apply, which marks the page once
    /// ([`GuestRam::mark_written`]). False out of bounds.
    pub(crate) fn xor_unmarked(&self, offset: u64, bytes: &[u8]) -> bool {
        self.frozen.before_write_range(offset, bytes.len() as u64);
        self.mapping.xor(offset, bytes)
    }

    /// Tracks a write by anything but a vCPU that was done without.
    pub(crate) fn mark_written(&self, offset: u64, len: u64) {
        self.tracker.mark_write(offset, len);
    }

    /// Copies bytes at a guest-physical address into `buf`; the range must lie in one slot.
    pub fn read_bytes(&self, guest_address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len() as u64;
        let offset = self.range(guest_address, len)?;
        if self.read_offset(offset, buf) { Ok(()) } else { Err(MemoryError::NoRam { guest_address, len }) }
    }

    /// Writes bytes at a guest-physical address and tracks them; the range must lie in one slot.
    pub fn write_bytes(&self, guest_address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let len = bytes.len() as u64;
        let offset = self.range(guest_address, len)?;
        if self.write_offset(offset, bytes) { Ok(()) } else { Err(MemoryError::NoRam { guest_address, len }) }
    }

    fn range(&self, guest_address: u64, len: u64) -> Result<u64, MemoryError> {
        self.layout.offset_of_range(guest_address, len).ok_or(MemoryError::NoRam { guest_address, len })
    }

    /// Marks a page (offset / 4096) that a vCPU is about to write.
    #[inline]
    pub fn mark_dirty_page(&self, page: u64) {
        self.frozen.before_write(page);
        self.tracker.mark_page(page);
    }

    /// Whether a page was written since the last acknowledged harvest.
    pub fn is_dirty(&self, page: u64) -> bool {
        self.tracker.is_dirty(page)
    }

    /// Marks a page that a kernel says a vCPU has written, as [`GuestRam::merge_dirty_words`] does with many.
    pub fn mark_logged_page(&self, page: u64) {
        self.tracker.mark_page(page);
    }

    /// Marks all pages: for whoever begins to keep track of writes and does not know of those before.
    pub fn mark_all_dirty(&self) {
        self.tracker.mark_all();
    }

    /// How many pages are dirty, as far as this process knows: all but those that are only in a kernel's dirty log. Cheap
    /// enough to ask again and again while vCPUs run.
    pub fn dirty_pages_estimate(&self) -> u64 {
        self.tracker.dirty_pages()
    }

    /// Merges a kernel's dirty log (one bit a page) for the pages from `first_page` on.
    pub fn merge_dirty_words(&self, first_page: u64, words: &[u64]) {
        self.tracker.merge_words(first_page, words);
    }

    /// Takes the dirty pages. Soft vCPUs must drop their writable TLB entries (and KVM's log must have been merged)
    /// before the next instruction runs.
    pub fn harvest(&self) -> Harvest {
        Harvest::new(self.tracker.clone())
    }

    /// Freezes pages of a VM that stands still and whose vCPUs are soft: they are copied one by one while the VM goes on, each before the first
    /// write to it. Soft vCPUs must have dropped their writable TLB entries, as for a harvest. `None` while others are frozen.
    pub fn freeze(&self, pages: impl Iterator<Item = u64>) -> Option<FrozenPages> {
        FrozenSet::freeze(&self.frozen, pages)
    }

    /// Freezes all of memory of a VM that stands still and whose vCPUs are soft, beside [`GuestRam::freeze`]: a page is copied when its turn comes, or to
    /// `store` before the first write to it. It takes no longer the more pages hold something. Soft vCPUs must have dropped their writable TLB entries,
    /// and devices announce what they write ([`announce_write`]). `None` while it is frozen.
    pub fn freeze_all(&self, store: Box<dyn PageStore>) -> Option<FrozenMemory> {
        FrozenSet::freeze_all(&self.frozen, store)
    }

    /// The 64-byte lines of a page from which code was decoded: bit n for the bytes from n * 64.
    #[inline]
    pub fn code_lines(&self, page: u64) -> u64 {
        self.tracker.code_lines(page)
    }

    /// The code lines that bytes `from..=to` (offsets within one page, below 4096) touch.
    #[inline]
    pub fn code_line_mask(from: u64, to: u64) -> u64 {
        code_line_mask(from & (PAGE_BYTES - 1), to & (PAGE_BYTES - 1))
    }

    /// Notes that code was decoded from these lines of a page.
    pub fn add_code_lines(&self, page: u64, lines: u64) {
        self.tracker.add_code_lines(page, lines);
    }

    /// Forgets a page's code lines, when its decoded blocks are gone.
    pub fn clear_code_lines(&self, page: u64) {
        self.tracker.clear_code_lines(page);
    }

    /// Whether somebody other than a soft vCPU wrote over decoded code since [`GuestRam::take_code_writes`].
    #[inline]
    pub fn has_code_writes(&self) -> bool {
        self.tracker.has_code_writes()
    }

    /// The pages for which [`GuestRam::has_code_writes`] spoke.
    pub fn take_code_writes(&self) -> BTreeSet<u64> {
        self.tracker.take_code_writes()
    }
}

/// To be called before bytes at a guest-physical address are written through a view for devices.
#[inline]
pub fn announce_write(memory: &DmaMemory, address: GuestAddress, len: u64) {
    if let Some(region) = memory.find_region(address) {
        let offset = address.0.saturating_sub(region.start_addr().0);
        region.deref().bitmap().before_write(offset, len.min(region.len().saturating_sub(offset)));
    }
}

#[allow(unsafe_code)]
fn dma_view(
    mapping: &Arc<Mapping>,
    tracker: &Arc<Tracker>,
    frozen: &Arc<FrozenSet>,
    layout: &Layout,
) -> std::io::Result<DmaMemory> {
    let regions = layout
        .slots()
        .into_iter()
        .map(|slot| {
            let bitmap = RegionBitmap::new(tracker.clone(), frozen.clone(), mapping.clone(), slot.offset);
            let builder = MmapRegionBuilder::new_with_bitmap(slot.len_bytes as usize, bitmap)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE);
            // SAFETY: the slot lies within the mapping (its length is the layout's size), and the bitmap keeps the
            // mapping alive for as long as the region. A region over a raw pointer does not unmap on drop.
            let builder = unsafe { builder.with_raw_mmap_pointer(mapping.base().add(slot.offset as usize)) };
            let region = builder.build().map_err(std::io::Error::other)?;
            GuestRegionMmap::new(region, GuestAddress(slot.guest_address))
                .ok_or_else(|| std::io::Error::other("RAM slot wraps around the address space"))
        })
        .collect::<std::io::Result<Vec<_>>>()?;
    GuestMemoryMmap::from_regions(regions).map_err(std::io::Error::other)
}
