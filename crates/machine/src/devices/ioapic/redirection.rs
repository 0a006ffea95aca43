//! [`Redirection`].

use cpu::{ApicMessage, DeliveryMode};

const VECTOR: u64 = 0xff;
const DELIVERY_MODE_SHIFT: u32 = 8;
const LOGICAL: u64 = 1 << 11;
const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
pub(super) const MASKED: u64 = 1 << 16;
const DESTINATION_SHIFT: u32 = 56;
const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;
/// Bits 17 to 55 are reserved.
const IMPLEMENTED: u64 = 0xff00_0000_0001_ffff;

/// An entry of the redirection table: what becomes of one pin (data sheet 3.2.4). The polarity bit has no effect, as
/// pins are given by whether they are asserted, not by voltage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Redirection(u64);

impl Redirection {
    pub fn from_bits(bits: u64) -> Self {
        // Messages are delivered at once, so none is ever on its way.
        Self(bits & IMPLEMENTED & !DELIVERY_STATUS)
    }

    pub fn bits(self) -> u64 {
        self.0
    }

    /// Writes 32 bits at `shift`, 0 or 32.
    pub fn write(&mut self, value: u32, shift: u32) {
        let writable = (0xffff_ffff << shift) & IMPLEMENTED & !READ_ONLY;
        self.0 = self.0 & !writable | u64::from(value) << shift & writable;
        // Guests clear a stuck remote IRR by making the pin edge-triggered for a moment, as this version has no EOI
        // register (Linux: __eoi_ioapic_pin()).
        if !self.is_level() {
            self.set_remote_irr(false);
        }
    }

    pub fn vector(self) -> u8 {
        (self.0 & VECTOR) as u8
    }

    pub fn is_level(self) -> bool {
        self.0 & LEVEL != 0
    }

    pub fn is_masked(self) -> bool {
        self.0 & MASKED != 0
    }

    /// Whether a local APIC has the interrupt and its processor has not finished it.
    pub fn remote_irr(self) -> bool {
        self.0 & REMOTE_IRR != 0
    }

    pub fn set_remote_irr(&mut self, in_service: bool) {
        self.0 = if in_service { self.0 | REMOTE_IRR } else { self.0 & !REMOTE_IRR };
    }

    /// What goes to the local APICs; `None` for delivery modes that they do not have (SMI, ExtINT).
    pub fn message(self) -> Option<ApicMessage> {
        let destination = (self.0 >> DESTINATION_SHIFT) as u8;
        Some(ApicMessage {
            destination: destination.into(),
            logical: self.0 & LOGICAL != 0,
            mode: DeliveryMode::from_bits((self.0 >> DELIVERY_MODE_SHIFT) as u8)?,
            vector: self.vector(),
            level: self.is_level(),
        })
    }
}
