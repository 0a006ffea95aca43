//! One case: a few instructions, and the registers and memory they start from.

use iced_x86::{Encoder, Formatter, Instruction, IntelFormatter, Mnemonic, OpKind};

use crate::layout::{Place, SCRATCH_LEN};
use crate::random::Random;
use crate::registers::{Outcome, Registers};

pub const INSTRUCTIONS_MAX: usize = 8;

/// RFLAGS bits that user code sees change: CF, PF, AF, ZF, SF, DF, OF, NT, ID.
pub const FLAGS_COMPARED: u64 = 0x20_4cd5;
pub const FLAGS_ARITHMETIC: u64 = 0x8d5;

pub struct Case {
    pub place: Place,
    pub instructions: Vec<Instruction>,
    /// Offset of each instruction in `code`, then the length of the code.
    pub offsets: Vec<usize>,
    pub code: Vec<u8>,
    pub registers: Registers,
    pub scratch: [u8; SCRATCH_LEN],
    /// Flags that are architecturally undefined after each instruction.
    pub undefined_flags: Vec<u64>,
    /// Whether every instruction retires exactly once: no branches, no repeated strings.
    pub straight: bool,
}

impl Case {
    pub fn new(place: Place) -> Self {
        Self {
            place,
            instructions: Vec::new(),
            offsets: vec![0],
            code: Vec::new(),
            registers: Registers::zeroed(),
            scratch: [0; SCRATCH_LEN],
            undefined_flags: Vec::new(),
            straight: true,
        }
    }

    /// Empties the code and draws where it starts in the code page.
    pub fn clear(&mut self, random: &mut Random) {
        self.instructions.clear();
        self.offsets.clear();
        self.offsets.push(0);
        self.code.clear();
        self.undefined_flags.clear();
        self.straight = true;
        self.registers.rip = self.place.code() + random.below(0x1000 - 0x100);
    }

    /// What no instruction has changed yet.
    pub fn start(&self) -> Outcome {
        Outcome { registers: self.registers.clone(), scratch: self.scratch, fault: None }
    }

    /// Address of the next instruction.
    pub fn next_rip(&self) -> u64 {
        self.registers.rip + self.code.len() as u64
    }

    /// Appends an instruction, unless it cannot be encoded or depends on undefined flags.
    pub fn push(&mut self, encoder: &mut Encoder, mut instruction: Instruction) -> bool {
        let before = self.undefined_flags.last().copied().unwrap_or(0);
        if rflags(instruction.rflags_read()) & before != 0 {
            return false;
        }
        let rip = self.next_rip();
        encoder.set_buffer(std::mem::take(&mut self.code));
        let encoded = encoder.encode(&instruction, rip);
        self.code = encoder.take_buffer();
        let start = self.offsets[self.offsets.len() - 1];
        let Ok(len) = encoded else {
            self.code.truncate(start);
            return false;
        };
        instruction.set_ip(rip);
        instruction.set_len(len);
        instruction.set_next_ip(rip + len as u64);
        self.undefined_flags.push(flags_after(before, &instruction));
        self.instructions.push(instruction);
        self.offsets.push(self.code.len());
        true
    }

    /// Appends bytes as they are: one instruction.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        let rip = self.next_rip();
        let mut decoder = iced_x86::Decoder::with_ip(64, bytes, rip, iced_x86::DecoderOptions::NONE);
        let instruction = decoder.decode();
        assert!(instruction.is_invalid() || instruction.len() == bytes.len(), "{bytes:02x?} is not one instruction");
        self.code.extend(bytes);
        self.undefined_flags.push(flags_after(self.undefined_flags.last().copied().unwrap_or(0), &instruction));
        self.instructions.push(instruction);
        self.offsets.push(self.code.len());
    }

    /// Only the first `count` instructions.
    pub fn truncate(&mut self, count: usize) {
        self.instructions.truncate(count);
        self.undefined_flags.truncate(count);
        self.offsets.truncate(count + 1);
        self.code.truncate(self.offsets[count]);
    }

    /// The instruction that starts at `rip`, by number; the number of instructions for the end.
    pub fn index_of(&self, rip: u64) -> Option<usize> {
        let offset = usize::try_from(rip.wrapping_sub(self.registers.rip)).ok()?;
        self.offsets.iter().position(|&start| start == offset)
    }

    pub fn disassembly(&self) -> String {
        let mut formatter = IntelFormatter::new();
        let mut text = String::new();
        for (index, instruction) in self.instructions.iter().enumerate() {
            text += &format!("  {:x}  ", self.registers.rip + self.offsets[index] as u64);
            for byte in &self.code[self.offsets[index]..self.offsets[index + 1]] {
                text += &format!("{byte:02x}");
            }
            text += "  ";
            formatter.format(instruction, &mut text);
            text.push('\n');
        }
        text
    }
}

/// Shifts and rotates by zero, and repeats of zero times, leave flags as they are.
fn writes_flags_always(instruction: &Instruction) -> bool {
    use iced_x86::Mnemonic::*;
    let shift = matches!(instruction.mnemonic(), Rol | Ror | Rcl | Rcr | Shl | Sal | Shr | Sar | Shld | Shrd);
    !shift && !instruction.has_rep_prefix() && !instruction.has_repne_prefix()
}

/// Flags that are undefined after an instruction, from those `before` it.
fn flags_after(before: u64, instruction: &Instruction) -> u64 {
    let modified = rflags(instruction.rflags_modified());
    let kept = if writes_flags_always(instruction) { before & !modified } else { before };
    kept | undefined_flags(instruction)
}

/// Flags that an instruction leaves undefined, whatever its operands are.
///
/// iced takes an RCL or RCR of 8 or 16 bits by a count of 1 modulo 9 or 17 for one of 1, and one by 0 for none. But the count that
/// decides about OF is the masked one, before the modulo (Intel SDM volume 2, RCL/RCR/ROL/ROR: `OF flag is defined only for the 1-bit
/// rotates`, and "Operation", where COUNT and not tempCOUNT is compared with 1; AMD APM volume 3, RCL and RCR).
fn undefined_flags(instruction: &Instruction) -> u64 {
    const OF: u64 = 1 << 11;
    let by_immediate = instruction.op1_kind() == OpKind::Immediate8;
    if matches!(instruction.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr) && by_immediate {
        let mask =
            if instruction.op0_register().size() == 8 || instruction.memory_size().size() == 8 { 63 } else { 31 };
        return if instruction.immediate8() & mask > 1 { OF } else { 0 };
    }
    rflags(instruction.rflags_undefined())
}

/// iced's flag bits as RFLAGS bits.
fn rflags(bits: u32) -> u64 {
    use iced_x86::RflagsBits as Bits;
    let pairs =
        [(Bits::CF, 0), (Bits::PF, 2), (Bits::AF, 4), (Bits::ZF, 6), (Bits::SF, 7), (Bits::DF, 10), (Bits::OF, 11)];
    pairs.iter().filter(|(bit, _)| bits & bit != 0).fold(0, |flags, (_, position)| flags | 1 << position)
}

/// Draws the arithmetic flags.
pub fn random_flags(random: &mut Random) -> u64 {
    2 | random.next() & FLAGS_ARITHMETIC
}
