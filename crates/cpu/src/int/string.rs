//! String instructions: MOVS, STOS, LODS, SCAS, CMPS, alone and repeated.
//!
//! A repeated instruction works in chunks that end at the next page boundary of either operand: one chunk counts as one
//! instruction, and [`Stop::Repeat`] asks for the next. Where a chunk ends depends on the registers alone, never on what the
//! TLB happens to hold, so that instruction counts are the same on every run. After each element the registers are
//! exact, so a fault leaves them at the element that faulted.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::place::{RAX, RCX, RDI, RSI};
use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op, ea};
use crate::stop::Stop;
use crate::unit::bit;
use crate::width::Width;

use memory::PAGE_BYTES;

const PAGE_OFFSET: u64 = PAGE_BYTES - 1;
/// Number of ES among the segments: the destination's, which no prefix overrides.
const ES: u8 = 0;

pub(super) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let string = |kind| {
        matches!(
            kind,
            OpKind::MemorySegSI
                | OpKind::MemorySegESI
                | OpKind::MemorySegRSI
                | OpKind::MemoryESDI
                | OpKind::MemoryESEDI
                | OpKind::MemoryESRDI
        )
    };
    // MOVSD and CMPSD are also names of SSE instructions.
    if !instruction.op_kinds().any(string) {
        return None;
    }
    let equal = instruction.has_repe_prefix();
    let unequal = instruction.has_repne_prefix();
    // For instructions that compare nothing, F2 repeats as F3 does.
    op.third = match (equal, unequal) {
        (false, false) => ONCE,
        (_, true) => WHILE_UNEQUAL,
        (true, false) => WHILE_EQUAL,
    };
    Some(match instruction.mnemonic() {
        Mnemonic::Movsb => by_repeat::<Movs<u8>>(op),
        Mnemonic::Movsw => by_repeat::<Movs<u16>>(op),
        Mnemonic::Movsd => by_repeat::<Movs<u32>>(op),
        Mnemonic::Movsq => by_repeat::<Movs<u64>>(op),
        Mnemonic::Stosb => by_repeat::<Stos<u8>>(op),
        Mnemonic::Stosw => by_repeat::<Stos<u16>>(op),
        Mnemonic::Stosd => by_repeat::<Stos<u32>>(op),
        Mnemonic::Stosq => by_repeat::<Stos<u64>>(op),
        Mnemonic::Lodsb => by_repeat::<Lods<u8>>(op),
        Mnemonic::Lodsw => by_repeat::<Lods<u16>>(op),
        Mnemonic::Lodsd => by_repeat::<Lods<u32>>(op),
        Mnemonic::Lodsq => by_repeat::<Lods<u64>>(op),
        Mnemonic::Scasb => by_repeat::<Scas<u8>>(op),
        Mnemonic::Scasw => by_repeat::<Scas<u16>>(op),
        Mnemonic::Scasd => by_repeat::<Scas<u32>>(op),
        Mnemonic::Scasq => by_repeat::<Scas<u64>>(op),
        Mnemonic::Cmpsb => by_repeat::<Cmps<u8>>(op),
        Mnemonic::Cmpsw => by_repeat::<Cmps<u16>>(op),
        Mnemonic::Cmpsd => by_repeat::<Cmps<u32>>(op),
        Mnemonic::Cmpsq => by_repeat::<Cmps<u64>>(op),
        _ => return None,
    })
}

/// Values of [`Op::third`].
const ONCE: u8 = 0;
const WHILE_EQUAL: u8 = 1;
const WHILE_UNEQUAL: u8 = 2;

/// One kind of string instruction at one width.
trait Kind {
    type Width: Width;
    /// Whether RSI advances.
    const SOURCE: bool;
    /// Whether RDI advances.
    const DESTINATION: bool;
    /// Whether REPE and REPNE look at ZF.
    const COMPARES: bool;

    /// The work on one element, without advancing.
    fn element(cpu: &mut Cpu, at: &Addresses, bus: &mut dyn Bus) -> Result<(), Stop>;

    /// Does `count` elements that lie within a page each, upwards, at once; false when they cannot be done so.
    fn bulk(_cpu: &mut Cpu, _at: &Addresses, _count: u64) -> bool {
        false
    }
}

/// Linear addresses of the current elements.
struct Addresses {
    source: u64,
    destination: u64,
}

impl Addresses {
    #[inline(always)]
    fn of(cpu: &Cpu, op: &Op) -> Self {
        let mask = offset_mask(op);
        let destination = cpu.gpr[usize::from(RDI)] & mask;
        Self {
            source: cpu.linear_of(op, cpu.gpr[usize::from(RSI)] & mask),
            destination: if op.ea & ea::LINEAR_32 == 0 {
                destination
            } else {
                cpu.system.segment_base(ES).wrapping_add(destination) & 0xffff_ffff
            },
        }
    }
}

