//! Loads, stores, exchanges and constants: FLD, FST, FSTP, FILD, FIST, FISTP, FISTTP, FBLD, FBSTP, FXCH, FCMOVcc, FLD1 and its
//! kin.

use iced_x86::Code;
use memory::Scalar;

use super::constant::{self, Constant};
use super::native::{self, Computed, Stored};
use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::unit::x87::{Register80, status};

pub(super) fn lower(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Fld_m32fp => |cpu, op, bus| load_converted(cpu, op, bus, native::load_single),
        Code::Fld_m64fp => |cpu, op, bus| load_converted(cpu, op, bus, native::load_double),
        Code::Fld_m80fp => load_extended,
        Code::Fld_sti => load_register,
        Code::Fild_m16int => |cpu, op, bus| load_integer(cpu, op, bus, |value: u16| (value as i16).into()),
        Code::Fild_m32int => |cpu, op, bus| load_integer(cpu, op, bus, |value: u32| (value as i32).into()),
        Code::Fild_m64int => |cpu, op, bus| load_integer(cpu, op, bus, |value: u64| value as i64),
        Code::Fbld_m80bcd => load_decimal,
        Code::Fld1 => |cpu, op, bus| load_constant(cpu, op, bus, constant::ONE),
        Code::Fldl2t => |cpu, op, bus| load_constant(cpu, op, bus, constant::LOG2_10),
        Code::Fldl2e => |cpu, op, bus| load_constant(cpu, op, bus, constant::LOG2_E),
        Code::Fldpi => |cpu, op, bus| load_constant(cpu, op, bus, constant::PI),
        Code::Fldlg2 => |cpu, op, bus| load_constant(cpu, op, bus, constant::LOG10_2),
        Code::Fldln2 => |cpu, op, bus| load_constant(cpu, op, bus, constant::LN_2),
        Code::Fldz => |cpu, op, bus| load_constant(cpu, op, bus, constant::ZERO),
        Code::Fst_m32fp => store_single::<false>,
        Code::Fstp_m32fp => store_single::<true>,
        Code::Fst_m64fp => store_double::<false>,
        Code::Fstp_m64fp => store_double::<true>,
        Code::Fstp_m80fp => store_extended,
        Code::Fist_m16int => |cpu, op, bus| store(cpu, op, bus, native::store_integer16, 1 << 15, false),
        Code::Fist_m32int => |cpu, op, bus| store(cpu, op, bus, native::store_integer32, 1 << 31, false),
        Code::Fistp_m16int => |cpu, op, bus| store(cpu, op, bus, native::store_integer16, 1 << 15, true),
        Code::Fistp_m32int => |cpu, op, bus| store(cpu, op, bus, native::store_integer32, 1 << 31, true),
        Code::Fistp_m64int => |cpu, op, bus| store(cpu, op, bus, native::store_integer64, 1 << 63, true),
        Code::Fisttp_m16int => |cpu, op, bus| store(cpu, op, bus, native::store_truncated16, 1 << 15, true),
        Code::Fisttp_m32int => |cpu, op, bus| store(cpu, op, bus, native::store_truncated32, 1 << 31, true),
        Code::Fisttp_m64int => |cpu, op, bus| store(cpu, op, bus, native::store_truncated64, 1 << 63, true),
        Code::Fbstp_m80bcd => store_decimal,
        Code::Fst_sti => store_register::<false>,
        Code::Fstp_sti | Code::Fstp_sti_DFD0 | Code::Fstp_sti_DFD8 => store_register::<true>,
        Code::Fstpnce_sti => store_register_unchecked,
        Code::Fxch_st0_sti | Code::Fxch_st0_sti_DDC8 | Code::Fxch_st0_sti_DFC8 => exchange,
        Code::Fcmovb_st0_sti => move_if::<2>,
        Code::Fcmovnb_st0_sti => move_if::<3>,
        Code::Fcmove_st0_sti => move_if::<4>,
        Code::Fcmovne_st0_sti => move_if::<5>,
        Code::Fcmovbe_st0_sti => move_if::<6>,
        Code::Fcmovnbe_st0_sti => move_if::<7>,
        Code::Fcmovu_st0_sti => move_if::<10>,
        Code::Fcmovnu_st0_sti => move_if::<11>,
        _ => return None,
    })
}

