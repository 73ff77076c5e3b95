//! Instances of [`Simd`](super::Simd) for x86-64.

use std::arch::x86_64::{__m128i, _mm_loadu_si128};

pub mod avx2;
pub mod avx512;

/// Four words, `offset` bytes behind `rows[row]`.
///
/// # Safety
/// They are there. (Every x86-64 processor has SSE2.)
#[inline(always)]
unsafe fn load_words(rows: *const *const u8, row: usize, offset: usize) -> __m128i {
    // SAFETY: the caller's promise.
    unsafe { _mm_loadu_si128((*rows.add(row)).add(offset).cast()) }
}
