//! AVX-512 with VNNI: 16 lanes.

use super::super::Simd;
use super::load_words;
use std::arch::asm;
use std::arch::x86_64::*;

/// AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy, Debug)]
pub struct Avx512;

// SAFETY of every block below: the caller promises the ISA, and that loads and stores are in bounds.
impl Simd for Avx512 {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    const SIGNED_BIAS: bool = true;
    type F = __m512;
    type I = __m512i;

    #[inline(always)]
    unsafe fn f_splat(v: f32) -> Self::F {
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    unsafe fn f_load(p: *const f32) -> Self::F {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn f_store(p: *mut f32, v: Self::F) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn f_add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn f_sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn f_mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn f_div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn f_max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn f_min(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn f_fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn f_fma_by(a: Self::F, b: *const f32, c: Self::F) -> Self::F {
        unsafe { fma_by(a, b, c) }
    }
    #[inline(always)]
    unsafe fn f_load_f16(p: *const u16) -> Self::F {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn f_store_f16(p: *mut u16, v: Self::F) {
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    unsafe fn f_load_i8(p: *const i8) -> Self::F {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn f_from_i(v: Self::I) -> Self::F {
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn f_to_i(v: Self::F) -> Self::I {
        unsafe { _mm512_cvtps_epi32(v) }
    }
    #[inline(always)]
    unsafe fn f_bits(v: Self::F) -> Self::I {
        unsafe { _mm512_castps_si512(v) }
    }
    #[inline(always)]
    unsafe fn f_from_bits(v: Self::I) -> Self::F {
        unsafe { _mm512_castsi512_ps(v) }
    }

    #[inline(always)]
    unsafe fn i_splat(v: u32) -> Self::I {
        unsafe { _mm512_set1_epi32(v as i32) }
    }
    #[inline(always)]
    unsafe fn i_splat_four(p: *const u32) -> [Self::I; 4] {
        unsafe {
            let four = _mm512_castsi512_ps(_mm512_broadcast_i32x4(_mm_loadu_si128(p.cast())));
            // else the compiler goes back to a load for each
            let four = _mm512_castps_si512(pin(four));
            [
                _mm512_shuffle_epi32::<0b00_00_00_00>(four),
                _mm512_shuffle_epi32::<0b01_01_01_01>(four),
                _mm512_shuffle_epi32::<0b10_10_10_10>(four),
                _mm512_shuffle_epi32::<0b11_11_11_11>(four),
            ]
        }
    }
    #[inline(always)]
    unsafe fn i_load(p: *const u32) -> Self::I {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn i_load_u16(p: *const u16) -> Self::I {
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn i_load_transposed(rows: *const *const u8, offset: usize) -> [Self::I; 4] {
        unsafe {
            let mut v = [_mm512_setzero_si512(); 4]; // lane of 128 bits q of v[j]: row 4 q + j
            for (j, v) in v.iter_mut().enumerate() {
                *v = _mm512_castsi128_si512(load_words(rows, j, offset));
                *v = _mm512_inserti32x4::<1>(*v, load_words(rows, j + 4, offset));
                *v = _mm512_inserti32x4::<2>(*v, load_words(rows, j + 8, offset));
                *v = _mm512_inserti32x4::<3>(*v, load_words(rows, j + 12, offset));
            }
            let (low01, high01) = (_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
            let (low23, high23) = (_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
            [
                _mm512_unpacklo_epi64(low01, low23),
                _mm512_unpackhi_epi64(low01, low23),
                _mm512_unpacklo_epi64(high01, high23),
                _mm512_unpackhi_epi64(high01, high23),
            ]
        }
    }
    #[inline(always)]
    unsafe fn i_store(p: *mut u32, v: Self::I) {
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn i_store_u8(p: *mut u8, v: Self::I) {
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(v)) }
    }
    #[inline(always)]
    unsafe fn i_and(a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn i_or(a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn i_max(a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm512_max_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn i_xor(a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn i_add(a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn i_sub(a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn i_mul(a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm512_mullo_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn i_shl<const N: i32>(v: Self::I) -> Self::I {
        // The count as a variable: the immediate form wants an unsigned constant. It compiles to the same.
        unsafe { _mm512_sll_epi32(v, _mm_cvtsi32_si128(N)) }
    }
    #[inline(always)]
    unsafe fn i_shr<const N: i32>(v: Self::I) -> Self::I {
        unsafe { _mm512_srl_epi32(v, _mm_cvtsi32_si128(N)) }
    }
    #[inline(always)]
    unsafe fn i_shr_by(v: Self::I, count: u32) -> Self::I {
        unsafe { _mm512_srl_epi32(v, _mm_cvtsi32_si128(count as i32)) }
    }
    #[inline(always)]
    unsafe fn i_sar<const N: i32>(v: Self::I) -> Self::I {
        unsafe { _mm512_sra_epi32(v, _mm_cvtsi32_si128(N)) }
    }
    #[inline(always)]
    unsafe fn i_gather(table: *const u32, index: Self::I) -> Self::I {
        unsafe { _mm512_i32gather_epi32::<4>(index, table.cast()) }
    }
    #[inline(always)]
    unsafe fn i_look_up(table: &[u8; 16], index: Self::I) -> Self::I {
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, index)
        }
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::I, w: Self::I, x: Self::I) -> Self::I {
        unsafe { _mm512_dpbusd_epi32(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn dot_signed(acc: Self::I, w: Self::I, x: Self::I) -> Self::I {
        // w + 128 as unsigned bytes.
        unsafe { _mm512_dpbusd_epi32(acc, _mm512_xor_si512(w, _mm512_set1_epi8(-128)), x) }
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: Self::I, a: Self::I, b: Self::I) -> Self::I {
        unsafe { dot_pairs(acc, a, b) }
    }

    #[inline(always)]
    unsafe fn f_max_lane(v: Self::F) -> f32 {
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    unsafe fn pin(v: Self::F) -> Self::F {
        unsafe { pin(v) }
    }
    #[inline(always)]
    unsafe fn i_pin(v: Self::I) -> Self::I {
        unsafe { i_pin(v) }
    }
    #[inline(always)]
    #[allow(clippy::pointers_in_nomem_asm_block)] // it is not followed
    fn p_pin<T>(mut p: *const T) -> *const T {
        // SAFETY: no instruction at all.
        unsafe { asm!("/* {0} */", inout(reg) p, options(pure, nomem, nostack, preserves_flags)) };
        p
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_far(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_once(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_NTA>(p.cast()) }
    }
}

/// See [`Simd::f_fma_by`]. The compiler would load a factor that is used twice by an instruction of its own, which
/// takes a place among the multiply-adds.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn fma_by(a: __m512, b: *const f32, mut c: __m512) -> __m512 {
    // SAFETY: the caller's promise that b is readable.
    unsafe {
        asm!("vfmadd231ps {c}, {a}, dword ptr [{b}]{{1to16}}", c = inout(zmm_reg) c, a = in(zmm_reg) a, b = in(reg) b,
            options(pure, readonly, nostack, preserves_flags))
    };
    c
}

/// See [`Simd::dot_pairs`]. Of the intrinsic the compiler makes a product and a sum.
#[inline]
#[target_feature(enable = "avx512vnni")]
fn dot_pairs(mut acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: registers alone.
    unsafe {
        asm!("vpdpwssd {acc}, {a}, {b}", acc = inout(zmm_reg) acc, a = in(zmm_reg) a, b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags))
    };
    acc
}

/// See [`Simd::pin`].
#[inline]
#[target_feature(enable = "avx512f")]
fn pin(mut v: __m512) -> __m512 {
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {0} */", inout(zmm_reg) v, options(nostack, preserves_flags)) };
    v
}

/// See [`Simd::i_pin`].
#[inline]
#[target_feature(enable = "avx512f")]
fn i_pin(mut v: __m512i) -> __m512i {
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {0} */", inout(zmm_reg) v, options(nomem, nostack, preserves_flags)) };
    v
}
