//! [`ResetControl`].

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::events::{GuestEvent, GuestEvents};

/// A rising edge of this bit resets.
const RESET_CPU: u8 = 4;
/// Bits that keep their value: system reset, reset CPU, full reset.
const IMPLEMENTED: u8 = 0x0e;

/// The saved state of a [`ResetControl`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetControlState {
    /// The register.
    pub register: u8,
}

/// The reset control register at port 0xcf9 (RST_CNT in Intel's chipset data sheets).
pub struct ResetControl {
    state: ResetControlState,
    requests: Arc<GuestEvents>,
}

impl ResetControl {
    /// A register in a saved state, or at power-on with [`ResetControlState::default`].
    pub fn new(state: &ResetControlState, requests: Arc<GuestEvents>) -> Self {
        Self { state: state.clone(), requests }
    }

    /// The state now.
    pub fn save(&self) -> ResetControlState {
        self.state.clone()
    }
}

impl BusDevice for ResetControl {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (0, Some(byte)) = (offset, data.first_mut()) {
            *byte = self.state.register;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, Some(byte)) = (offset, data.first()) {
            if byte & !self.state.register & RESET_CPU != 0 {
                self.requests.raise(GuestEvent::Reset);
            }
            self.state.register = byte & IMPLEMENTED;
        }
    }
}
