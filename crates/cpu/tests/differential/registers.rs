//! What a case starts from and ends in.

use cpu::state::FpuState;

use crate::layout::SCRATCH_LEN;

/// Registers, in a layout that the native trampoline knows.
#[repr(C, align(64))]
#[derive(Clone, PartialEq, Eq)]
pub struct Registers {
    /// As FXSAVE64 lays it out.
    pub fx: [u8; 512],
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
}

pub const GPR_NAMES: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

impl Registers {
    pub fn zeroed() -> Self {
        Self { fx: [0; 512], gpr: [0; 16], rip: 0, rflags: 2 }
    }

    /// The FXSAVE image in the neutral form.
    pub fn fpu(&self) -> FpuState {
        let half = |at: usize| u16::from_le_bytes([self.fx[at], self.fx[at + 1]]);
        let word = |at: usize| u64::from_le_bytes(self.fx[at..at + 8].try_into().unwrap());
        let status = half(2);
        let top = usize::from(status >> 11 & 7);
        let mut registers = [(0, 0); 8];
        for i in 0..8 {
            registers[(top + i) % 8] = (word(32 + 16 * i), half(40 + 16 * i));
        }
        let mut xmm = [0; 16];
        for (i, value) in xmm.iter_mut().enumerate() {
            *value = u128::from_le_bytes(self.fx[160 + 16 * i..176 + 16 * i].try_into().unwrap());
        }
        FpuState {
            registers,
            control: half(0),
            status,
            valid: self.fx[4],
            last_opcode: half(6) & 0x7ff,
            last_instruction: word(8),
            last_operand: word(16),
            xmm,
            mxcsr: word(24) as u32,
        }
    }

    /// The reverse of [`Registers::fpu`].
    pub fn set_fpu(&mut self, fpu: &FpuState) {
        let fx = &mut self.fx;
        fx[0..2].copy_from_slice(&fpu.control.to_le_bytes());
        fx[2..4].copy_from_slice(&fpu.status.to_le_bytes());
        fx[4] = fpu.valid;
        fx[6..8].copy_from_slice(&fpu.last_opcode.to_le_bytes());
        fx[8..16].copy_from_slice(&fpu.last_instruction.to_le_bytes());
        fx[16..24].copy_from_slice(&fpu.last_operand.to_le_bytes());
        fx[24..28].copy_from_slice(&fpu.mxcsr.to_le_bytes());
        fx[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
        let top = usize::from(fpu.status >> 11 & 7);
        for i in 0..8 {
            let (significand, sign_exponent) = fpu.registers[(top + i) % 8];
            fx[32 + 16 * i..40 + 16 * i].copy_from_slice(&significand.to_le_bytes());
            fx[40 + 16 * i..42 + 16 * i].copy_from_slice(&sign_exponent.to_le_bytes());
        }
        for (i, value) in fpu.xmm.iter().enumerate() {
            fx[160 + 16 * i..176 + 16 * i].copy_from_slice(&value.to_le_bytes());
        }
    }
}

/// Registers and memory after a case, and the fault that ended it.
#[derive(Clone, PartialEq, Eq)]
pub struct Outcome {
    pub registers: Registers,
    pub scratch: [u8; SCRATCH_LEN],
    /// Vector; the registers are those at the fault.
    pub fault: Option<u8>,
}
