//! FNSTENV, FLDENV, FNSAVE, FRSTOR: the environment in its four formats (Intel SDM volume 1, figures 8-9 to 8-12), and the
//! registers behind it.

use iced_x86::Code;

use crate::bus::Bus;
use crate::core::Cpu;
use crate::mmu::Access;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::unit::bit;
use crate::unit::control::cr0;
use crate::unit::x87::{Register80, X87};

/// Bytes of an environment with 16-bit and with 32-bit operands.
const SHORT: usize = 14;
const LONG: usize = 28;
/// Bytes of the eight registers.
const REGISTERS: usize = 80;

pub(super) fn lower(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Fnstenv_m14byte => store_environment::<SHORT>,
        Code::Fnstenv_m28byte => store_environment::<LONG>,
        Code::Fldenv_m14byte => load_environment::<SHORT>,
        Code::Fldenv_m28byte => load_environment::<LONG>,
        Code::Fnsave_m94byte => save::<SHORT>,
        Code::Fnsave_m108byte => save::<LONG>,
        Code::Frstor_m94byte => restore::<SHORT>,
        Code::Frstor_m108byte => restore::<LONG>,
        _ => return None,
    })
}

fn store_environment<const LEN: usize>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let environment: [u8; LEN] = environment(cpu);
    cpu.write_linear(cpu.linear(op), &environment, Access::Write, bus)?;
    // So that the handler of an exception can compute.
    cpu.x87.set_control(cpu.x87.control | 0x3f);
    Ok(())
}

fn load_environment<const LEN: usize>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let mut environment = [0; LEN];
    cpu.read_linear(cpu.linear(op), &mut environment, Access::Read, bus)?;
    set_environment(cpu, &environment);
    Ok(())
}

fn save<const LEN: usize>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let mut image = [0; LONG + REGISTERS];
    let environment: [u8; LEN] = environment(cpu);
    let image = &mut image[..LEN + REGISTERS];
    image[..LEN].copy_from_slice(&environment);
    for (index, slot) in image[LEN..].chunks_exact_mut(10).enumerate() {
        let Register80 { significand, sign_exponent } = cpu.x87.get(index as u8);
        slot[..8].copy_from_slice(&significand.to_le_bytes());
        slot[8..].copy_from_slice(&sign_exponent.to_le_bytes());
    }
    cpu.write_linear(cpu.linear(op), image, Access::Write, bus)?;
    cpu.x87.initialize();
    Ok(())
}

fn restore<const LEN: usize>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let mut image = [0; LONG + REGISTERS];
    let image = &mut image[..LEN + REGISTERS];
    cpu.read_linear(cpu.linear(op), image, Access::Read, bus)?;
    let (environment, registers) = image.split_at(LEN);
    set_environment(cpu, environment);
    let top = cpu.x87.top();
    for (index, slot) in registers.chunks_exact(10).enumerate() {
        let mut bytes = [0; 16];
        bytes[..10].copy_from_slice(slot);
        cpu.x87.registers[(top + index) & 7] = Register80::from_u128(u128::from_le_bytes(bytes));
    }
    Ok(())
}

/// Whether pointers have the real-address mode's format.
fn is_real(cpu: &Cpu) -> bool {
    cpu.system.cr0 & cr0::PE == 0 || cpu.rflags_rest & bit::VM != 0
}

fn environment<const LEN: usize>(cpu: &Cpu) -> [u8; LEN] {
    let x87 = &cpu.x87;
    let (instruction, operand) = (x87.last_instruction as u32, x87.last_operand as u32);
    let opcode = u32::from(x87.last_opcode);
    let words = [x87.control, x87.status, x87.tag_word()];
    let reserved = if LEN == LONG { 0xffff_0000 } else { 0 };
    // The selectors are not kept: processors have stored zero since CPUID.7.0:EBX bit 13.
    let pointers = match (LEN == LONG, is_real(cpu)) {
        (true, false) => [instruction, opcode << 16, operand, reserved],
        (true, true) => [instruction & 0xffff, instruction >> 16 << 12 | opcode, operand & 0xffff, operand >> 16 << 12],
        (false, false) => [instruction, 0, operand, 0],
        (false, true) => [instruction, instruction >> 16 << 12 | opcode, operand, operand >> 16 << 12],
    };
    let mut bytes = [0; LEN];
    let unit = LEN / 7;
    let fields = words.iter().map(|word| u32::from(*word) | reserved).chain(pointers);
    for (slot, field) in bytes.chunks_exact_mut(unit).zip(fields) {
        slot.copy_from_slice(&field.to_le_bytes()[..unit]);
    }
    bytes
}

/// From 14 or 28 bytes.
fn set_environment(cpu: &mut Cpu, bytes: &[u8]) {
    let unit = bytes.len() / 7;
    let mut fields = [0u32; 7];
    for (field, slot) in fields.iter_mut().zip(bytes.chunks_exact(unit)) {
        *field = slot.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
    }
    let [control, status, tags, instruction, instruction_high, operand, operand_high] = fields;
    let (instruction, operand, opcode) = match (unit == 4, is_real(cpu)) {
        (true, false) => (instruction, operand, instruction_high >> 16),
        (false, false) => (instruction, operand, 0),
        (_, true) => {
            let high = |field: u32| field >> 12 << 16;
            (instruction & 0xffff | high(instruction_high), operand & 0xffff | high(operand_high), instruction_high)
        }
    };
    let x87 = &mut cpu.x87;
    x87.status = status as u16;
    x87.set_tag_word(tags as u16);
    x87.last_instruction = instruction.into();
    x87.last_operand = operand.into();
    x87.last_opcode = opcode as u16 & 0x7ff;
    x87.set_control(control as u16);
}

impl X87 {
    /// FNINIT: everything as after reset but the registers' contents.
    pub(super) fn initialize(&mut self) {
        *self = Self { registers: self.registers, ..Self::new() };
    }

    /// The full tag word: two bits a register, 0 valid, 1 zero, 2 special, 3 empty.
    pub(super) fn tag_word(&self) -> u16 {
        let tag = |number: usize| {
            let Register80 { significand, sign_exponent } = self.registers[number];
            match sign_exponent & 0x7fff {
                _ if self.valid >> number & 1 == 0 => 3,
                0 if significand == 0 => 1,
                0 | 0x7fff => 2,
                _ if significand >> 63 == 0 => 2,
                _ => 0,
            }
        };
        (0..8).fold(0, |word, number| word | tag(number) << (2 * number))
    }

    pub(super) fn set_tag_word(&mut self, word: u16) {
        let is_valid = |number: usize| word >> (2 * number) & 3 != 3;
        self.valid = (0..8).fold(0, |valid, number| valid | u8::from(is_valid(number)) << number);
    }
}
