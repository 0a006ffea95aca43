//! What all x87 operations have in common: pending exceptions at their beginning, where they were and what they raise at their end.

use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::Op;
use crate::stop::{Stop, vector};
use crate::unit::x87::status;

/// [`Op::third`] of instructions with a memory operand.
pub(super) const MEMORY: u8 = 1;

impl Cpu {
    /// Raises #MF when an unmasked x87 exception is pending: the first thing that waiting x87 instructions and all MMX
    /// instructions do.
    #[inline(always)]
    pub(crate) fn check_x87_pending(&mut self) -> Result<(), Stop> {
        if self.x87.status & status::ERROR_SUMMARY == 0 { Ok(()) } else { Err(self.raise(vector::MF, None)) }
    }

    /// Ends an instruction that computes: notes where it was, and adds its exceptions; if one of them is not masked, #MF follows at the
    /// next instruction that waits.
    #[inline(always)]
    pub(super) fn finish_x87(&mut self, op: &Op, exceptions: u16, bus: &mut dyn Bus) {
        self.x87.last_instruction = self.rip_of(op);
        self.x87.status |= exceptions & (status::EXCEPTIONS | status::STACK_FAULT);
        if self.x87.is_unmasked(self.x87.status) {
            self.note_unmasked(op, exceptions, bus);
        }
    }

    #[cold]
    fn note_unmasked(&mut self, op: &Op, exceptions: u16, bus: &mut dyn Bus) {
        self.x87.update_summary();
        if !self.x87.is_unmasked(exceptions) {
            return;
        }
        if op.third == MEMORY {
            self.x87.last_operand = self.effective_offset(op);
        }
        // The opcode is not kept in ops: read it again. The instruction has just been fetched, so this works.
        let mut previous = 0;
        for offset in 0..op.len {
            let linear = self.code_base.wrapping_add(self.rip_of(op)).wrapping_add(offset.into());
            let Ok(byte) = self.load::<u8>(linear, bus) else { return };
            if previous & 0xf8 == 0xd8 {
                self.x87.last_opcode = (previous & 7) << 8 | u16::from(byte);
                return;
            }
            previous = byte.into();
        }
    }

    /// Whether an instruction may go on after a stack fault: C1 tells overflow from underflow. `false`: invalid operations are not masked.
    #[cold]
    pub(super) fn stack_fault(&mut self, overflow: bool) -> (bool, u16) {
        self.x87.set_condition(status::C1, if overflow { status::C1 } else { 0 });
        let exceptions = status::INVALID | status::STACK_FAULT;
        (!self.x87.is_unmasked(exceptions), exceptions)
    }
}
