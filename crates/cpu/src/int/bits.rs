//! Bits: BT, BTS, BTR, BTC, BSF, BSR, POPCNT, BSWAP, CRC32.

use iced_x86::{Instruction, Mnemonic};

use super::place::{Dst, Imm, Memory, Place, Shape, Source, Src, bits, by_wide_width, set_operands, shape};
use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::unit::bit;
use crate::width::Width;

pub(super) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    if !matches!(
        instruction.mnemonic(),
        Mnemonic::Bt
            | Mnemonic::Bts
            | Mnemonic::Btr
            | Mnemonic::Btc
            | Mnemonic::Bsf
            | Mnemonic::Bsr
            | Mnemonic::Tzcnt
            | Mnemonic::Lzcnt
            | Mnemonic::Popcnt
            | Mnemonic::Bswap
            | Mnemonic::Crc32
    ) {
        return None;
    }
    set_operands(instruction, op);
    let width = bits(instruction, 0);
    let register = shape(instruction, 1, op) == Shape::Register;
    Some(match instruction.mnemonic() {
        Mnemonic::Bt => lower_test::<Keep>(instruction, op),
        Mnemonic::Bts => lower_test::<Set>(instruction, op),
        Mnemonic::Btr => lower_test::<Reset>(instruction, op),
        Mnemonic::Btc => lower_test::<Complement>(instruction, op),
        // Without BMI1 and LZCNT in CPUID the F3 prefix of TZCNT and LZCNT is ignored.
        Mnemonic::Bsf | Mnemonic::Tzcnt if register => by_wide_width!(width, bsf::<_, Src>),
        Mnemonic::Bsf | Mnemonic::Tzcnt => by_wide_width!(width, bsf::<_, Memory>),
        Mnemonic::Bsr | Mnemonic::Lzcnt if register => by_wide_width!(width, bsr::<_, Src>),
        Mnemonic::Bsr | Mnemonic::Lzcnt => by_wide_width!(width, bsr::<_, Memory>),
        Mnemonic::Popcnt if register => by_wide_width!(width, popcnt::<_, Src>),
        Mnemonic::Popcnt => by_wide_width!(width, popcnt::<_, Memory>),
        Mnemonic::Bswap => by_wide_width!(width, bswap::<_>),
        Mnemonic::Crc32 => match (bits(instruction, 1), register) {
            (8, true) => crc32::<u8, Src>,
            (8, false) => crc32::<u8, Memory>,
            (16, true) => crc32::<u16, Src>,
            (16, false) => crc32::<u16, Memory>,
            (32, true) => crc32::<u32, Src>,
            (32, false) => crc32::<u32, Memory>,
            (_, true) => crc32::<u64, Src>,
            (_, false) => crc32::<u64, Memory>,
        },
        _ => return None,
    })
}

/// What happens to the tested bit.
trait BitChange {
    /// Whether it changes at all.
    const WRITES: bool = true;
    fn apply(value: u64, bit: u64) -> u64;
}

struct Keep;
struct Set;
struct Reset;
struct Complement;

impl BitChange for Keep {
    const WRITES: bool = false;

    #[inline(always)]
    fn apply(value: u64, _bit: u64) -> u64 {
        value
    }
}

impl BitChange for Set {
    #[inline(always)]
    fn apply(value: u64, bit: u64) -> u64 {
        value | bit
    }
}

impl BitChange for Reset {
    #[inline(always)]
    fn apply(value: u64, bit: u64) -> u64 {
        value & !bit
    }
}

impl BitChange for Complement {
    #[inline(always)]
    fn apply(value: u64, bit: u64) -> u64 {
        value ^ bit
    }
}

fn lower_test<C: BitChange>(instruction: &Instruction, op: &Op) -> Handler {
    let bits = bits(instruction, 0);
    match (shape(instruction, 0, op), shape(instruction, 1, op)) {
        (Shape::Register, Shape::Register) => by_wide_width!(bits, bit_test::<_, C, Dst, Src>),
        (Shape::Register, _) => by_wide_width!(bits, bit_test::<_, C, Dst, Imm>),
        (_, Shape::Register) => by_wide_width!(bits, bit_test_string::<_, C>),
        (_, _) => by_wide_width!(bits, bit_test::<_, C, Memory, Imm>),
    }
}

