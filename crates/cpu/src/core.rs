//! [`Cpu`]: the runtime state of one virtual processor.

use memory::GuestRam;

use crate::apic::Apic;
use crate::context::Context;
use crate::stop::{Fault, Stop, vector};
use crate::tlb::Tlb;
use crate::unit::{LazyFlags, Mode, Sse, System, X87, bit};

use crate::width::GeneralRegisters;

/// Index in [`Cpu::gpr`] of a register that is always zero: the base or index that an address does not have.
pub(crate) const ZERO: u8 = 16;
/// Index in [`Cpu::gpr`] of the virtual address of the running block's first byte. RIP-relative addresses and branch
/// targets are relative to it, so that one block serves every virtual address its page is mapped at.
pub(crate) const BLOCK_BASE: u8 = 17;

/// One virtual processor.
///
/// Hot state comes first and the layout is fixed, so that a binary translator can address it.
#[repr(C)]
pub struct Cpu {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15, then [`ZERO`] and [`BLOCK_BASE`].
    pub(crate) gpr: GeneralRegisters,
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
    /// What decides, besides the bytes, how code decodes. See [`crate::unit::Mode`].
    pub(crate) mode: Mode,
    /// Base of CS, 0 in 64-bit mode.
    pub(crate) code_base: u64,
    /// Instructions that all processors of the machine had retired when the running block started.
    pub(crate) count: u64,
    /// What clock steps have added to the time-stamp counter.
    pub(crate) clock_steps: u64,
    /// What translated code needs while it runs.
    pub(crate) context: Context,
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

/// The time-stamp counter after `count` instructions.
pub(crate) const fn tsc_at(count: u64, clock_steps: u64) -> u64 {
    (count / INSTRUCTIONS_PER_TICK).wrapping_add(clock_steps)
}

/// Instructions that one tick of the time-stamp counter stands for.
pub(crate) const INSTRUCTIONS_PER_TICK: u64 = 4;

const _: () = assert!(ZERO as usize == 16 && BLOCK_BASE as usize == 17);
