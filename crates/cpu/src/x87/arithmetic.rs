//! FADD, FSUB, FSUBR, FMUL, FDIV, FDIVR in all forms; FABS, FCHS, FSQRT, FRNDINT, FSCALE, FPREM, FPREM1, FXTRACT.

use iced_x86::Code;

use super::native::{self, Add, Arithmetic, Binary, Computed, Divide, DivideReversed, Multiply, Pushing, Subtract};
use super::native::{SubtractReversed, Unary};
use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::unit::x87::{Register80, status};

pub(super) fn lower(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Fadd_m32fp => with_single::<Add>,
        Code::Fmul_m32fp => with_single::<Multiply>,
        Code::Fsub_m32fp => with_single::<Subtract>,
        Code::Fsubr_m32fp => with_single::<SubtractReversed>,
        Code::Fdiv_m32fp => with_single::<Divide>,
        Code::Fdivr_m32fp => with_single::<DivideReversed>,
        Code::Fadd_m64fp => with_double::<Add>,
        Code::Fmul_m64fp => with_double::<Multiply>,
        Code::Fsub_m64fp => with_double::<Subtract>,
        Code::Fsubr_m64fp => with_double::<SubtractReversed>,
        Code::Fdiv_m64fp => with_double::<Divide>,
        Code::Fdivr_m64fp => with_double::<DivideReversed>,
        Code::Fiadd_m32int => with_integer32::<Add>,
        Code::Fimul_m32int => with_integer32::<Multiply>,
        Code::Fisub_m32int => with_integer32::<Subtract>,
        Code::Fisubr_m32int => with_integer32::<SubtractReversed>,
        Code::Fidiv_m32int => with_integer32::<Divide>,
        Code::Fidivr_m32int => with_integer32::<DivideReversed>,
        Code::Fiadd_m16int => with_integer16::<Add>,
        Code::Fimul_m16int => with_integer16::<Multiply>,
        Code::Fisub_m16int => with_integer16::<Subtract>,
        Code::Fisubr_m16int => with_integer16::<SubtractReversed>,
        Code::Fidiv_m16int => with_integer16::<Divide>,
        Code::Fidivr_m16int => with_integer16::<DivideReversed>,
        Code::Fadd_st0_sti => to_top::<Add>,
        Code::Fmul_st0_sti => to_top::<Multiply>,
        Code::Fsub_st0_sti => to_top::<Subtract>,
        Code::Fsubr_st0_sti => to_top::<SubtractReversed>,
        Code::Fdiv_st0_sti => to_top::<Divide>,
        Code::Fdivr_st0_sti => to_top::<DivideReversed>,
        Code::Fadd_sti_st0 => from_top::<Add, false>,
        Code::Fmul_sti_st0 => from_top::<Multiply, false>,
        Code::Fsub_sti_st0 => from_top::<Subtract, false>,
        Code::Fsubr_sti_st0 => from_top::<SubtractReversed, false>,
        Code::Fdiv_sti_st0 => from_top::<Divide, false>,
        Code::Fdivr_sti_st0 => from_top::<DivideReversed, false>,
        Code::Faddp_sti_st0 => from_top::<Add, true>,
        Code::Fmulp_sti_st0 => from_top::<Multiply, true>,
        Code::Fsubp_sti_st0 => from_top::<Subtract, true>,
        Code::Fsubrp_sti_st0 => from_top::<SubtractReversed, true>,
        Code::Fdivp_sti_st0 => from_top::<Divide, true>,
        Code::Fdivrp_sti_st0 => from_top::<DivideReversed, true>,
        Code::Fabs => |cpu, op, bus| change_sign(cpu, op, bus, |sign_exponent| sign_exponent & 0x7fff),
        Code::Fchs => |cpu, op, bus| change_sign(cpu, op, bus, |sign_exponent| sign_exponent ^ 0x8000),
        Code::Fsqrt => |cpu, op, bus| unary(cpu, op, bus, native::square_root),
        Code::Frndint => |cpu, op, bus| unary(cpu, op, bus, native::round),
        Code::Fscale => scale,
        Code::Fprem => |cpu, op, bus| remainder(cpu, op, bus, native::remainder),
        Code::Fprem1 => |cpu, op, bus| remainder(cpu, op, bus, native::remainder_nearest),
        Code::Fxtract => |cpu, op, bus| pushing(cpu, op, bus, native::extract, 0),
        _ => return None,
    })
}

fn with_single<A: Arithmetic>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let right = cpu.load_operand(op, bus)?;
    let control = cpu.x87.control;
    let computed = cpu
        .x87
        .value(0)
        .map(|left| A::with_single(control, &left, right).of_operands(left, Register80::nan_of_single(right)));
    cpu.finish_computed(op, 0, computed, bus);
    Ok(())
}

fn with_double<A: Arithmetic>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let right = cpu.load_operand(op, bus)?;
    let control = cpu.x87.control;
    let computed = cpu
        .x87
        .value(0)
        .map(|left| A::with_double(control, &left, right).of_operands(left, Register80::nan_of_double(right)));
    cpu.finish_computed(op, 0, computed, bus);
    Ok(())
}

fn with_integer32<A: Arithmetic>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let right: u32 = cpu.load_operand(op, bus)?;
    with_integer::<A>(cpu, op, (right as i32).into(), bus);
    Ok(())
}

fn with_integer16<A: Arithmetic>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let right: u16 = cpu.load_operand(op, bus)?;
    with_integer::<A>(cpu, op, (right as i16).into(), bus);
    Ok(())
}

