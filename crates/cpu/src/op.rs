//! A decoded instruction, and how running one can end.

use crate::bus::Bus;
use crate::core::Cpu;

/// Runs one instruction. `Ok` means: retired, go on with the next op of the block.
pub(crate) type Handler = fn(&mut Cpu, &Op, &mut dyn Bus) -> Result<(), Stop>;

/// Index in [`Cpu::gpr`] of a register that is always zero: the base or index that an address does not have.
pub(crate) const ZERO: u8 = 16;
/// Index in [`Cpu::gpr`] of the virtual address of the running block's first byte. RIP-relative addresses and branch
/// targets are relative to it, so that one block serves every virtual address its page is mapped at.
pub(crate) const BLOCK_BASE: u8 = 17;

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
    /// Displacement of the memory operand; with base [`BLOCK_BASE`], relative to the block.
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
    /// Offset of the next instruction from the block's first byte.
    #[inline(always)]
    pub(crate) fn next_offset(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.len)
    }
}

/// Why a block ended before (or with) an op.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The instruction retired and set [`Cpu::rip`].
    Branch,
    /// The instruction retired and changed something the run loop caches (interrupt flag, mode, paging, time): leave the
    /// block; RIP is the next instruction.
    Sync,
    /// The instruction did not retire: deliver [`Cpu::fault`] with RIP at this instruction.
    Fault,
    /// A string instruction did part of its work: it counts as one instruction and RIP stays at it.
    Repeat,
    /// The instruction retired, set [`Cpu::rip`] and changed something the run loop caches (privilege, mode, interrupt flag).
    Transfer,
    /// The instruction did nothing yet: run it again, alone, with [`Cpu::alone`] set. Raised by memory accesses that
    /// reach a device or overwrite decoded code, so that everything such an access may cause finds exact counts and takes effect
    /// before the next instruction. Handlers pass it on like a fault.
    Alone,
    /// HLT retired: RIP is the next instruction.
    Halt,
    /// PAUSE retired: a good place to end this vCPU's turn; RIP is the next instruction.
    Pause,
    /// An exception could not be delivered, nor the double fault: the processor is shut down.
    Shutdown,
}

/// An exception on its way to delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub vector: u8,
    /// `None` for vectors that push none.
    pub error_code: Option<u32>,
    /// For #PF, and for #GP of an address that is not canonical: the linear address. Else 0.
    pub address: u64,
}

/// Exception vectors (Intel SDM volume 3, table 6-1).
pub(crate) mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const XM: u8 = 19;
}
