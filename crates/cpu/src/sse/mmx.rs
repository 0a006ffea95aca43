//! MMX: 64-bit vectors in the significands of the x87 registers.
//!
//! They are computed in the low halves of 128-bit ones. Every MMX instruction but EMMS waits for pending x87 exceptions and
//! leaves the x87 unit with TOP = 0 and no empty register (Intel SDM volume 1, section 9.5).

use std::arch::x86_64::__m128i;

use iced_x86::Code;

use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::width::Width;

use super::operand::{Memory32, Memory64, Mm, Source};
use super::vector::*;

/// RDI in [`Cpu::gpr`].
const RDI: u8 = 7;

pub(super) fn lower(code: Code, memory: bool, op: &mut Op) -> Option<Handler> {
    /// Destination and source to destination; the memory operand has the given kind.
    macro_rules! binary {
        ($memory_form:ident, $operation:expr) => {{
            let handler: Handler = if memory {
                |cpu, op, bus| binary::<$memory_form>(cpu, op, bus, |d, s| $operation(d, s))
            } else {
                |cpu, op, bus| binary::<Mm>(cpu, op, bus, |d, s| $operation(d, s))
            };
            handler
        }};
    }
    /// The destination shifted by the immediate.
    macro_rules! shift {
        ($operation:expr) => {{
            let handler: Handler = |cpu, op, _bus| shift(cpu, op, |d, count| $operation(d, count));
            handler
        }};
    }
    Some(match code {
        Code::Paddb_mm_mmm64 => binary!(Memory64, _mm_add_epi8),
        Code::Paddw_mm_mmm64 => binary!(Memory64, _mm_add_epi16),
        Code::Paddd_mm_mmm64 => binary!(Memory64, _mm_add_epi32),
        Code::Paddq_mm_mmm64 => binary!(Memory64, _mm_add_epi64),
        Code::Paddsb_mm_mmm64 => binary!(Memory64, _mm_adds_epi8),
        Code::Paddsw_mm_mmm64 => binary!(Memory64, _mm_adds_epi16),
        Code::Paddusb_mm_mmm64 => binary!(Memory64, _mm_adds_epu8),
        Code::Paddusw_mm_mmm64 => binary!(Memory64, _mm_adds_epu16),
        Code::Psubb_mm_mmm64 => binary!(Memory64, _mm_sub_epi8),
        Code::Psubw_mm_mmm64 => binary!(Memory64, _mm_sub_epi16),
        Code::Psubd_mm_mmm64 => binary!(Memory64, _mm_sub_epi32),
        Code::Psubq_mm_mmm64 => binary!(Memory64, _mm_sub_epi64),
        Code::Psubsb_mm_mmm64 => binary!(Memory64, _mm_subs_epi8),
        Code::Psubsw_mm_mmm64 => binary!(Memory64, _mm_subs_epi16),
        Code::Psubusb_mm_mmm64 => binary!(Memory64, _mm_subs_epu8),
        Code::Psubusw_mm_mmm64 => binary!(Memory64, _mm_subs_epu16),
        Code::Pmullw_mm_mmm64 => binary!(Memory64, _mm_mullo_epi16),
        Code::Pmulhw_mm_mmm64 => binary!(Memory64, _mm_mulhi_epi16),
        Code::Pmulhuw_mm_mmm64 => binary!(Memory64, _mm_mulhi_epu16),
        Code::Pmulhrsw_mm_mmm64 => binary!(Memory64, _mm_mulhrs_epi16),
        Code::Pmuludq_mm_mmm64 => binary!(Memory64, _mm_mul_epu32),
        Code::Pmaddwd_mm_mmm64 => binary!(Memory64, _mm_madd_epi16),
        Code::Pmaddubsw_mm_mmm64 => binary!(Memory64, _mm_maddubs_epi16),
        Code::Psadbw_mm_mmm64 => binary!(Memory64, _mm_sad_epu8),
        Code::Pavgb_mm_mmm64 => binary!(Memory64, _mm_avg_epu8),
        Code::Pavgw_mm_mmm64 => binary!(Memory64, _mm_avg_epu16),
        Code::Pminub_mm_mmm64 => binary!(Memory64, _mm_min_epu8),
        Code::Pminsw_mm_mmm64 => binary!(Memory64, _mm_min_epi16),
        Code::Pmaxub_mm_mmm64 => binary!(Memory64, _mm_max_epu8),
        Code::Pmaxsw_mm_mmm64 => binary!(Memory64, _mm_max_epi16),
        Code::Pcmpeqb_mm_mmm64 => binary!(Memory64, _mm_cmpeq_epi8),
        Code::Pcmpeqw_mm_mmm64 => binary!(Memory64, _mm_cmpeq_epi16),
        Code::Pcmpeqd_mm_mmm64 => binary!(Memory64, _mm_cmpeq_epi32),
        Code::Pcmpgtb_mm_mmm64 => binary!(Memory64, _mm_cmpgt_epi8),
        Code::Pcmpgtw_mm_mmm64 => binary!(Memory64, _mm_cmpgt_epi16),
        Code::Pcmpgtd_mm_mmm64 => binary!(Memory64, _mm_cmpgt_epi32),
        Code::Pand_mm_mmm64 => binary!(Memory64, _mm_and_si128),
        Code::Pandn_mm_mmm64 => binary!(Memory64, _mm_andnot_si128),
        Code::Por_mm_mmm64 => binary!(Memory64, _mm_or_si128),
        Code::Pxor_mm_mmm64 => binary!(Memory64, _mm_xor_si128),
        Code::Psignb_mm_mmm64 => binary!(Memory64, _mm_sign_epi8),
        Code::Psignw_mm_mmm64 => binary!(Memory64, _mm_sign_epi16),
        Code::Psignd_mm_mmm64 => binary!(Memory64, _mm_sign_epi32),
        Code::Psllw_mm_mmm64 => binary!(Memory64, _mm_sll_epi16),
        Code::Pslld_mm_mmm64 => binary!(Memory64, _mm_sll_epi32),
        Code::Psllq_mm_mmm64 => binary!(Memory64, _mm_sll_epi64),
        Code::Psrlw_mm_mmm64 => binary!(Memory64, _mm_srl_epi16),
        Code::Psrld_mm_mmm64 => binary!(Memory64, _mm_srl_epi32),
        Code::Psrlq_mm_mmm64 => binary!(Memory64, _mm_srl_epi64),
        Code::Psraw_mm_mmm64 => binary!(Memory64, _mm_sra_epi16),
        Code::Psrad_mm_mmm64 => binary!(Memory64, _mm_sra_epi32),
        Code::Packsswb_mm_mmm64 => binary!(Memory64, |d, s| side_by_side(d, s, |v| _mm_packs_epi16(v, v))),
        Code::Packssdw_mm_mmm64 => binary!(Memory64, |d, s| side_by_side(d, s, |v| _mm_packs_epi32(v, v))),
        Code::Packuswb_mm_mmm64 => binary!(Memory64, |d, s| side_by_side(d, s, |v| _mm_packus_epi16(v, v))),
        Code::Phaddw_mm_mmm64 => binary!(Memory64, |d, s| side_by_side(d, s, |v| _mm_hadd_epi16(v, v))),
        Code::Phaddd_mm_mmm64 => binary!(Memory64, |d, s| side_by_side(d, s, |v| _mm_hadd_epi32(v, v))),
        Code::Phaddsw_mm_mmm64 => binary!(Memory64, |d, s| side_by_side(d, s, |v| _mm_hadds_epi16(v, v))),
        Code::Phsubw_mm_mmm64 => binary!(Memory64, |d, s| side_by_side(d, s, |v| _mm_hsub_epi16(v, v))),
        Code::Phsubd_mm_mmm64 => binary!(Memory64, |d, s| side_by_side(d, s, |v| _mm_hsub_epi32(v, v))),
        Code::Phsubsw_mm_mmm64 => binary!(Memory64, |d, s| side_by_side(d, s, |v| _mm_hsubs_epi16(v, v))),
        Code::Punpcklbw_mm_mmm32 => binary!(Memory32, _mm_unpacklo_epi8),
        Code::Punpckhbw_mm_mmm64 => binary!(Memory64, |d, s| high(_mm_unpacklo_epi8(d, s))),
        Code::Punpcklwd_mm_mmm32 => binary!(Memory32, _mm_unpacklo_epi16),
        Code::Punpckhwd_mm_mmm64 => binary!(Memory64, |d, s| high(_mm_unpacklo_epi16(d, s))),
        Code::Punpckldq_mm_mmm32 => binary!(Memory32, _mm_unpacklo_epi32),
        Code::Punpckhdq_mm_mmm64 => binary!(Memory64, |d, s| high(_mm_unpacklo_epi32(d, s))),
        Code::Pabsb_mm_mmm64 => binary!(Memory64, |_, s| _mm_abs_epi8(s)),
        Code::Pabsw_mm_mmm64 => binary!(Memory64, |_, s| _mm_abs_epi16(s)),
        Code::Pabsd_mm_mmm64 => binary!(Memory64, |_, s| _mm_abs_epi32(s)),
        Code::Psllw_mm_imm8 => shift!(_mm_sll_epi16),
        Code::Pslld_mm_imm8 => shift!(_mm_sll_epi32),
        Code::Psllq_mm_imm8 => shift!(_mm_sll_epi64),
        Code::Psrlw_mm_imm8 => shift!(_mm_srl_epi16),
        Code::Psrld_mm_imm8 => shift!(_mm_srl_epi32),
        Code::Psrlq_mm_imm8 => shift!(_mm_srl_epi64),
        Code::Psraw_mm_imm8 => shift!(_mm_sra_epi16),
        Code::Psrad_mm_imm8 => shift!(_mm_sra_epi32),
        Code::Pshufb_mm_mmm64 => {
            binary!(Memory64, |d, s| _mm_shuffle_epi8(d, _mm_and_si128(s, _mm_set1_epi8(0x87u8 as i8))))
        }
        Code::Movq_mm_mmm64 if memory => load::<Memory64>,
        Code::Movq_mm_mmm64 | Code::Movq_mmm64_mm if !memory => load::<Mm>,
        Code::Movd_mm_rm32 if memory => load::<Memory32>,
        Code::Movq_mm_rm64 if memory => load::<Memory64>,
        Code::Movd_mm_rm32 => from_general::<u32>,
        Code::Movq_mm_rm64 => from_general::<u64>,
        Code::Movd_rm32_mm if memory => store::<u32>,
        Code::Movq_rm64_mm | Code::Movq_mmm64_mm | Code::Movntq_m64_mm if memory => store::<u64>,
        Code::Movd_rm32_mm => |cpu, op, _bus| to_general(cpu, op, |s, _| low(s) & 0xffff_ffff),
        Code::Movq_rm64_mm => |cpu, op, _bus| to_general(cpu, op, |s, _| low(s)),
        Code::Pmovmskb_r32_mm | Code::Pmovmskb_r64_mm => {
            |cpu, op, _bus| to_general(cpu, op, |s, _| _mm_movemask_epi8(s) as u64 & 0xff)
        }
        Code::Pextrw_r32_mm_imm8 | Code::Pextrw_r64_mm_imm8 => {
            |cpu, op, _bus| to_general(cpu, op, |s, imm| low(s) >> ((imm & 3) * 16) & 0xffff)
        }
        Code::Pinsrw_mm_r32m16_imm8 | Code::Pinsrw_mm_r64m16_imm8 => {
            if memory {
                insert_word::<true>
            } else {
                insert_word::<false>
            }
        }
        Code::Pshufw_mm_mmm64_imm8 => {
            if memory {
                shuffle_words::<Memory64>
            } else {
                shuffle_words::<Mm>
            }
        }
        Code::Palignr_mm_mmm64_imm8 => {
            if memory {
                align::<Memory64>
            } else {
                align::<Mm>
            }
        }
        Code::Maskmovq_rDI_mm_mm => {
            op.base = RDI;
            masked_store
        }
        Code::Movq2dq_xmm_mm => to_xmm,
        Code::Movdq2q_mm_xmm => from_xmm,
        Code::Emms => empty,
        _ => return None,
    })
}

