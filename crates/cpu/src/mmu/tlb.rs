//! The software TLB.

/// Entries a table, a power of two.
const ENTRIES: usize = 1024;

pub(crate) const TABLE_SUPERVISOR: u8 = 0;
pub(crate) const TABLE_SUPERVISOR_AC: u8 = 1;
pub(crate) const TABLE_USER: u8 = 2;

/// A tag that no lookup matches: generations are below 4096 and never 0, and linear pages have their low 12 bits clear.
const NO_TAG: u64 = 0;

/// One page's translation.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub read: u64,
    pub write: u64,
    pub execute: u64,
    /// Offset of the page in guest RAM.
    pub ram_offset: u64,
}

impl Entry {
    pub(crate) const EMPTY: Self = Self { read: NO_TAG, write: NO_TAG, execute: NO_TAG, ram_offset: 0 };
}

/// The software TLB of one processor.
pub(crate) struct Tlb {
    entries: Box<[[Entry; ENTRIES]; 4]>,
}

impl Tlb {
    pub(crate) fn new() -> Self {
        Self { entries: Box::new([[Entry::EMPTY; ENTRIES]; 4]) }
    }

    /// The only entry that can hold the page of `linear`.
    #[inline(always)]
    pub(crate) fn entry(&self, table: u8, linear: u64) -> &Entry {
        &self.entries[usize::from(table & 3)][(linear >> memory::PAGE_SHIFT) as usize % ENTRIES]
    }

    pub(crate) fn entry_mut(&mut self, table: u8, linear: u64) -> &mut Entry {
        &mut self.entries[usize::from(table & 3)][(linear >> memory::PAGE_SHIFT) as usize % ENTRIES]
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        for table in self.entries.iter_mut() {
            table.fill(Entry::EMPTY);
        }
    }

    /// Forgets the write permission of a page of RAM, wherever it is mapped: code was decoded from it.
    pub(crate) fn forbid_writes_to(&mut self, ram_offset: u64) {
        for entry in self.entries.iter_mut().flatten() {
            if entry.ram_offset == ram_offset {
                entry.write = NO_TAG;
            }
        }
    }
}
