//! What of the task-state segment is in use: stacks of inner privilege levels and the I/O permission bitmap.

use crate::bus::Bus;
use crate::core::Cpu;
use crate::stop::{Stop, vector};
use crate::sys::descriptor::error_code;
use crate::sys::event::Event;
use crate::unit::bit;
use crate::unit::segment::attribute;

/// Offset of RSP0 in a 64-bit TSS; RSP1 and RSP2 follow.
const RSP0: u32 = 4;
/// Offset of IST1 in a 64-bit TSS; the others follow.
const IST1: u32 = 0x24;
/// Offset of the I/O map's base in any TSS.
const IO_MAP: u32 = 0x66;

/// Which stack of a 64-bit TSS.
#[derive(Clone, Copy, Debug)]
pub(super) enum TaskStack {
    /// The stack of a privilege level, 0 to 2.
    Privilege(u8),
    /// An entry of the interrupt stack table, 1 to 7.
    Interrupt(u8),
}

impl Cpu {
    /// A stack pointer from the 64-bit TSS.
    pub(super) fn task_stack_long(&mut self, stack: TaskStack, event: Event, bus: &mut dyn Bus) -> Result<u64, Stop> {
        let offset = match stack {
            TaskStack::Privilege(level) => RSP0 + u32::from(level) * 8,
            TaskStack::Interrupt(entry) => IST1 + (u32::from(entry).max(1) - 1) * 8,
        };
        let task = self.system.tr;
        if offset + 7 > task.limit {
            return Err(self.raise(vector::TS, Some(error_code(task.selector) | event.external_bit())));
        }
        let pointer = u64::from_le_bytes(self.read_system(task.base.wrapping_add(offset.into()), bus)?);
        if !self.is_canonical(pointer) {
            return Err(self.raise(vector::SS, Some(event.external_bit())));
        }
        Ok(pointer)
    }

    /// SS and ESP of a privilege level from the 32-bit TSS.
    pub(super) fn task_stack_protected(
        &mut self,
        cpl: u8,
        event: Event,
        bus: &mut dyn Bus,
    ) -> Result<(u16, u64), Stop> {
        let task = self.system.tr;
        let offset = 4 + u32::from(cpl) * 8;
        if offset + 5 > task.limit || task.kind() & !2 != 9 {
            return Err(self.raise(vector::TS, Some(error_code(task.selector) | event.external_bit())));
        }
        let bytes: [u8; 6] = self.read_system(task.base.wrapping_add(offset.into()), bus)?;
        let [a, b, c, d, e, f] = bytes;
        Ok((u16::from_le_bytes([e, f]), u32::from_le_bytes([a, b, c, d]).into()))
    }

    /// Raises #GP(0) unless the program may access `bytes` ports from `port` on.
    pub(super) fn require_ports(&mut self, port: u16, bytes: u16, bus: &mut dyn Bus) -> Result<(), Stop> {
        let io_privilege = (self.rflags_rest & bit::IOPL) >> bit::IOPL.trailing_zeros();
        if !self.is_protected() || u64::from(self.cpl) <= io_privilege {
            return Ok(());
        }
        let task = self.system.tr;
        if task.has(attribute::UNUSABLE) || IO_MAP + 1 > task.limit {
            return Err(self.general_protection(0));
        }
        let map = u16::from_le_bytes(self.read_system(task.base.wrapping_add(IO_MAP.into()), bus)?);
        let offset = u32::from(map) + u32::from(port / 8);
        // Two bytes are always read, so the map must have one more than the last port's.
        if offset + 1 > task.limit {
            return Err(self.general_protection(0));
        }
        let bits = u16::from_le_bytes(self.read_system(task.base.wrapping_add(offset.into()), bus)?);
        let wanted = (1 << bytes) - 1;
        if bits >> (port % 8) & wanted != 0 {
            return Err(self.general_protection(0));
        }
        Ok(())
    }
}
