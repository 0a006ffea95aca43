//! Which of two NaN operands a result is.

use super::native::Computed;
use crate::unit::x87::Register80;

/// The bit that tells a quiet NaN from a signaling one.
const QUIET: u64 = 1 << 62;

impl Computed {
    /// The result of an operation on these operands: when both are NaNs, the quiet one, else the one with the larger significand, made
    /// quiet (Intel SDM volume 1, table 4-7; AMD APM volume 1, table 6-7). Of two that differ in their signs only the positive one:
    /// AMD's manual leaves that undefined, and so it is not left to the host.
    #[inline]
    pub(super) fn of_operands(self, left: Register80, right: Register80) -> Self {
        if self.value.is_nan() && left.is_supported_nan() && right.is_supported_nan() {
            return Self { value: prevailing(left, right), ..self };
        }
        self
    }
}

fn prevailing(left: Register80, right: Register80) -> Register80 {
    let rank = |nan: Register80| (nan.significand & QUIET != 0, nan.significand, !nan.is_negative());
    let chosen = if rank(left) >= rank(right) { left } else { right };
    Register80 { significand: chosen.significand | QUIET, ..chosen }
}

impl Register80 {
    /// Whether this is a NaN other than a pseudo-NaN, which is an invalid operand.
    fn is_supported_nan(self) -> bool {
        self.is_nan() && self.significand >> 63 == 1
    }

    /// The value of a single, if that is a NaN; else zero.
    pub(super) fn nan_of_single(bits: u32) -> Self {
        let fraction = u64::from(bits) << 40;
        Self::nan_of(bits >> 31 == 1, bits >> 23 & 0xff == 0xff, fraction)
    }

    /// The value of a double, if that is a NaN; else zero.
    pub(super) fn nan_of_double(bits: u64) -> Self {
        Self::nan_of(bits >> 63 == 1, bits >> 52 & 0x7ff == 0x7ff, bits << 11)
    }

    /// `fraction` is where the significand's is, with anything in the integer bit.
    fn nan_of(negative: bool, exponent_ones: bool, fraction: u64) -> Self {
        if !exponent_ones || fraction << 1 == 0 {
            return Self::default();
        }
        Self { significand: fraction | 1 << 63, sign_exponent: u16::from(negative) << 15 | 0x7fff }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn nan(negative: bool, significand: u64) -> Register80 {
        Register80 { significand, sign_exponent: (negative as u16) << 15 | 0x7fff }
    }

    #[test]
    fn the_quiet_one_then_the_larger_then_the_positive_one_prevails() {
        let (small, large) = (nan(false, 0xc000_0000_0000_0001), nan(true, 0xe000_0000_0000_0000));
        let (signaling, signaling_large) = (nan(true, 0x8000_0000_0000_0001), nan(false, 0xa000_0000_0000_0000));
        let quieted = |value: Register80| Register80 { significand: value.significand | QUIET, ..value };
        for (one, other, wanted) in [
            (small, large, large),
            (small, signaling_large, small),
            (signaling, signaling_large, quieted(signaling_large)),
            (small, nan(true, small.significand), small),
            (signaling, nan(false, signaling.significand), nan(false, 0xc000_0000_0000_0001)),
        ] {
            assert_eq!(prevailing(one, other), wanted);
            assert_eq!(prevailing(other, one), wanted);
        }
    }

    #[test]
    fn other_results_stay_as_the_host_computed_them() {
        let one = Register80 { significand: 1 << 63, sign_exponent: 16383 };
        let pseudo = nan(false, 1 << 62 | 1);
        let quiet = nan(false, 0xc000_0000_0000_0001);
        let computed = Computed { value: Register80::INDEFINITE, status: 1 };
        assert_eq!(computed.of_operands(one, quiet).value, Register80::INDEFINITE);
        assert_eq!(computed.of_operands(pseudo, quiet).value, Register80::INDEFINITE);
    }

    #[test]
    fn nans_keep_sign_and_fraction_when_they_are_widened() {
        assert_eq!(Register80::nan_of_single(0xffc0_0001), nan(true, 0xc000_0100_0000_0000));
        assert_eq!(Register80::nan_of_single(0x7f80_0001), nan(false, 0x8000_0100_0000_0000));
        assert_eq!(Register80::nan_of_double(0xfff8_0000_0000_0001), nan(true, 0xc000_0000_0000_0800));
        for number in [0x7f80_0000, 0x3f80_0000, 0] {
            assert_eq!(Register80::nan_of_single(number), Register80::default());
        }
        assert_eq!(Register80::nan_of_double(0x7ff0_0000_0000_0000), Register80::default());
    }
}
