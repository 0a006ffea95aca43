//! [`Apic`]: identity, acceptance, priorities.

use crate::apic::message::{ApicMessage, DeliveryMode, Outgoing};
use crate::state::ApicState;

/// Bytes of the register page that hold registers.
const PAGE_BYTES: usize = 1024;
/// Registers of the page: one every 16 bytes.
const REGISTERS: usize = PAGE_BYTES / 16;

/// Numbers of registers: their offset in the page divided by 16.
pub(super) mod register {
    pub const ID: usize = 0x02;
    pub const VERSION: usize = 0x03;
    pub const TASK_PRIORITY: usize = 0x08;
    pub const ARBITRATION_PRIORITY: usize = 0x09;
    pub const PROCESSOR_PRIORITY: usize = 0x0a;
    pub const END_OF_INTERRUPT: usize = 0x0b;
    pub const REMOTE_READ: usize = 0x0c;
    pub const LOGICAL_DESTINATION: usize = 0x0d;
    pub const DESTINATION_FORMAT: usize = 0x0e;
    pub const SPURIOUS_VECTOR: usize = 0x0f;
    pub const IN_SERVICE: usize = 0x10;
    pub const TRIGGER_MODE: usize = 0x18;
    pub const REQUEST: usize = 0x20;
    pub const REQUEST_LAST: usize = 0x27;
    pub const ERROR_STATUS: usize = 0x28;
    pub const LVT_CMCI: usize = 0x2f;
    pub const COMMAND: usize = 0x30;
    pub const COMMAND_HIGH: usize = 0x31;
    pub const LVT_TIMER: usize = 0x32;
    pub const LVT_THERMAL: usize = 0x33;
    pub const LVT_PERFORMANCE: usize = 0x34;
    pub const LVT_LINT0: usize = 0x35;
    pub const LVT_LINT1: usize = 0x36;
    pub const LVT_ERROR: usize = 0x37;
    pub const INITIAL_COUNT: usize = 0x38;
    pub const CURRENT_COUNT: usize = 0x39;
    pub const DIVIDE: usize = 0x3e;
    pub const SELF_INTERRUPT: usize = 0x3f;
}

/// Bits of IA32_APIC_BASE.
pub(super) mod base {
    pub const BOOTSTRAP: u64 = 1 << 8;
    pub const X2APIC: u64 = 1 << 10;
    pub const ENABLED: u64 = 1 << 11;
    pub const ADDRESS: u64 = ((1 << crate::cpuid::PHYSICAL_BITS) - 1) & !0xfff;
}

/// The interrupt mask of local vector table entries.
pub(super) const LVT_MASKED: u32 = 1 << 16;
/// Software enable in the spurious-interrupt vector register.
const SOFTWARE_ENABLED: u32 = 1 << 8;
/// Error status: a vector below 16 was to be sent, or was received.
pub(super) const ERROR_SEND_VECTOR: u32 = 1 << 5;
const ERROR_RECEIVE_VECTOR: u32 = 1 << 6;

/// A local APIC.
#[derive(Clone, Debug)]
pub(crate) struct Apic {
    /// The register page. The ID is in its upper byte in x2APIC mode too, as KVM saves it.
    pub(super) registers: [u32; REGISTERS],
    pub(super) base: u64,
    /// IA32_TSC_DEADLINE, in ticks of this processor's time-stamp counter; 0 is disarmed.
    pub(super) tsc_deadline: u64,
    /// The machine's time-stamp counter when the count-down timer next reaches 0.
    pub(super) expiry: Option<u64>,
    pub(super) outbox: Vec<Outgoing>,
    /// Whether any interrupt is requested.
    requested: bool,
}

impl Apic {
    /// `expiry` is exact where it is known; else it follows from the current count. `None` if the page has another size.
    pub(crate) fn from_state(state: &ApicState, expiry: Option<u64>) -> Option<Self> {
        if state.registers.len() != PAGE_BYTES {
            return None;
        }
        let mut registers = [0; REGISTERS];
        for (register, bytes) in registers.iter_mut().zip(state.registers.chunks_exact(16)) {
            *register = bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        }
        let mut apic = Self {
            registers,
            base: state.base_msr,
            tsc_deadline: state.tsc_deadline,
            expiry,
            outbox: Vec::new(),
            requested: false,
        };
        apic.note_requests();
        Some(apic)
    }

