//! The stack and branches: code that runs to its end whichever way it takes.

use iced_x86::Code;

use crate::builder::{Builder, Flavor, Form};
use crate::case::INSTRUCTIONS_MAX;
use crate::families::{Generator, filler, form};

const RCX: usize = 1;
const RSP: usize = 4;
const RBP: usize = 5;

/// The plain forms of PUSH and POP.
const PUSHES_AND_POPS: [Code; 12] = [
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

/// PUSH, POP, PUSHF, POPF, ENTER, LEAVE, CALL and RET with RSP in the scratch.
pub fn stack() -> Generator {
    let forms: Vec<Form> = PUSHES_AND_POPS.iter().map(|code| form(*code)).collect();
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
    let mut decoder = iced_x86::Decoder::with_ip(64, &case.code, case.registers.rip, iced_x86::DecoderOptions::NONE);
    for instruction in &mut case.instructions {
        *instruction = decoder.decode();
    }
    // Either path may have been taken: nothing that one of them leaves undefined is compared.
    let all = case.undefined_flags.iter().fold(0, |all, flags| all | flags);
    for flags in &mut case.undefined_flags {
        *flags = all;
    }
}
