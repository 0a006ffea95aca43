//! Operands: registers to slots, memory operands to base, index, scale, displacement and segment.

use iced_x86::{Instruction, OpKind, Register};

use crate::core::{BLOCK_BASE, ZERO};

use crate::op::{Op, ea};

/// Where an instruction stands in its block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    /// Virtual address of the block's first byte at decode time. The block may run at other addresses later, so nothing derived
    /// from it may enter an op other than as a difference.
    pub block_rip: u64,
    /// Offset of the instruction in the block.
    pub offset: u16,
    /// 16, 32 or 64.
    pub code_bits: u8,
}

impl Site {
    /// A near branch target, relative to the block's first byte; add [`BLOCK_BASE`] at run time.
    pub(crate) fn branch_target(self, instruction: &Instruction) -> u64 {
        instruction.near_branch_target().wrapping_sub(self.block_rip)
    }

    /// Fills `base`, `index`, `scale`, `disp` and `ea` of an op whose instruction has a memory operand.
    ///
    /// Absolute moves (A0 to A3) and string instructions carry their segment here too.
    pub(crate) fn set_memory_operand(self, instruction: &Instruction, op: &mut Op) {
        let base = instruction.memory_base();
        let index = instruction.memory_index();
        op.disp = instruction.memory_displacement64();
        op.scale = instruction.memory_index_scale().trailing_zeros() as u8;
        op.index = number(index).unwrap_or(ZERO);
        op.base = match base {
            Register::RIP | Register::EIP => {
                // iced has already added the next instruction's address.
                op.disp = op.disp.wrapping_sub(self.block_rip);
                BLOCK_BASE
            }
            other => number(other).unwrap_or(ZERO),
        };
        let address_bits = self.address_bits(instruction, base, index);
        op.ea = match (address_bits, self.code_bits) {
            (32, 64) => ea::ADDRESS_32,
            (32, _) => ea::ADDRESS_32 | ea::LINEAR_32,
            (16, _) => ea::ADDRESS_16 | ea::LINEAR_32,
            _ => 0,
        };
        let segment = instruction.memory_segment();
        if segment != Register::None {
            let number = segment as u8 - Register::ES as u8;
            if self.code_bits != 64 || matches!(segment, Register::FS | Register::GS) {
                op.ea |= ea::SEGMENT | number;
            }
        }
    }

    fn address_bits(self, instruction: &Instruction, base: Register, index: Register) -> u8 {
        use iced_x86::OpKind;
        for register in [base, index] {
            if register == Register::EIP || register.is_gpr32() {
                return 32;
            }
            if register.is_gpr16() {
                return 16;
            }
            if register == Register::RIP || register.is_gpr64() {
                return 64;
            }
        }
        for kind in instruction.op_kinds() {
            match kind {
                OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 16,
                OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return 32,
                OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => return 64,
                _ => {}
            }
        }
        match instruction.memory_displ_size() {
            2 => 16,
            4 => 32,
            _ => self.code_bits,
        }
    }
}

/// A general register's number, 0 to 15, whatever its width.
fn number(register: Register) -> Option<u8> {
    register.is_gpr().then(|| register.full_register() as u8 - Register::RAX as u8)
}

/// A general register's slot in an op: its number, plus 16 for AH, CH, DH and BH. Other registers get their own number
/// (XMM0 is 0, ST0 is 0, ES is 0, CR0 is 0).
pub(crate) fn slot(register: Register) -> u8 {
    match register {
        Register::AH | Register::CH | Register::DH | Register::BH => 16 + (register as u8 - Register::AH as u8),
        _ => number(register).unwrap_or(register.number() as u8),
    }
}

/// Whether an operand is the immediate of a general instruction, however it is extended. The second immediate of ENTER and its like is none.
pub(crate) fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `Register::number` counts AH to BH among the byte registers, which made R8B the slot of R12.
    #[test]
    fn byte_registers_have_the_slot_of_the_whole_register_but_for_the_high_ones() {
        for (register, expected) in [
            (Register::AL, 0),
            (Register::BL, 3),
            (Register::AH, 16),
            (Register::BH, 19),
            (Register::SPL, 4),
            (Register::DIL, 7),
            (Register::R8L, 8),
            (Register::R15L, 15),
            (Register::R15, 15),
            (Register::XMM15, 15),
            (Register::GS, 5),
        ] {
            assert_eq!(slot(register), expected, "{register:?}");
        }
    }
}
