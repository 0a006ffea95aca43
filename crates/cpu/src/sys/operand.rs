//! The r/m operand of system instructions, which may be a register or memory.

use iced_x86::{Instruction, OpKind};

use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Op, slot};
use crate::stop::Stop;
use crate::width::Width;

/// [`Op::third`] of an instruction whose r/m operand is memory.
const MEMORY: u8 = 1;

/// Fills [`Op::src`] and [`Op::third`] from operand `number`.
pub(super) fn set_rm(instruction: &Instruction, number: u32, op: &mut Op) {
    if instruction.op_kind(number) == OpKind::Register {
        op.src = slot(instruction.op_register(number));
    } else {
        op.third = MEMORY;
    }
}

/// Reads the r/m operand.
pub(super) fn read_rm<W: Width>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<W, Stop> {
    if op.third == MEMORY { cpu.load_operand(op, bus) } else { Ok(W::read(&cpu.gpr, op.src)) }
}

/// Writes the r/m operand: memory gets 16 bits (selectors, the machine status word), a register its width.
pub(super) fn write_selector<W: Width>(cpu: &mut Cpu, op: &Op, value: W, bus: &mut dyn Bus) -> Result<(), Stop> {
    if op.third == MEMORY {
        return cpu.store_operand(op, value.to_u64() as u16, bus);
    }
    value.write(&mut cpu.gpr, op.src);
    Ok(())
}

impl Cpu {
    /// #GP(0) unless the privilege level is 0.
    pub(super) fn require_supervisor(&mut self) -> Result<(), Stop> {
        if self.cpl == 0 { Ok(()) } else { Err(self.general_protection(0)) }
    }
}
