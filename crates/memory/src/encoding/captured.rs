//! [`CapturedPages`]: copies of pages, taken while a VM is paused.

use super::{PAGE, PageContent};
use crate::layout::PAGE_BYTES;
use crate::ram::GuestRam;

/// Pages of a paused VM, copied so that it can go on. Made once and reused: memory that is touched for the first time costs
/// microseconds a page, which [`CapturedPages::reserve`] spends outside of the pause.
#[derive(Debug, Default)]
pub struct CapturedPages {
    numbers: Vec<u64>,
    /// At least as long as `numbers`; what is beyond is kept for later.
    contents: Vec<PageContent>,
}

impl CapturedPages {
    /// No page.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for that many pages and touches it.
    pub fn reserve(&mut self, pages: usize) {
        self.numbers.reserve(pages.saturating_sub(self.numbers.len()));
        if self.contents.len() < pages {
            self.contents.resize(pages, [0; PAGE]);
        }
    }

    /// Replaces the content by copies of these pages. Numbers beyond RAM are left out.
    pub fn capture(&mut self, ram: &GuestRam, pages: impl Iterator<Item = u64>) {
        self.numbers.clear();
        self.numbers.extend(pages.filter(|&page| page < ram.pages()));
        self.reserve(self.numbers.len());
        for (&page, content) in self.numbers.iter().zip(&mut self.contents) {
            ram.read_offset(page * PAGE_BYTES, content);
        }
    }

    /// Forgets the pages and keeps the room.
    pub fn clear(&mut self) {
        self.numbers.clear();
    }

    /// How many pages.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Pages that there is room for without touching fresh memory.
    pub fn capacity(&self) -> usize {
        self.contents.len()
    }

    /// Page numbers (offset in RAM / 4096) and contents, in the order of the capture.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &PageContent)> + '_ {
        self.numbers.iter().copied().zip(&self.contents)
    }
}