/// Pushes a value; the caller has loaded memory operands.
#[inline]
fn push(cpu: &mut Cpu, op: &Op, value: Register80, bus: &mut dyn Bus) {
    if cpu.x87.has_room() {
        cpu.x87.set_condition(status::C1, 0);
        cpu.x87.push(value);
        cpu.finish_x87(op, 0, bus);
    } else {
        push_overflowing(cpu, op, bus);
    }
}

#[cold]
fn push_overflowing(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) {
    let (proceeds, exceptions) = cpu.stack_fault(true);
    if proceeds {
        cpu.x87.push(Register80::INDEFINITE);
    }
    cpu.finish_x87(op, exceptions, bus);
}

fn load_converted<T: Scalar>(
    cpu: &mut Cpu,
    op: &Op,
    bus: &mut dyn Bus,
    native: fn(u16, T) -> Computed,
) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let from = cpu.load_operand(op, bus)?;
    if !cpu.x87.has_room() {
        push_overflowing(cpu, op, bus);
        return Ok(());
    }
    let Computed { value, status: raised } = native(cpu.x87.control, from);
    cpu.x87.set_condition(status::C1, 0);
    // A denormal is loaded even when its exception is not masked.
    if !cpu.x87.is_unmasked(raised & status::INVALID) {
        cpu.x87.push(value);
    }
    cpu.finish_x87(op, raised & status::EXCEPTIONS, bus);
    Ok(())
}

fn load_extended(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let value = load_80(cpu, op, bus)?;
    push(cpu, op, Register80::from_u128(value), bus);
    Ok(())
}

/// Loads the ten bytes of the memory operand.
fn load_80(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<u128, Stop> {
    let linear = cpu.linear(op);
    let low: u64 = cpu.load(linear, bus)?;
    let high: u16 = cpu.load(linear.wrapping_add(8), bus)?;
    Ok(u128::from(high) << 64 | u128::from(low))
}

/// Stores to the ten bytes of the memory operand.
fn store_80(cpu: &mut Cpu, op: &Op, bits: u128, bus: &mut dyn Bus) -> Result<(), Stop> {
    let linear = cpu.linear(op);
    // Both parts or none: the second store must not fault.
    cpu.probe_write(linear, 10, bus)?;
    cpu.store(linear, bits as u64, bus)?;
    cpu.store(linear.wrapping_add(8), (bits >> 64) as u16, bus)
}

fn load_register(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    match cpu.x87.value(op.dst) {
        Some(value) => push(cpu, op, value, bus),
        None => {
            let (proceeds, exceptions) = cpu.stack_fault(false);
            if proceeds {
                cpu.x87.push(Register80::INDEFINITE);
            }
            cpu.finish_x87(op, exceptions, bus);
        }
    }
    Ok(())
}

fn load_integer<T: Scalar>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus, extend: fn(T) -> i64) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let value = extend(cpu.load_operand(op, bus)?);
    push(cpu, op, Register80::from_integer(value), bus);
    Ok(())
}

/// FBLD. Digits above 9 count as what they are.
fn load_decimal(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let bits = load_80(cpu, op, bus)?;
    let magnitude = (0..18).rev().fold(0, |value, digit| value * 10 + (bits >> (4 * digit) & 15) as i64);
    let mut value = Register80::from_integer(magnitude);
    value.sign_exponent |= (bits >> 64) as u16 & 0x8000;
    push(cpu, op, value, bus);
    Ok(())
}

fn load_constant(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus, constant: Constant) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let value = constant.rounded(cpu.x87.control);
    push(cpu, op, value, bus);
    Ok(())
}

fn store_single<const POP: bool>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    store(cpu, op, bus, native::store_single, 0xffc0_0000, POP)
}

