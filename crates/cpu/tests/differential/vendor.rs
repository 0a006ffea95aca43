//! What may differ between processors that all follow the architecture, and so is not compared.
//!
//! | What | Intel, Skylake and later | Others |
//! | --- | --- | --- |
//! | Flags that the architecture leaves undefined ([`Case::undefined_flags`](crate::case::Case)) | no | no |
//! | x87 instruction pointer, and opcode and operand pointer after an unmasked exception | yes | no: AMD saves them only while an exception is pending, older processors keep more |
//! | x87 condition codes C0 to C3 | yes | no: most instructions leave some undefined |
//! | Memory and RAX after instructions that store pointers and condition codes there (families `x87_control`, `save_restore`) | yes | no |
//! | SHLD and SHRD of 16 bits, whose result is undefined for counts above 16 | yes | not drawn |
//! | MXCSR_MASK | as memory | no |
//! | RCPPS, RSQRTPS and their scalar forms | not drawn: the approximation is the vendor's own | not drawn |
//!
//! The generators keep away from the rest: XSAVE's idea of unused state, and non-canonical x87 pointers (both in `state`).

use std::ops::Range;

use crate::registers::Outcome;

/// The vendor of the processor that runs the native side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// CPUID.7.0:EBX bits 6 and 13: the opcode and operand pointer are kept for unmasked exceptions only, selectors never. The
    /// software processor does the same.
    Intel,
    Other,
}

/// What of a family's outcomes is compared.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    vendor: Vendor,
    /// Memory and RAX.
    stores: bool,
}

/// Parts of an FXSAVE image: status word; last opcode, instruction and operand; MXCSR_MASK.
const STATUS: Range<usize> = 2..4;
const POINTERS: Range<usize> = 6..24;
const MXCSR_MASK: Range<usize> = 28..32;
/// Everything behind the last XMM register is reserved or the program's.
const REGISTERS_END: usize = 416;
/// C0 to C3, in the second byte of the status word.
const CONDITION_CODES: u8 = 0x47;

impl Vendor {
    pub fn of_host() -> Self {
        let name = std::arch::x86_64::__cpuid(0);
        let features = if name.eax >= 7 { std::arch::x86_64::__cpuid_count(7, 0).ebx } else { 0 };
        let deprecated = 1 << 6 | 1 << 13;
        if name.ebx == u32::from_le_bytes(*b"Genu") && features & deprecated == deprecated {
            Self::Intel
        } else {
            Self::Other
        }
    }

    pub fn compared(self, family: &str) -> Compared {
        let stores_state = matches!(family, "x87_control" | "save_restore");
        Compared { vendor: self, stores: self == Self::Intel || !stores_state }
    }
}

impl Compared {
    /// Whether memory and floating-point registers, and RAX, agree.
    pub fn same(self, native: &Outcome, ours: &Outcome) -> bool {
        let stores = native.registers.gpr[0] == ours.registers.gpr[0] && native.scratch == ours.scratch;
        (stores || !self.stores) && self.same_fpu(&native.registers.fx, &ours.registers.fx)
    }

    fn same_fpu(self, native: &[u8; 512], ours: &[u8; 512]) -> bool {
        let same = |range: Range<usize>| native[range.clone()] == ours[range];
        let rest = same(0..STATUS.start)
            && native[STATUS.start] == ours[STATUS.start]
            && (native[STATUS.start + 1] ^ ours[STATUS.start + 1]) & !CONDITION_CODES == 0
            && same(STATUS.end..POINTERS.start)
            && same(POINTERS.end..MXCSR_MASK.start)
            && same(MXCSR_MASK.end..REGISTERS_END);
        rest && (self.vendor != Vendor::Intel || same(STATUS) && same(POINTERS))
    }
}