    /// `machine_tsc` is now.
    pub(crate) fn to_state(&self, machine_tsc: u64) -> ApicState {
        let mut registers = vec![0; PAGE_BYTES];
        for (number, bytes) in registers.chunks_exact_mut(16).enumerate() {
            let value = match number {
                register::CURRENT_COUNT => self.current_count(machine_tsc),
                register::PROCESSOR_PRIORITY => self.processor_priority().into(),
                _ => self.registers[number % REGISTERS],
            };
            if let Some(place) = bytes.first_chunk_mut() {
                *place = value.to_le_bytes();
            }
        }
        ApicState { registers, base_msr: self.base, tsc_deadline: self.tsc_deadline }
    }

    /// IA32_APIC_BASE.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Sets IA32_APIC_BASE. `None` for reserved bits and forbidden changes of mode (SDM figure 11-27).
    pub(crate) fn set_base(&mut self, value: u64) -> Option<()> {
        const MODE: u64 = base::ENABLED | base::X2APIC;
        let mode = value & MODE;
        let allowed = match self.base & MODE {
            0 => mode != base::X2APIC && mode != MODE,
            base::ENABLED => mode != base::X2APIC,
            _ => mode == MODE || mode == 0,
        };
        if !allowed || value & !(base::ADDRESS | MODE | base::BOOTSTRAP) != 0 {
            return None;
        }
        self.base = value;
        if mode == 0 {
            self.reset();
        }
        if mode == MODE {
            self.registers[register::LOGICAL_DESTINATION] = x2apic_logical(self.id());
        }
        Some(())
    }

    /// Registers as after reset; identity and mode stay.
    pub(crate) fn reset(&mut self) {
        let fresh = ApicState::reset(self.id());
        if let Some(fresh) = Self::from_state(&ApicState { base_msr: self.base, ..fresh }, None) {
            *self = fresh;
        }
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.base & base::ENABLED != 0
    }

    pub(super) fn is_x2apic(&self) -> bool {
        self.base & base::X2APIC != 0
    }

    /// Whether a guest-physical address lies in the register page.
    pub(crate) fn claims(&self, physical: u64) -> bool {
        self.is_enabled() && !self.is_x2apic() && physical & !0xfff == self.base & base::ADDRESS
    }

    pub(super) fn id(&self) -> u32 {
        self.registers[register::ID] >> 24
    }

    pub(super) fn is_software_enabled(&self) -> bool {
        self.is_enabled() && self.registers[register::SPURIOUS_VECTOR] & SOFTWARE_ENABLED != 0
    }

