//! The x87 part of [`float_signature`](crate::float_signature).

use super::native::{self, Add, Arithmetic, Binary, Computed, Divide, Multiply, Pushing, Subtract, Unary};
use crate::digest::Digest;
use crate::unit::x87::{Register80, control, status};

/// Operations, and the condition codes that the processor takes from them beside C1.
const UNARY: [(Unary, u16); 5] = [
    (native::square_root, 0),
    (native::round, 0),
    (native::power_minus_one, 0),
    (native::sine, status::C2),
    (native::cosine, status::C2),
];
const BINARY: [(Binary, u16); 10] = [
    (Add::with_register, 0),
    (Subtract::with_register, 0),
    (Multiply::with_register, 0),
    (Divide::with_register, 0),
    (native::scale, 0),
    (native::remainder, QUOTIENT),
    (native::remainder_nearest, QUOTIENT),
    (native::times_logarithm, 0),
    (native::times_logarithm_plus_one, 0),
    (native::arctangent, 0),
];
const PUSHING: [(Pushing, u16); 3] =
    [(native::tangent, status::C2), (native::sine_cosine, status::C2), (native::extract, 0)];
const QUOTIENT: u16 = status::C0 | status::C2 | status::C3;
const COMPARISON: u16 = status::C0 | status::C2 | status::C3;

/// All exceptions masked under every rounding and precision, and none masked.
const CONTROLS: [u16; 7] = [control::INITIAL, 0x7f, 0x27f, 0x77f, 0xb7f, 0xf7f, 0x340];

/// Zeros, ordinary numbers, the ends of the range, denormals, infinities, NaNs, and the encodings that are no numbers.
const SPECIAL: [Register80; 18] = [
    register(0, 0),
    register(0x8000, 0),
    register(16383, 1 << 63),
    register(0xbfff, 0xb504_f333_f9de_6484),
    register(16383 + 64, u64::MAX),
    register(16383 + 200, 0xc90f_daa2_2168_c235),
    register(0x7ffe, u64::MAX),
    register(1, 1 << 63),
    register(0x8001, 0x8000_0000_0000_0001),
    // Denormals, and a pseudo-denormal.
    register(0, 1),
    register(0, u64::MAX >> 1),
    register(0, 1 << 63 | 1),
    register(0x7fff, 1 << 63),
    register(0xffff, 1 << 63),
    register(0x7fff, 3 << 62 | 1),
    register(0xffff, 1 << 63 | 1),
    // An unnormal and a pseudo-NaN.
    register(16383, 1 << 62),
    register(0x7fff, 1),
];

const fn register(sign_exponent: u16, significand: u64) -> Register80 {
    Register80 { significand, sign_exponent }
}

pub(crate) fn sign(digest: &mut Digest) {
    sign_functions(digest);
    for control in CONTROLS {
        for left in &SPECIAL {
            for right in &SPECIAL {
                for (operation, codes) in BINARY {
                    add(digest, control, codes, operation(control, left, right));
                }
                for compare in [native::compare_ordered, native::compare_unordered] {
                    let raised = compare(control, left, *right) & (status::EXCEPTIONS | COMPARISON);
                    digest.add(&raised.to_le_bytes());
                }
            }
            for (operation, codes) in UNARY {
                add(digest, control, codes, operation(control, left));
            }
            for (operation, codes) in PUSHING {
                sign_pushing(digest, control, codes, operation(control, left));
            }
            sign_stores(digest, control, left);
        }
    }
}

/// The transcendental functions of ordinary operands.
fn sign_functions(digest: &mut Digest) {
    let mut operands = Operands { state: 1 };
    for _ in 0..200 {
        // 2^-1 to 1 for those with a small domain; 2^-16 to 2^16 for the others.
        let fraction = register(16382, operands.next() | 1 << 63);
        let exponent = 16383 - 16 + (operands.next() >> 59) as u16;
        let number = register(exponent, operands.next() | 1 << 63);
        let word = control::INITIAL;
        for (function, codes) in UNARY {
            add(digest, word, codes, function(word, &fraction));
            add(digest, word, codes, function(word, &number));
        }
        for (function, codes) in BINARY {
            add(digest, word, codes, function(word, &fraction, &number));
        }
        for (function, codes) in PUSHING {
            sign_pushing(digest, word, codes, function(word, &number));
        }
    }
}

fn sign_pushing(digest: &mut Digest, control: u16, codes: u16, (pushed, below): (Register80, Computed)) {
    add(digest, control, codes, Computed { value: pushed, ..below });
    add(digest, control, codes, below);
}

fn sign_stores(digest: &mut Digest, control: u16, value: &Register80) {
    let mut stored = |(bits, raised): (u128, u16)| {
        let raised = raised & (status::EXCEPTIONS | status::C1);
        digest.add(&raised.to_le_bytes());
        if !is_unmasked(control, raised & status::BEFORE_STORING) {
            digest.add(&bits.to_le_bytes());
        }
    };
    let single = native::store_single(control, value);
    let double = native::store_double(control, value);
    stored((single.0.into(), single.1));
    stored((double.0.into(), double.1));
    for store in [native::store_integer16, native::store_truncated16] {
        let (bits, raised) = store(control, value);
        stored((bits.into(), raised));
    }
    for store in [native::store_integer32, native::store_truncated32] {
        let (bits, raised) = store(control, value);
        stored((bits.into(), raised));
    }
    for store in [native::store_integer64, native::store_truncated64] {
        let (bits, raised) = store(control, value);
        stored((bits.into(), raised));
    }
    stored(native::store_decimal(control, value));
}

/// Adds what the processor uses of a result: no value where an unmasked exception keeps the operands, and the condition codes in
/// `codes` of a valid operation only.
fn add(digest: &mut Digest, control: u16, codes: u16, computed: Computed) {
    let codes = if computed.status & status::INVALID == 0 { codes } else { 0 };
    let raised = computed.status & (status::EXCEPTIONS | status::C1 | codes);
    digest.add(&raised.to_le_bytes());
    if !is_unmasked(control, raised & status::BEFORE_COMPUTING) {
        digest.add(&computed.value.significand.to_le_bytes());
        digest.add(&computed.value.sign_exponent.to_le_bytes());
    }
}

fn is_unmasked(control: u16, exceptions: u16) -> bool {
    exceptions & !control != 0
}

/// Knuth's MMIX generator.
struct Operands {
    state: u64,
}

impl Operands {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.state ^ self.state >> 29
    }
}
