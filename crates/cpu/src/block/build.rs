//! Decoding a straight run of code.

use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction};
use memory::{GuestRam, PAGE_BYTES};

use crate::decode::{LEN_MAX, lower};
use crate::op::{Op, Site};
use crate::sys;
use crate::unit::Mode;

/// Most instructions of a block.
const OPS_MAX: usize = 64;

/// What decoding at an address gave.
pub(crate) enum Built {
    /// At least one op; the code covers this many bytes.
    Block(Vec<Op>, u16),
    /// The first instruction runs over the end of the page.
    AcrossPages,
}

/// Decodes from an offset in RAM to the end of a straight run, at most to the end of the page.
pub(crate) fn build(ram: &GuestRam, ram_offset: u64, rip: u64, mode: Mode) -> Built {
    let mut page = [0; PAGE_BYTES as usize];
    let left = PAGE_BYTES - ram_offset % PAGE_BYTES;
    let bytes = page.get_mut(..left as usize).unwrap_or_default();
    ram.read_offset(ram_offset, bytes);
    let (ops, len) = decode(bytes, rip, mode);
    if ops.is_empty() { Built::AcrossPages } else { Built::Block(ops, len) }
}

/// Decodes the one instruction that starts at the end of a page, `first`, and ends in the next, `second` (offsets in RAM).
/// `None` when it does not run over the end after all.
pub(crate) fn build_across_pages(ram: &GuestRam, first: u64, second: u64, rip: u64, mode: Mode) -> Option<Op> {
    let mut bytes = [0; 2 * LEN_MAX];
    let split = (PAGE_BYTES - first % PAGE_BYTES).min(LEN_MAX as u64) as usize;
    let (head, tail) = bytes.split_at_mut(split);
    ram.read_offset(first, head);
    let tail = tail.get_mut(..LEN_MAX).unwrap_or_default();
    ram.read_offset(second, tail);
    let (ops, _) = decode(bytes.get(..split + LEN_MAX).unwrap_or_default(), rip, mode);
    ops.first().copied()
}

fn decode(bytes: &[u8], rip: u64, mode: Mode) -> (Vec<Op>, u16) {
    let mut decoder = Decoder::with_ip(mode.code_bits().into(), bytes, rip, DecoderOptions::NONE);
    let mut ops = Vec::new();
    let mut instruction = Instruction::default();
    let mut end = 0;
    while ops.len() < OPS_MAX && decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if decoder.last_error() == DecoderError::NoMoreBytes {
            break;
        }
        let site = Site { block_rip: rip, offset: end, code_bits: mode.code_bits() };
        let mut op = lower(&instruction, site, mode);
        op.number = ops.len() as u8;
        ops.push(op);
        end = decoder.position() as u16;
        if instruction.flow_control() != FlowControl::Next || sys::ends_block(&instruction) {
            break;
        }
    }
    (ops, end)
}
