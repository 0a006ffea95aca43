//! Power and reset.
//!
//! [`Power`] holds the registers that the ACPI tables name, all of one byte:
//!
//! | offset | register |
//! | --- | --- |
//! | 0 | sleep control (ACPI specification 6.5, 4.8.3.7): sleep type in bits 2 to 4, sleep enable in bit 5 |
//! | 1 | sleep status: wake status in bit 7, write one to clear |
//! | 2 | reset: [`RESET_VALUE`] resets |
//! | 3 | events of the Generic Event Device ([`EVENT_POWER_BUTTON`], [`EVENT_GENERATION`]); reading clears them and drops the interrupt; [`EVENT_GENERATION`] is written by whoever will heed that event |
//!
//! Next to it are the two other ways in which operating systems reset a PC: [`KeyboardReset`] and [`ResetControl`].

mod keyboard_reset;
mod reset_control;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use keyboard_reset::KeyboardReset;
pub use reset_control::{ResetControl, ResetControlState};

use crate::bus::BusDevice;
use crate::events::{GuestEvent, GuestEvents};
use crate::irq::IrqPin;

/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u16 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u16 = 1;
/// Offset of the reset register.
pub const RESET: u16 = 2;
/// Offset of the event register.
pub const EVENT: u16 = 3;

/// What resets the machine when written to the reset register.
pub const RESET_VALUE: u8 = 1;
/// The sleep type of soft-off (`\_S5`).
pub const SLEEP_TYPE_OFF: u8 = 5;
/// Event register: the power button was pressed.
pub const EVENT_POWER_BUTTON: u8 = 1;
/// Event register: the VM generation ID is a new one.
pub const EVENT_GENERATION: u8 = 2;

const SLEEP_ENABLE: u8 = 0x20;
const SLEEP_TYPE_SHIFT: u32 = 2;
const SLEEP_TYPE: u8 = 7;

/// The saved state of a [`Power`] device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerState {
    /// The event register: events that the guest has not read.
    pub events: u8,
    /// The guest has asked where its generation ID is, as only a driver for it does.
    pub heeds_generation: bool,
}

/// The power device.
pub struct Power {
    state: PowerState,
    pin: IrqPin,
    requests: Arc<GuestEvents>,
}

impl Power {
    /// A power device in a saved state, or at power-on with [`PowerState::default`].
    pub fn new(state: &PowerState, pin: IrqPin, requests: Arc<GuestEvents>) -> Self {
        let power = Self { state: state.clone(), pin, requests };
        power.update_pin();
        power
    }

    /// The state now.
    pub fn save(&self) -> PowerState {
        self.state.clone()
    }

    /// Presses the power button: the guest's operating system is asked to shut down. It may ignore that.
    pub fn press_power_button(&mut self) {
        self.state.events |= EVENT_POWER_BUTTON;
        self.update_pin();
    }

    /// Tells the guest that its VM generation ID has changed.
    pub fn announce_generation(&mut self) {
        self.state.events |= EVENT_GENERATION;
        self.update_pin();
    }

    /// Whether the guest will notice that its VM generation ID has changed.
    pub fn heeds_generation(&self) -> bool {
        self.state.heeds_generation
    }

    fn update_pin(&self) {
        self.pin.set(self.state.events != 0);
    }
}

impl BusDevice for Power {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (index, byte) in (0..).zip(data) {
            let register = offset.wrapping_add(index);
            if register == u64::from(EVENT) {
                *byte = std::mem::take(&mut self.state.events);
                self.update_pin();
            } else if register < u64::from(EVENT) {
                // The machine never woke from sleep, and the control registers have no memory.
                *byte = 0;
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (index, byte) in (0..).zip(data) {
            let register = offset.wrapping_add(index);
            let sleep_type = byte >> SLEEP_TYPE_SHIFT & SLEEP_TYPE;
            if register == u64::from(SLEEP_CONTROL) && byte & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_OFF {
                self.requests.raise(GuestEvent::PowerOff);
            } else if register == u64::from(RESET) && *byte == RESET_VALUE {
                self.requests.raise(GuestEvent::Reset);
            } else if register == u64::from(EVENT) && *byte == EVENT_GENERATION {
                self.state.heeds_generation = true;
            }
        }
    }
}
