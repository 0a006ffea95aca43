//! x87 instructions executed by the host under the guest's control word.
//!
//! The host's results are exact because the guest's instruction itself runs, with the guest's precision, rounding and exception masks.
//! An unmasked exception only marks the host's status word: nothing traps before the next waiting instruction, and FNSTSW and FNCLEX
//! do not wait. So what an unmasked exception does to a result is the hardware's answer too: nothing is stored for an invalid
//! operation, and the exponent is wrapped for an overflow.
//!
//! Every block finds the x87 stack empty, as the ABI promises, and leaves it empty with the control word that compiled code expects
//! and no unmasked exception.

#![allow(unsafe_code)]

use std::arch::asm;

use crate::unit::x87::{Register80, control};

/// The control word after FNINIT, which the ABI prescribes.
static HOST_CONTROL: u16 = 0x37f;

/// What an operation left: a register and the status word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Computed {
    pub value: Register80,
    pub status: u16,
}

/// The reserved precision (Intel SDM volume 1, table 8-2) counts as 64 bits, whatever the host would take it for.
#[inline(always)]
fn defined_precision(word: u16) -> u16 {
    if word & control::PRECISION == control::PRECISION_RESERVED { word | control::PRECISION } else { word }
}

/// An asm block around one instruction. `before` loads the operands, `after` stores the result and empties the stack. The flag
/// `{unmasked}` branches where an unmasked exception is pending: then the exceptions go first, so that `after` does not trap, and all
/// of the host's x87 state is reset last, whatever is on its stack.
macro_rules! execute {
    ($control:expr, [$($before:literal),*], $instruction:literal, [$($after:literal),*], $($operands:tt)*) => {{
        let control: u16 = defined_precision($control);
        let mut status: u16;
        // SAFETY: the operands are references to values of the sizes that the instruction reads and writes. The x87
        // stack is empty before (ABI) and after; the control word is restored. No x87
        // instruction that waits runs while an unmasked exception is pending, so nothing traps.
        unsafe {
            asm!(
                // FNCLEX takes longer than all the rest: only where flags are left from the last operation.
                "fnstsw ax",
                "test al, 0xff",
                "jz 4f",
                "fnclex",
                "4:",
                "fldcw word ptr [{control}]",
                $($before,)*
                $instruction,
                "fnstsw ax",
                "test al, 0x80",
                "jnz 2f",
                $($after,)*
                "fldcw word ptr [{host}]",
                "jmp 3f",
                "2:",
                "fnclex",
                "fldcw word ptr [{host}]",
                $($after,)*
                "fninit",
                "3:",
                control = in(reg) &control,
                host = in(reg) &HOST_CONTROL,
                $($operands)*
                out("ax") status,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                options(nostack),
            );
        }
        status
    }};
}

/// An operation on a destination and a source.
pub(super) trait Arithmetic {
    /// `left` is ST(0), `right` another register.
    fn with_register(control: u16, left: &Register80, right: &Register80) -> Computed;
    /// `right` is single-precision memory.
    fn with_single(control: u16, left: &Register80, right: u32) -> Computed;
    /// `right` is double-precision memory.
    fn with_double(control: u16, left: &Register80, right: u64) -> Computed;
}

