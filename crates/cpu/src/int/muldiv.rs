//! Products and quotients: MUL, IMUL, DIV, IDIV.

use iced_x86::{Instruction, Mnemonic};

use super::place::{
    Dst, Imm, Memory, RAX, RDX, Shape, Source, Src, bits, by_wide_width, by_width, set_operands, shape,
};
use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op};
use crate::stop::{Stop, vector};
use crate::width::Width;

pub(super) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let mnemonic = instruction.mnemonic();
    if !matches!(mnemonic, Mnemonic::Mul | Mnemonic::Imul | Mnemonic::Div | Mnemonic::Idiv) {
        return None;
    }
    set_operands(instruction, op);
    let bits = bits(instruction, 0);
    let register = shape(instruction, instruction.op_count() / 2, op) == Shape::Register;
    Some(match (mnemonic, instruction.op_count(), register) {
        (Mnemonic::Mul, _, _) => match shape(instruction, 0, op) {
            Shape::Register => by_width!(bits, mul::<_, Dst>),
            _ => by_width!(bits, mul::<_, Memory>),
        },
        (Mnemonic::Div, _, _) => match shape(instruction, 0, op) {
            Shape::Register => by_width!(bits, div::<_, Dst>),
            _ => by_width!(bits, div::<_, Memory>),
        },
        (Mnemonic::Idiv, _, _) => match shape(instruction, 0, op) {
            Shape::Register => by_width!(bits, idiv::<_, Dst>),
            _ => by_width!(bits, idiv::<_, Memory>),
        },
        (_, 1, true) => by_width!(bits, imul_wide::<_, Dst>),
        (_, 1, false) => by_width!(bits, imul_wide::<_, Memory>),
        (_, 2, true) => by_wide_width!(bits, imul::<_, Dst, Src>),
        (_, 2, false) => by_wide_width!(bits, imul::<_, Dst, Memory>),
        (_, _, register) => {
            op.imm = instruction.immediate(2);
            if register {
                by_wide_width!(bits, imul::<_, Src, Imm>)
            } else {
                by_wide_width!(bits, imul::<_, Memory, Imm>)
            }
        }
    })
}

/// The double-width register pair: AX for bytes, else the D register above the A register.
#[inline(always)]
fn read_pair<W: Width>(cpu: &Cpu) -> u128 {
    if W::BITS == 8 {
        return u16::read(&cpu.gpr, RAX).into();
    }
    u128::from(W::read(&cpu.gpr, RDX).to_u64()) << W::BITS | u128::from(W::read(&cpu.gpr, RAX).to_u64())
}

#[inline(always)]
fn write_pair<W: Width>(cpu: &mut Cpu, high: W, low: W) {
    if W::BITS == 8 {
        ((high.to_u64() << 8 | low.to_u64()) as u16).write(&mut cpu.gpr, RAX);
    } else {
        low.write(&mut cpu.gpr, RAX);
        high.write(&mut cpu.gpr, RDX);
    }
}

fn mul<W: Width, S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let right = S::get::<W>(cpu, op, bus)?;
    let product = u128::from(W::read(&cpu.gpr, RAX).to_u64()) * u128::from(right.to_u64());
    let (high, low) = (W::from_u64((product >> W::BITS) as u64), W::from_u64(product as u64));
    write_pair(cpu, high, low);
    let overflow = high != W::default();
    cpu.flags.set_result(low, overflow, overflow);
    Ok(())
}

fn imul_wide<W: Width, S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let right = S::get::<W>(cpu, op, bus)?;
    let left = W::read(&cpu.gpr, RAX);
    let product = i128::from(left.sign_extended() as i64) * i128::from(right.sign_extended() as i64);
    let (high, low) = (W::from_u64((product >> W::BITS) as u64), W::from_u64(product as u64));
    write_pair(cpu, high, low);
    let overflow = product != i128::from(low.sign_extended() as i64);
    cpu.flags.set_result(low, overflow, overflow);
    Ok(())
}

