//! Descriptor-table registers: LGDT, LIDT, SGDT, SIDT.

use iced_x86::{Instruction, Mnemonic};

use crate::bus::Bus;
use crate::core::Cpu;
use crate::mmu::Access;
use crate::op::{Handler, Op, Site};
use crate::state::TableState;
use crate::stop::Stop;
use crate::sys::selectors::require_user_mode_information;

pub(super) fn lower(instruction: &Instruction, site: Site, op: &mut Op) -> Option<Handler> {
    use iced_x86::Code as C;
    // A 16-bit operand size loads 24 bits of the base.
    let short = matches!(instruction.code(), C::Lgdt_m1632_16 | C::Lidt_m1632_16);
    op.imm = match (site.code_bits, short) {
        (64, _) => u64::MAX,
        (_, true) => 0xff_ffff,
        (_, false) => 0xffff_ffff,
    };
    Some(match instruction.mnemonic() {
        Mnemonic::Lgdt => load::<true>,
        Mnemonic::Lidt => load::<false>,
        Mnemonic::Sgdt => store::<true>,
        Mnemonic::Sidt => store::<false>,
        _ => return None,
    })
}

fn load<const GLOBAL: bool>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.require_supervisor()?;
    let linear = cpu.linear(op);
    let mut bytes = [0; 16];
    let len = if cpu.code_bits == 64 { 10 } else { 6 };
    cpu.read_linear(linear, bytes.get_mut(..len).unwrap_or_default(), Access::Read, bus)?;
    let raw = u128::from_le_bytes(bytes);
    let table = TableState { limit: raw as u16, base: (raw >> 16) as u64 & op.imm };
    if cpu.code_bits == 64 && !cpu.is_canonical(table.base) {
        return Err(cpu.general_protection(0));
    }
    *(if GLOBAL { &mut cpu.system.gdtr } else { &mut cpu.system.idtr }) = table;
    Ok(())
}

fn store<const GLOBAL: bool>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    require_user_mode_information(cpu)?;
    let table = if GLOBAL { cpu.system.gdtr } else { cpu.system.idtr };
    let linear = cpu.linear(op);
    let bytes = (u128::from(table.base) << 16 | u128::from(table.limit)).to_le_bytes();
    let len = if cpu.code_bits == 64 { 10 } else { 6 };
    cpu.write_linear(linear, bytes.get(..len).unwrap_or_default(), Access::Write, bus)
}
