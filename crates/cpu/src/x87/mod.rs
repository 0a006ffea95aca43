//! x87.

mod unit;

use iced_x86::Instruction;

use crate::decode::Site;
use crate::op::{Handler, Op};

pub(crate) use unit::{Register80, X87};

/// The handler of an instruction of this family, with `op`'s operands filled in.
pub(crate) fn lower(_instruction: &Instruction, _site: Site, _op: &mut Op) -> Option<Handler> {
    None
}
