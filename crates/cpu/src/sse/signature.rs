//! The SSE part of [`float_signature`](crate::float_signature).

use std::arch::x86_64::__m128i;

use super::native::*;
use super::vector::{bits, vector};
use crate::digest::Digest;

/// All exceptions masked: every rounding, denormals as zeros, results flushed to zero, and both.
const CONTROLS: [u32; 7] = [0x1f80, 0x3f80, 0x5f80, 0x7f80, 0x1fc0, 0x9f80, 0x9fc0];

/// Zeros, ordinary numbers, the ends of the ranges of numbers and of integers, denormals, infinities, quiet and signaling NaNs.
const SINGLES: [u32; 16] = [
    0,
    1 << 31,
    0x3f80_0000,
    0xbfb5_04f3,
    0x4b7f_ffff,
    0x4f00_0000,
    0x7f7f_ffff,
    0x0080_0000,
    0x8080_0001,
    1,
    0x807f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0001,
    0xff80_0001,
    0x3fff_ffff,
];
const DOUBLES: [u64; 16] = [
    0,
    1 << 63,
    0x3ff0_0000_0000_0000,
    0xbff6_a09e_667f_3bcd,
    0x41df_ffff_ffe0_0000,
    0x43e0_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x8010_0000_0000_0001,
    1,
    0x800f_ffff_ffff_ffff,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0001,
    0xfff0_0000_0000_0001,
    0x380f_ffff_ffff_ffff,
];

/// Adds result and status flags of an operation on vectors.
fn add<O>(digest: &mut Digest, control: u32, left: __m128i, right: __m128i)
where
    O: Operation<Left = __m128i, Right = __m128i, Output = __m128i>,
{
    let mut mxcsr = control;
    let result = O::run::<true>(&mut mxcsr, left, right);
    digest.add(&bits(result).to_le_bytes());
    digest.add(&mxcsr.to_le_bytes());
}

macro_rules! add_all {
    ($digest:ident, $control:ident, $left:ident, $right:ident: $($operation:ty),* $(,)?) => {
        $(add::<$operation>($digest, $control, $left, $right);)*
    };
}

/// One of these an element, so that a rotation of the second operand pairs each with each.
pub(crate) fn sign(digest: &mut Digest) {
    for control in CONTROLS {
        for rotation in 0..16 {
            for first in (0..16).step_by(4) {
                let pick =
                    |from: usize| (0..4).fold(0, |all, n| all | u128::from(SINGLES[(from + n) % 16]) << (32 * n));
                sign_singles(digest, control, vector(pick(first)), vector(pick(first + rotation)));
            }
            for first in (0..16).step_by(2) {
                let pick =
                    |from: usize| (0..2).fold(0, |all, n| all | u128::from(DOUBLES[(from + n) % 16]) << (64 * n));
                sign_doubles(digest, control, vector(pick(first)), vector(pick(first + rotation)));
            }
        }
    }
}

fn sign_singles(digest: &mut Digest, control: u32, left: __m128i, right: __m128i) {
    add_all!(
        digest, control, left, right: AddPs, SubPs, MulPs, DivPs, AddSubPs, MinPs, MaxPs, SqrtPs, PsToPd, PsToDq,
        PsToDqTruncated, DqToPs, CmpPs<0>, CmpPs<1>, CmpPs<2>, CmpPs<3>, RoundPs<4>, RoundPs<12>,
    );
    let mut mxcsr = control;
    let results = [
        ComiSs::run::<true>(&mut mxcsr, left, right),
        UcomiSs::run::<true>(&mut mxcsr, left, right),
        SsToI64::run::<true>(&mut mxcsr, (), right),
        SsToI64Truncated::run::<true>(&mut mxcsr, (), right),
    ];
    digest.add(results.map(u64::to_le_bytes).as_flattened());
    digest.add(&mxcsr.to_le_bytes());
}

fn sign_doubles(digest: &mut Digest, control: u32, left: __m128i, right: __m128i) {
    add_all!(
        digest, control, left, right: AddPd, SubPd, MulPd, DivPd, AddSubPd, MinPd, MaxPd, SqrtPd, PdToPs, PdToDq,
        PdToDqTruncated, DqToPd, CmpPd<0>, CmpPd<1>, CmpPd<2>, CmpPd<3>, RoundPd<4>, RoundPd<12>,
    );
    let mut mxcsr = control;
    let results = [
        ComiSd::run::<true>(&mut mxcsr, left, right),
        UcomiSd::run::<true>(&mut mxcsr, left, right),
        SdToI64::run::<true>(&mut mxcsr, (), right),
        SdToI64Truncated::run::<true>(&mut mxcsr, (), right),
    ];
    digest.add(results.map(u64::to_le_bytes).as_flattened());
    digest.add(&mxcsr.to_le_bytes());
}
