//! [`BlockCache`]: decoded blocks by physical address.

use memory::{GuestRam, PAGE_BYTES, PAGE_SHIFT};

use crate::block::crossing::Crossings;
use crate::op::Op;
use crate::translate::{Through, Translator};
use crate::unit::Mode;

/// Most ops kept; when there are more, everything is forgotten.
const OPS_MAX: usize = 1 << 20;
/// Buckets of the hash table, a power of two.
const BUCKETS: usize = 1 << 16;
/// No block.
const NONE: u32 = u32::MAX;
/// Key of a block that is no more.
const NO_KEY: u64 = u64::MAX;
/// No translation: what code memory begins with is not a block's.
const NO_CODE: u32 = 0;
/// No offset within a page.
const NO_TARGET: u16 = u16::MAX;

/// A decoded block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// Offset in RAM of its first byte, and its mode.
    key: u64,
    first_op: u32,
    /// Number of ops.
    pub len: u16,
    /// How often it was interpreted, up to [`BlockCache::hot`].
    heat: u8,
    /// Offset of its translation in code memory, or [`NO_CODE`].
    code: u32,
    /// Where execution went from here, within the same page, and the blocks that start there.
    links: [(u16, u32); 2],
    next_in_bucket: u32,
    next_in_page: u32,
}

/// Decoded blocks by physical address and mode.
///
/// Blocks of one page are forgotten together, and links lead only from page to the same page: so there is no link to
/// a block that is gone.
pub(crate) struct BlockCache {
    ops: Vec<Op>,
    blocks: Vec<Block>,
    free: Vec<u32>,
    buckets: Vec<u32>,
    /// First block of each page of RAM.
    pages: Vec<u32>,
    crossings: Crossings,
    /// `None`: all is interpreted.
    translator: Option<Translator>,
    /// How often a block is interpreted before it is translated.
    hot: u8,
}

impl BlockCache {
    /// A cache whose blocks are interpreted as often as `translate_after` says, and then translated if the host lets code be made.
    pub(crate) fn new(ram: &GuestRam, translate_after: Option<u8>) -> Self {
        Self {
            ops: Vec::new(),
            blocks: Vec::new(),
            free: Vec::new(),
            buckets: vec![NONE; BUCKETS],
            pages: vec![NONE; ram.pages() as usize],
            crossings: Crossings::new(),
            translator: translate_after.and_then(|_| Translator::new()),
            hot: translate_after.unwrap_or(0),
        }
    }

    /// What holds the translations, if there are any.
    pub(crate) fn translator(&self) -> Option<&Translator> {
        self.translator.as_ref()
    }

    /// The translation of a block.
    #[inline(always)]
    pub(crate) fn code(&self, id: u32) -> Option<u32> {
        self.blocks.get(id as usize).map(|block| block.code).filter(|&code| code != NO_CODE)
    }

    /// The address of the translation of a block, 0 for none.
    pub(crate) fn code_address(&self, id: u32) -> u64 {
        match (self.code(id), &self.translator) {
            (Some(code), Some(translator)) => translator.address(code),
            _ => 0,
        }
    }

    /// Leads a jump of translated code to the translation of a block of the same page.
    pub(crate) fn link_code(&mut self, jump: Through, code: u32) {
        if let Some(translator) = &mut self.translator {
            translator.link(jump, code);
        }
    }

    /// Notes that a block is about to run, and translates it when it was interpreted often enough.
    #[inline(always)]
    pub(crate) fn warm(&mut self, ram: &GuestRam, id: u32) {
        if let Some(block) = self.blocks.get_mut(id as usize)
            && block.heat <= self.hot
        {
            block.heat = block.heat.saturating_add(1);
            if block.heat > self.hot {
                self.translate(ram, id);
            }
        }
    }

    #[cold]
    fn translate(&mut self, ram: &GuestRam, id: u32) {
        if self.translator.as_ref().is_some_and(Translator::is_full) {
            self.forget_code();
        }
        let (Some(translator), Some(block)) = (&mut self.translator, self.blocks.get_mut(id as usize)) else {
            return;
        };
        let first = block.first_op as usize;
        let Some(ops) = self.ops.get(first..first + usize::from(block.len)) else {
            return;
        };
        let (key, ram_offset) = (block.key, block.key >> Mode::BITS);
        if Mode::of_bits(key).code_bits() != 64 {
            return;
        }
        let len_bytes = ops.last().map_or(0, |op| usize::from(op.offset) + usize::from(op.len));
        let mut bytes = vec![0; len_bytes];
        if ram.read_offset(ram_offset, &mut bytes)
            && let Some(code) = translator.translate(ops, &bytes, ram_offset % PAGE_BYTES)
        {
            block.code = code;
        }
    }

    /// Forgets all translations, and begins to count anew.
    fn forget_code(&mut self) {
        for block in &mut self.blocks {
            (block.heat, block.code) = (0, NO_CODE);
        }
        if let Some(translator) = &mut self.translator {
            translator.clear();
        }
    }

    fn key(ram_offset: u64, mode: Mode) -> u64 {
        ram_offset << Mode::BITS | mode.bits()
    }

    fn bucket(key: u64) -> usize {
        (key >> Mode::BITS ^ key >> (Mode::BITS + 14)) as usize % BUCKETS
    }

