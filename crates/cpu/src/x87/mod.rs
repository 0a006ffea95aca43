//! x87 (Intel SDM volume 1, chapter 8), and the instructions that save its state together with that of SSE.
//!
//! Arithmetic runs on the host's own x87 (`native`); stack, tags, condition codes and what exceptions do are ours. A handler checks for
//! pending exceptions, loads memory operands, computes, stores, and only then changes registers, so that a page fault leaves nothing
//! half done.
//!
//! # Why hosts of all makers give the same
//! Nothing of the state passes through the host but operands and results, in the 80-bit format that FLD and FSTP of ten bytes keep as it
//! is. The environment (FIP, FDP, FOP, the selectors, tags, TOP) is never the host's: makers keep it differently. It is that of the
//! processor in `cpuid`: FOP and FDP belong to the last instruction with an unmasked exception, selectors are zero (Intel SDM volume
//! 1, sections 8.1.8 and 8.1.9). Of the status word exceptions and condition codes are taken over where they are defined (table 8-1);
//! what is not defined stays as it was.
//!
//! | What the host computes | Why it is the same |
//! | --- | --- |
//! | FADD, FSUB, FMUL, FDIV, FSQRT, FRNDINT, FSCALE, FXTRACT and their kin; conversions by loads and stores; comparisons | results, flags and C1 (the direction of rounding) are prescribed, denormals, pseudo-denormals and unsupported encodings included (SDM volume 1, sections 4.8, 4.9, 8.2.2 and 8.5; AMD APM volume 1, sections 6.3 and 6.8) |
//! | which of two NaNs prevails | not left to the host (`nan`): AMD's manual does not say for two that differ in their signs only |
//! | the reserved precision control | counts as 64 bits (`native`): SDM volume 1, table 8-2 |
//! | FPREM and FPREM1 | exact. A reduction of exponents D that differ by 64 or more is partial, by 32 + D mod 32: Intel's manual allows any number from 32 to 63 and its processors take this one, which is AMD's (APM volume 5, FPREM) |
//! | F2XM1, FYL2X, FYL2XP1, FPATAN, FSIN, FCOS, FSINCOS, FPTAN | it is not: part of [`float_signature`](crate::float_signature) |
//!
//! Constants (`constant`), integers, FBLD (of invalid digits too), FXAM, FABS, FCHS, FXCH and FCMOV do without the host. The signature also
//! covers everything in this table with operands of every kind, so that a processor which does not follow its manual is found out.

mod arithmetic;
mod compare;
mod constant;
mod control;
mod environment;
mod nan;
mod native;
mod operation;
mod save;
mod signature;
#[cfg(test)]
mod tests;
mod transcendental;
mod transfer;

use iced_x86::{Instruction, OpKind, Register};

use crate::op::{Handler, Op, Site, slot};

pub(crate) use signature::sign;

/// The handler of an instruction of this family, with `op`'s operands filled in: `dst` is the number of the stack register other than
/// ST(0), if there is one; `third` tells whether there is a memory operand.
pub(crate) fn lower(instruction: &Instruction, _site: Site, op: &mut Op) -> Option<Handler> {
    let registers = (0..instruction.op_count()).map(|operand| instruction.op_register(operand));
    op.dst = registers.filter(|register| is_stack(*register)).map(slot).max().unwrap_or(0);
    op.third = if instruction.op0_kind() == OpKind::Memory { operation::MEMORY } else { 0 };
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
