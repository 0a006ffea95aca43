//! Draws instructions with operands that are safe to run natively.
//!
//! Memory operands must stay within the scratch bytes whatever the instructions before them did. So each case sets
//! two registers aside, a base that points into the scratch and an index that holds a small number, and no
//! instruction gets them as any other operand.

use iced_x86::{
    Code, CpuidFeature, Encoder, Instruction, MemorySize, Mnemonic, OpCodeOperandKind as Kind, OpKind, Register,
};

use crate::case::{self, Case};
use crate::layout::{Place, SCRATCH_LEN};
use crate::random::Random;

/// What XMM registers, x87 registers and memory are filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    Integer,
    Float,
    Float80,
}

/// An instruction form and what its operands are.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub code: Code,
    kinds: [Kind; 5],
    count: usize,
}

impl Form {
    /// `None` for forms that this generator cannot draw operands for, or that 64-bit user code cannot run.
    pub fn new(code: Code) -> Option<Self> {
        let info = code.op_code();
        let drawable = info.is_instruction()
            && info.mode64()
            && !info.must_be_cpl0()
            && info.encoding() == iced_x86::EncodingKind::Legacy
            && info.op_kinds().iter().all(|kind| is_drawable(*kind));
        let mut kinds = [Kind::None; 5];
        for (slot, kind) in kinds.iter_mut().zip(info.op_kinds()) {
            *slot = *kind;
        }
        drawable.then_some(Self { code, kinds, count: info.op_count() as usize })
    }

    pub fn mnemonic(&self) -> Mnemonic {
        self.code.mnemonic()
    }

    pub fn uses_mmx(&self) -> bool {
        self.kinds.iter().any(|kind| matches!(kind, Kind::mm_reg | Kind::mm_rm | Kind::mm_or_mem))
    }
}

/// Every form of these processor features, 64-bit user mode, that `keep` keeps.
pub fn forms(features: &[CpuidFeature], keep: impl Fn(&Form) -> bool) -> Vec<Form> {
    Code::values()
        .filter(|code| code.cpuid_features().iter().all(|feature| features.contains(feature)))
        .filter_map(Form::new)
        .filter(|form| keep(form))
        .collect()
}

fn is_memory(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::r8_or_mem | Kind::r16_or_mem | Kind::r32_or_mem | Kind::r64_or_mem | Kind::mm_or_mem | Kind::xmm_or_mem
    )
}

fn is_drawable(kind: Kind) -> bool {
    use Kind::*;
    is_memory(kind)
        || matches!(
            kind,
            mem | mem_offs
                | r8_reg
                | r8_opcode
                | r16_reg
                | r16_rm
                | r16_opcode
                | r32_reg
                | r32_rm
                | r32_opcode
                | r64_reg
                | r64_rm
                | r64_opcode
                | mm_reg
                | mm_rm
                | xmm_reg
                | xmm_rm
                | al
                | cl
                | ax
                | dx
                | eax
                | rax
                | st0
                | sti_opcode
                | imm8
                | imm8_const_1
                | imm8sex16
                | imm8sex32
                | imm8sex64
                | imm16
                | imm32
                | imm32sex64
                | imm64
                | seg_rSI
                | es_rDI
        )
}

/// A generator of cases.
pub struct Builder {
    pub random: Random,
    pub case: Case,
    pub flavor: Flavor,
    /// Percentage of operands that are memory where both are possible.
    pub memory_percent: u64,
    encoder: Encoder,
    base: usize,
    index: usize,
    /// Registers that operands may be, by number.
    free: Vec<usize>,
    noise: Noise,
}

/// Values drawn once, of which each case gets a part.
struct Noise {
    integer: Vec<u8>,
    float: Vec<u8>,
    float80: Vec<(u64, u16)>,
}

/// Bytes of each kind of noise.
const NOISE_LEN: usize = 64 << 10;

impl Noise {
    fn new() -> Self {
        let mut random = Random::new(0);
        let mut fill = |draw: fn(&mut Random) -> u64| {
            let values = (0..NOISE_LEN / 8).map(|_| draw(&mut random));
            values.flat_map(u64::to_le_bytes).collect::<Vec<u8>>()
        };
        let integer = fill(Random::integer);
        let float = fill(|random| match random.next() & 1 {
            0 => random.float64(),
            _ => u64::from(random.float32()) << 32 | u64::from(random.float32()),
        });
        Self { integer, float, float80: (0..NOISE_LEN / 16).map(|_| random.float80()).collect() }
    }

