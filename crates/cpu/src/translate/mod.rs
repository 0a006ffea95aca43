//! The translator: hot blocks of 64-bit code become host code.
//!
//! The interpreter is the reference and the fallback. A translated instruction that cannot go on as such (the TLB does not answer, a branch
//! leads to an address that is not canonical) has changed nothing yet, and its handler does it. So faults, devices and overwritten code
//! are the interpreter's, at exact counts. Instructions that have no translation are calls of their handlers.
//!
//! Guest registers live in host registers (`stubs`), flags in the host's flags from an instruction to the condition that looks at
//! them, and else in the form in which the interpreter keeps them, written only where somebody may look. The instruction count is charged per
//! block, and a block that would go beyond the limit is left to the interpreter. Blocks are linked to the others of their page; to go to another
//! page the fetch TLB is asked, as the interpreter asks it.
//!
//! What is translated, and when, never shows in what the guest computes.

mod asm;
mod block;
mod code;
mod field;
mod form;
mod operate;
mod reach;
mod stubs;

use crate::block::BlockCache;
use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::Op;
use crate::stop::Stop;
use asm::Assembler;
use code::CodeMemory;
use stubs::{Stubs, left};

/// Most instructions that translated code runs before it is left, whatever the limit.
const RUN_MAX: u64 = 1 << 40;

/// How translated code was left.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Left {
    /// At the head of a block; through a jump that can be linked to it, if there is one.
    AtBlock(Option<Through>),
    /// In a block, by an op that ended in another way than with the next one.
    Stopped(Op, Stop),
}

/// A jump of translated code that does not lead to a block yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Through {
    /// Offset of its distance in code memory.
    place: u32,
    /// What [`Translator::generation`] was when it was seen.
    generation: u64,
}

/// Translated code, and what it takes to make and run it.
pub(crate) struct Translator {
    memory: CodeMemory,
    stubs: Stubs,
    /// Where the first translation is.
    first: usize,
    /// The ops that translated code refers to, by address.
    ops: Vec<Box<[Op]>>,
    /// How often everything was forgotten.
    generation: u64,
}

impl Translator {
    /// `None` where the host refuses executable memory.
    pub(crate) fn new() -> Option<Self> {
        let mut memory = CodeMemory::new().ok()?;
        let mut asm = Assembler::new(memory.next());
        let stubs = Stubs::assemble(&mut asm);
        memory.append(asm.code())?;
        Some(Self { first: memory.next(), memory, stubs, ops: Vec::new(), generation: 0 })
    }

    /// Translates a block whose first byte is at `in_page` in its page. Returns the offset of its code, or `None` where there is no
    /// more room, or its bytes are not those of its ops any more.
    pub(crate) fn translate(&mut self, ops: &[Op], bytes: &[u8], in_page: u64) -> Option<u32> {
        let ops: Box<[Op]> = ops.into();
        let source = block::Source { ops: &ops, bytes, in_page };
        let asm = block::translate(&source, &self.stubs, self.memory.next())?;
        let offset = self.memory.append(asm.code())?;
        self.ops.push(ops);
        Some(offset as u32)
    }

    /// Whether there may be no room for another block.
    pub(crate) fn is_full(&self) -> bool {
        self.memory.is_full()
    }

    /// Forgets all translations.
    pub(crate) fn clear(&mut self) {
        self.memory.truncate(self.first);
        self.ops.clear();
        self.generation += 1;
    }

    /// Leads a jump to a translation, if it was not forgotten since.
    pub(crate) fn link(&mut self, jump: Through, code: u32) {
        if jump.generation == self.generation {
            let distance = code.wrapping_sub(jump.place + 4);
            self.memory.patch(jump.place as usize, distance.to_le_bytes());
        }
    }

    /// The address at which a translation is called.
    pub(crate) fn address(&self, code: u32) -> u64 {
        self.memory.address(code as usize)
    }

    /// The address of the way in.
    pub(crate) fn enter(&self) -> u64 {
        self.memory.address(self.stubs.enter)
    }
}

/// Runs translated code from the block at [`Cpu::rip`] on, whose code is at the offset `code`, until [`Cpu::count`] may go beyond `limit`, or
/// there is something that only the interpreter can do.
pub(crate) fn run(cpu: &mut Cpu, cache: &BlockCache, code: u32, limit: u64, bus: &mut dyn Bus) -> Left {
    let Some(translator) = cache.translator() else {
        return Left::AtBlock(None);
    };
    let limit = limit.min(cpu.count.saturating_add(RUN_MAX));
    let how = stubs::call(cpu, cache, translator.enter(), translator.address(code), limit, bus);
    match how {
        left::THROUGH_JUMP => {
            Left::AtBlock(Some(Through { place: cpu.context.jump as u32, generation: translator.generation }))
        }
        left::FOR_UNKNOWN | left::AT_LIMIT => Left::AtBlock(None),
        number => Left::Stopped(stubs::stopped_op(cpu), stubs::stop_of(number)),
    }
}
