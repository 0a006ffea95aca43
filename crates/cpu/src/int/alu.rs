//! Sums, differences and logic: ADD, ADC, SUB, SBB, AND, OR, XOR, CMP, TEST, INC, DEC, NEG, NOT.

use iced_x86::{Instruction, Mnemonic};

use super::place::{Dst, Flat, Imm, Memory, Place, Shape, Source, Src, bits, by_width, set_operands, shape};
use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::unit::LazyFlags;
use crate::width::Width;

pub(super) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let lower = match instruction.mnemonic() {
        Mnemonic::Add => lower_binary::<Add>,
        Mnemonic::Adc => lower_binary::<Adc>,
        Mnemonic::Sub => lower_binary::<Sub>,
        Mnemonic::Sbb => lower_binary::<Sbb>,
        Mnemonic::And => lower_binary::<And>,
        Mnemonic::Or => lower_binary::<Or>,
        Mnemonic::Xor => lower_binary::<Xor>,
        Mnemonic::Cmp => lower_comparison::<Sub>,
        Mnemonic::Test => lower_comparison::<And>,
        Mnemonic::Inc => lower_unary::<Inc>,
        Mnemonic::Dec => lower_unary::<Dec>,
        Mnemonic::Neg => lower_unary::<Neg>,
        Mnemonic::Not => lower_unary::<Not>,
        _ => return None,
    };
    set_operands(instruction, op);
    Some(lower(instruction, op))
}

/// An operation on two operands, and its flags.
trait Binary {
    fn apply<W: Width>(flags: &mut LazyFlags, left: W, right: W) -> W;
}

struct Add;
struct Adc;
struct Sub;
struct Sbb;
struct And;
struct Or;
struct Xor;

impl Binary for Add {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut LazyFlags, left: W, right: W) -> W {
        let result = W::from_u64(left.to_u64().wrapping_add(right.to_u64()));
        flags.set_add(left, right, result);
        result
    }
}

impl Binary for Adc {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut LazyFlags, left: W, right: W) -> W {
        let carry = u64::from(flags.cf());
        let result = W::from_u64(left.to_u64().wrapping_add(right.to_u64()).wrapping_add(carry));
        flags.set_add(left, right, result);
        result
    }
}

impl Binary for Sub {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut LazyFlags, left: W, right: W) -> W {
        let result = W::from_u64(left.to_u64().wrapping_sub(right.to_u64()));
        flags.set_sub(left, right, result);
        result
    }
}

impl Binary for Sbb {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut LazyFlags, left: W, right: W) -> W {
        let borrow = u64::from(flags.cf());
        let result = W::from_u64(left.to_u64().wrapping_sub(right.to_u64()).wrapping_sub(borrow));
        flags.set_sub(left, right, result);
        result
    }
}

impl Binary for And {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut LazyFlags, left: W, right: W) -> W {
        let result = W::from_u64(left.to_u64() & right.to_u64());
        flags.set_logic(result);
        result
    }
}

impl Binary for Or {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut LazyFlags, left: W, right: W) -> W {
        let result = W::from_u64(left.to_u64() | right.to_u64());
        flags.set_logic(result);
        result
    }
}

impl Binary for Xor {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut LazyFlags, left: W, right: W) -> W {
        let result = W::from_u64(left.to_u64() ^ right.to_u64());
        flags.set_logic(result);
        result
    }
}

fn lower_binary<B: Binary>(instruction: &Instruction, op: &Op) -> Handler {
    let bits = bits(instruction, 0);
    match (shape(instruction, 0, op), shape(instruction, 1, op)) {
        (Shape::Register, Shape::Register) => by_width!(bits, binary::<_, B, Dst, Src>),
        (Shape::Register, Shape::Immediate) => by_width!(bits, binary::<_, B, Dst, Imm>),
        (Shape::Register, Shape::Flat) => by_width!(bits, binary::<_, B, Dst, Flat>),
        (Shape::Register, _) => by_width!(bits, binary::<_, B, Dst, Memory>),
        (Shape::Flat, Shape::Register) => by_width!(bits, binary::<_, B, Flat, Src>),
        (Shape::Flat, _) => by_width!(bits, binary::<_, B, Flat, Imm>),
        (_, Shape::Register) => by_width!(bits, binary::<_, B, Memory, Src>),
        (_, _) => by_width!(bits, binary::<_, B, Memory, Imm>),
    }
}

fn binary<W: Width, B: Binary, D: Place, S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let right = S::get::<W>(cpu, op, bus)?;
    D::modify(cpu, op, bus, |cpu, left| B::apply(&mut cpu.flags, left, right))
}

fn lower_comparison<B: Binary>(instruction: &Instruction, op: &Op) -> Handler {
    let bits = bits(instruction, 0);
    match (shape(instruction, 0, op), shape(instruction, 1, op)) {
        (Shape::Register, Shape::Register) => by_width!(bits, compare::<_, B, Dst, Src>),
        (Shape::Register, Shape::Immediate) => by_width!(bits, compare::<_, B, Dst, Imm>),
        (Shape::Register, Shape::Flat) => by_width!(bits, compare::<_, B, Dst, Flat>),
        (Shape::Register, _) => by_width!(bits, compare::<_, B, Dst, Memory>),
        (Shape::Flat, Shape::Register) => by_width!(bits, compare::<_, B, Flat, Src>),
        (Shape::Flat, _) => by_width!(bits, compare::<_, B, Flat, Imm>),
        (_, Shape::Register) => by_width!(bits, compare::<_, B, Memory, Src>),
        (_, _) => by_width!(bits, compare::<_, B, Memory, Imm>),
    }
}

/// CMP and TEST: the flags of an operation whose result is dropped.
fn compare<W: Width, B: Binary, L: Source, R: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let right = R::get::<W>(cpu, op, bus)?;
    let left = L::get::<W>(cpu, op, bus)?;
    B::apply(&mut cpu.flags, left, right);
    Ok(())
}

/// An operation on one operand, and its flags.
trait Unary {
    fn apply<W: Width>(flags: &mut LazyFlags, value: W) -> W;
}

struct Inc;
struct Dec;
struct Neg;
struct Not;

impl Unary for Inc {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut LazyFlags, value: W) -> W {
        let result = W::from_u64(value.to_u64().wrapping_add(1));
        flags.set_inc(value, result);
        result
    }
}

impl Unary for Dec {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut LazyFlags, value: W) -> W {
        let result = W::from_u64(value.to_u64().wrapping_sub(1));
        flags.set_dec(value, result);
        result
    }
}

impl Unary for Neg {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut LazyFlags, value: W) -> W {
        let result = W::from_u64(value.to_u64().wrapping_neg());
        flags.set_sub(W::default(), value, result);
        result
    }
}

impl Unary for Not {
    #[inline(always)]
    fn apply<W: Width>(_flags: &mut LazyFlags, value: W) -> W {
        W::from_u64(!value.to_u64())
    }
}

fn lower_unary<U: Unary>(instruction: &Instruction, op: &Op) -> Handler {
    let bits = bits(instruction, 0);
    match shape(instruction, 0, op) {
        Shape::Register => by_width!(bits, unary::<_, U, Dst>),
        Shape::Flat => by_width!(bits, unary::<_, U, Flat>),
        _ => by_width!(bits, unary::<_, U, Memory>),
    }
}

fn unary<W: Width, U: Unary, D: Place>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    D::modify::<W>(cpu, op, bus, |cpu, value| U::apply(&mut cpu.flags, value))
}
