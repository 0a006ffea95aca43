//! Segment registers and descriptors.

use crate::state::SegmentState;

/// Numbers of segment registers, as instructions encode them.
pub(crate) mod number {
    pub const CS: usize = 1;
    pub const SS: usize = 2;
}

/// Descriptor bits 40 to 55, in [`Segment::attributes`].
pub(crate) mod attribute {
    pub const ACCESSED: u16 = 1 << 0;
    /// Code: readable. Data: writable.
    pub const READ_WRITE: u16 = 1 << 1;
    /// Code: conforming. Data: expands down.
    pub const CONFORMING: u16 = 1 << 2;
    pub const CODE: u16 = 1 << 3;
    /// Code or data, not a system descriptor.
    pub const SEGMENT: u16 = 1 << 4;
    pub const DPL_SHIFT: u32 = 5;
    pub const PRESENT: u16 = 1 << 7;
    /// Not a descriptor bit: the register holds no usable segment.
    pub const UNUSABLE: u16 = 1 << 8;
    pub const LONG: u16 = 1 << 13;
    /// D or B: 32-bit code or stack.
    pub const DEFAULT_32: u16 = 1 << 14;
    pub const GRANULARITY: u16 = 1 << 15;
    pub const DESCRIPTOR: u16 = 0xf0ff;
}

/// A segment register with its cached descriptor.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    pub selector: u16,
    /// See [`attribute`].
    pub attributes: u16,
    /// In bytes.
    pub limit: u32,
    pub base: u64,
}

impl Segment {
    pub(crate) fn from_state(state: &SegmentState) -> Self {
        let unusable = if state.unusable { attribute::UNUSABLE } else { 0 };
        Self {
            selector: state.selector,
            attributes: state.attributes & attribute::DESCRIPTOR | unusable,
            limit: state.limit,
            base: state.base,
        }
    }

    /// A register that holds no usable segment holds none that is present either, as KVM has it.
    pub(crate) fn to_state(self) -> SegmentState {
        let unusable = self.attributes & attribute::UNUSABLE != 0;
        let absent = if unusable { attribute::PRESENT } else { 0 };
        SegmentState {
            selector: self.selector,
            base: self.base,
            limit: self.limit,
            attributes: self.attributes & attribute::DESCRIPTOR & !absent,
            unusable,
        }
    }

    /// What a descriptor's eight bytes describe.
    pub(crate) fn from_descriptor(selector: u16, descriptor: u64) -> Self {
        let attributes = (descriptor >> 40) as u16 & attribute::DESCRIPTOR;
        let limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
        Self {
            selector,
            attributes,
            limit: if attributes & attribute::GRANULARITY != 0 { limit << 12 | 0xfff } else { limit },
            base: descriptor >> 16 & 0xff_ffff | descriptor >> 32 & 0xff00_0000,
        }
    }

    /// A null selector.
    pub(crate) fn null(selector: u16) -> Self {
        Self { selector, attributes: attribute::UNUSABLE, ..Self::default() }
    }

    /// A segment as real mode loads it: base from the selector, the rest kept.
    pub(crate) fn real(self, selector: u16) -> Self {
        Self { selector, base: u64::from(selector) << 4, ..self }
    }

    pub(crate) fn has(self, bits: u16) -> bool {
        self.attributes & bits == bits
    }

    pub(crate) fn dpl(self) -> u8 {
        (self.attributes >> attribute::DPL_SHIFT) as u8 & 3
    }

    /// The type of a system descriptor, with S as bit 4.
    pub(crate) fn kind(self) -> u16 {
        self.attributes & 0x1f
    }
}
