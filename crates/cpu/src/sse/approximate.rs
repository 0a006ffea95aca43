//! RCPPS and RSQRTPS: approximations with a relative error of at most 1.5 * 2^-12 (Intel SDM volume 2).
//!
//! The architecture leaves the rest open and processors differ, so these are computed here in integers: the exact value
//! rounded to 13 significant bits, to nearest, which errs by at most 2^-13. MXCSR neither matters nor changes; denormal operands count as
//! zero, and results below the normal range are flushed to zero.

const SIGN: u32 = 1 << 31;
const INFINITY: u32 = 0x7f80_0000;
const QUIET: u32 = 1 << 22;
/// The "real indefinite" quiet NaN.
const INDEFINITE: u32 = 0xffc0_0000;
const FRACTION: u32 = 0x007f_ffff;
const FRACTION_BITS: u32 = 23;
const EXPONENT_BIAS: i32 = 127;
/// Fraction bits of a result.
const RESULT_BITS: u32 = 12;

/// 1 / x, as single-precision bits.
pub(super) fn reciprocal(bits: u32) -> u32 {
    let sign = bits & SIGN;
    let magnitude = bits & !SIGN;
    match magnitude {
        0..=FRACTION => sign | INFINITY,
        INFINITY => sign,
        0x7f80_0001.. => bits | QUIET,
        _ => {
            // x = significand * 2^(exponent - 23), so 1/x = (2^46 / significand) * 2^(-exponent - 23).
            let significand = u64::from(magnitude & FRACTION | 1 << FRACTION_BITS);
            let exponent = (magnitude >> FRACTION_BITS) as i32 - EXPONENT_BIAS;
            sign | assemble((1 << 62) / significand, -exponent - 39)
        }
    }
}

/// 1 / sqrt(x), as single-precision bits.
pub(super) fn reciprocal_root(bits: u32) -> u32 {
    let sign = bits & SIGN;
    let magnitude = bits & !SIGN;
    match magnitude {
        0..=FRACTION => sign | INFINITY,
        0x7f80_0001.. => bits | QUIET,
        _ if sign != 0 => INDEFINITE,
        INFINITY => 0,
        _ => {
            // x = significand * 2^(2 * half - 23), so 1/sqrt(x) = sqrt(2^63 / significand) * 2^(-half - 20).
            let significand = u64::from(magnitude & FRACTION | 1 << FRACTION_BITS);
            let exponent = (magnitude >> FRACTION_BITS) as i32 - EXPONENT_BIAS;
            let half = exponent.div_euclid(2);
            let significand = significand << exponent.rem_euclid(2);
            assemble(((1 << 63) / significand).isqrt(), -half - 20)
        }
    }
}

/// The positive single-precision number nearest to `value * 2^exponent` that has 13 significant bits.
fn assemble(value: u64, exponent: i32) -> u32 {
    // One more bit than is kept, then round half up.
    let shift = value.ilog2() - RESULT_BITS - 1;
    let rounded = ((value >> shift) + 1) >> 1;
    // Rounding up to 2^13 carries into the exponent by itself when the fraction is added.
    let biased = exponent + (shift + 1 + RESULT_BITS) as i32 + EXPONENT_BIAS;
    let fraction = (rounded as u32 - (1 << RESULT_BITS)) << (FRACTION_BITS - RESULT_BITS);
    if biased <= 0 && fraction >> FRACTION_BITS == 0 || biased < 0 {
        return 0;
    }
    ((biased as u32) << FRACTION_BITS) + fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERROR_MAX: f64 = 1.5 / 4096.0;

    /// Every 997th bit pattern, and those around the edges of formats.
    fn samples() -> impl Iterator<Item = u32> {
        let edges = [0, 0x0080_0000, 0x3f80_0000, 0x4000_0000, 0x7e80_0000, 0x7f00_0000, 0x7f80_0000, 0x8000_0000];
        let around =
            edges.into_iter().flat_map(|edge: u32| (0..4096).map(move |n| edge.wrapping_sub(2048).wrapping_add(n)));
        (0..=u32::MAX).step_by(997).chain(around).flat_map(|bits| [bits, bits | SIGN])
    }

    #[test]
    fn errors_stay_within_the_architecture() {
        for bits in samples().filter(|bits| f32::from_bits(*bits).is_normal()) {
            let x = f64::from(f32::from_bits(bits));
            let found = f64::from(f32::from_bits(reciprocal(bits)));
            let wanted = 1.0 / x;
            if wanted.abs() < f64::from(f32::MIN_POSITIVE) * (1.0 - ERROR_MAX) {
                assert_eq!(found.to_bits(), f64::copysign(0.0, x).to_bits(), "{x:e}");
            } else if found != 0.0 || wanted.abs() > f64::from(f32::MIN_POSITIVE) {
                assert!((found / wanted - 1.0).abs() <= ERROR_MAX, "1/{x:e} = {found:e}");
            }
            if x > 0.0 {
                let found = f64::from(f32::from_bits(reciprocal_root(bits)));
                assert!((found * x.sqrt() - 1.0).abs() <= ERROR_MAX, "1/sqrt({x:e}) = {found:e}");
            }
        }
    }

    #[test]
    fn special_operands_give_what_the_manual_says() {
        let denormal = 0x0000_1234;
        assert_eq!(
            [0, SIGN, denormal, SIGN | denormal].map(reciprocal),
            [INFINITY, SIGN | INFINITY, INFINITY, SIGN | INFINITY]
        );
        assert_eq!(
            [0, SIGN, denormal, SIGN | denormal].map(reciprocal_root),
            [INFINITY, SIGN | INFINITY, INFINITY, SIGN | INFINITY]
        );
        assert_eq!([INFINITY, SIGN | INFINITY].map(reciprocal), [0, SIGN]);
        assert_eq!([INFINITY, SIGN | INFINITY, 0xbf80_0000].map(reciprocal_root), [0, INDEFINITE, INDEFINITE]);
        let (signaling, quiet) = (0xff80_0005, 0xffc0_0005);
        assert_eq!([reciprocal(signaling), reciprocal_root(signaling), reciprocal(quiet)], [quiet; 3]);
        assert_eq!([reciprocal(0x3f80_0000), reciprocal_root(0x3f80_0000)], [0x3f80_0000; 2]);
    }
}
