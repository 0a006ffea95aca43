//! [`Form`]: which instructions are translated, and what their flags need.

use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind, Register as GuestRegister};

use crate::op::{is_immediate, slot};
use crate::translate::asm::{Alu, Size, shift};

/// An instruction that is translated. All others are left to their handlers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Does nothing.
    Nothing,
    Move,
    /// MOVZX, MOVSX.
    Extend {
        signed: bool,
    },
    /// CDQE (8), CWDE (4).
    ExtendA(Size),
    /// CQO (8), CDQ (4).
    SpreadSign(Size),
    Lea,
    Alu(Alu),
    Test,
    /// INC, DEC.
    Step {
        down: bool,
    },
    Neg,
    Not,
    /// By its number in ModRM and a count that is not zero.
    Shift {
        number: u8,
        count: u8,
    },
    ShiftByCl {
        number: u8,
    },
    Rotate {
        number: u8,
        count: u8,
    },
    /// IMUL with two or three operands.
    Multiply,
    Bswap,
    Exchange,
    SetIf(u8),
    MoveIf(u8),
    Push,
    Pop,
    Leave,
    Jump,
    JumpIf(u8),
    JumpTo,
    Call,
    CallTo,
    Return,
}

/// What an instruction does to the arithmetic flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Leaves them alone.
    None,
    /// Sets them all.
    Sets,
    /// Sets them all but CF.
    KeepsCarry,
    /// Not as the interpreter does it, or only some of them: translated only where nobody looks at them.
    Other,
}

impl Form {
    /// The form of an instruction in 64-bit mode.
    pub(super) fn of(instruction: &Instruction) -> Option<Self> {
        let form = Self::by_mnemonic(instruction)?;
        (form == Self::Nothing || is_plain(instruction)).then_some(form)
    }

    fn by_mnemonic(instruction: &Instruction) -> Option<Self> {
        use Mnemonic as M;
        let first = instruction.op0_kind();
        let is_register = first == OpKind::Register;
        let is_wide = is_register && instruction.op0_register().is_gpr64();
        Some(match instruction.mnemonic() {
            M::Nop | M::Endbr64 | M::Endbr32 | M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 => {
                Self::Nothing
            }
            M::Prefetchw | M::Lfence | M::Mfence | M::Sfence => Self::Nothing,
            M::Mov | M::Movnti => Self::Move,
            M::Movzx => Self::Extend { signed: false },
            M::Movsx | M::Movsxd => Self::Extend { signed: true },
            M::Cdqe => Self::ExtendA(Size::B8),
            M::Cwde => Self::ExtendA(Size::B4),
            M::Cqo => Self::SpreadSign(Size::B8),
            M::Cdq => Self::SpreadSign(Size::B4),
            M::Lea => Self::Lea,
            M::Add => Self::Alu(Alu::Add),
            M::Or => Self::Alu(Alu::Or),
            M::Adc => Self::Alu(Alu::Adc),
            M::Sbb => Self::Alu(Alu::Sbb),
            M::And => Self::Alu(Alu::And),
            M::Sub => Self::Alu(Alu::Sub),
            M::Xor => Self::Alu(Alu::Xor),
            M::Cmp => Self::Alu(Alu::Cmp),
            M::Test => Self::Test,
            M::Inc => Self::Step { down: false },
            M::Dec => Self::Step { down: true },
            M::Neg => Self::Neg,
            M::Not => Self::Not,
            M::Shl | M::Sal => return Self::shift(instruction, shift::SHL),
            M::Shr => return Self::shift(instruction, shift::SHR),
            M::Sar => return Self::shift(instruction, shift::SAR),
            M::Rol => return Self::rotate(instruction, shift::ROL),
            M::Ror => return Self::rotate(instruction, shift::ROR),
            M::Imul if instruction.op_count() > 1 => Self::Multiply,
            M::Bswap if instruction.op0_register().size() >= 4 => Self::Bswap,
            M::Xchg if is_register && instruction.op1_kind() == OpKind::Register => Self::Exchange,
            M::Push if is_wide || first == OpKind::Immediate8to64 || first == OpKind::Immediate32to64 => Self::Push,
            M::Pop if is_wide => Self::Pop,
            M::Leave if instruction.code() == Code::Leaveq => Self::Leave,
            M::Jmp => return Self::transfer(instruction, Self::Jump, Self::JumpTo),
            M::Call => return Self::transfer(instruction, Self::Call, Self::CallTo),
            M::Ret if matches!(instruction.code(), Code::Retnq | Code::Retnq_imm16) => Self::Return,
            _ => return Self::conditional(instruction),
        })
    }

