//! What a load or store does when the TLB does not answer.

use memory::{GuestRam, PAGE_BYTES, PAGE_SHIFT, Scalar};

use crate::bus::Bus;
use crate::core::{Cpu, tsc_at};
use crate::mmu::{Access, Place};
use crate::stop::Stop;
use crate::tlb::TABLE_SUPERVISOR;

const PAGE_OFFSET: u64 = PAGE_BYTES - 1;

impl Cpu {
    /// Loads through the page tables, from RAM or a device, across a page boundary if need be.
    #[cold]
    #[inline(never)]
    pub(crate) fn load_slow<T: Scalar>(&mut self, linear: u64, bus: &mut dyn Bus) -> Result<T, Stop> {
        let mut bytes = [0; 16];
        let wanted = bytes.get_mut(..size_of::<T>()).unwrap_or_default();
        self.read_linear(linear, wanted, Access::Read, bus)?;
        Ok(T::from_u128(u128::from_le_bytes(bytes)))
    }

    /// Stores through the page tables, to RAM or a device, across a page boundary if need be.
    #[cold]
    #[inline(never)]
    pub(crate) fn store_slow<T: Scalar>(&mut self, linear: u64, value: T, bus: &mut dyn Bus) -> Result<(), Stop> {
        let bytes = value.to_u128().to_le_bytes();
        self.write_linear(linear, bytes.get(..size_of::<T>()).unwrap_or_default(), Access::Write, bus)
    }

    /// Raises what a store of `len` bytes (at most a page) would raise, and stores nothing. After `Ok` the store succeeds.
    #[cold]
    #[inline(never)]
    pub(crate) fn probe_write(&mut self, linear: u64, len: u64, _bus: &mut dyn Bus) -> Result<(), Stop> {
        self.places(linear, len, Access::Write).map(|_| ())
    }

    /// Loads bytes, at most a page, with the rights that `access` says.
    pub(crate) fn read_linear(
        &mut self,
        linear: u64,
        data: &mut [u8],
        access: Access,
        bus: &mut dyn Bus,
    ) -> Result<(), Stop> {
        let places = self.places(linear, data.len() as u64, access)?;
        let (first, second) = data.split_at_mut(places.split.min(data.len()));
        self.read_place(places.first, first, bus);
        if let Some(place) = places.second {
            self.read_place(place, second, bus);
        }
        Ok(())
    }

    /// Stores bytes, at most a page, with the rights that `access` says.
    pub(crate) fn write_linear(
        &mut self,
        linear: u64,
        data: &[u8],
        access: Access,
        bus: &mut dyn Bus,
    ) -> Result<(), Stop> {
        let places = self.places(linear, data.len() as u64, access)?;
        let (first, second) = data.split_at(places.split.min(data.len()));
        self.write_place(places.first, first, bus);
        if let Some(place) = places.second {
            self.write_place(place, second, bus);
        }
        let table = if access.is_system() { TABLE_SUPERVISOR } else { self.tlb_table };
        self.permit_writes(table, linear);
        Ok(())
    }

    /// Translates both ends of an access, before anything of it happens.
    fn places(&mut self, linear: u64, len: u64, access: Access) -> Result<Places, Stop> {
        let split = PAGE_BYTES - (linear & PAGE_OFFSET);
        let first = self.translate(linear, access)?;
        let second = if len > split {
            let next = linear.wrapping_add(split);
            Some(self.translate(if self.code_bits == 64 { next } else { next & 0xffff_ffff }, access)?)
        } else {
            None
        };
        let places = Places { first, second, split: split as usize };
        if !self.alone {
            let write = access == Access::Write || access == Access::SystemWrite;
            let parts = [(Some(first), split.min(len)), (second, len.saturating_sub(split))];
            for (place, len) in parts {
                let alone = match place {
                    Some(Place::Device(_)) => true,
                    Some(Place::Ram(offset)) => write && self.touches_code(offset, len),
                    None => false,
                };
                if alone {
                    return Err(Stop::Alone);
                }
            }
        }
        Ok(places)
    }

    fn touches_code(&self, offset: u64, len: u64) -> bool {
        let lines = self.ram.code_lines(offset >> PAGE_SHIFT);
        lines != 0 && len > 0 && lines & GuestRam::code_line_mask(offset, offset + (len - 1)) != 0
    }

    /// Lets the fast path do the next store to this page, if it holds no decoded code.
    fn permit_writes(&mut self, table: u8, linear: u64) {
        let tag = linear & !PAGE_OFFSET | self.tlb_generation;
        let entry = *self.tlb.entry(table, linear);
        if entry.permitted == tag && self.ram.code_lines(entry.ram_offset >> PAGE_SHIFT) == 0 {
            // First: a page that is frozen is copied by that.
            self.ram.mark_dirty_page(entry.ram_offset >> PAGE_SHIFT);
            self.tlb.permit_writes(table, linear, tag);
        }
    }

    fn read_place(&mut self, place: Place, data: &mut [u8], bus: &mut dyn Bus) {
        match place {
            Place::Ram(offset) => {
                self.ram.read_offset(offset, data);
            }
            Place::Device(physical) if self.apic.claims(physical) => {
                self.apic.read_page(physical & PAGE_OFFSET, data, tsc_at(self.count, self.clock_steps));
            }
            Place::Device(physical) => {
                for (address, chunk) in device_chunks(physical, data.len()) {
                    if let Some(data) = data.get_mut(chunk) {
                        bus.mmio_read(tsc_at(self.count, self.clock_steps), address, data);
                    }
                }
            }
        }
    }

    fn write_place(&mut self, place: Place, data: &[u8], bus: &mut dyn Bus) {
        match place {
            Place::Ram(offset) => {
                self.ram.write_offset(offset, data);
            }
            Place::Device(physical) if self.apic.claims(physical) => {
                self.apic.write_page(physical & PAGE_OFFSET, data, tsc_at(self.count, self.clock_steps), bus);
            }
            Place::Device(physical) => {
                for (address, chunk) in device_chunks(physical, data.len()) {
                    if let Some(data) = data.get(chunk) {
                        bus.mmio_write(tsc_at(self.count, self.clock_steps), address, data);
                    }
                }
            }
        }
    }
}

/// Where the bytes of an access go that may cross a page boundary.
struct Places {
    first: Place,
    second: Option<Place>,
    /// Bytes on the first page.
    split: usize,
}

/// Device accesses of at most eight bytes each.
fn device_chunks(physical: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    (0..len).step_by(8).map(move |start| (physical + start as u64, start..(start + 8).min(len)))
}
