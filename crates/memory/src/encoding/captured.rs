//! [`CapturedPages`]: copies of pages, taken while a VM is paused or shortly before.

use std::collections::HashSet;

use super::{PAGE, PageContent};
use crate::layout::PAGE_BYTES;
use crate::ram::GuestRam;

/// Pages of a VM, copied so that it can go on. Made once and reused: memory that is touched for the first time costs
/// microseconds a page, which [`CapturedPages::reserve`] spends outside of the pause.
///
/// What a VM wrote early can be copied while it runs ([`CapturedPages::append`]): a page that is written again meanwhile is copied again, and
/// its last copy counts.
#[derive(Debug, Default)]
pub struct CapturedPages {
    numbers: Vec<u64>,
    /// Some may be copies of pages that were copied again later.
    is_appended: bool,
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
        self.clear();
        self.append(ram, pages);
    }

    /// Adds copies of these pages. Numbers beyond RAM are left out.
    pub fn append(&mut self, ram: &GuestRam, pages: impl Iterator<Item = u64>) {
        self.is_appended = !self.numbers.is_empty();
        for page in pages.filter(|&page| page < ram.pages()) {
            let index = self.numbers.len();
            if index == self.contents.len() {
                self.contents.push([0; PAGE]);
            }
            if let Some(content) = self.contents.get_mut(index) {
                ram.read_offset(page * PAGE_BYTES, content);
                self.numbers.push(page);
            }
        }
    }

    /// Forgets the pages and keeps the room.
    pub fn clear(&mut self) {
        self.numbers.clear();
        self.is_appended = false;
    }

    /// How many copies, those that do not count any more included.
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

    /// Page numbers (offset in RAM / 4096) and contents, in the order of the capture; of a page that was copied more than once, the last.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &PageContent)> + '_ {
        let replaced = self.replaced();
        let copies = self.numbers.iter().copied().zip(&self.contents).enumerate();
        copies.filter(move |(index, _)| !replaced.contains(index)).map(|(_, copy)| copy)
    }

    /// Indices of copies of which there is a later one.
    fn replaced(&self) -> HashSet<usize> {
        if !self.is_appended {
            return HashSet::new();
        }
        let mut seen = HashSet::with_capacity(self.numbers.len());
        let newest_first = self.numbers.iter().enumerate().rev();
        newest_first.filter(|&(_, page)| !seen.insert(page)).map(|(index, _)| index).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_copy_of_a_page_counts() {
        let ram = GuestRam::new(8 * PAGE_BYTES).expect("a small RAM");
        let write = |page: u64, value: u8| assert!(ram.write_offset(page * PAGE_BYTES, &[value]));
        let mut copies = CapturedPages::new();
        (0..4).for_each(|page| write(page, 1));
        copies.append(&ram, [0, 1, 2, 3].into_iter());
        [1, 3, 5].into_iter().for_each(|page| write(page, 2));
        copies.append(&ram, [1, 3, 5, 8].into_iter());
        write(3, 3);
        copies.append(&ram, [3].into_iter());
        let latest: Vec<_> = copies.iter().map(|(page, content)| (page, content[0])).collect();
        assert_eq!(latest, [(0, 1), (2, 1), (1, 2), (5, 2), (3, 3)]);
        copies.capture(&ram, [3].into_iter());
        assert_eq!(copies.iter().map(|(page, content)| (page, content[0])).collect::<Vec<_>>(), [(3, 3)]);
    }
}
