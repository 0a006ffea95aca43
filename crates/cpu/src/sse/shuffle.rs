//! Shuffles, blends, insertions and extractions: what takes its order from an immediate or a mask.
//!
//! An order is turned into a control for PSHUFB (or a blend mask) once, at lowering, as far as it fits in the op's 64-bit
//! immediate, rather than by a handler for each of 256 immediates.

use std::arch::x86_64::__m128i;

use iced_x86::Code;

use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::width::Width;

use super::operand::{Aligned, Memory32, Source, Xmm};
use super::vector::*;

pub(super) fn lower(code: Code, memory: bool, op: &mut Op) -> Option<Handler> {
    /// Destination, source and the op's immediate to destination; the memory operand has the given kind.
    macro_rules! binary {
        ($memory_form:ident, $operation:expr) => {{
            let handler: Handler = if memory {
                |cpu, op, bus| binary::<$memory_form>(cpu, op, bus, |d, s, imm| $operation(d, s, imm))
            } else {
                |cpu, op, bus| binary::<Xmm>(cpu, op, bus, |d, s, imm| $operation(d, s, imm))
            };
            handler
        }};
    }
    /// A blend by the sign bits of XMM0, which `$mask` spreads over the elements.
    macro_rules! blend_by_xmm0 {
        ($mask:expr) => {{
            let handler: Handler = if memory {
                |cpu, op, bus| blend_by_xmm0::<Aligned>(cpu, op, bus, |signs| $mask(signs))
            } else {
                |cpu, op, bus| blend_by_xmm0::<Xmm>(cpu, op, bus, |signs| $mask(signs))
            };
            handler
        }};
    }
    /// The register and the memory form of an insertion of a general register or memory.
    macro_rules! insert {
        ($width:ident) => {
            if memory { insert::<$width, true> } else { insert::<$width, false> }
        };
    }
    /// The register and the memory form of an extraction.
    macro_rules! extract {
        ($width:ident) => {
            if memory { extract::<$width, true> } else { extract::<$width, false> }
        };
    }
    let imm = op.imm;
    Some(match code {
        Code::Unpcklps_xmm_xmmm128 => binary!(Aligned, |d, s, _| _mm_unpacklo_epi32(d, s)),
        Code::Unpckhps_xmm_xmmm128 => binary!(Aligned, |d, s, _| _mm_unpackhi_epi32(d, s)),
        Code::Unpcklpd_xmm_xmmm128 => binary!(Aligned, |d, s, _| _mm_unpacklo_epi64(d, s)),
        Code::Unpckhpd_xmm_xmmm128 => binary!(Aligned, |d, s, _| _mm_unpackhi_epi64(d, s)),
        Code::Pshufd_xmm_xmmm128_imm8 => {
            op.imm = order_of_four(imm).fold_bytes(|element| element * 4);
            binary!(Aligned, |_, s, imm| _mm_shuffle_epi8(s, doubleword_control(imm)))
        }
        Code::Pshuflw_xmm_xmmm128_imm8 => {
            op.imm = word_control(imm, 0);
            binary!(Aligned, |_, s, imm| {
                let numbers = byte_numbers();
                let high = _mm_unpackhi_epi64(numbers, numbers);
                _mm_shuffle_epi8(s, _mm_unpacklo_epi64(from_low(imm), high))
            })
        }
        Code::Pshufhw_xmm_xmmm128_imm8 => {
            op.imm = word_control(imm, 8);
            binary!(Aligned, |_, s, imm| { _mm_shuffle_epi8(s, _mm_unpacklo_epi64(byte_numbers(), from_low(imm))) })
        }
        Code::Shufps_xmm_xmmm128_imm8 => {
            op.imm = order_of_four(imm).fold_bytes(|element| element * 4);
            binary!(Aligned, shuffle_two)
        }
        Code::Shufpd_xmm_xmmm128_imm8 => {
            let (first, second) = (imm & 1, imm >> 1 & 1);
            op.imm = [first * 2, first * 2 + 1, second * 2, second * 2 + 1].fold_bytes(|element| element * 4);
            binary!(Aligned, shuffle_two)
        }
        Code::Pblendw_xmm_xmmm128_imm8 => {
            op.imm = blend_mask(|word| imm >> word & 1);
            binary!(Aligned, blend)
        }
        Code::Blendps_xmm_xmmm128_imm8 => {
            op.imm = blend_mask(|word| imm >> (word / 2) & 1);
            binary!(Aligned, blend)
        }
        Code::Blendpd_xmm_xmmm128_imm8 => {
            op.imm = blend_mask(|word| imm >> (word / 4) & 1);
            binary!(Aligned, blend)
        }
        Code::Pblendvb_xmm_xmmm128 => blend_by_xmm0!(|signs| signs),
        Code::Blendvps_xmm_xmmm128 => blend_by_xmm0!(|signs| _mm_sra_epi32(signs, from_low(31))),
        Code::Blendvpd_xmm_xmmm128 => {
            blend_by_xmm0!(|signs| _mm_sra_epi32(_mm_shuffle_epi32::<0b11_11_01_01>(signs), from_low(31)))
        }
        Code::Palignr_xmm_xmmm128_imm8 => {
            op.imm = imm.min(32) * 0x0101_0101_0101_0101;
            binary!(Aligned, align)
        }
        Code::Insertps_xmm_xmmm32_imm8 => {
            if memory {
                // The source element is what memory holds, whatever the immediate says.
                op.imm &= 0x3f;
            }
            binary!(Memory32, insert_single)
        }
        Code::Mpsadbw_xmm_xmmm128_imm8 => binary!(Aligned, |d, s, imm| match imm & 7 {
            0 => _mm_mpsadbw_epu8::<0>(d, s),
            1 => _mm_mpsadbw_epu8::<1>(d, s),
            2 => _mm_mpsadbw_epu8::<2>(d, s),
            3 => _mm_mpsadbw_epu8::<3>(d, s),
            4 => _mm_mpsadbw_epu8::<4>(d, s),
            5 => _mm_mpsadbw_epu8::<5>(d, s),
            6 => _mm_mpsadbw_epu8::<6>(d, s),
            _ => _mm_mpsadbw_epu8::<7>(d, s),
        }),
        Code::Pinsrb_xmm_r32m8_imm8 | Code::Pinsrb_xmm_r64m8_imm8 => insert!(u8),
        Code::Pinsrw_xmm_r32m16_imm8 | Code::Pinsrw_xmm_r64m16_imm8 => insert!(u16),
        Code::Pinsrd_xmm_rm32_imm8 => insert!(u32),
        Code::Pinsrq_xmm_rm64_imm8 => insert!(u64),
        Code::Pextrb_r32m8_xmm_imm8 | Code::Pextrb_r64m8_xmm_imm8 => extract!(u8),
        Code::Pextrw_r32_xmm_imm8
        | Code::Pextrw_r64_xmm_imm8
        | Code::Pextrw_r32m16_xmm_imm8
        | Code::Pextrw_r64m16_xmm_imm8 => extract!(u16),
        Code::Pextrd_rm32_xmm_imm8 | Code::Extractps_rm32_xmm_imm8 | Code::Extractps_r64m32_xmm_imm8 => extract!(u32),
        Code::Pextrq_rm64_xmm_imm8 => extract!(u64),
        _ => return None,
    })
}

