//! Control: FLDCW, FSTCW, FSTSW, FCLEX, FINIT, FINCSTP, FDECSTP, FFREE, FNOP, WAIT, EMMS' x87 half.

use iced_x86::Code;

use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::unit::x87::{X87, status};

const RAX: u8 = 0;

pub(super) fn lower(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Wait => wait,
        Code::Fnop => |cpu, op, bus| computing(cpu, op, bus, |_, _| {}),
        Code::Fincstp => |cpu, op, bus| computing(cpu, op, bus, |x87, _| rotate(x87, 1)),
        Code::Fdecstp => |cpu, op, bus| computing(cpu, op, bus, |x87, _| rotate(x87, 7)),
        Code::Ffree_sti => |cpu, op, bus| computing(cpu, op, bus, free),
        Code::Ffreep_sti => |cpu, op, bus| computing(cpu, op, bus, free_and_pop),
        Code::Fldcw_m2byte => load_control,
        Code::Fnstcw_m2byte => store_control,
        Code::Fnstsw_m2byte => store_status,
        Code::Fnstsw_AX => store_status_in_ax,
        Code::Fnclex => clear_exceptions,
        Code::Fninit => initialize,
        // Instructions of the 8087, 80287 and 80387SL that later processors ignore.
        Code::Fneni | Code::Fndisi | Code::Fnsetpm => ignored,
        _ => return None,
    })
}

fn wait(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()
}

fn ignored(_cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    Ok(())
}

fn computing(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus, change: fn(&mut X87, u8)) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    change(&mut cpu.x87, op.dst);
    cpu.finish_x87(op, 0, bus);
    Ok(())
}

fn rotate(x87: &mut X87, by: u16) {
    x87.rotate(by);
    x87.set_condition(status::C1, 0);
}

fn free(x87: &mut X87, index: u8) {
    x87.free(index);
    x87.set_condition(status::C1, 0);
}

fn free_and_pop(x87: &mut X87, index: u8) {
    free(x87, index);
    x87.pop();
}

fn load_control(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let value = cpu.load_operand(op, bus)?;
    cpu.x87.set_control(value);
    Ok(())
}

fn store_control(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.store_operand(op, cpu.x87.control, bus)
}

fn store_status(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.store_operand(op, cpu.x87.status, bus)
}

fn store_status_in_ax(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let rax = &mut cpu.gpr[usize::from(RAX)];
    *rax = *rax & !0xffff | u64::from(cpu.x87.status);
    Ok(())
}

fn clear_exceptions(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let cleared = status::EXCEPTIONS | status::STACK_FAULT | status::ERROR_SUMMARY | status::BUSY;
    cpu.x87.set_condition(cleared, 0);
    Ok(())
}

fn initialize(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.x87.initialize();
    Ok(())
}
