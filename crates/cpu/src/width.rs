//! Operand widths, and general registers seen at each of them.

use memory::Scalar;

/// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15, and two that are used for addresses only.
pub(crate) type GeneralRegisters = [u64; 18];

/// An operand width: `u8`, `u16`, `u32` or `u64`.
pub(crate) trait Width: Scalar + Copy + Eq + Ord + Default + 'static {
    /// 8, 16, 32 or 64.
    const BITS: u32;
    /// 1, 2, 4 or 8.
    const BYTES: u64 = Self::BITS as u64 / 8;

    /// Truncates.
    fn from_u64(value: u64) -> Self;
    /// Zero-extends.
    fn to_u64(self) -> u64;
    /// Sign-extends.
    fn sign_extended(self) -> u64;
    /// Reads a general register by its slot in an op (see `op::Op`).
    fn read(registers: &GeneralRegisters, slot: u8) -> Self;
    /// Writes a general register: 32-bit writes clear the upper half, 8 and 16-bit writes keep the rest.
    fn write(self, registers: &mut GeneralRegisters, slot: u8);

    /// The sign bit.
    #[inline(always)]
    fn sign(self) -> bool {
        self.to_u64() >> (Self::BITS - 1) & 1 == 1
    }
}

impl Width for u8 {
    const BITS: u32 = 8;

    #[inline(always)]
    fn from_u64(value: u64) -> Self {
        value as Self
    }

    #[inline(always)]
    fn to_u64(self) -> u64 {
        self.into()
    }

    #[inline(always)]
    fn sign_extended(self) -> u64 {
        self as i8 as u64
    }

    #[inline(always)]
    fn read(registers: &GeneralRegisters, slot: u8) -> Self {
        (registers[usize::from(slot & 15)] >> ((slot & 16) >> 1)) as Self
    }

    #[inline(always)]
    fn write(self, registers: &mut GeneralRegisters, slot: u8) {
        let shift = (slot & 16) >> 1;
        let register = &mut registers[usize::from(slot & 15)];
        *register = *register & !(0xff << shift) | u64::from(self) << shift;
    }
}

/// The widths above a byte: writes keep the register's bits under `$keep`.
macro_rules! wide {
    ($type:ty, $signed:ty, $keep:expr) => {
        impl Width for $type {
            const BITS: u32 = <$type>::BITS;

            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as Self
            }

            #[inline(always)]
            fn to_u64(self) -> u64 {
                self.into()
            }

            #[inline(always)]
            fn sign_extended(self) -> u64 {
                self as $signed as u64
            }

            #[inline(always)]
            fn read(registers: &GeneralRegisters, slot: u8) -> Self {
                registers[usize::from(slot & 15)] as Self
            }

            #[inline(always)]
            fn write(self, registers: &mut GeneralRegisters, slot: u8) {
                let register = &mut registers[usize::from(slot & 15)];
                *register = *register & $keep | u64::from(self);
            }
        }
    };
}

wide!(u16, i16, !0xffff);
wide!(u32, i32, 0);
wide!(u64, i64, 0);
