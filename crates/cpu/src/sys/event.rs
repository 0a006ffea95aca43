//! Delivering exceptions and interrupts (Intel SDM volume 3, chapter 6).

use crate::bus::Bus;
use crate::core::Cpu;
use crate::mmu::Access;
use crate::stop::{Fault, Stop, vector};
use crate::sys::descriptor::{error_code, is_null};
use crate::sys::task::TaskStack;
use crate::unit::bit;
use crate::unit::segment::{Segment, attribute, number};

/// Error-code bit: the event did not come from the program.
const EXTERNAL: u32 = 1 << 0;
/// Error-code bit: the index is into the IDT.
const IN_IDT: u32 = 1 << 1;

/// Gate types.
const INTERRUPT_GATE: u16 = 0xe;
const TRAP_GATE: u16 = 0xf;

/// Where an event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// An instruction that faulted, or a trap.
    Exception,
    /// INT n, INT3, INTO: the gate's privilege level counts.
    Software,
    /// A local APIC or NMI.
    External,
}

/// Something to deliver through the IDT. The return address is [`Cpu::rip`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub vector: u8,
    pub error_code: Option<u32>,
    pub source: Source,
}

impl Event {
    /// The EXT bit of error codes of faults on the way.
    pub(super) fn external_bit(self) -> u32 {
        if self.source == Source::Software { 0 } else { EXTERNAL }
    }
}

/// What a gate says.
struct Gate {
    kind: u16,
    selector: u16,
    offset: u64,
    stack_table: u8,
    wide: bool,
}

impl Cpu {
    /// Delivers an exception, turning faults on the way into double faults and worse (SDM table 6-5).
    pub(crate) fn deliver_exception(&mut self, fault: Fault, bus: &mut dyn Bus) -> Result<(), Stop> {
        let mut current = fault;
        loop {
            if current.vector == vector::PF {
                self.system.cr2 = current.address;
            }
            let event = Event { vector: current.vector, error_code: current.error_code, source: Source::Exception };
            match self.deliver(event, bus) {
                Err(Stop::Fault) => {}
                other => return other,
            }
            if current.vector == vector::DF {
                return Err(Stop::Shutdown);
            }
            let second = self.fault;
            let doubled = match class(current.vector) {
                Class::Benign => false,
                Class::Contributory => class(second.vector) == Class::Contributory,
                Class::PageFault => class(second.vector) != Class::Benign,
            };
            current = if doubled {
                if second.vector == vector::PF {
                    self.system.cr2 = second.address;
                }
                Fault { vector: vector::DF, error_code: Some(0), address: 0 }
            } else {
                second
            };
        }
    }

    /// Delivers an interrupt from outside; faults on the way are delivered in its place.
    pub(crate) fn deliver_interrupt(&mut self, vector: u8, bus: &mut dyn Bus) -> Result<(), Stop> {
        match self.deliver(Event { vector, error_code: None, source: Source::External }, bus) {
            Err(Stop::Fault) => self.deliver_exception(self.fault, bus),
            other => other,
        }
    }

    /// Delivers an event. On `Err(Stop::Fault)` nothing has changed.
    pub(super) fn deliver(&mut self, event: Event, bus: &mut dyn Bus) -> Result<(), Stop> {
        // What delivery stores must not restart the instruction.
        let alone = std::mem::replace(&mut self.alone, true);
        let result = if !self.is_protected() {
            self.deliver_real(event, bus)
        } else if self.is_long() {
            self.deliver_long(event, bus)
        } else {
            self.deliver_protected(event, bus)
        };
        self.alone = alone;
        result
    }

