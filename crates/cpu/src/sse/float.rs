//! Floating point: arithmetic, comparisons, conversions, rounding.

use std::arch::x86_64::__m128i;

use iced_x86::Code;

use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::width::Width;

use super::approximate::{reciprocal, reciprocal_root};
use super::native::*;
use super::operand::{Aligned, Memory32, Memory64, Source, Xmm};
use super::vector::*;

pub(super) fn lower(code: Code, memory: bool, imm: u64) -> Option<Handler> {
    /// The register and the memory form of a handler that takes a source and an operation.
    macro_rules! of {
        ($handler:ident, $memory_form:ident, $operation:ty) => {
            if memory {
                $handler::<$memory_form, $operation> as Handler
            } else {
                $handler::<Xmm, $operation> as Handler
            }
        };
    }
    macro_rules! arithmetic {
        ($memory_form:ident, $operation:ty) => {
            of!(arithmetic, $memory_form, $operation)
        };
    }
    macro_rules! compare {
        ($memory_form:ident, $operation:ident) => {
            match imm & 7 {
                0 => of!(arithmetic, $memory_form, $operation<0>),
                1 => of!(arithmetic, $memory_form, $operation<1>),
                2 => of!(arithmetic, $memory_form, $operation<2>),
                3 => of!(arithmetic, $memory_form, $operation<3>),
                4 => of!(arithmetic, $memory_form, $operation<4>),
                5 => of!(arithmetic, $memory_form, $operation<5>),
                6 => of!(arithmetic, $memory_form, $operation<6>),
                _ => of!(arithmetic, $memory_form, $operation<7>),
            }
        };
    }
    macro_rules! round {
        ($memory_form:ident, $operation:ident) => {
            match imm & 15 {
                0 => of!(arithmetic, $memory_form, $operation<0>),
                1 => of!(arithmetic, $memory_form, $operation<1>),
                2 => of!(arithmetic, $memory_form, $operation<2>),
                3 => of!(arithmetic, $memory_form, $operation<3>),
                4..8 => of!(arithmetic, $memory_form, $operation<4>),
                8 => of!(arithmetic, $memory_form, $operation<8>),
                9 => of!(arithmetic, $memory_form, $operation<9>),
                10 => of!(arithmetic, $memory_form, $operation<10>),
                11 => of!(arithmetic, $memory_form, $operation<11>),
                _ => of!(arithmetic, $memory_form, $operation<12>),
            }
        };
    }
    macro_rules! flags {
        ($memory_form:ident, $operation:ty) => {
            of!(flags, $memory_form, $operation)
        };
    }
    macro_rules! to_general {
        ($memory_form:ident, $operation:ty) => {
            of!(to_general, $memory_form, $operation)
        };
    }
    macro_rules! from_general {
        ($width:ident, $operation:ty) => {
            if memory { from_general::<$width, $operation, true> } else { from_general::<$width, $operation, false> }
        };
    }
    /// An operation on neighbouring elements.
    macro_rules! horizontal {
        ($neighbours:ident, $operation:ty) => {{
            let handler: Handler = if memory {
                |cpu, op, bus| horizontal::<Aligned, $operation>(cpu, op, bus, $neighbours)
            } else {
                |cpu, op, bus| horizontal::<Xmm, $operation>(cpu, op, bus, $neighbours)
            };
            handler
        }};
    }
    /// A vector made from the source by integer operations.
    macro_rules! approximate {
        ($memory_form:ident, $operation:expr) => {{
            let handler: Handler = if memory {
                |cpu, op, bus| approximate::<$memory_form>(cpu, op, bus, |d, s| $operation(d, s))
            } else {
                |cpu, op, bus| approximate::<Xmm>(cpu, op, bus, |d, s| $operation(d, s))
            };
            handler
        }};
    }
    Some(match code {
        Code::Addps_xmm_xmmm128 => arithmetic!(Aligned, AddPs),
        Code::Addpd_xmm_xmmm128 => arithmetic!(Aligned, AddPd),
        Code::Addss_xmm_xmmm32 => arithmetic!(Memory32, AddSs),
        Code::Addsd_xmm_xmmm64 => arithmetic!(Memory64, AddSd),
        Code::Subps_xmm_xmmm128 => arithmetic!(Aligned, SubPs),
        Code::Subpd_xmm_xmmm128 => arithmetic!(Aligned, SubPd),
        Code::Subss_xmm_xmmm32 => arithmetic!(Memory32, SubSs),
        Code::Subsd_xmm_xmmm64 => arithmetic!(Memory64, SubSd),
        Code::Mulps_xmm_xmmm128 => arithmetic!(Aligned, MulPs),
        Code::Mulpd_xmm_xmmm128 => arithmetic!(Aligned, MulPd),
        Code::Mulss_xmm_xmmm32 => arithmetic!(Memory32, MulSs),
        Code::Mulsd_xmm_xmmm64 => arithmetic!(Memory64, MulSd),
        Code::Divps_xmm_xmmm128 => arithmetic!(Aligned, DivPs),
        Code::Divpd_xmm_xmmm128 => arithmetic!(Aligned, DivPd),
        Code::Divss_xmm_xmmm32 => arithmetic!(Memory32, DivSs),
        Code::Divsd_xmm_xmmm64 => arithmetic!(Memory64, DivSd),
        Code::Minps_xmm_xmmm128 => arithmetic!(Aligned, MinPs),
        Code::Minpd_xmm_xmmm128 => arithmetic!(Aligned, MinPd),
        Code::Minss_xmm_xmmm32 => arithmetic!(Memory32, MinSs),
        Code::Minsd_xmm_xmmm64 => arithmetic!(Memory64, MinSd),
        Code::Maxps_xmm_xmmm128 => arithmetic!(Aligned, MaxPs),
        Code::Maxpd_xmm_xmmm128 => arithmetic!(Aligned, MaxPd),
        Code::Maxss_xmm_xmmm32 => arithmetic!(Memory32, MaxSs),
        Code::Maxsd_xmm_xmmm64 => arithmetic!(Memory64, MaxSd),
        Code::Sqrtps_xmm_xmmm128 => arithmetic!(Aligned, SqrtPs),
        Code::Sqrtpd_xmm_xmmm128 => arithmetic!(Aligned, SqrtPd),
        Code::Sqrtss_xmm_xmmm32 => arithmetic!(Memory32, SqrtSs),
        Code::Sqrtsd_xmm_xmmm64 => arithmetic!(Memory64, SqrtSd),
        Code::Addsubps_xmm_xmmm128 => arithmetic!(Aligned, AddSubPs),
        Code::Addsubpd_xmm_xmmm128 => arithmetic!(Aligned, AddSubPd),
        Code::Haddps_xmm_xmmm128 => horizontal!(single_neighbours, AddPs),
        Code::Haddpd_xmm_xmmm128 => horizontal!(double_neighbours, AddPd),
        Code::Hsubps_xmm_xmmm128 => horizontal!(single_neighbours, SubPs),
        Code::Hsubpd_xmm_xmmm128 => horizontal!(double_neighbours, SubPd),
        Code::Cvtdq2ps_xmm_xmmm128 => arithmetic!(Aligned, DqToPs),
        Code::Cvtps2dq_xmm_xmmm128 => arithmetic!(Aligned, PsToDq),
        Code::Cvttps2dq_xmm_xmmm128 => arithmetic!(Aligned, PsToDqTruncated),
        Code::Cvtdq2pd_xmm_xmmm64 => arithmetic!(Memory64, DqToPd),
        Code::Cvtpd2dq_xmm_xmmm128 => arithmetic!(Aligned, PdToDq),
        Code::Cvttpd2dq_xmm_xmmm128 => arithmetic!(Aligned, PdToDqTruncated),
        Code::Cvtps2pd_xmm_xmmm64 => arithmetic!(Memory64, PsToPd),
        Code::Cvtpd2ps_xmm_xmmm128 => arithmetic!(Aligned, PdToPs),
        Code::Cvtss2sd_xmm_xmmm32 => arithmetic!(Memory32, SsToSd),
        Code::Cvtsd2ss_xmm_xmmm64 => arithmetic!(Memory64, SdToSs),
        Code::Cvtsi2ss_xmm_rm32 => from_general!(u32, I32ToSs),
        Code::Cvtss2si_r32_xmmm32 => to_general!(Memory32, SsToI32),
        Code::Cvttss2si_r32_xmmm32 => to_general!(Memory32, SsToI32Truncated),
        Code::Cvtsi2ss_xmm_rm64 => from_general!(u64, I64ToSs),
        Code::Cvtss2si_r64_xmmm32 => to_general!(Memory32, SsToI64),
        Code::Cvttss2si_r64_xmmm32 => to_general!(Memory32, SsToI64Truncated),
        Code::Cvtsi2sd_xmm_rm32 => from_general!(u32, I32ToSd),
        Code::Cvtsd2si_r32_xmmm64 => to_general!(Memory64, SdToI32),
        Code::Cvttsd2si_r32_xmmm64 => to_general!(Memory64, SdToI32Truncated),
        Code::Cvtsi2sd_xmm_rm64 => from_general!(u64, I64ToSd),
        Code::Cvtsd2si_r64_xmmm64 => to_general!(Memory64, SdToI64),
        Code::Cvttsd2si_r64_xmmm64 => to_general!(Memory64, SdToI64Truncated),
        Code::Comiss_xmm_xmmm32 => flags!(Memory32, ComiSs),
        Code::Comisd_xmm_xmmm64 => flags!(Memory64, ComiSd),
        Code::Ucomiss_xmm_xmmm32 => flags!(Memory32, UcomiSs),
        Code::Ucomisd_xmm_xmmm64 => flags!(Memory64, UcomiSd),
        Code::Cmpps_xmm_xmmm128_imm8 => compare!(Aligned, CmpPs),
        Code::Roundps_xmm_xmmm128_imm8 => round!(Aligned, RoundPs),
        Code::Cmppd_xmm_xmmm128_imm8 => compare!(Aligned, CmpPd),
        Code::Roundpd_xmm_xmmm128_imm8 => round!(Aligned, RoundPd),
        Code::Cmpss_xmm_xmmm32_imm8 => compare!(Memory32, CmpSs),
        Code::Roundss_xmm_xmmm32_imm8 => round!(Memory32, RoundSs),
        Code::Cmpsd_xmm_xmmm64_imm8 => compare!(Memory64, CmpSd),
        Code::Roundsd_xmm_xmmm64_imm8 => round!(Memory64, RoundSd),
        Code::Dpps_xmm_xmmm128_imm8 => of!(dot, Aligned, Singles),
        Code::Dppd_xmm_xmmm128_imm8 => of!(dot, Aligned, Doubles),
        Code::Rcpps_xmm_xmmm128 => approximate!(Aligned, |_, s| each_single(s, reciprocal)),
        Code::Rsqrtps_xmm_xmmm128 => approximate!(Aligned, |_, s| each_single(s, reciprocal_root)),
        Code::Rcpss_xmm_xmmm32 => approximate!(Memory32, |d, s| low_single(d, s, reciprocal)),
        Code::Rsqrtss_xmm_xmmm32 => approximate!(Memory32, |d, s| low_single(d, s, reciprocal_root)),
        Code::Cvtpi2ps_xmm_mmm64 => {
            if memory {
                memory_to_singles
            } else {
                mm_to_singles
            }
        }
        // From memory this has nothing to do with the x87 unit either.
        Code::Cvtpi2pd_xmm_mmm64 => {
            if memory {
                arithmetic::<Memory64, DqToPd>
            } else {
                mm_to_doubles
            }
        }
        Code::Cvtps2pi_mm_xmmm64 => of!(to_mm, Memory64, PsToDq),
        Code::Cvttps2pi_mm_xmmm64 => of!(to_mm, Memory64, PsToDqTruncated),
        Code::Cvtpd2pi_mm_xmmm128 => of!(to_mm, Aligned, PdToDq),
        Code::Cvttpd2pi_mm_xmmm128 => of!(to_mm, Aligned, PdToDqTruncated),
        _ => return None,
    })
}

