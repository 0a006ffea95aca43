//! Lazy arithmetic flags.
//!
//! Instead of the six flags an instruction stores its result and a word of auxiliary bits, from which each flag is
//! derived when somebody asks. The scheme is that of Stanislav Shwartsman and Darek Mihocka, "Virtualization Without Direct
//! Execution" (2008): no case distinction by operation or width is left when a flag is read.

use crate::width::Width;

/// RFLAGS bits.
pub(crate) mod bit {
    pub const CF: u64 = 1 << 0;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// Bit 1 always reads as one.
    pub const FIXED: u64 = 1 << 1;
    /// The six flags that [`super::LazyFlags`] holds.
    pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;
}

// CF, AF and OF are where LAHF and SETO leave them in AX, for translated code.
const AUX_OVERFLOW: u64 = 1 << 0;
const AUX_CARRY: u64 = 1 << 8;
const AUX_ADJUST: u64 = 1 << 12;
const AUX_SIGN_DELTA: u64 = 1 << 16;
const AUX_PARITY_SHIFT: u32 = 24;

/// CF, PF, AF, ZF, SF and OF, derived on demand.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct LazyFlags {
    /// The result, sign-extended to 64 bits: ZF is "is zero"; SF its top bit, PF its low byte, both corrected by `aux`.
    pub(crate) result: u64,
    /// Bit 0: OF. Bit 8: CF. Bit 12: AF. Bit 16: xored into SF. Bits 31..24: xored into the low byte for PF. The others mean nothing.
    pub(crate) aux: u64,
}

impl LazyFlags {
    /// From RFLAGS bits.
    pub(crate) fn from_bits(bits: u64) -> Self {
        let mut flags = Self { result: 0, aux: 0 };
        flags.set_bits(bits);
        flags
    }

    /// Sets all six from RFLAGS bits.
    pub(crate) fn set_bits(&mut self, bits: u64) {
        let carry = bits & bit::CF != 0;
        let overflow = bits & bit::OF != 0;
        self.result = if bits & bit::ZF != 0 { 0 } else { 1 << 8 };
        self.aux = (u64::from(bits & bit::SF != 0) * AUX_SIGN_DELTA)
            | (u64::from(bits & bit::AF != 0) * AUX_ADJUST)
            | u64::from(bits & bit::PF == 0) << AUX_PARITY_SHIFT
            | (u64::from(overflow) * AUX_OVERFLOW)
            | (u64::from(carry) * AUX_CARRY);
    }

    /// All six as RFLAGS bits.
    pub(crate) fn bits(&self) -> u64 {
        (u64::from(self.cf()) * bit::CF)
            | (u64::from(self.pf()) * bit::PF)
            | (u64::from(self.af()) * bit::AF)
            | (u64::from(self.zf()) * bit::ZF)
            | (u64::from(self.sf()) * bit::SF)
            | (u64::from(self.of()) * bit::OF)
    }

    #[inline(always)]
    pub(crate) fn cf(&self) -> bool {
        self.aux & AUX_CARRY != 0
    }

    #[inline(always)]
    pub(crate) fn pf(&self) -> bool {
        ((self.result ^ (self.aux >> AUX_PARITY_SHIFT)) as u8).count_ones().is_multiple_of(2)
    }

    #[inline(always)]
    pub(crate) fn af(&self) -> bool {
        self.aux & AUX_ADJUST != 0
    }

    #[inline(always)]
    pub(crate) fn zf(&self) -> bool {
        self.result == 0
    }

    #[inline(always)]
    pub(crate) fn sf(&self) -> bool {
        (self.result >> 63) ^ (self.aux >> AUX_SIGN_DELTA.trailing_zeros() & 1) != 0
    }

    #[inline(always)]
    pub(crate) fn of(&self) -> bool {
        self.aux & AUX_OVERFLOW != 0
    }

    /// After AND, OR, XOR, TEST: CF = OF = AF = 0.
    #[inline(always)]
    pub(crate) fn set_logic<W: Width>(&mut self, result: W) {
        self.result = result.sign_extended();
        self.aux = 0;
    }

    /// After `result = left + right (+ carry)`.
    #[inline(always)]
    pub(crate) fn set_add<W: Width>(&mut self, left: W, right: W, result: W) {
        let (left, right, sum) = (left.to_u64(), right.to_u64(), result.to_u64());
        self.set_carries(result, (left & right) | ((left | right) & !sum));
    }

    /// After `result = left - right (- borrow)`, also for CMP and NEG (left = 0).
    #[inline(always)]
    pub(crate) fn set_sub<W: Width>(&mut self, left: W, right: W, result: W) {
        let (left, right, difference) = (left.to_u64(), right.to_u64(), result.to_u64());
        self.set_carries(result, (!left & right) | (!(left ^ right) & difference));
    }

    /// INC and DEC: as add or sub of one, but CF stays.
    #[inline(always)]
    pub(crate) fn set_inc<W: Width>(&mut self, before: W, result: W) {
        let carry = self.cf();
        self.set_add(before, W::from_u64(1), result);
        self.set_cf_keep_others(carry);
    }

    /// See [`LazyFlags::set_inc`].
    #[inline(always)]
    pub(crate) fn set_dec<W: Width>(&mut self, before: W, result: W) {
        let carry = self.cf();
        self.set_sub(before, W::from_u64(1), result);
        self.set_cf_keep_others(carry);
    }

