//! Instructions that load, store and examine selectors.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::bus::Bus;
use crate::core::Cpu;
use crate::mmu::Access;
use crate::op::{Handler, Op, Site, slot};
use crate::state::InterruptShadow;
use crate::stop::{Stop, vector};
use crate::sys::descriptor::{error_code, is_null, rpl};
use crate::sys::operand::{read_rm, set_rm, write_selector};
use crate::unit::control::cr4;
use crate::unit::segment::{Segment, attribute, number};
use crate::width::Width;

/// Types of system descriptors.
mod kind {
    pub const TSS_16_AVAILABLE: u16 = 1;
    pub const LDT: u16 = 2;
    pub const TSS_16_BUSY: u16 = 3;
    pub const CALL_GATE_16: u16 = 4;
    pub const TASK_GATE: u16 = 5;
    pub const TSS_AVAILABLE: u16 = 9;
    pub const TSS_BUSY: u16 = 11;
    pub const CALL_GATE: u16 = 12;
}

pub(super) fn lower(instruction: &Instruction, site: Site, op: &mut Op) -> Option<Handler> {
    let bits = |number: u32| match instruction.op_kind(number) {
        OpKind::Register => instruction.op_register(number).size() * 8,
        _ => 16,
    };
    let by_bits = |bits: usize, handlers: [Handler; 3]| match bits {
        16 => handlers[0],
        32 => handlers[1],
        _ => handlers[2],
    };
    Some(match instruction.mnemonic() {
        Mnemonic::Mov if instruction.op0_register().is_segment_register() => {
            op.dst = slot(instruction.op0_register());
            set_rm(instruction, 1, op);
            match instruction.op0_register() {
                Register::CS => return None,
                Register::SS => load_stack_segment,
                _ => load_data_segment,
            }
        }
        Mnemonic::Mov
            if instruction.op1_kind() == OpKind::Register && instruction.op1_register().is_segment_register() =>
        {
            op.dst = slot(instruction.op1_register());
            set_rm(instruction, 0, op);
            by_bits(bits(0), [store_segment::<u16>, store_segment::<u32>, store_segment::<u64>])
        }
        Mnemonic::Pop
            if instruction.op0_kind() == OpKind::Register && instruction.op0_register().is_segment_register() =>
        {
            op.dst = slot(instruction.op0_register());
            match (instruction.stack_pointer_increment(), site.code_bits) {
                (2, _) => pop_segment::<u16>,
                (4, _) => pop_segment::<u32>,
                _ => pop_segment::<u64>,
            }
        }
        Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => {
            op.dst = slot(instruction.op0_register());
            op.imm = match instruction.mnemonic() {
                Mnemonic::Les => 0,
                Mnemonic::Lss => 2,
                Mnemonic::Lds => 3,
                Mnemonic::Lfs => 4,
                _ => 5,
            };
            by_bits(bits(0), [load_far::<u16>, load_far::<u32>, load_far::<u64>])
        }
        Mnemonic::Lldt => with_rm(instruction, op, load_local_table),
        Mnemonic::Ltr => with_rm(instruction, op, load_task),
        Mnemonic::Sldt => {
            set_rm(instruction, 0, op);
            by_bits(bits(0), [store_local_table::<u16>, store_local_table::<u32>, store_local_table::<u64>])
        }
        Mnemonic::Str => {
            set_rm(instruction, 0, op);
            by_bits(bits(0), [store_task::<u16>, store_task::<u32>, store_task::<u64>])
        }
        Mnemonic::Verr => with_rm(instruction, op, verify::<false>),
        Mnemonic::Verw => with_rm(instruction, op, verify::<true>),
        Mnemonic::Lar | Mnemonic::Lsl => {
            op.dst = slot(instruction.op0_register());
            set_rm(instruction, 1, op);
            let limit = instruction.mnemonic() == Mnemonic::Lsl;
            by_bits(
                bits(0),
                if limit {
                    [examine::<u16, true>, examine::<u32, true>, examine::<u64, true>]
                } else {
                    [examine::<u16, false>, examine::<u32, false>, examine::<u64, false>]
                },
            )
        }
        Mnemonic::Arpl => {
            op.dst = slot(instruction.op1_register());
            set_rm(instruction, 0, op);
            adjust_privilege
        }
        _ => return None,
    })
}

