//! MMX and SSE to SSE4.2 (Intel SDM volume 2), save what belongs to other families: CRC32, POPCNT, MOVNTI, fences,
//! prefetches, FXSAVE and its kin.
//!
//! Integer operations are computed with the host's own vector instructions, for which this crate is compiled; floating
//! point too, under the guest's MXCSR (`native`).
//!
//! # Why hosts of all makers give the same
//! | What the host computes | Why it is the same |
//! | --- | --- |
//! | integer arithmetic, shuffles, MPSADBW, PHMINPOSUW | every bit is prescribed |
//! | addition, subtraction, multiplication, division, square roots, MIN, MAX, comparisons, conversions, ROUNDPS | IEEE 754, with underflow detected after rounding, and the precedence of exceptions that both makers give (Intel SDM volume 1, sections 4.9 and 11.5; AMD APM volume 1, section 4.10). Of two NaNs the first operand prevails (SDM volume 1, table 4-7; APM volume 1, table 4-5), in MIN and MAX the second |
//! | HADDPS, HSUBPS and their double forms | as an addition or subtraction of vectors, lower elements first (`float`): for the elements of one operand no manual tells which is the first |
//! | DPPS, DPPD | as multiplications and additions in an order of our own (`float`): NaNs are "implementation dependent" |
//! | overflow and underflow that the guest does not mask | always masked on the host; what they raise is derived (`element`), with the help of x87 operations whose inexactness is prescribed |
//!
//! What hosts may compute differently altogether (RCPPS, RSQRTPS) is done in integers (`approximate`), and so are PCMPESTRI and its kin
//! (`string`). All of it but integers is part of [`float_signature`](crate::float_signature), so that a processor which does not follow its
//! manual is found out.
//!
//! Each file lowers a group of instructions: a table from `iced_x86::Code` to handlers, which are made by a few generic functions
//! from an operation and a kind of source operand (`operand`).

mod approximate;
mod element;
mod exception;
mod float;
mod integer;
mod mmx;
mod moves;
mod native;
mod operand;
mod shuffle;
mod signature;
mod string;
mod vector;

#[cfg(test)]
mod tests;

use iced_x86::{Instruction, OpKind};

use crate::op::{Handler, Op, Site, slot};

pub(crate) use signature::sign;

/// The handler of an instruction of this family, with `op`'s operands filled in.
pub(crate) fn lower(instruction: &Instruction, _site: Site, op: &mut Op) -> Option<Handler> {
    let mut filled = *op;
    let mut memory = false;
    for operand in 0..instruction.op_count() {
        match instruction.op_kind(operand) {
            OpKind::Register => {
                let number = slot(instruction.op_register(operand));
                match operand {
                    0 => filled.dst = number,
                    1 => filled.src = number,
                    _ => filled.third = number,
                }
            }
            OpKind::Immediate8 => filled.imm = instruction.immediate8().into(),
            OpKind::Memory => memory = true,
            _ => {}
        }
    }
    let code = instruction.code();
    let handler = moves::lower(code, memory, &mut filled)
        .or_else(|| integer::lower(code, memory))
        .or_else(|| float::lower(code, memory, filled.imm))
        .or_else(|| shuffle::lower(code, memory, &mut filled))
        .or_else(|| mmx::lower(code, memory, &mut filled))
        .or_else(|| string::lower(code, memory))?;
    *op = filled;
    Some(handler)
}