/// Tests and changes the bit `number` (modulo the width) of a place's value.
#[inline(always)]
fn test_in<W: Width, C: BitChange>(cpu: &mut Cpu, value: W, number: u64) -> W {
    let bit = 1 << (number & u64::from(W::BITS - 1));
    cpu.flags.set_cf_keep_others(value.to_u64() & bit != 0);
    W::from_u64(C::apply(value.to_u64(), bit))
}

fn bit_test<W: Width, C: BitChange, D: Place, S: Source>(
    cpu: &mut Cpu,
    op: &Op,
    bus: &mut dyn Bus,
) -> Result<(), Stop> {
    let number = S::get::<W>(cpu, op, bus)?.to_u64();
    if C::WRITES {
        return D::modify(cpu, op, bus, |cpu, value| test_in::<W, C>(cpu, value, number));
    }
    let value = D::get(cpu, op, bus)?;
    test_in::<W, C>(cpu, value, number);
    Ok(())
}

/// A bit string in memory: the register is a signed bit offset from the operand's address.
fn bit_test_string<W: Width, C: BitChange>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let number = W::read(&cpu.gpr, op.src).sign_extended();
    let words = number as i64 >> W::BITS.trailing_zeros();
    let at_word = Op { disp: op.disp.wrapping_add((words as u64).wrapping_mul(W::BYTES)), ..*op };
    let linear = cpu.linear(&at_word);
    if C::WRITES {
        return cpu.modify(linear, bus, |cpu, value| test_in::<W, C>(cpu, value, number));
    }
    let value: W = cpu.load(linear, bus)?;
    test_in::<W, C>(cpu, value, number);
    Ok(())
}

/// BSF: a source of zero sets ZF and leaves the destination.
fn bsf<W: Width, S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let value = S::get::<W>(cpu, op, bus)?;
    if value != W::default() {
        W::from_u64(value.to_u64().trailing_zeros().into()).write(&mut cpu.gpr, op.dst);
    }
    cpu.flags.set_result(value, false, false);
    Ok(())
}

/// BSR: as [`bsf`], from the top.
fn bsr<W: Width, S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let value = S::get::<W>(cpu, op, bus)?;
    if value != W::default() {
        W::from_u64(u64::from(63 - value.to_u64().leading_zeros())).write(&mut cpu.gpr, op.dst);
    }
    cpu.flags.set_result(value, false, false);
    Ok(())
}

fn popcnt<W: Width, S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let value = S::get::<W>(cpu, op, bus)?;
    W::from_u64(value.to_u64().count_ones().into()).write(&mut cpu.gpr, op.dst);
    cpu.flags.set_bits(if value == W::default() { bit::ZF } else { 0 });
    Ok(())
}

/// BSWAP; of 16 bits (undefined) it gives zero, as processors do.
fn bswap<W: Width>(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let value = W::read(&cpu.gpr, op.dst).to_u64();
    let swapped = match W::BITS {
        16 => 0,
        bits => value.swap_bytes() >> (64 - bits),
    };
    W::from_u64(swapped).write(&mut cpu.gpr, op.dst);
    Ok(())
}

/// CRC32 (SSE4.2): the source's bytes go through the Castagnoli polynomial into a 32-bit destination, whose upper half is
/// cleared.
fn crc32<W: Width, S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let value = S::get::<W>(cpu, op, bus)?.to_u64();
    let crc = value.to_le_bytes().iter().take(W::BYTES as usize).fold(u32::read(&cpu.gpr, op.dst), |crc, byte| {
        let index = crc as u8 ^ byte;
        crc >> 8 ^ CRC32C[usize::from(index)]
    });
    crc.write(&mut cpu.gpr, op.dst);
    Ok(())
}

/// The remainder of each byte by the Castagnoli polynomial (bit-reversed: 0x82f63b78).
static CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut remainder = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            remainder = remainder >> 1 ^ if remainder & 1 == 1 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[byte] = remainder;
        byte += 1;
    }
    table
};
