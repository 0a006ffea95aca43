//! The page-table walk (Intel SDM volume 3, chapter 4).

use crate::core::Cpu;
use crate::cpuid::PHYSICAL_BITS;
use crate::mmu::translate::Access;
use crate::unit::bit;
use crate::unit::control::{cr0, cr4, efer};

/// Bits of a page-table entry.
mod pte {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITABLE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const LARGE: u64 = 1 << 7;
    pub const NO_EXECUTE: u64 = 1 << 63;
}

/// Bits of a page-fault error code.
mod error {
    pub const PRESENT: u32 = 1 << 0;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Walked {
    pub physical: u64,
    /// log2 of the page's size.
    pub shift: u32,
    /// The tables permit stores with this privilege, and the D bit is set.
    pub writable: bool,
}

/// The shape of a paging mode.
#[derive(Clone, Copy)]
struct Shape {
    /// Bits that each level translates, from the root.
    level_bits: &'static [u32],
    entry_bytes: u64,
    /// Root entries hold no permissions and no A bit (page-directory pointers of PAE paging).
    bare_root: bool,
}

const FOUR_LEVEL: Shape = Shape { level_bits: &[9, 9, 9, 9], entry_bytes: 8, bare_root: false };
const PAE: Shape = Shape { level_bits: &[2, 9, 9], entry_bytes: 8, bare_root: true };
const TWO_LEVEL: Shape = Shape { level_bits: &[10, 10], entry_bytes: 4, bare_root: false };

impl Cpu {
    /// Walks the guest's page tables, setting A and D bits. `Err` is the error code of the page fault.
    pub(super) fn walk(&mut self, linear: u64, access: Access) -> Result<Walked, u32> {
        let code = self.error_bits(access);
        let control = &self.system;
        let long = control.efer & efer::LMA != 0;
        let no_execute = control.efer & efer::NXE != 0;
        let wide = control.cr4 & cr4::PAE != 0;
        let large_pages = wide || control.cr4 & cr4::PSE != 0;
        let shape = if long {
            &FOUR_LEVEL
        } else if wide {
            &PAE
        } else {
            &TWO_LEVEL
        };
        let address_mask = ((1u64 << PHYSICAL_BITS) - 1) & !0xfff;
        let mut table = control.cr3 & if long || !wide { address_mask } else { 0xffff_ffe0 };
        let mut shift = 12 + shape.level_bits.iter().sum::<u32>();
        let mut permissions = pte::WRITABLE | pte::USER;
        let mut execute = true;
        for (level, bits) in shape.level_bits.iter().enumerate() {
            shift -= bits;
            let index = linear >> shift & ((1 << bits) - 1);
            let address = table + index * shape.entry_bytes;
            let entry = self.read_entry(address, shape.entry_bytes);
            if entry & pte::PRESENT == 0 {
                return Err(code & !error::PRESENT);
            }
            let bare = shape.bare_root && level == 0;
            let last = shift == 12;
            let leaf = last || entry & pte::LARGE != 0 && !bare && large_pages && shift < 39;
            if shape.entry_bytes == 8 {
                let mut reserved = (1u64 << 52) - (1 << PHYSICAL_BITS);
                if !no_execute || bare {
                    reserved |= pte::NO_EXECUTE;
                }
                if !long {
                    reserved |= 0x7ff << 52;
                }
                if bare {
                    reserved |= 0x1e6;
                } else if shift == 39 {
                    reserved |= pte::LARGE;
                } else if leaf && !last {
                    reserved |= (1 << shift) - (1 << 13);
                }
                if entry & reserved != 0 {
                    return Err(code | error::RESERVED);
                }
            }
            if !bare {
                permissions &= entry;
                execute &= shape.entry_bytes == 4 || entry & pte::NO_EXECUTE == 0;
            }
            if !leaf {
                if !bare {
                    self.set_entry_bits(address, shape.entry_bytes, entry, pte::ACCESSED);
                }
                table = entry & address_mask;
                continue;
            }
            let writable = self.permits(permissions, execute, access).ok_or(code)?;
            let dirty = if access.is_write() { pte::DIRTY } else { 0 };
            self.set_entry_bits(address, shape.entry_bytes, entry, pte::ACCESSED | dirty);
            let in_page = linear & ((1 << shift) - 1);
            let physical = entry & address_mask & !((1 << shift) - 1) | in_page;
            return Ok(Walked { physical, shift, writable: writable && (entry | dirty) & pte::DIRTY != 0 });
        }
        Err(code & !error::PRESENT)
    }

    /// Whether an access is permitted, and if so whether stores with the same privilege are.
    fn permits(&self, permissions: u64, execute: bool, access: Access) -> Option<bool> {
        let control = &self.system;
        let user_page = permissions & pte::USER != 0;
        let writable_page = permissions & pte::WRITABLE != 0;
        if access.is_user(self.cpl) {
            let writable = writable_page;
            let allowed = user_page
                && match access {
                    Access::Fetch => execute,
                    Access::Write => writable,
                    _ => true,
                };
            return allowed.then_some(writable);
        }
        let writable = writable_page || control.cr0 & cr0::WP == 0;
        if access == Access::Fetch {
            let barred = !execute || user_page && control.cr4 & cr4::SMEP != 0;
            return (!barred).then_some(writable);
        }
        // AC suspends SMAP for explicit accesses only.
        let suspended = self.rflags_rest & bit::AC != 0 && !access.is_system();
        if user_page && control.cr4 & cr4::SMAP != 0 && !suspended {
            return None;
        }
        (writable || !access.is_write()).then_some(writable)
    }

    fn error_bits(&self, access: Access) -> u32 {
        let mut code = error::PRESENT;
        if access.is_write() {
            code |= error::WRITE;
        }
        if access.is_user(self.cpl) {
            code |= error::USER;
        }
        let control = &self.system;
        if access == Access::Fetch && (control.efer & efer::NXE != 0 || control.cr4 & cr4::SMEP != 0) {
            code |= error::FETCH;
        }
        code
    }

    /// Reads a table entry; where there is no RAM, entries are not present.
    fn read_entry(&self, physical: u64, bytes: u64) -> u64 {
        let Some(offset) = self.ram.layout().offset_of(physical) else {
            return 0;
        };
        if bytes == 8 {
            self.ram.load::<u64>(offset).unwrap_or(0)
        } else {
            self.ram.load::<u32>(offset).unwrap_or(0).into()
        }
    }

    /// Sets bits of an entry that has not all of them. One thread runs all processors, so this is atomic for the guest.
    fn set_entry_bits(&mut self, physical: u64, bytes: u64, entry: u64, bits: u64) {
        if entry & bits == bits {
            return;
        }
        if let Some(offset) = self.ram.layout().offset_of(physical) {
            let entry = (entry | bits).to_le_bytes();
            self.ram.write_offset(offset, entry.get(..bytes as usize).unwrap_or(&entry));
        }
    }
}
