//! [`SerialState`].

use serde::{Deserialize, Serialize};

/// The saved state of a [`Serial`](super::Serial): its registers as in the PC16550D data sheet, and what the guest has
/// not read yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Baud rate divisor latch.
    pub divisor: u16,
    /// IER.
    pub interrupt_enable: u8,
    /// FCR, without the self-clearing bits.
    pub fifo_control: u8,
    /// LCR.
    pub line_control: u8,
    /// MCR.
    pub modem_control: u8,
    /// The change bits of MSR.
    pub modem_changes: u8,
    /// SCR.
    pub scratch: u8,
    /// Whether a received character was lost since LSR was read.
    pub overrun: bool,
    /// Whether the transmitter became empty since IIR reported it.
    pub transmitter_empty_pending: bool,
    /// The receive FIFO, oldest byte first; at most [`FIFO_BYTES`](super::FIFO_BYTES) count.
    pub received: Vec<u8>,
}

impl Default for SerialState {
    /// Power-on: 9600 baud, 8 data bits, no FIFOs, no interrupts.
    fn default() -> Self {
        Self {
            divisor: 12,
            interrupt_enable: 0,
            fifo_control: 0,
            line_control: 3,
            modem_control: 0,
            modem_changes: 0,
            scratch: 0,
            overrun: false,
            transmitter_empty_pending: false,
            received: Vec::new(),
        }
    }
}
