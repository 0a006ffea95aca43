//! [`Registers`]: what a program sees of a processor, for debuggers and tests.

use serde::{Deserialize, Serialize};

use crate::Processors;
use crate::state::FpuState;
use crate::unit::bit;

/// The registers that unprivileged code uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS. Only the bits that POPF changes at any privilege level but 0 are set from it.
    pub rflags: u64,
    /// x87 and SSE.
    pub fpu: FpuState,
}

/// RFLAGS bits that a write of [`Registers`] changes.
const SETTABLE: u64 = bit::ARITHMETIC | bit::DF | bit::NT | bit::ID;

impl Processors {
    /// The registers of a processor between two instructions; `None` for a number that no processor has.
    pub fn registers(&self, vcpu: usize) -> Option<Registers> {
        let cpu = &self.vcpus.get(vcpu)?.cpu;
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&cpu.gpr[..16]);
        Some(Registers { gpr, rip: cpu.rip, rflags: cpu.rflags(), fpu: cpu.fpu_state() })
    }

    /// Sets the registers of a processor between two instructions, whatever it is doing; false for a number that no processor
    /// has.
    pub fn set_registers(&mut self, vcpu: usize, registers: &Registers) -> bool {
        let Some(vcpu) = self.vcpus.get_mut(vcpu) else { return false };
        let cpu = &mut vcpu.cpu;
        cpu.gpr[..16].copy_from_slice(&registers.gpr);
        cpu.rip = registers.rip;
        cpu.set_rflags(cpu.rflags() & !SETTABLE | registers.rflags & SETTABLE);
        cpu.set_fpu_state(&registers.fpu);
        true
    }
}
