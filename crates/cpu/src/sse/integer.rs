//! Integer operations of XMM registers that need no immediate, and shifts.

use std::arch::x86_64::__m128i;

use iced_x86::Code;

use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::unit::bit;

use super::operand::{Aligned, Memory16, Memory32, Memory64, Source, Xmm};
use super::vector::*;

pub(super) fn lower(code: Code, memory: bool) -> Option<Handler> {
    /// Destination and source to destination; the memory operand has the given kind.
    macro_rules! binary {
        ($memory_form:ident, $operation:expr) => {{
            let handler: Handler = if memory {
                |cpu, op, bus| binary::<$memory_form>(cpu, op, bus, |d, s| $operation(d, s))
            } else {
                |cpu, op, bus| binary::<Xmm>(cpu, op, bus, |d, s| $operation(d, s))
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
        Code::Paddb_xmm_xmmm128 => binary!(Aligned, _mm_add_epi8),
        Code::Paddw_xmm_xmmm128 => binary!(Aligned, _mm_add_epi16),
        Code::Paddd_xmm_xmmm128 => binary!(Aligned, _mm_add_epi32),
        Code::Paddq_xmm_xmmm128 => binary!(Aligned, _mm_add_epi64),
        Code::Paddsb_xmm_xmmm128 => binary!(Aligned, _mm_adds_epi8),
        Code::Paddsw_xmm_xmmm128 => binary!(Aligned, _mm_adds_epi16),
        Code::Paddusb_xmm_xmmm128 => binary!(Aligned, _mm_adds_epu8),
        Code::Paddusw_xmm_xmmm128 => binary!(Aligned, _mm_adds_epu16),
        Code::Psubb_xmm_xmmm128 => binary!(Aligned, _mm_sub_epi8),
        Code::Psubw_xmm_xmmm128 => binary!(Aligned, _mm_sub_epi16),
        Code::Psubd_xmm_xmmm128 => binary!(Aligned, _mm_sub_epi32),
        Code::Psubq_xmm_xmmm128 => binary!(Aligned, _mm_sub_epi64),
        Code::Psubsb_xmm_xmmm128 => binary!(Aligned, _mm_subs_epi8),
        Code::Psubsw_xmm_xmmm128 => binary!(Aligned, _mm_subs_epi16),
        Code::Psubusb_xmm_xmmm128 => binary!(Aligned, _mm_subs_epu8),
        Code::Psubusw_xmm_xmmm128 => binary!(Aligned, _mm_subs_epu16),
        Code::Pmullw_xmm_xmmm128 => binary!(Aligned, _mm_mullo_epi16),
        Code::Pmulhw_xmm_xmmm128 => binary!(Aligned, _mm_mulhi_epi16),
        Code::Pmulhuw_xmm_xmmm128 => binary!(Aligned, _mm_mulhi_epu16),
        Code::Pmulhrsw_xmm_xmmm128 => binary!(Aligned, _mm_mulhrs_epi16),
        Code::Pmuludq_xmm_xmmm128 => binary!(Aligned, _mm_mul_epu32),
        Code::Pmaddwd_xmm_xmmm128 => binary!(Aligned, _mm_madd_epi16),
        Code::Pmaddubsw_xmm_xmmm128 => binary!(Aligned, _mm_maddubs_epi16),
        Code::Psadbw_xmm_xmmm128 => binary!(Aligned, _mm_sad_epu8),
        Code::Pavgb_xmm_xmmm128 => binary!(Aligned, _mm_avg_epu8),
        Code::Pavgw_xmm_xmmm128 => binary!(Aligned, _mm_avg_epu16),
        Code::Pminub_xmm_xmmm128 => binary!(Aligned, _mm_min_epu8),
        Code::Pminsw_xmm_xmmm128 => binary!(Aligned, _mm_min_epi16),
        Code::Pmaxub_xmm_xmmm128 => binary!(Aligned, _mm_max_epu8),
        Code::Pmaxsw_xmm_xmmm128 => binary!(Aligned, _mm_max_epi16),
        Code::Pcmpeqb_xmm_xmmm128 => binary!(Aligned, _mm_cmpeq_epi8),
        Code::Pcmpeqw_xmm_xmmm128 => binary!(Aligned, _mm_cmpeq_epi16),
        Code::Pcmpeqd_xmm_xmmm128 => binary!(Aligned, _mm_cmpeq_epi32),
        Code::Pcmpgtb_xmm_xmmm128 => binary!(Aligned, _mm_cmpgt_epi8),
        Code::Pcmpgtw_xmm_xmmm128 => binary!(Aligned, _mm_cmpgt_epi16),
        Code::Pcmpgtd_xmm_xmmm128 => binary!(Aligned, _mm_cmpgt_epi32),
        Code::Pand_xmm_xmmm128 => binary!(Aligned, _mm_and_si128),
        Code::Pandn_xmm_xmmm128 => binary!(Aligned, _mm_andnot_si128),
        Code::Por_xmm_xmmm128 => binary!(Aligned, _mm_or_si128),
        Code::Pxor_xmm_xmmm128 => binary!(Aligned, _mm_xor_si128),
        Code::Psignb_xmm_xmmm128 => binary!(Aligned, _mm_sign_epi8),
        Code::Psignw_xmm_xmmm128 => binary!(Aligned, _mm_sign_epi16),
        Code::Psignd_xmm_xmmm128 => binary!(Aligned, _mm_sign_epi32),
        Code::Psllw_xmm_xmmm128 => binary!(Aligned, _mm_sll_epi16),
        Code::Pslld_xmm_xmmm128 => binary!(Aligned, _mm_sll_epi32),
        Code::Psllq_xmm_xmmm128 => binary!(Aligned, _mm_sll_epi64),
        Code::Psrlw_xmm_xmmm128 => binary!(Aligned, _mm_srl_epi16),
        Code::Psrld_xmm_xmmm128 => binary!(Aligned, _mm_srl_epi32),
        Code::Psrlq_xmm_xmmm128 => binary!(Aligned, _mm_srl_epi64),
        Code::Psraw_xmm_xmmm128 => binary!(Aligned, _mm_sra_epi16),
        Code::Psrad_xmm_xmmm128 => binary!(Aligned, _mm_sra_epi32),
        Code::Pminsb_xmm_xmmm128 => binary!(Aligned, _mm_min_epi8),
        Code::Pminuw_xmm_xmmm128 => binary!(Aligned, _mm_min_epu16),
        Code::Pminsd_xmm_xmmm128 => binary!(Aligned, _mm_min_epi32),
        Code::Pminud_xmm_xmmm128 => binary!(Aligned, _mm_min_epu32),
        Code::Pmaxsb_xmm_xmmm128 => binary!(Aligned, _mm_max_epi8),
        Code::Pmaxuw_xmm_xmmm128 => binary!(Aligned, _mm_max_epu16),
        Code::Pmaxsd_xmm_xmmm128 => binary!(Aligned, _mm_max_epi32),
        Code::Pmaxud_xmm_xmmm128 => binary!(Aligned, _mm_max_epu32),
        Code::Pmulld_xmm_xmmm128 => binary!(Aligned, _mm_mullo_epi32),
        Code::Pmuldq_xmm_xmmm128 => binary!(Aligned, _mm_mul_epi32),
        Code::Pcmpeqq_xmm_xmmm128 => binary!(Aligned, _mm_cmpeq_epi64),
        Code::Pcmpgtq_xmm_xmmm128 => binary!(Aligned, _mm_cmpgt_epi64),
        Code::Packusdw_xmm_xmmm128 => binary!(Aligned, _mm_packus_epi32),
        Code::Punpcklqdq_xmm_xmmm128 => binary!(Aligned, _mm_unpacklo_epi64),
        Code::Punpckhqdq_xmm_xmmm128 => binary!(Aligned, _mm_unpackhi_epi64),
        Code::Pshufb_xmm_xmmm128 => binary!(Aligned, _mm_shuffle_epi8),
        Code::Packsswb_xmm_xmmm128 => binary!(Aligned, _mm_packs_epi16),
        Code::Packssdw_xmm_xmmm128 => binary!(Aligned, _mm_packs_epi32),
        Code::Packuswb_xmm_xmmm128 => binary!(Aligned, _mm_packus_epi16),
        Code::Phaddw_xmm_xmmm128 => binary!(Aligned, _mm_hadd_epi16),
        Code::Phaddd_xmm_xmmm128 => binary!(Aligned, _mm_hadd_epi32),
        Code::Phaddsw_xmm_xmmm128 => binary!(Aligned, _mm_hadds_epi16),
        Code::Phsubw_xmm_xmmm128 => binary!(Aligned, _mm_hsub_epi16),
        Code::Phsubd_xmm_xmmm128 => binary!(Aligned, _mm_hsub_epi32),
        Code::Phsubsw_xmm_xmmm128 => binary!(Aligned, _mm_hsubs_epi16),
        Code::Punpcklbw_xmm_xmmm128 => binary!(Aligned, _mm_unpacklo_epi8),
        Code::Punpckhbw_xmm_xmmm128 => binary!(Aligned, _mm_unpackhi_epi8),
        Code::Punpcklwd_xmm_xmmm128 => binary!(Aligned, _mm_unpacklo_epi16),
        Code::Punpckhwd_xmm_xmmm128 => binary!(Aligned, _mm_unpackhi_epi16),
        Code::Punpckldq_xmm_xmmm128 => binary!(Aligned, _mm_unpacklo_epi32),
        Code::Punpckhdq_xmm_xmmm128 => binary!(Aligned, _mm_unpackhi_epi32),
        Code::Andps_xmm_xmmm128 | Code::Andpd_xmm_xmmm128 => binary!(Aligned, _mm_and_si128),
        Code::Andnps_xmm_xmmm128 | Code::Andnpd_xmm_xmmm128 => binary!(Aligned, _mm_andnot_si128),
        Code::Orps_xmm_xmmm128 | Code::Orpd_xmm_xmmm128 => binary!(Aligned, _mm_or_si128),
        Code::Xorps_xmm_xmmm128 | Code::Xorpd_xmm_xmmm128 => binary!(Aligned, _mm_xor_si128),
        Code::Pabsb_xmm_xmmm128 => binary!(Aligned, |_, s| _mm_abs_epi8(s)),
        Code::Pabsw_xmm_xmmm128 => binary!(Aligned, |_, s| _mm_abs_epi16(s)),
        Code::Pabsd_xmm_xmmm128 => binary!(Aligned, |_, s| _mm_abs_epi32(s)),
        Code::Pmovsxbw_xmm_xmmm64 => binary!(Memory64, |_, s| _mm_cvtepi8_epi16(s)),
        Code::Pmovsxbd_xmm_xmmm32 => binary!(Memory32, |_, s| _mm_cvtepi8_epi32(s)),
        Code::Pmovsxbq_xmm_xmmm16 => binary!(Memory16, |_, s| _mm_cvtepi8_epi64(s)),
        Code::Pmovsxwd_xmm_xmmm64 => binary!(Memory64, |_, s| _mm_cvtepi16_epi32(s)),
        Code::Pmovsxwq_xmm_xmmm32 => binary!(Memory32, |_, s| _mm_cvtepi16_epi64(s)),
        Code::Pmovsxdq_xmm_xmmm64 => binary!(Memory64, |_, s| _mm_cvtepi32_epi64(s)),
        Code::Pmovzxbw_xmm_xmmm64 => binary!(Memory64, |_, s| _mm_cvtepu8_epi16(s)),
        Code::Pmovzxbd_xmm_xmmm32 => binary!(Memory32, |_, s| _mm_cvtepu8_epi32(s)),
        Code::Pmovzxbq_xmm_xmmm16 => binary!(Memory16, |_, s| _mm_cvtepu8_epi64(s)),
        Code::Pmovzxwd_xmm_xmmm64 => binary!(Memory64, |_, s| _mm_cvtepu16_epi32(s)),
        Code::Pmovzxwq_xmm_xmmm32 => binary!(Memory32, |_, s| _mm_cvtepu16_epi64(s)),
        Code::Pmovzxdq_xmm_xmmm64 => binary!(Memory64, |_, s| _mm_cvtepu32_epi64(s)),
        Code::Phminposuw_xmm_xmmm128 => binary!(Aligned, |_, s| _mm_minpos_epu16(s)),
        Code::Psllw_xmm_imm8 => shift!(_mm_sll_epi16),
        Code::Pslld_xmm_imm8 => shift!(_mm_sll_epi32),
        Code::Psllq_xmm_imm8 => shift!(_mm_sll_epi64),
        Code::Psrlw_xmm_imm8 => shift!(_mm_srl_epi16),
        Code::Psrld_xmm_imm8 => shift!(_mm_srl_epi32),
        Code::Psrlq_xmm_imm8 => shift!(_mm_srl_epi64),
        Code::Psraw_xmm_imm8 => shift!(_mm_sra_epi16),
        Code::Psrad_xmm_imm8 => shift!(_mm_sra_epi32),
        Code::Pslldq_xmm_imm8 => shift!(shift_bytes_left),
        Code::Psrldq_xmm_imm8 => shift!(shift_bytes_right),
        Code::Ptest_xmm_xmmm128 => {
            if memory {
                test::<Aligned>
            } else {
                test::<Xmm>
            }
        }
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
    let source = S::read(cpu, op, bus)?;
    let result = operation(cpu.sse.get(op.dst), source);
    cpu.sse.set(op.dst, result);
    Ok(())
}

#[inline(always)]
fn shift(cpu: &mut Cpu, op: &Op, operation: impl Fn(__m128i, __m128i) -> __m128i) -> Result<(), Stop> {
    let result = operation(cpu.sse.get(op.dst), _mm_cvtsi64_si128(op.imm as i64));
    cpu.sse.set(op.dst, result);
    Ok(())
}

/// Shuffle controls with bit 7 set yield zero: so do positions below zero.
fn shift_bytes_left(value: __m128i, count: __m128i) -> __m128i {
    let count = _mm_min_epu8(broadcast_byte(count), _mm_set1_epi8(16));
    _mm_shuffle_epi8(value, _mm_sub_epi8(byte_numbers(), count))
}

/// Adding 0x70 sets bit 7 of positions past the end.
fn shift_bytes_right(value: __m128i, count: __m128i) -> __m128i {
    let count = _mm_min_epu8(broadcast_byte(count), _mm_set1_epi8(16));
    _mm_shuffle_epi8(value, _mm_add_epi8(byte_numbers(), _mm_add_epi8(count, _mm_set1_epi8(0x70))))
}

fn broadcast_byte(value: __m128i) -> __m128i {
    _mm_shuffle_epi8(value, _mm_setzero_si128())
}

/// PTEST: ZF when no bit of the source is set in the destination, CF when none is clear there.
fn test<S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let source = S::read(cpu, op, bus)?;
    let destination = cpu.sse.get(op.dst);
    let zero = _mm_testz_si128(destination, source) as u64;
    let carry = _mm_testc_si128(destination, source) as u64;
    cpu.flags.set_bits((zero * bit::ZF) | (carry * bit::CF));
    Ok(())
}
