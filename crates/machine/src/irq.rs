//! Interrupt pins: how devices ask for attention, whatever the engine.
//!
//! A device sets the level of its pin and nothing else happens; the engine looks at the pins after every device access
//! and carries changes into its interrupt controller (its own I/O APIC or the kernel's). So no device ever calls into
//! an engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Number of pins of the I/O APIC (global system interrupts 0 to 23).
pub const PINS: u32 = 24;

/// The levels of all pins of a VM.
#[derive(Debug, Default)]
pub struct IrqPins {
    levels: AtomicU32,
}

impl IrqPins {
    /// All pins low.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// One bit a pin: 1 is asserted.
    #[inline]
    pub fn levels(&self) -> u32 {
        self.levels.load(Ordering::Acquire)
    }

    /// Takes over saved levels.
    pub fn restore(&self, levels: u32) {
        self.levels.store(levels, Ordering::Release);
    }
}

/// One device's pin. All pins are level-triggered, active high.
#[derive(Clone, Debug)]
pub struct IrqPin {
    pins: Arc<IrqPins>,
    bit: u32,
}

impl IrqPin {
    /// Pin `number` (below [`PINS`]; a higher one is pin 23).
    pub fn new(pins: &Arc<IrqPins>, number: u32) -> Self {
        Self { pins: pins.clone(), bit: 1 << number.min(PINS - 1) }
    }

    /// Sets the level.
    pub fn set(&self, asserted: bool) {
        if asserted {
            self.pins.levels.fetch_or(self.bit, Ordering::AcqRel);
        } else {
            self.pins.levels.fetch_and(!self.bit, Ordering::AcqRel);
        }
    }

    /// The level now.
    pub fn is_asserted(&self) -> bool {
        self.pins.levels() & self.bit != 0
    }
}
