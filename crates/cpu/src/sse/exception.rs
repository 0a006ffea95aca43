//! SIMD floating-point exceptions (Intel SDM volume 1, section 11.5).

use crate::core::Cpu;
use crate::stop::{Stop, vector};
use crate::unit::Sse;
use crate::unit::control::cr4;

use super::native::{HOST_CONTROL, Operation};

/// Status flags of MXCSR.
pub(super) const STATUS: u32 = 0x3f;
const INVALID: u32 = 1 << 0;
const DENORMAL: u32 = 1 << 1;
const ZERO_DIVIDE: u32 = 1 << 2;
pub(super) const OVERFLOW: u32 = 1 << 3;
pub(super) const UNDERFLOW: u32 = 1 << 4;
pub(super) const PRECISION: u32 = 1 << 5;
/// Exceptions that are found before a result is computed.
const BEFORE_COMPUTATION: u32 = INVALID | DENORMAL | ZERO_DIVIDE;
/// Position of the masks, which stand in the order of the status flags.
const MASK_SHIFT: u32 = 7;
const MASKS: u32 = STATUS << MASK_SHIFT;
/// Rounding mode: to nearest, down, up, towards zero.
pub(super) const ROUNDING: u32 = 3 << ROUNDING_SHIFT;
pub(super) const ROUNDING_SHIFT: u32 = 13;
const FLUSH_TO_ZERO: u32 = 1 << 15;

impl Cpu {
    /// Executes a floating-point instruction under MXCSR and collects its status flags; raises #XM, with the flags set
    /// and nothing else changed, when it raises an exception that is not masked.
    #[inline(always)]
    pub(super) fn float<O: Operation>(&mut self, left: O::Left, right: O::Right) -> Result<O::Output, Stop> {
        if self.sse.mxcsr & !STATUS == HOST_CONTROL {
            return Ok(O::run::<false>(&mut self.sse.mxcsr, left, right));
        }
        self.float_special::<O>(left, right)
    }

    /// [`Cpu::float`] for other than the default control bits.
    #[cold]
    #[inline(never)]
    fn float_special<O: Operation>(&mut self, left: O::Left, right: O::Right) -> Result<O::Output, Stop> {
        let control = self.sse.mxcsr & Sse::MXCSR_MASK & !STATUS;
        let unmasked = !control >> MASK_SHIFT & STATUS;
        let mut mxcsr = control | MASKS;
        if unmasked & UNDERFLOW != 0 {
            // Flushing to zero is part of the masked response.
            mxcsr &= !FLUSH_TO_ZERO;
        }
        let run_control = mxcsr;
        let output = O::run::<true>(&mut mxcsr, left, right);
        let mut raised = mxcsr & STATUS;
        if unmasked & (OVERFLOW | UNDERFLOW) != 0 {
            let mut elements = O::elements(left, right).into_iter().flatten().peekable();
            if elements.peek().is_some() {
                raised = elements.fold(0, |raised, element| raised | element.status(run_control, unmasked));
            }
        }
        if raised & unmasked & BEFORE_COMPUTATION != 0 {
            // Nothing was computed, so nothing overflowed, underflowed or was rounded.
            raised &= BEFORE_COMPUTATION;
        }
        self.sse.mxcsr |= raised;
        if raised & unmasked == 0 {
            return Ok(output);
        }
        Err(if self.system.cr4 & cr4::OSXMMEXCPT != 0 { self.raise(vector::XM, None) } else { self.undefined_opcode() })
    }
}
