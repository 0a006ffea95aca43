//! The I/O APIC of the soft engine: a 82093AA with 24 pins (Intel data sheet 290566-001).
//!
//! It is the variant that KVM emulates too (version 0x11, no EOI register), so that a guest does not notice a change of
//! engine. Pins follow the levels of [`IrqPins`](crate::irq::IrqPins) by [`IoApic::sync`]; interrupts come out of
//! [`IoApic::next_message`].

mod redirection;
mod state;
#[cfg(test)]
mod tests;

pub use state::IoApicState;

use cpu::ApicMessage;

use crate::bus::BusDevice;
use crate::irq::PINS;
use redirection::Redirection;

/// Index register, selects what the window shows.
const IOREGSEL: u64 = 0x00;
/// The window.
const IOWIN: u64 = 0x10;

/// Identification register, its identifier in bits 24 to 27.
const IOAPICID: u8 = 0;
/// Version register.
const IOAPICVER: u8 = 1;
/// Arbitration register; the arbitration identifier follows the identifier.
const IOAPICARB: u8 = 2;
/// First register of the redirection table, two for each pin.
const IOREDTBL: u8 = 0x10;

/// Version 0x11; the number of the last pin in bits 16 to 23.
const VERSION: u32 = 0x11 | (PINS - 1) << 16;
const ID: u32 = 0x0f00_0000;
const PINS_MASK: u32 = (1 << PINS) - 1;

/// The I/O APIC.
pub struct IoApic {
    base_address: u64,
    ioregsel: u8,
    id: u32,
    /// Interrupt requests: of a level-triggered pin its level, of an edge-triggered pin an edge not yet delivered.
    irr: u32,
    redirection: [Redirection; PINS as usize],
    /// Levels of the pins at the last [`IoApic::sync`].
    levels: u32,
    /// Pins that [`IoApic::next_message`] would deliver; follows from the rest.
    pending: u32,
}

impl IoApic {
    /// An I/O APIC in a saved state, or at power-on with [`IoApicState::default`]. `levels` are the pins' levels when
    /// that state was saved.
    pub fn new(state: &IoApicState, levels: u32) -> Self {
        let mut ioapic = Self {
            base_address: state.base_address,
            ioregsel: state.ioregsel as u8,
            id: state.id & 0xf,
            irr: state.irr & PINS_MASK,
            redirection: state.redirection.map(Redirection::from_bits),
            levels: levels & PINS_MASK,
            pending: 0,
        };
        for pin in 0..PINS {
            if ioapic.redirection[pin as usize].is_level() {
                ioapic.irr = ioapic.irr & !(1 << pin) | ioapic.levels & 1 << pin;
            }
            ioapic.update_pending(pin);
        }
        ioapic
    }

    /// The state now.
    pub fn save(&self) -> IoApicState {
        IoApicState {
            base_address: self.base_address,
            ioregsel: self.ioregsel.into(),
            id: self.id,
            irr: self.irr,
            redirection: self.redirection.map(Redirection::bits),
        }
    }

    /// Takes over the levels of the pins (one bit a pin). Call it after every device access, and then
    /// [`IoApic::next_message`] until there is none.
    #[inline]
    pub fn sync(&mut self, levels: u32) {
        let levels = levels & PINS_MASK;
        if levels != self.levels {
            self.change_levels(levels);
        }
    }

    fn change_levels(&mut self, levels: u32) {
        let changed = levels ^ self.levels;
        self.levels = levels;
        for pin in pins(changed) {
            let (bit, entry) = (1 << pin, self.redirection[pin as usize]);
            if entry.is_level() {
                self.irr = self.irr & !bit | levels & bit;
            } else if levels & bit != 0 && !entry.is_masked() {
                // An edge on a masked pin is lost (data sheet, "Interrupt Mask").
                self.irr |= bit;
            }
            self.update_pending(pin);
        }
    }

    /// Whether [`IoApic::next_message`] has something.
    #[inline]
    pub fn has_message(&self) -> bool {
        self.pending != 0
    }

    /// Delivers one waiting interrupt, that of the lowest pin, or `None` if there is none.
    #[inline]
    pub fn next_message(&mut self) -> Option<ApicMessage> {
        while self.pending != 0 {
            let pin = self.pending.trailing_zeros();
            let entry = &mut self.redirection[pin as usize];
            let message = entry.message();
            if entry.is_level() {
                entry.set_remote_irr(true);
            } else {
                self.irr &= !(1 << pin);
            }
            self.update_pending(pin);
            if message.is_some() {
                return message;
            }
        }
        None
    }

    /// A local APIC says that its processor has finished a level-triggered interrupt. A pin whose level is still high
    /// interrupts again: call [`IoApic::next_message`] until there is none.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        for pin in 0..PINS {
            let entry = &mut self.redirection[pin as usize];
            if entry.is_level() && entry.remote_irr() && entry.vector() == vector {
                entry.set_remote_irr(false);
                self.update_pending(pin);
            }
        }
    }

    fn update_pending(&mut self, pin: u32) {
        let entry = self.redirection[pin as usize];
        let waits = self.irr >> pin & 1 != 0 && !entry.is_masked() && !(entry.is_level() && entry.remote_irr());
        self.pending = self.pending & !(1 << pin) | u32::from(waits) << pin;
    }

    fn read_window(&self) -> u32 {
        match self.ioregsel {
            IOAPICID | IOAPICARB => self.id << 24,
            IOAPICVER => VERSION,
            register => match self.redirection_register(register) {
                Some((pin, shift)) => (self.redirection[pin as usize].bits() >> shift) as u32,
                None => 0,
            },
        }
    }

    fn write_window(&mut self, value: u32) {
        if self.ioregsel == IOAPICID {
            self.id = (value & ID) >> 24;
        } else if let Some((pin, shift)) = self.redirection_register(self.ioregsel) {
            let entry = &mut self.redirection[pin as usize];
            let was_level = entry.is_level();
            entry.write(value, shift);
            if entry.is_level() && !was_level {
                self.irr = self.irr & !(1 << pin) | self.levels & 1 << pin;
            } else if was_level && !entry.is_level() {
                self.irr &= !(1 << pin);
            }
            self.update_pending(pin);
        }
    }

    /// The pin that a register belongs to, and the position of the register's 32 bits in that pin's entry.
    fn redirection_register(&self, register: u8) -> Option<(u32, u32)> {
        let index = u32::from(register.checked_sub(IOREDTBL)?);
        (index < 2 * PINS).then_some((index / 2, index % 2 * 32))
    }
}

/// The numbers of the set bits, all below [`PINS`].
fn pins(mut bits: u32) -> impl Iterator<Item = u32> {
    bits &= PINS_MASK;
    std::iter::from_fn(move || {
        let pin = bits.trailing_zeros();
        bits &= bits.wrapping_sub(1);
        (pin < PINS).then_some(pin)
    })
}

impl BusDevice for IoApic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            IOREGSEL => u32::from(self.ioregsel),
            IOWIN => self.read_window(),
            _ => 0,
        };
        data.fill(0);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut value = [0; 4];
        for (to, from) in value.iter_mut().zip(data) {
            *to = *from;
        }
        match offset {
            IOREGSEL => self.ioregsel = value[0],
            IOWIN => self.write_window(u32::from_le_bytes(value)),
            _ => {}
        }
    }
}
