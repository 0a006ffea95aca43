//! [`Assembler`]: writes host instructions, those few forms that translations are made of.
//!
//! Encodings are those of the Intel SDM, volume 2.

/// A host register, by its number in instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Register(pub u8);

pub(super) const RAX: Register = Register(0);
pub(super) const RCX: Register = Register(1);
pub(super) const RDX: Register = Register(2);
pub(super) const RBX: Register = Register(3);
pub(super) const RSP: Register = Register(4);
pub(super) const RBP: Register = Register(5);
pub(super) const RSI: Register = Register(6);
pub(super) const RDI: Register = Register(7);
pub(super) const R8: Register = Register(8);
pub(super) const R9: Register = Register(9);
pub(super) const R10: Register = Register(10);
pub(super) const R11: Register = Register(11);
pub(super) const R12: Register = Register(12);
pub(super) const R13: Register = Register(13);
pub(super) const R14: Register = Register(14);
pub(super) const R15: Register = Register(15);

/// Width of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    B1,
    B2,
    B4,
    B8,
}

impl Size {
    /// The size of so many bytes, if it is one of general registers.
    pub(super) fn of_bytes(bytes: usize) -> Option<Self> {
        Some(match bytes {
            1 => Self::B1,
            2 => Self::B2,
            4 => Self::B4,
            8 => Self::B8,
            _ => return None,
        })
    }

    pub(super) fn bytes(self) -> u8 {
        match self {
            Self::B1 => 1,
            Self::B2 => 2,
            Self::B4 => 4,
            Self::B8 => 8,
        }
    }
}

/// What the ModRM byte can name: a register, or memory at a register plus a displacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operand {
    Register(Register),
    Memory(Register, i32),
}

impl From<Register> for Operand {
    fn from(register: Register) -> Self {
        Self::Register(register)
    }
}

/// The eight operations that share one encoding, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Alu {
    Add = 0,
    Or = 1,
    Adc = 2,
    Sbb = 3,
    And = 4,
    Sub = 5,
    Xor = 6,
    Cmp = 7,
}

/// Condition codes, as Jcc, SETcc and CMOVcc encode them.
pub(super) mod condition {
    pub const OVERFLOW: u8 = 0;
    pub const CARRY: u8 = 2;
    pub const ZERO: u8 = 4;
    pub const NOT_ZERO: u8 = 5;
    pub const GREATER: u8 = 15;
}

/// Shifts and rotates, as ModRM's middle field has them.
pub(super) mod shift {
    pub const ROL: u8 = 0;
    pub const ROR: u8 = 1;
    pub const SHL: u8 = 4;
    pub const SHR: u8 = 5;
    pub const SAR: u8 = 7;
}

/// A place in the code that a jump is yet to be given.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(super) struct Jump(usize);

/// Host code that is being written, to be put at a known offset of the code memory.
pub(super) struct Assembler {
    code: Vec<u8>,
    start: usize,
}

impl Assembler {
    /// Code that will stand at the offset `start`.
    pub(super) fn new(start: usize) -> Self {
        Self { code: Vec::with_capacity(1024), start }
    }

    pub(super) fn code(&self) -> &[u8] {
        &self.code
    }

    /// The offset in code memory of what is written next.
    pub(super) fn here(&self) -> usize {
        self.start + self.code.len()
    }

