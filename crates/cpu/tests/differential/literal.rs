//! A case in literal bytes: what it starts from, its code, and what guests see after it on a host of any maker.

use crate::case::Case;
use crate::guest::Guest;
use crate::layout::{Place, SCRATCH_LEN};
use crate::random::Random;
use crate::registers::{Outcome, Registers};

/// A part of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// A general register by number.
    Gpr(usize),
    Rflags,
    Mxcsr,
    Xmm(usize),
    /// A physical x87 register: sign and exponent above the significand.
    X87(usize),
    Control,
    Status,
    /// The abridged tag word.
    Valid,
    LastOpcode,
    LastInstruction,
    LastOperand,
    /// Eight bytes of the scratch at this offset.
    Memory(usize),
}

/// Parts and their values.
pub type Values = &'static [(At, u128)];

/// A case. What is not in `start` is zero, but for the control word 0x37f and MXCSR 0x1f80; what is not in `after` stays.
pub struct Literal {
    /// Number of the place whose addresses are used.
    pub place: u64,
    pub rip: u64,
    /// The bytes of each instruction, in hexadecimal.
    pub code: &'static [&'static str],
    pub start: Values,
    pub after: Values,
}

impl Literal {
    /// The first `count` instructions.
    pub fn case(&self, count: usize) -> Case {
        let mut case = Case::new(Place::new(self.place));
        case.clear(&mut Random::new(0));
        let mut outcome = Outcome { registers: Registers::zeroed(), scratch: [0; SCRATCH_LEN], fault: None };
        set(&mut outcome, &[(At::Control, 0x37f), (At::Mxcsr, 0x1f80), (At::Rflags, 2)]);
        set(&mut outcome, self.start);
        case.registers = outcome.registers;
        case.registers.rip = self.rip;
        case.registers.rflags |= 2;
        case.scratch = outcome.scratch;
        for instruction in &self.code[..count] {
            let digits = instruction.as_bytes().chunks_exact(2).map(|pair| std::str::from_utf8(pair).unwrap());
            let bytes: Vec<u8> = digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
            case.push_bytes(&bytes);
        }
        case
    }

    /// What the software processor makes of the first `count` instructions.
    pub fn run(&self, guest: &mut Guest, count: usize) -> Outcome {
        let case = self.case(count);
        let mut outcome = case.start();
        guest.run(&case, &mut outcome);
        outcome
    }

    /// Runs all of it, and compares with what is written down.
    pub fn check(&self, guest: &mut Guest) {
        let case = self.case(self.code.len());
        let found = self.run(guest, self.code.len());
        let mut wanted = case.start();
        wanted.registers.rip = case.next_rip();
        set(&mut wanted, self.after);
        wanted.registers.rflags |= 2;
        let text = case.disassembly();
        assert_eq!(found.fault, None, "{text}");
        assert_eq!(found.registers.rip, wanted.registers.rip, "{text}");
        for part in parts() {
            assert_eq!(get(&found, part), get(&wanted, part), "{part:?} ({:x}) after\n{text}", get(&found, part));
        }
    }
}

/// Every part of the state.
pub fn parts() -> impl Iterator<Item = At> {
    let registers = (0..16).map(At::Gpr).chain((0..16).map(At::Xmm)).chain((0..8).map(At::X87));
    let words = [
        At::Rflags,
        At::Mxcsr,
        At::Control,
        At::Status,
        At::Valid,
        At::LastOpcode,
        At::LastInstruction,
        At::LastOperand,
    ];
    registers.chain(words).chain((0..SCRATCH_LEN).step_by(8).map(At::Memory))
}

/// Flags that literal cases look at: the arithmetic ones and DF.
const FLAGS: u64 = 0xcd5;

pub fn get(outcome: &Outcome, at: At) -> u128 {
    let fpu = outcome.registers.fpu();
    match at {
        At::Gpr(number) => outcome.registers.gpr[number].into(),
        At::Rflags => (outcome.registers.rflags & FLAGS).into(),
        At::Mxcsr => fpu.mxcsr.into(),
        At::Xmm(number) => fpu.xmm[number],
        At::X87(number) => {
            let (significand, sign_exponent) = fpu.registers[number];
            u128::from(sign_exponent) << 64 | u128::from(significand)
        }
        At::Control => fpu.control.into(),
        At::Status => fpu.status.into(),
        At::Valid => fpu.valid.into(),
        At::LastOpcode => fpu.last_opcode.into(),
        At::LastInstruction => fpu.last_instruction.into(),
        At::LastOperand => fpu.last_operand.into(),
        At::Memory(offset) => {
            let bytes = outcome.scratch[offset..offset + 8].try_into().expect("eight bytes");
            u64::from_le_bytes(bytes).into()
        }
    }
}

pub fn set(outcome: &mut Outcome, values: &[(At, u128)]) {
    let mut fpu = outcome.registers.fpu();
    for &(at, value) in values {
        match at {
            At::Gpr(number) => outcome.registers.gpr[number] = value as u64,
            At::Rflags => outcome.registers.rflags = outcome.registers.rflags & !FLAGS | value as u64,
            At::Mxcsr => fpu.mxcsr = value as u32,
            At::Xmm(number) => fpu.xmm[number] = value,
            At::X87(number) => fpu.registers[number] = (value as u64, (value >> 64) as u16),
            At::Control => fpu.control = value as u16,
            At::Status => fpu.status = value as u16,
            At::Valid => fpu.valid = value as u8,
            At::LastOpcode => fpu.last_opcode = value as u16,
            At::LastInstruction => fpu.last_instruction = value as u64,
            At::LastOperand => fpu.last_operand = value as u64,
            At::Memory(offset) => {
                outcome.scratch[offset..offset + 8].copy_from_slice(&(value as u64).to_le_bytes());
            }
        }
    }
    outcome.registers.set_fpu(&fpu);
}