/// Operations of two vectors.
trait Arithmetic: Operation<Left = __m128i, Right = __m128i, Output = __m128i> {}

impl<O: Operation<Left = __m128i, Right = __m128i, Output = __m128i>> Arithmetic for O {}

fn arithmetic<S: Source, O: Arithmetic>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let source = S::read(cpu, op, bus)?;
    let result = cpu.float::<O>(cpu.sse.get(op.dst), source)?;
    cpu.sse.set(op.dst, result);
    Ok(())
}

/// HADDPS, HSUBPS and their double forms: one operation on the lower and the upper elements of all pairs.
#[inline(always)]
fn horizontal<S: Source, O: Arithmetic>(
    cpu: &mut Cpu,
    op: &Op,
    bus: &mut dyn Bus,
    neighbours: impl Fn(__m128i, __m128i) -> (__m128i, __m128i),
) -> Result<(), Stop> {
    let source = S::read(cpu, op, bus)?;
    let (lower, upper) = neighbours(cpu.sse.get(op.dst), source);
    let result = cpu.float::<O>(lower, upper)?;
    cpu.sse.set(op.dst, result);
    Ok(())
}

/// The first and the second singles of the pairs of two vectors.
#[inline(always)]
fn single_neighbours(destination: __m128i, source: __m128i) -> (__m128i, __m128i) {
    let (destination, source) =
        (_mm_shuffle_epi32::<0b11_01_10_00>(destination), _mm_shuffle_epi32::<0b11_01_10_00>(source));
    double_neighbours(destination, source)
}

