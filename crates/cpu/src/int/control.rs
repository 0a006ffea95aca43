//! Near control transfers: JMP, Jcc, JCXZ, LOOP, CALL, RET.
//!
//! In 64-bit mode a non-canonical target raises #GP at the branch, before anything changes. Elsewhere RIP is cut to the
//! operand's width.

use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind};

use super::place::{
    Dst, Memory, RCX, Shape, Source, bits, by_condition, by_wide_width, condition_code, set_operands, shape,
};
use super::stack::{Stack, by_stack, is_canonical, push, top};
use crate::bus::Bus;
use crate::core::{BLOCK_BASE, Cpu};
use crate::op::{Handler, Op, Site};
use crate::stop::Stop;
use crate::unit::LazyFlags;
use crate::width::Width;

pub(super) fn lower(instruction: &Instruction, site: Site, op: &mut Op) -> Option<Handler> {
    match instruction.mnemonic() {
        Mnemonic::Jmp => lower_jmp(instruction, site, op),
        Mnemonic::Call => lower_call(instruction, site, op),
        Mnemonic::Ret => {
            let bytes = match instruction.code() {
                Code::Retnw | Code::Retnw_imm16 => 2,
                _ => 8,
            };
            op.imm = if instruction.op_count() == 1 { instruction.immediate16().into() } else { 0 };
            Some(match op.imm {
                0 => by_stack!(bytes, site.code_bits, ret::<_, _>),
                _ => by_stack!(bytes, site.code_bits, ret_and_release::<_, _>),
            })
        }
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => {
            op.imm = site.branch_target(instruction);
            op.third = match instruction.mnemonic() {
                Mnemonic::Jcxz => 16,
                Mnemonic::Jecxz => 32,
                _ => 64,
            };
            Some(by_wide_width!(target_bits(instruction), jump_if_count_zero::<_>))
        }
        Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => {
            op.imm = site.branch_target(instruction);
            op.third = loop_counter_bits(instruction.code());
            op.src = match instruction.mnemonic() {
                Mnemonic::Loop => LOOP_ALWAYS,
                Mnemonic::Loope => LOOP_WHILE_EQUAL,
                _ => LOOP_WHILE_NOT_EQUAL,
            };
            Some(by_wide_width!(target_bits(instruction), loop_while::<_>))
        }
        _ if instruction.condition_code() != ConditionCode::None && is_near_branch(instruction) => {
            op.imm = site.branch_target(instruction);
            let code = condition_code(instruction);
            if target_bits(instruction) == 64 {
                op.branch = LazyFlags::values_of_condition(code);
            }
            Some(match target_bits(instruction) {
                16 => by_condition!(code, jump_if::<_, u16>),
                32 => by_condition!(code, jump_if::<_, u32>),
                _ => by_condition!(code, jump_if::<_, u64>),
            })
        }
        _ => None,
    }
}

fn is_near_branch(instruction: &Instruction) -> bool {
    matches!(instruction.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64)
}

fn target_bits(instruction: &Instruction) -> u32 {
    match instruction.op0_kind() {
        OpKind::NearBranch16 => 16,
        OpKind::NearBranch32 => 32,
        _ => 64,
    }
}

fn lower_jmp(instruction: &Instruction, site: Site, op: &mut Op) -> Option<Handler> {
    if is_near_branch(instruction) {
        op.imm = site.branch_target(instruction);
        if target_bits(instruction) == 64 {
            op.branch = LazyFlags::ALL_VALUES;
        }
        return Some(by_wide_width!(target_bits(instruction), jump::<_>));
    }
    set_operands(instruction, op);
    match (shape(instruction, 0, op), instruction.code()) {
        (Shape::Register, _) => Some(by_wide_width!(bits(instruction, 0), jump_to::<_, Dst>)),
        (_, Code::Jmp_rm16) => Some(jump_to::<u16, Memory>),
        (_, Code::Jmp_rm32) => Some(jump_to::<u32, Memory>),
        (_, Code::Jmp_rm64) => Some(jump_to::<u64, Memory>),
        // Far jumps are system instructions.
        _ => None,
    }
}

fn lower_call(instruction: &Instruction, site: Site, op: &mut Op) -> Option<Handler> {
    let bytes = instruction.stack_pointer_increment().unsigned_abs();
    if is_near_branch(instruction) {
        op.imm = site.branch_target(instruction);
        return Some(by_stack!(bytes, site.code_bits, call::<_, _>));
    }
    set_operands(instruction, op);
    match (shape(instruction, 0, op), instruction.code()) {
        (Shape::Register, _) => Some(by_stack!(bytes, site.code_bits, call_to::<_, _, Dst>)),
        (_, Code::Call_rm16 | Code::Call_rm32 | Code::Call_rm64) => {
            Some(by_stack!(bytes, site.code_bits, call_to::<_, _, Memory>))
        }
        // Far calls are system instructions.
        _ => None,
    }
}