#[inline(always)]
fn binary<S: Source>(
    cpu: &mut Cpu,
    op: &Op,
    bus: &mut dyn Bus,
    operation: impl Fn(__m128i, __m128i) -> __m128i,
) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let source = S::read(cpu, op, bus)?;
    let result = operation(cpu.mm(op.dst), source);
    cpu.set_mm(op.dst, result);
    Ok(())
}

#[inline(always)]
fn shift(cpu: &mut Cpu, op: &Op, operation: impl Fn(__m128i, __m128i) -> __m128i) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let result = operation(cpu.mm(op.dst), from_low(op.imm));
    cpu.set_mm(op.dst, result);
    Ok(())
}

/// Applies a 128-bit operation to the destination (low half) and the source (high half).
fn side_by_side(destination: __m128i, source: __m128i, operation: impl Fn(__m128i) -> __m128i) -> __m128i {
    operation(_mm_unpacklo_epi64(destination, source))
}

/// The high half, moved down.
fn high(value: __m128i) -> __m128i {
    _mm_unpackhi_epi64(value, value)
}

fn load<S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let value = S::read(cpu, op, bus)?;
    cpu.set_mm(op.dst, value);
    Ok(())
}

fn store<W: Width>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    cpu.store_operand(op, W::from_u64(low(cpu.mm(op.src))), bus)?;
    cpu.x87.enter_mmx();
    Ok(())
}

