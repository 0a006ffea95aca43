//! Control and debug registers.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::bus::Bus;
use crate::core::Cpu;
use crate::cpuid::PHYSICAL_BITS;
use crate::op::{Handler, Op, Site, slot};
use crate::stop::Stop;
use crate::sys::operand::{read_rm, set_rm, write_selector};
use crate::sys::selectors::require_user_mode_information;
use crate::unit::control::{cr0, cr4, efer, xcr0};
use crate::unit::segment::{attribute, number};
use crate::width::Width;

/// Do not forget the translations of the context that CR3 selects.
const CR3_KEEP: u64 = 1 << 63;

pub(super) fn lower(instruction: &Instruction, site: Site, op: &mut Op) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Mov if instruction.op0_register().is_cr() => {
            op.dst = slot(instruction.op0_register());
            op.src = slot(instruction.op1_register());
            if site.code_bits == 64 { write_control::<u64> } else { write_control::<u32> }
        }
        Mnemonic::Mov if instruction.op1_register().is_cr() => {
            op.dst = slot(instruction.op0_register());
            op.src = slot(instruction.op1_register());
            if site.code_bits == 64 { read_control::<u64> } else { read_control::<u32> }
        }
        Mnemonic::Mov if instruction.op0_register().is_dr() => {
            op.dst = slot(instruction.op0_register());
            op.src = slot(instruction.op1_register());
            if site.code_bits == 64 { write_debug::<u64> } else { write_debug::<u32> }
        }
        Mnemonic::Mov if instruction.op1_register().is_dr() => {
            op.dst = slot(instruction.op0_register());
            op.src = slot(instruction.op1_register());
            if site.code_bits == 64 { read_debug::<u64> } else { read_debug::<u32> }
        }
        Mnemonic::Clts => clear_task_switched,
        Mnemonic::Lmsw => {
            set_rm(instruction, 0, op);
            load_machine_status
        }
        Mnemonic::Smsw => {
            set_rm(instruction, 0, op);
            match instruction.op0_kind() {
                OpKind::Register if instruction.op0_register().size() == 8 => store_machine_status::<u64>,
                OpKind::Register if instruction.op0_register().size() == 4 => store_machine_status::<u32>,
                _ => store_machine_status::<u16>,
            }
        }
        Mnemonic::Xgetbv => read_extended_control,
        Mnemonic::Xsetbv => write_extended_control,
        _ => return None,
    })
}

fn read_control<W: Width>(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let value = match op.src {
        0 => cpu.system.cr0,
        2 => cpu.system.cr2,
        3 => cpu.system.cr3,
        4 => cpu.system.cr4,
        8 => cpu.apic.cr8(),
        _ => return Err(cpu.undefined_opcode()),
    };
    cpu.require_supervisor()?;
    W::from_u64(value).write(&mut cpu.gpr, op.dst);
    Ok(())
}

fn write_control<W: Width>(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    if !matches!(op.dst, 0 | 2 | 3 | 4 | 8) {
        return Err(cpu.undefined_opcode());
    }
    cpu.require_supervisor()?;
    let value = W::read(&cpu.gpr, op.src).to_u64();
    match op.dst {
        0 => cpu.set_cr0(value)?,
        2 => cpu.system.cr2 = value,
        3 => cpu.set_cr3(value)?,
        4 => cpu.set_cr4(value)?,
        _ => {
            if value > 15 {
                return Err(cpu.general_protection(0));
            }
            cpu.apic.set_cr8(value);
        }
    }
    Err(Stop::Sync)
}

fn clear_task_switched(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.require_supervisor()?;
    cpu.system.cr0 &= !cr0::TS;
    cpu.update_mode();
    Err(Stop::Sync)
}

/// LMSW sets PE, MP, EM and TS; it cannot clear PE.
fn load_machine_status(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.require_supervisor()?;
    let status = u64::from(read_rm::<u16>(cpu, op, bus)?);
    let changed = cr0::MP | cr0::EM | cr0::TS;
    cpu.set_cr0(cpu.system.cr0 & !changed | status & (changed | cr0::PE))?;
    Err(Stop::Sync)
}

fn store_machine_status<W: Width>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    require_user_mode_information(cpu)?;
    write_selector(cpu, op, W::from_u64(cpu.system.cr0), bus)
}

/// DR4 and DR5 are other names of DR6 and DR7 unless CR4.DE is set. Their place in [`crate::unit::System::debug`].
fn debug_register(cpu: &mut Cpu, number: u8) -> Result<usize, Stop> {
    match number {
        0..4 => Ok(number.into()),
        4 | 5 if cpu.system.cr4 & cr4::DE != 0 => Err(cpu.undefined_opcode()),
        4 | 6 => Ok(4),
        5 | 7 => Ok(5),
        _ => Err(cpu.undefined_opcode()),
    }
}