    fn deliver_long(&mut self, event: Event, bus: &mut dyn Bus) -> Result<(), Stop> {
        let gate = self.gate(event, bus)?;
        let (code, cpl) = self.gate_code_segment(event, &gate, bus)?;
        let switches = cpl < self.cpl;
        let stack = if gate.stack_table != 0 {
            self.task_stack_long(TaskStack::Interrupt(gate.stack_table), event, bus)?
        } else if switches {
            self.task_stack_long(TaskStack::Privilege(cpl), event, bus)?
        } else {
            self.gpr[4]
        };
        let stack = stack & !15;
        let values = [
            event.error_code.unwrap_or(0).into(),
            self.rip,
            self.system.segments[number::CS].selector.into(),
            self.flags_image(event),
            self.gpr[4],
            self.system.segments[number::SS].selector.into(),
        ];
        let mut frame = [0; 48];
        for (bytes, value) in frame.chunks_exact_mut(8).zip(values) {
            bytes.copy_from_slice(&u64::to_le_bytes(value));
        }
        let frame = if event.error_code.is_some() { &frame[..] } else { frame.get(8..).unwrap_or_default() };
        let top = stack.wrapping_sub(frame.len() as u64);
        if !self.is_canonical(top) {
            return Err(self.raise(vector::SS, Some(event.external_bit())));
        }
        self.write_linear(top, frame, stack_access(cpl), bus)?;
        self.gpr[4] = top;
        if switches {
            self.system.segments[number::SS] = Segment::null(cpl.into());
        }
        self.enter_handler(&gate, code, cpl);
        Ok(())
    }

    fn deliver_protected(&mut self, event: Event, bus: &mut dyn Bus) -> Result<(), Stop> {
        let gate = self.gate(event, bus)?;
        let (code, cpl) = self.gate_code_segment(event, &gate, bus)?;
        let old_stack = self.system.segments[number::SS];
        let old_top = self.gpr[4];
        let (stack, top) = if cpl < self.cpl {
            let (selector, top) = self.task_stack_protected(cpl, event, bus)?;
            // The checks of loading SS, with #TS in place of #GP.
            let mut stack = self.descriptor(selector, bus)?;
            stack.selector = selector;
            let writable = stack.has(attribute::SEGMENT | attribute::READ_WRITE) && !stack.has(attribute::CODE);
            if !writable || stack.dpl() != cpl || selector as u8 & 3 != cpl {
                return Err(self.raise(vector::TS, Some(error_code(selector) | event.external_bit())));
            }
            (stack, top)
        } else {
            (old_stack, old_top)
        };
        let values = [
            event.error_code.unwrap_or(0),
            self.rip as u32,
            self.system.segments[number::CS].selector.into(),
            self.flags_image(event) as u32,
            old_top as u32,
            old_stack.selector.into(),
        ];
        let count = if cpl < self.cpl { 6 } else { 4 };
        let first = usize::from(event.error_code.is_none());
        let bytes: Vec<u8> =
            values.get(first..count).unwrap_or_default().iter().flat_map(|value| value.to_le_bytes()).collect();
        let mask = if stack.has(attribute::DEFAULT_32) { 0xffff_ffff } else { 0xffff };
        let new_top = top.wrapping_sub(bytes.len() as u64) & mask;
        self.write_linear(stack.base.wrapping_add(new_top) & 0xffff_ffff, &bytes, stack_access(cpl), bus)?;
        self.system.segments[number::SS] = stack;
        self.gpr[4] = self.gpr[4] & !mask | new_top;
        self.enter_handler(&gate, code, cpl);
        Ok(())
    }

    fn deliver_real(&mut self, event: Event, bus: &mut dyn Bus) -> Result<(), Stop> {
        let offset = u64::from(event.vector) * 4;
        if offset + 3 > u64::from(self.system.idtr.limit) {
            return Err(self.general_protection(0));
        }
        let entry = u32::from_le_bytes(self.read_system(self.system.idtr.base.wrapping_add(offset), bus)?);
        let stack = self.system.segments[number::SS];
        let top = self.gpr[4].wrapping_sub(6) & 0xffff;
        let values = [self.rip as u16, self.system.segments[number::CS].selector, self.rflags() as u16];
        let mut frame = [0; 6];
        for (bytes, value) in frame.chunks_exact_mut(2).zip(values) {
            bytes.copy_from_slice(&u16::to_le_bytes(value));
        }
        self.write_linear(stack.base.wrapping_add(top), &frame, Access::SystemWrite, bus)?;
        self.gpr[4] = self.gpr[4] & !0xffff | top;
        self.set_rflags(self.rflags() & !(bit::IF | bit::TF | bit::AC | bit::RF));
        let code = self.system.segments[number::CS].real((entry >> 16) as u16);
        self.rip = u64::from(entry & 0xffff);
        self.enter_code(code, 0);
        Ok(())
    }

