//! SYSCALL, SYSRET, SYSENTER, SYSEXIT.
//!
//! As on Intel processors, SYSCALL and SYSRET exist in 64-bit mode only and SYSENTER in all protected modes. On a processor of AMD's make
//! SYSCALL is there in compatibility mode too (APM volume 3), where kernels use it for 32-bit programs.

use iced_x86::{Instruction, Mnemonic};

use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::unit::bit;
use crate::unit::control::efer;
use crate::unit::segment::{Segment, attribute, number};

pub(super) fn lower(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Syscall => syscall,
        Mnemonic::Sysret => sysret_compatible,
        Mnemonic::Sysretq => sysret_long,
        Mnemonic::Sysenter => sysenter,
        Mnemonic::Sysexit => sysexit_compatible,
        Mnemonic::Sysexitq => sysexit_long,
        _ => return None,
    })
}

const FLAT_CODE: u16 = attribute::ACCESSED
    | attribute::READ_WRITE
    | attribute::CODE
    | attribute::SEGMENT
    | attribute::PRESENT
    | attribute::GRANULARITY;
const FLAT_DATA: u16 = attribute::ACCESSED
    | attribute::READ_WRITE
    | attribute::SEGMENT
    | attribute::PRESENT
    | attribute::DEFAULT_32
    | attribute::GRANULARITY;

fn flat_code(selector: u16, cpl: u8, long: bool) -> Segment {
    let size = if long { attribute::LONG } else { attribute::DEFAULT_32 };
    let attributes = FLAT_CODE | size | u16::from(cpl) << attribute::DPL_SHIFT;
    Segment { selector, attributes, limit: u32::MAX, base: 0 }
}

fn flat_stack(selector: u16, cpl: u8) -> Segment {
    Segment { selector, attributes: FLAT_DATA | u16::from(cpl) << attribute::DPL_SHIFT, limit: u32::MAX, base: 0 }
}

/// Makes flat segments current. Unlike IRET and far RET these instructions leave the data segments alone.
fn enter(cpu: &mut Cpu, code: Segment, stack: Segment, cpl: u8) {
    cpu.system.segments[number::CS] = code;
    cpu.system.segments[number::SS] = stack;
    cpu.cpl = cpl;
    cpu.update_mode();
}

fn syscall(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let compatible = cpu.code_bits != 64;
    let allowed = !compatible || cpu.system.efer & efer::LMA != 0 && cpu.system.profile.is_amd();
    if cpu.system.efer & efer::SCE == 0 || !allowed {
        return Err(cpu.undefined_opcode());
    }
    let msrs = &cpu.system.msrs;
    let target = if compatible { msrs.cstar() } else { msrs.lstar() };
    let (selector, mask) = ((msrs.star() >> 32) as u16 & !3, msrs.sfmask());
    let flags = cpu.rflags() & !bit::RF;
    cpu.gpr[1] = cpu.next_rip(op);
    cpu.gpr[11] = flags;
    cpu.set_rflags(flags & !mask);
    cpu.rip = target;
    enter(cpu, flat_code(selector, 0, true), flat_stack(selector.wrapping_add(8), 0), 0);
    Err(Stop::Transfer)
}

fn sysret_long(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    sysret(cpu, true)
}

fn sysret_compatible(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    sysret(cpu, false)
}

fn sysret(cpu: &mut Cpu, long: bool) -> Result<(), Stop> {
    if cpu.system.efer & efer::SCE == 0 || cpu.code_bits != 64 {
        return Err(cpu.undefined_opcode());
    }
    cpu.require_supervisor()?;
    let target = cpu.gpr[1];
    if long && !cpu.is_canonical(target) {
        return Err(cpu.general_protection(0));
    }
    let base = (cpu.system.msrs.star() >> 48) as u16;
    let code = if long { base.wrapping_add(16) } else { base } | 3;
    /// What SYSRET takes from R11.
    const FLAGS: u64 = 0x3c_7fd7 & !bit::VM;
    cpu.set_rflags(cpu.gpr[11] & FLAGS);
    cpu.rip = if long { target } else { target & 0xffff_ffff };
    enter(cpu, flat_code(code, 3, long), flat_stack(base.wrapping_add(8) | 3, 3), 3);
    Err(Stop::Transfer)
}

fn sysenter(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let (selector, stack, target) = cpu.system.msrs.sysenter();
    let selector = selector as u16 & !3;
    if !cpu.is_protected() || selector == 0 {
        return Err(cpu.general_protection(0));
    }
    let long = cpu.is_long();
    cpu.set_rflags(cpu.rflags() & !(bit::VM | bit::IF | bit::RF));
    let width = if long { u64::MAX } else { 0xffff_ffff };
    cpu.gpr[4] = stack & width;
    cpu.rip = target & width;
    enter(cpu, flat_code(selector, 0, long), flat_stack(selector.wrapping_add(8), 0), 0);
    Err(Stop::Transfer)
}

fn sysexit_long(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    sysexit(cpu, true)
}

fn sysexit_compatible(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    sysexit(cpu, false)
}

fn sysexit(cpu: &mut Cpu, long: bool) -> Result<(), Stop> {
    let selector = cpu.system.msrs.sysenter().0 as u16 & !3;
    if !cpu.is_protected() || selector == 0 {
        return Err(cpu.general_protection(0));
    }
    cpu.require_supervisor()?;
    let (stack, target) = (cpu.gpr[1], cpu.gpr[2]);
    if long && !(cpu.is_canonical(stack) && cpu.is_canonical(target)) {
        return Err(cpu.general_protection(0));
    }
    let width = if long { u64::MAX } else { 0xffff_ffff };
    let code = selector.wrapping_add(if long { 32 } else { 16 }) | 3;
    cpu.gpr[4] = stack & width;
    cpu.rip = target & width;
    enter(cpu, flat_code(code, 3, long), flat_stack(code.wrapping_add(8), 3), 3);
    Err(Stop::Transfer)
}