    fn byte(&mut self, byte: u8) {
        self.code.push(byte);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    /// Prefixes, opcode and ModRM of an instruction. `reg` is the number in ModRM's middle field; `byte_register` says that it, or a
    /// register operand, is one of a byte, whose numbers 4 to 7 need a REX prefix.
    fn form(&mut self, size: Size, opcode: &[u8], reg: u8, operand: Operand, byte_register: bool) {
        if size == Size::B2 {
            self.byte(0x66);
        }
        let base = match operand {
            Operand::Register(register) | Operand::Memory(register, _) => register.0,
        };
        let low_byte = |number: u8| byte_register && (4..8).contains(&number);
        let of_register = matches!(operand, Operand::Register(_)) && low_byte(base);
        let rex = u8::from(size == Size::B8) << 3 | (reg >> 3 & 1) << 2 | base >> 3 & 1;
        if rex != 0 || low_byte(reg) || of_register {
            self.byte(0x40 | rex);
        }
        self.bytes(opcode);
        let (reg, low) = ((reg & 7) << 3, base & 7);
        match operand {
            Operand::Register(_) => self.byte(0xc0 | reg | low),
            Operand::Memory(_, displacement) => self.memory(reg, low, displacement),
        }
    }

    fn memory(&mut self, reg: u8, low: u8, displacement: i32) {
        let short = i8::try_from(displacement);
        let mode = match short {
            Ok(0) if low != 5 => 0x00,
            Ok(_) => 0x40,
            Err(_) => 0x80,
        };
        self.byte(mode | reg | low);
        if low == 4 {
            self.byte(0x24);
        }
        match short {
            Ok(_) if mode == 0 => {}
            Ok(short) => self.byte(short as u8),
            Err(_) => self.bytes(&displacement.to_le_bytes()),
        }
    }

    /// An instruction whose opcode is `opcode` for bytes and one more for other sizes.
    fn by_size(&mut self, size: Size, opcode: u8, reg: u8, operand: Operand) {
        let opcode = if size == Size::B1 { opcode } else { opcode + 1 };
        self.form(size, &[opcode], reg, operand, size == Size::B1);
    }

    pub(super) fn load(&mut self, size: Size, to: Register, from: impl Into<Operand>) {
        self.by_size(size, 0x8a, to.0, from.into());
    }

    pub(super) fn store(&mut self, size: Size, to: Operand, from: Register) {
        self.by_size(size, 0x88, from.0, to);
    }

    /// MOV of an immediate, sign-extended from 32 bits where the size is eight bytes.
    pub(super) fn store_immediate(&mut self, size: Size, to: Operand, value: i32) {
        self.by_size(size, 0xc6, 0, to);
        self.immediate(size, value);
    }

    pub(super) fn load_immediate_64(&mut self, to: Register, value: u64) {
        self.bytes(&[0x48 | to.0 >> 3 & 1, 0xb8 | to.0 & 7]);
        self.bytes(&value.to_le_bytes());
    }

    fn immediate(&mut self, size: Size, value: i32) {
        match size {
            Size::B1 => self.byte(value as u8),
            Size::B2 => self.bytes(&(value as u16).to_le_bytes()),
            Size::B4 | Size::B8 => self.bytes(&value.to_le_bytes()),
        }
    }

    /// MOVZX or MOVSX (MOVSXD) to `to_size`; from and to 32 bits it is a plain MOV.
    pub(super) fn extend(
        &mut self,
        signed: bool,
        to_size: Size,
        to: Register,
        from_size: Size,
        from: impl Into<Operand>,
    ) {
        let from = from.into();
        match (from_size, signed) {
            (Size::B1, _) => self.form(to_size, &[0x0f, if signed { 0xbe } else { 0xb6 }], to.0, from, true),
            (Size::B2, _) => self.form(to_size, &[0x0f, if signed { 0xbf } else { 0xb7 }], to.0, from, false),
            (Size::B4, true) if to_size == Size::B8 => self.form(to_size, &[0x63], to.0, from, false),
            (Size::B8, _) => self.load(Size::B8, to, from),
            (Size::B4, _) => self.load(Size::B4, to, from),
        }
    }

    pub(super) fn alu(&mut self, operation: Alu, size: Size, to: Register, from: impl Into<Operand>) {
        self.by_size(size, (operation as u8) << 3 | 2, to.0, from.into());
    }

    pub(super) fn alu_immediate(&mut self, operation: Alu, size: Size, to: impl Into<Operand>, value: i32) {
        let to = to.into();
        match i8::try_from(value) {
            Ok(short) if size != Size::B1 => {
                self.form(size, &[0x83], operation as u8, to, false);
                self.byte(short as u8);
            }
            _ => {
                self.by_size(size, 0x80, operation as u8, to);
                self.immediate(size, value);
            }
        }
    }

    /// INC (0) or DEC (1).
    pub(super) fn step(&mut self, down: bool, size: Size, to: Register) {
        self.by_size(size, 0xfe, down.into(), to.into());
    }

    pub(super) fn neg(&mut self, size: Size, to: Register) {
        self.by_size(size, 0xf6, 3, to.into());
    }

    pub(super) fn not(&mut self, size: Size, to: Register) {
        self.by_size(size, 0xf6, 2, to.into());
    }

    /// A shift or rotate by a constant; `number` is one of [`shift`].
    pub(super) fn shift(&mut self, number: u8, size: Size, to: Register, count: u8) {
        self.by_size(size, 0xc0, number, to.into());
        self.byte(count);
    }

    /// The same by CL.
    pub(super) fn shift_by_cl(&mut self, number: u8, size: Size, to: Register) {
        self.by_size(size, 0xd2, number, to.into());
    }

    pub(super) fn imul(&mut self, size: Size, to: Register, from: impl Into<Operand>) {
        self.form(size, &[0x0f, 0xaf], to.0, from.into(), false);
    }

    pub(super) fn imul_immediate(&mut self, size: Size, to: Register, from: impl Into<Operand>, value: i32) {
        self.form(size, &[0x69], to.0, from.into(), false);
        self.immediate(size, value);
    }

    pub(super) fn bswap(&mut self, size: Size, register: Register) {
        let rex = u8::from(size == Size::B8) << 3 | register.0 >> 3 & 1;
        self.bytes(&[0x40 | rex, 0x0f, 0xc8 | register.0 & 7]);
    }

    /// LEA of base plus displacement, 64 bits.
    pub(super) fn lea(&mut self, to: Register, base: Register, displacement: i32) {
        self.form(Size::B8, &[0x8d], to.0, Operand::Memory(base, displacement), false);
    }

    /// LEA of base plus index times `1 << scale`, 64 bits. The index is not RSP.
    pub(super) fn lea_indexed(&mut self, to: Register, base: Register, index: Register, scale: u8) {
        let rex = 0x48 | (to.0 >> 3 & 1) << 2 | (index.0 >> 3 & 1) << 1 | base.0 >> 3 & 1;
        let sib = scale << 6 | (index.0 & 7) << 3 | base.0 & 7;
        // A displacement of one byte, since base RBP or R13 cannot go without.
        self.bytes(&[rex, 0x8d, 0x44 | (to.0 & 7) << 3, sib, 0]);
    }

    /// BT of a bit of a 32-bit memory operand: CF becomes the bit.
    pub(super) fn test_bit(&mut self, operand: Operand, bit: u8) {
        self.form(Size::B4, &[0x0f, 0xba], 4, operand, false);
        self.byte(bit);
    }

    pub(super) fn set_if(&mut self, condition: u8, to: impl Into<Operand>) {
        self.form(Size::B1, &[0x0f, 0x90 | condition], 0, to.into(), true);
    }

    pub(super) fn move_if(&mut self, condition: u8, size: Size, to: Register, from: Register) {
        self.form(size, &[0x0f, 0x40 | condition], to.0, from.into(), false);
    }

    /// AH becomes SF, ZF, AF, PF and CF.
    pub(super) fn lahf(&mut self) {
        self.byte(0x9f);
    }

    pub(super) fn push(&mut self, register: Register) {
        if register.0 >= 8 {
            self.byte(0x41);
        }
        self.byte(0x50 | register.0 & 7);
    }

    pub(super) fn pop(&mut self, register: Register) {
        if register.0 >= 8 {
            self.byte(0x41);
        }
        self.byte(0x58 | register.0 & 7);
    }

    pub(super) fn pop_flags(&mut self) {
        self.byte(0x9d);
    }

    pub(super) fn ret(&mut self) {
        self.byte(0xc3);
    }

    pub(super) fn call_register(&mut self, register: Register) {
        self.form(Size::B4, &[0xff], 2, register.into(), false);
    }

    pub(super) fn jump_register(&mut self, register: Register) {
        self.form(Size::B4, &[0xff], 4, register.into(), false);
    }

    fn relative(&mut self, target: usize) {
        let end = self.here() + 4;
        self.bytes(&(target.wrapping_sub(end) as i32).to_le_bytes());
    }

    pub(super) fn call(&mut self, target: usize) {
        self.byte(0xe8);
        self.relative(target);
    }

    pub(super) fn jump(&mut self, target: usize) {
        self.byte(0xe9);
        self.relative(target);
    }

    pub(super) fn jump_if(&mut self, condition: u8, target: usize) {
        self.bytes(&[0x0f, 0x80 | condition]);
        self.relative(target);
    }

    /// A jump to a place that is not known yet.
    pub(super) fn jump_later(&mut self) -> Jump {
        self.jump(0);
        Jump(self.code.len() - 4)
    }

    /// A conditional jump to a place that is not known yet.
    pub(super) fn jump_if_later(&mut self, condition: u8) -> Jump {
        self.jump_if(condition, 0);
        Jump(self.code.len() - 4)
    }

    /// Has a jump lead to what is written next.
    pub(super) fn land(&mut self, jump: Jump) {
        let distance = (self.code.len() - jump.0 - 4) as i32;
        if let Some(place) = self.code.get_mut(jump.0..jump.0 + 4) {
            place.copy_from_slice(&distance.to_le_bytes());
        }
    }
}
