//! FCOM, FUCOM, FCOMI, FUCOMI and their popping forms, FICOM, FTST, FXAM.

use iced_x86::Code;

use super::native;
use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::unit::bit;
use crate::unit::x87::{Register80, status};

/// Condition codes of a comparison.
const RESULT: u16 = status::C0 | status::C2 | status::C3;

pub(super) fn lower(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Fcom_m32fp => single::<0>,
        Code::Fcomp_m32fp => single::<1>,
        Code::Fcom_m64fp => double::<0>,
        Code::Fcomp_m64fp => double::<1>,
        Code::Ficom_m16int => integer16::<0>,
        Code::Ficomp_m16int => integer16::<1>,
        Code::Ficom_m32int => integer32::<0>,
        Code::Ficomp_m32int => integer32::<1>,
        Code::Fcom_st0_sti | Code::Fcom_st0_sti_DCD0 => register::<true, 0>,
        Code::Fcomp_st0_sti | Code::Fcomp_st0_sti_DCD8 | Code::Fcomp_st0_sti_DED0 => register::<true, 1>,
        Code::Fcompp => next::<true>,
        Code::Fucom_st0_sti => register::<false, 0>,
        Code::Fucomp_st0_sti => register::<false, 1>,
        Code::Fucompp => next::<false>,
        Code::Fcomi_st0_sti => to_flags::<true, false>,
        Code::Fcomip_st0_sti => to_flags::<true, true>,
        Code::Fucomi_st0_sti => to_flags::<false, false>,
        Code::Fucomip_st0_sti => to_flags::<false, true>,
        Code::Ftst => test,
        Code::Fxam => examine,
        _ => return None,
    })
}

/// Sets the condition codes from a native comparison (`None`: an operand was empty), and pops unless an unmasked exception
/// forbids that.
fn finish(cpu: &mut Cpu, op: &Op, compared: Option<u16>, pops: u8, bus: &mut dyn Bus) {
    let (result, exceptions, proceeds) = match compared {
        Some(raised) => {
            cpu.x87.set_condition(status::C1, 0);
            let proceeds = !cpu.x87.is_unmasked(raised & status::BEFORE_COMPUTING);
            (raised, raised & status::EXCEPTIONS, proceeds)
        }
        None => {
            let (proceeds, exceptions) = cpu.stack_fault(false);
            (RESULT, exceptions, proceeds)
        }
    };
    cpu.x87.set_condition(RESULT, result);
    if proceeds {
        for _ in 0..pops {
            cpu.x87.pop();
        }
    }
    cpu.finish_x87(op, exceptions, bus);
}

fn single<const POPS: u8>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let right = cpu.load_operand(op, bus)?;
    let control = cpu.x87.control;
    let compared = cpu.x87.value(0).map(|left| native::compare_single(control, &left, right));
    finish(cpu, op, compared, POPS, bus);
    Ok(())
}

fn double<const POPS: u8>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let right = cpu.load_operand(op, bus)?;
    let control = cpu.x87.control;
    let compared = cpu.x87.value(0).map(|left| native::compare_double(control, &left, right));
    finish(cpu, op, compared, POPS, bus);
    Ok(())
}

fn integer16<const POPS: u8>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let right: u16 = cpu.load_operand(op, bus)?;
    integer(cpu, op, (right as i16).into(), POPS, bus);
    Ok(())
}

fn integer32<const POPS: u8>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let right: u32 = cpu.load_operand(op, bus)?;
    integer(cpu, op, (right as i32).into(), POPS, bus);
    Ok(())
}

fn integer(cpu: &mut Cpu, op: &Op, right: i64, pops: u8, bus: &mut dyn Bus) {
    let control = cpu.x87.control;
    let right = Register80::from_integer(right);
    let compared = cpu.x87.value(0).map(|left| native::compare_ordered(control, &left, right));
    finish(cpu, op, compared, pops, bus);
}

fn with_register(cpu: &Cpu, index: u8, ordered: bool) -> Option<u16> {
    let (left, right) = (cpu.x87.value(0)?, cpu.x87.value(index)?);
    let compare = if ordered { native::compare_ordered } else { native::compare_unordered };
    Some(compare(cpu.x87.control, &left, right))
}

fn register<const ORDERED: bool, const POPS: u8>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let compared = with_register(cpu, op.dst, ORDERED);
    finish(cpu, op, compared, POPS, bus);
    Ok(())
}

/// FCOMPP and FUCOMPP.
fn next<const ORDERED: bool>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let compared = with_register(cpu, 1, ORDERED);
    finish(cpu, op, compared, 2, bus);
    Ok(())
}

fn to_flags<const ORDERED: bool, const POP: bool>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let (result, exceptions, proceeds) = match with_register(cpu, op.dst, ORDERED) {
        // C1 stays.
        Some(raised) => {
            let proceeds = !cpu.x87.is_unmasked(raised & status::BEFORE_COMPUTING);
            (raised, raised & status::EXCEPTIONS, proceeds)
        }
        None => {
            let (proceeds, exceptions) = cpu.stack_fault(false);
            (RESULT, exceptions, proceeds)
        }
    };
    let flag = |condition: u16, flag: u64| if result & condition != 0 { flag } else { 0 };
    cpu.flags.set_bits(flag(status::C0, bit::CF) | flag(status::C2, bit::PF) | flag(status::C3, bit::ZF));
    if proceeds && POP {
        cpu.x87.pop();
    }
    cpu.finish_x87(op, exceptions, bus);
    Ok(())
}

fn test(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let control = cpu.x87.control;
    let compared = cpu.x87.value(0).map(|left| native::compare_zero(control, &left));
    finish(cpu, op, compared, 0, bus);
    Ok(())
}

/// FXAM (Intel SDM volume 2, table 3-42): empty registers and unsupported formats too.
fn examine(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let Register80 { significand, sign_exponent } = cpu.x87.get(0);
    let integer_bit = significand >> 63 == 1;
    let class = match (cpu.x87.value(0), sign_exponent & 0x7fff) {
        (None, _) => status::C3 | status::C0,
        (_, 0) if significand == 0 => status::C3,
        (_, 0) => status::C3 | status::C2,
        _ if !integer_bit => 0,
        (_, 0x7fff) if significand << 1 == 0 => status::C2 | status::C0,
        (_, 0x7fff) => status::C0,
        _ => status::C2,
    };
    let sign = if cpu.x87.get(0).is_negative() { status::C1 } else { 0 };
    cpu.x87.set_condition(RESULT | status::C1, class | sign);
    cpu.finish_x87(op, 0, bus);
    Ok(())
}
