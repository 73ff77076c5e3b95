//! AVX2 with FMA and F16C: 8 lanes; with or without AVX-VNNI's dot product.

use super::super::Simd;
use super::load_words;
use std::arch::asm;
use std::arch::x86_64::*;

/// AVX2, FMA, F16C; with AVX-VNNI too if `VNNI`.
#[derive(Clone, Copy, Debug)]
pub struct Avx2<const VNNI: bool>;

// SAFETY of every block below: the caller promises the ISA, and that loads and stores are in bounds.
impl<const VNNI: bool> Simd for Avx2<VNNI> {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    const SIGNED_BIAS: bool = VNNI;
    type F = __m256;
    type I = __m256i;

    #[inline(always)]
    unsafe fn f_splat(v: f32) -> Self::F {
        unsafe { _mm256_set1_ps(v) }
    }
    #[inline(always)]
    unsafe fn f_load(p: *const f32) -> Self::F {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn f_store(p: *mut f32, v: Self::F) {
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn f_add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn f_sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn f_mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn f_div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn f_max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn f_min(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn f_fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn f_load_f16(p: *const u16) -> Self::F {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn f_store_f16(p: *mut u16, v: Self::F) {
        unsafe { _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    unsafe fn f_load_i8(p: *const i8) -> Self::F {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn f_from_i(v: Self::I) -> Self::F {
        unsafe { _mm256_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn f_to_i(v: Self::F) -> Self::I {
        unsafe { _mm256_cvtps_epi32(v) }
    }
    #[inline(always)]
    unsafe fn f_bits(v: Self::F) -> Self::I {
        unsafe { _mm256_castps_si256(v) }
    }
    #[inline(always)]
    unsafe fn f_from_bits(v: Self::I) -> Self::F {
        unsafe { _mm256_castsi256_ps(v) }
    }

    #[inline(always)]
    unsafe fn i_splat(v: u32) -> Self::I {
        unsafe { _mm256_set1_epi32(v as i32) }
    }
    #[inline(always)]
    unsafe fn i_load(p: *const u32) -> Self::I {
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn i_load_u16(p: *const u16) -> Self::I {
        unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn i_load_transposed(rows: *const *const u8, offset: usize) -> [Self::I; 4] {
        unsafe {
            let mut v = [_mm256_setzero_si256(); 4]; // lane of 128 bits q of v[j]: row 4 q + j
            for (j, v) in v.iter_mut().enumerate() {
                *v = _mm256_castsi128_si256(load_words(rows, j, offset));
                *v = _mm256_inserti128_si256::<1>(*v, load_words(rows, j + 4, offset));
            }
            let (low01, high01) = (_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[0], v[1]));
            let (low23, high23) = (_mm256_unpacklo_epi32(v[2], v[3]), _mm256_unpackhi_epi32(v[2], v[3]));
            [
                _mm256_unpacklo_epi64(low01, low23),
                _mm256_unpackhi_epi64(low01, low23),
                _mm256_unpacklo_epi64(high01, high23),
                _mm256_unpackhi_epi64(high01, high23),
            ]
        }
    }
    #[inline(always)]
    unsafe fn i_store(p: *mut u32, v: Self::I) {
        unsafe { _mm256_storeu_si256(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn i_store_u8(p: *mut u8, v: Self::I) {
        unsafe {
            let low = _mm256_and_si256(v, _mm256_set1_epi32(0xff));
            let halves = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256::<1>(low));
            _mm_storel_epi64(p.cast(), _mm_packus_epi16(halves, halves));
        }
    }
    #[inline(always)]
    unsafe fn i_and(a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn i_or(a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn i_max(a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm256_max_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn i_xor(a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm256_xor_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn i_add(a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn i_sub(a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm256_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn i_mul(a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm256_mullo_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn i_shl<const N: i32>(v: Self::I) -> Self::I {
        unsafe { _mm256_slli_epi32::<N>(v) }
    }
    #[inline(always)]
    unsafe fn i_shr<const N: i32>(v: Self::I) -> Self::I {
        unsafe { _mm256_srli_epi32::<N>(v) }
    }
    #[inline(always)]
    unsafe fn i_shr_by(v: Self::I, count: u32) -> Self::I {
        unsafe { _mm256_srl_epi32(v, _mm_cvtsi32_si128(count as i32)) }
    }
    #[inline(always)]
    unsafe fn i_sar<const N: i32>(v: Self::I) -> Self::I {
        unsafe { _mm256_srai_epi32::<N>(v) }
    }
    #[inline(always)]
    unsafe fn i_gather(table: *const u32, index: Self::I) -> Self::I {
        unsafe { _mm256_i32gather_epi32::<4>(table.cast(), index) }
    }
    #[inline(always)]
    unsafe fn i_look_up(table: &[u8; 16], index: Self::I) -> Self::I {
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, index)
        }
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::I, w: Self::I, x: Self::I) -> Self::I {
        unsafe {
            if VNNI {
                _mm256_dpbusd_avx_epi32(acc, w, x)
            } else {
                // Pairs add up to at most 2 * 127 * 127 = 32258: no saturation.
                sum_pairs(acc, _mm256_maddubs_epi16(w, x))
            }
        }
    }
    #[inline(always)]
    unsafe fn dot_signed(acc: Self::I, w: Self::I, x: Self::I) -> Self::I {
        unsafe {
            if VNNI {
                _mm256_dpbusd_avx_epi32(acc, _mm256_xor_si256(w, _mm256_set1_epi8(-128)), x)
            } else {
                // |w| * (x with w's sign); pairs add up to at most 2 * 128 * 127 = 32512: no saturation.
                sum_pairs(acc, _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)))
            }
        }
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: Self::I, a: Self::I, b: Self::I) -> Self::I {
        unsafe {
            if VNNI {
                _mm256_dpwssd_avx_epi32(acc, a, b)
            } else {
                _mm256_add_epi32(acc, _mm256_madd_epi16(a, b))
            }
        }
    }
    #[inline(always)]
    unsafe fn dot4<const BITS: u32>(acc: Self::I, w: [Self::I; 4], x: [Self::I; 4]) -> Self::I {
        unsafe {
            if VNNI || BITS > 6 {
                let acc = Self::dot(Self::dot(acc, w[0], x[0]), w[1], x[1]);
                return Self::dot(Self::dot(acc, w[2], x[2]), w[3], x[3]);
            }
            // Two products of at most 63 * 127 are added up by maddubs: 16002; twice that fits 16 bits. With at
            // most 5 bits, four times 2 * 31 * 127 = 7874 fits as well.
            let low = _mm256_add_epi16(_mm256_maddubs_epi16(w[0], x[0]), _mm256_maddubs_epi16(w[1], x[1]));
            let high = _mm256_add_epi16(_mm256_maddubs_epi16(w[2], x[2]), _mm256_maddubs_epi16(w[3], x[3]));
            if BITS > 5 {
                sum_pairs(sum_pairs(acc, low), high)
            } else {
                sum_pairs(acc, _mm256_add_epi16(low, high))
            }
        }
    }

    #[inline(always)]
    unsafe fn f_max_lane(v: Self::F) -> f32 {
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn pin(v: Self::F) -> Self::F {
        unsafe { pin(v) }
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

/// acc + the sums of neighbouring 16-bit values.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn sum_pairs(acc: __m256i, pairs: __m256i) -> __m256i {
    unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))) }
}

/// See [`Simd::pin`].
#[inline]
#[target_feature(enable = "avx")]
fn pin(mut v: __m256) -> __m256 {
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {0} */", inout(ymm_reg) v, options(nostack, preserves_flags)) };
    v
}
