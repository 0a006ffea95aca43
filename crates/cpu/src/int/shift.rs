//! Shifts and rotates: SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD.
//!
//! Counts are cut to 5 bits, or 6 for 64-bit operands; a count of zero leaves the flags alone. OF is architecturally
//! defined for a count of one only (Intel SDM volume 2, RCL/RCR/ROL/ROR and SAL/SAR/SHL/SHR). Other counts give it the value of the same
//! formula here, and whole turns through carry leave it, as on Intel's processors; on AMD's some of them come out differently.

use iced_x86::{Instruction, Mnemonic};

use super::place::{Cl, Dst, Imm, Memory, Place, Shape, Source, bits, by_wide_width, by_width, set_operands, shape};
use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op, slot};
use crate::stop::Stop;
use crate::unit::LazyFlags;
use crate::width::Width;

pub(super) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let lower = match instruction.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => lower_shift::<Shl>,
        Mnemonic::Shr => lower_shift::<Shr>,
        Mnemonic::Sar => lower_shift::<Sar>,
        Mnemonic::Rol => lower_shift::<Rol>,
        Mnemonic::Ror => lower_shift::<Ror>,
        Mnemonic::Rcl => lower_shift::<Rcl>,
        Mnemonic::Rcr => lower_shift::<Rcr>,
        Mnemonic::Shld => lower_double::<Shld>,
        Mnemonic::Shrd => lower_double::<Shrd>,
        _ => return None,
    };
    set_operands(instruction, op);
    Some(lower(instruction, op))
}

/// A shift by a masked count that is not zero, and its flags.
trait Shift {
    fn apply<W: Width>(flags: &mut LazyFlags, value: W, count: u32) -> W;
}

struct Shl;
struct Shr;
struct Sar;
struct Rol;
struct Ror;
struct Rcl;
struct Rcr;

/// The two top bits of a value.
#[inline(always)]
fn top_bits<W: Width>(value: W) -> (bool, bool) {
    (value.sign(), value.to_u64() >> (W::BITS - 2) & 1 == 1)
}

impl Shift for Shl {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut LazyFlags, value: W, count: u32) -> W {
        let almost = value.to_u64() << (count - 1);
        let carry = almost >> (W::BITS - 1) & 1 == 1;
        let result = W::from_u64(almost << 1);
        flags.set_result(result, carry, carry != result.sign());
        result
    }
}

impl Shift for Shr {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut LazyFlags, value: W, count: u32) -> W {
        let almost = value.to_u64() >> (count - 1);
        let result = W::from_u64(almost >> 1);
        let (top, below) = top_bits(result);
        flags.set_result(result, almost & 1 == 1, top != below);
        result
    }
}

impl Shift for Sar {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut LazyFlags, value: W, count: u32) -> W {
        let almost = value.sign_extended() as i64 >> (count - 1);
        let result = W::from_u64((almost >> 1) as u64);
        flags.set_result(result, almost & 1 == 1, false);
        result
    }
}

impl Shift for Rol {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut LazyFlags, value: W, count: u32) -> W {
        let result = rotated_left(value, count);
        let carry = result.to_u64() & 1 == 1;
        flags.set_cf_of(carry, carry != result.sign());
        result
    }
}

impl Shift for Ror {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut LazyFlags, value: W, count: u32) -> W {
        let result = rotated_left(value, W::BITS - (count & (W::BITS - 1)));
        let (top, below) = top_bits(result);
        flags.set_cf_of(top, top != below);
        result
    }
}

/// Rotates left by any count, in one host instruction.
#[inline(always)]
fn rotated_left<W: Width>(value: W, count: u32) -> W {
    let value = value.to_u64();
    W::from_u64(match W::BITS {
        8 => (value as u8).rotate_left(count).into(),
        16 => (value as u16).rotate_left(count).into(),
        32 => (value as u32).rotate_left(count).into(),
        _ => value.rotate_left(count),
    })
}

impl Shift for Rcl {
    fn apply<W: Width>(flags: &mut LazyFlags, value: W, count: u32) -> W {
        let count = count % (W::BITS + 1);
        if count == 0 {
            return value;
        }
        let (result, carry) = rotated_through_carry(value, flags.cf(), count);
        flags.set_cf_of(carry, carry != result.sign());
        result
    }
}

impl Shift for Rcr {
    fn apply<W: Width>(flags: &mut LazyFlags, value: W, count: u32) -> W {
        let count = count % (W::BITS + 1);
        if count == 0 {
            return value;
        }
        let (result, carry) = rotated_through_carry(value, flags.cf(), W::BITS + 1 - count);
        let (top, below) = top_bits(result);
        flags.set_cf_of(carry, top != below);
        result
    }
}

