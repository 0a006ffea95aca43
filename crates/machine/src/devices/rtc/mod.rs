//! The real-time clock: an MC146818 with 128 bytes of CMOS memory.
//!
//! Registers are those of the Motorola MC146818A data sheet, plus the century at 0x32 as PCs have it. The time is that
//! of the [`MachineClock`] in UTC; what the guest sets is kept as an offset of whole seconds. Update cycles take no
//! time, so the update-in-progress bit is never set. There are no interrupts: the ACPI tables declare none, and a guest
//! then polls.

mod civil;
mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use civil::CivilTime;
pub use state::RtcState;

use crate::bus::BusDevice;
use crate::clock::MachineClock;

/// Register numbers.
mod register {
    pub const SECONDS: u8 = 0x00;
    pub const MINUTES: u8 = 0x02;
    pub const HOURS: u8 = 0x04;
    pub const WEEKDAY: u8 = 0x06;
    pub const DAY: u8 = 0x07;
    pub const MONTH: u8 = 0x08;
    pub const YEAR: u8 = 0x09;
    pub const A: u8 = 0x0a;
    pub const B: u8 = 0x0b;
    pub const C: u8 = 0x0c;
    pub const D: u8 = 0x0d;
    pub const CENTURY: u8 = 0x32;
}

/// Register A: an update is in progress.
const UPDATE_IN_PROGRESS: u8 = 0x80;
/// Register B: the clock stands still and may be set.
const SET: u8 = 0x80;
/// Register B: binary rather than BCD.
const BINARY: u8 = 0x04;
/// Register B: 24 hours rather than 12.
const HOURS_24: u8 = 0x02;
/// Hours register in 12-hour mode.
const PM: u8 = 0x80;
/// Register D: the battery is good.
const VALID: u8 = 0x80;
/// The index port's upper bit masks the NMI on a PC.
const INDEX: u8 = 0x7f;
/// Bytes of CMOS memory, registers included.
const CMOS_BYTES: usize = 128;

/// The real-time clock.
pub struct Rtc {
    index: u8,
    control_a: u8,
    control_b: u8,
    offset_seconds: i64,
    /// The time while SET holds the clock.
    held: Option<CivilTime>,
    memory: [u8; CMOS_BYTES],
    clock: Arc<MachineClock>,
}

impl Rtc {
    /// A real-time clock in a saved state, or at power-on with [`RtcState::default`].
    pub fn new(state: &RtcState, clock: Arc<MachineClock>) -> Self {
        let mut memory = [0; CMOS_BYTES];
        for (to, from) in memory.iter_mut().zip(&state.memory) {
            *to = *from;
        }
        Self {
            index: state.index & INDEX,
            control_a: state.control_a,
            control_b: state.control_b,
            offset_seconds: state.offset_seconds,
            held: state.held.clone().map(CivilTime::within_registers),
            memory,
            clock,
        }
    }

    /// The state now.
    pub fn save(&self) -> RtcState {
        RtcState {
            index: self.index,
            control_a: self.control_a,
            control_b: self.control_b,
            offset_seconds: self.offset_seconds,
            held: self.held.clone(),
            memory: self.memory.to_vec(),
        }
    }

    fn clock_seconds(&self) -> i64 {
        (self.clock.unix_ns() / 1_000_000_000) as i64
    }

    fn time(&self) -> CivilTime {
        self.held
            .clone()
            .unwrap_or_else(|| CivilTime::from_unix_seconds(self.clock_seconds().saturating_add(self.offset_seconds)))
    }

    fn set_time(&mut self, time: CivilTime) {
        if self.control_b & SET != 0 {
            self.held = Some(time);
        } else {
            self.offset_seconds = time.unix_seconds().saturating_sub(self.clock_seconds());
        }
    }

    fn read_register(&self) -> u8 {
        let time = self.time();
        match self.index {
            register::SECONDS => self.encode(time.second),
            register::MINUTES => self.encode(time.minute),
            register::HOURS => self.encode_hour(time.hour),
            register::WEEKDAY => self.encode(time.weekday() + 1),
            register::DAY => self.encode(time.day),
            register::MONTH => self.encode(time.month),
            register::YEAR => self.encode((time.year % 100) as u8),
            register::CENTURY => self.encode((time.year / 100) as u8),
            register::A => self.control_a,
            register::B => self.control_b,
            register::C => 0,
            register::D => VALID,
            index => self.memory.get(usize::from(index)).copied().unwrap_or(0xff),
        }
    }

    fn write_register(&mut self, value: u8) {
        let mut time = self.time();
        match self.index {
            register::SECONDS => time.second = self.decode(value).min(59),
            register::MINUTES => time.minute = self.decode(value).min(59),
            register::HOURS => time.hour = self.decode_hour(value).min(23),
            register::DAY => time.day = self.decode(value).clamp(1, 31),
            register::MONTH => time.month = self.decode(value).clamp(1, 12),
            register::YEAR => time.year = time.year / 100 * 100 + u16::from(self.decode(value).min(99)),
            register::CENTURY => time.year = u16::from(self.decode(value).min(99)) * 100 + time.year % 100,
            register::A => {
                self.control_a = value & !UPDATE_IN_PROGRESS;
                return;
            }
            register::B => {
                self.write_control_b(value);
                return;
            }
            // The weekday follows from the date.
            register::WEEKDAY | register::C | register::D => return,
            index => {
                if let Some(byte) = self.memory.get_mut(usize::from(index)) {
                    *byte = value;
                }
                return;
            }
        }
        self.set_time(time);
    }

    fn write_control_b(&mut self, value: u8) {
        let time = self.time();
        self.control_b = value;
        match self.held.take() {
            _ if value & SET != 0 => self.held = Some(time),
            Some(time) => self.set_time(time),
            None => {}
        }
    }

    fn encode(&self, value: u8) -> u8 {
        if self.control_b & BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.control_b & BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xf) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.control_b & HOURS_24 != 0 {
            return self.encode(hour);
        }
        let pm = if hour >= 12 { PM } else { 0 };
        // Midnight and noon are 12.
        self.encode((hour + 11) % 12 + 1) | pm
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.control_b & HOURS_24 != 0 {
            return self.decode(value);
        }
        let pm = if value & PM != 0 { 12 } else { 0 };
        self.decode(value & !PM) % 12 + pm
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (index, byte) in (0..).zip(data) {
            // The index port cannot be read.
            if offset.wrapping_add(index) == 1 {
                *byte = self.read_register();
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (index, byte) in (0..).zip(data) {
            match offset.wrapping_add(index) {
                0 => self.index = byte & INDEX,
                1 => self.write_register(*byte),
                _ => {}
            }
        }
    }
}
