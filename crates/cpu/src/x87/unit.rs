//! [`X87`]: the registers of the x87 unit, and what MMX instructions share of it.

use crate::core::Cpu;
use crate::op::{Stop, vector};

/// One 80-bit register. MMX registers are the significands.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Register80 {
    pub significand: u64,
    /// Sign (bit 15) and biased exponent.
    pub sign_exponent: u16,
}

/// The x87 unit: registers by physical number (ST(i) is `registers[(top + i) % 8]`), as FXSAVE sees it.
#[repr(C)]
#[derive(Clone, Debug)]
pub(crate) struct X87 {
    pub registers: [Register80; 8],
    pub control: u16,
    /// Status word, TOP in bits 11 to 13.
    pub status: u16,
    /// Bit n: physical register n holds a value (the abridged tag word of FXSAVE).
    pub valid: u8,
    /// Last non-control opcode, 11 bits.
    pub last_opcode: u16,
    pub last_instruction: u64,
    pub last_operand: u64,
}

/// Bits of the status word (Intel SDM volume 1, figure 8-4); the low six are also the masks of the control word.
pub(crate) mod status {
    pub const INVALID: u16 = 1 << 0;
    pub const DENORMAL: u16 = 1 << 1;
    pub const ZERO_DIVIDE: u16 = 1 << 2;
    pub const OVERFLOW: u16 = 1 << 3;
    pub const UNDERFLOW: u16 = 1 << 4;
    pub const PRECISION: u16 = 1 << 5;
    pub const EXCEPTIONS: u16 = 0x3f;
    pub const STACK_FAULT: u16 = 1 << 6;
    pub const ERROR_SUMMARY: u16 = 1 << 7;
    pub const C0: u16 = 1 << 8;
    pub const C1: u16 = 1 << 9;
    pub const C2: u16 = 1 << 10;
    pub const TOP_SHIFT: u32 = 11;
    pub const TOP: u16 = 7 << TOP_SHIFT;
    pub const C3: u16 = 1 << 14;
    pub const BUSY: u16 = 1 << 15;
}

impl X87 {
    /// As after FNINIT.
    pub(crate) fn new() -> Self {
        Self {
            registers: [Register80::default(); 8],
            control: 0x37f,
            status: 0,
            valid: 0,
            last_opcode: 0,
            last_instruction: 0,
            last_operand: 0,
        }
    }

    /// What every MMX instruction but EMMS does to the x87 state: TOP = 0, every register valid (Intel SDM volume 1,
    /// section 9.5). Call it once the instruction can no longer fault. A register that is written also gets
    /// `sign_exponent` 0xffff.
    #[inline(always)]
    pub(crate) fn enter_mmx(&mut self) {
        self.status &= !status::TOP;
        self.valid = 0xff;
    }
}

impl Cpu {
    /// Raises #MF when an unmasked x87 exception is pending: the first thing that waiting x87 instructions and all MMX
    /// instructions do.
    #[inline(always)]
    pub(crate) fn check_x87_pending(&mut self) -> Result<(), Stop> {
        if self.x87.status & status::ERROR_SUMMARY == 0 { Ok(()) } else { Err(self.raise(vector::MF, None)) }
    }
}
