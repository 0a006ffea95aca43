//! Integer instructions.
//!
//! Handlers are generic over width and operand places (`place`), so that the frequent forms compile to a few host
//! instructions each; `lower` picks the instance.

mod alu;
mod atomic;
mod bits;
mod control;
mod convert;
mod decimal;
mod mov;
mod muldiv;
mod place;
mod shift;
mod stack;
mod status;
mod string;
#[cfg(test)]
mod tests;

use iced_x86::Instruction;

use crate::op::{Handler, Op, Site};

/// The handler of an instruction of this family, with `op`'s operands filled in.
pub(crate) fn lower(instruction: &Instruction, site: Site, op: &mut Op) -> Option<Handler> {
    mov::lower(instruction, op)
        .or_else(|| alu::lower(instruction, op))
        .or_else(|| control::lower(instruction, site, op))
        .or_else(|| stack::lower(instruction, site, op))
        .or_else(|| convert::lower(instruction, op))
        .or_else(|| shift::lower(instruction, op))
        .or_else(|| bits::lower(instruction, op))
        .or_else(|| muldiv::lower(instruction, op))
        .or_else(|| atomic::lower(instruction, op))
        .or_else(|| string::lower(instruction, op))
        .or_else(|| status::lower(instruction))
        .or_else(|| decimal::lower(instruction, op))
}
