//! Which pages were written, and which hold decoded code.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking::Mutex;
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

use crate::frozen::FrozenSet;
use crate::layout::{PAGE_BYTES, PAGE_SHIFT};
use crate::mapping::Mapping;

/// A mutex that ignores poisoning: the sets it guards are valid after any panic.
mod parking {
    #[derive(Debug, Default)]
    pub(super) struct Mutex<T>(std::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
        }
    }
}

/// log2 of the bytes that one code bit stands for: 64 bits cover a page.
const CODE_LINE_SHIFT: u32 = 6;

/// 64 pages of a dirty set: bit n for page `index * 64 + n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirtyWord {
    pub(crate) index: usize,
    pub(crate) bits: u64,
}

/// Dirty pages and code lines of one RAM mapping, by page number (offset in RAM / 4096).
///
/// A *code line* is 64 bytes from which the soft engine decoded instructions. A store that overlaps one must
/// invalidate the decoded blocks: vCPU stores see it because code pages never get a writable TLB entry; all other
/// writers are caught here, by the same call that marks the page dirty.
#[derive(Debug)]
pub struct Tracker {
    dirty: Vec<AtomicU64>,
    /// Bits set in `dirty`.
    dirty_pages: AtomicU64,
    code_lines: Vec<AtomicU64>,
    code_written: AtomicBool,
    code_written_pages: Mutex<BTreeSet<u64>>,
    pages: u64,
}

impl Tracker {
    pub(crate) fn new(pages: u64) -> Self {
        let words = pages.div_ceil(64) as usize;
        Self {
            dirty: (0..words).map(|_| AtomicU64::new(0)).collect(),
            dirty_pages: AtomicU64::new(0),
            code_lines: (0..pages).map(|_| AtomicU64::new(0)).collect(),
            code_written: AtomicBool::new(false),
            code_written_pages: Mutex::default(),
            pages,
        }
    }

    /// Pages tracked.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Marks one page; out-of-range numbers are ignored.
    #[inline]
    pub(crate) fn mark_page(&self, page: u64) {
        if page >= self.pages {
            return;
        }
        if let Some(word) = self.dirty.get((page / 64) as usize) {
            let bit = 1 << (page % 64);
            // A locked instruction costs more than a load, and a busy page is marked over and over.
            if word.load(Ordering::Relaxed) & bit == 0 {
                self.set(word, bit);
            }
        }
    }

    /// Sets bits in a word of `dirty` and counts those that were clear.
    #[inline]
    fn set(&self, word: &AtomicU64, bits: u64) {
        let fresh = bits & !word.fetch_or(bits, Ordering::AcqRel);
        self.dirty_pages.fetch_add(fresh.count_ones().into(), Ordering::Relaxed);
    }

    /// How many pages are dirty.
    pub(crate) fn dirty_pages(&self) -> u64 {
        self.dirty_pages.load(Ordering::Relaxed)
    }

    /// Marks the pages of a write by anything but a soft vCPU, and notes those whose decoded code it overwrote.
    pub(crate) fn mark_write(&self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let last = offset.saturating_add(len - 1);
        for page in offset >> PAGE_SHIFT..=(last >> PAGE_SHIFT).min(self.pages.saturating_sub(1)) {
            self.mark_page(page);
            let from = offset.max(page << PAGE_SHIFT) & (PAGE_BYTES - 1);
            let to = last.min((page << PAGE_SHIFT) + PAGE_BYTES - 1) & (PAGE_BYTES - 1);
            if self.code_lines(page) & code_line_mask(from, to) != 0 {
                self.code_written_pages.lock().insert(page);
                self.code_written.store(true, Ordering::Release);
            }
        }
    }

    pub(crate) fn is_dirty(&self, page: u64) -> bool {
        self.dirty.get((page / 64) as usize).is_some_and(|word| word.load(Ordering::Relaxed) >> (page % 64) & 1 == 1)
    }

    /// ORs a kernel's dirty log (one bit a page) into the bitmap, from `first_page` on.
    pub(crate) fn merge_words(&self, first_page: u64, words: &[u64]) {
        for (index, &bits) in words.iter().enumerate() {
            let mut bits = bits;
            while bits != 0 {
                self.mark_page(first_page.saturating_add(index as u64 * 64 + u64::from(bits.trailing_zeros())));
                bits &= bits - 1;
            }
        }
    }

    /// Takes all dirty bits, leaving none: the words that are not 0, by ascending index.
    pub(crate) fn take(&self) -> Vec<DirtyWord> {
        let mut taken = Vec::new();
        let mut pages = 0;
        for (index, word) in self.dirty.iter().enumerate() {
            // Most words are 0, and an exchange costs twenty times a load.
            if word.load(Ordering::Relaxed) != 0 {
                let bits = word.swap(0, Ordering::AcqRel);
                pages += u64::from(bits.count_ones());
                taken.push(DirtyWord { index, bits });
            }
        }
        self.dirty_pages.fetch_sub(pages, Ordering::Relaxed);
        taken
    }

    /// Gives bits back that [`Tracker::take`] took.
    pub(crate) fn give_back(&self, words: &[DirtyWord]) {
        for &DirtyWord { index, bits } in words {
            if let Some(word) = self.dirty.get(index) {
                self.set(word, bits);
            }
        }
    }

