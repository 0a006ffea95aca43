//! Which address space is current, and forgetting translations.

use crate::core::Cpu;
use crate::tlb::{TABLE_SUPERVISOR, TABLE_SUPERVISOR_AC, TABLE_USER};
use crate::unit::bit;
use crate::unit::control::cr4;

impl Cpu {
    /// Chooses the TLB table: after a change of CPL or RFLAGS.AC.
    #[inline]
    pub(crate) fn update_tlb_table(&mut self) {
        self.tlb_table = if self.cpl == 3 {
            TABLE_USER
        } else if self.rflags_rest & bit::AC != 0 {
            TABLE_SUPERVISOR_AC
        } else {
            TABLE_SUPERVISOR
        };
    }

    /// Makes the address space of CR3 current, whose old translations stay valid.
    pub(crate) fn use_context(&mut self) {
        self.tlb_generation = self.tlb.generation(self.context());
    }

    /// Forgets the translations of the current process context (all, when there are no contexts).
    pub(crate) fn flush_context(&mut self, context: u16) {
        self.tlb.flush_context(context);
        self.use_context();
    }

    /// Forgets all translations.
    pub(crate) fn flush_tlb(&mut self) {
        self.tlb.flush();
        self.use_context();
    }

    /// INVLPG.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        if self.tlb.flush_page(linear) {
            self.flush_tlb();
        }
    }

    /// The process-context identifier.
    pub(crate) fn context(&self) -> u16 {
        if self.system.cr4 & cr4::PCIDE != 0 { self.system.cr3 as u16 & 0xfff } else { 0 }
    }
}
