//! From linear addresses to places in RAM or device memory.

use crate::core::Cpu;
use crate::op::{Op, ea};
use crate::stop::{Fault, Stop, vector};
use crate::tlb::{Entry, TABLE_SUPERVISOR};
use crate::unit::control::cr0;
use memory::PAGE_BYTES;

/// What an access does, and on whose behalf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// A load with the current privilege.
    Read,
    /// A store with the current privilege.
    Write,
    /// An instruction fetch.
    Fetch,
    /// A load that the processor itself does (descriptor tables, TSS): supervisor privilege at any CPL, SMAP in force.
    SystemRead,
    /// A store that the processor itself does.
    SystemWrite,
}

impl Access {
    pub(super) fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::SystemWrite)
    }

    pub(super) fn is_system(self) -> bool {
        matches!(self, Self::SystemRead | Self::SystemWrite)
    }

    pub(super) fn is_user(self, cpl: u8) -> bool {
        cpl == 3 && !self.is_system()
    }
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// An offset in guest RAM.
    Ram(u64),
    /// A guest-physical address without RAM.
    Device(u64),
}

impl Cpu {
    /// Translates one address, through the TLB or by a page walk that fills it.
    pub(crate) fn translate(&mut self, linear: u64, access: Access) -> Result<Place, Stop> {
        let table = if access.is_system() { TABLE_SUPERVISOR } else { self.tlb_table };
        let page = linear & !(PAGE_BYTES - 1);
        let tag = page | self.tlb_generation;
        let entry = self.tlb.entry(table, linear);
        let hit = match access {
            Access::Read | Access::SystemRead => entry.read == tag,
            Access::Write | Access::SystemWrite => entry.permitted == tag,
            Access::Fetch => false,
        };
        if hit {
            return Ok(Place::Ram(entry.ram_offset + (linear - page)));
        }
        let (physical, shift, writable) = if self.system.cr0 & cr0::PG == 0 {
            (linear, memory::PAGE_SHIFT, true)
        } else {
            if !self.is_canonical(linear) {
                return Err(self.not_canonical(linear));
            }
            let walked = self.walk(linear, access).map_err(|code| self.page_fault(linear, code))?;
            (walked.physical, walked.shift, walked.writable)
        };
        let Some(offset) = self.ram.layout().offset_of(physical) else {
            return Ok(Place::Device(physical));
        };
        self.tlb.note_page_size(linear, shift);
        let ram_offset = offset & !(PAGE_BYTES - 1);
        if access == Access::Fetch {
            self.tlb.fill_fetch(self.cpl == 3, tag, ram_offset);
        } else {
            let permitted = if writable { tag } else { Entry::EMPTY.permitted };
            *self.tlb.entry_mut(table, linear) = Entry { read: tag, ram_offset, permitted, ..Entry::EMPTY };
        }
        Ok(Place::Ram(offset))
    }

    /// Whether an address is canonical for 48-bit linear addresses; outside IA-32e mode every address is 32 bits wide and passes.
    #[inline]
    pub(crate) fn is_canonical(&self, linear: u64) -> bool {
        ((linear << 16) as i64 >> 16) as u64 == linear
    }

    /// #GP; [`Cpu::blame_stack`] makes it #SS where the instruction addressed the stack.
    #[cold]
    fn not_canonical(&mut self, linear: u64) -> Stop {
        self.fault = Fault { vector: vector::GP, error_code: Some(0), address: linear };
        Stop::Fault
    }

    /// Non-canonical addresses whose base is RSP or RBP raise #SS (Intel SDM volume 1, section 3.3.7.1).
    pub(crate) fn blame_stack(&mut self, op: &Op) {
        const RSP: u8 = 4;
        const RBP: u8 = 5;
        let stack = matches!(op.base, RSP | RBP) && op.ea & ea::SEGMENT == 0;
        if stack && self.fault.vector == vector::GP && self.fault.address != 0 {
            self.fault.vector = vector::SS;
        }
    }

    #[cold]
    fn page_fault(&mut self, linear: u64, code: u32) -> Stop {
        self.fault = Fault { vector: vector::PF, error_code: Some(code), address: linear };
        Stop::Fault
    }
}
