//! [`Mode`]: what decides, besides the bytes, how code decodes.

use crate::unit::control::{cr0, cr4};
use crate::unit::flags::bit;
use crate::unit::system::System;

/// What decides, besides the bytes, how code decodes: part of a block's identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mode(u16);

impl Mode {
    const CODE_16: u16 = 1 << 0;
    const CODE_64: u16 = 1 << 1;
    const STACK_32: u16 = 1 << 2;
    /// Protected mode, and not virtual-8086 mode.
    const PROTECTED: u16 = 1 << 3;
    const FPU_EMULATED: u16 = 1 << 4;
    const TASK_SWITCHED: u16 = 1 << 5;
    const MONITOR: u16 = 1 << 6;
    const FXSAVE: u16 = 1 << 7;
    const XSAVE: u16 = 1 << 8;
    /// Bits of [`Mode::bits`].
    pub(crate) const BITS: u32 = 9;

    /// The mode of a processor with this state: `code_bits` (16, 32 or 64) of the current code segment, `rflags` with VM at least.
    pub(crate) fn of(system: &System, code_bits: u8, rflags: u64) -> Self {
        let stack_32 = system.segments[2].attributes & 1 << 14 != 0;
        let mut mode = match code_bits {
            64 => Self::CODE_64,
            16 => Self::CODE_16,
            _ => 0,
        };
        for (holds, bit) in [
            (stack_32 && code_bits != 64, Self::STACK_32),
            (system.cr0 & cr0::PE != 0 && rflags & bit::VM == 0, Self::PROTECTED),
            (system.cr0 & cr0::EM != 0, Self::FPU_EMULATED),
            (system.cr0 & cr0::TS != 0, Self::TASK_SWITCHED),
            (system.cr0 & cr0::MP != 0, Self::MONITOR),
            (system.cr4 & cr4::OSFXSR != 0, Self::FXSAVE),
            (system.cr4 & cr4::OSXSAVE != 0, Self::XSAVE),
        ] {
            if holds {
                mode |= bit;
            }
        }
        Self(mode)
    }

    /// The mode of a number whose lowest bits [`Mode::bits`] gave.
    pub(crate) fn of_bits(bits: u64) -> Self {
        Self(bits as u16 & ((1 << Self::BITS) - 1))
    }

    /// As a number below `1 << BITS`.
    #[inline(always)]
    pub(crate) fn bits(self) -> u64 {
        self.0.into()
    }

    /// 16, 32 or 64: the default operand size.
    pub(crate) fn code_bits(self) -> u8 {
        match self.0 & (Self::CODE_16 | Self::CODE_64) {
            0 => 32,
            Self::CODE_16 => 16,
            _ => 64,
        }
    }

    /// 16, 32 or 64: the width of the stack pointer.
    pub(crate) fn stack_bits(self) -> u8 {
        if self.0 & Self::CODE_64 != 0 {
            64
        } else if self.0 & Self::STACK_32 != 0 {
            32
        } else {
            16
        }
    }

    /// Protected mode, and not virtual-8086 mode.
    pub(crate) fn is_protected(self) -> bool {
        self.0 & Self::PROTECTED != 0
    }

    /// CR0.EM.
    pub(crate) fn fpu_emulated(self) -> bool {
        self.0 & Self::FPU_EMULATED != 0
    }

    /// CR0.TS.
    pub(crate) fn task_switched(self) -> bool {
        self.0 & Self::TASK_SWITCHED != 0
    }

    /// CR0.MP.
    pub(crate) fn monitors_coprocessor(self) -> bool {
        self.0 & Self::MONITOR != 0
    }

    /// CR4.OSFXSR.
    pub(crate) fn fxsave(self) -> bool {
        self.0 & Self::FXSAVE != 0
    }

    /// CR4.OSXSAVE.
    pub(crate) fn xsave(self) -> bool {
        self.0 & Self::XSAVE != 0
    }
}