    fn conditional(instruction: &Instruction) -> Option<Self> {
        if instruction.condition_code() == ConditionCode::None {
            return None;
        }
        let code = (instruction.condition_code() as u8).wrapping_sub(1) & 15;
        match instruction.op0_kind() {
            OpKind::NearBranch64 if instruction.is_jcc_short_or_near() => Some(Self::JumpIf(code)),
            OpKind::Register if instruction.op_count() == 1 => Some(Self::SetIf(code)),
            OpKind::Register if instruction.op1_kind() == OpKind::Register => Some(Self::MoveIf(code)),
            _ => None,
        }
    }

    fn transfer(instruction: &Instruction, direct: Self, indirect: Self) -> Option<Self> {
        match instruction.op0_kind() {
            OpKind::NearBranch64 => Some(direct),
            OpKind::Register if instruction.op0_register().is_gpr64() => Some(indirect),
            OpKind::Memory if instruction.is_jmp_near_indirect() || instruction.is_call_near_indirect() => {
                (instruction.memory_size().size() == 8).then_some(indirect)
            }
            _ => None,
        }
    }

    fn shift(instruction: &Instruction, number: u8) -> Option<Self> {
        if instruction.op1_kind() == OpKind::Register {
            return (instruction.op0_kind() == OpKind::Register).then_some(Self::ShiftByCl { number });
        }
        Some(Self::Shift { number, count: constant_count(instruction)? })
    }

    fn rotate(instruction: &Instruction, number: u8) -> Option<Self> {
        if instruction.op1_kind() == OpKind::Register {
            return (instruction.op0_kind() == OpKind::Register).then_some(Self::ShiftByCl { number });
        }
        Some(Self::Rotate { number, count: constant_count(instruction)? })
    }

    /// What it does to the arithmetic flags.
    pub(super) fn effect(self) -> Effect {
        match self {
            Self::Alu(_) | Self::Test | Self::Neg | Self::Shift { .. } | Self::Multiply => Effect::Sets,
            Self::Step { .. } => Effect::KeepsCarry,
            Self::ShiftByCl { .. } | Self::Rotate { .. } => Effect::Other,
            _ => Effect::None,
        }
    }

    /// Whether it looks at them.
    pub(super) fn reads_flags(self) -> bool {
        matches!(self, Self::Alu(Alu::Adc | Alu::Sbb) | Self::SetIf(_) | Self::MoveIf(_) | Self::JumpIf(_))
    }

    /// Whether it may end as its handler does: it reaches memory, or may branch to an address that is not canonical.
    pub(super) fn may_stop(self, instruction: &Instruction) -> bool {
        match self {
            Self::Nothing | Self::Lea => false,
            Self::Push | Self::Pop | Self::Leave | Self::Call | Self::CallTo | Self::Return | Self::JumpTo => true,
            _ => instruction.op_kinds().any(|kind| kind == OpKind::Memory),
        }
    }
}

/// The count of a shift by a constant, if it is at least 1 and less than the operand's width.
fn constant_count(instruction: &Instruction) -> Option<u8> {
    let bits = 8 * operand_size(instruction, 0)?.bytes();
    let count = instruction.immediate8() & if bits == 64 { 63 } else { 31 };
    (count > 0 && count < bits).then_some(count)
}

/// The size of an operand, if it is one of general registers.
pub(super) fn operand_size(instruction: &Instruction, number: u32) -> Option<Size> {
    match instruction.op_kind(number) {
        OpKind::Register => Size::of_bytes(instruction.op_register(number).size()),
        _ => Size::of_bytes(instruction.memory_size().size()),
    }
}

/// Whether all of an instruction's operands are of the kinds that are translated.
fn is_plain(instruction: &Instruction) -> bool {
    let prefixed = instruction.has_lock_prefix()
        || (instruction.has_rep_prefix() || instruction.has_repne_prefix()) && instruction.mnemonic() != Mnemonic::Ret;
    !prefixed && (0..instruction.op_count()).all(|number| is_plain_operand(instruction, number))
}

fn is_plain_operand(instruction: &Instruction, number: u32) -> bool {
    match instruction.op_kind(number) {
        OpKind::Register => {
            let register = instruction.op_register(number);
            register.is_gpr() && slot(register) < 16
        }
        OpKind::Memory => is_plain_memory(instruction),
        OpKind::NearBranch64 => i32::try_from(instruction.near_branch64() as i64).is_ok(),
        kind => is_immediate(kind),
    }
}

/// Whether an address is made of 64-bit registers and a displacement that fits 32 bits.
fn is_plain_memory(instruction: &Instruction) -> bool {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let is_wide = |register: GuestRegister| register == GuestRegister::None || register.is_gpr64();
    let no_register = base == GuestRegister::None && index == GuestRegister::None;
    (is_wide(base) || base == GuestRegister::RIP)
        && is_wide(index)
        && (!no_register || instruction.memory_displ_size() == 8)
        && i32::try_from(instruction.memory_displacement64() as i64).is_ok()
}
