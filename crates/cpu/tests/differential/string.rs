//! String instructions: registers that point into the scratch, and small counts.

use iced_x86::{Code, Instruction, OpKind, Register};

use crate::builder::{Builder, Flavor, Form};
use crate::families::{Generator, filler};

const RAX: usize = 0;
const RCX: usize = 1;
const RBX: usize = 3;
const RSI: usize = 6;
const RDI: usize = 7;

/// MOVS, CMPS, STOS, LODS, SCAS with and without repeat prefixes, both directions; XLAT and masked moves.
pub fn string() -> Generator {
    let codes = [
        Code::Movsb_m8_m8,
        Code::Movsw_m16_m16,
        Code::Movsd_m32_m32,
        Code::Movsq_m64_m64,
        Code::Cmpsb_m8_m8,
        Code::Cmpsw_m16_m16,
        Code::Cmpsd_m32_m32,
        Code::Cmpsq_m64_m64,
        Code::Stosb_m8_AL,
        Code::Stosw_m16_AX,
        Code::Stosd_m32_EAX,
        Code::Stosq_m64_RAX,
        Code::Lodsb_AL_m8,
        Code::Lodsw_AX_m16,
        Code::Lodsd_EAX_m32,
        Code::Lodsq_RAX_m64,
        Code::Scasb_AL_m8,
        Code::Scasw_AX_m16,
        Code::Scasd_EAX_m32,
        Code::Scasq_RAX_m64,
    ];
    let filler: Vec<Form> = filler();
    Box::new(move |builder, seed| {
        builder.start(seed, Flavor::Integer, &[RCX, RBX, RSI, RDI]);
        builder.case.straight = false;
        let address_32 = builder.random.percent(5);
        builder.point(RSI, 256, 256, 1);
        if builder.random.percent(50) {
            builder.point(RDI, 256, 256, 1);
        } else {
            // Overlapping, and often close.
            let distance = builder.random.below(33).wrapping_sub(16);
            let source = builder.case.registers.gpr[RSI];
            builder.case.registers.gpr[RDI] = source.wrapping_add(distance);
        }
        if builder.random.percent(50) {
            builder.case.registers.gpr[RBX] = builder.case.place.scratch() + 256;
        } else {
            builder.point(RBX, 0, 256, 1);
        }
        builder.case.registers.gpr[RCX] = builder.random.below(9);
        // Runs of equal bytes, so that repeated compares go on.
        if builder.random.percent(60) {
            let byte = builder.random.next() as u8;
            let from = builder.random.below(512);
            let address = builder.case.place.scratch() + from;
            builder.poke(address, &[byte; 400]);
            builder.case.registers.gpr[RAX] = u64::from(byte) * 0x0101_0101_0101_0101;
        }
        if builder.random.percent(30) {
            builder.push_bytes(&[0xfd]);
        }
        let count = builder.case.instructions.len() + 1 + builder.random.below(5) as usize;
        let mut tries = 0;
        while builder.case.instructions.len() < count && tries < 32 {
            tries += 1;
            match builder.random.below(100) {
                0..4 => builder.push_bytes(&[0xd7]),
                4..8 => {
                    let count = builder.random.below(8) as u8;
                    builder.push_bytes(&[0xb9, count, 0, 0, 0]);
                }
                8..16 => {
                    let form = builder.random.pick(&filler);
                    if let Some(instruction) = builder.instruction(&form) {
                        builder.push(instruction);
                    }
                }
                16..20 => {
                    let second = builder.random.next() as u8 & 0x3f | 0xc0;
                    // MASKMOVQ, MASKMOVDQU.
                    if builder.random.percent(50) {
                        builder.push_bytes(&[0x0f, 0xf7, second]);
                    } else {
                        builder.push_bytes(&[0x66, 0x0f, 0xf7, second]);
                    }
                }
                _ => {
                    let code = builder.random.pick(&codes);
                    string_instruction(builder, code, address_32);
                }
            }
        }
    })
}

fn string_instruction(builder: &mut Builder, code: Code, address_32: bool) {
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    let info = code.op_code();
    for operand in 0..info.op_count() {
        use iced_x86::OpCodeOperandKind as Kind;
        match info.op_kind(operand) {
            Kind::seg_rSI if address_32 => instruction.set_op_kind(operand, OpKind::MemorySegESI),
            Kind::seg_rSI => instruction.set_op_kind(operand, OpKind::MemorySegRSI),
            Kind::es_rDI if address_32 => instruction.set_op_kind(operand, OpKind::MemoryESEDI),
            Kind::es_rDI => instruction.set_op_kind(operand, OpKind::MemoryESRDI),
            register => {
                instruction.set_op_kind(operand, OpKind::Register);
                instruction.set_op_register(
                    operand,
                    match register {
                        Kind::al => Register::AL,
                        Kind::ax => Register::AX,
                        Kind::eax => Register::EAX,
                        _ => Register::RAX,
                    },
                );
            }
        }
    }
    match builder.random.below(4) {
        0 => {}
        1 => instruction.set_has_repne_prefix(true),
        _ => instruction.set_has_rep_prefix(true),
    }
    let name = format!("{code:?}");
    if !name.starts_with("Cmps") && !name.starts_with("Scas") && instruction.has_repne_prefix() {
        // Reserved, though processors treat it as REP.
        instruction.set_has_repne_prefix(false);
        instruction.set_has_rep_prefix(true);
    }
    builder.push(instruction);
}