struct Movs<W>(std::marker::PhantomData<W>);
struct Stos<W>(std::marker::PhantomData<W>);
struct Lods<W>(std::marker::PhantomData<W>);
struct Scas<W>(std::marker::PhantomData<W>);
struct Cmps<W>(std::marker::PhantomData<W>);

impl<W: Width> Kind for Movs<W> {
    type Width = W;
    const SOURCE: bool = true;
    const DESTINATION: bool = true;
    const COMPARES: bool = false;

    #[inline(always)]
    fn element(cpu: &mut Cpu, at: &Addresses, bus: &mut dyn Bus) -> Result<(), Stop> {
        let value: W = cpu.load(at.source, bus)?;
        cpu.store(at.destination, value, bus)
    }

    fn bulk(cpu: &mut Cpu, at: &Addresses, count: u64) -> bool {
        let (Some(from), Some(to)) = (readable(cpu, at.source), writable(cpu, at.destination)) else { return false };
        let len = count * W::BYTES;
        // When the destination starts within the source, each element must see those before it.
        let feeds_itself = from < to && to < from + len;
        !feeds_itself && cpu.ram.copy_premarked(from, to, len)
    }
}

impl<W: Width> Kind for Stos<W> {
    type Width = W;
    const SOURCE: bool = false;
    const DESTINATION: bool = true;
    const COMPARES: bool = false;

    #[inline(always)]
    fn element(cpu: &mut Cpu, at: &Addresses, bus: &mut dyn Bus) -> Result<(), Stop> {
        cpu.store(at.destination, W::read(&cpu.gpr, RAX), bus)
    }

    fn bulk(cpu: &mut Cpu, at: &Addresses, count: u64) -> bool {
        let value = W::read(&cpu.gpr, RAX);
        writable(cpu, at.destination).is_some_and(|to| cpu.ram.fill_premarked(to, value, count))
    }
}

impl<W: Width> Kind for Lods<W> {
    type Width = W;
    const SOURCE: bool = true;
    const DESTINATION: bool = false;
    const COMPARES: bool = false;

    #[inline(always)]
    fn element(cpu: &mut Cpu, at: &Addresses, bus: &mut dyn Bus) -> Result<(), Stop> {
        let value: W = cpu.load(at.source, bus)?;
        value.write(&mut cpu.gpr, RAX);
        Ok(())
    }
}

impl<W: Width> Kind for Scas<W> {
    type Width = W;
    const SOURCE: bool = false;
    const DESTINATION: bool = true;
    const COMPARES: bool = true;

    #[inline(always)]
    fn element(cpu: &mut Cpu, at: &Addresses, bus: &mut dyn Bus) -> Result<(), Stop> {
        let right: W = cpu.load(at.destination, bus)?;
        let left = W::read(&cpu.gpr, RAX);
        compare(cpu, left, right);
        Ok(())
    }
}

impl<W: Width> Kind for Cmps<W> {
    type Width = W;
    const SOURCE: bool = true;
    const DESTINATION: bool = true;
    const COMPARES: bool = true;

    #[inline(always)]
    fn element(cpu: &mut Cpu, at: &Addresses, bus: &mut dyn Bus) -> Result<(), Stop> {
        let left: W = cpu.load(at.source, bus)?;
        let right: W = cpu.load(at.destination, bus)?;
        compare(cpu, left, right);
        Ok(())
    }
}

#[inline(always)]
fn compare<W: Width>(cpu: &mut Cpu, left: W, right: W) {
    cpu.flags.set_sub(left, right, W::from_u64(left.to_u64().wrapping_sub(right.to_u64())));
}

/// Where in RAM an address lies, if the TLB knows it as readable.
fn readable(cpu: &Cpu, linear: u64) -> Option<u64> {
    let entry = cpu.tlb.entry(cpu.tlb_table, linear);
    (entry.read == linear & !PAGE_OFFSET | cpu.tlb_generation).then_some(entry.ram_offset + (linear & PAGE_OFFSET))
}

/// Where in RAM an address lies, if the TLB lets it be written without further ado.
fn writable(cpu: &Cpu, linear: u64) -> Option<u64> {
    let entry = cpu.tlb.entry(cpu.tlb_table, linear);
    (entry.write == linear & !PAGE_OFFSET | cpu.tlb_generation).then_some(entry.ram_offset + (linear & PAGE_OFFSET))
}

/// The bits of RSI, RDI and RCX that the address size uses.
#[inline(always)]
fn offset_mask(op: &Op) -> u64 {
    match op.ea & (ea::ADDRESS_32 | ea::ADDRESS_16) {
        0 => u64::MAX,
        ea::ADDRESS_32 => 0xffff_ffff,
        _ => 0xffff,
    }
}

