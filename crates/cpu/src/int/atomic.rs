//! Instructions made for LOCK: XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B.
//!
//! All processors of a VM take turns on one thread, so a locked instruction is the same as an unlocked one.

use iced_x86::{Instruction, Mnemonic};

use super::place::{Dst, Memory, Place, RAX, RBX, RCX, RDX, Shape, bits, by_width, set_operands, shape};
use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::width::Width;

pub(super) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let exchanges = match instruction.mnemonic() {
        Mnemonic::Xadd => false,
        Mnemonic::Cmpxchg => true,
        Mnemonic::Cmpxchg8b => return Some(cmpxchg8b),
        Mnemonic::Cmpxchg16b => return Some(cmpxchg16b),
        _ => return None,
    };
    set_operands(instruction, op);
    let bits = bits(instruction, 0);
    Some(match (exchanges, shape(instruction, 0, op)) {
        (false, Shape::Register) => by_width!(bits, xadd::<_, Dst>),
        (false, _) => by_width!(bits, xadd::<_, Memory>),
        (true, Shape::Register) => by_width!(bits, cmpxchg_register::<_>),
        (true, _) => by_width!(bits, cmpxchg_memory::<_>),
    })
}

/// XADD: the source takes the destination's old value first, so that `xadd r, r` doubles it.
fn xadd<W: Width, D: Place>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    D::modify::<W>(cpu, op, bus, |cpu, before| {
        let right = W::read(&cpu.gpr, op.src);
        let sum = W::from_u64(before.to_u64().wrapping_add(right.to_u64()));
        cpu.flags.set_add(before, right, sum);
        before.write(&mut cpu.gpr, op.src);
        sum
    })
}

/// Sets the flags of CMPXCHG's comparison; true when equal.
fn compare<W: Width>(cpu: &mut Cpu, expected: W, found: W) -> bool {
    cpu.flags.set_sub(expected, found, W::from_u64(expected.to_u64().wrapping_sub(found.to_u64())));
    expected == found
}

/// CMPXCHG on a register: only one of destination and accumulator is written (which shows in the upper half of 64 bits).
fn cmpxchg_register<W: Width>(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let before = W::read(&cpu.gpr, op.dst);
    if compare(cpu, W::read(&cpu.gpr, RAX), before) {
        W::read(&cpu.gpr, op.src).write(&mut cpu.gpr, op.dst);
    } else {
        before.write(&mut cpu.gpr, RAX);
    }
    Ok(())
}

/// CMPXCHG on memory, which is written (and must be writable) whether or not the comparison succeeds.
fn cmpxchg_memory<W: Width>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let desired = W::read(&cpu.gpr, op.src);
    cpu.modify(cpu.linear(op), bus, |cpu, before: W| {
        if compare(cpu, W::read(&cpu.gpr, RAX), before) {
            return desired;
        }
        before.write(&mut cpu.gpr, RAX);
        before
    })
}

fn cmpxchg8b(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let pair = |cpu: &Cpu, high, low| u64::from(u32::read(&cpu.gpr, high)) << 32 | u64::from(u32::read(&cpu.gpr, low));
    let expected = pair(cpu, RDX, RAX);
    let desired = pair(cpu, RCX, RBX);
    cpu.modify(cpu.linear(op), bus, |cpu, before: u64| {
        cpu.flags.set_zf_keep_others(before == expected);
        if before == expected {
            return desired;
        }
        (before as u32).write(&mut cpu.gpr, RAX);
        ((before >> 32) as u32).write(&mut cpu.gpr, RDX);
        before
    })
}

fn cmpxchg16b(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let linear = cpu.linear(op);
    if linear & 15 != 0 {
        return Err(cpu.general_protection(0));
    }
    let pair =
        |cpu: &Cpu, high, low| u128::from(u64::read(&cpu.gpr, high)) << 64 | u128::from(u64::read(&cpu.gpr, low));
    let expected = pair(cpu, RDX, RAX);
    let desired = pair(cpu, RCX, RBX);
    cpu.modify(linear, bus, |cpu, before: u128| {
        cpu.flags.set_zf_keep_others(before == expected);
        if before == expected {
            return desired;
        }
        (before as u64).write(&mut cpu.gpr, RAX);
        ((before >> 64) as u64).write(&mut cpu.gpr, RDX);
        before
    })
}
