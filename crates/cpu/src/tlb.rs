//! The software TLB: one table for data by privilege, one for instruction fetch.

use memory::PAGE_SHIFT;

/// Entries of a data table, a power of two.
const ENTRIES: usize = 1024;
/// Entries of a fetch table, a power of two.
const FETCH_ENTRIES: usize = 512;
/// Generations are below this, so that they fit beside a page's address in a tag.
const GENERATIONS: u16 = 1 << PAGE_SHIFT;
/// Process-context identifiers (CR3 bits 0 to 11).
const CONTEXTS: usize = 4096;
/// Bits of the filter that remembers translations made by large pages.
const FILTER_BITS: usize = 4096;

pub(crate) const TABLE_SUPERVISOR: u8 = 0;
pub(crate) const TABLE_SUPERVISOR_AC: u8 = 1;
pub(crate) const TABLE_USER: u8 = 2;

/// A tag that no lookup matches: generations are never 0, and linear pages have their low 12 bits clear.
const NO_TAG: u64 = 0;

/// One page's translation for loads and stores.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// Tag for loads.
    pub read: u64,
    /// Tag for stores that need no more than the store.
    pub write: u64,
    /// Offset of the page in guest RAM.
    pub ram_offset: u64,
    /// Tag when the guest's tables permit stores and have the D bit set, whatever dirty tracking and decoded code say. It
    /// outlives [`Tlb::forbid_writes`], so that harvests never show in what page walks do.
    pub permitted: u64,
}

impl Entry {
    pub(crate) const EMPTY: Self = Self { read: NO_TAG, write: NO_TAG, ram_offset: 0, permitted: NO_TAG };
}

/// Where translated code finds the fields of an [`Entry`], in bytes.
pub(crate) mod offset_of {
    use super::Entry;

    pub(crate) const READ: i32 = std::mem::offset_of!(Entry, read) as i32;
    pub(crate) const WRITE: i32 = std::mem::offset_of!(Entry, write) as i32;
    pub(crate) const RAM_OFFSET: i32 = std::mem::offset_of!(Entry, ram_offset) as i32;
}

/// What a linear address is shifted right by, and then masked with, to give the place of its entry in a table, in bytes.
pub(crate) const INDEX_SHIFT: u8 = PAGE_SHIFT as u8 - size_of::<Entry>().trailing_zeros() as u8;
/// See [`INDEX_SHIFT`].
pub(crate) const INDEX_MASK: i32 = (ENTRIES as i32 - 1) * size_of::<Entry>() as i32;

/// One page's translation for instruction fetch.
#[derive(Clone, Copy, Debug)]
struct FetchEntry {
    tag: u64,
    ram_offset: u64,
}

impl FetchEntry {
    const EMPTY: Self = Self { tag: NO_TAG, ram_offset: 0 };
}

/// The software TLB of one processor.
///
/// Fetches have tables of their own: a run of code that is cut into pieces (by a budget, say) looks its page up more often than one that
/// is not, and must not evict or refill anything by that.
pub(crate) struct Tlb {
    entries: Box<[[Entry; ENTRIES]; 4]>,
    /// Places (table, index) of entries that permit stores, some more than once: what [`Tlb::forbid_writes`] has to look at. With as many as
    /// there are entries, it looks at all.
    writable: Vec<(u8, u16)>,
    fetch: Box<[[FetchEntry; FETCH_ENTRIES]; 2]>,
    /// The generation that each process context's entries carry, 0 for none yet.
    generations: Box<[u16; CONTEXTS]>,
    next_generation: u16,
    /// One bit for each 2 MiB (hashed) in which an entry came from a large page: invalidating one address there must
    /// invalidate all pieces of that page.
    large: Box<[u64; FILTER_BITS / 64]>,
    /// The same for 1 GiB pages.
    huge: Box<[u64; FILTER_BITS / 64]>,
}

