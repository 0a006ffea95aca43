//! Operand places: where an operand is, decided once at lowering time.
//!
//! Handlers are generic over places, so that each combination of an instruction, a width and two places compiles to its
//! own straight code.

use iced_x86::{Instruction, OpKind};

use crate::bus::Bus;
use crate::core::{Cpu, ZERO};
use crate::op::{Op, is_immediate, slot};
use crate::stop::Stop;
use crate::width::Width;

/// An operand that can be read.
pub(super) trait Source {
    fn get<W: Width>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<W, Stop>;
}

/// An operand that can be read and written.
pub(super) trait Place: Source {
    fn set<W: Width>(cpu: &mut Cpu, op: &Op, value: W, bus: &mut dyn Bus) -> Result<(), Stop>;

    /// Reads, changes and writes back; `change` runs only when the write can no longer fault.
    fn modify<W: Width>(
        cpu: &mut Cpu,
        op: &Op,
        bus: &mut dyn Bus,
        change: impl FnOnce(&mut Cpu, W) -> W,
    ) -> Result<(), Stop>;
}

/// The register in [`Op::dst`].
pub(super) struct Dst;
/// The register in [`Op::src`].
pub(super) struct Src;
/// [`Op::imm`].
pub(super) struct Imm;
/// The count register CL.
pub(super) struct Cl;
/// Memory at a general register plus displacement, in a flat 64-bit address space.
pub(super) struct Flat;
/// Any memory operand.
pub(super) struct Memory;

impl Source for Dst {
    #[inline(always)]
    fn get<W: Width>(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<W, Stop> {
        Ok(W::read(&cpu.gpr, op.dst))
    }
}

impl Place for Dst {
    #[inline(always)]
    fn set<W: Width>(cpu: &mut Cpu, op: &Op, value: W, _bus: &mut dyn Bus) -> Result<(), Stop> {
        value.write(&mut cpu.gpr, op.dst);
        Ok(())
    }

    #[inline(always)]
    fn modify<W: Width>(
        cpu: &mut Cpu,
        op: &Op,
        _bus: &mut dyn Bus,
        change: impl FnOnce(&mut Cpu, W) -> W,
    ) -> Result<(), Stop> {
        let before = W::read(&cpu.gpr, op.dst);
        change(cpu, before).write(&mut cpu.gpr, op.dst);
        Ok(())
    }
}

impl Source for Src {
    #[inline(always)]
    fn get<W: Width>(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<W, Stop> {
        Ok(W::read(&cpu.gpr, op.src))
    }
}

impl Source for Imm {
    #[inline(always)]
    fn get<W: Width>(_cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<W, Stop> {
        Ok(W::from_u64(op.imm))
    }
}

impl Source for Cl {
    #[inline(always)]
    fn get<W: Width>(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<W, Stop> {
        Ok(W::read(&cpu.gpr, RCX))
    }
}

impl Flat {
    #[inline(always)]
    fn linear(cpu: &Cpu, op: &Op) -> u64 {
        cpu.gpr[usize::from(op.base & 15)].wrapping_add(op.disp)
    }
}

impl Source for Flat {
    #[inline(always)]
    fn get<W: Width>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<W, Stop> {
        cpu.load(Self::linear(cpu, op), bus)
    }
}

impl Place for Flat {
    #[inline(always)]
    fn set<W: Width>(cpu: &mut Cpu, op: &Op, value: W, bus: &mut dyn Bus) -> Result<(), Stop> {
        cpu.store(Self::linear(cpu, op), value, bus)
    }

    #[inline(always)]
    fn modify<W: Width>(
        cpu: &mut Cpu,
        op: &Op,
        bus: &mut dyn Bus,
        change: impl FnOnce(&mut Cpu, W) -> W,
    ) -> Result<(), Stop> {
        cpu.modify(Self::linear(cpu, op), bus, change)
    }
}

impl Source for Memory {
    #[inline(always)]
    fn get<W: Width>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<W, Stop> {
        cpu.load_operand(op, bus)
    }
}

impl Place for Memory {
    #[inline(always)]
    fn set<W: Width>(cpu: &mut Cpu, op: &Op, value: W, bus: &mut dyn Bus) -> Result<(), Stop> {
        cpu.store_operand(op, value, bus)
    }

