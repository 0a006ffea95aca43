//! Flags, hints and fences: CLC, STC, CMC, CLD, STD, LAHF, SAHF, NOP and what acts like it, PAUSE, UD.

use iced_x86::{Instruction, Mnemonic};

use super::place::AH;
use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op, undefined};
use crate::stop::Stop;
use crate::unit::bit;
use crate::width::Width;

pub(super) fn lower(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Clc => clc,
        Mnemonic::Stc => stc,
        Mnemonic::Cmc => cmc,
        Mnemonic::Cld => cld,
        Mnemonic::Std => std,
        Mnemonic::Lahf => lahf,
        Mnemonic::Sahf => sahf,
        Mnemonic::Pause => pause,
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => undefined,
        Mnemonic::Clflush => touch,
        // Every access is complete before the next instruction starts, so fences have nothing to wait for. ENDBR, RDSSP and
        // the prefetches lie in the hint space, which processors without these features execute as NOP.
        Mnemonic::Nop
        | Mnemonic::Reservednop
        | Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Rdsspd
        | Mnemonic::Rdsspq
        | Mnemonic::Cldemote
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchit0
        | Mnemonic::Prefetchit1
        | Mnemonic::Sfence
        | Mnemonic::Lfence
        | Mnemonic::Mfence => nop,
        _ => return None,
    })
}

fn nop(_cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    Ok(())
}

fn pause(_cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    Err(Stop::Pause)
}

/// CLFLUSH: there is no cache, but the address must be readable.
fn touch(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.load_operand::<u8>(op, bus).map(|_| ())
}

fn clc(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.flags.set_cf_keep_others(false);
    Ok(())
}

fn stc(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.flags.set_cf_keep_others(true);
    Ok(())
}

fn cmc(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let carry = cpu.flags.cf();
    cpu.flags.set_cf_keep_others(!carry);
    Ok(())
}

fn cld(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.rflags_rest &= !bit::DF;
    Ok(())
}

fn std(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.rflags_rest |= bit::DF;
    Ok(())
}

fn lahf(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    ((cpu.flags.bits() | bit::FIXED) as u8).write(&mut cpu.gpr, AH);
    Ok(())
}

/// SAHF: all of the six but OF.
fn sahf(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let image = u64::from(u8::read(&cpu.gpr, AH)) & bit::ARITHMETIC;
    let overflow = cpu.flags.bits() & bit::OF;
    cpu.flags.set_bits(image | overflow);
    Ok(())
}
