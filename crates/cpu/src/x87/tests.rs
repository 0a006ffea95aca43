//! What the differential tests do not see: the host's own x87 environment, and the unit's parts by themselves.

use std::arch::asm;

use super::native::{self, Arithmetic, Divide};
use crate::unit::x87::{Register80, X87, control, status};

const ONE: Register80 = Register80 { significand: 1 << 63, sign_exponent: 16383 };
const ZERO: Register80 = Register80 { significand: 0, sign_exponent: 0 };

/// Control word, ES and B of the status word, and full tag word of the host.
#[allow(unsafe_code)]
fn host_environment() -> (u16, u16, u16) {
    let mut environment = [0u8; 28];
    // SAFETY: FNSTENV writes 28 bytes and masks all exceptions, which they are already.
    unsafe { asm!("fnstenv [{}]", in(reg) environment.as_mut_ptr(), options(nostack)) };
    let half = |at: usize| u16::from_le_bytes([environment[at], environment[at + 1]]);
    (half(0), half(4) & 0x8080, half(8))
}

#[test]
fn the_host_keeps_its_environment_whatever_the_guest_masks() {
    // A division by zero under a control word that masks nothing, chops, and has single precision.
    let raised = Divide::with_register(0x0c40, &ONE, &ZERO).status;
    assert_ne!(raised & status::ZERO_DIVIDE, 0);
    assert_ne!(raised & status::ERROR_SUMMARY, 0);
    assert_eq!(host_environment(), (control::INITIAL, 0, 0xffff));
    // Two results, of which an unmasked exception leaves one.
    native::extract(0x0c40, &ZERO);
    assert_eq!(host_environment(), (control::INITIAL, 0, 0xffff));
    native::sine_cosine(control::INITIAL, &ONE);
    native::store_decimal(0x0c40, &Register80 { sign_exponent: 0x7fff, ..ONE });
    assert_eq!(host_environment(), (control::INITIAL, 0, 0xffff));
}

#[test]
fn integers_convert_exactly() {
    for value in [0, 1, -1, 2, -3, i64::MAX, i64::MIN, 1 << 62, 12_345_678_901] {
        let register = Register80::from_integer(value);
        let (stored, raised) = native::store_integer64(control::INITIAL, &register);
        assert_eq!((stored as i64, raised & status::EXCEPTIONS), (value, 0));
    }
}

#[test]
fn the_stack_wraps_around() {
    let mut x87 = X87::new();
    x87.push(ONE);
    assert_eq!((x87.top(), x87.valid), (7, 0x80));
    assert_eq!((x87.value(0), x87.value(1)), (Some(ONE), None));
    for _ in 1..8 {
        assert!(x87.has_room());
        x87.push(ZERO);
    }
    assert!(!x87.has_room());
    assert_eq!((x87.top(), x87.value(7)), (0, Some(ONE)));
    x87.pop();
    assert_eq!((x87.top(), x87.valid), (1, 0xfe));
}

#[test]
fn tags_survive_the_full_tag_word() {
    let mut x87 = X87::new();
    x87.registers[0] = ONE;
    x87.registers[2] = Register80::INDEFINITE;
    x87.registers[3] = Register80 { significand: 1, sign_exponent: 16383 };
    x87.valid = 0b1111;
    // Valid, zero, special (NaN), special (unnormal), empty.
    assert_eq!(x87.tag_word(), 0xff00 | 2 << 6 | 2 << 4 | 1 << 2);
    let word = x87.tag_word();
    x87.valid = 0;
    x87.set_tag_word(word);
    assert_eq!(x87.valid, 0b1111);
}
