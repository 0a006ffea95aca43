//! Conversions between widths: MOVSX, MOVSXD, MOVZX, CBW, CWDE, CDQE, CWD, CDQ, CQO.

use iced_x86::{Instruction, Mnemonic};

use super::place::{Flat, Memory, RAX, RDX, Shape, Source, Src, bits, set_operands, shape};
use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::width::Width;

pub(super) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let extend = match instruction.mnemonic() {
        Mnemonic::Movzx => by_source::<Zero>,
        Mnemonic::Movsx | Mnemonic::Movsxd => by_source::<Sign>,
        Mnemonic::Cbw => return Some(extend_a::<u8, u16>),
        Mnemonic::Cwde => return Some(extend_a::<u16, u32>),
        Mnemonic::Cdqe => return Some(extend_a::<u32, u64>),
        Mnemonic::Cwd => return Some(spread_sign::<u16>),
        Mnemonic::Cdq => return Some(spread_sign::<u32>),
        Mnemonic::Cqo => return Some(spread_sign::<u64>),
        _ => return None,
    };
    set_operands(instruction, op);
    Some(extend(instruction, op))
}

/// How a value grows.
trait Extension {
    fn apply<N: Width>(value: N) -> u64;
}

struct Zero;
struct Sign;

impl Extension for Zero {
    #[inline(always)]
    fn apply<N: Width>(value: N) -> u64 {
        value.to_u64()
    }
}

impl Extension for Sign {
    #[inline(always)]
    fn apply<N: Width>(value: N) -> u64 {
        value.sign_extended()
    }
}

fn by_source<E: Extension>(instruction: &Instruction, op: &Op) -> Handler {
    let (to, from) = (bits(instruction, 0), bits(instruction, 1));
    match shape(instruction, 1, op) {
        Shape::Register => by_widths::<E, Src>(to, from),
        Shape::Flat => by_widths::<E, Flat>(to, from),
        _ => by_widths::<E, Memory>(to, from),
    }
}

fn by_widths<E: Extension, S: Source>(to: u32, from: u32) -> Handler {
    match (to, from) {
        (16, 8) => extend::<u16, u8, E, S>,
        (32, 8) => extend::<u32, u8, E, S>,
        (64, 8) => extend::<u64, u8, E, S>,
        (16, _) => extend::<u16, u16, E, S>,
        (32, 16) => extend::<u32, u16, E, S>,
        (64, 16) => extend::<u64, u16, E, S>,
        (32, _) => extend::<u32, u32, E, S>,
        (_, _) => extend::<u64, u32, E, S>,
    }
}

fn extend<W: Width, N: Width, E: Extension, S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let value = S::get::<N>(cpu, op, bus)?;
    W::from_u64(E::apply(value)).write(&mut cpu.gpr, op.dst);
    Ok(())
}

/// CBW, CWDE, CDQE: the A register's lower half fills it.
fn extend_a<N: Width, W: Width>(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    W::from_u64(N::read(&cpu.gpr, RAX).sign_extended()).write(&mut cpu.gpr, RAX);
    Ok(())
}

/// CWD, CDQ, CQO: the D register becomes the A register's sign.
fn spread_sign<W: Width>(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let sign = if W::read(&cpu.gpr, RAX).sign() { u64::MAX } else { 0 };
    W::from_u64(sign).write(&mut cpu.gpr, RDX);
    Ok(())
}
