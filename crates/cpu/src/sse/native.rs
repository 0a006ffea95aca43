//! Floating-point instructions executed by the host under the guest's MXCSR.
//!
//! The host's results are bit-exact, NaN payloads and status flags included, because the guest's instruction itself runs. The host's
//! own floating-point environment neither leaks in (MXCSR is loaded before) nor is disturbed: its control bits are restored in the
//! same asm block, or equal the guest's. All exceptions are masked while an operation runs; `exception` deals with those that
//! the guest does not mask.

#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::__m128i;

use super::element::Calculation::{Add, Divide, Multiply, Subtract};
use super::element::{
    self, Elements, alternating_doubles, alternating_singles, double, doubles, narrow, narrow_both, none, single,
    singles,
};
use super::vector::bits;

/// MXCSR's control bits as compiled code expects them: round to nearest, all exceptions masked, denormals supported.
pub(super) const HOST_CONTROL: u32 = 0x1f80;

static HOST_MXCSR: u32 = HOST_CONTROL;

/// A floating-point instruction.
pub(super) trait Operation {
    /// The destination before, where it is an operand.
    type Left: Copy;
    /// The source.
    type Right: Copy;
    /// The result.
    type Output;

    /// Executes the instruction under `mxcsr`, whose reserved bits are clear and exceptions masked, and adds the status flags
    /// that it raises. `RESTORE` may be false only when the control bits equal [`HOST_CONTROL`].
    fn run<const RESTORE: bool>(mxcsr: &mut u32, left: Self::Left, right: Self::Right) -> Self::Output;

    /// The elements of the result that may overflow or underflow.
    fn elements(_left: Self::Left, _right: Self::Right) -> Elements {
        element::none(0, 0)
    }
}

/// An asm block around one instruction: MXCSR loaded, the instruction, MXCSR stored, the host's restored.
///
/// LDMXCSR costs as much as several additions, STMXCSR next to nothing. So where the host's control bits are the guest's, MXCSR is
/// loaded only if it differs: mostly it still holds what the guest's last instruction left in it.
macro_rules! under_mxcsr {
    ($restore:ident, $mxcsr:ident, [$($instruction:expr),+], $($operands:tt)*) => {
        if $restore {
            // SAFETY: `mxcsr` points to a valid u32 whose reserved bits are clear and whose exceptions are masked (callers'
            // contract), so that neither LDMXCSR nor the instruction faults; the host's control bits are restored.
            unsafe {
                asm!(
                    "ldmxcsr [{mxcsr}]", $($instruction,)+ "stmxcsr [{mxcsr}]", "ldmxcsr [rip + {host}]",
                    mxcsr = in(reg) std::ptr::from_mut($mxcsr), host = sym HOST_MXCSR, $($operands)*, options(nostack),
                );
            }
        } else {
            let mut current = std::mem::MaybeUninit::<u32>::uninit();
            // SAFETY: as above; the control bits equal the host's, and status flags need not be preserved.
            unsafe {
                asm!(
                    "stmxcsr [{current}]", "mov {scratch:e}, [{current}]", "cmp {scratch:e}, [{mxcsr}]", "je 2f",
                    "ldmxcsr [{mxcsr}]", "2:", $($instruction,)+ "stmxcsr [{mxcsr}]",
                    current = in(reg) current.as_mut_ptr(), scratch = out(reg) _,
                    mxcsr = in(reg) std::ptr::from_mut($mxcsr), $($operands)*, options(nostack),
                );
            }
        }
    };
}

/// Instructions of two XMM registers, and how the elements of their results come about.
macro_rules! vector_operations {
    ($($name:ident = $instruction:literal, $elements:expr;)*) => {$(
        pub(super) struct $name;

        impl Operation for $name {
            type Left = __m128i;
            type Right = __m128i;
            type Output = __m128i;

            #[inline(always)]
            fn run<const RESTORE: bool>(mxcsr: &mut u32, left: __m128i, right: __m128i) -> __m128i {
                let mut result = left;
                under_mxcsr!(
                    RESTORE, mxcsr, [concat!($instruction, " {left}, {right}")],
                    left = inout(xmm_reg) result, right = in(xmm_reg) right
                );
                result
            }

            fn elements(left: __m128i, right: __m128i) -> Elements {
                ($elements)(bits(left), bits(right))
            }
        }
    )*};
}

/// Instructions of two XMM registers and an immediate.
macro_rules! immediate_operations {
    ($($name:ident = $instruction:literal;)*) => {$(
        pub(super) struct $name<const IMMEDIATE: u8>;

        impl<const IMMEDIATE: u8> Operation for $name<IMMEDIATE> {
            type Left = __m128i;
            type Right = __m128i;
            type Output = __m128i;

            #[inline(always)]
            fn run<const RESTORE: bool>(mxcsr: &mut u32, left: __m128i, right: __m128i) -> __m128i {
                let mut result = left;
                under_mxcsr!(
                    RESTORE, mxcsr, [concat!($instruction, " {left}, {right}, {immediate}")],
                    left = inout(xmm_reg) result, right = in(xmm_reg) right, immediate = const IMMEDIATE
                );
                result
            }
        }
    )*};
}

