//! The serial console: a 16550A UART.
//!
//! Registers and their side effects are those of the PC16550D data sheet (National Semiconductor, 1995). Characters
//! take no time: the transmitter is always empty, and the receive FIFO holds what [`Serial::receive`] gave it. Line
//! errors do not happen.

mod state;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

pub use state::SerialState;

use crate::bus::BusDevice;
use crate::irq::IrqPin;

/// Where the guest's console output goes.
pub trait ConsoleSink: Send {
    /// Takes bytes that the guest sent. Called during a device access of the guest, so it must not block.
    fn write(&mut self, bytes: &[u8]);
}

/// Bytes in the receive FIFO.
pub const FIFO_BYTES: usize = 16;

/// Interrupt enable register.
mod ier {
    pub const RECEIVED: u8 = 1;
    pub const TRANSMITTER_EMPTY: u8 = 2;
    pub const MODEM_STATUS: u8 = 8;
    pub const ALL: u8 = 0x0f;
}

/// Interrupt identification register, in falling priority.
mod iir {
    pub const RECEIVED: u8 = 0b0100;
    pub const RECEIVED_BELOW_TRIGGER: u8 = 0b1100;
    pub const TRANSMITTER_EMPTY: u8 = 0b0010;
    pub const MODEM_STATUS: u8 = 0b0000;
    pub const NONE: u8 = 0b0001;
    pub const FIFOS_ENABLED: u8 = 0xc0;
}

/// FIFO control register.
mod fcr {
    pub const ENABLE: u8 = 1;
    pub const CLEAR_RECEIVER: u8 = 2;
    pub const SELF_CLEARING: u8 = 0b110;
}

const LCR_DIVISOR_LATCH: u8 = 0x80;

/// Modem control register.
mod mcr {
    pub const DTR: u8 = 1;
    pub const RTS: u8 = 2;
    pub const OUT1: u8 = 4;
    /// On a PC this output connects the UART to its interrupt line.
    pub const OUT2: u8 = 8;
    pub const LOOPBACK: u8 = 0x10;
    pub const ALL: u8 = 0x1f;
}

/// Line status register.
mod lsr {
    pub const DATA_READY: u8 = 1;
    pub const OVERRUN: u8 = 2;
    pub const TRANSMITTER_EMPTY: u8 = 0x60;
}

/// Modem status register: the lines in the upper half, which of them changed in the lower.
mod msr {
    pub const CTS: u8 = 0x10;
    pub const DSR: u8 = 0x20;
    pub const RI: u8 = 0x40;
    pub const DCD: u8 = 0x80;
    /// A terminal that is there and listens.
    pub const CONNECTED: u8 = CTS | DSR | DCD;
}

/// The UART.
pub struct Serial {
    state: SerialState,
    received: VecDeque<u8>,
    pin: IrqPin,
    sink: Box<dyn ConsoleSink>,
}

impl Serial {
    /// A UART in a saved state, or at power-on with [`SerialState::default`].
    pub fn new(state: &SerialState, pin: IrqPin, sink: Box<dyn ConsoleSink>) -> Self {
        let received = state.received.iter().copied().take(FIFO_BYTES).collect();
        let serial = Self { state: state.clone(), received, pin, sink };
        serial.update_pin();
        serial
    }

    /// The state now.
    pub fn save(&self) -> SerialState {
        SerialState { received: self.received.iter().copied().collect(), ..self.state.clone() }
    }

