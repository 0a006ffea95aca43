//! MMX and SSE to SSE4.2.

use iced_x86::Instruction;

use crate::decode::Site;
use crate::op::{Handler, Op};

/// The handler of an instruction of this family, with `op`'s operands filled in.
pub(crate) fn lower(_instruction: &Instruction, _site: Site, _op: &mut Op) -> Option<Handler> {
    None
}

/// XMM registers and MXCSR.
#[repr(C)]
#[derive(Clone, Debug)]
pub(crate) struct Sse {
    pub xmm: [u128; 16],
    pub mxcsr: u32,
}

impl Sse {
    /// As after reset.
    pub(crate) fn new() -> Self {
        Self { xmm: [0; 16], mxcsr: 0x1f80 }
    }
}
