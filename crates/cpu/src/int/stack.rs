//! The stack: PUSH, POP, PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE, and what calls and returns need of it.

use iced_x86::{Code, Instruction, Mnemonic};

use super::place::{Dst, Imm, Memory, Place, RAX, RBP, RSP, Shape, Source, set_operands, shape};
use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op, Site, slot};
use crate::stop::{Stop, vector};
use crate::unit::bit;
use crate::width::Width;

/// Number of SS among the segments.
const SS: usize = 2;
/// The D/B bit in a segment's attributes: the stack pointer is ESP rather than SP.
const ATTRIBUTE_BIG: u16 = 1 << 14;

/// How the stack is addressed.
pub(super) trait Stack {
    /// Linear address of what lies `delta` bytes from the top.
    fn linear(cpu: &Cpu, delta: u64) -> u64;
    /// Moves the top.
    fn adjust(cpu: &mut Cpu, delta: u64);
    /// Linear address of an offset in the stack segment, cut to the stack pointer's width.
    fn linear_at(cpu: &Cpu, offset: u64) -> u64;
    /// Writes the stack pointer, at its width.
    fn set_top(cpu: &mut Cpu, offset: u64);
}

/// 64-bit mode: RSP, flat.
pub(super) struct Long;
/// Elsewhere: ESP or SP as the stack segment says, from its base.
pub(super) struct Legacy;

impl Stack for Long {
    #[inline(always)]
    fn linear(cpu: &Cpu, delta: u64) -> u64 {
        cpu.gpr[usize::from(RSP)].wrapping_add(delta)
    }

    #[inline(always)]
    fn adjust(cpu: &mut Cpu, delta: u64) {
        let top = &mut cpu.gpr[usize::from(RSP)];
        *top = top.wrapping_add(delta);
    }

    #[inline(always)]
    fn linear_at(_cpu: &Cpu, offset: u64) -> u64 {
        offset
    }

    #[inline(always)]
    fn set_top(cpu: &mut Cpu, offset: u64) {
        cpu.gpr[usize::from(RSP)] = offset;
    }
}

impl Stack for Legacy {
    fn linear(cpu: &Cpu, delta: u64) -> u64 {
        Self::linear_at(cpu, cpu.gpr[usize::from(RSP)].wrapping_add(delta))
    }

    fn adjust(cpu: &mut Cpu, delta: u64) {
        Self::set_top(cpu, cpu.gpr[usize::from(RSP)].wrapping_add(delta));
    }

    fn linear_at(cpu: &Cpu, offset: u64) -> u64 {
        let mask = if has_big_stack(cpu) { 0xffff_ffff } else { 0xffff };
        cpu.system.segment_base(SS as u8).wrapping_add(offset & mask) & 0xffff_ffff
    }

    fn set_top(cpu: &mut Cpu, offset: u64) {
        if has_big_stack(cpu) {
            (offset as u32).write(&mut cpu.gpr, RSP);
        } else {
            (offset as u16).write(&mut cpu.gpr, RSP);
        }
    }
}

fn has_big_stack(cpu: &Cpu) -> bool {
    cpu.system.segments[SS].attributes & ATTRIBUTE_BIG != 0
}

/// Pushes a value; on a fault nothing has changed.
#[inline(always)]
pub(super) fn push<W: Width, K: Stack>(cpu: &mut Cpu, value: W, bus: &mut dyn Bus) -> Result<(), Stop> {
    let below = W::BYTES.wrapping_neg();
    let linear = K::linear(cpu, below);
    match cpu.store(linear, value, bus) {
        Ok(()) => {
            K::adjust(cpu, below);
            Ok(())
        }
        Err(stop) => Err(as_stack_fault(cpu, stop, linear)),
    }
}

/// The value on top of the stack, which stays there.
#[inline(always)]
pub(super) fn top<W: Width, K: Stack>(cpu: &mut Cpu, bus: &mut dyn Bus) -> Result<W, Stop> {
    let linear = K::linear(cpu, 0);
    match cpu.load(linear, bus) {
        Ok(value) => Ok(value),
        Err(stop) => Err(as_stack_fault(cpu, stop, linear)),
    }
}