fn with_integer<A: Arithmetic>(cpu: &mut Cpu, op: &Op, right: i64, bus: &mut dyn Bus) {
    let control = cpu.x87.control;
    let right = Register80::from_integer(right);
    let computed = cpu.x87.value(0).map(|left| A::with_register(control, &left, &right));
    cpu.finish_computed(op, 0, computed, bus);
}

/// ST(0) with ST(i) to ST(0).
fn to_top<A: Arithmetic>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let computed = with_registers::<A>(cpu, 0, op.dst);
    cpu.finish_computed(op, 0, computed, bus);
    Ok(())
}

/// ST(i) with ST(0) to ST(i).
fn from_top<A: Arithmetic, const POP: bool>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let computed = with_registers::<A>(cpu, op.dst, 0);
    if cpu.finish_computed(op, op.dst, computed, bus) && POP {
        cpu.x87.pop();
    }
    Ok(())
}

fn with_registers<A: Arithmetic>(cpu: &Cpu, left: u8, right: u8) -> Option<Computed> {
    let (left, right) = (cpu.x87.value(left)?, cpu.x87.value(right)?);
    Some(A::with_register(cpu.x87.control, &left, &right).of_operands(left, right))
}

fn change_sign(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus, change: fn(u16) -> u16) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let computed = cpu
        .x87
        .value(0)
        .map(|value| Computed { value: Register80 { sign_exponent: change(value.sign_exponent), ..value }, status: 0 });
    cpu.finish_computed(op, 0, computed, bus);
    Ok(())
}

/// ST(0) to ST(0).
pub(super) fn unary(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus, native: Unary) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let control = cpu.x87.control;
    let computed = cpu.x87.value(0).map(|value| native(control, &value));
    cpu.finish_computed(op, 0, computed, bus);
    Ok(())
}

fn scale(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let computed = with_next(cpu, native::scale);
    cpu.finish_computed(op, 0, computed, bus);
    Ok(())
}

/// FPREM and FPREM1: the condition codes hold the quotient's low bits, and whether the reduction is complete. Where there is no
/// quotient, C0 and C3 stay.
fn remainder(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus, native: Binary) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let computed = with_next(cpu, native);
    let quotient = computed.filter(|computed| {
        !computed.value.is_nan()
            && computed.status & status::INVALID == 0
            && !cpu.x87.is_unmasked(computed.status & status::BEFORE_COMPUTING)
    });
    match quotient {
        Some(computed) => cpu.x87.set_condition(status::C0 | status::C2 | status::C3, computed.status),
        None => cpu.x87.set_condition(status::C2, 0),
    }
    cpu.finish_computed(op, 0, computed, bus);
    Ok(())
}

/// ST(0) and ST(1) to ST(1), and a pop.
pub(super) fn popping(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus, native: Binary) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let computed = with_next(cpu, native);
    if cpu.finish_computed(op, 1, computed, bus) {
        cpu.x87.pop();
    }
    Ok(())
}

fn with_next(cpu: &Cpu, native: Binary) -> Option<Computed> {
    let (st0, st1) = (cpu.x87.value(0)?, cpu.x87.value(1)?);
    Some(native(cpu.x87.control, &st0, &st1).of_operands(st0, st1))
}

/// ST(0) to ST(0), and another value pushed; not if the operand is `out_of_range` (C2, or 0 for functions of any number).
pub(super) fn pushing(
    cpu: &mut Cpu,
    op: &Op,
    bus: &mut dyn Bus,
    native: Pushing,
    out_of_range: u16,
) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let control = cpu.x87.control;
    let indefinite = Register80::INDEFINITE;
    let (pushed, value, exceptions, proceeds) = match cpu.x87.value(0) {
        Some(value) if cpu.x87.has_room() => {
            let (pushed, below) = native(control, &value);
            cpu.x87.set_condition(status::C1 | out_of_range, below.status);
            let stays =
                cpu.x87.is_unmasked(below.status & status::BEFORE_COMPUTING) || below.status & out_of_range != 0;
            (pushed, below.value, below.status & status::EXCEPTIONS, !stays)
        }
        value => {
            let (proceeds, exceptions) = cpu.stack_fault(value.is_some());
            cpu.x87.set_condition(out_of_range, 0);
            (indefinite, indefinite, exceptions, proceeds)
        }
    };
    if proceeds {
        cpu.x87.set(0, value);
        cpu.x87.push(pushed);
    }
    cpu.finish_x87(op, exceptions, bus);
    Ok(())
}

impl Cpu {
    /// Puts a result in ST(index); `None` is what an empty operand computes. False when an unmasked exception kept the operands as
    /// they were.
    #[inline]
    pub(super) fn finish_computed(
        &mut self,
        op: &Op,
        index: u8,
        computed: Option<Computed>,
        bus: &mut dyn Bus,
    ) -> bool {
        let (value, exceptions, proceeds) = match computed {
            Some(Computed { value, status: raised }) => {
                self.x87.set_condition(status::C1, raised);
                let proceeds = !self.x87.is_unmasked(raised & status::BEFORE_COMPUTING);
                (value, raised & status::EXCEPTIONS, proceeds)
            }
            None => {
                let (proceeds, exceptions) = self.stack_fault(false);
                (Register80::INDEFINITE, exceptions, proceeds)
            }
        };
        if proceeds {
            self.x87.set(index, value);
        }
        self.finish_x87(op, exceptions, bus);
        proceeds
    }
}
