//! Families whose cases need more care than random operands.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::builder::{Builder, Flavor, Form};
use crate::case::INSTRUCTIONS_MAX;
use crate::families::{Generator, filler, form};
use crate::layout::SCRATCH_LEN;

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

/// Read-modify-writes of memory, most of them locked; compares that succeed half of the time.
pub fn atomic(forms: Vec<Form>) -> Generator {
    Box::new(move |builder, seed| {
        builder.start(seed, Flavor::Integer, &[]);
        builder.memory_percent = 90;
        let count = 1 + builder.random.below(4) as usize;
        let mut tries = 0;
        while builder.case.instructions.len() < count && tries < 32 {
            tries += 1;
            let form = builder.random.pick(&forms);
            let Some(mut instruction) = builder.instruction(&form) else { continue };
            if instruction.op0_kind() == OpKind::Memory {
                let lockable = form.mnemonic() != Mnemonic::Cmp;
                instruction.set_has_lock_prefix(lockable && builder.random.percent(80));
                let first = builder.case.instructions.is_empty();
                if first && format!("{:?}", form.mnemonic()).starts_with("Cmpxchg") && builder.random.percent(50) {
                    equal_comparands(builder, &instruction);
                }
            }
            builder.push(instruction);
        }
    })
}

/// Puts what CMPXCHG compares with where it compares, so that it succeeds.
fn equal_comparands(builder: &mut Builder, instruction: &Instruction) {
    let address = instruction
        .virtual_address(0, 0, |register, _, _| {
            let number = register.is_gpr().then(|| register.full_register() as usize - Register::RAX as usize);
            Some(number.map_or(0, |number| builder.case.registers.gpr[number]))
        })
        .expect("the registers are given");
    let gpr = builder.case.registers.gpr;
    let (low, high) = (gpr[RAX].to_le_bytes(), gpr[RDX].to_le_bytes());
    match instruction.memory_size().size() {
        16 => {
            builder.poke(address, &low);
            builder.poke(address + 8, &high);
        }
        8 if instruction.mnemonic() == Mnemonic::Cmpxchg8b => {
            builder.poke(address, &low[..4]);
            builder.poke(address + 4, &high[..4]);
        }
        len => builder.poke(address, &low[..len]),
    }
}

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

/// PUSH, POP, PUSHF, POPF, ENTER, LEAVE, CALL and RET with RSP in the scratch.
pub fn stack() -> Generator {
    let codes = [
        Code::Push_r64,
        Code::Push_r16,
        Code::Push_rm64,
        Code::Push_rm16,
        Code::Pushq_imm8,
        Code::Pushw_imm8,
        Code::Pushq_imm32,
        Code::Push_imm16,
        Code::Pop_r64,
        Code::Pop_r16,
        Code::Pop_rm64,
        Code::Pop_rm16,
    ];
    let forms: Vec<Form> = codes.iter().map(|code| form(*code)).collect();
    let filler = filler();
    Box::new(move |builder, seed| {
        builder.start(seed, Flavor::Integer, &[RSP, RBP]);
        builder.case.straight = false;
        builder.point(RSP, 384, 384, 8);
        builder.point(RBP, 384, 384, 8);
        let misaligned = builder.random.below(8) * u64::from(builder.random.percent(20));
        builder.case.registers.gpr[RSP] += misaligned;
        // Whether RBP points into the scratch: what LEAVE pops need not.
        let mut framed = true;
        let count = 1 + builder.random.below(INSTRUCTIONS_MAX as u64) as usize;
        let mut tries = 0;
        while builder.case.instructions.len() < count && tries < 64 {
            tries += 1;
            match builder.random.below(100) {
                0..50 => {
                    let form = builder.random.pick(&forms);
                    if let Some(instruction) = builder.instruction(&form) {
                        builder.push(instruction);
                    }
                }
                50..55 if framed => {
                    builder.push_bytes(&[0xc9]);
                    framed = false;
                }
                55..58 if framed => {
                    builder.push_bytes(&[0x66, 0xc9]);
                    framed = false;
                }
                60..66 if framed => {
                    let nesting = if builder.random.percent(60) { 0 } else { builder.random.below(8) as u8 };
                    let size = builder.random.below(48) as u8;
                    if builder.random.percent(85) {
                        builder.push_bytes(&[0xc8, size, 0, nesting]);
                    } else {
                        builder.push_bytes(&[0x66, 0xc8, size, 0, nesting]);
                    }
                }
                66..72 if builder.case.undefined_flags.last().is_none_or(|flags| *flags == 0) => {
                    if builder.random.percent(80) {
                        builder.push_bytes(&[0x9c]);
                    } else {
                        builder.push_bytes(&[0x66, 0x9c]);
                    }
                }
                72..78 => {
                    // Without TF and AC, which would trap natively.
                    let flags = builder.random.next() as u32 & 0x20_4cd5;
                    let mut push = [0x68, 0, 0, 0, 0];
                    push[1..].copy_from_slice(&flags.to_le_bytes());
                    builder.push_bytes(&push);
                    builder.push_bytes(&[0x9d]);
                }
                78..86 => {
                    // CALL to the next instruction, and sometimes a RET that goes there again by way of the stack.
                    builder.push_bytes(&[0xe8, 0, 0, 0, 0]);
                }
                86..92 => return_to_next(builder),
                _ => {
                    let form = builder.random.pick(&filler);
                    if let Some(instruction) = builder.instruction(&form) {
                        builder.push(instruction);
                    }
                }
            }
        }
    })
}