macro_rules! arithmetic {
    ($($name:ident: $register:literal, $single:literal, $double:literal;)*) => { $(
        #[doc = concat!("`", $register, "` and its forms with memory.")]
        pub(super) struct $name;

        impl Arithmetic for $name {
            fn with_register(control: u16, left: &Register80, right: &Register80) -> Computed {
                let mut value = Register80::default();
                let status = execute!(
                    control, ["fld tbyte ptr [{right}]", "fld tbyte ptr [{left}]"], $register,
                    ["fstp tbyte ptr [{value}]", "fstp st(0)"],
                    left = in(reg) left, right = in(reg) right, value = in(reg) &mut value,
                );
                Computed { value, status }
            }

            fn with_single(control: u16, left: &Register80, right: u32) -> Computed {
                let mut value = Register80::default();
                let status = execute!(
                    control, ["fld tbyte ptr [{left}]"], $single, ["fstp tbyte ptr [{value}]"],
                    left = in(reg) left, right = in(reg) &right, value = in(reg) &mut value,
                );
                Computed { value, status }
            }

            fn with_double(control: u16, left: &Register80, right: u64) -> Computed {
                let mut value = Register80::default();
                let status = execute!(
                    control, ["fld tbyte ptr [{left}]"], $double, ["fstp tbyte ptr [{value}]"],
                    left = in(reg) left, right = in(reg) &right, value = in(reg) &mut value,
                );
                Computed { value, status }
            }
        }
    )* };
}

arithmetic! {
    Add: "fadd st(0), st(1)", "fadd dword ptr [{right}]", "fadd qword ptr [{right}]";
    Multiply: "fmul st(0), st(1)", "fmul dword ptr [{right}]", "fmul qword ptr [{right}]";
    Subtract: "fsub st(0), st(1)", "fsub dword ptr [{right}]", "fsub qword ptr [{right}]";
    SubtractReversed: "fsubr st(0), st(1)", "fsubr dword ptr [{right}]", "fsubr qword ptr [{right}]";
    Divide: "fdiv st(0), st(1)", "fdiv dword ptr [{right}]", "fdiv qword ptr [{right}]";
    DivideReversed: "fdivr st(0), st(1)", "fdivr dword ptr [{right}]", "fdivr qword ptr [{right}]";
}

macro_rules! compare {
    ($($name:ident($($right:ty)?): [$($load:literal),*], $instruction:literal, [$($drop:literal),*];)*) => { $(
        #[doc = concat!("The status word after `", $instruction, "`.")]
        pub(super) fn $name(control: u16, left: &Register80 $(, right: $right)?) -> u16 {
            execute!(
                control, [$($load),*], $instruction, [$($drop),*],
                left = in(reg) left, $(right = in(reg) &right as *const $right,)?
            )
        }
    )* };
}

compare! {
    compare_single(u32): ["fld tbyte ptr [{left}]"], "fcom dword ptr [{right}]", ["fstp st(0)"];
    compare_double(u64): ["fld tbyte ptr [{left}]"], "fcom qword ptr [{right}]", ["fstp st(0)"];
    compare_ordered(Register80): ["fld tbyte ptr [{right}]", "fld tbyte ptr [{left}]"], "fcom st(1)",
        ["fstp st(0)", "fstp st(0)"];
    compare_unordered(Register80): ["fld tbyte ptr [{right}]", "fld tbyte ptr [{left}]"], "fucom st(1)",
        ["fstp st(0)", "fstp st(0)"];
    compare_zero(): ["fld tbyte ptr [{left}]"], "ftst", ["fstp st(0)"];
}

/// An operation on ST(0) alone.
pub(super) type Unary = fn(u16, &Register80) -> Computed;
/// An operation on ST(0) and ST(1) whose result replaces ST(0), after a pop or not.
pub(super) type Binary = fn(u16, &Register80, &Register80) -> Computed;
/// An operation on ST(0) that pushes a second result.
pub(super) type Pushing = fn(u16, &Register80) -> (Register80, Computed);

macro_rules! unary {
    ($($name:ident: $instruction:literal;)*) => { $(
        #[doc = concat!("`", $instruction, "`.")]
        pub(super) fn $name(control: u16, st0: &Register80) -> Computed {
            let mut value = Register80::default();
            let status = execute!(
                control, ["fld tbyte ptr [{st0}]"], $instruction, ["fstp tbyte ptr [{value}]"],
                st0 = in(reg) st0, value = in(reg) &mut value,
            );
            Computed { value, status }
        }
    )* };
}

unary! {
    square_root: "fsqrt";
    round: "frndint";
    power_minus_one: "f2xm1";
    sine: "fsin";
    cosine: "fcos";
}

