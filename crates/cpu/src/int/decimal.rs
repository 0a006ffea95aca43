//! What 64-bit mode dropped: AAA, AAS, AAM, AAD, DAA, DAS, BOUND, SALC.

use iced_x86::{Code, Instruction, Mnemonic};

use super::place::{AH, RAX};
use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op, slot};
use crate::stop::{Stop, vector};
use crate::unit::bit;
use crate::width::Width;

/// #BR, BOUND range exceeded.
const VECTOR_BR: u8 = 5;

pub(super) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Aaa => aaa,
        Mnemonic::Aas => aas,
        Mnemonic::Daa => daa,
        Mnemonic::Das => das,
        Mnemonic::Salc => salc,
        Mnemonic::Aam => {
            op.imm = instruction.immediate8().into();
            aam
        }
        Mnemonic::Aad => {
            op.imm = instruction.immediate8().into();
            aad
        }
        Mnemonic::Bound => {
            op.dst = slot(instruction.op0_register());
            if instruction.code() == Code::Bound_r16_m1616 { bound::<u16> } else { bound::<u32> }
        }
        _ => return None,
    })
}

/// Whether the low digit of AL needs adjusting.
fn low_digit_exceeds(cpu: &Cpu) -> bool {
    u8::read(&cpu.gpr, RAX) & 15 > 9 || cpu.flags.af()
}

/// Sets AF and CF to `adjusted`; the other flags, undefined, follow AL.
fn set_adjusted(cpu: &mut Cpu, adjusted: bool) {
    let al = u8::read(&cpu.gpr, RAX) & 15;
    al.write(&mut cpu.gpr, RAX);
    cpu.flags.set_result(al, false, false);
    let bits = cpu.flags.bits() | if adjusted { bit::CF | bit::AF } else { 0 };
    cpu.flags.set_bits(bits);
}

fn aaa(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let adjusts = low_digit_exceeds(cpu);
    if adjusts {
        u16::read(&cpu.gpr, RAX).wrapping_add(0x106).write(&mut cpu.gpr, RAX);
    }
    set_adjusted(cpu, adjusts);
    Ok(())
}

fn aas(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let adjusts = low_digit_exceeds(cpu);
    if adjusts {
        u16::read(&cpu.gpr, RAX).wrapping_sub(0x106).write(&mut cpu.gpr, RAX);
    }
    set_adjusted(cpu, adjusts);
    Ok(())
}

fn daa(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    adjust_both_digits(cpu, u8::overflowing_add);
    Ok(())
}

fn das(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    adjust_both_digits(cpu, u8::overflowing_sub);
    Ok(())
}

/// DAA and DAS (Intel SDM volume 2): the low digit by 6, the high digit by 0x60.
fn adjust_both_digits(cpu: &mut Cpu, adjust: fn(u8, u8) -> (u8, bool)) {
    let before = u8::read(&cpu.gpr, RAX);
    let low = low_digit_exceeds(cpu);
    let high = before > 0x99 || cpu.flags.cf();
    let (al, wraps) = if low { adjust(before, 6) } else { (before, false) };
    let al = if high { adjust(al, 0x60).0 } else { al };
    al.write(&mut cpu.gpr, RAX);
    cpu.flags.set_result(al, false, false);
    let bits = cpu.flags.bits() | (u64::from(low) * bit::AF) | (u64::from(high || wraps) * bit::CF);
    cpu.flags.set_bits(bits);
}

fn aam(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let (al, base) = (u8::read(&cpu.gpr, RAX), op.imm as u8);
    let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
        return Err(cpu.raise(vector::DE, None));
    };
    low.write(&mut cpu.gpr, RAX);
    high.write(&mut cpu.gpr, AH);
    cpu.flags.set_result(low, false, false);
    Ok(())
}

fn aad(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let al = u8::read(&cpu.gpr, AH).wrapping_mul(op.imm as u8).wrapping_add(u8::read(&cpu.gpr, RAX));
    u16::from(al).write(&mut cpu.gpr, RAX);
    cpu.flags.set_result(al, false, false);
    Ok(())
}

fn salc(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let al: u8 = if cpu.flags.cf() { 0xff } else { 0 };
    al.write(&mut cpu.gpr, RAX);
    Ok(())
}

/// BOUND: #BR unless the register lies between two signed bounds in memory, inclusive.
fn bound<W: Width>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let upper_at = Op { disp: op.disp.wrapping_add(W::BYTES), ..*op };
    let lower: W = cpu.load_operand(op, bus)?;
    let upper: W = cpu.load_operand(&upper_at, bus)?;
    let index = W::read(&cpu.gpr, op.dst).sign_extended() as i64;
    if index < lower.sign_extended() as i64 || index > upper.sign_extended() as i64 {
        return Err(cpu.raise(VECTOR_BR, None));
    }
    Ok(())
}
