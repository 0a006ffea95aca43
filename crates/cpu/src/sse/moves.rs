//! Moves between XMM registers, general registers and memory; masks of sign bits.
//!
//! Non-temporal moves are plain ones: the guest cannot observe the difference.

use std::arch::x86_64::__m128i;

use iced_x86::Code;

use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::width::Width;

use super::operand::{Aligned, Memory32, Memory64, Source, Unaligned, Xmm};
use super::vector::*;
use crate::unit::Sse;

/// RDI in [`Cpu::gpr`].
const RDI: u8 = 7;

pub(super) fn lower(code: Code, memory: bool, op: &mut Op) -> Option<Handler> {
    /// The register and the memory form of a handler that takes a source.
    macro_rules! from {
        ($handler:ident, $memory_form:ident) => {
            if memory { $handler::<$memory_form> } else { $handler::<Xmm> }
        };
    }
    /// `from!` with an operation on the old destination and the source.
    macro_rules! merge {
        ($memory_form:ident, $operation:expr) => {{
            let handler: Handler = if memory {
                |cpu, op, bus| merge::<$memory_form>(cpu, op, bus, |d, s| $operation(d, s))
            } else {
                |cpu, op, bus| merge::<Xmm>(cpu, op, bus, |d, s| $operation(d, s))
            };
            handler
        }};
    }
    /// A value made from the register `op.src` to a general register.
    macro_rules! to_general {
        ($operation:expr) => {{
            let handler: Handler = |cpu, op, _bus| to_general(cpu, op, |s| $operation(s));
            handler
        }};
    }
    Some(match code {
        Code::Movaps_xmm_xmmm128 | Code::Movapd_xmm_xmmm128 | Code::Movdqa_xmm_xmmm128 | Code::Movntdqa_xmm_m128 => {
            from!(load, Aligned)
        }
        Code::Movups_xmm_xmmm128 | Code::Movupd_xmm_xmmm128 | Code::Movdqu_xmm_xmmm128 | Code::Lddqu_xmm_m128 => {
            from!(load, Unaligned)
        }
        Code::Movaps_xmmm128_xmm
        | Code::Movapd_xmmm128_xmm
        | Code::Movdqa_xmmm128_xmm
        | Code::Movntps_m128_xmm
        | Code::Movntpd_m128_xmm
        | Code::Movntdq_m128_xmm => {
            if memory {
                store_aligned
            } else {
                load::<Xmm>
            }
        }
        Code::Movups_xmmm128_xmm | Code::Movupd_xmmm128_xmm | Code::Movdqu_xmmm128_xmm => {
            if memory {
                store_unaligned
            } else {
                load::<Xmm>
            }
        }
        // The memory forms of MOVSS and MOVSD clear the rest of the register, the register forms keep it.
        Code::Movss_xmm_xmmm32 if memory => load::<Memory32>,
        Code::Movsd_xmm_xmmm64 if memory => load::<Memory64>,
        Code::Movss_xmmm32_xmm if memory => store_low::<u32>,
        Code::Movsd_xmmm64_xmm if memory => store_low::<u64>,
        Code::Movss_xmm_xmmm32 | Code::Movss_xmmm32_xmm => merge!(Memory32, _mm_blend_epi16::<0b11>),
        Code::Movsd_xmm_xmmm64 | Code::Movsd_xmmm64_xmm => merge!(Memory64, _mm_blend_epi16::<0b1111>),
        Code::Movq_xmmm64_xmm if memory => store_low::<u64>,
        Code::Movq_xmm_xmmm64 | Code::Movq_xmmm64_xmm => from!(load_low, Memory64),
        Code::Movd_xmm_rm32 => {
            if memory {
                load::<Memory32>
            } else {
                from_general::<u32>
            }
        }
        Code::Movq_xmm_rm64 => {
            if memory {
                load::<Memory64>
            } else {
                from_general::<u64>
            }
        }
        Code::Movd_rm32_xmm if memory => store_low::<u32>,
        Code::Movq_rm64_xmm if memory => store_low::<u64>,
        Code::Movd_rm32_xmm => to_general!(|s| low(s) & 0xffff_ffff),
        Code::Movq_rm64_xmm => to_general!(low),
        Code::Movlps_m64_xmm | Code::Movlpd_m64_xmm => store_low::<u64>,
        Code::Movhps_m64_xmm | Code::Movhpd_m64_xmm => store_high,
        Code::Movlps_xmm_m64 | Code::Movlpd_xmm_m64 => merge!(Memory64, _mm_blend_epi16::<0b1111>),
        Code::Movhps_xmm_m64 | Code::Movhpd_xmm_m64 | Code::Movlhps_xmm_xmm => merge!(Memory64, _mm_unpacklo_epi64),
        Code::Movhlps_xmm_xmm => merge!(Memory64, |d, s| _mm_unpackhi_epi64(s, d)),
        Code::Movddup_xmm_xmmm64 => merge!(Memory64, |_, s| _mm_unpacklo_epi64(s, s)),
        Code::Movsldup_xmm_xmmm128 => merge!(Aligned, |_, s| _mm_shuffle_epi32::<0b10_10_00_00>(s)),
        Code::Movshdup_xmm_xmmm128 => merge!(Aligned, |_, s| _mm_shuffle_epi32::<0b11_11_01_01>(s)),
        Code::Pmovmskb_r32_xmm | Code::Pmovmskb_r64_xmm => to_general!(|s| _mm_movemask_epi8(s) as u64),
        Code::Movmskps_r32_xmm | Code::Movmskps_r64_xmm => {
            to_general!(|s| movemask_epi32(s) as u64)
        }
        Code::Movmskpd_r32_xmm | Code::Movmskpd_r64_xmm => {
            to_general!(|s| movemask_epi64(s) as u64)
        }
        Code::Maskmovdqu_rDI_xmm_xmm => {
            op.base = RDI;
            masked_store
        }
        Code::Ldmxcsr_m32 => load_mxcsr,
        Code::Stmxcsr_m32 => store_mxcsr,
        _ => return None,
    })
}

