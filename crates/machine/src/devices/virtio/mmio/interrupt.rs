//! The interrupt of a virtio device: `InterruptStatus`, and the pin that is high while that is not 0.

use std::sync::{Mutex, OnceLock};

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INTERRUPT_STATUS;

use super::registers::RegisterPage;
use crate::bus::lock;
use crate::irq::IrqPin;

/// Apart from the device, so that a driver can acknowledge while the device is at work: it does that for each interrupt.
#[derive(Debug)]
pub struct Interrupt {
    pin: IrqPin,
    /// Held while the pin is set too: a level of before must not replace a newer one.
    status: Mutex<u32>,
    shown: OnceLock<RegisterPage>,
}

impl Interrupt {
    /// With this status. The level of `pin` is left as it is.
    pub(super) fn new(pin: IrqPin, status: u32) -> Self {
        Self { pin, status: Mutex::new(status), shown: OnceLock::new() }
    }

    /// Bit 0: used buffers, bit 1: configuration change.
    pub fn status(&self) -> u32 {
        *lock(&self.status)
    }

    /// The driver has seen these bits.
    pub fn acknowledge(&self, bits: u32) {
        self.change(|status| status & !bits);
    }

    pub(super) fn raise(&self, bits: u32) {
        self.change(|status| status | bits);
    }

    /// Sets the level of the pin as the status says.
    pub(super) fn carry(&self) {
        self.change(|status| status);
    }

    /// From now on the status is shown in `page` too.
    pub(super) fn show(&self, page: RegisterPage) {
        // A second page is none that anybody reads.
        let _ = self.shown.set(page);
        self.carry();
    }

    fn change(&self, change: impl FnOnce(u32) -> u32) {
        let mut status = lock(&self.status);
        *status = change(*status);
        if let Some(page) = self.shown.get() {
            // Before the pin, as whoever is interrupted reads it.
            page.store(VIRTIO_MMIO_INTERRUPT_STATUS, *status);
        }
        self.pin.set(*status != 0);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::irq::IrqPins;

    #[test]
    fn a_cause_that_comes_while_another_is_acknowledged_leaves_the_pin_high() {
        let interrupt = Interrupt::new(IrqPin::new(&IrqPins::new(), 5), 0);
        for _ in 0..2000 {
            interrupt.raise(1);
            thread::scope(|scope| {
                scope.spawn(|| interrupt.acknowledge(1));
                interrupt.raise(2);
            });
            assert_eq!((interrupt.status(), interrupt.pin.is_asserted()), (2, true));
            interrupt.acknowledge(2);
            assert!(!interrupt.pin.is_asserted());
        }
    }
}
