//! What may differ between processors that all follow the architecture, and so is not compared.

/// The vendor of the processor that runs the native side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    Intel,
    Other,
}

/// Bytes 6 to 23 of an FXSAVE image: last opcode, last instruction and operand pointers.
///
/// Intel processors since Skylake keep the instruction pointer always, the opcode and operand pointer only for
/// instructions that leave an unmasked exception (CPUID.7.0:EBX bits 6 and 13), which is what the software processor does.
/// AMD processors save all three only while an exception is pending, and older Intel ones keep more.
const X87_POINTERS: std::ops::Range<usize> = 6..24;
/// MXCSR_MASK.
const MXCSR_MASK: std::ops::Range<usize> = 28..32;
/// Everything behind the last XMM register is reserved or the program's.
const REGISTERS_END: usize = 416;

impl Vendor {
    pub fn of_host() -> Self {
        let leaf = std::arch::x86_64::__cpuid(0);
        let pointers = std::arch::x86_64::__cpuid_count(7, 0).ebx;
        let deprecated = 1 << 6 | 1 << 13;
        if leaf.ebx == u32::from_le_bytes(*b"Genu") && pointers & deprecated == deprecated {
            Self::Intel
        } else {
            Self::Other
        }
    }

    /// Whether two FXSAVE images agree in all that is compared.
    pub fn same_fpu(self, native: &[u8; 512], ours: &[u8; 512]) -> bool {
        let pointers = self != Self::Intel || native[X87_POINTERS] == ours[X87_POINTERS];
        pointers
            && native[..X87_POINTERS.start] == ours[..X87_POINTERS.start]
            && native[X87_POINTERS.end..MXCSR_MASK.start] == ours[X87_POINTERS.end..MXCSR_MASK.start]
            && native[MXCSR_MASK.end..REGISTERS_END] == ours[MXCSR_MASK.end..REGISTERS_END]
    }
}
