//! Which transcendental functions this host's x87 computes.

use super::native::{self, Binary, Unary};
use super::unit::{Register80, control};

/// A digest of this host's transcendental x87 results for a fixed set of operands.
///
/// F2XM1, FYL2X, FYL2XP1, FPTAN, FPATAN, FSIN, FCOS and FSINCOS are exact to within one unit in the last place, and
/// vendors choose that unit differently. Guests that use them stay in lockstep only on hosts whose signatures are equal.
pub fn transcendental_signature() -> u64 {
    let unary: [Unary; 3] = [native::power_minus_one, native::sine, native::cosine];
    let binary: [Binary; 3] = [native::times_logarithm, native::times_logarithm_plus_one, native::arctangent];
    let mut digest = Digest::new();
    let mut operands = Operands { state: 1 };
    for _ in 0..200 {
        // 2^-1 to 1 for those with a small domain; 2^-16 to 2^16 for the others.
        let fraction = Register80 { significand: operands.next() | 1 << 63, sign_exponent: 16382 };
        let exponent = 16383 - 16 + (operands.next() >> 59) as u16;
        let number = Register80 { significand: operands.next() | 1 << 63, sign_exponent: exponent };
        for function in unary {
            digest.add(function(control::INITIAL, &fraction).value);
        }
        for function in &unary[1..] {
            digest.add(function(control::INITIAL, &number).value);
        }
        for function in binary {
            digest.add(function(control::INITIAL, &fraction, &number).value);
        }
        for function in [native::tangent, native::sine_cosine] {
            let (pushed, below) = function(control::INITIAL, &number);
            digest.add(pushed);
            digest.add(below.value);
        }
    }
    digest.state
}

/// FNV-1a, 64 bits.
struct Digest {
    state: u64,
}

impl Digest {
    fn new() -> Self {
        Self { state: 0xcbf2_9ce4_8422_2325 }
    }

    fn add(&mut self, value: Register80) {
        for byte in value.significand.to_le_bytes().into_iter().chain(value.sign_exponent.to_le_bytes()) {
            self.state = (self.state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::transcendental_signature;

    #[test]
    fn the_signature_is_the_same_every_time() {
        assert_eq!(transcendental_signature(), transcendental_signature());
    }
}