fn read_debug<W: Width>(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let register = debug_register(cpu, op.src)?;
    cpu.require_supervisor()?;
    W::from_u64(cpu.system.debug[register]).write(&mut cpu.gpr, op.dst);
    Ok(())
}

fn write_debug<W: Width>(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let register = debug_register(cpu, op.dst)?;
    cpu.require_supervisor()?;
    let value = W::read(&cpu.gpr, op.src).to_u64();
    let value = match register {
        4 | 5 if value >> 32 != 0 => return Err(cpu.general_protection(0)),
        4 => value & 0xe00f | 0xffff_0ff0,
        5 => value & 0xffff_23ff | 0x400,
        _ => value,
    };
    cpu.system.debug[register] = value;
    Ok(())
}

fn read_extended_control(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    if cpu.system.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.undefined_opcode());
    }
    if cpu.gpr[1] as u32 != 0 {
        return Err(cpu.general_protection(0));
    }
    cpu.gpr[0] = cpu.system.xcr0 & 0xffff_ffff;
    cpu.gpr[2] = cpu.system.xcr0 >> 32;
    Ok(())
}

fn write_extended_control(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    if cpu.system.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.undefined_opcode());
    }
    cpu.require_supervisor()?;
    let value = cpu.gpr[2] << 32 | cpu.gpr[0] & 0xffff_ffff;
    if cpu.gpr[1] as u32 != 0 || value & xcr0::X87 == 0 || value & !(xcr0::X87 | xcr0::SSE) != 0 {
        return Err(cpu.general_protection(0));
    }
    cpu.system.xcr0 = value;
    Err(Stop::Sync)
}

impl Cpu {
    fn set_cr0(&mut self, value: u64) -> Result<(), Stop> {
        let before = self.system.cr0;
        let value = value | cr0::ET;
        let paging = value & cr0::PG != 0;
        let turned = (value ^ before) & cr0::PG != 0;
        let enabled = self.system.efer;
        let code_long = self.system.segments[number::CS].has(attribute::LONG);
        let invalid = value >> 32 != 0
            || paging && value & cr0::PE == 0
            || value & cr0::NW != 0 && value & cr0::CD == 0
            || turned
                && (paging && enabled & efer::LME != 0 && (self.system.cr4 & cr4::PAE == 0 || code_long)
                    || !paging && (self.code_bits == 64 || self.system.cr4 & cr4::PCIDE != 0));
        if invalid {
            return Err(self.general_protection(0));
        }
        self.system.cr0 = value & cr0::ALL;
        if turned {
            self.system.efer &= !efer::LMA;
            if paging && enabled & efer::LME != 0 {
                self.system.efer |= efer::LMA;
            }
        }
        if (value ^ before) & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            self.flush_tlb();
        }
        if value & cr0::PE == 0 {
            self.cpl = 0;
        }
        self.update_mode();
        Ok(())
    }

    fn set_cr3(&mut self, value: u64) -> Result<(), Stop> {
        let contexts = self.system.cr4 & cr4::PCIDE != 0;
        let keep = contexts && value & CR3_KEEP != 0;
        let value = if contexts { value & !CR3_KEEP } else { value };
        if self.is_long() && value >> PHYSICAL_BITS != 0 {
            return Err(self.general_protection(0));
        }
        self.system.cr3 = value;
        if keep {
            self.use_context();
        } else {
            self.flush_context(self.context());
        }
        Ok(())
    }

    fn set_cr4(&mut self, value: u64) -> Result<(), Stop> {
        let before = self.system.cr4;
        let invalid = value & !cr4::ALL != 0
            || self.is_long() && value & cr4::PAE == 0
            || value & !before & cr4::PCIDE != 0 && (!self.is_long() || self.system.cr3 & 0xfff != 0);
        if invalid {
            return Err(self.general_protection(0));
        }
        self.system.cr4 = value;
        let paging = cr4::PGE | cr4::PAE | cr4::PSE | cr4::SMEP | cr4::SMAP | cr4::PCIDE;
        if (value ^ before) & paging != 0 {
            self.flush_tlb();
        }
        self.update_mode();
        Ok(())
    }

    /// Sets EFER on the guest's behalf.
    pub(super) fn set_efer(&mut self, value: u64) -> Result<(), Stop> {
        let before = self.system.efer;
        let known = efer::SCE | efer::LME | efer::LMA | efer::NXE;
        let turned = (value ^ before) & efer::LME != 0;
        if value & !known != 0 || turned && self.system.cr0 & cr0::PG != 0 {
            return Err(self.general_protection(0));
        }
        // LMA follows CR0.PG and is not written.
        self.system.efer = value & !efer::LMA | before & efer::LMA;
        if (value ^ before) & efer::NXE != 0 {
            self.flush_tlb();
        }
        Ok(())
    }
}
