//! Far control transfers: JMP, CALL, RET, IRET, INT.
//!
//! Call gates and task switches do not exist here (no 64-bit kernel uses them): selectors of such descriptors raise
//! #GP.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::bus::Bus;
use crate::core::Cpu;
use crate::mmu::Access;
use crate::op::{Handler, Op, Site};
use crate::stop::{Stop, vector};
use crate::sys::descriptor::{Entry, rpl};
use crate::sys::event::{Event, Source};
use crate::unit::bit;
use crate::unit::segment::{Segment, attribute, number};

/// [`Op::third`]: operand bytes 2, 4 or 8.
pub(super) fn lower(instruction: &Instruction, site: Site, op: &mut Op) -> Option<Handler> {
    use iced_x86::Code as C;
    let handler: Handler = match instruction.mnemonic() {
        Mnemonic::Jmp | Mnemonic::Call
            if matches!(instruction.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32) =>
        {
            let wide = instruction.op0_kind() == OpKind::FarBranch32;
            op.third = if wide { 4 } else { 2 };
            let offset = if wide { instruction.far_branch32() } else { instruction.far_branch16().into() };
            op.imm = u64::from(offset) | u64::from(instruction.far_branch_selector()) << 32;
            if instruction.mnemonic() == Mnemonic::Jmp { jump_immediate } else { call_immediate }
        }
        Mnemonic::Jmp | Mnemonic::Call => {
            op.third = match instruction.code() {
                C::Jmp_m1616 | C::Call_m1616 => 2,
                C::Jmp_m1632 | C::Call_m1632 => 4,
                C::Jmp_m1664 | C::Call_m1664 => 8,
                _ => return None,
            };
            if instruction.mnemonic() == Mnemonic::Jmp { jump_memory } else { call_memory }
        }
        Mnemonic::Retf => {
            op.third = match instruction.code() {
                C::Retfw | C::Retfw_imm16 => 2,
                C::Retfd | C::Retfd_imm16 => 4,
                _ => 8,
            };
            op.imm = if instruction.op_count() == 1 { instruction.immediate16().into() } else { 0 };
            return_far
        }
        Mnemonic::Iret => with_bytes(op, 2),
        Mnemonic::Iretd => with_bytes(op, 4),
        Mnemonic::Iretq => with_bytes(op, 8),
        Mnemonic::Int => {
            op.imm = instruction.immediate8().into();
            interrupt
        }
        Mnemonic::Int3 => {
            op.imm = vector::BP.into();
            interrupt
        }
        Mnemonic::Into if site.code_bits != 64 => interrupt_on_overflow,
        Mnemonic::Int1 => debug_trap,
        _ => return None,
    };
    Some(handler)
}

fn with_bytes(op: &mut Op, bytes: u8) -> Handler {
    op.third = bytes;
    return_from_interrupt
}

fn jump_immediate(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    jump(cpu, (op.imm >> 32) as u16, op.imm & 0xffff_ffff, bus)
}

fn jump_memory(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let (selector, offset) = far_pointer(cpu, op, bus)?;
    jump(cpu, selector, offset, bus)
}

fn call_immediate(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    call(cpu, op, (op.imm >> 32) as u16, op.imm & 0xffff_ffff, bus)
}

fn call_memory(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let (selector, offset) = far_pointer(cpu, op, bus)?;
    call(cpu, op, selector, offset, bus)
}