macro_rules! binary {
    ($($name:ident: $instruction:literal, [$($drop:literal)?];)*) => { $(
        #[doc = concat!("`", $instruction, "`.")]
        pub(super) fn $name(control: u16, st0: &Register80, st1: &Register80) -> Computed {
            let mut value = Register80::default();
            let status = execute!(
                control, ["fld tbyte ptr [{st1}]", "fld tbyte ptr [{st0}]"], $instruction,
                ["fstp tbyte ptr [{value}]" $(, $drop)?],
                st0 = in(reg) st0, st1 = in(reg) st1, value = in(reg) &mut value,
            );
            Computed { value, status }
        }
    )* };
}

binary! {
    scale: "fscale", ["fstp st(0)"];
    remainder: "fprem", ["fstp st(0)"];
    remainder_nearest: "fprem1", ["fstp st(0)"];
    times_logarithm: "fyl2x", [];
    times_logarithm_plus_one: "fyl2xp1", [];
    arctangent: "fpatan", [];
}

macro_rules! pushing {
    ($($name:ident: $instruction:literal;)*) => { $(
        #[doc = concat!("`", $instruction, "`: what it pushed, and what is below.")]
        pub(super) fn $name(control: u16, st0: &Register80) -> (Register80, Computed) {
            let mut pushed = Register80::default();
            let mut value = Register80::default();
            // Whether there is a second value to pop depends on the operand: reset the stack instead.
            let status = execute!(
                control, ["fld tbyte ptr [{st0}]"], $instruction,
                ["fstp tbyte ptr [{pushed}]", "fstp tbyte ptr [{value}]", "fninit"],
                st0 = in(reg) st0, pushed = in(reg) &mut pushed, value = in(reg) &mut value,
            );
            (pushed, Computed { value, status })
        }
    )* };
}

pushing! {
    tangent: "fptan";
    sine_cosine: "fsincos";
    extract: "fxtract";
}

macro_rules! loads {
    ($($name:ident($from:ty): $instruction:literal;)*) => { $(
        #[doc = concat!("`", $instruction, "`.")]
        pub(super) fn $name(control: u16, from: $from) -> Computed {
            let mut value = Register80::default();
            let status = execute!(
                control, [], $instruction, ["fstp tbyte ptr [{value}]"],
                from = in(reg) &from, value = in(reg) &mut value,
            );
            Computed { value, status }
        }
    )* };
}

loads! {
    load_single(u32): "fld dword ptr [{from}]";
    load_double(u64): "fld qword ptr [{from}]";
}

/// What a store wrote, if it did, and the status word.
pub(super) type Stored<T> = (T, u16);

macro_rules! stores {
    ($($name:ident -> $to:ty: $instruction:literal, [$($drop:literal)?];)*) => { $(
        #[doc = concat!("`", $instruction, "`.")]
        pub(super) fn $name(control: u16, st0: &Register80) -> Stored<$to> {
            let mut to: $to = 0;
            let status = execute!(
                control, ["fld tbyte ptr [{st0}]"], $instruction, [$($drop)?],
                st0 = in(reg) st0, to = in(reg) &mut to,
            );
            (to, status)
        }
    )* };
}

stores! {
    store_single -> u32: "fst dword ptr [{to}]", ["fstp st(0)"];
    store_double -> u64: "fst qword ptr [{to}]", ["fstp st(0)"];
    store_integer16 -> u16: "fistp word ptr [{to}]", [];
    store_integer32 -> u32: "fistp dword ptr [{to}]", [];
    store_integer64 -> u64: "fistp qword ptr [{to}]", [];
    store_truncated16 -> u16: "fisttp word ptr [{to}]", [];
    store_truncated32 -> u32: "fisttp dword ptr [{to}]", [];
    store_truncated64 -> u64: "fisttp qword ptr [{to}]", [];
    store_decimal -> u128: "fbstp tbyte ptr [{to}]", [];
}
