//! System instructions and state.

mod clock;
mod descriptor;
mod event;
mod far;
mod misc;
mod msr;
mod operand;
mod ports;
mod registers;
mod selectors;
mod syscall;
mod tables;
mod task;

use iced_x86::Instruction;

pub use clock::tell_stopped;

use crate::op::{Handler, Op, Site};

/// The handler of an instruction of this family, with `op`'s operands filled in.
pub(crate) fn lower(instruction: &Instruction, site: Site, op: &mut Op) -> Option<Handler> {
    misc::lower(instruction, site, op)
        .or_else(|| far::lower(instruction, site, op))
        .or_else(|| syscall::lower(instruction))
        .or_else(|| selectors::lower(instruction, site, op))
        .or_else(|| registers::lower(instruction, site, op))
        .or_else(|| msr::lower(instruction))
        .or_else(|| ports::lower(instruction, op))
        .or_else(|| tables::lower(instruction, site, op))
}

/// Whether a block ends with this instruction, though it is no control transfer: what it changes, the run loop caches.
pub(crate) fn ends_block(instruction: &Instruction) -> bool {
    use iced_x86::Mnemonic as M;
    matches!(
        instruction.mnemonic(),
        M::Sti | M::Popf | M::Popfd | M::Popfq | M::Hlt | M::Pause | M::Wrmsr | M::In | M::Out | M::Lmsw | M::Clts
    )
}
