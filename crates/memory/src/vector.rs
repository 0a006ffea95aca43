//! 128-bit vectors as scalars: one access where a `u128` would often be two, so that a vector that was stored and is loaded again
//! can be forwarded from the store buffer.

#![allow(unsafe_code)]

use std::arch::x86_64::__m128i;

use crate::ram::{Scalar, sealed};

impl sealed::Sealed for __m128i {}

impl Scalar for __m128i {
    #[inline(always)]
    fn to_u128(self) -> u128 {
        // SAFETY: both types are 16 bytes of plain data, every bit pattern of either is valid.
        unsafe { std::mem::transmute(self) }
    }

    #[inline(always)]
    fn from_u128(value: u128) -> Self {
        // SAFETY: as above.
        unsafe { std::mem::transmute(value) }
    }
}