fn from_general<W: Width>(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let value = from_low(W::read(&cpu.gpr, op.src).to_u64());
    cpu.set_mm(op.dst, value);
    Ok(())
}

#[inline(always)]
fn to_general(cpu: &mut Cpu, op: &Op, operation: impl Fn(__m128i, u64) -> u64) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    operation(cpu.mm(op.src), op.imm).write(&mut cpu.gpr, op.dst);
    cpu.x87.enter_mmx();
    Ok(())
}

fn insert_word<const MEMORY: bool>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let word = if MEMORY { cpu.load_operand(op, bus)? } else { u16::read(&cpu.gpr, op.src) };
    let shift = (op.imm & 3) * 16;
    let value = low(cpu.mm(op.dst)) & !(0xffff << shift) | u64::from(word) << shift;
    cpu.set_mm(op.dst, from_low(value));
    Ok(())
}

fn shuffle_words<S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let source = low(S::read(cpu, op, bus)?);
    let word = |n: u64| (source >> ((op.imm >> (n * 2) & 3) * 16) & 0xffff) << (n * 16);
    cpu.set_mm(op.dst, from_low(word(0) | word(1) | word(2) | word(3)));
    Ok(())
}

fn align<S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let source = S::read(cpu, op, bus)?;
    let joined = bits(_mm_unpacklo_epi64(source, cpu.mm(op.dst)));
    let shifted = if op.imm < 16 { joined >> (op.imm * 8) } else { 0 };
    cpu.set_mm(op.dst, from_low(shifted as u64));
    Ok(())
}

fn masked_store(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let mask = _mm_movemask_epi8(cpu.mm(op.third)) as u32 & 0xff;
    let data = bits(cpu.mm(op.src));
    cpu.store_masked(op, mask, data, bus)?;
    cpu.x87.enter_mmx();
    Ok(())
}

fn to_xmm(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let value = cpu.mm(op.src);
    cpu.sse.set(op.dst, value);
    cpu.x87.enter_mmx();
    Ok(())
}

fn from_xmm(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let value = cpu.sse.get(op.src);
    cpu.set_mm(op.dst, value);
    Ok(())
}

/// EMMS: every register is empty. TOP becomes 0 as with the other instructions, though the manual does not say so.
fn empty(cpu: &mut Cpu, _op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    cpu.x87.enter_mmx();
    cpu.x87.valid = 0;
    Ok(())
}