/// The first and the second doubles of two vectors.
#[inline(always)]
fn double_neighbours(destination: __m128i, source: __m128i) -> (__m128i, __m128i) {
    (_mm_unpacklo_epi64(destination, source), _mm_unpackhi_epi64(destination, source))
}

fn flags<S: Source, O: Operation<Left = __m128i, Right = __m128i, Output = u64>>(
    cpu: &mut Cpu,
    op: &Op,
    bus: &mut dyn Bus,
) -> Result<(), Stop> {
    let source = S::read(cpu, op, bus)?;
    let flags = cpu.float::<O>(cpu.sse.get(op.dst), source)?;
    cpu.flags.set_bits(flags);
    Ok(())
}

fn to_general<S: Source, O: Operation<Left = (), Right = __m128i, Output = u64>>(
    cpu: &mut Cpu,
    op: &Op,
    bus: &mut dyn Bus,
) -> Result<(), Stop> {
    let source = S::read(cpu, op, bus)?;
    cpu.float::<O>((), source)?.write(&mut cpu.gpr, op.dst);
    Ok(())
}

fn from_general<W: Width, O: Operation<Left = __m128i, Right = u64, Output = __m128i>, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
    bus: &mut dyn Bus,
) -> Result<(), Stop> {
    let source = if MEMORY { cpu.load_operand::<W>(op, bus)? } else { W::read(&cpu.gpr, op.src) };
    let result = cpu.float::<O>(cpu.sse.get(op.dst), source.to_u64())?;
    cpu.sse.set(op.dst, result);
    Ok(())
}

