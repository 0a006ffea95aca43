//! [`IoApicState`].

use serde::{Deserialize, Serialize};

use super::redirection::MASKED;
use crate::irq::PINS;
use crate::map;

/// The saved state of an I/O APIC of either engine: the fields of `struct kvm_ioapic_state`, in which only padding is
/// added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    /// Guest-physical address of the registers.
    pub base_address: u64,
    /// Index register.
    pub ioregsel: u32,
    /// Identifier.
    pub id: u32,
    /// Interrupt requests, one bit a pin.
    pub irr: u32,
    /// The redirection table as the guest sees it.
    pub redirection: [u64; PINS as usize],
}

impl Default for IoApicState {
    /// Power-on: all pins masked.
    fn default() -> Self {
        Self { base_address: map::IO_APIC, ioregsel: 0, id: 0, irr: 0, redirection: [MASKED; PINS as usize] }
    }
}
