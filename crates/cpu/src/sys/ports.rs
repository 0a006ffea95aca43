//! Port input and output.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::bus::Bus;
use crate::core::Cpu;
use crate::mmu::Access;
use crate::op::{Handler, Op, ea};
use crate::stop::Stop;
use crate::unit::bit;
use crate::width::Width;

/// Index registers by number.
const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;
/// Number of ES.
const ES: u8 = 0;
/// [`Op::dst`] of a string instruction with a REP prefix.
const REPEATED: u8 = 1;
/// [`Op::src`]: the port is in DX, not in the immediate.
const PORT_IN_DX: u8 = 1;

pub(super) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let mnemonic = instruction.mnemonic();
    Some(match mnemonic {
        Mnemonic::In | Mnemonic::Out => {
            let (port, data) = if mnemonic == Mnemonic::In { (1, 0) } else { (0, 1) };
            if instruction.op_kind(port) == OpKind::Register {
                op.src = PORT_IN_DX;
            } else {
                op.imm = instruction.immediate8().into();
            }
            let handlers: [Handler; 3] = if mnemonic == Mnemonic::In {
                [input::<u8>, input::<u16>, input::<u32>]
            } else {
                [output::<u8>, output::<u16>, output::<u32>]
            };
            handlers[instruction.op_register(data).size().trailing_zeros().min(2) as usize]
        }
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd | Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => {
            op.dst = u8::from(instruction.has_rep_prefix() || instruction.has_repne_prefix()) * REPEATED;
            match mnemonic {
                Mnemonic::Insb => input_string::<u8>,
                Mnemonic::Insw => input_string::<u16>,
                Mnemonic::Insd => input_string::<u32>,
                Mnemonic::Outsb => output_string::<u8>,
                Mnemonic::Outsw => output_string::<u16>,
                _ => output_string::<u32>,
            }
        }
        _ => return None,
    })
}

fn port(cpu: &Cpu, op: &Op) -> u16 {
    if op.src == PORT_IN_DX { cpu.gpr[2] as u16 } else { op.imm as u16 }
}

fn input<W: Width>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let port = port(cpu, op);
    cpu.require_ports(port, W::BYTES as u16, bus)?;
    read_port::<W>(cpu, op, port, bus).write(&mut cpu.gpr, 0);
    Err(Stop::Sync)
}

fn output<W: Width>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let port = port(cpu, op);
    cpu.require_ports(port, W::BYTES as u16, bus)?;
    write_port(cpu, op, port, W::read(&cpu.gpr, 0), bus);
    Err(Stop::Sync)
}

fn read_port<W: Width>(cpu: &Cpu, op: &Op, port: u16, bus: &mut dyn Bus) -> W {
    let mut bytes = [0; 8];
    bus.port_read(cpu.machine_tsc(op), port, bytes.get_mut(..W::BYTES as usize).unwrap_or_default());
    W::from_u64(u64::from_le_bytes(bytes))
}

fn write_port<W: Width>(cpu: &Cpu, op: &Op, port: u16, value: W, bus: &mut dyn Bus) {
    let bytes = value.to_u64().to_le_bytes();
    bus.port_write(cpu.machine_tsc(op), port, bytes.get(..W::BYTES as usize).unwrap_or_default());
}

/// INS: one element, as REP does them one an instruction.
fn input_string<W: Width>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let port = cpu.gpr[2] as u16;
    cpu.require_ports(port, W::BYTES as u16, bus)?;
    if !cpu.alone {
        return Err(Stop::Alone);
    }
    let mask = address_mask(op);
    if op.dst == REPEATED && cpu.gpr[RCX] & mask == 0 {
        return Ok(());
    }
    let mut linear = cpu.gpr[RDI] & mask;
    if cpu.code_bits != 64 {
        linear = cpu.system.segment_base(ES).wrapping_add(linear) & 0xffff_ffff;
    }
    cpu.probe_write(linear, W::BYTES, bus)?;
    let value: W = read_port(cpu, op, port, bus);
    cpu.write_linear(
        linear,
        value.to_u64().to_le_bytes().get(..W::BYTES as usize).unwrap_or_default(),
        Access::Write,
        bus,
    )?;
    advance(cpu, op, RDI, W::BYTES)
}

/// OUTS: one element, as REP does them one an instruction.
fn output_string<W: Width>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let port = cpu.gpr[2] as u16;
    cpu.require_ports(port, W::BYTES as u16, bus)?;
    if !cpu.alone {
        return Err(Stop::Alone);
    }
    let mask = address_mask(op);
    if op.dst == REPEATED && cpu.gpr[RCX] & mask == 0 {
        return Ok(());
    }
    let linear = cpu.linear_of(op, cpu.gpr[RSI] & mask);
    let value: W = cpu.load(linear, bus)?;
    write_port(cpu, op, port, value, bus);
    advance(cpu, op, RSI, W::BYTES)
}

fn address_mask(op: &Op) -> u64 {
    match op.ea & (ea::ADDRESS_16 | ea::ADDRESS_32) {
        0 => u64::MAX,
        ea::ADDRESS_32 => 0xffff_ffff,
        _ => 0xffff,
    }
}

fn advance(cpu: &mut Cpu, op: &Op, index: usize, bytes: u64) -> Result<(), Stop> {
    let mask = address_mask(op);
    let step = if cpu.rflags_rest & bit::DF != 0 { bytes.wrapping_neg() } else { bytes };
    add_masked(&mut cpu.gpr[index], step, mask);
    if op.dst != REPEATED {
        return Ok(());
    }
    add_masked(&mut cpu.gpr[RCX], u64::MAX, mask);
    if cpu.gpr[RCX] & mask == 0 { Ok(()) } else { Err(Stop::Repeat) }
}

/// Adds within the address size: 32-bit results clear the upper half, 16-bit results keep it.
fn add_masked(register: &mut u64, delta: u64, mask: u64) {
    let sum = register.wrapping_add(delta) & mask;
    *register = if mask == 0xffff { *register & !mask | sum } else { sum };
}