fn store_double<const POP: bool>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    store(cpu, op, bus, native::store_double, 0xfff8 << 48, POP)
}

#[inline(always)]
fn store<T: Scalar>(
    cpu: &mut Cpu,
    op: &Op,
    bus: &mut dyn Bus,
    native: fn(u16, &Register80) -> Stored<T>,
    indefinite: T,
    pop: bool,
) -> Result<(), Stop> {
    store_with(cpu, op, bus, native, indefinite, pop, |cpu, op, value, bus| cpu.store_operand(op, value, bus))
}

fn store_decimal(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    store_with(cpu, op, bus, native::store_decimal, 0xffff_c000 << 48, true, store_80)
}

/// Converts ST(0) and stores it, unless an unmasked exception forbids that.
#[inline(always)]
fn store_with<T: Scalar>(
    cpu: &mut Cpu,
    op: &Op,
    bus: &mut dyn Bus,
    native: fn(u16, &Register80) -> Stored<T>,
    indefinite: T,
    pop: bool,
    write: fn(&mut Cpu, &Op, T, &mut dyn Bus) -> Result<(), Stop>,
) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let Some(value) = cpu.x87.value(0) else {
        if !cpu.x87.is_unmasked(status::INVALID) {
            write(cpu, op, indefinite, bus)?;
        }
        let (proceeds, exceptions) = cpu.stack_fault(false);
        if proceeds && pop {
            cpu.x87.pop();
        }
        cpu.finish_x87(op, exceptions, bus);
        return Ok(());
    };
    let (converted, raised) = native(cpu.x87.control, &value);
    let proceeds = !cpu.x87.is_unmasked(raised & status::BEFORE_STORING);
    if proceeds {
        write(cpu, op, converted, bus)?;
    }
    cpu.x87.set_condition(status::C1, raised);
    if proceeds && pop {
        cpu.x87.pop();
    }
    cpu.finish_x87(op, raised & status::EXCEPTIONS, bus);
    Ok(())
}

fn store_extended(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let native =
        |_: u16, value: &Register80| (u128::from(value.sign_exponent) << 64 | u128::from(value.significand), 0);
    store_with(cpu, op, bus, native, 0xffff_c000 << 48, true, store_80)
}

fn store_register<const POP: bool>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let moved = cpu.x87.value(0).map(|value| Computed { value, status: 0 });
    if cpu.finish_computed(op, op.dst, moved, bus) && POP {
        cpu.x87.pop();
    }
    Ok(())
}

/// FSTPNCE, an undocumented FSTP that an empty ST(0) does not disturb.
fn store_register_unchecked(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    cpu.x87.set_condition(status::C1, 0);
    if let Some(value) = cpu.x87.value(0) {
        cpu.x87.set(op.dst, value);
    }
    cpu.x87.pop();
    cpu.finish_x87(op, 0, bus);
    Ok(())
}

fn exchange(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let (top, other) = (cpu.x87.value(0), cpu.x87.value(op.dst));
    let mut exceptions = 0;
    let mut proceeds = true;
    if top.is_none() || other.is_none() {
        (proceeds, exceptions) = cpu.stack_fault(false);
    } else {
        cpu.x87.set_condition(status::C1, 0);
    }
    if proceeds {
        cpu.x87.set(0, other.unwrap_or(Register80::INDEFINITE));
        cpu.x87.set(op.dst, top.unwrap_or(Register80::INDEFINITE));
    }
    cpu.finish_x87(op, exceptions, bus);
    Ok(())
}

/// FCMOVcc, by the condition's encoding in Jcc.
fn move_if<const CC: u8>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    if let (Some(_), Some(other)) = (cpu.x87.value(0), cpu.x87.value(op.dst)) {
        // C1 stays.
        if cpu.flags.condition::<CC>() {
            cpu.x87.set(0, other);
        }
        cpu.finish_x87(op, 0, bus);
    } else {
        cpu.finish_computed(op, 0, None, bus);
    }
    Ok(())
}
