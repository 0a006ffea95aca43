//! Where the operands of an op are: addresses of memory operands, and the place of the op itself.

use crate::core::{BLOCK_BASE, Cpu, tsc_at};
use crate::op::{Op, ea};

impl Cpu {
    /// RIP of the instruction that `op` is.
    #[inline(always)]
    pub(crate) fn rip_of(&self, op: &Op) -> u64 {
        self.gpr[usize::from(BLOCK_BASE)].wrapping_add(op.offset.into())
    }

    /// RIP of the instruction after `op`.
    #[inline(always)]
    pub(crate) fn next_rip(&self, op: &Op) -> u64 {
        self.gpr[usize::from(BLOCK_BASE)].wrapping_add(op.next_offset())
    }

    /// The offset part of the memory operand's address (what LEA computes before truncation to its operand).
    #[inline(always)]
    pub(crate) fn effective_offset(&self, op: &Op) -> u64 {
        let offset =
            self.register(op.base).wrapping_add(self.register(op.index) << (op.scale & 3)).wrapping_add(op.disp);
        if op.ea & (ea::ADDRESS_32 | ea::ADDRESS_16) == 0 {
            offset
        } else if op.ea & ea::ADDRESS_32 != 0 {
            offset & 0xffff_ffff
        } else {
            offset & 0xffff
        }
    }

    /// The linear address of the memory operand.
    #[inline(always)]
    pub(crate) fn linear(&self, op: &Op) -> u64 {
        if op.ea == 0 {
            return self
                .register(op.base)
                .wrapping_add(self.register(op.index) << (op.scale & 3))
                .wrapping_add(op.disp);
        }
        self.linear_of(op, self.effective_offset(op))
    }

    /// The linear address of an offset in the segment of `op`'s memory operand.
    #[inline]
    pub(crate) fn linear_of(&self, op: &Op, offset: u64) -> u64 {
        let mut linear = offset;
        if op.ea & ea::SEGMENT != 0 {
            linear = linear.wrapping_add(self.system.segment_base(op.ea & ea::SEGMENT_NUMBER));
        }
        if op.ea & ea::LINEAR_32 != 0 { linear & 0xffff_ffff } else { linear }
    }

    /// [`Cpu::gpr`] by index; the register file is small and indices come from the decoder, so the bound never bites.
    #[inline(always)]
    fn register(&self, index: u8) -> u64 {
        self.gpr[usize::from(index.min(BLOCK_BASE))]
    }

    /// The machine's time-stamp counter when `op` starts (without this processor's own offset).
    pub(crate) fn machine_tsc(&self, op: &Op) -> u64 {
        tsc_at(self.count + u64::from(op.number), self.clock_steps)
    }
}