/// Rotates carry and value, one bit more than the width, left by up to that many bits.
fn rotated_through_carry<W: Width>(value: W, carry: bool, count: u32) -> (W, bool) {
    let ring = u128::from(carry) << W::BITS | u128::from(value.to_u64());
    let rotated = ring << count | ring >> (W::BITS + 1 - count);
    (W::from_u64(rotated as u64), rotated >> W::BITS & 1 == 1)
}

/// The bits of a count that matter.
#[inline(always)]
fn masked<W: Width>(count: u8) -> u32 {
    u32::from(count) & if W::BITS == 64 { 63 } else { 31 }
}

fn lower_shift<S: Shift>(instruction: &Instruction, op: &mut Op) -> Handler {
    let bits = bits(instruction, 0);
    let count_mask = if bits == 64 { 63 } else { 31 };
    match (shape(instruction, 0, op), shape(instruction, 1, op)) {
        (Shape::Register, Shape::Immediate) if op.imm & count_mask != 0 => {
            op.imm &= count_mask;
            by_width!(bits, shift_register_by_constant::<_, S>)
        }
        (Shape::Register, Shape::Register) => by_width!(bits, shift::<_, S, Dst, Cl>),
        (Shape::Register, _) => by_width!(bits, shift::<_, S, Dst, Imm>),
        (_, Shape::Register) => by_width!(bits, shift::<_, S, Memory, Cl>),
        (_, _) => by_width!(bits, shift::<_, S, Memory, Imm>),
    }
}

fn shift<W: Width, S: Shift, D: Place, C: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let count = masked::<W>(C::get::<u8>(cpu, op, bus)?);
    D::modify::<W>(cpu, op, bus, |cpu, value| if count == 0 { value } else { S::apply(&mut cpu.flags, value, count) })
}

/// The frequent form: [`Op::imm`] is a masked count that is not zero.
fn shift_register_by_constant<W: Width, S: Shift>(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let value = W::read(&cpu.gpr, op.dst);
    S::apply(&mut cpu.flags, value, op.imm as u32).write(&mut cpu.gpr, op.dst);
    Ok(())
}

/// A shift that draws bits from a second operand, by a masked count that is not zero.
///
/// For 16-bit operands counts go up to 31, beyond the operand: result and flags are then undefined (Intel SDM volume 2, SHLD). Here, as on
/// Intel's processors, it goes on with the first operand's bits, as if it stood on both sides of the second; AMD's differ.
trait DoubleShift {
    fn apply<W: Width>(flags: &mut LazyFlags, value: W, other: W, count: u32) -> W;
}

struct Shld;
struct Shrd;

impl DoubleShift for Shld {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut LazyFlags, value: W, other: W, count: u32) -> W {
        let (result, carry) = if W::BITS == 16 {
            let three = value.to_u64() << 32 | other.to_u64() << 16 | value.to_u64();
            let shifted = three << count;
            (W::from_u64(shifted >> 32), shifted >> 48 & 1 == 1)
        } else {
            let high = value.to_u64() << count;
            let carry = value.to_u64() >> (W::BITS - count) & 1 == 1;
            (W::from_u64(high | other.to_u64() >> (W::BITS - count)), carry)
        };
        flags.set_result(result, carry, value.sign() != result.sign());
        result
    }
}

impl DoubleShift for Shrd {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut LazyFlags, value: W, other: W, count: u32) -> W {
        let (result, carry) = if W::BITS == 16 {
            let three = value.to_u64() << 32 | other.to_u64() << 16 | value.to_u64();
            (W::from_u64(three >> count), three >> (count - 1) & 1 == 1)
        } else {
            let low = value.to_u64() >> count;
            let carry = value.to_u64() >> (count - 1) & 1 == 1;
            (W::from_u64(low | other.to_u64() << (W::BITS - count)), carry)
        };
        flags.set_result(result, carry, value.sign() != result.sign());
        result
    }
}

fn lower_double<S: DoubleShift>(instruction: &Instruction, op: &mut Op) -> Handler {
    op.src = slot(instruction.op1_register());
    let bits = bits(instruction, 0);
    let by_register = shape(instruction, 2, op) == Shape::Register;
    if !by_register {
        op.imm = instruction.immediate(2);
    }
    match (shape(instruction, 0, op), by_register) {
        (Shape::Register, true) => by_wide_width!(bits, double_shift::<_, S, Dst, Cl>),
        (Shape::Register, false) => by_wide_width!(bits, double_shift::<_, S, Dst, Imm>),
        (_, true) => by_wide_width!(bits, double_shift::<_, S, Memory, Cl>),
        (_, false) => by_wide_width!(bits, double_shift::<_, S, Memory, Imm>),
    }
}