/// PUSH of an address, then RET or RET n to it.
fn return_to_next(builder: &mut Builder) {
    let pop = builder.random.percent(40);
    let ret: &[u8] = if pop { &[0xc2, 16, 0] } else { &[0xc3] };
    let target = builder.case.next_rip() + 5 + ret.len() as u64;
    let mut push = [0x68, 0, 0, 0, 0];
    push[1..].copy_from_slice(&(target as u32).to_le_bytes());
    builder.push_bytes(&push);
    builder.push_bytes(ret);
}

/// Forward branches over other instructions: conditional, unconditional, indirect, loops.
pub fn branch() -> Generator {
    let filler = filler();
    Box::new(move |builder, seed| {
        builder.start(seed, Flavor::Integer, &[RSP, RCX]);
        builder.case.straight = false;
        builder.point(RSP, 384, 384, 8);
        builder.case.registers.gpr[RCX] = match builder.random.below(4) {
            0 => builder.random.integer(),
            _ => builder.random.below(3),
        };
        let branches = 1 + builder.random.below(3);
        for _ in 0..branches {
            for _ in 0..builder.random.below(2) {
                let form = builder.random.pick(&filler);
                if let Some(instruction) = builder.instruction(&form) {
                    builder.push(instruction);
                }
            }
            forward_branch(builder, &filler);
            if builder.case.instructions.len() + 4 > INSTRUCTIONS_MAX {
                break;
            }
        }
    })
}

fn forward_branch(builder: &mut Builder, filler: &[Form]) {
    // What is jumped over must have a known length: draw it first, into a scratch copy of the code.
    let at = builder.case.instructions.len();
    let kind = builder.random.below(100);
    let condition = builder.random.next() as u8 & 15;
    let undefined = builder.case.undefined_flags.last().copied().unwrap_or(0);
    let mut branch: Vec<u8> = match kind {
        0..45 if undefined == 0 => vec![0x70 | condition, 0],
        45..60 if undefined == 0 => vec![0x0f, 0x80 | condition, 0, 0, 0, 0],
        60..66 => vec![0xeb, 0],
        66..70 => vec![0xe9, 0, 0, 0, 0],
        70..75 => vec![0xe3, 0],
        75..78 => vec![0x67, 0xe3, 0],
        78..83 => vec![0xe2, 0],
        83..87 if undefined == 0 => vec![0xe1, 0],
        87..90 if undefined == 0 => vec![0xe0, 0],
        90..95 => vec![0xe8, 0, 0, 0, 0],
        // mov ecx, target is inserted before: jmp rcx, call rcx.
        95..98 => vec![0xff, 0xe1],
        98.. => vec![0xff, 0xd1],
        _ => vec![0xeb, 0],
    };
    let indirect = branch[0] == 0xff;
    if indirect {
        builder.push_bytes(&[0xb9, 0, 0, 0, 0]);
    }
    let branch_at = builder.case.instructions.len();
    builder.push_bytes(&branch);
    let over = builder.random.below(3);
    let mut tries = 0;
    while builder.case.instructions.len() < branch_at + 1 + over as usize && tries < 8 {
        tries += 1;
        let form = builder.random.pick(filler);
        if let Some(instruction) = builder.instruction(&form) {
            builder.push(instruction);
        }
    }
    let end = builder.case.code.len();
    let after = builder.case.offsets[branch_at + 1];
    let distance = (end - after) as u32;
    if indirect {
        let target = builder.case.registers.rip as u32 + end as u32;
        let from = builder.case.offsets[at] + 1;
        builder.case.code[from..from + 4].copy_from_slice(&target.to_le_bytes());
    } else {
        let wide = branch.len() > 3;
        let field = branch.len() - if wide { 4 } else { 1 };
        if wide {
            branch[field..].copy_from_slice(&distance.to_le_bytes());
        } else {
            branch[field] = distance as u8;
        }
        let from = builder.case.offsets[branch_at];
        builder.case.code[from..after].copy_from_slice(&branch);
    }
    redecode(builder);
}

