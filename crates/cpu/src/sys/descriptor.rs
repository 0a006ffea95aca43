//! Descriptor tables and the checks of loading a segment register (Intel SDM volume 3, sections 3.4, 5.5 to 5.8).

use crate::bus::Bus;
use crate::core::Cpu;
use crate::mmu::Access;
use crate::stop::{Stop, vector};
use crate::unit::control::efer;
use crate::unit::segment::{Segment, attribute, number};

/// The requested privilege level of a selector.
pub(super) fn rpl(selector: u16) -> u8 {
    selector as u8 & 3
}

/// A selector as error codes name it.
pub(super) fn error_code(selector: u16) -> u32 {
    u32::from(selector & !3)
}

/// Whether a selector is null.
pub(super) fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// How control reaches a code segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Far JMP and CALL: the privilege level stays.
    Direct,
    /// Far RET and IRET: the selector's RPL is the new privilege level.
    Return,
}

impl Cpu {
    /// Protected mode (paged or not), and not virtual-8086 mode.
    pub(super) fn is_protected(&self) -> bool {
        self.mode.is_protected()
    }

    /// IA-32e mode.
    pub(super) fn is_long(&self) -> bool {
        self.system.efer & efer::LMA != 0
    }

    /// Reads with the processor's own rights.
    pub(super) fn read_system<const N: usize>(&mut self, linear: u64, bus: &mut dyn Bus) -> Result<[u8; N], Stop> {
        let linear = if self.is_long() { linear } else { linear & 0xffff_ffff };
        let mut bytes = [0; N];
        self.read_linear(linear, &mut bytes, Access::SystemRead, bus)?;
        Ok(bytes)
    }

    /// The linear address of a selector's descriptor; #GP(selector) when it is beyond its table.
    fn descriptor_address(&mut self, selector: u16, bytes: u32) -> Result<u64, Stop> {
        let (base, limit) = if selector & 4 == 0 {
            (self.system.gdtr.base, u32::from(self.system.gdtr.limit))
        } else {
            let table = self.system.ldtr;
            if table.has(attribute::UNUSABLE) {
                return Err(self.general_protection(error_code(selector)));
            }
            (table.base, table.limit)
        };
        let offset = u32::from(selector & !7);
        if offset + (bytes - 1) > limit {
            return Err(self.general_protection(error_code(selector)));
        }
        Ok(base.wrapping_add(offset.into()))
    }

    /// A selector's descriptor.
    pub(super) fn descriptor(&mut self, selector: u16, bus: &mut dyn Bus) -> Result<Segment, Stop> {
        let address = self.descriptor_address(selector, 8)?;
        let raw = u64::from_le_bytes(self.read_system(address, bus)?);
        Ok(Segment::from_descriptor(selector, raw))
    }

    /// A selector's system descriptor (TSS, LDT), which is 16 bytes long in IA-32e mode.
    pub(super) fn system_descriptor(&mut self, selector: u16, bus: &mut dyn Bus) -> Result<Segment, Stop> {
        if !self.is_long() {
            return self.descriptor(selector, bus);
        }
        let address = self.descriptor_address(selector, 16)?;
        let raw = u128::from_le_bytes(self.read_system(address, bus)?);
        let mut segment = Segment::from_descriptor(selector, raw as u64);
        segment.base |= ((raw >> 64) as u64) << 32;
        Ok(segment)
    }

    /// Sets bits in the type field of a descriptor in its table.
    pub(super) fn set_descriptor_type(&mut self, segment: &Segment, bits: u8, bus: &mut dyn Bus) -> Result<(), Stop> {
        if segment.attributes as u8 & bits == bits {
            return Ok(());
        }
        let address = self.descriptor_address(segment.selector, 8)?.wrapping_add(5);
        self.write_linear(address, &[segment.attributes as u8 | bits], Access::SystemWrite, bus)
    }

