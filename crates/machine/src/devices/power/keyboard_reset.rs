//! [`KeyboardReset`].

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::events::{GuestEvent, GuestEvents};

/// Command of the 8042 keyboard controller that pulses the processor's reset line.
const PULSE_RESET: u8 = 0xfe;

/// The command port of a keyboard controller that has no keyboard, but the reset line of the PC AT. It has no state.
pub struct KeyboardReset {
    requests: Arc<GuestEvents>,
}

impl KeyboardReset {
    /// A keyboard controller that raises its resets there.
    pub fn new(requests: Arc<GuestEvents>) -> Self {
        Self { requests }
    }
}

impl BusDevice for KeyboardReset {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // Status: both buffers empty. A guest waits for the input buffer to be empty before it sends the command.
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == 0 && data.first() == Some(&PULSE_RESET) {
            self.requests.raise(GuestEvent::Reset);
        }
    }
}
