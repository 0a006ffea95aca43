//! Where translated code finds what is in [`Cpu`], whose address RBX holds.

use crate::core::Cpu;
use crate::translate::asm::{Operand, RBX};
use crate::unit::{Segment, System};

/// The memory operand for a field of [`Cpu`].
macro_rules! field {
    ($($path:tt)+) => {
        $crate::translate::field::at(::std::mem::offset_of!($crate::core::Cpu, $($path)+))
    };
}
pub(super) use field;

pub(super) fn at(offset: usize) -> Operand {
    Operand::Memory(RBX, offset as i32)
}

/// A general register of the guest's in [`Cpu`].
pub(super) fn home(number: u8) -> Operand {
    at(std::mem::offset_of!(Cpu, gpr) + 8 * usize::from(number))
}

/// Where a segment's base is, by the segment's number.
pub(super) fn segment_base(number: u8) -> Operand {
    at(std::mem::offset_of!(Cpu, system)
        + std::mem::offset_of!(System, segments)
        + usize::from(number) * size_of::<Segment>()
        + std::mem::offset_of!(Segment, base))
}
