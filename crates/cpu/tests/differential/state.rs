//! Instructions that control, save and restore the floating-point units.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::builder::{Builder, Flavor, Form};
use crate::case::INSTRUCTIONS_MAX;
use crate::families::Generator;
use crate::layout::SCRATCH_LEN;
use crate::undefined;

const RAX: usize = 0;
const RDX: usize = 2;

/// SSE, with MXCSR loaded and stored between.
pub fn sse_float(forms: Vec<Form>) -> Generator {
    Box::new(move |builder, seed| {
        builder.start(seed, Flavor::Float, &[]);
        let count = 1 + builder.random.below(INSTRUCTIONS_MAX as u64) as usize;
        let mut tries = 0;
        while builder.case.instructions.len() < count && tries < 32 {
            tries += 1;
            if builder.random.percent(4) {
                mxcsr(builder);
                continue;
            }
            let form = builder.random.pick(&forms);
            if let Some(instruction) = builder.instruction(&form) {
                builder.push(instruction);
            }
        }
    })
}

fn mxcsr(builder: &mut Builder) {
    let load = builder.random.percent(50);
    let mut instruction = Instruction::default();
    instruction.set_code(if load { Code::Ldmxcsr_m32 } else { Code::Stmxcsr_m32 });
    instruction.set_op0_kind(OpKind::Memory);
    let offset = 4 * builder.random.below(SCRATCH_LEN as u64 / 4);
    let address = builder.case.place.scratch() + offset;
    if load {
        // Mostly masked; now and then with a reserved bit, which faults.
        let mut value = 0x1f80 | builder.random.next() as u32 & 0xe07f;
        if builder.random.percent(3) {
            value = builder.random.next() as u32;
        }
        builder.poke(address, &value.to_le_bytes());
    }
    builder.address(&mut instruction, address);
    builder.push(instruction);
}

/// Bytes of an x87 environment or image that an instruction loads or stores.
fn environment_len(code: Code) -> Option<u64> {
    match code {
        Code::Fldenv_m14byte | Code::Fnstenv_m14byte => Some(14),
        Code::Fldenv_m28byte | Code::Fnstenv_m28byte => Some(28),
        Code::Frstor_m94byte | Code::Fnsave_m94byte => Some(94),
        Code::Frstor_m108byte | Code::Fnsave_m108byte => Some(108),
        _ => None,
    }
}

/// Control, environment and whole-state instructions among arithmetic, with exceptions pending now and then.
pub fn x87_control(control: Vec<Form>, arithmetic: Vec<Form>) -> Generator {
    let codes = [
        Code::Fnstenv_m14byte,
        Code::Fnstenv_m28byte,
        Code::Fldenv_m14byte,
        Code::Fldenv_m28byte,
        Code::Fnsave_m94byte,
        Code::Fnsave_m108byte,
        Code::Frstor_m94byte,
        Code::Frstor_m108byte,
    ];
    Box::new(move |builder, seed| {
        builder.start(seed, Flavor::Float80, &[]);
        let count = 1 + builder.random.below(INSTRUCTIONS_MAX as u64) as usize;
        let mut tries = 0;
        while builder.case.instructions.len() < count && tries < 32 {
            tries += 1;
            match builder.random.below(100) {
                0..35 => {
                    let form = builder.random.pick(&arithmetic);
                    if let Some(instruction) = builder.instruction(&form) {
                        builder.push(instruction);
                    }
                }
                35..70 => {
                    let form = builder.random.pick(&control);
                    if let Some(instruction) = builder.instruction(&form) {
                        if form.mnemonic() == Mnemonic::Fldcw {
                            control_word(builder, instruction);
                        } else {
                            builder.push(instruction);
                        }
                    }
                }
                70..75 => builder.push_bytes(&[0x9b]),
                _ => environment(builder, &codes),
            }
        }
    })
}

/// An instruction that stores or loads an environment or the whole state.
fn environment(builder: &mut Builder, codes: &[Code]) {
    let code = builder.random.pick(codes);
    let len = environment_len(code).unwrap_or(0);
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    instruction.set_op0_kind(OpKind::Memory);
    // Few places, so that loads find what stores left; else small numbers as control and status words.
    let offset = 128 * builder.random.below(SCRATCH_LEN as u64 / 128 - 1);
    let address = builder.case.place.scratch() + offset;
    let stored = builder.case.instructions.iter().any(|i| environment_len(i.code()).is_some());
    if !stored {
        let wide = if len == 14 || len == 94 { 2 } else { 4 };
        let control = builder.random.next() as u16 & 0xf40 | 0x3f;
        builder.poke(address, &control.to_le_bytes());
        let status = builder.random.next() as u16;
        builder.poke(address + wide, &status.to_le_bytes());
    }
    builder.address(&mut instruction, address);
    if builder.push(instruction) && builder.random.percent(50) {
        clear_maker_fields(builder, &instruction, address);
    }
}

