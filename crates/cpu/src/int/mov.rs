//! Moves: MOV, MOVNTI, LEA, XCHG, XLAT, CMOVcc, SETcc.

use iced_x86::{Instruction, Mnemonic};

use super::place::{
    Dst, Flat, Imm, Memory, Place, RAX, Shape, Source, Src, bits, by_condition, by_wide_width, by_width,
    condition_code, set_operands, shape,
};
use crate::bus::Bus;
use crate::core::{Cpu, ZERO};
use crate::op::{Handler, Op, slot};
use crate::stop::Stop;
use crate::width::Width;

pub(super) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    match instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movnti => lower_mov(instruction, op),
        Mnemonic::Lea => {
            set_operands(instruction, op);
            Some(match shape(instruction, 1, op) {
                Shape::Flat => by_wide_width!(bits(instruction, 0), lea_flat::<_>),
                _ => by_wide_width!(bits(instruction, 0), lea::<_>),
            })
        }
        Mnemonic::Xchg => lower_xchg(instruction, op),
        Mnemonic::Xlatb => {
            // The table is the base; the index, AL, is not a whole register.
            op.index = ZERO;
            Some(xlat)
        }
        Mnemonic::Cmova
        | Mnemonic::Cmovae
        | Mnemonic::Cmovb
        | Mnemonic::Cmovbe
        | Mnemonic::Cmove
        | Mnemonic::Cmovg
        | Mnemonic::Cmovge
        | Mnemonic::Cmovl
        | Mnemonic::Cmovle
        | Mnemonic::Cmovne
        | Mnemonic::Cmovno
        | Mnemonic::Cmovnp
        | Mnemonic::Cmovns
        | Mnemonic::Cmovo
        | Mnemonic::Cmovp
        | Mnemonic::Cmovs => lower_cmov(instruction, op),
        Mnemonic::Seta
        | Mnemonic::Setae
        | Mnemonic::Setb
        | Mnemonic::Setbe
        | Mnemonic::Sete
        | Mnemonic::Setg
        | Mnemonic::Setge
        | Mnemonic::Setl
        | Mnemonic::Setle
        | Mnemonic::Setne
        | Mnemonic::Setno
        | Mnemonic::Setnp
        | Mnemonic::Setns
        | Mnemonic::Seto
        | Mnemonic::Setp
        | Mnemonic::Sets => {
            set_operands(instruction, op);
            let code = condition_code(instruction);
            Some(match shape(instruction, 0, op) {
                Shape::Register => by_condition!(code, set_if::<_, Dst>),
                _ => by_condition!(code, set_if::<_, Memory>),
            })
        }
        _ => None,
    }
}

fn lower_mov(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    set_operands(instruction, op);
    let bits = bits(instruction, 0);
    Some(match (shape(instruction, 0, op), shape(instruction, 1, op)) {
        (Shape::Register, Shape::Register) => by_width!(bits, mov::<_, Dst, Src>),
        (Shape::Register, Shape::Immediate) => by_width!(bits, mov::<_, Dst, Imm>),
        (Shape::Register, Shape::Flat) => by_width!(bits, mov::<_, Dst, Flat>),
        (Shape::Register, Shape::Memory) => by_width!(bits, mov::<_, Dst, Memory>),
        (Shape::Flat, Shape::Register) => by_width!(bits, mov::<_, Flat, Src>),
        (Shape::Flat, Shape::Immediate) => by_width!(bits, mov::<_, Flat, Imm>),
        (Shape::Memory, Shape::Register) => by_width!(bits, mov::<_, Memory, Src>),
        (Shape::Memory, Shape::Immediate) => by_width!(bits, mov::<_, Memory, Imm>),
        // Segment, control and debug registers are system instructions.
        _ => return None,
    })
}

fn mov<W: Width, D: Place, S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let value = S::get::<W>(cpu, op, bus)?;
    D::set(cpu, op, value, bus)
}

fn lea<W: Width>(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    W::from_u64(cpu.effective_offset(op)).write(&mut cpu.gpr, op.dst);
    Ok(())
}

fn lea_flat<W: Width>(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    W::from_u64(cpu.gpr[usize::from(op.base & 15)].wrapping_add(op.disp)).write(&mut cpu.gpr, op.dst);
    Ok(())
}

fn lower_xchg(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    set_operands(instruction, op);
    let bits = bits(instruction, 0);
    Some(match (shape(instruction, 0, op), shape(instruction, 1, op)) {
        (Shape::Register, Shape::Register) => by_width!(bits, xchg::<_, Dst>),
        (Shape::Register, _) => {
            op.src = slot(instruction.op0_register());
            by_width!(bits, xchg::<_, Memory>)
        }
        _ => by_width!(bits, xchg::<_, Memory>),
    })
}

fn xchg<W: Width, D: Place>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    D::modify::<W>(cpu, op, bus, |cpu, before| {
        let value = W::read(&cpu.gpr, op.src);
        before.write(&mut cpu.gpr, op.src);
        value
    })
}

fn xlat(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let entry = u64::from(u8::read(&cpu.gpr, RAX));
    let with_entry = Op { disp: op.disp.wrapping_add(entry), ..*op };
    let value: u8 = cpu.load_operand(&with_entry, bus)?;
    value.write(&mut cpu.gpr, RAX);
    Ok(())
}

fn lower_cmov(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    set_operands(instruction, op);
    let code = condition_code(instruction);
    Some(match (shape(instruction, 1, op), bits(instruction, 0)) {
        (Shape::Register, 16) => by_condition!(code, move_if::<_, u16, Src>),
        (Shape::Register, 32) => by_condition!(code, move_if::<_, u32, Src>),
        (Shape::Register, _) => by_condition!(code, move_if::<_, u64, Src>),
        (_, 16) => by_condition!(code, move_if::<_, u16, Memory>),
        (_, 32) => by_condition!(code, move_if::<_, u32, Memory>),
        (_, _) => by_condition!(code, move_if::<_, u64, Memory>),
    })
}

/// CMOVcc: the source is read, and a 32-bit destination's upper half cleared, whether or not the condition holds.
fn move_if<const CC: u8, W: Width, S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let value = S::get::<W>(cpu, op, bus)?;
    let value = if cpu.flags.condition::<CC>() { value } else { W::read(&cpu.gpr, op.dst) };
    value.write(&mut cpu.gpr, op.dst);
    Ok(())
}

fn set_if<const CC: u8, D: Place>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let holds = u8::from(cpu.flags.condition::<CC>());
    D::set(cpu, op, holds, bus)
}
