//! The interrupt flag, halting, FS and GS bases, TLB and cache control, time, processor identification.

use iced_x86::{Instruction, Mnemonic};

use crate::bus::Bus;
use crate::core::Cpu;
use crate::cpuid::{self, Processor};
use crate::mmu::Access;
use crate::op::{Handler, Op, Site, slot};
use crate::state::InterruptShadow;
use crate::stop::Stop;
use crate::unit::bit;
use crate::unit::control::cr4;
use crate::width::Width;

/// Numbers of the segment registers that have base registers in 64-bit mode.
const FS: usize = 4;
const GS: usize = 5;

pub(super) fn lower(instruction: &Instruction, site: Site, op: &mut Op) -> Option<Handler> {
    let handler: Handler = match instruction.mnemonic() {
        Mnemonic::Cli => clear_interrupt_flag,
        Mnemonic::Sti => set_interrupt_flag,
        Mnemonic::Clac => set_access_check::<false>,
        Mnemonic::Stac => set_access_check::<true>,
        Mnemonic::Hlt => halt,
        Mnemonic::Swapgs if site.code_bits == 64 => swap_gs,
        Mnemonic::Rdfsbase | Mnemonic::Rdgsbase | Mnemonic::Wrfsbase | Mnemonic::Wrgsbase => {
            op.dst = slot(instruction.op0_register());
            let wide = instruction.op0_register().is_gpr64();
            match (instruction.mnemonic(), wide) {
                (Mnemonic::Rdfsbase, true) => read_base::<u64, FS>,
                (Mnemonic::Rdfsbase, false) => read_base::<u32, FS>,
                (Mnemonic::Rdgsbase, true) => read_base::<u64, GS>,
                (Mnemonic::Rdgsbase, false) => read_base::<u32, GS>,
                (Mnemonic::Wrfsbase, true) => write_base::<u64, FS>,
                (Mnemonic::Wrfsbase, false) => write_base::<u32, FS>,
                (_, true) => write_base::<u64, GS>,
                (_, false) => write_base::<u32, GS>,
            }
        }
        Mnemonic::Invlpg => invalidate_page,
        Mnemonic::Invpcid => {
            op.dst = slot(instruction.op0_register());
            invalidate_context
        }
        Mnemonic::Invd | Mnemonic::Wbinvd => require_supervisor,
        Mnemonic::Rdtsc => read_time::<false>,
        Mnemonic::Rdtscp => read_time::<true>,
        Mnemonic::Rdpmc => no_counters,
        Mnemonic::Cpuid => identify,
        _ => return None,
    };
    Some(handler)
}

/// Whether the program may change the interrupt flag.
fn require_interrupt_privilege(cpu: &mut Cpu) -> Result<(), Stop> {
    let io_privilege = (cpu.rflags_rest & bit::IOPL) >> bit::IOPL.trailing_zeros();
    if cpu.is_protected() && u64::from(cpu.cpl) > io_privilege { Err(cpu.general_protection(0)) } else { Ok(()) }
}

fn clear_interrupt_flag(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    require_interrupt_privilege(cpu)?;
    cpu.rflags_rest &= !bit::IF;
    Ok(())
}

fn set_interrupt_flag(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    require_interrupt_privilege(cpu)?;
    if cpu.rflags_rest & bit::IF == 0 {
        cpu.rflags_rest |= bit::IF;
        cpu.system.interrupt_shadow = Some(InterruptShadow::Sti);
    }
    Err(Stop::Sync)
}

fn set_access_check<const SUSPENDED: bool>(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    if cpu.cpl != 0 {
        return Err(cpu.undefined_opcode());
    }
    if SUSPENDED {
        cpu.rflags_rest |= bit::AC;
    } else {
        cpu.rflags_rest &= !bit::AC;
    }
    cpu.update_tlb_table();
    Ok(())
}

fn halt(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.require_supervisor()?;
    Err(Stop::Halt)
}

fn swap_gs(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.require_supervisor()?;
    let system = &mut cpu.system;
    std::mem::swap(&mut system.segments[GS].base, system.msrs.kernel_gs_base_mut());
    Ok(())
}

fn require_base_instructions(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.code_bits == 64 && cpu.system.cr4 & cr4::FSGSBASE != 0 { Ok(()) } else { Err(cpu.undefined_opcode()) }
}

fn read_base<W: Width, const SEGMENT: usize>(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    require_base_instructions(cpu)?;
    W::from_u64(cpu.system.segments[SEGMENT].base).write(&mut cpu.gpr, op.dst);
    Ok(())
}

fn write_base<W: Width, const SEGMENT: usize>(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    require_base_instructions(cpu)?;
    let base = W::read(&cpu.gpr, op.dst).to_u64();
    if !cpu.is_canonical(base) {
        return Err(cpu.general_protection(0));
    }
    cpu.system.segments[SEGMENT].base = base;
    Ok(())
}

fn invalidate_page(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.require_supervisor()?;
    cpu.flush_page(cpu.linear(op));
    Err(Stop::Sync)
}

/// INVPCID (Intel SDM volume 2): a single address, one context, or everything.
fn invalidate_context(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.require_supervisor()?;
    let linear = cpu.linear(op);
    let mut bytes = [0; 16];
    cpu.read_linear(linear, &mut bytes, Access::Read, bus)?;
    let descriptor = u128::from_le_bytes(bytes);
    let (context, address) = (descriptor as u64, (descriptor >> 64) as u64);
    let kind =
        if cpu.code_bits == 64 { cpu.gpr[usize::from(op.dst & 15)] } else { u64::from(u32::read(&cpu.gpr, op.dst)) };
    let disabled = cpu.system.cr4 & cr4::PCIDE == 0;
    if kind > 3 || kind < 2 && (context > 0xfff || disabled && context != 0) || kind == 0 && !cpu.is_canonical(address)
    {
        return Err(cpu.general_protection(0));
    }
    match kind {
        // Entries of one slot belong to one context, so forgetting the address in all of them costs no more.
        0 => cpu.flush_page(address),
        1 => cpu.flush_context(context as u16),
        _ => cpu.flush_tlb(),
    }
    Err(Stop::Sync)
}

fn require_supervisor(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.require_supervisor()
}

fn read_time<const AUXILIARY: bool>(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    if cpu.cpl > 0 && cpu.system.cr4 & cr4::TSD != 0 {
        return Err(cpu.general_protection(0));
    }
    let tsc = cpu.machine_tsc(op).wrapping_add(cpu.system.tsc_offset);
    cpu.gpr[0] = tsc & 0xffff_ffff;
    cpu.gpr[2] = tsc >> 32;
    if AUXILIARY {
        cpu.gpr[1] = cpu.system.msrs.tsc_aux();
    }
    Ok(())
}

/// There are no performance counters, so any index is #GP.
fn no_counters(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    Err(cpu.general_protection(0))
}

fn identify(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let (leaf, subleaf) = (cpu.gpr[0] as u32, cpu.gpr[1] as u32);
    let system = &cpu.system;
    let asking = Processor { number: system.number, count: system.processors };
    let mut registers = cpuid::query(leaf, subleaf, asking, &system.profile);
    if leaf == 1 && system.cr4 & cr4::OSXSAVE != 0 {
        registers.ecx |= cpuid::OSXSAVE;
    }
    cpu.gpr[0] = registers.eax.into();
    cpu.gpr[1] = registers.ecx.into();
    cpu.gpr[2] = registers.edx.into();
    cpu.gpr[3] = registers.ebx.into();
    Ok(())
}