/// Clears what processors do not store alike in an environment that has been stored, so that whatever reads it finds the same on all of
/// them. In the other cases what reads these fields, as numbers or in another format, is compared only where they came out the same.
fn clear_maker_fields(builder: &mut Builder, instruction: &Instruction, environment: u64) {
    if !matches!(instruction.mnemonic(), Mnemonic::Fnstenv | Mnemonic::Fnsave) {
        return;
    }
    let fields = undefined::maker_fields(instruction);
    let mut at = fields.start as u64;
    while at < fields.end as u64 {
        let (code, immediate, len) = match fields.end as u64 - at {
            8.. => (Code::Mov_rm64_imm32, OpKind::Immediate32to64, 8),
            4.. => (Code::Mov_rm32_imm32, OpKind::Immediate32, 4),
            _ => (Code::Mov_rm16_imm16, OpKind::Immediate16, 2),
        };
        let mut clear = Instruction::default();
        clear.set_code(code);
        clear.set_op0_kind(OpKind::Memory);
        clear.set_op1_kind(immediate);
        builder.address(&mut clear, environment + at);
        builder.push(clear);
        at += len;
    }
}

fn control_word(builder: &mut Builder, mut instruction: Instruction) {
    let address = builder.case.place.scratch() + 2 * builder.random.below(SCRATCH_LEN as u64 / 2);
    let masks = if builder.random.percent(70) { 0x3f } else { builder.random.next() as u16 & 0x3f };
    let control = masks | builder.random.next() as u16 & 0xffc0;
    builder.poke(address, &control.to_le_bytes());
    builder.address(&mut instruction, address);
    builder.push(instruction);
}

/// What a case's saves and restores are drawn from. XSAVEOPT may skip what was not modified since XRSTOR from the same place. And
/// processors differ in whether XSAVE takes x87 for unused when FXRSTOR, FNINIT, or XRSTOR of an image that FXSAVE wrote have put it in
/// its initial state. So none of these is used together with XRSTOR.
const SAVES_AND_RESTORES: [&[Code]; 3] = [
    &[
        Code::Fxsave_m512byte,
        Code::Fxsave64_m512byte,
        Code::Xsave_mem,
        Code::Xsave64_mem,
        Code::Xsaveopt_mem,
        Code::Xsaveopt64_mem,
    ],
    &[
        Code::Fxsave_m512byte,
        Code::Fxsave64_m512byte,
        Code::Xsave_mem,
        Code::Xsave64_mem,
        Code::Fxrstor_m512byte,
        Code::Fxrstor64_m512byte,
    ],
    &[Code::Xsave_mem, Code::Xsave64_mem, Code::Xrstor_mem, Code::Xrstor64_mem],
];

/// Where images are in the scratch.
pub const IMAGES: [usize; 2] = [0, SECOND_IMAGE as usize];

/// Where the second of two overlapping images is. What the first one's registers are saved to must not be the second one's
/// pointers, because not all processors keep 64 bits of those.
const SECOND_IMAGE: u64 = 448;

/// FXSAVE, FXRSTOR, XSAVE, XSAVEOPT, XRSTOR of x87 and SSE, among instructions that change their state.
pub fn save_restore() -> Generator {
    Box::new(move |builder, seed| {
        let flavor = if seed & 1 == 0 { Flavor::Float80 } else { Flavor::Float };
        builder.start(seed, flavor, &[RAX, RDX]);
        let count = 1 + builder.random.below(6) as usize;
        builder.case.registers.gpr[RAX] = builder.random.next() & 3;
        builder.case.registers.gpr[RDX] = 0;
        prepare_images(builder);
        let codes = builder.random.pick(&SAVES_AND_RESTORES);
        while builder.case.instructions.len() < count {
            // XRSTOR's header must stay intact: components that only the host has are no fault there.
            let second = builder.random.percent(50) && !codes.contains(&Code::Xrstor_mem);
            let image = builder.case.place.scratch() + if second { SECOND_IMAGE } else { 0 };
            match builder.random.below(100) {
                0..70 => {
                    let code = builder.random.pick(codes);
                    let mut instruction = Instruction::default();
                    instruction.set_code(code);
                    instruction.set_op0_kind(OpKind::Memory);
                    let misaligned = (1 + builder.random.below(15)) * u64::from(builder.random.percent(3));
                    builder.address(&mut instruction, image + misaligned);
                    builder.push(instruction);
                }
                70..80 => {
                    let mask = builder.random.next() as u8 & 3;
                    builder.push_bytes(&[0xb8, mask, 0, 0, 0]);
                }
                // FLDPI, FLD1. Not FNINIT: see SAVES_AND_RESTORES.
                80..85 => builder.push_bytes(&[0xd9, 0xeb]),
                85..90 => builder.push_bytes(&[0xd9, 0xe8]),
                // PCMPEQD of a register with itself: not zero, which some processors would take for the initial state and
                // others not.
                90..95 => builder.push_bytes(&[0x66, 0x0f, 0x76, 0xc0]),
                _ => builder.push_bytes(&[0x66, 0x0f, 0x76, 0xc9]),
            }
        }
    })
}

/// Two overlapping images whose headers mostly pass XRSTOR.
fn prepare_images(builder: &mut Builder) {
    for at in [0, SECOND_IMAGE] {
        let address = builder.case.place.scratch() + at;
        // The last pointers: not all processors keep 64 bits of them.
        for pointer in [8, 16] {
            let value = builder.random.next() >> 17;
            builder.poke(address + pointer, &value.to_le_bytes());
        }
        let mxcsr = if builder.random.percent(95) { 0x1f80 | builder.random.next() as u32 & 0xe07f } else { 1 << 16 };
        builder.poke(address + 24, &mxcsr.to_le_bytes());
        let mut header = [0; 64];
        header[0] = builder.random.next() as u8 & 3;
        if builder.random.percent(4) {
            header[8 + builder.random.below(16) as usize] = 1;
        }
        builder.poke(address + 512, &header);
    }
}