/// Stack references through a non-canonical address raise #SS rather than #GP (Intel SDM volume 1, section 3.3.7.1).
#[cold]
fn as_stack_fault(cpu: &mut Cpu, stop: Stop, linear: u64) -> Stop {
    if stop == Stop::Fault && cpu.fault.vector == vector::GP && !is_canonical(linear) {
        return cpu.raise(vector::SS, Some(0));
    }
    stop
}

/// Whether bits 63 to 47 of an address are equal.
#[inline(always)]
pub(super) fn is_canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

/// A handler that is generic over the operand's width and the kind of stack: `by_stack!(bytes, code_bits, handler::<_, _, Others>)`.
macro_rules! by_stack {
    ($bytes:expr, $code_bits:expr, $handler:ident::<_, _ $(, $more:ty)*>) => {
        match ($bytes, $code_bits) {
            (2, 64) => $handler::<u16, $crate::int::stack::Long $(, $more)*> as $crate::op::Handler,
            (_, 64) => $handler::<u64, $crate::int::stack::Long $(, $more)*>,
            (2, _) => $handler::<u16, $crate::int::stack::Legacy $(, $more)*>,
            (_, _) => $handler::<u32, $crate::int::stack::Legacy $(, $more)*>,
        }
    };
}
pub(super) use by_stack;

pub(super) fn lower(instruction: &Instruction, site: Site, op: &mut Op) -> Option<Handler> {
    let code_bits = site.code_bits;
    let bytes = instruction.stack_pointer_increment().unsigned_abs();
    Some(match instruction.mnemonic() {
        Mnemonic::Push => {
            set_operands(instruction, op);
            match shape(instruction, 0, op) {
                Shape::Register => by_stack!(bytes, code_bits, push_operand::<_, _, Dst>),
                Shape::Immediate => {
                    op.imm = instruction.immediate(0);
                    by_stack!(bytes, code_bits, push_operand::<_, _, Imm>)
                }
                Shape::Flat | Shape::Memory => by_stack!(bytes, code_bits, push_operand::<_, _, Memory>),
                Shape::Other => {
                    op.src = slot(instruction.op0_register());
                    by_stack!(bytes, code_bits, push_selector::<_, _>)
                }
            }
        }
        Mnemonic::Pop => {
            set_operands(instruction, op);
            match shape(instruction, 0, op) {
                Shape::Register => by_stack!(bytes, code_bits, pop_register::<_, _>),
                Shape::Flat | Shape::Memory => by_stack!(bytes, code_bits, pop_memory::<_, _>),
                // Loading a segment register is a system instruction.
                _ => return None,
            }
        }
        Mnemonic::Pusha | Mnemonic::Pushad => by_stack!(bytes / 8, code_bits, push_all::<_, _>),
        Mnemonic::Popa | Mnemonic::Popad => by_stack!(bytes / 8, code_bits, pop_all::<_, _>),
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => by_stack!(bytes, code_bits, push_flags::<_, _>),
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => by_stack!(bytes, code_bits, pop_flags::<_, _>),
        Mnemonic::Enter => {
            op.imm = instruction.immediate16().into();
            op.third = instruction.immediate8_2nd() & 31;
            by_stack!(if instruction.code() == Code::Enterw_imm16_imm8 { 2 } else { 8 }, code_bits, enter::<_, _>)
        }
        Mnemonic::Leave => {
            by_stack!(if instruction.code() == Code::Leavew { 2 } else { 8 }, code_bits, leave::<_, _>)
        }
        _ => return None,
    })
}

fn push_operand<W: Width, K: Stack, S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let value = S::get::<W>(cpu, op, bus)?;
    push::<W, K>(cpu, value, bus)
}

fn push_selector<W: Width, K: Stack>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let selector = cpu.system.segments[usize::from(op.src & 7)].selector;
    push::<W, K>(cpu, W::from_u64(selector.into()), bus)
}

fn pop_register<W: Width, K: Stack>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let value = top::<W, K>(cpu, bus)?;
    K::adjust(cpu, W::BYTES);
    value.write(&mut cpu.gpr, op.dst);
    Ok(())
}

/// POP to memory: an address that contains RSP uses its value after the pop.
fn pop_memory<W: Width, K: Stack>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let value = top::<W, K>(cpu, bus)?;
    let before = cpu.gpr[usize::from(RSP)];
    K::adjust(cpu, W::BYTES);
    let stored = Memory::set(cpu, op, value, bus);
    if stored.is_err() {
        cpu.gpr[usize::from(RSP)] = before;
    }
    stored
}