    #[inline(always)]
    fn modify<W: Width>(
        cpu: &mut Cpu,
        op: &Op,
        bus: &mut dyn Bus,
        change: impl FnOnce(&mut Cpu, W) -> W,
    ) -> Result<(), Stop> {
        cpu.modify(cpu.linear(op), bus, change)
    }
}

/// Slots of the registers that instructions use without naming them.
pub(super) const RAX: u8 = 0;
pub(super) const RCX: u8 = 1;
pub(super) const RDX: u8 = 2;
pub(super) const RBX: u8 = 3;
pub(super) const RSP: u8 = 4;
pub(super) const RBP: u8 = 5;
pub(super) const RSI: u8 = 6;
pub(super) const RDI: u8 = 7;
/// AH among 8-bit registers.
pub(super) const AH: u8 = 16;

/// What kind of place an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Register,
    Immediate,
    /// See [`Flat`].
    Flat,
    /// Memory of another form.
    Memory,
    /// Anything that general instructions do not have: segment, control and other registers, far pointers.
    Other,
}

/// The shape of operand `number` of an instruction whose memory operand is already in `op`.
pub(super) fn shape(instruction: &Instruction, number: u32, op: &Op) -> Shape {
    match instruction.op_kind(number) {
        OpKind::Register if instruction.op_register(number).is_gpr() => Shape::Register,
        OpKind::Memory if op.ea == 0 && op.index == ZERO && op.base < 16 => Shape::Flat,
        OpKind::Memory => Shape::Memory,
        kind if is_immediate(kind) => Shape::Immediate,
        _ => Shape::Other,
    }
}

/// Width in bits of operand `number`, a register or memory.
pub(super) fn bits(instruction: &Instruction, number: u32) -> u32 {
    let bytes = match instruction.op_kind(number) {
        OpKind::Register => instruction.op_register(number).size(),
        _ => instruction.memory_size().size(),
    };
    bytes as u32 * 8
}

/// Fills `dst` and `src` from the first two operands and `imm` from an immediate among them.
pub(super) fn set_operands(instruction: &Instruction, op: &mut Op) {
    if shape(instruction, 0, op) == Shape::Register {
        op.dst = slot(instruction.op_register(0));
    }
    match shape(instruction, 1, op) {
        Shape::Register => op.src = slot(instruction.op_register(1)),
        Shape::Immediate => op.imm = instruction.immediate(1),
        _ => {}
    }
}

/// A generic handler at the width of `bits`: `by_width!(bits, handler::<_, Others>)`.
macro_rules! by_width {
    ($bits:expr, $handler:ident::<_ $(, $more:ty)*>) => {
        match $bits {
            8 => $handler::<u8 $(, $more)*> as $crate::op::Handler,
            16 => $handler::<u16 $(, $more)*>,
            32 => $handler::<u32 $(, $more)*>,
            _ => $handler::<u64 $(, $more)*>,
        }
    };
}

/// As `by_width`, without 8 bits.
macro_rules! by_wide_width {
    ($bits:expr, $handler:ident::<_ $(, $more:ty)*>) => {
        match $bits {
            16 => $handler::<u16 $(, $more)*> as $crate::op::Handler,
            32 => $handler::<u32 $(, $more)*>,
            _ => $handler::<u64 $(, $more)*>,
        }
    };
}

/// A handler whose first generic is a condition code: `by_condition!(code, handler::<_, Others>)`.
macro_rules! by_condition {
    ($code:expr, $handler:ident::<_ $(, $more:ty)*>) => {
        match $code {
            0 => $handler::<0 $(, $more)*> as $crate::op::Handler,
            1 => $handler::<1 $(, $more)*>,
            2 => $handler::<2 $(, $more)*>,
            3 => $handler::<3 $(, $more)*>,
            4 => $handler::<4 $(, $more)*>,
            5 => $handler::<5 $(, $more)*>,
            6 => $handler::<6 $(, $more)*>,
            7 => $handler::<7 $(, $more)*>,
            8 => $handler::<8 $(, $more)*>,
            9 => $handler::<9 $(, $more)*>,
            10 => $handler::<10 $(, $more)*>,
            11 => $handler::<11 $(, $more)*>,
            12 => $handler::<12 $(, $more)*>,
            13 => $handler::<13 $(, $more)*>,
            14 => $handler::<14 $(, $more)*>,
            _ => $handler::<15 $(, $more)*>,
        }
    };
}

/// The condition code, 0 to 15, of a Jcc, SETcc or CMOVcc.
pub(super) fn condition_code(instruction: &Instruction) -> u8 {
    (instruction.condition_code() as u8).wrapping_sub(1) & 15
}

pub(super) use {by_condition, by_wide_width, by_width};