    /// Gives the guest console input, and says how many of the bytes it took: the rest must wait for room.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let accepted = bytes.len().min(self.receive_room());
        self.received.extend(bytes.iter().take(accepted));
        self.update_pin();
        accepted
    }

    /// How many bytes [`Serial::receive`] would take now.
    pub fn receive_room(&self) -> usize {
        if self.is_loopback() { 0 } else { self.fifo_bytes().saturating_sub(self.received.len()) }
    }

    fn read_register(&mut self, register: u64) -> u8 {
        let value = match register {
            0 if self.is_divisor_latch() => self.state.divisor as u8,
            1 if self.is_divisor_latch() => (self.state.divisor >> 8) as u8,
            0 => self.received.pop_front().unwrap_or(0),
            1 => self.state.interrupt_enable,
            2 => self.read_interrupt_identification(),
            3 => self.state.line_control,
            4 => self.state.modem_control,
            5 => self.read_line_status(),
            6 => self.modem_lines() | std::mem::take(&mut self.state.modem_changes),
            7 => self.state.scratch,
            _ => 0xff,
        };
        self.update_pin();
        value
    }

    fn write_register(&mut self, register: u64, value: u8) {
        match register {
            0 if self.is_divisor_latch() => self.state.divisor = self.state.divisor & 0xff00 | u16::from(value),
            1 if self.is_divisor_latch() => {
                self.state.divisor = self.state.divisor & 0x00ff | u16::from(value) << 8;
            }
            0 => self.transmit(value),
            1 => {
                // The transmitter is empty, so enabling its interrupt raises it.
                if value & !self.state.interrupt_enable & ier::TRANSMITTER_EMPTY != 0 {
                    self.state.transmitter_empty_pending = true;
                }
                self.state.interrupt_enable = value & ier::ALL;
            }
            2 => self.write_fifo_control(value),
            3 => self.state.line_control = value,
            4 => self.write_modem_control(value),
            7 => self.state.scratch = value,
            // The status registers cannot be written.
            _ => {}
        }
        self.update_pin();
    }

    fn transmit(&mut self, byte: u8) {
        if !self.is_loopback() {
            self.sink.write(&[byte]);
        } else if self.received.len() < self.fifo_bytes() {
            self.received.push_back(byte);
        } else {
            self.state.overrun = true;
        }
        // It has left at once, so the transmitter is empty again.
        self.state.transmitter_empty_pending = true;
    }

    fn write_fifo_control(&mut self, value: u8) {
        let toggled = (value ^ self.state.fifo_control) & fcr::ENABLE != 0;
        if toggled || value & fcr::CLEAR_RECEIVER != 0 {
            self.received.clear();
        }
        // The other bits count only together with the enable bit.
        self.state.fifo_control = if value & fcr::ENABLE == 0 { 0 } else { value & !fcr::SELF_CLEARING };
    }

    fn write_modem_control(&mut self, value: u8) {
        let before = self.modem_lines();
        self.state.modem_control = value & mcr::ALL;
        let after = self.modem_lines();
        let mut changes = before ^ after;
        // Of the ring indicator only the trailing edge counts.
        if after & msr::RI != 0 {
            changes &= !msr::RI;
        }
        self.state.modem_changes |= changes >> 4;
    }

    fn modem_lines(&self) -> u8 {
        if !self.is_loopback() {
            return msr::CONNECTED;
        }
        [(mcr::RTS, msr::CTS), (mcr::DTR, msr::DSR), (mcr::OUT1, msr::RI), (mcr::OUT2, msr::DCD)]
            .iter()
            .filter(|(output, _)| self.state.modem_control & output != 0)
            .fold(0, |lines, (_, input)| lines | input)
    }

    fn read_line_status(&mut self) -> u8 {
        let mut status = lsr::TRANSMITTER_EMPTY;
        if !self.received.is_empty() {
            status |= lsr::DATA_READY;
        }
        if std::mem::take(&mut self.state.overrun) {
            status |= lsr::OVERRUN;
        }
        status
    }

    fn read_interrupt_identification(&mut self) -> u8 {
        let source = self.interrupt_source();
        if source == iir::TRANSMITTER_EMPTY {
            self.state.transmitter_empty_pending = false;
        }
        if self.has_fifos() { source | iir::FIFOS_ENABLED } else { source }
    }

    fn interrupt_source(&self) -> u8 {
        let enabled = self.state.interrupt_enable;
        if enabled & ier::RECEIVED != 0 && !self.received.is_empty() {
            let trigger = match self.state.fifo_control >> 6 {
                _ if !self.has_fifos() => 1,
                0 => 1,
                1 => 4,
                2 => 8,
                _ => 14,
            };
            // Fewer than the trigger level raise the interrupt when the line falls silent, and it always is here.
            if self.received.len() >= trigger { iir::RECEIVED } else { iir::RECEIVED_BELOW_TRIGGER }
        } else if enabled & ier::TRANSMITTER_EMPTY != 0 && self.state.transmitter_empty_pending {
            iir::TRANSMITTER_EMPTY
        } else if enabled & ier::MODEM_STATUS != 0 && self.state.modem_changes != 0 {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        }
    }

    fn update_pin(&self) {
        // Loopback disconnects the outputs, and with OUT2 the interrupt line.
        let connected = self.state.modem_control & (mcr::OUT2 | mcr::LOOPBACK) == mcr::OUT2;
        self.pin.set(connected && self.interrupt_source() != iir::NONE);
    }

    fn is_divisor_latch(&self) -> bool {
        self.state.line_control & LCR_DIVISOR_LATCH != 0
    }

    fn is_loopback(&self) -> bool {
        self.state.modem_control & mcr::LOOPBACK != 0
    }

    fn has_fifos(&self) -> bool {
        self.state.fifo_control & fcr::ENABLE != 0
    }

    fn fifo_bytes(&self) -> usize {
        if self.has_fifos() { FIFO_BYTES } else { 1 }
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (index, byte) in (0..).zip(data) {
            *byte = self.read_register(offset.wrapping_add(index));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (index, byte) in (0..).zip(data) {
            self.write_register(offset.wrapping_add(index), *byte);
        }
    }
}
