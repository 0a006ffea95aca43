//! Pages of a paused VM that stay as they are for a reader while the VM goes on: copied when their turn comes, or right before the first
//! write to them (copy on write), so that the pause does not take longer the more pages there are.
//!
//! Every writer of [`crate::GuestRam`] in this process asks [`FrozenSet::before_write`] or [`FrozenSet::before_any_write`] first. vCPUs
//! that the kernel runs do not.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::frozen_all::{FrozenAll, FrozenMemory, PageStore};
use crate::layout::{PAGE_BYTES, PAGE_SHIFT};
use crate::mapping::Mapping;

/// Room for copies that is kept between two freezes, in pages.
const SPARE_PAGES_MAX: usize = 4096;

pub(crate) type Content = [u8; PAGE_BYTES as usize];

/// Bits of [`FrozenSet::any`]: some pages are frozen; all of memory is.
const SOME: u8 = 1;
pub(crate) const ALL: u8 = 2;

/// The frozen pages of one RAM.
#[derive(Debug)]
pub(crate) struct FrozenSet {
    mapping: Arc<Mapping>,
    /// [`SOME`] if `pending` has any bit, and [`ALL`]: all that a writer looks at while nothing is frozen.
    any: Arc<AtomicU8>,
    all: FrozenAll,
    /// Pages that were not copied yet, by number. A bit is cleared under the lock, after its page was copied.
    pending: Vec<AtomicU64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// There is a [`FrozenPages`].
    is_taken: bool,
    numbers: Vec<u64>,
    /// How many of `numbers` the reader has had.
    read: usize,
    /// How many of `numbers` are pending.
    left: usize,
    /// Where in `contents` the copies of pages are that were written to before the reader had them.
    kept: HashMap<u64, usize>,
    /// The copies, and room for more.
    contents: Vec<Content>,
}

