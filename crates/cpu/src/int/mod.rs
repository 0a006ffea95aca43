//! Integer instructions.

use iced_x86::Instruction;

use crate::decode::Site;
use crate::op::{Handler, Op};

/// The handler of an instruction of this family, with `op`'s operands filled in.
pub(crate) fn lower(_instruction: &Instruction, _site: Site, _op: &mut Op) -> Option<Handler> {
    None
}
