//! Register access by the guest: memory-mapped (xAPIC) and by MSR (x2APIC).

use crate::apic::local::{Apic, ERROR_SEND_VECTOR, LVT_MASKED, command, register};
use crate::apic::message::{ApicMessage, DeliveryMode, Outgoing};
use crate::bus::Bus;
use crate::msr::index::X2APIC_FIRST;

/// Delivery status of commands: idle, always.
const COMMAND_BUSY: u32 = 1 << 12;

impl Apic {
    /// Reads from the register page: 32-bit registers, one every 16 bytes.
    pub(crate) fn read_page(&self, offset: u64, data: &mut [u8], machine_tsc: u64) {
        let value = self.read((offset >> 4) as usize, machine_tsc).unwrap_or(0).to_le_bytes();
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = value.get((offset & 15) as usize + at).copied().unwrap_or(0);
        }
    }

    /// Writes to the register page. Only aligned 32-bit writes exist.
    pub(crate) fn write_page(&mut self, offset: u64, data: &[u8], machine_tsc: u64, bus: &mut dyn Bus) {
        let Some(value) = data.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)) else {
            return;
        };
        if offset & 15 != 0 {
            return;
        }
        let number = (offset >> 4) as usize;
        match number {
            register::ID => self.registers[register::ID] = value & 0xff00_0000,
            register::LOGICAL_DESTINATION => self.registers[number] = value & 0xff00_0000,
            register::DESTINATION_FORMAT => self.registers[number] = value | 0x0fff_ffff,
            register::COMMAND_HIGH => self.registers[number] = value,
            register::COMMAND => {
                self.registers[number] = value & !COMMAND_BUSY;
                self.order(value, self.registers[register::COMMAND_HIGH] >> 24);
            }
            register::SELF_INTERRUPT => {}
            _ => {
                self.write(number, value, machine_tsc, bus);
            }
        }
    }

    /// Reads an x2APIC register. `None` is #GP.
    pub(crate) fn read_msr(&self, index: u32, machine_tsc: u64) -> Option<u64> {
        if !self.is_x2apic() {
            return None;
        }
        let number = (index - X2APIC_FIRST) as usize;
        Some(match number {
            register::ID => self.id().into(),
            register::COMMAND => {
                u64::from(self.registers[register::COMMAND_HIGH]) << 32 | u64::from(self.registers[register::COMMAND])
            }
            register::COMMAND_HIGH
            | register::DESTINATION_FORMAT
            | register::ARBITRATION_PRIORITY
            | register::REMOTE_READ
            | register::END_OF_INTERRUPT
            | register::SELF_INTERRUPT => return None,
            _ => self.read(number, machine_tsc)?.into(),
        })
    }

    /// Writes an x2APIC register. `None` is #GP.
    pub(crate) fn write_msr(&mut self, index: u32, value: u64, machine_tsc: u64, bus: &mut dyn Bus) -> Option<()> {
        if !self.is_x2apic() {
            return None;
        }
        let number = (index - X2APIC_FIRST) as usize;
        if number == register::COMMAND {
            self.registers[register::COMMAND] = value as u32 & !COMMAND_BUSY;
            self.registers[register::COMMAND_HIGH] = (value >> 32) as u32;
            self.order(value as u32, (value >> 32) as u32);
            return Some(());
        }
        let value = u32::try_from(value).ok()?;
        match number {
            register::END_OF_INTERRUPT | register::ERROR_STATUS if value != 0 => None,
            register::SELF_INTERRUPT => {
                let message = ApicMessage {
                    destination: self.id(),
                    logical: false,
                    mode: DeliveryMode::Fixed,
                    vector: value as u8,
                    level: false,
                };
                self.dispatch(Outgoing::ToSelf(message), message.vector);
                Some(())
            }
            register::ID | register::LOGICAL_DESTINATION | register::DESTINATION_FORMAT | register::COMMAND_HIGH => {
                None
            }
            _ => self.write(number, value, machine_tsc, bus),
        }
    }

    fn read(&self, number: usize, machine_tsc: u64) -> Option<u32> {
        Some(match number {
            register::CURRENT_COUNT => self.current_count(machine_tsc),
            register::PROCESSOR_PRIORITY => self.processor_priority().into(),
            register::ID
            | register::VERSION
            | register::TASK_PRIORITY
            | register::LOGICAL_DESTINATION..=register::ERROR_STATUS
            | register::LVT_CMCI..=register::INITIAL_COUNT
            | register::DIVIDE => *self.registers.get(number)?,
            _ => return None,
        })
    }

    /// Writes a register that both modes have. `None` where there is none, or it is read-only.
    fn write(&mut self, number: usize, value: u32, machine_tsc: u64, bus: &mut dyn Bus) -> Option<()> {
        match number {
            register::TASK_PRIORITY => self.registers[number] = value & 0xff,
            register::END_OF_INTERRUPT => {
                if let Some(vector) = self.end_of_interrupt() {
                    bus.end_of_interrupt(vector);
                }
            }
            register::SPURIOUS_VECTOR => {
                self.registers[number] = value & 0x3ff;
                if !self.is_software_enabled() {
                    for entry in [register::LVT_CMCI].into_iter().chain(register::LVT_TIMER..=register::LVT_ERROR) {
                        self.registers[entry] |= LVT_MASKED;
                    }
                }
            }
            // Writing latches what came since the last write; everything is latched at once here.
            register::ERROR_STATUS => self.registers[number] = 0,
            register::LVT_TIMER => self.set_timer_entry(self.lvt(value, 0x7_00ff)),
            register::LVT_ERROR => self.registers[number] = self.lvt(value, 0x1_00ff),
            register::LVT_CMCI | register::LVT_THERMAL | register::LVT_PERFORMANCE => {
                self.registers[number] = self.lvt(value, 0x1_07ff);
            }
            register::LVT_LINT0 | register::LVT_LINT1 => self.registers[number] = self.lvt(value, 0x1_a7ff),
            register::INITIAL_COUNT => self.set_initial_count(value, machine_tsc),
            register::DIVIDE => self.set_divide(value, machine_tsc),
            _ => return None,
        }
        Some(())
    }

    /// A local vector table entry: masked while the APIC is disabled.
    fn lvt(&self, value: u32, writable: u32) -> u32 {
        value & writable | if self.is_software_enabled() { 0 } else { LVT_MASKED }
    }

    fn order(&mut self, low: u32, destination: u32) {
        if let Some(outgoing) = command(low, destination) {
            self.dispatch(outgoing, low as u8);
        }
    }

    fn dispatch(&mut self, outgoing: Outgoing, vector: u8) {
        let (Outgoing::To(message)
        | Outgoing::ToSelf(message)
        | Outgoing::ToAll(message)
        | Outgoing::ToOthers(message)) = outgoing;
        let vectored = matches!(message.mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        if vectored && vector < 16 {
            self.report_error(ERROR_SEND_VECTOR);
        } else {
            self.send(outgoing);
        }
    }
}
