//! From bytes to ops: `iced_x86` decodes, the families of instructions lower to handlers.

mod availability;
#[cfg(test)]
mod tests;

use iced_x86::Instruction;

use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op, Site};
use crate::stop::Stop;
use crate::unit::Mode;
use crate::{int, sse, sys, x87};

/// Longest instruction, in bytes.
pub(crate) const LEN_MAX: usize = 15;

/// The handler of an instruction of a family, with the op's operands filled in; `None` for an instruction of another family.
type Lower = fn(&Instruction, Site, &mut Op) -> Option<Handler>;

/// The families. No instruction belongs to two of them, so that their order does not matter but for speed.
const FAMILIES: [Lower; 4] = [int::lower, sse::lower, x87::lower, sys::lower];

/// Lowers one instruction of a block.
pub(crate) fn lower(instruction: &Instruction, site: Site, mode: Mode) -> Op {
    let mut op = Op::new(instruction, site.offset);
    if instruction.is_invalid() && instruction.len() >= LEN_MAX {
        op.run = too_long;
        return op;
    }
    if let Some(handler) = availability::barred(instruction, mode) {
        op.run = handler;
        return op;
    }
    site.set_memory_operand(instruction, &mut op);
    if let Some(handler) = FAMILIES.iter().find_map(|lower| lower(instruction, site, &mut op)) {
        op.run = handler;
    }
    op
}

/// More prefixes than an instruction may have bytes.
fn too_long(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    Err(cpu.general_protection(0))
}