/// Conversions of a general register to a scalar.
macro_rules! from_general_operations {
    ($($name:ident = $instruction:literal;)*) => {$(
        pub(super) struct $name;

        impl Operation for $name {
            type Left = __m128i;
            type Right = u64;
            type Output = __m128i;

            #[inline(always)]
            fn run<const RESTORE: bool>(mxcsr: &mut u32, left: __m128i, right: u64) -> __m128i {
                let mut result = left;
                under_mxcsr!(
                    RESTORE, mxcsr, [$instruction], left = inout(xmm_reg) result, right = in(reg) right
                );
                result
            }
        }
    )*};
}

/// Conversions of a scalar to a general register, zero-extended.
macro_rules! to_general_operations {
    ($($name:ident = $instruction:literal;)*) => {$(
        pub(super) struct $name;

        impl Operation for $name {
            type Left = ();
            type Right = __m128i;
            type Output = u64;

            #[inline(always)]
            fn run<const RESTORE: bool>(mxcsr: &mut u32, _left: (), right: __m128i) -> u64 {
                let result;
                under_mxcsr!(
                    RESTORE, mxcsr, [$instruction], result = out(reg) result, right = in(xmm_reg) right
                );
                result
            }
        }
    )*};
}

/// Comparisons that set ZF, PF and CF; the result is the low byte of RFLAGS.
macro_rules! flag_operations {
    ($($name:ident = $instruction:literal;)*) => {$(
        pub(super) struct $name;

        impl Operation for $name {
            type Left = __m128i;
            type Right = __m128i;
            type Output = u64;

            #[inline(always)]
            fn run<const RESTORE: bool>(mxcsr: &mut u32, left: __m128i, right: __m128i) -> u64 {
                let flags: u64;
                under_mxcsr!(
                    RESTORE, mxcsr, [concat!($instruction, " {left}, {right}"), "lahf", "movzx eax, ah"],
                    left = in(xmm_reg) left, right = in(xmm_reg) right, out("rax") flags
                );
                flags
            }
        }
    )*};
}

vector_operations! {
    AddPs = "addps", singles(Add);
    AddPd = "addpd", doubles(Add);
    AddSs = "addss", single(Add);
    AddSd = "addsd", double(Add);
    SubPs = "subps", singles(Subtract);
    SubPd = "subpd", doubles(Subtract);
    SubSs = "subss", single(Subtract);
    SubSd = "subsd", double(Subtract);
    MulPs = "mulps", singles(Multiply);
    MulPd = "mulpd", doubles(Multiply);
    MulSs = "mulss", single(Multiply);
    MulSd = "mulsd", double(Multiply);
    DivPs = "divps", singles(Divide);
    DivPd = "divpd", doubles(Divide);
    DivSs = "divss", single(Divide);
    DivSd = "divsd", double(Divide);
    AddSubPs = "addsubps", alternating_singles;
    AddSubPd = "addsubpd", alternating_doubles;
    PdToPs = "cvtpd2ps", narrow_both;
    SdToSs = "cvtsd2ss", narrow;
    MinPs = "minps", none; MinPd = "minpd", none; MinSs = "minss", none; MinSd = "minsd", none;
    MaxPs = "maxps", none; MaxPd = "maxpd", none; MaxSs = "maxss", none; MaxSd = "maxsd", none;
    SqrtPs = "sqrtps", none; SqrtPd = "sqrtpd", none; SqrtSs = "sqrtss", none; SqrtSd = "sqrtsd", none;
    DqToPs = "cvtdq2ps", none; DqToPd = "cvtdq2pd", none; PsToPd = "cvtps2pd", none; SsToSd = "cvtss2sd", none;
    PsToDq = "cvtps2dq", none; PsToDqTruncated = "cvttps2dq", none;
    PdToDq = "cvtpd2dq", none; PdToDqTruncated = "cvttpd2dq", none;
}

immediate_operations! {
    CmpPs = "cmpps"; CmpPd = "cmppd"; CmpSs = "cmpss"; CmpSd = "cmpsd";
    RoundPs = "roundps"; RoundPd = "roundpd"; RoundSs = "roundss"; RoundSd = "roundsd";
}

from_general_operations! {
    I32ToSs = "cvtsi2ss {left}, {right:e}"; I64ToSs = "cvtsi2ss {left}, {right:r}";
    I32ToSd = "cvtsi2sd {left}, {right:e}"; I64ToSd = "cvtsi2sd {left}, {right:r}";
}

to_general_operations! {
    SsToI32 = "cvtss2si {result:e}, {right}"; SsToI64 = "cvtss2si {result:r}, {right}";
    SdToI32 = "cvtsd2si {result:e}, {right}"; SdToI64 = "cvtsd2si {result:r}, {right}";
    SsToI32Truncated = "cvttss2si {result:e}, {right}"; SsToI64Truncated = "cvttss2si {result:r}, {right}";
    SdToI32Truncated = "cvttsd2si {result:e}, {right}"; SdToI64Truncated = "cvttsd2si {result:r}, {right}";
}

flag_operations! {
    ComiSs = "comiss"; ComiSd = "comisd"; UcomiSs = "ucomiss"; UcomiSd = "ucomisd";
}
