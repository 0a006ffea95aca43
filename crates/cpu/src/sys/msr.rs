//! RDMSR and WRMSR.

use iced_x86::{Instruction, Mnemonic};

use crate::bus::Bus;
use crate::core::Cpu;
use crate::cpuid::has_msr;
use crate::msr::{MCE_BANKS, MTRR_VARIABLE_RANGES, index};
use crate::op::{Handler, Op};
use crate::stop::Stop;

/// Microcode revision that IA32_BIOS_SIGN_ID reports in its upper half.
const MICROCODE_REVISION: u64 = 1 << 32;
/// IA32_MTRRCAP: variable ranges, fixed ranges and write combining.
const MTRR_CAPABILITIES: u64 = MTRR_VARIABLE_RANGES | 1 << 8 | 1 << 10;

pub(super) fn lower(instruction: &Instruction) -> Option<Handler> {
    match instruction.mnemonic() {
        Mnemonic::Rdmsr => Some(read),
        Mnemonic::Wrmsr => Some(write),
        _ => None,
    }
}

fn read(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.require_supervisor()?;
    let Some(value) = get(cpu, cpu.gpr[1] as u32, cpu.machine_tsc(op)) else {
        return Err(cpu.general_protection(0));
    };
    cpu.gpr[0] = value & 0xffff_ffff;
    cpu.gpr[2] = value >> 32;
    Ok(())
}

fn write(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.require_supervisor()?;
    let value = cpu.gpr[2] << 32 | cpu.gpr[0] & 0xffff_ffff;
    match set(cpu, cpu.gpr[1] as u32, value, cpu.machine_tsc(op), bus)? {
        Some(()) => Err(Stop::Sync),
        None => Err(cpu.general_protection(0)),
    }
}

fn get(cpu: &Cpu, index: u32, machine_tsc: u64) -> Option<u64> {
    if !has_msr(&cpu.system.profile, index) {
        return None;
    }
    let system = &cpu.system;
    Some(match index {
        index::TSC => machine_tsc.wrapping_add(system.tsc_offset),
        index::EFER => system.efer,
        index::FS_BASE => system.segments[4].base,
        index::GS_BASE => system.segments[5].base,
        index::APIC_BASE => cpu.apic.base(),
        index::TSC_DEADLINE => cpu.apic.tsc_deadline(),
        index::X2APIC_FIRST..=index::X2APIC_LAST => return cpu.apic.read_msr(index, machine_tsc),
        index::ARCH_CAPABILITIES => system.profile.arch_capabilities,
        index::PLATFORM_ID => 0,
        index::MCG_CAPABILITIES => MCE_BANKS,
        index::BIOS_SIGN_ID => MICROCODE_REVISION,
        index::MTRR_CAPABILITIES => MTRR_CAPABILITIES,
        _ => return system.msrs.get(index),
    })
}

/// Sets a register. `None` is #GP(0).
fn set(cpu: &mut Cpu, index: u32, value: u64, machine_tsc: u64, bus: &mut dyn Bus) -> Result<Option<()>, Stop> {
    if !has_msr(&cpu.system.profile, index) {
        return Ok(None);
    }
    match index {
        index::TSC => move_tsc(cpu, value.wrapping_sub(machine_tsc).wrapping_sub(cpu.system.tsc_offset)),
        index::TSC_ADJUST => {
            let before = cpu.system.msrs.get(index).unwrap_or_default();
            move_tsc(cpu, value.wrapping_sub(before));
        }
        index::EFER => cpu.set_efer(value)?,
        index::FS_BASE | index::GS_BASE => {
            if !cpu.is_canonical(value) {
                return Ok(None);
            }
            cpu.system.segments[if index == index::FS_BASE { 4 } else { 5 }].base = value;
        }
        index::APIC_BASE => return Ok(cpu.apic.set_base(value)),
        index::TSC_DEADLINE => cpu.apic.set_tsc_deadline(value),
        index::X2APIC_FIRST..=index::X2APIC_LAST => {
            return Ok(cpu.apic.write_msr(index, value, machine_tsc, bus));
        }
        // Nothing is predicted here, and no cache holds anything back.
        index::PRED_CMD | index::FLUSH_CMD => return Ok((value <= 0xff).then_some(())),
        index::BIOS_SIGN_ID => {}
        index::SYSENTER_ESP | index::SYSENTER_EIP | index::LSTAR | index::CSTAR | index::KERNEL_GS_BASE
            if !cpu.is_canonical(value) =>
        {
            return Ok(None);
        }
        index::PAT if value.to_le_bytes().iter().any(|kind| !matches!(kind, 0 | 1 | 4..=7)) => return Ok(None),
        _ => {
            if cpu.system.msrs.set(index, value).is_none() {
                return Ok(None);
            }
            match index {
                index::KVM_SYSTEM_TIME => cpu.write_system_time(),
                index::KVM_WALL_CLOCK => cpu.write_wall_clock(),
                _ => {}
            }
        }
    }
    Ok(Some(()))
}

/// Moves the time-stamp counter; IA32_TSC_ADJUST keeps the sum of all that a guest ever moved it by (Intel SDM volume 3, 17.17.3).
fn move_tsc(cpu: &mut Cpu, ticks: u64) {
    let system = &mut cpu.system;
    system.tsc_offset = system.tsc_offset.wrapping_add(ticks);
    let sum = system.msrs.get(index::TSC_ADJUST).unwrap_or_default().wrapping_add(ticks);
    let _ = system.msrs.set(index::TSC_ADJUST, sum);
    cpu.write_system_time();
}
