//! Atomic and privileged instructions.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::builder::{Builder, Flavor, Form};
use crate::families::{Generator, filler};

const RAX: usize = 0;
const RDX: usize = 2;

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
