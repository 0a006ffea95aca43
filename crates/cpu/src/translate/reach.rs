//! Memory: addresses, the inline look-up in the TLB, and the stack.

use iced_x86::{Instruction, OpKind, Register as GuestRegister};

use crate::op::slot;
use crate::tlb;
use crate::translate::asm::{Alu, Operand, R14, RAX, RCX, RDX, RSP, Register, Size, condition, shift};
use crate::translate::block::Body;
use crate::translate::field::{field, segment_base};
use crate::translate::form::Form;
use crate::translate::stubs::{PINNED, place};

/// Numbers of guest registers.
const SP: u8 = 4;
const BP: u8 = 5;

impl Body<'_> {
    /// RAX becomes the linear address of the memory operand (`segment`), or its offset. Changes RCX. Leaves host flags alone unless a
    /// segment's base is added.
    pub(super) fn linear(&mut self, instruction: &Instruction, segment: bool) {
        let displacement = instruction.memory_displacement64() as i32;
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let base = match base {
            GuestRegister::None => None,
            GuestRegister::RIP => Some(R14),
            base => Some(self.value(slot(base), RAX)),
        };
        if index == GuestRegister::None {
            match base {
                Some(base) if displacement == 0 => self.asm.load(Size::B8, RAX, base),
                Some(base) => self.asm.lea(RAX, base, displacement),
                None => self.asm.store_immediate(Size::B8, RAX.into(), displacement),
            }
        } else {
            let scale = instruction.memory_index_scale().trailing_zeros() as u8;
            let index = self.value(slot(index), RCX);
            match base {
                Some(base) => self.asm.lea_indexed(RAX, base, index, scale),
                None => {
                    self.asm.load(Size::B8, RAX, index);
                    for _ in 0..scale {
                        self.asm.lea_indexed(RAX, RAX, RAX, 0);
                    }
                }
            }
            if displacement != 0 {
                self.asm.lea(RAX, RAX, displacement);
            }
        }
        let prefix = instruction.memory_segment();
        if segment && matches!(prefix, GuestRegister::FS | GuestRegister::GS) {
            self.asm.alu(Alu::Add, Size::B8, RAX, segment_base(prefix as u8 - GuestRegister::ES as u8));
        }
    }

    /// RAX becomes the address in this process of the memory operand, to read or (`write`) to write it; where the TLB does not answer the
    /// handler does the instruction. Changes RCX, RDX and host flags.
    pub(super) fn address(&mut self, instruction: &Instruction, size: Size, write: bool) {
        self.linear(instruction, true);
        self.look_up(size, write);
    }

    /// The same for the linear address in RAX.
    ///
    /// The tag compared is that of the operand's last byte, in the entry of its first: so an operand across two pages misses.
    pub(super) fn look_up(&mut self, size: Size, write: bool) {
        let tag = if write { tlb::offset_of::WRITE } else { tlb::offset_of::READ };
        self.asm.lea(RDX, RAX, i32::from(size.bytes()) - 1);
        self.asm.load(Size::B8, RCX, RAX);
        self.asm.shift(shift::SHR, Size::B8, RCX, tlb::INDEX_SHIFT);
        self.asm.alu_immediate(Alu::And, Size::B4, RCX, tlb::INDEX_MASK);
        self.asm.alu(Alu::Add, Size::B8, RCX, field!(context.tlb_table));
        self.asm.alu_immediate(Alu::And, Size::B8, RDX, -(memory::PAGE_BYTES as i32));
        self.asm.alu(Alu::Or, Size::B8, RDX, field!(tlb_generation));
        self.asm.alu(Alu::Cmp, Size::B8, RDX, Operand::Memory(RCX, tag));
        let miss = self.asm.jump_if_later(condition::NOT_ZERO);
        self.to_handler.push(miss);
        self.asm.alu_immediate(Alu::And, Size::B4, RAX, memory::PAGE_BYTES as i32 - 1);
        self.asm.alu(Alu::Add, Size::B8, RAX, Operand::Memory(RCX, tlb::offset_of::RAM_OFFSET));
        self.asm.alu(Alu::Add, Size::B8, RAX, field!(context.ram));
        self.host_flags = false;
    }

    /// RAX becomes the address of the eight bytes below the top of the stack.
    fn below_top(&mut self) {
        self.asm.lea(RAX, stack_pointer(), -8);
        self.look_up(Size::B8, true);
    }

    /// PUSH, POP and LEAVE.
    pub(super) fn stack(&mut self, form: Form, instruction: &Instruction) {
        match form {
            Form::Push => {
                self.below_top();
                if instruction.op0_kind() == OpKind::Register {
                    let source = self.value(slot(instruction.op0_register()), RCX);
                    self.asm.store(Size::B8, Operand::Memory(RAX, 0), source);
                } else {
                    self.asm.store_immediate(Size::B8, Operand::Memory(RAX, 0), instruction.immediate(0) as i32);
                }
                self.asm.lea(stack_pointer(), stack_pointer(), -8);
            }
            Form::Pop => {
                self.asm.load(Size::B8, RAX, stack_pointer());
                self.look_up(Size::B8, false);
                self.asm.load(Size::B8, RCX, Operand::Memory(RAX, 0));
                self.asm.lea(stack_pointer(), stack_pointer(), 8);
                self.write(Size::B8, slot(instruction.op0_register()), RCX);
            }
            _ => {
                self.asm.load(Size::B8, RAX, place(BP));
                self.look_up(Size::B8, false);
                self.asm.load(Size::B8, RCX, Operand::Memory(RAX, 0));
                self.asm.load(Size::B8, stack_pointer(), place(BP));
                self.asm.lea(stack_pointer(), stack_pointer(), 8);
                self.write(Size::B8, BP, RCX);
            }
        }
    }

    /// A branch, call or return, which ends the block.
    pub(super) fn transfer(&mut self, form: Form, instruction: &Instruction) {
        match form {
            Form::Jump => self.branch(instruction.near_branch64() as i64),
            Form::JumpIf(code) => {
                let code = self.condition(code);
                let taken = self.asm.jump_if_later(code);
                let flags = self.host_flags;
                self.go_to(instruction.next_ip() as i64);
                self.asm.land(taken);
                self.host_flags = flags;
                self.branch(instruction.near_branch64() as i64);
            }
            Form::JumpTo => {
                self.target(instruction);
                self.check_canonical();
                self.go_to_rcx();
            }
            Form::Call => {
                let target = instruction.near_branch64() as i64;
                if self.is_far(target) {
                    self.asm.lea(RCX, R14, target as i32);
                    self.check_canonical();
                }
                self.push_return(instruction);
                self.go_to(target);
            }
            Form::CallTo => {
                self.target(instruction);
                self.check_canonical();
                self.asm.store(Size::B8, field!(context.kept), RCX);
                self.push_return(instruction);
                self.asm.load(Size::B8, RCX, field!(context.kept));
                self.go_to_rcx();
            }
            _ => {
                self.asm.load(Size::B8, RAX, stack_pointer());
                self.look_up(Size::B8, false);
                self.asm.load(Size::B8, RCX, Operand::Memory(RAX, 0));
                self.check_canonical();
                let released = instruction.stack_pointer_increment();
                self.asm.lea(stack_pointer(), stack_pointer(), released);
                self.go_to_rcx();
            }
        }
    }

    /// A direct branch: one to another page may lead to an address that is not canonical.
    fn branch(&mut self, target: i64) {
        if self.is_far(target) {
            self.asm.lea(RCX, R14, target as i32);
            self.check_canonical();
        }
        self.go_to(target);
    }

    /// RCX becomes what an indirect branch names.
    fn target(&mut self, instruction: &Instruction) {
        if instruction.op0_kind() == OpKind::Memory {
            self.address(instruction, Size::B8, false);
            self.asm.load(Size::B8, RCX, Operand::Memory(RAX, 0));
        } else {
            self.asm.load(Size::B8, RCX, place(slot(instruction.op0_register())));
        }
    }

    fn push_return(&mut self, instruction: &Instruction) {
        self.below_top();
        self.asm.lea(RCX, R14, instruction.next_ip() as i32);
        self.asm.store(Size::B8, Operand::Memory(RAX, 0), RCX);
        self.asm.lea(stack_pointer(), stack_pointer(), -8);
    }
}

/// The host register of the guest's stack pointer.
fn stack_pointer() -> Register {
    PINNED.get(usize::from(SP)).copied().unwrap_or(RSP)
}
