//! [`Cpu`]: the runtime state of one virtual processor.

use memory::GuestRam;

use crate::apic::Apic;
use crate::block::Mode;
use crate::bus::Bus;
use crate::flags::{LazyFlags, bit};
use crate::mmu::Tlb;
use crate::op::{BLOCK_BASE, Fault, Op, Stop, ZERO, ea, vector};
use crate::sse::Sse;
use crate::sys::System;
use crate::x87::X87;

/// One virtual processor.
///
/// Hot state comes first and the layout is fixed, so that a binary translator can address it.
#[repr(C)]
pub struct Cpu {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15, then [`ZERO`] and [`BLOCK_BASE`].
    pub(crate) gpr: [u64; 18],
    /// Exact between blocks and after an op that returned [`Stop::Branch`]; stale within a block.
    pub(crate) rip: u64,
    pub(crate) flags: LazyFlags,
    /// RFLAGS without the arithmetic flags, bit 1 set.
    pub(crate) rflags_rest: u64,
    /// Added to every TLB tag: changes when the address space does. See [`crate::mmu`].
    pub(crate) tlb_generation: u64,
    /// Which of the TLB's four tables the current privilege uses. See [`crate::mmu`].
    pub(crate) tlb_table: u8,
    /// Current privilege level, 0 to 3.
    pub(crate) cpl: u8,
    /// 16, 32 or 64: the default of the current code segment.
    pub(crate) code_bits: u8,
    /// The running instruction is the only one of its run: it may reach devices and overwrite code. See [`Stop::Alone`].
    pub(crate) alone: bool,
    /// What decides, besides the bytes, how code decodes. See [`crate::block::Mode`].
    pub(crate) mode: Mode,
    /// Base of CS, 0 in 64-bit mode.
    pub(crate) code_base: u64,
    /// Instructions that all processors of the machine had retired when the running block started.
    pub(crate) count: u64,
    /// What clock steps have added to the time-stamp counter.
    pub(crate) clock_steps: u64,
    pub(crate) tlb: Tlb,
    pub(crate) ram: GuestRam,
    pub(crate) sse: Sse,
    pub(crate) x87: X87,
    /// Valid after a handler returned [`Stop::Fault`].
    pub(crate) fault: Fault,
    pub(crate) apic: Apic,
    /// Segments, control and model-specific registers, interrupt state.
    pub(crate) system: System,
}

impl Cpu {
    /// RFLAGS as the guest would see them.
    pub(crate) fn rflags(&self) -> u64 {
        self.rflags_rest | self.flags.bits()
    }

    /// Sets RFLAGS; the caller has masked what may not change. Callers that change IF, TF or AC must leave the block
    /// ([`Stop::Sync`] or [`Stop::Branch`]) and have called [`Cpu::update_tlb_table`] where AC matters.
    pub(crate) fn set_rflags(&mut self, value: u64) {
        self.flags.set_bits(value);
        self.rflags_rest = value & !bit::ARITHMETIC | bit::FIXED;
    }

    /// RIP of the instruction that `op` is.
    #[inline(always)]
    pub(crate) fn rip_of(&self, op: &Op) -> u64 {
        self.gpr[usize::from(BLOCK_BASE)].wrapping_add(op.offset.into())
    }

    /// RIP of the instruction after `op`.
    #[inline(always)]
    pub(crate) fn next_rip(&self, op: &Op) -> u64 {
        self.gpr[usize::from(BLOCK_BASE)].wrapping_add(op.next_offset())
    }

    /// The offset part of the memory operand's address (what LEA computes before truncation to its operand).
    #[inline(always)]
    pub(crate) fn effective_offset(&self, op: &Op) -> u64 {
        let offset =
            self.register(op.base).wrapping_add(self.register(op.index) << (op.scale & 3)).wrapping_add(op.disp);
        if op.ea & (ea::ADDRESS_32 | ea::ADDRESS_16) == 0 {
            offset
        } else if op.ea & ea::ADDRESS_32 != 0 {
            offset & 0xffff_ffff
        } else {
            offset & 0xffff
        }
    }

    /// The linear address of the memory operand.
    #[inline(always)]
    pub(crate) fn linear(&self, op: &Op) -> u64 {
        if op.ea == 0 {
            return self
                .register(op.base)
                .wrapping_add(self.register(op.index) << (op.scale & 3))
                .wrapping_add(op.disp);
        }
        self.linear_of(op, self.effective_offset(op))
    }

    /// The linear address of an offset in the segment of `op`'s memory operand.
    #[inline]
    pub(crate) fn linear_of(&self, op: &Op, offset: u64) -> u64 {
        let mut linear = offset;
        if op.ea & ea::SEGMENT != 0 {
            linear = linear.wrapping_add(self.system.segment_base(op.ea & ea::SEGMENT_NUMBER));
        }
        if op.ea & ea::LINEAR_32 != 0 { linear & 0xffff_ffff } else { linear }
    }

    /// [`Cpu::gpr`] by index; the register file is small and indices come from the decoder, so the bound never bites.
    #[inline(always)]
    fn register(&self, index: u8) -> u64 {
        self.gpr[usize::from(index.min(BLOCK_BASE))]
    }

    /// The machine's time-stamp counter when `op` starts (without this processor's own offset).
    pub(crate) fn machine_tsc(&self, op: &Op) -> u64 {
        tsc_at(self.count + u64::from(op.number), self.clock_steps)
    }

    /// Records an exception; return the result from the handler with `Err`.
    #[cold]
    pub(crate) fn raise(&mut self, vector: u8, error_code: Option<u32>) -> Stop {
        self.fault = Fault { vector, error_code, address: 0 };
        Stop::Fault
    }

    /// #GP with an error code (0 unless a selector is at fault).
    #[cold]
    pub(crate) fn general_protection(&mut self, error_code: u32) -> Stop {
        self.raise(vector::GP, Some(error_code))
    }

    /// #UD.
    #[cold]
    pub(crate) fn undefined_opcode(&mut self) -> Stop {
        self.raise(vector::UD, None)
    }
}

/// Ticks of the time-stamp counter a second.
pub const TSC_HZ: u64 = 1_000_000_000;

/// The time-stamp counter after `count` instructions.
pub(crate) const fn tsc_at(count: u64, clock_steps: u64) -> u64 {
    (count / INSTRUCTIONS_PER_TICK).wrapping_add(clock_steps)
}

/// Instructions that one tick of the time-stamp counter stands for.
pub(crate) const INSTRUCTIONS_PER_TICK: u64 = 4;

/// The handler of what this processor does not have.
pub(crate) fn undefined(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    Err(cpu.undefined_opcode())
}

const _: () = assert!(ZERO as usize == 16 && BLOCK_BASE as usize == 17);