    /// What loading `selector` into a data segment register or SS (by number) makes of it, checks included. `cpl` is the privilege
    /// level to check against.
    pub(super) fn checked_data_segment(
        &mut self,
        register: usize,
        selector: u16,
        cpl: u8,
        bus: &mut dyn Bus,
    ) -> Result<Segment, Stop> {
        if !self.is_protected() {
            return Ok(self.system.segments[register & 7].real(selector));
        }
        let code = error_code(selector);
        if is_null(selector) {
            if register == number::SS {
                return Err(self.general_protection(0));
            }
            return Ok(Segment::null(selector));
        }
        let mut segment = self.descriptor(selector, bus)?;
        let writable_data = segment.has(attribute::SEGMENT | attribute::READ_WRITE) && !segment.has(attribute::CODE);
        let fits = if register == number::SS {
            writable_data && rpl(selector) == cpl && segment.dpl() == cpl
        } else {
            let readable = segment.has(attribute::SEGMENT)
                && (!segment.has(attribute::CODE) || segment.has(attribute::READ_WRITE));
            let conforming = segment.has(attribute::CODE | attribute::CONFORMING);
            readable && (conforming || rpl(selector).max(cpl) <= segment.dpl())
        };
        if !fits {
            return Err(self.general_protection(code));
        }
        if !segment.has(attribute::PRESENT) {
            let vector = if register == number::SS { vector::SS } else { vector::NP };
            return Err(self.raise(vector, Some(code)));
        }
        self.set_descriptor_type(&segment, attribute::ACCESSED as u8, bus)?;
        segment.attributes |= attribute::ACCESSED;
        Ok(segment)
    }

    /// SS as IRET and far RET load it for a privilege level: null is allowed for 64-bit code that is not CPL 3.
    pub(super) fn checked_stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        code: &Segment,
        bus: &mut dyn Bus,
    ) -> Result<Segment, Stop> {
        if is_null(selector) && self.is_long() && code.has(attribute::LONG) && cpl != 3 && rpl(selector) == cpl {
            return Ok(Segment::null(selector));
        }
        self.checked_data_segment(number::SS, selector, cpl, bus)
    }

    /// What loading `selector` into CS makes of it, checks included. The selector's RPL is the new privilege level.
    pub(super) fn checked_code_segment(
        &mut self,
        selector: u16,
        entry: Entry,
        bus: &mut dyn Bus,
    ) -> Result<Segment, Stop> {
        if !self.is_protected() {
            return Ok(self.system.segments[number::CS].real(selector));
        }
        if is_null(selector) {
            return Err(self.general_protection(0));
        }
        let mut segment = self.descriptor(selector, bus)?;
        let dpl = segment.dpl();
        let conforming = segment.has(attribute::CONFORMING);
        let permitted = match entry {
            Entry::Direct if conforming => dpl <= self.cpl,
            Entry::Direct => rpl(selector) <= self.cpl && dpl == self.cpl,
            Entry::Return if rpl(selector) < self.cpl => false,
            Entry::Return if conforming => dpl <= rpl(selector),
            Entry::Return => dpl == rpl(selector),
        };
        let both = self.is_long() && segment.has(attribute::LONG | attribute::DEFAULT_32);
        if !segment.has(attribute::SEGMENT | attribute::CODE) || !permitted || both {
            return Err(self.general_protection(error_code(selector)));
        }
        if !segment.has(attribute::PRESENT) {
            return Err(self.raise(vector::NP, Some(error_code(selector))));
        }
        self.set_descriptor_type(&segment, attribute::ACCESSED as u8, bus)?;
        segment.attributes |= attribute::ACCESSED;
        if entry == Entry::Direct {
            segment.selector = selector & !3 | u16::from(self.cpl);
        }
        Ok(segment)
    }

    /// Loads a data segment register or SS.
    pub(super) fn load_segment(&mut self, register: usize, selector: u16, bus: &mut dyn Bus) -> Result<(), Stop> {
        let segment = if register == number::SS {
            let code = self.system.segments[number::CS];
            if self.code_bits == 64 {
                self.checked_stack_segment(selector, self.cpl, &code, bus)?
            } else {
                self.checked_data_segment(register, selector, self.cpl, bus)?
            }
        } else {
            self.checked_data_segment(register, selector, self.cpl, bus)?
        };
        self.system.segments[register & 7] = segment;
        Ok(())
    }

    /// Makes a code segment and a privilege level current, and leaves data segments behind that the new level may not use.
    pub(super) fn enter_code(&mut self, code: Segment, cpl: u8) {
        let outward = cpl > self.cpl;
        self.system.segments[number::CS] = code;
        self.cpl = cpl;
        if outward {
            for (register, segment) in self.system.segments.iter_mut().enumerate() {
                let conforming = segment.has(attribute::CODE | attribute::CONFORMING);
                let data = register != number::CS && register != number::SS;
                if data && segment.dpl() < cpl && !conforming && !segment.has(attribute::UNUSABLE) {
                    *segment = Segment::null(0);
                }
            }
        }
        self.update_mode();
    }
}