/// After code bytes were patched: the instructions as they are now, for disassembly.
fn redecode(builder: &mut Builder) {
    let case = &mut builder.case;
    let mut decoder =
        iced_x86::Decoder::with_ip(64, &case.code, case.registers.rip, iced_x86::DecoderOptions::NONE);
    for instruction in &mut case.instructions {
        *instruction = decoder.decode();
    }
    // Either path may have been taken: nothing that one of them leaves undefined is compared.
    let all = case.undefined_flags.iter().fold(0, |all, flags| all | flags);
    for flags in &mut case.undefined_flags {
        *flags = all;
    }
}

/// Instructions that user code must not run, that do nothing, or that trap; and what reads selectors.
pub fn privileged() -> Generator {
    let filler = filler();
    let special: [&[u8]; 45] = [
        // INT3, UD2, INT 33; HLT, CLI, STI; IN and OUT.
        &[0xcc],
        &[0x0f, 0x0b],
        &[0xcd, 33],
        &[0xf4],
        &[0xfa],
        &[0xfb],
        &[0xe4, 0x80],
        &[0xed],
        &[0xe7, 0x80],
        &[0xee],
        &[0x66, 0xef],
        // CLTS, INVD, WBINVD, RDMSR, WRMSR, SWAPGS, XSETBV, SYSRET, SYSEXIT.
        &[0x0f, 0x06],
        &[0x0f, 0x08],
        &[0x0f, 0x09],
        &[0x0f, 0x32],
        &[0x0f, 0x30],
        &[0x0f, 0x01, 0xf8],
        &[0x0f, 0x01, 0xd1],
        &[0x48, 0x0f, 0x07],
        // MOV to and from CR0, CR3, DR7; LMSW; INVLPG, LGDT and LIDT of [RAX]; LLDT, LTR.
        &[0x0f, 0x20, 0xc0],
        &[0x0f, 0x22, 0xd8],
        &[0x0f, 0x23, 0xf8],
        &[0x0f, 0x21, 0xf8],
        &[0x0f, 0x01, 0xf0],
        &[0x0f, 0x01, 0x38],
        &[0x0f, 0x01, 0x10],
        &[0x0f, 0x01, 0x18],
        &[0x0f, 0x00, 0xd0],
        &[0x0f, 0x00, 0xd8],
        // Opcodes that 64-bit mode does not have.
        &[0x06],
        &[0x27],
        &[0x60],
        &[0xce],
        &[0xd4, 0x0a],
        // PAUSE, LFENCE, MFENCE, SFENCE, ENDBR64, PREFETCHT0, PREFETCHW and NOP of [RAX].
        &[0xf3, 0x90],
        &[0x0f, 0xae, 0xe8],
        &[0x0f, 0xae, 0xf0],
        &[0x0f, 0xae, 0xf8],
        &[0xf3, 0x0f, 0x1e, 0xfa],
        &[0x0f, 0x18, 0x08],
        &[0x0f, 0x0d, 0x08],
        &[0x0f, 0x1f, 0x00],
        // MOV of CS and SS to registers, and of SS to 16 bits.
        &[0x8c, 0xc8],
        &[0x48, 0x8c, 0xd1],
        &[0x66, 0x8c, 0xd2],
    ];
    Box::new(move |builder, seed| {
        builder.start(seed, Flavor::Integer, &[]);
        let count = 1 + builder.random.below(4) as usize;
        let mut tries = 0;
        while builder.case.instructions.len() < count && tries < 16 {
            tries += 1;
            if builder.random.percent(50) {
                let bytes = builder.random.pick(&special);
                builder.push_bytes(bytes);
            } else {
                let form = builder.random.pick(&filler);
                if let Some(instruction) = builder.instruction(&form) {
                    builder.push(instruction);
                }
            }
        }
    })
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
    let environment = [
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
                _ => {
                    let code = builder.random.pick(&environment);
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
                    builder.push(instruction);
                }
            }
        }
    })
}

fn control_word(builder: &mut Builder, mut instruction: Instruction) {
    let address = builder.case.place.scratch() + 2 * builder.random.below(SCRATCH_LEN as u64 / 2);
    let masks = if builder.random.percent(70) { 0x3f } else { builder.random.next() as u16 & 0x3f };
    let control = masks | builder.random.next() as u16 & 0xffc0;
    builder.poke(address, &control.to_le_bytes());
    builder.address(&mut instruction, address);
    builder.push(instruction);
}

/// What a case's saves and restores are drawn from. XSAVEOPT may skip what was not modified since XRSTOR from the same place, and after
/// FXRSTOR of the initial state processors differ in whether XSAVE takes it for that; so neither is used together with XRSTOR.
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
    &[
        Code::Fxsave_m512byte,
        Code::Fxsave64_m512byte,
        Code::Xsave_mem,
        Code::Xsave64_mem,
        Code::Xrstor_mem,
        Code::Xrstor64_mem,
    ],
];

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
            let image = builder.case.place.scratch() + if builder.random.percent(50) { 0 } else { SECOND_IMAGE };
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
                80..85 => builder.push_bytes(&[0xdb, 0xe3]),
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