/// Runs a handler that moves the stack in several steps; if it faults, RSP and RBP are as before.
fn with_stack_restored(cpu: &mut Cpu, steps: impl FnOnce(&mut Cpu) -> Result<(), Stop>) -> Result<(), Stop> {
    let before = (cpu.gpr[usize::from(RSP)], cpu.gpr[usize::from(RBP)]);
    let result = steps(cpu);
    if result.is_err() {
        (cpu.gpr[usize::from(RSP)], cpu.gpr[usize::from(RBP)]) = before;
    }
    result
}

fn push_all<W: Width, K: Stack>(cpu: &mut Cpu, _op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let values: [W; 8] = std::array::from_fn(|number| W::read(&cpu.gpr, number as u8));
    with_stack_restored(cpu, |cpu| values.into_iter().try_for_each(|value| push::<W, K>(cpu, value, bus)))
}

fn pop_all<W: Width, K: Stack>(cpu: &mut Cpu, _op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let mut values = [W::default(); 8];
    with_stack_restored(cpu, |cpu| {
        for value in values.iter_mut().rev() {
            *value = top::<W, K>(cpu, bus)?;
            K::adjust(cpu, W::BYTES);
        }
        Ok(())
    })?;
    for (number, value) in (RAX..).zip(values) {
        if number != RSP {
            value.write(&mut cpu.gpr, number);
        }
    }
    Ok(())
}

fn push_flags<W: Width, K: Stack>(cpu: &mut Cpu, _op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let image = cpu.rflags() & !(bit::RF | bit::VM);
    push::<W, K>(cpu, W::from_u64(image), bus)
}

/// POPF (Intel SDM volume 2): IOPL changes only at CPL 0, IF only where IOPL permits; RF is cleared.
fn pop_flags<W: Width, K: Stack>(cpu: &mut Cpu, _op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let image = top::<W, K>(cpu, bus)?.to_u64();
    K::adjust(cpu, W::BYTES);
    let before = cpu.rflags();
    let mut writable = bit::ARITHMETIC | bit::TF | bit::DF | bit::NT | bit::AC | bit::ID;
    if cpu.cpl == 0 {
        writable |= bit::IOPL;
    }
    if u64::from(cpu.cpl) <= (before & bit::IOPL) >> bit::IOPL.trailing_zeros() {
        writable |= bit::IF;
    }
    if W::BITS == 16 {
        writable &= 0xffff;
    }
    let after = (before & !writable | image & writable) & !bit::RF;
    cpu.set_rflags(after);
    let changed = before ^ after;
    if changed & bit::AC != 0 {
        cpu.update_tlb_table();
    }
    if changed & (bit::TF | bit::IF | bit::AC) != 0 || after & bit::TF != 0 { Err(Stop::Sync) } else { Ok(()) }
}

fn enter<W: Width, K: Stack>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    with_stack_restored(cpu, |cpu| {
        let outer = cpu.gpr[usize::from(RBP)];
        push::<W, K>(cpu, W::from_u64(outer), bus)?;
        let frame = cpu.gpr[usize::from(RSP)];
        if op.third > 0 {
            for level in 1..u64::from(op.third) {
                let linear = K::linear_at(cpu, outer.wrapping_sub(level * W::BYTES));
                let display: W = cpu.load(linear, bus)?;
                push::<W, K>(cpu, display, bus)?;
            }
            push::<W, K>(cpu, W::from_u64(frame), bus)?;
        }
        // The new top must be writable although nothing is written there.
        let size = op.imm.wrapping_neg();
        let linear = K::linear(cpu, size);
        cpu.probe_write(linear, W::BYTES, bus).map_err(|stop| as_stack_fault(cpu, stop, linear))?;
        K::adjust(cpu, size);
        W::from_u64(frame).write(&mut cpu.gpr, RBP);
        Ok(())
    })
}

fn leave<W: Width, K: Stack>(cpu: &mut Cpu, _op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let frame = cpu.gpr[usize::from(RBP)];
    let linear = K::linear_at(cpu, frame);
    let outer: W = cpu.load(linear, bus).map_err(|stop| as_stack_fault(cpu, stop, linear))?;
    K::set_top(cpu, frame.wrapping_add(W::BYTES));
    outer.write(&mut cpu.gpr, RBP);
    Ok(())
}