#[inline(always)]
fn binary<S: Source>(
    cpu: &mut Cpu,
    op: &Op,
    bus: &mut dyn Bus,
    operation: impl Fn(__m128i, __m128i, u64) -> __m128i,
) -> Result<(), Stop> {
    let source = S::read(cpu, op, bus)?;
    let result = operation(cpu.sse.get(op.dst), source, op.imm);
    cpu.sse.set(op.dst, result);
    Ok(())
}

#[inline(always)]
fn blend_by_xmm0<S: Source>(
    cpu: &mut Cpu,
    op: &Op,
    bus: &mut dyn Bus,
    mask: impl Fn(__m128i) -> __m128i,
) -> Result<(), Stop> {
    let source = S::read(cpu, op, bus)?;
    let result = _mm_blendv_epi8(cpu.sse.get(op.dst), source, mask(cpu.sse.get(0)));
    cpu.sse.set(op.dst, result);
    Ok(())
}

/// The four two-bit fields of an immediate.
fn order_of_four(imm: u64) -> [u64; 4] {
    [imm & 3, imm >> 2 & 3, imm >> 4 & 3, imm >> 6 & 3]
}

trait FoldBytes {
    /// One byte from each element, the first lowest.
    fn fold_bytes(self, byte: impl Fn(u64) -> u64) -> u64;
}