    /// `len` bytes from somewhere, at a multiple of 8.
    fn part(&self, random: &mut Random, flavor: Flavor, len: usize) -> &[u8] {
        let all = if flavor == Flavor::Integer { &self.integer } else { &self.float };
        let at = 8 * random.below((NOISE_LEN - len) as u64 / 8) as usize;
        &all[at..at + len]
    }
}

const RSP: usize = 4;

impl Builder {
    pub fn new(place: Place) -> Self {
        Self {
            random: Random::new(0),
            case: Case::new(place),
            flavor: Flavor::Integer,
            memory_percent: 40,
            encoder: Encoder::new(64),
            base: 0,
            index: 0,
            free: Vec::new(),
            noise: Noise::new(),
        }
    }

    /// Starts the case of this seed: registers and memory are drawn, no instruction is there yet. The registers in
    /// `reserved` (by number) are neither operands nor pointers.
    pub fn start(&mut self, seed: u64, flavor: Flavor, reserved: &[usize]) {
        self.random = Random::new(seed);
        self.flavor = flavor;
        self.memory_percent = 40;
        self.case.clear(&mut self.random);
        let random = &mut self.random;
        self.case.scratch.copy_from_slice(self.noise.part(random, Flavor::Integer, SCRATCH_LEN));

        // Not RAX to RBX, which many instructions use implicitly, nor RSP, which cannot be an index.
        let mut pointers: Vec<usize> = (RSP + 1..16).filter(|number| !reserved.contains(number)).collect();
        self.base = pointers.swap_remove(random.below(pointers.len() as u64) as usize);
        self.index = random.pick(&pointers);
        self.free.clear();
        self.free.extend((0..16).filter(|n| *n != self.base && *n != self.index && !reserved.contains(n)));

        let values = self.noise.part(random, Flavor::Integer, 16 * 8).chunks_exact(8);
        for (register, value) in self.case.registers.gpr.iter_mut().zip(values) {
            *register = u64::from_le_bytes(value.try_into().expect("eight bytes"));
        }
        self.case.registers.gpr[self.base] = self.case.place.scratch() + 16 * random.below(SCRATCH_LEN as u64 / 16);
        self.case.registers.gpr[self.index] = random.below(129).wrapping_sub(64);
        self.case.registers.rflags = case::random_flags(random);
        let fpu = self.random_fpu();
        self.case.registers.set_fpu(&fpu);
    }

    fn random_fpu(&mut self) -> cpu::state::FpuState {
        let random = &mut self.random;
        let mut fpu = cpu::state::FpuState::default();
        let values = self.noise.part(random, self.flavor, 16 * 16).chunks_exact(16);
        for (register, value) in fpu.xmm.iter_mut().zip(values) {
            *register = u128::from_le_bytes(value.try_into().expect("sixteen bytes"));
        }
        if self.flavor == Flavor::Float80 {
            for register in &mut fpu.registers {
                *register = random.pick(&self.noise.float80);
            }
            let masks = if random.percent(80) { 0x3f } else { random.next() as u16 & 0x3f };
            fpu.control = masks | 0x40 | random.pick(&[0x300, 0x300, 0x200, 0]) | (random.next() as u16 & 3) << 10;
            let exceptions = if random.percent(50) { 0 } else { random.next() as u16 & 0x7f };
            let pending = exceptions & !masks & 0x3f != 0 && random.percent(20);
            let exceptions = if pending { exceptions } else { exceptions & (masks | 0x40) };
            fpu.status = exceptions | random.next() as u16 & 0x7f00 | if pending { 0x8080 } else { 0 };
            fpu.valid = if random.percent(70) { 0xff } else { random.next() as u8 };
        } else {
            let values = self.noise.part(random, Flavor::Integer, 8 * 8).chunks_exact(8);
            for (register, value) in fpu.registers.iter_mut().zip(values) {
                *register = (u64::from_le_bytes(value.try_into().expect("eight bytes")), 0xffff);
            }
            fpu.status = random.next() as u16 & 0x3800;
            fpu.valid = random.next() as u8;
        }
        if self.flavor == Flavor::Float {
            let masks = if random.percent(92) { 0x3f } else { random.next() as u32 & 0x3f };
            let flags = random.next() as u32 & if random.percent(50) { 0 } else { 0x3f };
            let denormals = random.next() as u32 & if random.percent(60) { 0 } else { 0x8040 };
            fpu.mxcsr = masks << 7 | flags | denormals | (random.next() as u32 & 3) << 13;
        }
        fpu
    }

    /// Points a register (by number) at the scratch, so that `below` bytes before and `above` bytes from there are in it.
    pub fn point(&mut self, number: usize, below: u64, above: u64, align: u64) -> u64 {
        let room = SCRATCH_LEN as u64 - below - above;
        let address = (self.case.place.scratch() + below + self.random.below(room)).next_multiple_of(align);
        self.case.registers.gpr[number] = address;
        address
    }

