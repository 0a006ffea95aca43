//! System instructions and state.

use iced_x86::Instruction;

use crate::decode::Site;
use crate::op::{Handler, Op};

/// The handler of an instruction of this family, with `op`'s operands filled in.
pub(crate) fn lower(_instruction: &Instruction, _site: Site, _op: &mut Op) -> Option<Handler> {
    None
}

/// A segment register with its cached descriptor.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    pub selector: u16,
    /// Descriptor bits 40 to 55: type, S, DPL, P (bits 0 to 7), AVL, L, D/B, G (bits 12 to 15).
    pub attributes: u16,
    pub limit: u32,
    pub base: u64,
}

/// Segments, control and model-specific registers, interrupt state.
#[repr(C)]
pub(crate) struct System {
    /// ES, CS, SS, DS, FS, GS, then two unused so that a three-bit number is always in range.
    pub segments: [Segment; 8],
}

impl System {
    /// Base of segment `number` (ES 0 ... GS 5).
    #[inline(always)]
    pub(crate) fn segment_base(&self, number: u8) -> u64 {
        self.segments[usize::from(number & 7)].base
    }
}
