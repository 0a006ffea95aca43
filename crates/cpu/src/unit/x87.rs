//! [`X87`]: the registers of the x87 unit and its stack, and what MMX instructions share of it.

/// One 80-bit register. MMX registers are the significands.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Register80 {
    pub significand: u64,
    /// Sign (bit 15) and biased exponent.
    pub sign_exponent: u16,
}

impl Register80 {
    /// The quiet NaN that masked invalid operations produce.
    pub(crate) const INDEFINITE: Self = Self { significand: 3 << 62, sign_exponent: 0xffff };

    pub(crate) fn from_u128(bits: u128) -> Self {
        Self { significand: bits as u64, sign_exponent: (bits >> 64) as u16 }
    }

    /// Exact: 64 bits of significand hold every integer.
    pub(crate) fn from_integer(value: i64) -> Self {
        if value == 0 {
            return Self::default();
        }
        let magnitude = value.unsigned_abs();
        let shift = magnitude.leading_zeros();
        let sign = u16::from(value < 0) << 15;
        Self { significand: magnitude << shift, sign_exponent: sign | (16383 + 63 - shift as u16) }
    }

    pub(crate) fn is_nan(self) -> bool {
        self.sign_exponent & 0x7fff == 0x7fff && self.significand << 1 != 0
    }

    pub(crate) fn is_negative(self) -> bool {
        self.sign_exponent >> 15 == 1
    }
}

/// The x87 unit: registers by physical number (ST(i) is `registers[(top + i) % 8]`), as FXSAVE sees it.
#[repr(C)]
#[derive(Clone, Debug)]
pub(crate) struct X87 {
    pub registers: [Register80; 8],
    pub control: u16,
    /// Status word, TOP in bits 11 to 13.
    pub status: u16,
    /// Bit n: physical register n holds a value (the abridged tag word of FXSAVE).
    pub valid: u8,
    /// Opcode of the last instruction that left an unmasked exception, 11 bits.
    pub last_opcode: u16,
    /// RIP of the last instruction that is not a control instruction.
    pub last_instruction: u64,
    /// Operand address of the last instruction that left an unmasked exception.
    pub last_operand: u64,
}

/// Bits of the status word (Intel SDM volume 1, figure 8-4); the low six are also the masks of the control word.
pub(crate) mod status {
    pub const INVALID: u16 = 1 << 0;
    pub const DENORMAL: u16 = 1 << 1;
    pub const ZERO_DIVIDE: u16 = 1 << 2;
    pub const OVERFLOW: u16 = 1 << 3;
    pub const UNDERFLOW: u16 = 1 << 4;
    pub const EXCEPTIONS: u16 = 0x3f;
    pub const STACK_FAULT: u16 = 1 << 6;
    pub const ERROR_SUMMARY: u16 = 1 << 7;
    pub const C0: u16 = 1 << 8;
    pub const C1: u16 = 1 << 9;
    pub const C2: u16 = 1 << 10;
    pub const TOP_SHIFT: u32 = 11;
    pub const TOP: u16 = 7 << TOP_SHIFT;
    pub const C3: u16 = 1 << 14;
    pub const BUSY: u16 = 1 << 15;
    /// Detected before anything is computed: when unmasked, operands and stack stay as they were.
    pub const BEFORE_COMPUTING: u16 = INVALID | DENORMAL | ZERO_DIVIDE;
    /// When unmasked, nothing is stored in memory.
    pub const BEFORE_STORING: u16 = BEFORE_COMPUTING | OVERFLOW | UNDERFLOW;
}

/// Bits of the control word.
pub(crate) mod control {
    /// After FNINIT.
    pub const INITIAL: u16 = 0x37f;
    /// Bits that can be set; bit 6 always is.
    pub const WRITABLE: u16 = 0x1f3f;
    pub const FIXED: u16 = 1 << 6;
    /// Precision: 24, reserved, 53 and 64 bits.
    pub const PRECISION: u16 = 3 << 8;
    pub const PRECISION_RESERVED: u16 = 1 << 8;
    /// Rounding: to nearest, down, up, towards zero.
    pub const ROUNDING_SHIFT: u32 = 10;
}

impl X87 {
    /// As after FNINIT.
    pub(crate) fn new() -> Self {
        Self {
            registers: [Register80::default(); 8],
            control: control::INITIAL,
            status: 0,
            valid: 0,
            last_opcode: 0,
            last_instruction: 0,
            last_operand: 0,
        }
    }

    /// What every MMX instruction but EMMS does to the x87 state: TOP = 0, every register valid (Intel SDM volume 1,
    /// section 9.5). Call it once the instruction can no longer fault. A register that is written also gets
    /// `sign_exponent` 0xffff.
    #[inline(always)]
    pub(crate) fn enter_mmx(&mut self) {
        self.status &= !status::TOP;
        self.valid = 0xff;
    }

    pub(crate) fn top(&self) -> usize {
        usize::from(self.status >> status::TOP_SHIFT & 7)
    }

    fn physical(&self, index: u8) -> usize {
        (self.top() + usize::from(index)) & 7
    }

    /// ST(index).
    pub(crate) fn get(&self, index: u8) -> Register80 {
        self.registers[self.physical(index)]
    }

    /// ST(index), unless it is empty.
    pub(crate) fn value(&self, index: u8) -> Option<Register80> {
        let physical = self.physical(index);
        (self.valid >> physical & 1 == 1).then(|| self.registers[physical])
    }

    pub(crate) fn set(&mut self, index: u8, value: Register80) {
        let physical = self.physical(index);
        self.registers[physical] = value;
        self.valid |= 1 << physical;
    }

    /// Makes ST(index) empty.
    pub(crate) fn free(&mut self, index: u8) {
        self.valid &= !(1 << self.physical(index));
    }

    /// Moves TOP up (towards the stack's bottom) by one, as a pop does, or down by one (`by` = 7).
    pub(crate) fn rotate(&mut self, by: u16) {
        let top = (self.status >> status::TOP_SHIFT).wrapping_add(by) & 7;
        self.status = self.status & !status::TOP | top << status::TOP_SHIFT;
    }

    pub(crate) fn pop(&mut self) {
        self.free(0);
        self.rotate(1);
    }

    /// The caller has checked that there is room.
    pub(crate) fn push(&mut self, value: Register80) {
        self.rotate(7);
        self.set(0, value);
    }

    pub(crate) fn has_room(&self) -> bool {
        self.valid >> self.physical(7) & 1 == 0
    }

    pub(crate) fn set_condition(&mut self, mask: u16, bits: u16) {
        self.status = self.status & !mask | bits & mask;
    }

    /// Whether one of these exceptions is raised and not masked.
    pub(crate) fn is_unmasked(&self, exceptions: u16) -> bool {
        exceptions & !self.control & status::EXCEPTIONS != 0
    }

    /// Derives ES and B from exceptions and masks.
    pub(crate) fn update_summary(&mut self) {
        let summary = status::ERROR_SUMMARY | status::BUSY;
        let bits = if self.is_unmasked(self.status) { summary } else { 0 };
        self.set_condition(summary, bits);
    }

    pub(crate) fn set_control(&mut self, value: u16) {
        self.control = value & control::WRITABLE | control::FIXED;
        self.update_summary();
    }
}