/// DPPS and DPPD, in stages: an unmasked exception in one keeps the next from raising anything. Which of several NaNs gets where is
/// each processor's own choice (Intel SDM volume 2, DPPS: "implementation dependent"), and follows here from the order of the
/// operands of each addition. Elements that the immediate's high half leaves out are multiplied as zeros, which raises nothing;
/// those that its low half leaves out are cleared in the result.
fn dot<S: Source, O: DotProduct>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let source = S::read(cpu, op, bus)?;
    let factors = O::element_mask(op.imm >> 4);
    let left = _mm_and_si128(cpu.sse.get(op.dst), factors);
    let result = O::product(cpu, left, _mm_and_si128(source, factors))?;
    cpu.sse.set(op.dst, _mm_and_si128(result, O::element_mask(op.imm)));
    Ok(())
}

trait DotProduct {
    /// All ones in element n for every set bit n, from bit 0.
    fn element_mask(bits: u64) -> __m128i;
    /// The dot product in every element.
    fn product(cpu: &mut Cpu, left: __m128i, right: __m128i) -> Result<__m128i, Stop>;
}

struct Singles;
struct Doubles;

impl DotProduct for Singles {
    fn element_mask(bits: u64) -> __m128i {
        vector((0..4).filter(|n| bits >> n & 1 == 1).fold(0, |mask, n| mask | u128::from(u32::MAX) << (n * 32)))
    }

