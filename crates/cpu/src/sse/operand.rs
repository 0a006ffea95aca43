//! Where vector instructions find their operands.

use std::arch::x86_64::__m128i;

use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::Op;
use crate::stop::Stop;
use crate::unit::Register80;

use super::vector::{from_low, load, low, store};
use crate::unit::Sse;

/// A kind of source operand, zero-extended to 128 bits.
pub(super) trait Source {
    /// Reads the operand `op` names. Changes nothing when it fails.
    fn read(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<__m128i, Stop>;
}

/// The XMM register `op.src`.
pub(super) struct Xmm;
/// The MMX register `op.src`.
pub(super) struct Mm;
/// 128 bits in memory that must be aligned to 16 bytes: #GP(0) otherwise.
pub(super) struct Aligned;
/// 128 bits in memory.
pub(super) struct Unaligned;
/// 64 bits in memory.
pub(super) struct Memory64;
/// 32 bits in memory.
pub(super) struct Memory32;
/// 16 bits in memory.
pub(super) struct Memory16;

impl Source for Xmm {
    #[inline(always)]
    fn read(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<__m128i, Stop> {
        Ok(cpu.sse.get(op.src))
    }
}

impl Source for Mm {
    #[inline(always)]
    fn read(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<__m128i, Stop> {
        Ok(cpu.mm(op.src))
    }
}

impl Source for Aligned {
    #[inline(always)]
    fn read(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<__m128i, Stop> {
        let linear = cpu.aligned(op)?;
        cpu.load(linear, bus)
    }
}

impl Source for Unaligned {
    #[inline(always)]
    fn read(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<__m128i, Stop> {
        cpu.load_operand(op, bus)
    }
}

impl Source for Memory64 {
    #[inline(always)]
    fn read(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<__m128i, Stop> {
        Ok(from_low(cpu.load_operand(op, bus)?))
    }
}

impl Source for Memory32 {
    #[inline(always)]
    fn read(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<__m128i, Stop> {
        Ok(from_low(cpu.load_operand::<u32>(op, bus)?.into()))
    }
}

impl Source for Memory16 {
    #[inline(always)]
    fn read(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<__m128i, Stop> {
        Ok(from_low(cpu.load_operand::<u16>(op, bus)?.into()))
    }
}

impl Sse {
    /// An XMM register.
    #[inline(always)]
    pub(super) fn get(&self, number: u8) -> __m128i {
        load(&self.xmm[usize::from(number & 15)])
    }

    /// Writes an XMM register.
    #[inline(always)]
    pub(super) fn set(&mut self, number: u8, value: __m128i) {
        store(&mut self.xmm[usize::from(number & 15)], value);
    }
}

impl Cpu {
    /// An MMX register, zero-extended.
    #[inline(always)]
    pub(super) fn mm(&self, number: u8) -> __m128i {
        from_low(self.x87.registers[usize::from(number & 7)].significand)
    }

    /// Writes an MMX register with all that this does to the x87 state.
    #[inline(always)]
    pub(super) fn set_mm(&mut self, number: u8, value: __m128i) {
        self.x87.enter_mmx();
        self.x87.registers[usize::from(number & 7)] = Register80 { significand: low(value), sign_exponent: 0xffff };
    }

    /// The linear address of a memory operand that must be aligned to 16 bytes.
    #[inline(always)]
    pub(super) fn aligned(&mut self, op: &Op) -> Result<u64, Stop> {
        let linear = self.linear(op);
        if linear & 15 == 0 { Ok(linear) } else { Err(self.general_protection(0)) }
    }
}