    /// Reads and checks the event's gate.
    fn gate(&mut self, event: Event, bus: &mut dyn Bus) -> Result<Gate, Stop> {
        let code = u32::from(event.vector) << 3 | IN_IDT | event.external_bit();
        let size = if self.is_long() { 16 } else { 8 };
        let offset = u64::from(event.vector) * size;
        if offset + (size - 1) > u64::from(self.system.idtr.limit) {
            return Err(self.general_protection(code));
        }
        let address = self.system.idtr.base.wrapping_add(offset);
        let (low, high) = if size == 16 {
            let raw = u128::from_le_bytes(self.read_system(address, bus)?);
            (raw as u64, (raw >> 64) as u64)
        } else {
            (u64::from_le_bytes(self.read_system(address, bus)?), 0)
        };
        let attributes = (low >> 40) as u16;
        let gate = Gate {
            kind: attributes & 0x1f,
            selector: (low >> 16) as u16,
            offset: low & 0xffff | low >> 32 & 0xffff_0000 | high << 32,
            stack_table: if size == 16 { (low >> 32) as u8 & 7 } else { 0 },
            wide: size == 16,
        };
        let dpl = (attributes >> 5) as u8 & 3;
        let barred = event.source == Source::Software && dpl < self.cpl;
        if !matches!(gate.kind, INTERRUPT_GATE | TRAP_GATE) || barred {
            return Err(self.general_protection(code));
        }
        if attributes & attribute::PRESENT == 0 {
            return Err(self.raise(vector::NP, Some(code)));
        }
        Ok(gate)
    }

    /// Reads and checks the code segment a gate leads to; also the privilege level of the handler.
    fn gate_code_segment(&mut self, event: Event, gate: &Gate, bus: &mut dyn Bus) -> Result<(Segment, u8), Stop> {
        let external = event.external_bit();
        if is_null(gate.selector) {
            return Err(self.general_protection(external));
        }
        let code = error_code(gate.selector) | external;
        let mut segment = self.descriptor(gate.selector, bus)?;
        let is_code = segment.has(attribute::SEGMENT | attribute::CODE);
        let shape = !gate.wide || segment.has(attribute::LONG) && !segment.has(attribute::DEFAULT_32);
        if !is_code || !shape || segment.dpl() > self.cpl {
            return Err(self.general_protection(code));
        }
        if !segment.has(attribute::PRESENT) {
            return Err(self.raise(vector::NP, Some(code)));
        }
        let cpl = if segment.has(attribute::CONFORMING) { self.cpl } else { segment.dpl() };
        segment.selector = gate.selector & !3 | u16::from(cpl);
        segment.attributes |= attribute::ACCESSED;
        Ok((segment, cpl))
    }

    fn enter_handler(&mut self, gate: &Gate, code: Segment, cpl: u8) {
        let mut cleared = bit::TF | bit::NT | bit::RF | bit::VM;
        if gate.kind == INTERRUPT_GATE {
            cleared |= bit::IF;
        }
        self.set_rflags(self.rflags() & !cleared);
        self.rip = gate.offset;
        self.enter_code(code, cpl);
    }

    /// RFLAGS as the frame holds it: faults set RF, so that a debugger's breakpoint does not hit twice.
    fn flags_image(&self, event: Event) -> u64 {
        let fault = event.source == Source::Exception && !matches!(event.vector, vector::DB | vector::BP | vector::OF);
        self.rflags() | if fault { bit::RF } else { 0 }
    }
}

/// How exceptions combine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
}

fn class(vector: u8) -> Class {
    match vector {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::PageFault,
        _ => Class::Benign,
    }
}

/// How the frame is stored: handlers below CPL 3 have supervisor stacks.
fn stack_access(cpl: u8) -> Access {
    if cpl == 3 { Access::Write } else { Access::SystemWrite }
}