fn double_shift<W: Width, S: DoubleShift, D: Place, C: Source>(
    cpu: &mut Cpu,
    op: &Op,
    bus: &mut dyn Bus,
) -> Result<(), Stop> {
    let count = masked::<W>(C::get::<u8>(cpu, op, bus)?);
    D::modify::<W>(cpu, op, bus, |cpu, value| {
        let other = W::read(&cpu.gpr, op.src);
        if count == 0 { value } else { S::apply(&mut cpu.flags, value, other, count) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit::bit;

    fn run<S: Shift, W: Width>(value: W, count: u32, flags: u64) -> (W, u64) {
        let mut lazy = LazyFlags::from_bits(flags);
        let result = S::apply(&mut lazy, value, count);
        (result, lazy.bits())
    }

    #[test]
    fn shl_of_a_byte_by_more_than_its_width_clears_it_and_carry() {
        assert_eq!(run::<Shl, u8>(0xff, 8, 0), (0, bit::CF | bit::OF | bit::ZF | bit::PF));
        assert_eq!(run::<Shl, u8>(0xff, 9, 0), (0, bit::ZF | bit::PF));
        assert_eq!(run::<Shl, u8>(0xff, 31, 0), (0, bit::ZF | bit::PF));
    }

    #[test]
    fn shr_by_one_gives_of_the_old_sign() {
        assert_eq!(run::<Shr, u32>(0x8000_0001, 1, 0), (0x4000_0000, bit::CF | bit::OF | bit::PF));
        assert_eq!(run::<Shr, u64>(1 << 63, 63, 0), (1, 0));
    }

    #[test]
    fn sar_by_more_than_the_width_leaves_the_sign() {
        assert_eq!(run::<Sar, u16>(0x8000, 31, 0), (0xffff, bit::CF | bit::SF | bit::PF));
        assert_eq!(run::<Sar, u64>(1 << 63, 63, 0), (u64::MAX, bit::SF | bit::PF));
    }

    #[test]
    fn rotates_touch_only_carry_and_overflow() {
        let others = bit::ZF | bit::SF | bit::PF | bit::AF;
        assert_eq!(run::<Rol, u8>(0x81, 1, others), (0x03, others | bit::CF | bit::OF));
        assert_eq!(run::<Ror, u8>(0x81, 1, others), (0xc0, others | bit::CF));
        // A whole turn changes nothing but still sets carry.
        assert_eq!(run::<Rol, u8>(0x81, 8, 0), (0x81, bit::CF));
        assert_eq!(run::<Ror, u16>(0x8001, 16, 0), (0x8001, bit::CF | bit::OF));
        assert_eq!(run::<Rol, u64>(1 << 63 | 2, 1, 0), (5, bit::CF | bit::OF));
    }

    #[test]
    fn rotates_through_carry_have_a_ring_of_one_bit_more() {
        assert_eq!(run::<Rcl, u8>(0x80, 1, 0), (0, bit::CF | bit::OF));
        assert_eq!(run::<Rcl, u8>(0x00, 1, bit::CF), (1, 0));
        assert_eq!(run::<Rcl, u8>(0x5a, 9, bit::CF).0, 0x5a);
        assert_eq!(run::<Rcr, u8>(0x5a, 9, bit::CF).0, 0x5a);
        assert_eq!(run::<Rcr, u64>(1, 1, bit::CF), (1 << 63, bit::CF | bit::OF));
        assert_eq!(run::<Rcl, u64>(1, 63, bit::CF).0, 1 << 63 | 1 << 62);
        assert_eq!(run::<Rcr, u32>(0x1234_5678, 31, 0).0, 0x1234_5678 << 2);
    }

    #[test]
    fn whole_turns_through_carry_change_no_flag() {
        assert_eq!(run::<Rcr, u8>(0x41, 27, 0), (0x41, 0));
        assert_eq!(run::<Rcl, u16>(0x8000, 17, bit::CF | bit::OF), (0x8000, bit::CF | bit::OF));
    }

    #[test]
    fn double_shifts_draw_from_the_second_operand_at_each_width() {
        let mut flags = LazyFlags::from_bits(0);
        assert_eq!(Shld::apply(&mut flags, 0x8000_0001u32, 0xf000_0000, 4), 0x1f);
        assert!(!flags.cf());
        assert_eq!(Shrd::apply(&mut flags, 0x11u64, 0xf, 4), 0xf000_0000_0000_0001);
        assert!(!flags.cf() && flags.of());
        assert_eq!(Shld::apply(&mut flags, 0x1234u16, 0x5678, 8), 0x3456);
        assert_eq!(Shrd::apply(&mut flags, 0x1234u16, 0x5678, 8), 0x7812);
        assert_eq!(Shld::apply(&mut flags, 0x1234u16, 0x5678, 16), 0x5678);
        assert_eq!(Shld::apply(&mut flags, 0x1234u16, 0x5678, 24), 0x7812);
    }
}
