//! [`Crossings`]: single instructions that run over the end of a page.

use memory::{GuestRam, PAGE_BYTES, PAGE_SHIFT};

use crate::op::Op;
use crate::unit::Mode;

/// Entries, a power of two.
const ENTRIES: usize = 256;

/// An instruction across two pages.
#[derive(Clone, Copy)]
struct Crossing {
    /// Offset in RAM of its first byte.
    first: u64,
    /// Offset in RAM of the page that holds its last.
    second: u64,
    mode: Mode,
    op: Op,
}

impl Crossing {
    fn touches(&self, page: u64) -> bool {
        self.first >> PAGE_SHIFT == page || self.second >> PAGE_SHIFT == page
    }
}

/// Decoded instructions that run over the end of a page.
///
/// They are no blocks, because which page follows is a matter of the address space: it is looked up every time.
pub(super) struct Crossings {
    entries: Vec<Option<Crossing>>,
}

impl Crossings {
    pub(super) fn new() -> Self {
        Self { entries: vec![None; ENTRIES] }
    }

    fn place(first: u64) -> usize {
        (first ^ first >> PAGE_SHIFT) as usize % ENTRIES
    }

    pub(super) fn find(&self, first: u64, second: u64, mode: Mode) -> Option<Op> {
        let crossing = self.entries.get(Self::place(first))?.as_ref()?;
        (crossing.first == first && crossing.second == second && crossing.mode == mode).then_some(crossing.op)
    }

    /// Keeps an instruction, and notes its bytes as code. Returns the pages (offsets in RAM) that had no code before.
    pub(super) fn insert(&mut self, ram: &GuestRam, first: u64, second: u64, mode: Mode, op: Op) -> Vec<u64> {
        if let Some(entry) = self.entries.get_mut(Self::place(first)) {
            *entry = Some(Crossing { first, second, mode, op });
        }
        let on_first = PAGE_BYTES - first % PAGE_BYTES;
        let on_second = u64::from(op.len).saturating_sub(on_first).max(1);
        let parts = [(first, PAGE_BYTES - 1), (second, second % PAGE_BYTES + on_second - 1)];
        let mut fresh = Vec::new();
        for (from, to) in parts {
            let page = from >> PAGE_SHIFT;
            if ram.code_lines(page) == 0 {
                fresh.push(page << PAGE_SHIFT);
            }
            ram.add_code_lines(page, GuestRam::code_line_mask(from % PAGE_BYTES, to));
        }
        fresh
    }

    /// Forgets what lies on a page.
    pub(super) fn forget_page(&mut self, page: u64) {
        for entry in &mut self.entries {
            if entry.is_some_and(|crossing| crossing.touches(page)) {
                *entry = None;
            }
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self, ram: &GuestRam) {
        for crossing in self.entries.iter_mut().filter_map(Option::take) {
            ram.clear_code_lines(crossing.first >> PAGE_SHIFT);
            ram.clear_code_lines(crossing.second >> PAGE_SHIFT);
        }
    }
}
