//! FLD1, FLDL2T, FLDL2E, FLDPI, FLDLG2, FLDLN2, FLDZ: rounded as the control word says, from the exact numbers (Intel SDM volume 2,
//! FLD1; AMD APM volume 5).

use crate::unit::x87::{Register80, control};

/// A positive constant: its value rounded towards zero, and whether the nearest register value is the next one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Constant {
    truncated: Register80,
    nearest_is_next: bool,
    exact: bool,
}

pub(super) const ZERO: Constant = exact(0, 0);
pub(super) const ONE: Constant = exact(1 << 63, 16383);
pub(super) const LOG2_10: Constant = inexact(0xd49a_784b_cd1b_8afe, 16384, false);
pub(super) const LOG2_E: Constant = inexact(0xb8aa_3b29_5c17_f0bb, 16383, true);
pub(super) const PI: Constant = inexact(0xc90f_daa2_2168_c234, 16384, true);
pub(super) const LOG10_2: Constant = inexact(0x9a20_9a84_fbcf_f798, 16381, true);
pub(super) const LN_2: Constant = inexact(0xb172_17f7_d1cf_79ab, 16382, true);

const fn exact(significand: u64, sign_exponent: u16) -> Constant {
    Constant { truncated: Register80 { significand, sign_exponent }, nearest_is_next: false, exact: true }
}

const fn inexact(significand: u64, sign_exponent: u16, nearest_is_next: bool) -> Constant {
    Constant { truncated: Register80 { significand, sign_exponent }, nearest_is_next, exact: false }
}

impl Constant {
    /// The value under a control word; the precision control does not matter.
    pub(super) fn rounded(self, control: u16) -> Register80 {
        let next = match control >> control::ROUNDING_SHIFT & 3 {
            0 => self.nearest_is_next,
            2 => !self.exact,
            _ => false,
        };
        let significand = self.truncated.significand + u64::from(next);
        Register80 { significand, ..self.truncated }
    }
}