/// Writes RSI, RDI or RCX at the width of the address size.
#[inline(always)]
fn write_register(cpu: &mut Cpu, op: &Op, slot: u8, value: u64) {
    match op.ea & (ea::ADDRESS_32 | ea::ADDRESS_16) {
        0 => value.write(&mut cpu.gpr, slot),
        ea::ADDRESS_32 => (value as u32).write(&mut cpu.gpr, slot),
        _ => (value as u16).write(&mut cpu.gpr, slot),
    }
}

/// Moves RSI and RDI on by `elements`, in the direction that DF says.
#[inline(always)]
fn advance<K: Kind>(cpu: &mut Cpu, op: &Op, elements: u64) {
    let bytes = elements * K::Width::BYTES;
    let delta = if cpu.rflags_rest & bit::DF == 0 { bytes } else { bytes.wrapping_neg() };
    if K::SOURCE {
        write_register(cpu, op, RSI, cpu.gpr[usize::from(RSI)].wrapping_add(delta));
    }
    if K::DESTINATION {
        write_register(cpu, op, RDI, cpu.gpr[usize::from(RDI)].wrapping_add(delta));
    }
}

fn by_repeat<K: Kind>(op: &Op) -> Handler {
    if op.third == ONCE { once::<K> } else { repeated::<K> }
}

fn once<K: Kind>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    K::element(cpu, &Addresses::of(cpu, op), bus)?;
    advance::<K>(cpu, op, 1);
    Ok(())
}

/// How many elements from `linear` on start in its page and, if any does, end there.
fn elements_in_page<W: Width>(linear: u64, down: bool) -> u64 {
    let in_page = linear & PAGE_OFFSET;
    if down { in_page / W::BYTES + 1 } else { ((PAGE_BYTES - in_page) / W::BYTES).max(1) }
}

/// How many elements upwards from an offset come before the offset wraps around its address size.
fn elements_before_wrap<W: Width>(offset: u64, mask: u64) -> u64 {
    ((mask - (offset & mask)) / W::BYTES).max(1)
}

/// How many elements the next chunk has: at most 4096, as each is at least a byte of one page.
fn chunk<K: Kind>(cpu: &Cpu, op: &Op, at: &Addresses, down: bool) -> u64 {
    let mask = offset_mask(op);
    let mut elements = cpu.gpr[usize::from(RCX)] & mask;
    if K::SOURCE {
        elements = elements
            .min(elements_in_page::<K::Width>(at.source, down))
            .min(elements_before_wrap::<K::Width>(cpu.gpr[usize::from(RSI)], mask));
    }
    if K::DESTINATION {
        elements = elements
            .min(elements_in_page::<K::Width>(at.destination, down))
            .min(elements_before_wrap::<K::Width>(cpu.gpr[usize::from(RDI)], mask));
    }
    elements
}

fn repeated<K: Kind>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let down = cpu.rflags_rest & bit::DF != 0;
    let mask = offset_mask(op);
    let mut at = Addresses::of(cpu, op);
    let mut left = chunk::<K>(cpu, op, &at, down);
    while left > 0 {
        // A single element may cross a page, which `bulk` does not look at.
        let done = if !down && left > 1 && K::bulk(cpu, &at, left) {
            left
        } else {
            K::element(cpu, &at, bus)?;
            1
        };
        advance::<K>(cpu, op, done);
        let count = cpu.gpr[usize::from(RCX)].wrapping_sub(done);
        write_register(cpu, op, RCX, count);
        if K::COMPARES && cpu.flags.zf() != (op.third == WHILE_EQUAL) {
            return Ok(());
        }
        left -= done;
        at = Addresses::of(cpu, op);
    }
    if cpu.gpr[usize::from(RCX)] & mask == 0 { Ok(()) } else { Err(Stop::Repeat) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_end_at_pages() {
        assert_eq!(elements_in_page::<u64>(0x1000, false), 512);
        assert_eq!(elements_in_page::<u8>(0x1fff, false), 1);
        // An element that crosses the boundary is a chunk of its own.
        assert_eq!(elements_in_page::<u64>(0x1ffc, false), 1);
        assert_eq!(elements_in_page::<u64>(0x1ff4, false), 1);
        assert_eq!(elements_in_page::<u16>(0x1ff3, false), 6);
    }

    #[test]
    fn downward_chunks_reach_the_start_of_the_page() {
        assert_eq!(elements_in_page::<u8>(0x1fff, true), 4096);
        assert_eq!(elements_in_page::<u64>(0x1000, true), 1);
        assert_eq!(elements_in_page::<u32>(0x1ffc, true), 1024);
    }

    #[test]
    fn chunks_end_before_the_offset_wraps() {
        assert_eq!(elements_before_wrap::<u16>(0xfffe, 0xffff), 1);
        assert_eq!(elements_before_wrap::<u16>(0xfff0, 0xffff), 7);
        assert_eq!(elements_before_wrap::<u8>(u64::MAX, u64::MAX), 1);
    }
}