fn with_rm(instruction: &Instruction, op: &mut Op, handler: Handler) -> Handler {
    set_rm(instruction, 0, op);
    handler
}

fn load_data_segment(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let selector = read_rm::<u16>(cpu, op, bus)?;
    cpu.load_segment(op.dst.into(), selector, bus)
}

/// A load of SS holds interrupts off, so that the stack pointer can follow.
fn load_stack_segment(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let selector = read_rm::<u16>(cpu, op, bus)?;
    cpu.load_segment(number::SS, selector, bus)?;
    cpu.update_mode();
    cpu.system.interrupt_shadow = Some(InterruptShadow::MovSs);
    Err(Stop::Sync)
}

fn store_segment<W: Width>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let selector = cpu.system.segments[usize::from(op.dst & 7)].selector;
    write_selector(cpu, op, W::from_u64(selector.into()), bus)
}

fn pop_segment<W: Width>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let (mask, base) = match cpu.mode.stack_bits() {
        64 => (u64::MAX, 0),
        32 => (0xffff_ffff, cpu.system.segment_base(number::SS as u8)),
        _ => (0xffff, cpu.system.segment_base(number::SS as u8)),
    };
    let value: W = cpu.load(base.wrapping_add(cpu.gpr[4] & mask), bus)?;
    cpu.load_segment(op.dst.into(), value.to_u64() as u16, bus)?;
    let top = cpu.gpr[4].wrapping_add(W::BYTES);
    cpu.gpr[4] = if mask == 0xffff { cpu.gpr[4] & !mask | top & mask } else { top & mask };
    if usize::from(op.dst) == number::SS {
        cpu.update_mode();
        cpu.system.interrupt_shadow = Some(InterruptShadow::MovSs);
        return Err(Stop::Sync);
    }
    Ok(())
}

fn load_far<W: Width>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let linear = cpu.linear(op);
    let mut bytes = [0; 10];
    let len = W::BYTES as usize;
    cpu.read_linear(linear, bytes.get_mut(..len + 2).unwrap_or_default(), Access::Read, bus)?;
    let raw = bytes.iter().rev().fold(0u128, |raw, &byte| raw << 8 | u128::from(byte));
    cpu.load_segment(op.imm as usize, (raw >> W::BITS) as u16, bus)?;
    W::from_u64(raw as u64).write(&mut cpu.gpr, op.dst);
    if op.imm as usize == number::SS {
        cpu.update_mode();
        return Err(Stop::Sync);
    }
    Ok(())
}

/// LLDT, LTR: the checks that both share.
fn system_segment(cpu: &mut Cpu, selector: u16, kinds: [u16; 2], bus: &mut dyn Bus) -> Result<Segment, Stop> {
    if selector & 4 != 0 {
        return Err(cpu.general_protection(error_code(selector)));
    }
    let segment = cpu.system_descriptor(selector, bus)?;
    if !kinds.contains(&segment.kind()) {
        return Err(cpu.general_protection(error_code(selector)));
    }
    if !segment.has(attribute::PRESENT) {
        return Err(cpu.raise(vector::NP, Some(error_code(selector))));
    }
    Ok(segment)
}

fn load_local_table(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    require_protected(cpu)?;
    cpu.require_supervisor()?;
    let selector = read_rm::<u16>(cpu, op, bus)?;
    cpu.system.ldtr =
        if is_null(selector) { Segment::null(selector) } else { system_segment(cpu, selector, [kind::LDT; 2], bus)? };
    Ok(())
}

fn load_task(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    require_protected(cpu)?;
    cpu.require_supervisor()?;
    let selector = read_rm::<u16>(cpu, op, bus)?;
    if is_null(selector) {
        return Err(cpu.general_protection(0));
    }
    let short = if cpu.is_long() { kind::TSS_AVAILABLE } else { kind::TSS_16_AVAILABLE };
    let mut segment = system_segment(cpu, selector, [kind::TSS_AVAILABLE, short], bus)?;
    const BUSY: u16 = 2;
    cpu.set_descriptor_type(&segment, BUSY as u8, bus)?;
    segment.attributes |= BUSY;
    cpu.system.tr = segment;
    Ok(())
}

