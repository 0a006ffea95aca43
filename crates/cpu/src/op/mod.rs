//! A decoded instruction: a handler, and the operands that it works on.

mod operand;
mod site;

use std::fmt;

use iced_x86::{Code, Instruction};

use crate::bus::Bus;
use crate::core::{Cpu, ZERO};
use crate::stop::Stop;

pub(crate) use site::{Site, is_immediate, slot};

/// Runs one instruction. `Ok` means: retired, go on with the next op of the block.
pub(crate) type Handler = fn(&mut Cpu, &Op, &mut dyn Bus) -> Result<(), Stop>;

/// A decoded instruction: a handler and its operands.
///
/// What `dst`, `src`, `third` and `imm` hold is between the lowering and the handler of each instruction. For general
/// registers a *slot* is the register's number (RAX 0 ... R15 15), plus 16 for AH, CH, DH and BH (numbers 0 to 3).
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Op {
    pub run: Handler,
    /// Immediate, sign-extended to the operand's width as the instruction does.
    pub imm: u64,
    /// Displacement of the memory operand; with base [`BLOCK_BASE`](crate::core::BLOCK_BASE), relative to the block.
    pub disp: u64,
    /// Index in [`Cpu::gpr`], [`ZERO`] for none.
    pub base: u8,
    /// Index in [`Cpu::gpr`], [`ZERO`] for none.
    pub index: u8,
    /// log2 of the index's scale, 0 to 3.
    pub scale: u8,
    /// How the address becomes linear: 0 for a flat 64-bit address, else `ea` bits.
    pub ea: u8,
    pub dst: u8,
    pub src: u8,
    pub third: u8,
    /// Length of the instruction in bytes, 1 to 15.
    pub len: u8,
    /// Offset of the instruction from the block's first byte.
    pub offset: u16,
    /// Number of the instruction in its block, from 0: what of the block has retired when this op starts.
    pub number: u8,
    /// When the op branches to [`Op::imm`] (relative to the block), for the run loop to do without a call; 0 for other ops.
    pub branch: u16,
    /// Which instruction it is.
    pub code: Code,
}

/// Bits of [`Op::ea`].
pub(crate) mod ea {
    /// Low three bits: the segment's number (ES 0, CS 1, SS 2, DS 3, FS 4, GS 5), used when [`SEGMENT`] is set.
    pub const SEGMENT_NUMBER: u8 = 7;
    /// Add the segment's base.
    pub const SEGMENT: u8 = 1 << 3;
    /// Truncate the offset to 32 bits before the base is added.
    pub const ADDRESS_32: u8 = 1 << 4;
    /// Truncate the offset to 16 bits before the base is added.
    pub const ADDRESS_16: u8 = 1 << 5;
    /// Outside 64-bit mode: the linear address wraps at 4 GiB.
    pub const LINEAR_32: u8 = 1 << 6;
}

impl Op {
    /// An instruction at `offset` in its block, before a family has lowered it: what it does is undefined, and it has no operands.
    pub(crate) fn new(instruction: &Instruction, offset: u16) -> Self {
        Self {
            run: undefined,
            imm: 0,
            disp: 0,
            base: ZERO,
            index: ZERO,
            scale: 0,
            ea: 0,
            dst: 0,
            src: 0,
            third: 0,
            len: instruction.len() as u8,
            offset,
            number: 0,
            branch: 0,
            code: instruction.code(),
        }
    }

    /// Offset of the next instruction from the block's first byte.
    #[inline(always)]
    pub(crate) fn next_offset(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.len)
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:#x}", self.code, self.offset)
    }
}

/// The handler of what this processor does not have.
pub(crate) fn undefined(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    Err(cpu.undefined_opcode())
}
