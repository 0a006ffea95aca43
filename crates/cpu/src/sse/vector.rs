//! Vectors: XMM registers as the integers that the rest of the processor knows and as what the host computes with, and the
//! host's vector instructions, under their usual names (Intel Intrinsics Guide), as plain safe functions: the ones of
//! `std::arch` can be called safely only where the feature is enabled function by function.

#![allow(unsafe_code)]

use std::arch::x86_64::{self as host, __m128i};

#[cfg(not(all(target_feature = "ssse3", target_feature = "sse4.1", target_feature = "sse4.2")))]
compile_error!("the cpu crate needs -C target-cpu=x86-64-v2 (see .cargo/config.toml)");

macro_rules! safe {
    ($(fn $name:ident $(<$immediate:ident>)? ($($argument:ident: $type:ty),*) -> $result:ty;)*) => {$(
        #[inline(always)]
        pub(super) fn $name $(<const $immediate: i32>)? ($($argument: $type),*) -> $result {
            // SAFETY: the instruction's feature is part of x86-64-v2, which the check above requires.
            unsafe { host::$name $(::<$immediate>)? ($($argument),*) }
        }
    )*};
}

macro_rules! unary {
    ($($name:ident),* $(,)?) => { safe! { $(fn $name(a: __m128i) -> __m128i;)* } };
}

macro_rules! binary {
    ($($name:ident),* $(,)?) => { safe! { $(fn $name(a: __m128i, b: __m128i) -> __m128i;)* } };
}

unary! {
    _mm_abs_epi16, _mm_abs_epi32, _mm_abs_epi8, _mm_cvtepi16_epi32, _mm_cvtepi16_epi64, _mm_cvtepi32_epi64,
    _mm_cvtepi8_epi16, _mm_cvtepi8_epi32, _mm_cvtepi8_epi64, _mm_cvtepu16_epi32, _mm_cvtepu16_epi64,
    _mm_cvtepu32_epi64, _mm_cvtepu8_epi16, _mm_cvtepu8_epi32, _mm_cvtepu8_epi64, _mm_minpos_epu16,
    _mm_move_epi64,
}

binary! {
    _mm_add_epi16, _mm_add_epi32, _mm_add_epi64, _mm_add_epi8, _mm_adds_epi16, _mm_adds_epi8, _mm_adds_epu16,
    _mm_adds_epu8, _mm_and_si128, _mm_andnot_si128, _mm_avg_epu16, _mm_avg_epu8, _mm_cmpeq_epi16,
    _mm_cmpeq_epi32, _mm_cmpeq_epi64, _mm_cmpeq_epi8, _mm_cmpgt_epi16, _mm_cmpgt_epi32, _mm_cmpgt_epi64,
    _mm_cmpgt_epi8, _mm_hadd_epi16, _mm_hadd_epi32, _mm_hadds_epi16, _mm_hsub_epi16, _mm_hsub_epi32,
    _mm_hsubs_epi16, _mm_madd_epi16, _mm_maddubs_epi16, _mm_max_epi16, _mm_max_epi32, _mm_max_epi8,
    _mm_max_epu16, _mm_max_epu32, _mm_max_epu8, _mm_min_epi16, _mm_min_epi32, _mm_min_epi8, _mm_min_epu16,
    _mm_min_epu32, _mm_min_epu8, _mm_mul_epi32, _mm_mul_epu32, _mm_mulhi_epi16, _mm_mulhi_epu16,
    _mm_mulhrs_epi16, _mm_mullo_epi16, _mm_mullo_epi32, _mm_or_si128, _mm_packs_epi16, _mm_packs_epi32,
    _mm_packus_epi16, _mm_packus_epi32, _mm_sad_epu8, _mm_shuffle_epi8, _mm_sign_epi16, _mm_sign_epi32,
    _mm_sign_epi8, _mm_sll_epi16, _mm_sll_epi32, _mm_sll_epi64, _mm_sra_epi16, _mm_sra_epi32, _mm_srl_epi16,
    _mm_srl_epi32, _mm_srl_epi64, _mm_sub_epi16, _mm_sub_epi32, _mm_sub_epi64, _mm_sub_epi8, _mm_subs_epi16,
    _mm_subs_epi8, _mm_subs_epu16, _mm_subs_epu8, _mm_unpackhi_epi16, _mm_unpackhi_epi32, _mm_unpackhi_epi64,
    _mm_unpackhi_epi8, _mm_unpacklo_epi16, _mm_unpacklo_epi32, _mm_unpacklo_epi64, _mm_unpacklo_epi8,
    _mm_xor_si128,
}

safe! {
    fn _mm_blend_epi16<MASK>(a: __m128i, b: __m128i) -> __m128i;
    fn _mm_blendv_epi8(a: __m128i, b: __m128i, mask: __m128i) -> __m128i;
    fn _mm_cvtsi128_si64(a: __m128i) -> i64;
    fn _mm_cvtsi64_si128(a: i64) -> __m128i;
    fn _mm_movemask_epi8(a: __m128i) -> i32;
    fn _mm_mpsadbw_epu8<OFFSETS>(a: __m128i, b: __m128i) -> __m128i;
    fn _mm_set1_epi8(a: i8) -> __m128i;
    fn _mm_setzero_si128() -> __m128i;
    fn _mm_shuffle_epi32<ORDER>(a: __m128i) -> __m128i;
    fn _mm_testc_si128(a: __m128i, mask: __m128i) -> i32;
    fn _mm_testz_si128(a: __m128i, mask: __m128i) -> i32;
}

/// Sign bits of four 32-bit elements.
#[inline(always)]
pub(super) fn movemask_epi32(a: __m128i) -> i32 {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { host::_mm_movemask_ps(host::_mm_castsi128_ps(a)) }
}

/// Sign bits of two 64-bit elements.
#[inline(always)]
pub(super) fn movemask_epi64(a: __m128i) -> i32 {
    // SAFETY: as above.
    unsafe { host::_mm_movemask_pd(host::_mm_castsi128_pd(a)) }
}

/// The 128 bits as a vector, byte 0 in the low bits.
#[inline(always)]
pub(super) fn vector(bits: u128) -> __m128i {
    // SAFETY: both types are 16 bytes of plain data, every bit pattern of either is valid.
    unsafe { std::mem::transmute(bits) }
}

/// The vector as 128 bits.
#[inline(always)]
pub(super) fn bits(vector: __m128i) -> u128 {
    // SAFETY: as above.
    unsafe { std::mem::transmute(vector) }
}

/// Reads a register as one vector, not as two halves.
#[inline(always)]
pub(super) fn load(register: &u128) -> __m128i {
    // SAFETY: a reference to 16 aligned bytes; SSE2 is part of x86-64.
    unsafe { host::_mm_load_si128(std::ptr::from_ref(register).cast()) }
}

/// Writes a register as one vector: if it were stored as two halves, the next load would wait for both to leave the store buffer.
#[inline(always)]
pub(super) fn store(register: &mut u128, value: __m128i) {
    // SAFETY: as above.
    unsafe { host::_mm_store_si128(std::ptr::from_mut(register).cast(), value) }
}

/// The low 64 bits.
#[inline(always)]
pub(super) fn low(vector: __m128i) -> u64 {
    _mm_cvtsi128_si64(vector) as u64
}

/// 64 bits, zero-extended.
#[inline(always)]
pub(super) fn from_low(bits: u64) -> __m128i {
    _mm_cvtsi64_si128(bits as i64)
}

/// Byte n holds n.
#[inline(always)]
pub(super) fn byte_numbers() -> __m128i {
    vector(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100)
}
