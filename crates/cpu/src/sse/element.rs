//! What an instruction raises that overflows or underflows while the guest does not mask that: the flags then differ from the
//! masked response, which is what the host runs. They are found element by element.

#![allow(unsafe_code)]

use std::arch::asm;

use super::exception::{OVERFLOW, PRECISION, ROUNDING, ROUNDING_SHIFT, STATUS, UNDERFLOW};
use super::native::*;
use super::vector::{from_low, low};

/// The x87 status word after an operation on two doubles under a control word.
macro_rules! x87_status {
    ($instruction:literal, $control:expr, $left:expr, $right:expr) => {{
        let (control, left, right): (u16, f64, f64) = ($control, $left, $right);
        let mut host_control = 0u16;
        let status: u16;
        // SAFETY: all pointers are to live locals; the stack is left as empty as it was found and the host's control word
        // restored; all exceptions are masked, and those of before cleared, so that nothing traps.
        unsafe {
            asm!(
                "fnstcw [{host}]", "fnclex", "fldcw [{control}]", "fld qword ptr [{left}]",
                concat!($instruction, " qword ptr [{right}]"), "fstp st(0)", "fnstsw ax", "fnclex", "fldcw [{host}]",
                host = in(reg) &mut host_control, control = in(reg) &control, left = in(reg) &left, right = in(reg) &right,
                out("ax") status, out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _, out("st(4)") _,
                out("st(5)") _, out("st(6)") _, out("st(7)") _, options(nostack),
            );
        }
        status
    }};
}

/// How an element of a result is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Calculation {
    Add,
    Subtract,
    Multiply,
    Divide,
    /// A double of the left operand becomes a single.
    Narrow,
}

/// One element of a result that may overflow or underflow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element {
    calculation: Calculation,
    /// Whether the result is a single.
    single: bool,
    left: u64,
    right: u64,
}

/// The elements of a result; an instruction that can neither overflow nor underflow has none.
pub(super) type Elements = [Option<Element>; 4];

pub(super) fn none(_left: u128, _right: u128) -> Elements {
    [None; 4]
}

pub(super) fn single(calculation: Calculation) -> impl Fn(u128, u128) -> Elements {
    move |left, right| [Some(Element::single(calculation, left, right)), None, None, None]
}

pub(super) fn double(calculation: Calculation) -> impl Fn(u128, u128) -> Elements {
    move |left, right| [Some(Element::double(calculation, left, right)), None, None, None]
}

pub(super) fn singles(calculation: Calculation) -> impl Fn(u128, u128) -> Elements {
    move |left, right| std::array::from_fn(|n| Some(Element::single(calculation, left >> (n * 32), right >> (n * 32))))
}

pub(super) fn doubles(calculation: Calculation) -> impl Fn(u128, u128) -> Elements {
    move |left, right| {
        let element = |n| Some(Element::double(calculation, left >> (n * 64), right >> (n * 64)));
        [element(0), element(1), None, None]
    }
}

/// ADDSUBPS.
pub(super) fn alternating_singles(left: u128, right: u128) -> Elements {
    let (differences, sums) = (singles(Calculation::Subtract)(left, right), singles(Calculation::Add)(left, right));
    [differences[0], sums[1], differences[2], sums[3]]
}

/// ADDSUBPD.
pub(super) fn alternating_doubles(left: u128, right: u128) -> Elements {
    [doubles(Calculation::Subtract)(left, right)[0], doubles(Calculation::Add)(left, right)[1], None, None]
}

/// CVTSD2SS.
pub(super) fn narrow(_left: u128, right: u128) -> Elements {
    [Some(Element::narrow(right)), None, None, None]
}

/// CVTPD2PS.
pub(super) fn narrow_both(_left: u128, right: u128) -> Elements {
    [Some(Element::narrow(right)), Some(Element::narrow(right >> 64)), None, None]
}

impl Element {
    fn single(calculation: Calculation, left: u128, right: u128) -> Self {
        Self { calculation, single: true, left: (left as u32).into(), right: (right as u32).into() }
    }

    fn double(calculation: Calculation, left: u128, right: u128) -> Self {
        Self { calculation, single: false, left: left as u64, right: right as u64 }
    }

    fn narrow(value: u128) -> Self {
        Self { calculation: Calculation::Narrow, single: true, left: value as u64, right: 0 }
    }

    /// Status flags of this element under control bits with all exceptions masked, when those in `unmasked` are not.
    pub(super) fn status(self, control: u32, unmasked: u32) -> u32 {
        let mut mxcsr = control;
        let (left, right) = (from_low(self.left), from_low(self.right));
        let result = match (self.calculation, self.single) {
            (Calculation::Add, true) => AddSs::run::<true>(&mut mxcsr, left, right),
            (Calculation::Add, false) => AddSd::run::<true>(&mut mxcsr, left, right),
            (Calculation::Subtract, true) => SubSs::run::<true>(&mut mxcsr, left, right),
            (Calculation::Subtract, false) => SubSd::run::<true>(&mut mxcsr, left, right),
            (Calculation::Multiply, true) => MulSs::run::<true>(&mut mxcsr, left, right),
            (Calculation::Multiply, false) => MulSd::run::<true>(&mut mxcsr, left, right),
            (Calculation::Divide, true) => DivSs::run::<true>(&mut mxcsr, left, right),
            (Calculation::Divide, false) => DivSd::run::<true>(&mut mxcsr, left, right),
            (Calculation::Narrow, _) => SdToSs::run::<true>(&mut mxcsr, left, left),
        };
        let mut raised = mxcsr & STATUS;
        // Masked, a tiny result raises underflow only when it is inexact as well.
        let result = low(result);
        let tiny = if self.single {
            f32::from_bits(result as u32).is_subnormal()
        } else {
            f64::from_bits(result).is_subnormal()
        };
        if tiny {
            raised |= unmasked & UNDERFLOW;
        }
        // Unmasked, the result would be rounded as if its exponent had no bounds: inexact only if bits of the significand get lost.
        if raised & unmasked & (OVERFLOW | UNDERFLOW) != 0 {
            raised &= !PRECISION;
            if self.is_rounded((control & ROUNDING) >> ROUNDING_SHIFT) {
                raised |= PRECISION;
            }
        }
        raised
    }

    /// Whether the result, with an unbounded exponent, does not fit the significand. The x87 unit tells: its exponents are wide
    /// enough for all that singles and doubles give, and it rounds significands to either format.
    fn is_rounded(self, rounding: u32) -> bool {
        let widened =
            |bits: u64| if self.single { f64::from(f32::from_bits(bits as u32)) } else { f64::from_bits(bits) };
        let (left, right) = match self.calculation {
            Calculation::Narrow => (f64::from_bits(self.left), 1.0),
            _ => (widened(self.left), widened(self.right)),
        };
        // Exceptions masked; precision in bits 8 and 9, rounding in bits 10 and 11.
        let precision = if self.single { 0 } else { 2 };
        let control = 0x3f | precision << 8 | (rounding as u16) << 10;
        let status = match self.calculation {
            Calculation::Add => x87_status!("fadd", control, left, right),
            Calculation::Subtract => x87_status!("fsub", control, left, right),
            Calculation::Multiply | Calculation::Narrow => x87_status!("fmul", control, left, right),
            Calculation::Divide => x87_status!("fdiv", control, left, right),
        };
        u32::from(status) & PRECISION != 0
    }
}
