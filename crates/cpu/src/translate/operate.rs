//! Instructions that compute: the code of each form.

use iced_x86::{Instruction, OpKind};

use crate::op::slot;
use crate::translate::asm::{Alu, Operand, RAX, RCX, RDX, Register, Size, condition, shift};
use crate::translate::block::Body;
use crate::translate::field::{field, home};
use crate::translate::form::{Form, operand_size};
use crate::translate::stubs::{PINNED, place};

/// Numbers of guest registers.
const A: u8 = 0;
const C: u8 = 1;
const D: u8 = 2;

/// Bits of [`LazyFlags`](crate::unit::LazyFlags)'s second word, where LAHF and SETO put them.
pub(super) mod aux {
    pub const CARRY_BIT: u8 = 8;
    pub const CARRY_AND_OVERFLOW: i32 = 1 << 8 | 1;
    pub const CARRY: i32 = 1 << 8;
    /// From the bit that corrects SF to bit 63.
    pub const SIGN_SHIFT: u8 = 47;
}

impl Body<'_> {
    pub(super) fn operate(&mut self, form: Form, instruction: &Instruction) {
        let size = operand_size(instruction, 0).unwrap_or(Size::B8);
        match form {
            Form::Move => self.move_value(size, instruction),
            Form::Extend { signed } => self.extend(signed, size, instruction),
            Form::ExtendA(to) => {
                let from = if to == Size::B8 { Size::B4 } else { Size::B2 };
                self.asm.extend(true, to, pinned(A), from, pinned(A));
            }
            Form::SpreadSign(size) => {
                self.asm.load(size, pinned(D), pinned(A));
                self.asm.shift(shift::SAR, size, pinned(D), 8 * size.bytes() - 1);
                self.host_flags = false;
            }
            Form::Lea => {
                self.linear(instruction, false);
                self.write(size, slot(instruction.op0_register()), RAX);
            }
            Form::Alu(_) | Form::Test => self.binary(form, size, instruction),
            Form::Step { .. } | Form::Neg | Form::Not | Form::Shift { .. } | Form::Rotate { .. } => {
                self.unary(form, size, instruction);
            }
            Form::ShiftByCl { number } => self.shift_by_cl(number, size, instruction),
            Form::Multiply => self.multiply(size, instruction),
            Form::Bswap => {
                let number = slot(instruction.op0_register());
                let register = self.value(number, RDX);
                self.asm.bswap(size, register);
                self.put_back(number, register);
            }
            Form::Exchange => {
                let (first, second) = (slot(instruction.op0_register()), slot(instruction.op1_register()));
                self.asm.load(Size::B8, RAX, place(first));
                self.asm.load(Size::B8, RCX, place(second));
                self.write(size, first, RCX);
                self.write(size, second, RAX);
            }
            Form::SetIf(code) => {
                let code = self.condition(code);
                self.asm.set_if(code, place(slot(instruction.op0_register())));
            }
            Form::MoveIf(code) => {
                let (to, from) = (slot(instruction.op0_register()), slot(instruction.op1_register()));
                let code = self.condition(code);
                let source = self.value(from, RCX);
                let target = self.value(to, RDX);
                self.asm.move_if(code, size, target, source);
                self.put_back(to, target);
            }
            Form::Push | Form::Pop | Form::Leave => self.stack(form, instruction),
            // The others do nothing, or end a block.
            _ => {}
        }
    }

    /// A guest register's value in a host register: its own, or `temporary`.
    pub(super) fn value(&mut self, number: u8, temporary: Register) -> Register {
        match PINNED.get(usize::from(number)) {
            Some(&register) => register,
            None => {
                self.asm.load(Size::B8, temporary, home(number));
                temporary
            }
        }
    }

    /// Stores a guest register that [`Body::value`] gave and an instruction has changed.
    pub(super) fn put_back(&mut self, number: u8, register: Register) {
        if usize::from(number) >= PINNED.len() {
            self.asm.store(Size::B8, home(number), register);
        }
    }

    /// Writes a guest register from a host register, as an instruction of that size does.
    pub(super) fn write(&mut self, size: Size, number: u8, from: Register) {
        match (place(number), size) {
            (Operand::Register(register), _) => self.asm.load(size, register, from),
            (memory, Size::B4) => {
                self.asm.load(Size::B4, from, from);
                self.asm.store(Size::B8, memory, from);
            }
            (memory, _) => self.asm.store(size, memory, from),
        }
    }

    fn move_value(&mut self, size: Size, instruction: &Instruction) {
        let value = instruction.try_immediate(1).unwrap_or(0) as i64;
        match (instruction.op0_kind(), instruction.op1_kind()) {
            (OpKind::Memory, OpKind::Register) => {
                self.address(instruction, size, true);
                let source = self.value(slot(instruction.op1_register()), RCX);
                self.asm.store(size, Operand::Memory(RAX, 0), source);
            }
            (OpKind::Memory, _) => {
                self.address(instruction, size, true);
                self.asm.store_immediate(size, Operand::Memory(RAX, 0), value as i32);
            }
            (_, OpKind::Memory) => {
                self.address(instruction, size, false);
                let number = slot(instruction.op0_register());
                match place(number) {
                    Operand::Register(register) => self.asm.load(size, register, Operand::Memory(RAX, 0)),
                    _ => {
                        self.asm.load(size, RCX, Operand::Memory(RAX, 0));
                        self.write(size, number, RCX);
                    }
                }
            }
            (_, OpKind::Register) => {
                let number = slot(instruction.op0_register());
                let source = self.value(slot(instruction.op1_register()), RCX);
                if source == RCX || matches!(place(number), Operand::Register(_)) {
                    self.write(size, number, source);
                } else {
                    self.asm.load(Size::B8, RCX, source);
                    self.write(size, number, RCX);
                }
            }
            _ => {
                let number = slot(instruction.op0_register());
                match (size, i32::try_from(value)) {
                    (Size::B8, Err(_)) => self.asm.load_immediate_64(RCX, value as u64),
                    (Size::B8, Ok(value)) => self.asm.store_immediate(Size::B8, RCX.into(), value),
                    _ => self.asm.store_immediate(Size::B4, RCX.into(), value as i32),
                }
                self.write(size, number, RCX);
            }
        }
    }

    fn extend(&mut self, signed: bool, size: Size, instruction: &Instruction) {
        let from_size = operand_size(instruction, 1).unwrap_or(Size::B4);
        let source = if instruction.op1_kind() == OpKind::Memory {
            self.address(instruction, from_size, false);
            Operand::Memory(RAX, 0)
        } else {
            place(slot(instruction.op1_register()))
        };
        let number = slot(instruction.op0_register());
        match place(number) {
            Operand::Register(register) => self.asm.extend(signed, size, register, from_size, source),
            _ => {
                self.asm.extend(signed, size, RCX, from_size, source);
                self.write(size, number, RCX);
            }
        }
    }

    /// ADD and its kin, CMP and TEST.
    fn binary(&mut self, form: Form, size: Size, instruction: &Instruction) {
        let (operation, stores) = match form {
            Form::Alu(Alu::Cmp) => (Alu::Sub, false),
            Form::Alu(operation) => (operation, true),
            _ => (Alu::And, false),
        };
        let in_memory = instruction.op0_kind() == OpKind::Memory;
        if in_memory || instruction.op1_kind() == OpKind::Memory {
            self.address(instruction, size, in_memory && stores);
        }
        let number = if in_memory { 0 } else { slot(instruction.op0_register()) };
        let result = if in_memory {
            self.asm.load(size, RCX, Operand::Memory(RAX, 0));
            RCX
        } else if stores {
            self.value(number, RDX)
        } else {
            self.asm.load(Size::B8, RCX, place(number));
            RCX
        };
        if matches!(operation, Alu::Adc | Alu::Sbb) {
            self.asm.test_bit(field!(flags.aux), aux::CARRY_BIT);
        }
        match instruction.op1_kind() {
            OpKind::Memory => self.asm.alu(operation, size, result, Operand::Memory(RAX, 0)),
            OpKind::Register => self.asm.alu(operation, size, result, place(slot(instruction.op1_register()))),
            _ => self.asm.alu_immediate(operation, size, result, instruction.immediate(1) as i32),
        }
        if stores && in_memory {
            self.asm.store(size, Operand::Memory(RAX, 0), result);
        } else if stores {
            self.put_back(number, result);
        }
        match operation {
            Alu::And | Alu::Or | Alu::Xor => self.keep_logic_flags(size, result),
            _ => self.keep_flags(size, result),
        }
    }

    /// What changes one operand.
    fn unary(&mut self, form: Form, size: Size, instruction: &Instruction) {
        let in_memory = instruction.op0_kind() == OpKind::Memory;
        let number = if in_memory { 0 } else { slot(instruction.op0_register()) };
        let result = if in_memory {
            self.address(instruction, size, true);
            self.asm.load(size, RCX, Operand::Memory(RAX, 0));
            RCX
        } else {
            self.value(number, RDX)
        };
        match form {
            Form::Step { down } => {
                if self.flags_live {
                    self.asm.test_bit(field!(flags.aux), aux::CARRY_BIT);
                }
                self.asm.step(down, size, result);
            }
            Form::Neg => self.asm.neg(size, result),
            Form::Not => self.asm.not(size, result),
            Form::Shift { number, count } | Form::Rotate { number, count } => {
                self.asm.shift(number, size, result, count);
            }
            _ => {}
        }
        if in_memory {
            self.asm.store(size, Operand::Memory(RAX, 0), result);
        } else {
            self.put_back(number, result);
        }
        match form {
            Form::Step { .. } | Form::Neg => self.keep_flags(size, result),
            Form::Shift { number, count } => self.keep_shift_flags(number, count, size, result),
            Form::Rotate { .. } => self.host_flags = false,
            _ => {}
        }
    }

    fn shift_by_cl(&mut self, number: u8, size: Size, instruction: &Instruction) {
        let target = slot(instruction.op0_register());
        let register = self.value(target, RDX);
        self.asm.load(Size::B4, RCX, pinned(C));
        self.asm.shift_by_cl(number, size, register);
        self.put_back(target, register);
        self.host_flags = false;
    }

    fn multiply(&mut self, size: Size, instruction: &Instruction) {
        let source = if instruction.op1_kind() == OpKind::Memory {
            self.address(instruction, size, false);
            Operand::Memory(RAX, 0)
        } else {
            place(slot(instruction.op1_register()))
        };
        let number = slot(instruction.op0_register());
        let result = self.value(number, RDX);
        if instruction.op_count() == 3 {
            self.asm.imul_immediate(size, result, source, instruction.immediate(2) as i32);
        } else {
            self.asm.imul(size, result, source);
        }
        self.put_back(number, result);
        if self.flags_live {
            self.keep_result(size, result);
            self.asm.lahf();
            self.asm.set_if(condition::OVERFLOW, RAX);
            self.asm.alu_immediate(Alu::And, Size::B4, RAX, aux::CARRY_AND_OVERFLOW);
            self.asm.store(Size::B8, field!(flags.aux), RAX);
        }
        self.host_flags = false;
    }

    /// The first word of the lazy flags: the result, sign-extended. Leaves host flags alone.
    fn keep_result(&mut self, size: Size, result: Register) {
        if size == Size::B8 {
            self.asm.store(Size::B8, field!(flags.result), result);
        } else {
            self.asm.extend(true, Size::B8, RAX, size, result);
            self.asm.store(Size::B8, field!(flags.result), RAX);
        }
    }

    /// Keeps the flags that the host's instruction has just set, all as the guest's would be.
    fn keep_flags(&mut self, size: Size, result: Register) {
        if self.flags_live {
            self.keep_result(size, result);
            self.asm.lahf();
            self.asm.set_if(condition::OVERFLOW, RAX);
            self.asm.extend(false, Size::B4, RAX, Size::B2, RAX);
            self.asm.store(Size::B8, field!(flags.aux), RAX);
        }
        self.host_flags = self.flags_live;
    }

    /// The same for AND, OR and XOR, which clear CF, OF and AF.
    fn keep_logic_flags(&mut self, size: Size, result: Register) {
        if self.flags_live {
            self.keep_result(size, result);
            self.asm.store_immediate(Size::B8, field!(flags.aux), 0);
        }
        self.host_flags = self.flags_live;
    }

    /// The same for shifts by a constant: AF is clear, and OF, which hosts leave undefined for counts above 1, has the value that
    /// [`crate::int`] gives it.
    fn keep_shift_flags(&mut self, number: u8, count: u8, size: Size, result: Register) {
        self.host_flags = false;
        if !self.flags_live {
            return;
        }
        self.keep_result(size, result);
        self.asm.lahf();
        if count == 1 {
            self.asm.set_if(condition::OVERFLOW, RAX);
            self.asm.alu_immediate(Alu::And, Size::B4, RAX, aux::CARRY_AND_OVERFLOW);
        } else if number == shift::SHL {
            // CF is bit 8 and SF bit 15: OF is whether they differ.
            self.asm.load(Size::B4, RCX, RAX);
            self.asm.shift(shift::SHR, Size::B4, RCX, 7);
            self.asm.alu(Alu::Xor, Size::B4, RCX, RAX);
            self.asm.shift(shift::SHR, Size::B4, RCX, 8);
            self.asm.alu_immediate(Alu::And, Size::B4, RCX, 1);
            self.asm.alu_immediate(Alu::And, Size::B4, RAX, aux::CARRY);
            self.asm.alu(Alu::Or, Size::B4, RAX, RCX);
        } else {
            self.asm.alu_immediate(Alu::And, Size::B4, RAX, aux::CARRY);
        }
        self.asm.store(Size::B8, field!(flags.aux), RAX);
    }

    /// The condition code with which the host decides what the guest's `code` asks. May change RAX, RCX, RDX and host flags.
    pub(super) fn condition(&mut self, code: u8) -> u8 {
        if self.host_flags {
            return code;
        }
        let negated = code & 1;
        match code >> 1 {
            1 => {
                self.asm.test_bit(field!(flags.aux), aux::CARRY_BIT);
                condition::CARRY | negated
            }
            2 => {
                self.asm.alu_immediate(Alu::Cmp, Size::B8, field!(flags.result), 0);
                condition::ZERO | negated
            }
            4 => {
                self.asm.load(Size::B8, RAX, field!(flags.aux));
                self.asm.shift(shift::SHL, Size::B8, RAX, aux::SIGN_SHIFT);
                self.asm.alu(Alu::Xor, Size::B8, RAX, field!(flags.result));
                code
            }
            _ => {
                self.asm.call(self.stubs.load_flags);
                self.host_flags = true;
                code
            }
        }
    }
}

/// The host register of one of the first guest registers, which all have one.
fn pinned(number: u8) -> Register {
    PINNED.get(usize::from(number)).copied().unwrap_or(RAX)
}