    /// What this APIC has sent since the last call.
    pub(crate) fn take_outgoing(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.outbox)
    }

    /// Whether a message is for this processor.
    pub(crate) fn is_addressed(&self, message: &ApicMessage) -> bool {
        let destination = message.destination;
        if destination == u32::MAX || destination == 0xff && !message.logical {
            return true;
        }
        if !message.logical {
            return destination == self.id();
        }
        let logical = self.registers[register::LOGICAL_DESTINATION];
        if self.is_x2apic() {
            return destination >> 16 == logical >> 16 && destination & logical & 0xffff != 0;
        }
        let logical = logical >> 24;
        if self.registers[register::DESTINATION_FORMAT] >> 28 == 0xf {
            destination & logical != 0
        } else {
            destination >> 4 == logical >> 4 && destination & logical & 0xf != 0
        }
    }

    /// Requests an interrupt.
    pub(crate) fn accept(&mut self, vector: u8, level: bool) {
        if !self.is_software_enabled() {
            return;
        }
        if vector < 16 {
            self.report_error(ERROR_RECEIVE_VECTOR);
            return;
        }
        self.set_bit(register::TRIGGER_MODE, vector, level);
        self.set_bit(register::REQUEST, vector, true);
        self.requested = true;
    }

    /// The interrupt to deliver now, unless the processor's interrupt flag holds it off.
    pub(crate) fn deliverable(&self) -> Option<u8> {
        if !self.requested || !self.is_software_enabled() {
            return None;
        }
        let vector = self.highest(register::REQUEST)?;
        (vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// Takes the deliverable interrupt into service.
    pub(crate) fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.deliverable()?;
        self.set_bit(register::REQUEST, vector, false);
        self.set_bit(register::IN_SERVICE, vector, true);
        self.note_requests();
        Some(vector)
    }

    /// Ends the interrupt in service; its vector if it was level-triggered.
    pub(super) fn end_of_interrupt(&mut self) -> Option<u8> {
        let vector = self.highest(register::IN_SERVICE)?;
        self.set_bit(register::IN_SERVICE, vector, false);
        self.bit(register::TRIGGER_MODE, vector).then_some(vector)
    }

    /// CR8: the task priority's class.
    pub(crate) fn cr8(&self) -> u64 {
        u64::from(self.registers[register::TASK_PRIORITY] >> 4 & 0xf)
    }

    /// Sets CR8, 0 to 15.
    pub(crate) fn set_cr8(&mut self, value: u64) {
        self.registers[register::TASK_PRIORITY] = (value as u32 & 0xf) << 4;
    }

    /// The processor-priority register.
    pub(crate) fn processor_priority(&self) -> u8 {
        let task = self.registers[register::TASK_PRIORITY] as u8;
        let service = self.highest(register::IN_SERVICE).unwrap_or(0);
        if task >> 4 >= service >> 4 { task } else { service & 0xf0 }
    }

    /// Sets an error bit and raises the error interrupt.
    pub(super) fn report_error(&mut self, error: u32) {
        self.registers[register::ERROR_STATUS] |= error;
        let entry = self.registers[register::LVT_ERROR];
        if entry & LVT_MASKED == 0 && entry as u8 >= 16 {
            self.accept(entry as u8, false);
        }
    }

    pub(super) fn send(&mut self, outgoing: Outgoing) {
        self.outbox.push(outgoing);
    }

    pub(super) fn note_requests(&mut self) {
        self.requested = self.registers[register::REQUEST..=register::REQUEST_LAST].iter().any(|&word| word != 0);
    }

    fn highest(&self, first: usize) -> Option<u8> {
        (0..8u8).rev().find_map(|word| {
            let bits = self.registers[first + usize::from(word)];
            (bits != 0).then(|| word * 32 + 31 - bits.leading_zeros() as u8)
        })
    }

    fn bit(&self, first: usize, vector: u8) -> bool {
        self.registers[first + usize::from(vector / 32)] >> (vector % 32) & 1 == 1
    }

    fn set_bit(&mut self, first: usize, vector: u8, value: bool) {
        let word = &mut self.registers[first + usize::from(vector / 32)];
        *word = *word & !(1 << (vector % 32)) | u32::from(value) << (vector % 32);
    }
}

/// The logical x2APIC ID: a cluster of 16 and a bit in it.
pub(super) fn x2apic_logical(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 15)
}

/// The message that an interrupt command register orders; `None` for modes that do not exist here.
pub(super) fn command(low: u32, destination: u32) -> Option<Outgoing> {
    let mode = DeliveryMode::from_bits((low >> 8) as u8)?;
    let level = low >> 15 & 1 == 1;
    let assert = low >> 14 & 1 == 1;
    if mode == DeliveryMode::Init && level && !assert {
        // INIT level de-assert: only processors of the last century arbitrate with it.
        return None;
    }
    let message = ApicMessage { destination, logical: low >> 11 & 1 == 1, mode, vector: low as u8, level: false };
    Some(match low >> 18 & 3 {
        0 => Outgoing::To(message),
        1 => Outgoing::ToSelf(message),
        2 => Outgoing::ToAll(message),
        _ => Outgoing::ToOthers(message),
    })
}
