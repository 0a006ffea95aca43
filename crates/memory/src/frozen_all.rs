//! All of a paused VM's memory, kept as it was for a reader while the VM goes on: a snapshot of it. As [`crate::frozen`] does with some pages, but what is
//! written to before it was read goes to a store, as there may be no room in memory for it.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::frozen::{ALL, Content, FrozenSet};
use crate::layout::PAGE_BYTES;
use crate::mapping::Mapping;

/// Keeps pages that were written to before a snapshot had read them.
pub trait PageStore: Send {
    /// Keeps the content of a page, by its number (offset in RAM / 4096); called once for each.
    ///
    /// # Errors
    /// The host's: the snapshot fails then, and not the guest.
    fn put(&self, page: u64, content: &Content) -> io::Result<()>;

    /// Takes it.
    ///
    /// # Errors
    /// The host's.
    fn get(&self, page: u64, content: &mut Content) -> io::Result<()>;
}

/// The one reader of all of a RAM, if there is one.
pub(crate) struct FrozenAll {
    mapping: Arc<Mapping>,
    pages: u64,
    /// What writers look at. [`ALL`] is changed under the lock.
    any: Arc<AtomicU8>,
    /// Pages that were neither read nor kept. A bit is cleared under the lock, after its page was copied.
    pending: Vec<AtomicU64>,
    /// Pages that are in the store. Only under the lock.
    stored: Vec<AtomicU64>,
    state: Mutex<Option<State>>,
}

struct State {
    store: Box<dyn PageStore>,
    failure: Option<io::Error>,
    /// The next page, and where the stretch of pages ends that the host has allocated.
    at: Range<u64>,
}

impl std::fmt::Debug for FrozenAll {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrozenAll").field("pages", &self.pages).finish_non_exhaustive()
    }
}

fn place(page: u64) -> (usize, u64) {
    ((page / 64) as usize, 1 << (page % 64))
}

fn has(bits: &[AtomicU64], page: u64, order: Ordering) -> bool {
    let (word, bit) = place(page);
    bits.get(word).is_some_and(|word| word.load(order) & bit != 0)
}

impl FrozenAll {
    pub(crate) fn new(mapping: Arc<Mapping>, pages: u64, any: Arc<AtomicU8>) -> Self {
        let bits = || (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { mapping, pages, any, pending: bits(), stored: bits(), state: Mutex::new(None) }
    }

    fn state(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any of these pages was neither read nor kept.
    pub(crate) fn has_pending(&self, mut pages: Range<u64>) -> bool {
        pages.any(|page| has(&self.pending, page, Ordering::Acquire))
    }

    /// Keeps a page that is about to be written to.
    pub(crate) fn keep(&self, page: u64) {
        if !has(&self.pending, page, Ordering::Acquire) {
            return;
        }
        let mut guard = self.state();
        let Some(state) = &mut *guard else { return };
        let (word, bit) = place(page);
        if state.failure.is_some() || !has(&self.pending, page, Ordering::Relaxed) {
            return;
        }
        let mut content = [0; PAGE_BYTES as usize];
        self.mapping.read(page * PAGE_BYTES, &mut content);
        // The reader leaves out what is zero.
        if content != [0; PAGE_BYTES as usize] {
            if let Err(error) = state.store.put(page, &content) {
                return self.end(state, error);
            }
            if let Some(word) = self.stored.get(word) {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
        if let Some(word) = self.pending.get(word) {
            word.fetch_and(!bit, Ordering::Release);
        }
    }

    /// Nothing is kept any more, as it would be of no use.
    fn end(&self, state: &mut State, error: io::Error) {
        state.failure.get_or_insert(error);
        self.any.fetch_and(!ALL, Ordering::Release);
    }

    /// Freezes everything. False while it is frozen.
    pub(crate) fn freeze(&self, store: Box<dyn PageStore>) -> bool {
        let mut state = self.state();
        if state.is_some() {
            return false;
        }
        self.pending.iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
        self.stored.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        *state = Some(State { store, failure: None, at: 0..0 });
        self.any.fetch_or(ALL, Ordering::Release);
        true
    }

    pub(crate) fn fail(&self, why: &'static str) {
        if let Some(state) = &mut *self.state() {
            self.end(state, io::Error::other(why));
        }
    }

    fn thaw(&self) {
        let mut state = self.state();
        self.any.fetch_and(!ALL, Ordering::Release);
        self.pending.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        *state = None;
    }

    fn copy_next(&self, content: &mut Content) -> io::Result<Option<u64>> {
        let mut guard = self.state();
        let Some(state) = &mut *guard else { return Ok(None) };
        loop {
            if let Some(error) = &state.failure {
                return Err(io::Error::new(error.kind(), error.to_string()));
            }
            if state.at.is_empty() {
                // Whatever was written to since is allocated by now, and the rest was zero then and is.
                let bytes = self.mapping.allocated(state.at.end * PAGE_BYTES);
                let Some(bytes) = bytes.filter(|_| state.at.end < self.pages) else { return Ok(None) };
                state.at = bytes.start / PAGE_BYTES..bytes.end.div_ceil(PAGE_BYTES).min(self.pages);
            }
            let Some(page) = state.at.next() else { return Ok(None) };
            let (word, bit) = place(page);
            if has(&self.pending, page, Ordering::Relaxed) {
                self.mapping.read(page * PAGE_BYTES, content);
                if let Some(word) = self.pending.get(word) {
                    word.fetch_and(!bit, Ordering::Release);
                }
                return Ok(Some(page));
            }
            if has(&self.stored, page, Ordering::Relaxed) {
                state.store.get(page, content)?;
                return Ok(Some(page));
            }
        }
    }
}

/// All of memory as it was when it was frozen, to be read once, in order. Dropping it thaws the rest.
#[derive(Debug)]
pub struct FrozenMemory {
    pub(crate) set: Arc<FrozenSet>,
}

impl FrozenMemory {
    /// Copies the next page; its number (offset in RAM / 4096), or `None` after the last. Pages that are left out were zero.
    ///
    /// # Errors
    /// The host's, of the store. Nothing more can be read then.
    pub fn copy_next(&mut self, content: &mut Content) -> io::Result<Option<u64>> {
        self.set.all().copy_next(content)
    }
}

impl Drop for FrozenMemory {
    fn drop(&mut self) {
        self.set.all().thaw();
    }
}