/// The target of a relative branch, before it is checked.
#[inline(always)]
fn relative<W: Width>(cpu: &Cpu, op: &Op) -> W {
    W::from_u64(cpu.gpr[usize::from(BLOCK_BASE)].wrapping_add(op.imm))
}

/// RIP for a near branch to `target`.
#[inline(always)]
fn checked<W: Width>(cpu: &mut Cpu, target: W) -> Result<u64, Stop> {
    let target = target.to_u64();
    if W::BITS == 64 && !is_canonical(target) {
        return Err(cpu.general_protection(0));
    }
    Ok(target)
}

/// RIP after a branch that is not taken.
#[inline(always)]
fn fall_through<W: Width>(cpu: &Cpu, op: &Op) -> u64 {
    let next = cpu.next_rip(op);
    if W::BITS == 64 { next } else { next & 0xffff_ffff }
}

fn jump<W: Width>(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.rip = checked(cpu, relative::<W>(cpu, op))?;
    Err(Stop::Branch)
}

fn jump_to<W: Width, S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let target = S::get::<W>(cpu, op, bus)?;
    cpu.rip = checked(cpu, target)?;
    Err(Stop::Branch)
}

fn jump_if<const CC: u8, W: Width>(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.rip =
        if cpu.flags.condition::<CC>() { checked(cpu, relative::<W>(cpu, op))? } else { fall_through::<W>(cpu, op) };
    Err(Stop::Branch)
}

/// RCX, ECX or CX, by [`Op::third`].
fn counter(cpu: &Cpu, op: &Op) -> u64 {
    match op.third {
        16 => u16::read(&cpu.gpr, RCX).into(),
        32 => u32::read(&cpu.gpr, RCX).into(),
        _ => u64::read(&cpu.gpr, RCX),
    }
}

fn jump_if_count_zero<W: Width>(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.rip = if counter(cpu, op) == 0 { checked(cpu, relative::<W>(cpu, op))? } else { fall_through::<W>(cpu, op) };
    Err(Stop::Branch)
}

/// Values of [`Op::src`] for [`loop_while`].
const LOOP_ALWAYS: u8 = 0;
const LOOP_WHILE_EQUAL: u8 = 1;
const LOOP_WHILE_NOT_EQUAL: u8 = 2;

fn loop_counter_bits(code: Code) -> u8 {
    match code {
        Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX => 16,
        Code::Loop_rel8_16_ECX
        | Code::Loop_rel8_32_ECX
        | Code::Loop_rel8_64_ECX
        | Code::Loope_rel8_16_ECX
        | Code::Loope_rel8_32_ECX
        | Code::Loope_rel8_64_ECX
        | Code::Loopne_rel8_16_ECX
        | Code::Loopne_rel8_32_ECX
        | Code::Loopne_rel8_64_ECX => 32,
        _ => 64,
    }
}

fn loop_while<W: Width>(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let left = counter(cpu, op).wrapping_sub(1);
    let counts = match op.third {
        16 => left as u16 != 0,
        32 => left as u32 != 0,
        _ => left != 0,
    };
    let goes_on = match op.src {
        LOOP_WHILE_EQUAL => cpu.flags.zf(),
        LOOP_WHILE_NOT_EQUAL => !cpu.flags.zf(),
        _ => true,
    };
    let rip = if counts && goes_on { checked(cpu, relative::<W>(cpu, op))? } else { fall_through::<W>(cpu, op) };
    match op.third {
        16 => (left as u16).write(&mut cpu.gpr, RCX),
        32 => (left as u32).write(&mut cpu.gpr, RCX),
        _ => left.write(&mut cpu.gpr, RCX),
    }
    cpu.rip = rip;
    Err(Stop::Branch)
}

fn call<W: Width, K: Stack>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let target = checked(cpu, relative::<W>(cpu, op))?;
    push::<W, K>(cpu, W::from_u64(cpu.next_rip(op)), bus)?;
    cpu.rip = target;
    Err(Stop::Branch)
}

fn call_to<W: Width, K: Stack, S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let target = S::get::<W>(cpu, op, bus)?;
    let target = checked(cpu, target)?;
    push::<W, K>(cpu, W::from_u64(cpu.next_rip(op)), bus)?;
    cpu.rip = target;
    Err(Stop::Branch)
}

fn ret<W: Width, K: Stack>(cpu: &mut Cpu, _op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let target = top::<W, K>(cpu, bus)?;
    cpu.rip = checked(cpu, target)?;
    K::adjust(cpu, W::BYTES);
    Err(Stop::Branch)
}

fn ret_and_release<W: Width, K: Stack>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let target = top::<W, K>(cpu, bus)?;
    cpu.rip = checked(cpu, target)?;
    K::adjust(cpu, W::BYTES.wrapping_add(op.imm));
    Err(Stop::Branch)
}
