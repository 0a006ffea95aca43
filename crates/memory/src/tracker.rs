//! Which pages were written, and which hold decoded code.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};

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
    /// Bit n of word m is set if word m * 64 + n of `dirty` may be other than 0: taking costs what is dirty, not what there is.
    marked: Vec<AtomicU64>,
    /// Bits set in `dirty`.
    dirty_pages: AtomicU64,
    /// A word a page, made when the first code is decoded here: an engine that decodes nothing pays nothing.
    code_lines: OnceLock<Box<[AtomicU64]>>,
    code_written: AtomicBool,
    code_written_pages: Mutex<BTreeSet<u64>>,
    pages: u64,
}

impl Tracker {
    pub(crate) fn new(pages: u64) -> Self {
        let zeros = |words: u64| (0..words).map(|_| AtomicU64::new(0)).collect();
        let words = pages.div_ceil(64);
        Self {
            dirty: zeros(words),
            marked: zeros(words.div_ceil(64)),
            dirty_pages: AtomicU64::new(0),
            code_lines: OnceLock::new(),
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
        let index = (page / 64) as usize;
        if let Some(word) = self.dirty.get(index) {
            let bit = 1 << (page % 64);
            // A locked instruction costs more than a load, and a busy page is marked over and over.
            if word.load(Ordering::Relaxed) & bit == 0 {
                self.set(index, bit);
            }
        }
    }

    /// Sets bits in a word of `dirty` and counts those that were clear.
    ///
    /// The word is written before `marked` is looked at, and [`Tracker::take`] clears `marked` before it looks at the word, all in one
    /// order that every thread sees: so a bit that is set while others are taken is either taken as well or marked anew.
    #[inline]
    fn set(&self, index: usize, bits: u64) {
        let (Some(word), Some(marked)) = (self.dirty.get(index), self.marked.get(index / 64)) else { return };
        let fresh = bits & !word.fetch_or(bits, Ordering::SeqCst);
        self.dirty_pages.fetch_add(fresh.count_ones().into(), Ordering::Relaxed);
        let mark = 1 << (index % 64);
        if marked.load(Ordering::SeqCst) & mark == 0 {
            marked.fetch_or(mark, Ordering::SeqCst);
        }
    }

    /// Marks all pages.
    pub(crate) fn mark_all(&self) {
        for index in 0..self.dirty.len() {
            let pages = (self.pages - index as u64 * 64).min(64);
            self.set(index, u64::MAX >> (64 - pages));
        }
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
        // The write comes before the look at its page's bit: dirty pages are taken while devices write, and one that is seen set here and
        // taken right then must be copied with this write.
        fence(Ordering::SeqCst);
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
        let mut pages = 0;
        let words = self.take_marked().filter_map(|index| {
            let bits = self.dirty.get(index)?.swap(0, Ordering::SeqCst);
            pages += u64::from(bits.count_ones());
            (bits != 0).then_some(DirtyWord { index, bits })
        });
        let taken = words.collect();
        self.dirty_pages.fetch_sub(pages, Ordering::Relaxed);
        taken
    }

    /// Takes the marks of words that may be other than 0: their indices, ascending.
    fn take_marked(&self) -> impl Iterator<Item = usize> + '_ {
        // Most groups are empty, and an exchange costs twenty times a load.
        let groups = self.marked.iter().enumerate().filter(|(_, marked)| marked.load(Ordering::Relaxed) != 0);
        groups.flat_map(|(group, marked)| {
            let marks = marked.swap(0, Ordering::SeqCst);
            std::iter::successors((marks != 0).then_some(marks), |&rest| {
                let rest = rest & (rest - 1);
                (rest != 0).then_some(rest)
            })
            .map(move |rest| group * 64 + rest.trailing_zeros() as usize)
        })
    }

    /// Gives bits back that [`Tracker::take`] took.
    pub(crate) fn give_back(&self, words: &[DirtyWord]) {
        for &DirtyWord { index, bits } in words {
            self.set(index, bits);
        }
    }

    /// The code lines of a page: bit n stands for the 64 bytes from offset n * 64.
    #[inline]
    pub(crate) fn code_lines(&self, page: u64) -> u64 {
        self.code_lines_of(page).map_or(0, |lines| lines.load(Ordering::Relaxed))
    }