impl FrozenSet {
    pub(crate) fn new(mapping: Arc<Mapping>, pages: u64) -> Self {
        let pending = (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let any = Arc::new(AtomicU8::new(0));
        let all = FrozenAll::new(mapping.clone(), pages, any.clone());
        Self { mapping, any, all, pending, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called before a page is written to.
    #[inline]
    pub(crate) fn before_write(&self, page: u64) {
        let any = self.any.load(Ordering::Acquire);
        if any != 0 {
            self.keep(any, page..page + 1);
        }
    }

    /// To be called before `len` bytes from `offset` on are written to.
    #[inline]
    pub(crate) fn before_write_range(&self, offset: u64, len: u64) {
        let any = self.any.load(Ordering::Acquire);
        if any != 0 && len > 0 {
            self.keep(any, self.pages_of(offset, len));
        }
    }

    /// To be called before anything may be written to. All of memory is not copied for that: whoever writes then says where, before
    /// ([`Self::before_write_range`]).
    #[inline]
    pub(crate) fn before_any_write(&self) {
        if self.any.load(Ordering::Acquire) & SOME != 0 {
            self.keep_all();
        }
    }

    /// To be called after a write before which only [`Self::before_any_write`] was certainly called: finds out whether the other call was forgotten.
    #[inline]
    pub(crate) fn after_write_range(&self, offset: u64, len: u64) {
        if self.any.load(Ordering::Acquire) & ALL != 0 && len > 0 && self.all.has_pending(self.pages_of(offset, len)) {
            self.all.fail("memory was written to that it had not read, and nobody had said so before");
        }
    }

    fn pages_of(&self, offset: u64, len: u64) -> Range<u64> {
        let last = offset.saturating_add(len.saturating_sub(1)) >> PAGE_SHIFT;
        offset >> PAGE_SHIFT..last.min(self.pending.len() as u64 * 64) + 1
    }

    #[cold]
    fn keep(&self, any: u8, pages: Range<u64>) {
        if any & ALL != 0 {
            pages.clone().for_each(|page| self.all.keep(page));
        }
        if any & SOME == 0 {
            return;
        }
        for page in pages {
            // What is not pending was copied already: the bit is cleared after that.
            if self.is_pending(page, Ordering::Acquire) {
                let mut state = self.state();
                if self.is_pending(page, Ordering::Relaxed) {
                    self.keep_one(&mut state, page);
                }
            }
        }
    }

    #[cold]
    fn keep_all(&self) {
        let mut state = self.state();
        let numbers = std::mem::take(&mut state.numbers);
        for &page in numbers.iter().skip(state.read) {
            if self.is_pending(page, Ordering::Relaxed) {
                self.keep_one(&mut state, page);
            }
        }
        state.numbers = numbers;
    }

    fn is_pending(&self, page: u64, order: Ordering) -> bool {
        self.pending.get((page / 64) as usize).is_some_and(|word| word.load(order) >> (page % 64) & 1 == 1)
    }

    fn keep_one(&self, state: &mut State, page: u64) {
        let slot = state.kept.len();
        if slot == state.contents.len() {
            state.contents.push([0; PAGE_BYTES as usize]);
        }
        if let Some(content) = state.contents.get_mut(slot) {
            self.mapping.read(page * PAGE_BYTES, content);
        }
        state.kept.insert(page, slot);
        self.copied(state, page);
    }

    /// A page's copy was made.
    fn copied(&self, state: &mut State, page: u64) {
        if let Some(word) = self.pending.get((page / 64) as usize) {
            word.fetch_and(!(1 << (page % 64)), Ordering::Release);
        }
        state.left = state.left.saturating_sub(1);
        if state.left == 0 {
            self.any.fetch_and(!SOME, Ordering::Release);
        }
    }

    /// Freezes pages of a VM that stands still. `None` while others are frozen.
    pub(crate) fn freeze(set: &Arc<Self>, pages: impl Iterator<Item = u64>) -> Option<FrozenPages> {
        let mut state = set.state();
        if state.is_taken {
            return None;
        }
        state.is_taken = true;
        let is_page = |page: &u64| {
            page.checked_mul(PAGE_BYTES).is_some_and(|offset| set.mapping.contains(offset, PAGE_BYTES as usize))
        };
        state.numbers.clear();
        for page in pages.filter(is_page) {
            if let Some(word) = set.pending.get((page / 64) as usize) {
                word.fetch_or(1 << (page % 64), Ordering::Relaxed);
                state.numbers.push(page);
            }
        }
        (state.read, state.left) = (0, state.numbers.len());
        if state.left > 0 {
            set.any.fetch_or(SOME, Ordering::Release);
        }
        Some(FrozenPages { set: set.clone() })
    }

    /// Freezes all of memory of a VM that stands still. `None` while it is frozen.
    pub(crate) fn freeze_all(set: &Arc<Self>, store: Box<dyn PageStore>) -> Option<FrozenMemory> {
        set.all.freeze(store).then(|| FrozenMemory { set: set.clone() })
    }

    pub(crate) fn all(&self) -> &FrozenAll {
        &self.all
    }
}

/// Pages as they were when they were frozen, to be read once, in order. Dropping it thaws the rest.
#[derive(Debug)]
pub struct FrozenPages {
    set: Arc<FrozenSet>,
}

impl FrozenPages {
    /// Copies the next page; its number (offset in RAM / 4096), or `None` after the last.
    pub fn copy_next(&mut self, content: &mut Content) -> Option<u64> {
        let mut guard = self.set.state();
        let state = &mut *guard;
        let page = *state.numbers.get(state.read)?;
        state.read += 1;
        if self.set.is_pending(page, Ordering::Relaxed) {
            self.set.mapping.read(page * PAGE_BYTES, content);
            self.set.copied(state, page);
        } else if let Some(kept) = state.kept.get(&page).and_then(|&slot| state.contents.get(slot)) {
            *content = *kept;
        }
        Some(page)
    }
}

impl Drop for FrozenPages {
    fn drop(&mut self) {
        let mut guard = self.set.state();
        let state = &mut *guard;
        for &page in state.numbers.iter().skip(state.read) {
            if let Some(word) = self.set.pending.get((page / 64) as usize) {
                word.fetch_and(!(1 << (page % 64)), Ordering::Relaxed);
            }
        }
        self.set.any.fetch_and(!SOME, Ordering::Release);
        state.kept.clear();
        if state.contents.len() > SPARE_PAGES_MAX {
            state.contents.truncate(SPARE_PAGES_MAX);
            state.contents.shrink_to_fit();
        }
        (state.is_taken, state.left) = (false, 0);
    }
}