/// Selector and offset in memory.
fn far_pointer(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(u16, u64), Stop> {
    let mut bytes = [0; 10];
    let len = usize::from(op.third.min(8));
    let linear = cpu.linear(op);
    cpu.read_linear(linear, bytes.get_mut(..len + 2).unwrap_or_default(), Access::Read, bus)?;
    let raw = bytes.iter().rev().fold(0u128, |raw, &byte| raw << 8 | u128::from(byte));
    let offset = raw & ((1 << (len * 8)) - 1);
    Ok(((raw >> (len * 8)) as u16, offset as u64))
}

fn jump(cpu: &mut Cpu, selector: u16, offset: u64, bus: &mut dyn Bus) -> Result<(), Stop> {
    let code = cpu.checked_code_segment(selector, Entry::Direct, bus)?;
    require_target(cpu, &code, offset)?;
    cpu.rip = offset;
    cpu.enter_code(code, cpu.cpl);
    Err(Stop::Transfer)
}

fn call(cpu: &mut Cpu, op: &Op, selector: u16, offset: u64, bus: &mut dyn Bus) -> Result<(), Stop> {
    let code = cpu.checked_code_segment(selector, Entry::Direct, bus)?;
    require_target(cpu, &code, offset)?;
    let old = cpu.system.segments[number::CS].selector;
    let values = [cpu.next_rip(op), old.into()];
    let bytes = usize::from(op.third.min(8));
    let mut frame = [0; 16];
    for (slot, value) in frame.chunks_exact_mut(bytes.max(1)).zip(values) {
        slot.copy_from_slice(u64::to_le_bytes(value).get(..bytes).unwrap_or_default());
    }
    let top = stack_offset(cpu, cpu.gpr[4].wrapping_sub(2 * bytes as u64));
    let linear = stack_linear(cpu, top);
    cpu.write_linear(linear, frame.get(..2 * bytes).unwrap_or_default(), Access::Write, bus)?;
    set_stack(cpu, top);
    cpu.rip = offset;
    cpu.enter_code(code, cpu.cpl);
    Err(Stop::Transfer)
}

fn return_far(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let bytes = u64::from(op.third);
    let [rip, selector] = pop_values::<2>(cpu, 0, bytes, bus)?;
    let selector = selector as u16;
    let code = cpu.checked_code_segment(selector, Entry::Return, bus)?;
    require_target(cpu, &code, rip)?;
    if !cpu.is_protected() || rpl(selector) == cpu.cpl {
        set_stack(cpu, cpu.gpr[4].wrapping_add(2 * bytes + op.imm));
        cpu.rip = rip;
        cpu.enter_code(code, cpu.cpl);
        return Err(Stop::Transfer);
    }
    let [top, stack_selector] = pop_values::<2>(cpu, 2 * bytes + op.imm, bytes, bus)?;
    let cpl = rpl(selector);
    let stack = cpu.checked_stack_segment(stack_selector as u16, cpl, &code, bus)?;
    cpu.rip = rip;
    cpu.system.segments[number::SS] = stack;
    cpu.enter_code(code, cpl);
    set_stack(cpu, top.wrapping_add(op.imm));
    Err(Stop::Transfer)
}

fn return_from_interrupt(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let bytes = u64::from(op.third);
    if cpu.is_protected() && cpu.rflags_rest & bit::NT != 0 {
        return Err(cpu.general_protection(0));
    }
    let [rip, selector, flags] = pop_values::<3>(cpu, 0, bytes, bus)?;
    let selector = selector as u16;
    let code = cpu.checked_code_segment(selector, Entry::Return, bus)?;
    require_target(cpu, &code, rip)?;
    let cpl = if cpu.is_protected() { rpl(selector) } else { 0 };
    let flags = returned_flags(cpu, flags, bytes);
    if cpu.code_bits == 64 || cpl != cpu.cpl {
        let [top, stack_selector] = pop_values::<2>(cpu, 3 * bytes, bytes, bus)?;
        let stack = cpu.checked_stack_segment(stack_selector as u16, cpl, &code, bus)?;
        cpu.system.segments[number::SS] = stack;
        cpu.rip = rip;
        cpu.set_rflags(flags);
        cpu.enter_code(code, cpl);
        set_stack(cpu, top);
    } else {
        set_stack(cpu, cpu.gpr[4].wrapping_add(3 * bytes));
        cpu.rip = rip;
        cpu.set_rflags(flags);
        cpu.enter_code(code, cpl);
    }
    cpu.system.nmi_blocked = false;
    Err(Stop::Transfer)
}

/// RFLAGS after IRET: what the privilege level may not change stays. RF does not outlive the instruction.
fn returned_flags(cpu: &Cpu, image: u64, bytes: u64) -> u64 {
    let before = cpu.rflags();
    let mut writable = bit::ARITHMETIC | bit::TF | bit::DF | bit::NT | bit::AC | bit::ID;
    if cpu.cpl == 0 {
        writable |= bit::IOPL | bit::VIF | bit::VIP;
    }
    if u64::from(cpu.cpl) <= (before & bit::IOPL) >> bit::IOPL.trailing_zeros() {
        writable |= bit::IF;
    }
    if bytes == 2 {
        writable &= 0xffff;
    }
    before & !writable | image & writable
}

fn interrupt(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    software_interrupt(cpu, op, op.imm as u8, Source::Software, bus)
}

fn interrupt_on_overflow(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    if cpu.flags.of() { software_interrupt(cpu, op, vector::OF, Source::Software, bus) } else { Ok(()) }
}

/// INT1: a debug trap that no gate's privilege level bars.
fn debug_trap(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    software_interrupt(cpu, op, vector::DB, Source::Exception, bus)
}

fn software_interrupt(cpu: &mut Cpu, op: &Op, vector: u8, source: Source, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.rip = cpu.next_rip(op);
    cpu.deliver(Event { vector, error_code: None, source }, bus)?;
    Err(Stop::Transfer)
}

/// A 64-bit target must be canonical.
fn require_target(cpu: &mut Cpu, code: &Segment, offset: u64) -> Result<(), Stop> {
    let long = cpu.is_long() && code.has(attribute::LONG);
    if long && !cpu.is_canonical(offset) { Err(cpu.general_protection(0)) } else { Ok(()) }
}

/// Reads values of `bytes` bytes that lie `skip` bytes from the top of the stack.
fn pop_values<const N: usize>(cpu: &mut Cpu, skip: u64, bytes: u64, bus: &mut dyn Bus) -> Result<[u64; N], Stop> {
    let mut raw = [0; 24];
    let raw = raw.get_mut(..N * bytes as usize).unwrap_or_default();
    let linear = stack_linear(cpu, stack_offset(cpu, cpu.gpr[4].wrapping_add(skip)));
    cpu.read_linear(linear, raw, Access::Read, bus)?;
    let mut values = raw.chunks_exact(bytes.max(1) as usize);
    Ok(std::array::from_fn(|_| {
        values.next().unwrap_or_default().iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }))
}

/// Cuts a stack pointer to its width.
fn stack_offset(cpu: &Cpu, offset: u64) -> u64 {
    match cpu.mode.stack_bits() {
        64 => offset,
        32 => offset & 0xffff_ffff,
        _ => offset & 0xffff,
    }
}

fn stack_linear(cpu: &Cpu, offset: u64) -> u64 {
    if cpu.code_bits == 64 {
        offset
    } else {
        cpu.system.segment_base(number::SS as u8).wrapping_add(offset) & 0xffff_ffff
    }
}

/// Sets the stack pointer at the width of the stack segment now in SS.
fn set_stack(cpu: &mut Cpu, offset: u64) {
    let top = &mut cpu.gpr[4];
    *top = match cpu.mode.stack_bits() {
        64 => offset,
        32 => offset & 0xffff_ffff,
        _ => *top & !0xffff | offset & 0xffff,
    };
}