    /// Appends an instruction; false if it cannot be had here.
    pub fn push(&mut self, instruction: Instruction) -> bool {
        self.case.push(&mut self.encoder, instruction)
    }

    /// Appends bytes as they are: one instruction.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        self.case.push_bytes(bytes);
    }

    /// Appends `1..=max` instructions of these forms.
    pub fn push_forms(&mut self, forms: &[Form], max: u64) {
        let count = 1 + self.random.below(max) as usize;
        let mut tries = 0;
        while self.case.instructions.len() < count && tries < 64 {
            tries += 1;
            let form = self.random.pick(forms);
            if let Some(instruction) = self.instruction(&form) {
                self.push(instruction);
            }
        }
    }

    /// An instruction of this form with random operands.
    pub fn instruction(&mut self, form: &Form) -> Option<Instruction> {
        let mut instruction = Instruction::default();
        instruction.set_code(form.code);
        let mut memory = false;
        for operand in 0..form.count {
            memory |= self.operand(&mut instruction, operand as u32, form.kinds[operand])?;
        }
        if memory {
            self.memory_operand(&mut instruction, form);
        }
        Some(instruction)
    }

    /// Sets one operand; true if it is memory.
    fn operand(&mut self, instruction: &mut Instruction, operand: u32, kind: Kind) -> Option<bool> {
        use Kind::*;
        if is_memory(kind) && self.random.percent(self.memory_percent) {
            instruction.set_op_kind(operand, OpKind::Memory);
            return Some(true);
        }
        let register = match kind {
            r8_or_mem | r8_reg | r8_opcode => self.register8(),
            r16_or_mem | r16_reg | r16_rm | r16_opcode => self.gpr(Register::AX),
            r32_or_mem | r32_reg | r32_rm | r32_opcode => self.gpr(Register::EAX),
            r64_or_mem | r64_reg | r64_rm | r64_opcode => self.gpr(Register::RAX),
            mm_or_mem | mm_reg | mm_rm => Register::MM0 + self.random.below(8) as u32,
            xmm_or_mem | xmm_reg | xmm_rm => Register::XMM0 + self.random.below(16) as u32,
            sti_opcode => Register::ST0 + self.random.below(8) as u32,
            al => Register::AL,
            cl => Register::CL,
            ax => Register::AX,
            dx => Register::DX,
            eax => Register::EAX,
            rax => Register::RAX,
            st0 => Register::ST0,
            mem => {
                instruction.set_op_kind(operand, OpKind::Memory);
                return Some(true);
            }
            mem_offs => {
                instruction.set_op_kind(operand, OpKind::Memory);
                let address = self.case.place.scratch() + self.random.below(SCRATCH_LEN as u64 - 16);
                instruction.set_memory_displ_size(8);
                instruction.set_memory_displacement64(address);
                return Some(false);
            }
            seg_rSI => {
                instruction.set_op_kind(operand, OpKind::MemorySegRSI);
                return Some(false);
            }
            es_rDI => {
                instruction.set_op_kind(operand, OpKind::MemoryESRDI);
                return Some(false);
            }
            _ => {
                self.immediate(instruction, operand, kind)?;
                return Some(false);
            }
        };
        instruction.set_op_kind(operand, OpKind::Register);
        instruction.set_op_register(operand, register);
        Some(false)
    }

    fn immediate(&mut self, instruction: &mut Instruction, operand: u32, kind: Kind) -> Option<()> {
        let value = self.random.integer();
        match kind {
            Kind::imm8 => {
                instruction.set_op_kind(operand, OpKind::Immediate8);
                instruction.set_immediate8(value as u8);
            }
            Kind::imm8_const_1 => {
                instruction.set_op_kind(operand, OpKind::Immediate8);
                instruction.set_immediate8(1);
            }
            Kind::imm8sex16 => {
                instruction.set_op_kind(operand, OpKind::Immediate8to16);
                instruction.set_immediate8to16(value as i8 as i16);
            }
            Kind::imm8sex32 => {
                instruction.set_op_kind(operand, OpKind::Immediate8to32);
                instruction.set_immediate8to32(value as i8 as i32);
            }
            Kind::imm8sex64 => {
                instruction.set_op_kind(operand, OpKind::Immediate8to64);
                instruction.set_immediate8to64(value as i8 as i64);
            }
            Kind::imm16 => {
                instruction.set_op_kind(operand, OpKind::Immediate16);
                instruction.set_immediate16(value as u16);
            }
            Kind::imm32 => {
                instruction.set_op_kind(operand, OpKind::Immediate32);
                instruction.set_immediate32(value as u32);
            }
            Kind::imm32sex64 => {
                instruction.set_op_kind(operand, OpKind::Immediate32to64);
                instruction.set_immediate32to64(value as i32 as i64);
            }
            Kind::imm64 => {
                instruction.set_op_kind(operand, OpKind::Immediate64);
                instruction.set_immediate64(value);
            }
            _ => return None,
        }
        Some(())
    }

    /// A general register that operands may be; `first` is RAX at the width wanted.
    pub fn gpr(&mut self, first: Register) -> Register {
        first + self.random.pick(&self.free) as u32
    }

    fn register8(&mut self) -> Register {
        let number = self.random.pick(&self.free);
        match number {
            0..4 if self.random.percent(25) => Register::AH + number as u32,
            0..4 => Register::AL + number as u32,
            _ => Register::SPL + (number as u32 - 4),
        }
    }

    /// Sets a memory operand somewhere in the scratch, and puts a value of the operand's type there.
    fn memory_operand(&mut self, instruction: &mut Instruction, form: &Form) {
        let size = instruction.memory_size();
        let len = match size.size() as u64 {
            0 => 16,
            len => len,
        };
        // A bit offset moves the operand by up to eight bytes either way (see below).
        let margin = 16;
        let mut offset = margin + self.random.below(SCRATCH_LEN as u64 - 2 * margin - len);
        let aligned = if len >= 16 { 95 } else { 70 };
        if self.random.percent(aligned) {
            offset &= !(len.next_power_of_two().min(64) - 1);
        }
        self.place_value(offset as usize, size);
        self.address(instruction, self.case.place.scratch() + offset);
        if matches!(form.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
            && instruction.op1_kind() == OpKind::Register
        {
            let first = match instruction.op1_register().size() {
                2 => Register::AX,
                4 => Register::EAX,
                _ => Register::RAX,
            };
            instruction.set_op1_register(first + self.index as u32);
        }
    }

    /// Makes the memory operand address this byte, one way or another.
    pub fn address(&mut self, instruction: &mut Instruction, address: u64) {
        let way = self.random.below(100);
        let wide = way >= 8;
        let first = if wide { Register::RAX } else { Register::EAX };
        let far = if wide { 8 } else { 4 };
        let (mut base, mut index, mut scale) = (Register::None, Register::None, 1);
        let mut displacement = address;
        if (90..96).contains(&way) {
            base = Register::RIP;
        } else if way < 96 {
            base = first + self.base as u32;
            displacement = displacement.wrapping_sub(self.case.registers.gpr[self.base]);
            if self.random.percent(40) {
                index = first + self.index as u32;
                scale = 1 << self.random.below(4);
                let index_value = self.case.registers.gpr[self.index];
                displacement = displacement.wrapping_sub(index_value.wrapping_mul(scale));
            }
        }
        if !wide {
            displacement &= 0xffff_ffff;
        }
        instruction.set_memory_base(base);
        instruction.set_memory_index(index);
        instruction.set_memory_index_scale(scale as u32);
        let short = base != Register::RIP && base != Register::None && (displacement as i64).unsigned_abs() < 128;
        instruction.set_memory_displ_size(if short { 1 } else { far });
        instruction.set_memory_displacement64(displacement);
        if self.random.percent(2) {
            instruction.set_segment_prefix(Register::GS);
        }
    }

    /// Puts a value of this type at an offset of the scratch.
    fn place_value(&mut self, offset: usize, size: MemorySize) {
        let random = &mut self.random;
        let scratch = &mut self.case.scratch;
        let element = size.element_type();
        match element {
            MemorySize::Float32 | MemorySize::Float64 if self.flavor != Flavor::Integer => {
                let step = element.size();
                for at in (0..size.size().max(step)).step_by(step) {
                    let bits = if step == 4 { random.float32().into() } else { random.float64() };
                    scratch[offset + at..offset + at + step].copy_from_slice(&bits.to_le_bytes()[..step]);
                }
            }
            MemorySize::Float80 => {
                let (significand, sign_exponent) = random.float80();
                scratch[offset..offset + 8].copy_from_slice(&significand.to_le_bytes());
                scratch[offset + 8..offset + 10].copy_from_slice(&sign_exponent.to_le_bytes());
            }
            MemorySize::Bcd => scratch[offset..offset + 10].copy_from_slice(&random.decimal80()),
            _ => {}
        }
    }

    /// Writes bytes at a scratch address.
    pub fn poke(&mut self, address: u64, bytes: &[u8]) {
        let offset = (address - self.case.place.scratch()) as usize;
        self.case.scratch[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}