    #[inline]
    fn code_lines_of(&self, page: u64) -> Option<&AtomicU64> {
        self.code_lines.get()?.get(page as usize)
    }

    pub(crate) fn add_code_lines(&self, page: u64, lines: u64) {
        self.code_lines.get_or_init(|| (0..self.pages).map(|_| AtomicU64::new(0)).collect());
        if let Some(word) = self.code_lines_of(page) {
            word.fetch_or(lines, Ordering::Relaxed);
        }
    }

    pub(crate) fn clear_code_lines(&self, page: u64) {
        if let Some(word) = self.code_lines_of(page) {
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
/// A view says that it was written to only afterwards. So whoever gets one counts as a writer of the pages that are frozen. Where all of memory is, whoever is
/// going to write says so before ([`crate::announce_write`]); what was written without spoils the snapshot, and is noticed.
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

    /// To be called before bytes of the slot are written to.
    #[inline]
    pub(crate) fn before_write(&self, offset: u64, len: u64) {
        self.frozen.before_write_range(self.slot_offset.saturating_add(offset), len);
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
        RegionBitmapSlice {
            tracker: &self.tracker,
            frozen: &self.frozen,
            base: self.slot_offset.saturating_add(offset as u64),
        }
    }
}

/// Part of a [`RegionBitmap`], as the views of `vm-memory` borrow it.
#[derive(Clone, Copy, Debug)]
pub struct RegionBitmapSlice<'a> {
    tracker: &'a Tracker,
    frozen: &'a FrozenSet,
    base: u64,
}

impl<'a> WithBitmapSlice<'a> for RegionBitmapSlice<'_> {
    type S = Self;
}

impl BitmapSlice for RegionBitmapSlice<'_> {}

impl Bitmap for RegionBitmapSlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let (offset, len) = (self.base.saturating_add(offset as u64), len as u64);
        self.frozen.after_write_range(offset, len);
        self.tracker.mark_write(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.tracker.is_dirty(self.base.saturating_add(offset as u64) >> PAGE_SHIFT)
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { base: self.base.saturating_add(offset as u64), ..*self }
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

    /// What a harvest costs must not grow with the size of a guest.
    #[test]
    fn taking_from_64_gib_looks_only_at_what_is_dirty() {
        let tracker = Tracker::new((64 << 30) >> PAGE_SHIFT);
        assert!(tracker.code_lines.get().is_none(), "no code was decoded, and 8 bytes a page are kept for it");
        let pages = [0, 63, 64, 4_096, 5_000_000, (64 << 18) - 1];
        pages.iter().for_each(|&page| tracker.mark_page(page));
        assert!(tracker.marked.len() <= tracker.dirty.len().div_ceil(64));
        assert_eq!(tracker.take_marked().count(), 5, "words looked at");
    }

    #[test]
    fn all_pages_are_marked_and_none_beyond_the_end() {
        let tracker = Tracker::new(130);
        tracker.mark_all();
        assert_eq!(tracker.dirty_pages(), 130);
        let word = |index, bits| DirtyWord { index, bits };
        assert_eq!(tracker.take(), [word(0, u64::MAX), word(1, u64::MAX), word(2, 0b11)]);
    }

    /// Pages are marked by one thread and taken by another: each mark is taken sooner or later.
    #[test]
    fn no_mark_is_lost_while_others_are_taken() {
        const PAGES: u64 = 64 * 64 * 3;
        const ROUNDS: u64 = 20;
        let tracker = Tracker::new(PAGES);
        let marking = AtomicBool::new(true);
        let taken = std::thread::scope(|scope| {
            let taker = scope.spawn(|| {
                let mut taken = 0;
                loop {
                    let is_last = !marking.load(Ordering::Acquire);
                    taken += tracker.take().iter().map(|word| u64::from(word.bits.count_ones())).sum::<u64>();
                    if is_last {
                        break taken;
                    }
                }
            });
            for _ in 0..ROUNDS {
                for page in (0..PAGES).step_by(67) {
                    tracker.mark_page(page);
                    while tracker.is_dirty(page) {
                        std::thread::yield_now();
                    }
                }
            }
            marking.store(false, Ordering::Release);
            taker.join().expect("it counts")
        });
        assert_eq!(taken, ROUNDS * PAGES.div_ceil(67));
        assert_eq!(tracker.dirty_pages(), 0);
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
