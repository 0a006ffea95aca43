//! x87.

use iced_x86::Instruction;

use crate::decode::Site;
use crate::op::{Handler, Op};

/// The handler of an instruction of this family, with `op`'s operands filled in.
pub(crate) fn lower(_instruction: &Instruction, _site: Site, _op: &mut Op) -> Option<Handler> {
    None
}

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
}
