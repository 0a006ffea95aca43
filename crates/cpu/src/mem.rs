//! Loads and stores by linear address.
//!
//! The fast path is here: a TLB hit on RAM within one page. Everything else (a miss, a page crossing, device memory, a store to
//! a page with decoded code) goes to the slow path in `mmu::slow`, which either completes the access or raises the
//! exact fault. An instruction that writes several places or writes after it has changed registers must check for faults first
//! (see [`Cpu::probe_write`]).

use memory::Scalar;

use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::Op;
use crate::stop::Stop;

const PAGE_OFFSET: u64 = memory::PAGE_BYTES - 1;

impl Cpu {
    /// Loads from a linear address with the current privilege.
    #[inline(always)]
    pub(crate) fn load<T: Scalar>(&mut self, linear: u64, bus: &mut dyn Bus) -> Result<T, Stop> {
        let entry = self.tlb.entry(self.tlb_table, linear);
        let in_page = linear & PAGE_OFFSET;
        if entry.read == (linear & !PAGE_OFFSET) | self.tlb_generation
            && in_page <= memory::PAGE_BYTES - size_of::<T>() as u64
            && let Some(value) = self.ram.load(entry.ram_offset + in_page)
        {
            return Ok(value);
        }
        self.load_slow(linear, bus)
    }

    /// Stores to a linear address with the current privilege.
    ///
    /// After `Ok` the caller may find that decoded code was overwritten: the run loop sees that by itself.
    #[inline(always)]
    pub(crate) fn store<T: Scalar>(&mut self, linear: u64, value: T, bus: &mut dyn Bus) -> Result<(), Stop> {
        let entry = self.tlb.entry(self.tlb_table, linear);
        let in_page = linear & PAGE_OFFSET;
        if entry.write == (linear & !PAGE_OFFSET) | self.tlb_generation
            && in_page <= memory::PAGE_BYTES - size_of::<T>() as u64
            && self.ram.store_premarked(entry.ram_offset + in_page, value)
        {
            return Ok(());
        }
        self.store_slow(linear, value, bus)
    }

    /// Reads, changes and writes back a memory operand. Write permission is checked before `change` runs, so `change` may
    /// set flags and registers. `change` returns the value to store.
    #[inline(always)]
    pub(crate) fn modify<T: Scalar>(
        &mut self,
        linear: u64,
        bus: &mut dyn Bus,
        change: impl FnOnce(&mut Self, T) -> T,
    ) -> Result<(), Stop> {
        let entry = self.tlb.entry(self.tlb_table, linear);
        let in_page = linear & PAGE_OFFSET;
        if entry.write == (linear & !PAGE_OFFSET) | self.tlb_generation
            && in_page <= memory::PAGE_BYTES - size_of::<T>() as u64
        {
            let offset = entry.ram_offset + in_page;
            if let Some(value) = self.ram.load(offset) {
                let value = change(self, value);
                self.ram.store_premarked(offset, value);
                return Ok(());
            }
        }
        self.probe_write(linear, size_of::<T>() as u64, bus)?;
        let value = self.load_slow(linear, bus)?;
        let value = change(self, value);
        self.store_slow(linear, value, bus)
    }

    /// Loads the memory operand of `op`.
    #[inline(always)]
    pub(crate) fn load_operand<T: Scalar>(&mut self, op: &Op, bus: &mut dyn Bus) -> Result<T, Stop> {
        self.load(self.linear(op), bus)
    }

    /// Stores to the memory operand of `op`.
    #[inline(always)]
    pub(crate) fn store_operand<T: Scalar>(&mut self, op: &Op, value: T, bus: &mut dyn Bus) -> Result<(), Stop> {
        self.store(self.linear(op), value, bus)
    }
}