    /// Result flags (ZF, SF, PF) from a value, with CF and OF given and AF = 0: shifts, rotates' kin, multiplications.
    #[inline(always)]
    pub(crate) fn set_result<W: Width>(&mut self, result: W, carry: bool, overflow: bool) {
        self.result = result.sign_extended();
        self.aux = (u64::from(carry) * AUX_CARRY) | (u64::from(overflow) * AUX_OVERFLOW);
    }

    /// Changes CF and OF only (rotates).
    #[inline(always)]
    pub(crate) fn set_cf_of(&mut self, carry: bool, overflow: bool) {
        self.aux = self.aux & !(AUX_CARRY | AUX_OVERFLOW)
            | (u64::from(carry) * AUX_CARRY)
            | (u64::from(overflow) * AUX_OVERFLOW);
    }

    /// Changes CF only (STC, CLC, CMC, BT).
    #[inline(always)]
    pub(crate) fn set_cf_keep_others(&mut self, carry: bool) {
        self.aux = self.aux & !AUX_CARRY | (u64::from(carry) * AUX_CARRY);
    }

    /// Changes ZF only, keeping the others (CMPXCHG8B/16B, LAR, VERR and the like).
    pub(crate) fn set_zf_keep_others(&mut self, zero: bool) {
        let bits = self.bits() & !bit::ZF | (u64::from(zero) * bit::ZF);
        self.set_bits(bits);
    }

    #[inline(always)]
    fn set_carries<W: Width>(&mut self, result: W, carries: u64) {
        self.result = result.sign_extended();
        // The carries out of the top bit, which is CF, and into it: OF is whether they differ.
        let top = carries >> (W::BITS - 2);
        self.aux = (top ^ top >> 1) & 1 | (top & 2) << 7 | (carries & 8) << 9;
    }

    /// A condition code as encoded in Jcc, SETcc and CMOVcc (Intel SDM volume 1, appendix B).
    #[inline(always)]
    pub(crate) fn condition<const CC: u8>(&self) -> bool {
        let holds = match CC >> 1 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() || self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() || self.sf() != self.of(),
        };
        holds != (CC & 1 == 1)
    }

    /// CF, ZF, SF and OF as a number from 0 to 15, computed without a branch.
    #[inline(always)]
    fn compared(&self) -> u32 {
        u32::from(self.cf()) | u32::from(self.zf()) << 1 | u32::from(self.sf()) << 2 | u32::from(self.of()) << 3
    }

    /// Whether a set of values of [`LazyFlags::compared`], one bit each, holds the present one.
    #[inline(always)]
    pub(crate) fn is_among(&self, values: u16) -> bool {
        values >> self.compared() & 1 == 1
    }

    /// The set for a condition code; 0 for those that look at PF.
    pub(crate) fn values_of_condition(code: u8) -> u16 {
        let holds = |value: u16| {
            let [cf, zf, sf, of] = [0, 1, 2, 3].map(|bit| value >> bit & 1 == 1);
            let positive = match code >> 1 {
                0 => of,
                1 => cf,
                2 => zf,
                3 => cf || zf,
                4 => sf,
                6 => sf != of,
                7 => zf || sf != of,
                _ => return false,
            };
            positive != (code & 1 == 1)
        };
        (0..16).filter(|&value| holds(value)).fold(0, |set, value| set | 1 << value)
    }

    /// The set of all values: an unconditional branch.
    pub(crate) const ALL_VALUES: u16 = u16::MAX;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_bits_survives() {
        for combination in 0..64u64 {
            let bits = [bit::CF, bit::PF, bit::AF, bit::ZF, bit::SF, bit::OF]
                .iter()
                .enumerate()
                .filter(|(index, _)| combination >> index & 1 == 1)
                .fold(0, |bits, (_, flag)| bits | flag);
            assert_eq!(LazyFlags::from_bits(bits).bits(), bits);
        }
    }

    #[test]
    fn sets_of_values_agree_with_conditions() {
        macro_rules! agree {
            ($($code:literal)*) => {
                for combination in 0..1 << 12 {
                    let flags = LazyFlags::from_bits(combination & bit::ARITHMETIC);
                    $(assert_eq!(
                        flags.is_among(LazyFlags::values_of_condition($code)),
                        flags.condition::<$code>() && $code / 2 != 5,
                        "{combination:#x} {}",
                        $code
                    );)*
                    assert!(flags.is_among(LazyFlags::ALL_VALUES));
                }
            };
        }
        agree!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    }

    #[test]
    fn eight_bit_sums_and_differences_match_a_plain_computation() {
        for left in 0..=255u8 {
            for right in 0..=255u8 {
                let mut flags = LazyFlags::from_bits(0);
                let (sum, carry) = left.overflowing_add(right);
                flags.set_add(left, right, sum);
                assert_eq!(flags.cf(), carry);
                assert_eq!(flags.of(), (left as i8).overflowing_add(right as i8).1);
                assert_eq!(flags.af(), (left & 15) + (right & 15) > 15);
                assert_eq!(flags.zf(), sum == 0);
                assert_eq!(flags.sf(), sum >= 128);
                assert_eq!(flags.pf(), sum.count_ones() % 2 == 0);
                let (difference, borrow) = left.overflowing_sub(right);
                flags.set_sub(left, right, difference);
                assert_eq!(flags.cf(), borrow);
                assert_eq!(flags.of(), (left as i8).overflowing_sub(right as i8).1);
                assert_eq!(flags.af(), (left & 15) < (right & 15));
            }
        }
    }
}