fn store_local_table<W: Width>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    require_protected(cpu)?;
    require_user_mode_information(cpu)?;
    write_selector(cpu, op, W::from_u64(cpu.system.ldtr.selector.into()), bus)
}

fn store_task<W: Width>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    require_protected(cpu)?;
    require_user_mode_information(cpu)?;
    write_selector(cpu, op, W::from_u64(cpu.system.tr.selector.into()), bus)
}

/// These instructions do not exist in real and virtual-8086 mode.
fn require_protected(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.is_protected() { Ok(()) } else { Err(cpu.undefined_opcode()) }
}

/// CR4.UMIP keeps programs from reading system registers.
pub(super) fn require_user_mode_information(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.cpl > 0 && cpu.system.cr4 & cr4::UMIP != 0 { Err(cpu.general_protection(0)) } else { Ok(()) }
}

/// The descriptor of a selector that a program asks about, or `None` where it may not know.
fn examined(cpu: &mut Cpu, selector: u16, bus: &mut dyn Bus) -> Result<Option<Segment>, Stop> {
    if is_null(selector) {
        return Ok(None);
    }
    match cpu.descriptor(selector, bus) {
        Ok(segment) => Ok(Some(segment)),
        // Beyond the table's limit; a page fault on the table is a fault.
        Err(Stop::Fault) if cpu.fault.vector == vector::GP => Ok(None),
        Err(stop) => Err(stop),
    }
}

/// Whether the privilege rules let the program see a descriptor.
fn visible(cpu: &Cpu, segment: &Segment) -> bool {
    let conforming = segment.has(attribute::SEGMENT | attribute::CODE | attribute::CONFORMING);
    conforming || cpu.cpl.max(rpl(segment.selector)) <= segment.dpl()
}

fn verify<const WRITE: bool>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    require_protected(cpu)?;
    let selector = read_rm::<u16>(cpu, op, bus)?;
    let holds = examined(cpu, selector, bus)?.is_some_and(|segment| {
        let code = segment.has(attribute::CODE);
        let granted = if WRITE {
            !code && segment.has(attribute::READ_WRITE)
        } else {
            !code || segment.has(attribute::READ_WRITE)
        };
        segment.has(attribute::SEGMENT) && visible(cpu, &segment) && granted
    });
    cpu.flags.set_zf_keep_others(holds);
    Ok(())
}

/// LAR and LSL.
fn examine<W: Width, const LIMIT: bool>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    require_protected(cpu)?;
    let selector = read_rm::<u16>(cpu, op, bus)?;
    let segment = examined(cpu, selector, bus)?.filter(|segment| {
        let long = cpu.is_long();
        let known = segment.has(attribute::SEGMENT)
            || match segment.kind() {
                kind::LDT | kind::TSS_AVAILABLE | kind::TSS_BUSY => true,
                kind::TSS_16_AVAILABLE | kind::TSS_16_BUSY => !long,
                kind::CALL_GATE => !LIMIT,
                kind::CALL_GATE_16 | kind::TASK_GATE => !LIMIT && !long,
                _ => false,
            };
        known && visible(cpu, segment)
    });
    if let Some(segment) = segment {
        let rights = u64::from(segment.attributes) << 8;
        W::from_u64(if LIMIT { segment.limit.into() } else { rights }).write(&mut cpu.gpr, op.dst);
    }
    cpu.flags.set_zf_keep_others(segment.is_some());
    Ok(())
}

fn adjust_privilege(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    require_protected(cpu)?;
    let wanted = u16::read(&cpu.gpr, op.dst) & 3;
    let selector = read_rm::<u16>(cpu, op, bus)?;
    let raise = selector & 3 < wanted;
    if raise {
        write_selector(cpu, op, selector & !3 | wanted, bus)?;
    }
    cpu.flags.set_zf_keep_others(raise);
    Ok(())
}