fn imul<W: Width, L: Source, R: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let left = L::get::<W>(cpu, op, bus)?.sign_extended() as i64;
    let right = R::get::<W>(cpu, op, bus)?.sign_extended() as i64;
    let (product, beyond_64) = left.overflowing_mul(right);
    let result = W::from_u64(product as u64);
    let overflow = beyond_64 || product != result.sign_extended() as i64;
    result.write(&mut cpu.gpr, op.dst);
    cpu.flags.set_result(result, overflow, overflow);
    Ok(())
}

/// Quotient and remainder, or `None` when the quotient does not fit or the divisor is zero.
#[inline(always)]
fn divided<W: Width>(dividend: u128, divisor: W) -> Option<(W, W)> {
    let divisor = divisor.to_u64();
    if divisor == 0 || (dividend >> W::BITS) as u64 >= divisor {
        return None;
    }
    let (quotient, remainder) = match u64::try_from(dividend) {
        Ok(dividend) => (dividend / divisor, dividend % divisor),
        Err(_) => {
            let quotient = (dividend / u128::from(divisor)) as u64;
            (quotient, (dividend as u64).wrapping_sub(quotient.wrapping_mul(divisor)))
        }
    };
    Some((W::from_u64(quotient), W::from_u64(remainder)))
}

/// As [`divided`], for signed numbers; the dividend is sign-extended from twice the width.
#[inline(always)]
fn divided_signed<W: Width>(dividend: i128, divisor: W) -> Option<(W, W)> {
    let divisor = divisor.sign_extended() as i64;
    let (quotient, remainder) = match i64::try_from(dividend) {
        Ok(dividend) => (dividend.checked_div(divisor)?, dividend.checked_rem(divisor)?),
        Err(_) => {
            (i64::try_from(dividend.checked_div(divisor.into())?).ok()?, dividend.checked_rem(divisor.into())? as i64)
        }
    };
    let narrow = W::from_u64(quotient as u64);
    (narrow.sign_extended() as i64 == quotient).then(|| (narrow, W::from_u64(remainder as u64)))
}

fn div<W: Width, S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let divisor = S::get::<W>(cpu, op, bus)?;
    match divided(read_pair::<W>(cpu), divisor) {
        Some((quotient, remainder)) => write_pair(cpu, remainder, quotient),
        None => return Err(cpu.raise(vector::DE, None)),
    }
    Ok(())
}

fn idiv<W: Width, S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let divisor = S::get::<W>(cpu, op, bus)?;
    let unused = 128 - 2 * W::BITS;
    let dividend = (read_pair::<W>(cpu) << unused) as i128 >> unused;
    match divided_signed(dividend, divisor) {
        Some((quotient, remainder)) => write_pair(cpu, remainder, quotient),
        None => return Err(cpu.raise(vector::DE, None)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_faults_exactly_when_the_quotient_does_not_fit() {
        assert_eq!(divided(0xfeff, 0xffu8), Some((0xff, 0xfe)));
        assert_eq!(divided(0xff00, 0xffu8), None);
        assert_eq!(divided(7, 0u32), None);
        assert_eq!(divided(u128::from(u64::MAX - 1) << 64 | 5, u64::MAX), Some((u64::MAX, 4)));
        assert_eq!(divided(u128::from(u64::MAX) << 64, u64::MAX), None);
    }

    #[test]
    fn signed_division_rounds_to_zero_and_faults_on_the_least_number_by_minus_one() {
        assert_eq!(divided_signed(-7, 2u8), Some((-3i8 as u8, -1i8 as u8)));
        assert_eq!(divided_signed(-128, 1u8), Some((0x80, 0)));
        assert_eq!(divided_signed(128, 1u8), None);
        assert_eq!(divided_signed(-129, 1u8), None);
        assert_eq!(divided_signed(i128::from(i32::MIN), u32::MAX), None);
        assert_eq!(divided_signed(i128::from(i64::MIN), u64::MAX), None);
        assert_eq!(divided_signed(i128::MIN, u64::MAX), None);
        assert_eq!(divided_signed(i128::from(i64::MIN), 1u64), Some((1 << 63, 0)));
        assert_eq!(divided_signed(1, 0u16), None);
        assert_eq!(divided_signed(-(1 << 64), 3u64).map(|(quotient, _)| quotient as i64), Some(-6148914691236517205));
    }
}
