//! From bytes to ops: `iced_x86` decodes, the families of instructions lower to handlers.

mod availability;
mod operand;

use iced_x86::Instruction;

use crate::block::Mode;
use crate::bus::Bus;
use crate::core::{Cpu, undefined};
use crate::op::{Op, Stop, ZERO};
use crate::{int, sse, sys, x87};

pub(crate) use operand::{Site, slot};

/// Longest instruction, in bytes.
pub(crate) const LEN_MAX: usize = 15;

/// Lowers one instruction of a block.
pub(crate) fn lower(instruction: &Instruction, site: Site, mode: Mode) -> Op {
    let mut op = Op {
        run: undefined,
        imm: 0,
        disp: 0,
        base: ZERO,
        index: ZERO,
        scale: 0,
        ea: 0,
        dst: 0,
        src: 0,
        third: 0,
        len: instruction.len() as u8,
        offset: site.offset,
        number: 0,
        branch: 0,
    };
    if instruction.is_invalid() && instruction.len() >= LEN_MAX {
        op.run = too_long;
        return op;
    }
    if let Some(handler) = availability::barred(instruction, mode) {
        op.run = handler;
        return op;
    }
    site.set_memory_operand(instruction, &mut op);
    op.run = int::lower(instruction, site, &mut op)
        .or_else(|| sse::lower(instruction, site, &mut op))
        .or_else(|| x87::lower(instruction, site, &mut op))
        .or_else(|| sys::lower(instruction, site, &mut op))
        .unwrap_or(undefined);
    op
}

/// More prefixes than an instruction may have bytes.
fn too_long(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    Err(cpu.general_protection(0))
}