fn load<S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let value = S::read(cpu, op, bus)?;
    cpu.sse.set(op.dst, value);
    Ok(())
}

fn load_low<S: Source>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let value = S::read(cpu, op, bus)?;
    cpu.sse.set(op.dst, _mm_move_epi64(value));
    Ok(())
}

#[inline(always)]
fn merge<S: Source>(
    cpu: &mut Cpu,
    op: &Op,
    bus: &mut dyn Bus,
    operation: impl Fn(__m128i, __m128i) -> __m128i,
) -> Result<(), Stop> {
    let source = S::read(cpu, op, bus)?;
    let merged = operation(cpu.sse.get(op.dst), source);
    cpu.sse.set(op.dst, merged);
    Ok(())
}

fn store_aligned(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let linear = cpu.aligned(op)?;
    cpu.store(linear, cpu.sse.get(op.src), bus)
}

fn store_unaligned(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.store_operand(op, cpu.sse.get(op.src), bus)
}

fn store_low<W: Width>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.store_operand(op, W::from_u64(low(cpu.sse.get(op.src))), bus)
}

fn store_high(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let value = cpu.sse.get(op.src);
    cpu.store_operand(op, low(_mm_unpackhi_epi64(value, value)), bus)
}

fn from_general<W: Width>(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    let value = from_low(W::read(&cpu.gpr, op.src).to_u64());
    cpu.sse.set(op.dst, value);
    Ok(())
}

#[inline(always)]
fn to_general(cpu: &mut Cpu, op: &Op, operation: impl Fn(__m128i) -> u64) -> Result<(), Stop> {
    operation(cpu.sse.get(op.src)).write(&mut cpu.gpr, op.dst);
    Ok(())
}

fn masked_store(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let mask = _mm_movemask_epi8(cpu.sse.get(op.third)) as u32;
    let data = bits(cpu.sse.get(op.src));
    cpu.store_masked(op, mask, data, bus)
}

impl Cpu {
    /// Stores byte n of `data` at n bytes past the memory operand for every set bit n of `mask`: either all of them, or none
    /// and a fault.
    pub(super) fn store_masked(&mut self, op: &Op, mask: u32, data: u128, bus: &mut dyn Bus) -> Result<(), Stop> {
        if mask == 0 {
            return Ok(());
        }
        let linear = self.linear(op);
        let first = mask.trailing_zeros();
        let len = 32 - mask.leading_zeros() - first;
        self.probe_write(linear.wrapping_add(first.into()), len.into(), bus)?;
        for byte in (first..first + len).filter(|byte| mask >> byte & 1 == 1) {
            self.store(linear.wrapping_add(byte.into()), (data >> (byte * 8)) as u8, bus)?;
        }
        Ok(())
    }
}

fn load_mxcsr(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let value = cpu.load_operand::<u32>(op, bus)?;
    if value & !Sse::MXCSR_MASK != 0 {
        return Err(cpu.general_protection(0));
    }
    cpu.sse.mxcsr = value;
    Ok(())
}

fn store_mxcsr(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.store_operand(op, cpu.sse.mxcsr, bus)
}