impl Tlb {
    pub(crate) fn new() -> Self {
        Self {
            entries: Box::new([[Entry::EMPTY; ENTRIES]; 4]),
            writable: Vec::new(),
            fetch: Box::new([[FetchEntry::EMPTY; FETCH_ENTRIES]; 2]),
            generations: Box::new([0; CONTEXTS]),
            next_generation: 1,
            large: Box::new([0; FILTER_BITS / 64]),
            huge: Box::new([0; FILTER_BITS / 64]),
        }
    }

    /// The only entry that can hold the page of `linear`.
    #[inline(always)]
    pub(crate) fn entry(&self, table: u8, linear: u64) -> &Entry {
        &self.entries[usize::from(table & 3)][(linear >> PAGE_SHIFT) as usize % ENTRIES]
    }

    /// The address of a data table's first entry, for translated code.
    pub(crate) fn table_address(&self, table: u8) -> u64 {
        std::ptr::from_ref(&self.entries[usize::from(table & 3)]) as u64
    }

    pub(crate) fn entry_mut(&mut self, table: u8, linear: u64) -> &mut Entry {
        &mut self.entries[usize::from(table & 3)][(linear >> PAGE_SHIFT) as usize % ENTRIES]
    }

    /// Offset in RAM of the page that code is fetched from; `tag` is the page's linear address with the generation.
    #[inline(always)]
    pub(crate) fn fetch(&self, user: bool, tag: u64) -> Option<u64> {
        let entry = &self.fetch[usize::from(user)][(tag >> PAGE_SHIFT) as usize % FETCH_ENTRIES];
        (entry.tag == tag).then_some(entry.ram_offset)
    }

    pub(crate) fn fill_fetch(&mut self, user: bool, tag: u64, ram_offset: u64) {
        self.fetch[usize::from(user)][(tag >> PAGE_SHIFT) as usize % FETCH_ENTRIES] = FetchEntry { tag, ram_offset };
    }

    /// Notes that the translation of `linear` came from a page of `1 << shift` bytes.
    pub(crate) fn note_page_size(&mut self, linear: u64, shift: u32) {
        match shift {
            PAGE_SHIFT => {}
            30 => set(&mut self.huge, linear, 30),
            _ => {
                set(&mut self.large, linear, 21);
                // The other half of a 4 MiB page.
                if shift > 21 {
                    set(&mut self.large, linear ^ 1 << 21, 21);
                }
            }
        }
    }

    /// The generation of a process context.
    pub(crate) fn generation(&mut self, context: u16) -> u64 {
        let slot = usize::from(context) % CONTEXTS;
        if self.generations[slot] == 0 {
            if self.next_generation == GENERATIONS {
                self.clear();
            }
            self.generations[slot] = self.next_generation;
            self.next_generation += 1;
        }
        self.generations[slot].into()
    }

    /// Forgets a process context. The caller takes its generation anew.
    pub(crate) fn flush_context(&mut self, context: u16) {
        self.generations[usize::from(context) % CONTEXTS] = 0;
    }

    /// Forgets all process contexts. The caller takes its generation anew.
    pub(crate) fn flush(&mut self) {
        self.generations.fill(0);
        self.large.fill(0);
        self.huge.fill(0);
    }

    /// Forgets the page of one address in all process contexts. True when that takes forgetting more, because a large
    /// page may cover it: the caller then flushes.
    #[must_use]
    pub(crate) fn flush_page(&mut self, linear: u64) -> bool {
        let covered = [(&self.large, 21), (&self.huge, 30)].into_iter().any(|(filter, shift)| {
            let (word, bit) = filter_place(linear, shift);
            filter[word] & bit != 0
        });
        if covered {
            return true;
        }
        for table in 0..4 {
            *self.entry_mut(table, linear) = Entry::EMPTY;
        }
        for table in self.fetch.iter_mut() {
            table[(linear >> PAGE_SHIFT) as usize % FETCH_ENTRIES] = FetchEntry::EMPTY;
        }
        false
    }