    /// The code lines of a page: bit n stands for the 64 bytes from offset n * 64.
    #[inline]
    pub(crate) fn code_lines(&self, page: u64) -> u64 {
        self.code_lines.get(page as usize).map_or(0, |lines| lines.load(Ordering::Relaxed))
    }

    pub(crate) fn add_code_lines(&self, page: u64, lines: u64) {
        if let Some(word) = self.code_lines.get(page as usize) {
            word.fetch_or(lines, Ordering::Relaxed);
        }
    }

    pub(crate) fn clear_code_lines(&self, page: u64) {
        if let Some(word) = self.code_lines.get(page as usize) {
            word.store(0, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(crate) fn has_code_writes(&self) -> bool {
        self.code_written.load(Ordering::Acquire)
    }

    pub(crate) fn take_code_writes(&self) -> BTreeSet<u64> {
        let mut pages = self.code_written_pages.lock();
        self.code_written.store(false, Ordering::Release);
        std::mem::take(&mut *pages)
    }
}

/// The code lines that the bytes `from..=to` of one page touch.
#[inline]
pub(crate) fn code_line_mask(from: u64, to: u64) -> u64 {
    let (first, last) = (from >> CODE_LINE_SHIFT, to >> CODE_LINE_SHIFT);
    (u64::MAX >> (63 - (last - first))) << first
}

/// The `vm-memory` bitmap of one RAM slot. It keeps the mapping alive for as long as a view of it exists.
///
/// A view says that it was written to only afterwards. So whoever gets one counts as a writer of what is frozen.
#[derive(Clone, Debug)]
pub struct RegionBitmap {
    tracker: Arc<Tracker>,
    frozen: Arc<FrozenSet>,
    _mapping: Arc<Mapping>,
    slot_offset: u64,
}

impl RegionBitmap {
    pub(crate) fn new(tracker: Arc<Tracker>, frozen: Arc<FrozenSet>, mapping: Arc<Mapping>, slot_offset: u64) -> Self {
        Self { tracker, frozen, _mapping: mapping, slot_offset }
    }
}

impl<'a> WithBitmapSlice<'a> for RegionBitmap {
    type S = RegionBitmapSlice<'a>;
}

impl Bitmap for RegionBitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.slice_at(0).mark_dirty(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.slice_at(0).dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> RegionBitmapSlice<'_> {
        self.frozen.before_any_write();
        RegionBitmapSlice { tracker: &self.tracker, base: self.slot_offset.saturating_add(offset as u64) }
    }
}

/// Part of a [`RegionBitmap`], as the views of `vm-memory` borrow it.
#[derive(Clone, Copy, Debug)]
pub struct RegionBitmapSlice<'a> {
    tracker: &'a Tracker,
    base: u64,
}

impl<'a> WithBitmapSlice<'a> for RegionBitmapSlice<'_> {
    type S = Self;
}

impl BitmapSlice for RegionBitmapSlice<'_> {}

impl Bitmap for RegionBitmapSlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.tracker.mark_write(self.base.saturating_add(offset as u64), len as u64);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.tracker.is_dirty(self.base.saturating_add(offset as u64) >> PAGE_SHIFT)
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { tracker: self.tracker, base: self.base.saturating_add(offset as u64) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_line_masks() {
        assert_eq!(code_line_mask(0, 4095), u64::MAX);
        assert_eq!(code_line_mask(0, 0), 1);
        assert_eq!(code_line_mask(63, 64), 3);
        assert_eq!(code_line_mask(4095, 4095), 1 << 63);
    }

    #[test]
    fn a_write_over_a_code_line_is_noted_and_one_beside_it_is_not() {
        let tracker = Tracker::new(4);
        tracker.add_code_lines(1, code_line_mask(128, 191));
        tracker.mark_write(4096 + 192, 64);
        assert!(!tracker.has_code_writes());
        tracker.mark_write(0, 4096 + 129);
        assert!(tracker.has_code_writes());
        assert_eq!(tracker.take_code_writes().into_iter().collect::<Vec<_>>(), [1]);
        assert!(!tracker.has_code_writes());
    }

    #[test]
    fn marks_beyond_the_end_are_ignored() {
        let tracker = Tracker::new(3);
        tracker.mark_write(2 * 4096, u64::MAX);
        tracker.mark_page(1 << 40);
        tracker.mark_page(3);
        assert_eq!(tracker.take(), [DirtyWord { index: 0, bits: 0b100 }]);
    }

    #[test]
    fn dirty_pages_are_counted_once() {
        let tracker = Tracker::new(1000);
        tracker.mark_write(4095, 4098);
        tracker.mark_page(1);
        tracker.merge_words(64, &[0b11, 1 << 63]);
        assert_eq!(tracker.dirty_pages(), 6);
        let taken = tracker.take();
        assert_eq!(tracker.dirty_pages(), 0);
        tracker.mark_page(64);
        tracker.give_back(&taken);
        assert_eq!(tracker.dirty_pages(), 6);
        assert_eq!(tracker.take(), taken);
    }
}