    /// The block that starts at an offset in RAM.
    #[inline(always)]
    pub(crate) fn find(&self, ram_offset: u64, mode: Mode) -> Option<u32> {
        let key = Self::key(ram_offset, mode);
        let mut id = self.buckets[Self::bucket(key)];
        while let Some(block) = self.blocks.get(id as usize) {
            if block.key == key {
                return Some(id);
            }
            id = block.next_in_bucket;
        }
        None
    }

    /// A block and its ops.
    #[inline(always)]
    pub(crate) fn get(&self, id: u32) -> Option<(&Block, &[Op])> {
        let block = self.blocks.get(id as usize)?;
        let first = block.first_op as usize;
        let ops = self.ops.get(first..first + usize::from(block.len))?;
        Some((block, ops))
    }

    /// The block that execution reached from `from` at this offset in the same page before.
    #[inline(always)]
    pub(crate) fn follow(&self, from: u32, in_page: u16) -> Option<u32> {
        let block = self.blocks.get(from as usize)?;
        if block.links[0].0 == in_page {
            Some(block.links[0].1)
        } else if block.links[1].0 == in_page {
            Some(block.links[1].1)
        } else {
            None
        }
    }

    /// Remembers that execution went from one block to another of the same page and mode.
    pub(crate) fn link(&mut self, from: u32, in_page: u16, to: u32) {
        if let Some(block) = self.blocks.get_mut(from as usize) {
            // The older target goes: one that keeps changing must not displace the one that stays.
            block.links = [(in_page, to), block.links[0]];
        }
    }

    /// Keeps a block. True when its page had no code before.
    pub(crate) fn insert(&mut self, ram: &GuestRam, ram_offset: u64, mode: Mode, ops: &[Op], len_bytes: u16) -> bool {
        if self.ops.len() + ops.len() > OPS_MAX {
            self.clear(ram);
        }
        let page = ram_offset >> PAGE_SHIFT;
        let Some(next_in_page) = self.pages.get(page as usize).copied() else {
            return false;
        };
        let key = Self::key(ram_offset, mode);
        let bucket = Self::bucket(key);
        let block = Block {
            key,
            first_op: self.ops.len() as u32,
            len: ops.len() as u16,
            heat: 0,
            code: NO_CODE,
            links: [(NO_TARGET, NONE); 2],
            next_in_bucket: self.buckets[bucket],
            next_in_page,
        };
        self.ops.extend_from_slice(ops);
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                self.blocks.push(block);
                self.blocks.len() as u32 - 1
            }
        };
        if let Some(slot) = self.blocks.get_mut(id as usize) {
            *slot = block;
        }
        self.buckets[bucket] = id;
        if let Some(head) = self.pages.get_mut(page as usize) {
            *head = id;
        }
        let in_page = ram_offset % PAGE_BYTES;
        let first_code = ram.code_lines(page) == 0;
        ram.add_code_lines(page, GuestRam::code_line_mask(in_page, in_page + u64::from(len_bytes.max(1)) - 1));
        first_code
    }

    /// The instruction that starts at `first` and ends on the page at `second` (offsets in RAM).
    pub(crate) fn find_crossing(&self, first: u64, second: u64, mode: Mode) -> Option<Op> {
        self.crossings.find(first, second, mode)
    }

    /// Keeps an instruction across two pages. Returns those of the two (offsets in RAM) that had no code before.
    pub(crate) fn insert_crossing(&mut self, ram: &GuestRam, first: u64, second: u64, mode: Mode, op: Op) -> Vec<u64> {
        self.crossings.insert(ram, first, second, mode, op)
    }

    /// Forgets the blocks of a page.
    pub(crate) fn forget_page(&mut self, ram: &GuestRam, page: u64) {
        let Some(head) = self.pages.get_mut(page as usize) else {
            return;
        };
        let mut id = std::mem::replace(head, NONE);
        while let Some(block) = self.blocks.get(id as usize) {
            let next = block.next_in_page;
            self.unhash(id);
            if let Some(block) = self.blocks.get_mut(id as usize) {
                block.key = NO_KEY;
                block.code = NO_CODE;
            }
            self.free.push(id);
            id = next;
        }
        self.crossings.forget_page(page);
        ram.clear_code_lines(page);
    }

    fn unhash(&mut self, id: u32) {
        let Some(block) = self.blocks.get(id as usize).copied() else {
            return;
        };
        let bucket = Self::bucket(block.key);
        if self.buckets[bucket] == id {
            self.buckets[bucket] = block.next_in_bucket;
            return;
        }
        let mut at = self.buckets[bucket];
        while let Some(other) = self.blocks.get_mut(at as usize) {
            if other.next_in_bucket == id {
                other.next_in_bucket = block.next_in_bucket;
                return;
            }
            at = other.next_in_bucket;
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self, ram: &GuestRam) {
        for (page, head) in self.pages.iter_mut().enumerate() {
            if *head != NONE {
                *head = NONE;
                ram.clear_code_lines(page as u64);
            }
        }
        self.crossings.clear(ram);
        self.buckets.fill(NONE);
        self.forget_code();
        self.blocks.clear();
        self.free.clear();
        self.ops.clear();
    }
}