    /// Empties every table. The caller takes its generation anew.
    pub(crate) fn clear(&mut self) {
        for table in self.entries.iter_mut() {
            table.fill(Entry::EMPTY);
        }
        for table in self.fetch.iter_mut() {
            table.fill(FetchEntry::EMPTY);
        }
        self.flush();
        self.next_generation = 1;
    }

    /// Lets the fast path store to the page of `linear`, whose entry has this tag.
    pub(crate) fn permit_writes(&mut self, table: u8, linear: u64, tag: u64) {
        self.entry_mut(table, linear).write = tag;
        if self.writable.len() < 4 * ENTRIES {
            self.writable.push((table, (linear >> PAGE_SHIFT) as u16 % ENTRIES as u16));
        }
    }

    /// Makes every store take the slow path once more, which marks its page dirty.
    pub(crate) fn forbid_writes(&mut self) {
        if self.writable.len() < 4 * ENTRIES {
            for (table, index) in self.writable.drain(..) {
                self.entries[usize::from(table & 3)][usize::from(index) % ENTRIES].write = NO_TAG;
            }
            return;
        }
        self.writable.clear();
        for entry in self.entries.iter_mut().flatten() {
            entry.write = NO_TAG;
        }
    }

    /// Makes stores to a page of RAM take the slow path, wherever it is mapped: code was decoded from it.
    pub(crate) fn forbid_writes_to(&mut self, ram_offset: u64) {
        for entry in self.entries.iter_mut().flatten() {
            if entry.ram_offset == ram_offset {
                entry.write = NO_TAG;
            }
        }
    }
}

/// Marks a region of `1 << shift` bytes in a filter.
fn set(filter: &mut [u64; FILTER_BITS / 64], linear: u64, shift: u32) {
    let (word, bit) = filter_place(linear, shift);
    filter[word] |= bit;
}

/// Word and bit of a region of `1 << shift` bytes in a filter.
fn filter_place(linear: u64, shift: u32) -> (usize, u64) {
    let hash = ((linear >> shift).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize % FILTER_BITS;
    (hash / 64, 1 << (hash % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINEAR: u64 = 0x7f00_1234_5000;

    fn fill(tlb: &mut Tlb, context: u16) -> u64 {
        let tag = LINEAR | tlb.generation(context);
        tlb.entry_mut(TABLE_USER, LINEAR).read = tag;
        tlb.fill_fetch(true, tag, 0x1000);
        tag
    }

    #[test]
    fn flushing_one_context_keeps_the_other() {
        let mut tlb = Tlb::new();
        let kept = tlb.generation(1);
        let tag = fill(&mut tlb, 2);
        tlb.flush_context(2);
        assert_ne!(LINEAR | tlb.generation(2), tag);
        assert_eq!(tlb.generation(1), kept);
        tlb.flush();
        assert_ne!(tlb.generation(1), kept);
    }

    #[test]
    fn generations_run_out_without_reviving_old_entries() {
        let mut tlb = Tlb::new();
        let tag = fill(&mut tlb, 0);
        for _ in 0..2 * GENERATIONS {
            tlb.flush_context(0);
            let generation = tlb.generation(0);
            assert!((1..u64::from(GENERATIONS)).contains(&generation));
        }
        assert_eq!(tlb.fetch(true, tag), None);
        assert_eq!(tlb.entry(TABLE_USER, LINEAR).read, NO_TAG);
    }

    #[test]
    fn a_page_that_is_part_of_a_large_one_asks_for_a_flush() {
        let mut tlb = Tlb::new();
        let tag = fill(&mut tlb, 0);
        tlb.note_page_size(LINEAR, 12);
        assert!(!tlb.flush_page(LINEAR));
        assert_eq!(tlb.fetch(true, tag), None);
        for shift in [21, 22, 30] {
            tlb.flush();
            tlb.note_page_size(LINEAR, shift);
            assert!(tlb.flush_page(LINEAR ^ 1 << (shift - 1)), "{shift}");
            tlb.flush();
            assert!(!tlb.flush_page(LINEAR));
        }
    }
}
