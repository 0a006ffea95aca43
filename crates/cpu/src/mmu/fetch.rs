//! Instruction fetch.

use crate::core::Cpu;
use crate::mmu::{Access, Place};
use crate::stop::Stop;
use memory::PAGE_BYTES;

impl Cpu {
    /// The linear address of the next instruction.
    #[inline(always)]
    pub(crate) fn fetch_linear(&self) -> u64 {
        let linear = self.code_base.wrapping_add(self.rip);
        if self.code_bits == 64 { linear } else { linear & 0xffff_ffff }
    }

    /// Offset in RAM that code at a linear address is fetched from, if the TLB knows.
    #[inline(always)]
    pub(crate) fn fetch_hit(&self, linear: u64) -> Option<u64> {
        let page = linear & !(PAGE_BYTES - 1);
        self.tlb.fetch(self.cpl == 3, page | self.tlb_generation).map(|offset| offset + (linear - page))
    }

    /// Offset in RAM that code at a linear address is fetched from. Code outside RAM does not exist: fetching it is #GP.
    pub(crate) fn fetch_offset(&mut self, linear: u64) -> Result<u64, Stop> {
        if let Some(offset) = self.fetch_hit(linear) {
            return Ok(offset);
        }
        match self.translate(linear, Access::Fetch)? {
            Place::Ram(offset) => Ok(offset),
            Place::Device(_) => Err(self.general_protection(0)),
        }
    }
}
