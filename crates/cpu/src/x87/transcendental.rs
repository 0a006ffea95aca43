//! F2XM1, FYL2X, FYL2XP1, FPTAN, FPATAN, FSIN, FCOS, FSINCOS.
//!
//! Their last bit is the vendor's own choice, and so is what they make of operands outside of their domains: hosts which are to stay in
//! lockstep must agree on [`float_signature`](crate::float_signature).

use iced_x86::Code;

use super::arithmetic::{popping, pushing, unary};
use super::native::{self, Unary};
use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::unit::x87::{Register80, status};

pub(super) fn lower(code: Code) -> Option<Handler> {
    Some(match code {
        Code::F2xm1 => |cpu, op, bus| unary(cpu, op, bus, native::power_minus_one),
        Code::Fyl2x => |cpu, op, bus| popping(cpu, op, bus, native::times_logarithm),
        Code::Fyl2xp1 => |cpu, op, bus| popping(cpu, op, bus, native::times_logarithm_plus_one),
        Code::Fpatan => |cpu, op, bus| popping(cpu, op, bus, native::arctangent),
        Code::Fsin => |cpu, op, bus| ranged(cpu, op, bus, native::sine),
        Code::Fcos => |cpu, op, bus| ranged(cpu, op, bus, native::cosine),
        Code::Fsincos => |cpu, op, bus| pushing(cpu, op, bus, native::sine_cosine, status::C2),
        Code::Fptan => |cpu, op, bus| pushing(cpu, op, bus, native::tangent, status::C2),
        _ => return None,
    })
}

/// ST(0) to ST(0); C2 tells that the operand is out of range and stays as it is.
fn ranged(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus, native: Unary) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let control = cpu.x87.control;
    let computed = cpu.x87.value(0).map(|value: Register80| native(control, &value));
    cpu.x87.set_condition(status::C2, computed.map_or(0, |computed| computed.status));
    cpu.finish_computed(op, 0, computed, bus);
    Ok(())
}
