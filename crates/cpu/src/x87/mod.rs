//! x87 (Intel SDM volume 1, chapter 8), and the instructions that save its state together with that of SSE.
//!
//! Arithmetic runs on the host's own x87 (`native`); stack, tags, condition codes and what exceptions do are ours. A handler checks for
//! pending exceptions, loads memory operands, computes, stores, and only then changes registers, so that a page fault leaves nothing
//! half done.

mod arithmetic;
mod compare;
mod control;
mod environment;
mod native;
mod save;
mod signature;
#[cfg(test)]
mod tests;
mod transcendental;
mod transfer;
mod unit;

use iced_x86::{Instruction, OpKind, Register};

use crate::decode::{Site, slot};
use crate::op::{Handler, Op};

pub use signature::transcendental_signature;
pub(crate) use unit::{Register80, X87};

/// The handler of an instruction of this family, with `op`'s operands filled in: `dst` is the number of the stack register other than
/// ST(0), if there is one; `third` tells whether there is a memory operand.
pub(crate) fn lower(instruction: &Instruction, _site: Site, op: &mut Op) -> Option<Handler> {
    let registers = (0..instruction.op_count()).map(|operand| instruction.op_register(operand));
    op.dst = registers.filter(|register| is_stack(*register)).map(slot).max().unwrap_or(0);
    op.third = if instruction.op0_kind() == OpKind::Memory { unit::MEMORY } else { 0 };
    let code = instruction.code();
    arithmetic::lower(code)
        .or_else(|| transfer::lower(code))
        .or_else(|| compare::lower(code))
        .or_else(|| transcendental::lower(code))
        .or_else(|| control::lower(code))
        .or_else(|| environment::lower(code))
        .or_else(|| save::lower(code))
}

fn is_stack(register: Register) -> bool {
    register >= Register::ST0 && register <= Register::ST7
}