impl<const N: usize> FoldBytes for [u64; N] {
    fn fold_bytes(self, byte: impl Fn(u64) -> u64) -> u64 {
        self.iter().rev().fold(0, |bytes, &element| bytes << 8 | byte(element))
    }
}

/// The PSHUFB control of 8 bytes that orders the four words from byte `offset` on.
fn word_control(imm: u64, offset: u64) -> u64 {
    let [a, b, c, d] = order_of_four(imm).map(|word| offset + word * 2);
    [a, a + 1, b, b + 1, c, c + 1, d, d + 1].fold_bytes(|byte| byte)
}

/// A byte for each of eight words: all ones where `chosen` is 1.
fn blend_mask(chosen: impl Fn(u64) -> u64) -> u64 {
    [0, 1, 2, 3, 4, 5, 6, 7].fold_bytes(|word| chosen(word) * 0xff)
}

/// The PSHUFB control from four bytes that hold the first source byte of each doubleword.
#[inline(always)]
fn doubleword_control(first_bytes: u64) -> __m128i {
    let spread = _mm_shuffle_epi8(from_low(first_bytes), vector(0x0303_0303_0202_0202_0101_0101_0000_0000));
    _mm_add_epi8(spread, vector(0x0302_0100_0302_0100_0302_0100_0302_0100))
}

/// SHUFPS: two elements of the destination, then two of the source.
#[inline(always)]
fn shuffle_two(destination: __m128i, source: __m128i, imm: u64) -> __m128i {
    let control = doubleword_control(imm);
    _mm_blend_epi16::<0xf0>(_mm_shuffle_epi8(destination, control), _mm_shuffle_epi8(source, control))
}

#[inline(always)]
fn blend(destination: __m128i, source: __m128i, imm: u64) -> __m128i {
    let mask = from_low(imm);
    _mm_blendv_epi8(destination, source, _mm_unpacklo_epi8(mask, mask))
}

/// PALIGNR by the count in every byte of `imm`, at most 32. Controls with bit 7 set yield zero: adding 0x70 makes it so for
/// positions of 16 and more, and what is below zero has it set already.
#[inline(always)]
fn align(destination: __m128i, source: __m128i, imm: u64) -> __m128i {
    let past_end = _mm_set1_epi8(0x70);
    let count = from_low(imm);
    let from_source = _mm_add_epi8(byte_numbers(), _mm_unpacklo_epi64(count, count));
    let from_destination = _mm_sub_epi8(from_source, _mm_set1_epi8(16));
    _mm_or_si128(
        _mm_shuffle_epi8(source, _mm_adds_epu8(from_source, past_end)),
        _mm_shuffle_epi8(destination, _mm_adds_epu8(from_destination, past_end)),
    )
}

fn insert_single(destination: __m128i, source: __m128i, imm: u64) -> __m128i {
    let element = bits(source) >> ((imm >> 6 & 3) * 32) & 0xffff_ffff;
    let position = (imm >> 4 & 3) * 32;
    let inserted = bits(destination) & !(0xffff_ffff << position) | element << position;
    let zeroed = (0..4).filter(|n| imm >> n & 1 == 1).fold(0, |mask, n| mask | 0xffff_ffffu128 << (n * 32));
    vector(inserted & !zeroed)
}

/// Bit position of the element of width `W` that an immediate selects.
fn position<W: Width>(imm: u64) -> u64 {
    imm % (16 / W::BYTES) * u64::from(W::BITS)
}

fn insert<W: Width, const MEMORY: bool>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let element = if MEMORY { cpu.load_operand::<W>(op, bus)? } else { W::read(&cpu.gpr, op.src) };
    let position = position::<W>(op.imm);
    let ones = u128::MAX >> (128 - W::BITS) << position;
    let value = bits(cpu.sse.get(op.dst)) & !ones | u128::from(element.to_u64()) << position;
    cpu.sse.set(op.dst, vector(value));
    Ok(())
}

fn extract<W: Width, const MEMORY: bool>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let element = W::from_u64((bits(cpu.sse.get(op.src)) >> position::<W>(op.imm)) as u64);
    if MEMORY {
        return cpu.store_operand(op, element, bus);
    }
    element.to_u64().write(&mut cpu.gpr, op.dst);
    Ok(())
}
