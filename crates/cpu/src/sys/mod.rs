//! System instructions and state.

pub(crate) mod control;
mod msrs;
mod segment;
mod system;

use iced_x86::Instruction;

use crate::decode::Site;
use crate::op::{Handler, Op};

pub(crate) use msrs::Msrs;
pub(crate) use segment::{Segment, attribute};
pub(crate) use system::System;

/// The handler of an instruction of this family, with `op`'s operands filled in.
pub(crate) fn lower(_instruction: &Instruction, _site: Site, _op: &mut Op) -> Option<Handler> {
    None
}

/// Whether a block ends with this instruction, though it is no control transfer: what it changes, the run loop caches.
pub(crate) fn ends_block(instruction: &Instruction) -> bool {
    use iced_x86::Mnemonic as M;
    matches!(
        instruction.mnemonic(),
        M::Sti | M::Popf | M::Popfd | M::Popfq | M::Hlt | M::Pause | M::Wrmsr | M::In | M::Out | M::Lmsw | M::Clts
    )
}