    fn product(cpu: &mut Cpu, left: __m128i, right: __m128i) -> Result<__m128i, Stop> {
        let products = cpu.float::<MulPs>(left, right)?;
        let sums = cpu.float::<AddPs>(_mm_shuffle_epi32::<0b10_11_00_01>(products), products)?;
        cpu.float::<AddPs>(sums, _mm_shuffle_epi32::<0b01_00_11_10>(sums))
    }
}

impl DotProduct for Doubles {
    fn element_mask(bits: u64) -> __m128i {
        vector((0..2).filter(|n| bits >> n & 1 == 1).fold(0, |mask, n| mask | u128::from(u64::MAX) << (n * 64)))
    }

    fn product(cpu: &mut Cpu, left: __m128i, right: __m128i) -> Result<__m128i, Stop> {
        let products = cpu.float::<MulPd>(left, right)?;
        cpu.float::<AddPd>(products, _mm_shuffle_epi32::<0b01_00_11_10>(products))
    }
}

#[inline(always)]
fn approximate<S: Source>(
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

fn each_single(source: __m128i, function: fn(u32) -> u32) -> __m128i {
    let source = bits(source);
    vector((0..4).fold(0, |result, n| result | u128::from(function((source >> (n * 32)) as u32)) << (n * 32)))
}

fn low_single(destination: __m128i, source: __m128i, function: fn(u32) -> u32) -> __m128i {
    _mm_blend_epi16::<0b11>(destination, from_low(function(bits(source) as u32).into()))
}

/// CVTPI2PS from memory, which has nothing to do with the x87 unit.
fn memory_to_singles(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let source = Memory64::read(cpu, op, bus)?;
    let result = cpu.float::<DqToPs>(source, source)?;
    let merged = _mm_blend_epi16::<0b1111>(cpu.sse.get(op.dst), result);
    cpu.sse.set(op.dst, merged);
    Ok(())
}

/// CVTPI2PS from an MMX register.
fn mm_to_singles(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    cpu.x87.enter_mmx();
    let source = cpu.mm(op.src);
    let result = cpu.float::<DqToPs>(source, source)?;
    let merged = _mm_blend_epi16::<0b1111>(cpu.sse.get(op.dst), result);
    cpu.sse.set(op.dst, merged);
    Ok(())
}

/// CVTPI2PD from an MMX register.
fn mm_to_doubles(cpu: &mut Cpu, op: &Op, _bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    cpu.x87.enter_mmx();
    let source = cpu.mm(op.src);
    let result = cpu.float::<DqToPd>(source, source)?;
    cpu.sse.set(op.dst, result);
    Ok(())
}

/// CVTPS2PI, CVTPD2PI and their truncating forms. Processors enter MMX mode even when the conversion then raises #XM.
fn to_mm<S: Source, O: ToMm>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    cpu.check_x87_pending()?;
    let source = O::operand(S::read(cpu, op, bus)?);
    cpu.x87.enter_mmx();
    let result = cpu.float::<O>(source, source)?;
    cpu.set_mm(op.dst, result);
    Ok(())
}

trait ToMm: Arithmetic {
    /// The source without what the conversion must not look at.
    fn operand(source: __m128i) -> __m128i {
        source
    }
}

impl ToMm for PdToDq {}

impl ToMm for PdToDqTruncated {}

impl ToMm for PsToDq {
    fn operand(source: __m128i) -> __m128i {
        _mm_move_epi64(source)
    }
}

impl ToMm for PsToDqTruncated {
    fn operand(source: __m128i) -> __m128i {
        _mm_move_epi64(source)
    }
}
