//! Caches of f32 and f16. A sum takes up its products in ascending order of dimensions (scores) or positions
//! (outputs), each rounded once, from 0 on.

use half::f16;

use super::product::{Load, Strided, StridedMut, product};
use super::{Cached, Chunk, Simd, Span, record_len};
use crate::backend::PAGE_LEN;

/// An element of the cache.
pub trait Element: Load {
    /// LANES elements from f32, to nearest even.
    ///
    /// # Safety
    /// The CPU has the ISA; LANES elements are writable.
    unsafe fn store<S: Simd>(p: *mut Self, v: S::F);

    /// Values [PAGE_LEN, width], each row a position, as keys [width, PAGE_LEN].
    ///
    /// # Safety
    /// The CPU has the ISA; the width is a multiple of 32; `to` does not overlap.
    unsafe fn transpose<S: Simd>(from: *const Self, width: usize, to: *mut Self);
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut Self, v: S::F) {
        // SAFETY: the caller's promise.
        unsafe { S::f_store(p, v) }
    }

    #[inline(always)]
    unsafe fn transpose<S: Simd>(from: *const Self, width: usize, to: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe {
            let rows = row_pointers(from.cast(), width * size_of::<f32>(), 0, 1);
            for lane in (0..PAGE_LEN).step_by(S::LANES) {
                for i in (0..width).step_by(4) {
                    let four = S::i_load_transposed(rows.as_ptr().add(lane), i * size_of::<f32>());
                    for (j, positions) in four.into_iter().enumerate() {
                        S::i_store(to.add((i + j) * PAGE_LEN + lane).cast(), positions);
                    }
                }
            }
        }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut Self, v: S::F) {
        // SAFETY: the caller's promise; an f16 is its bits.
        unsafe { S::f_store_f16(p.cast(), v) }
    }

    /// A word of a row is two dimensions of a position, a word of `to` two positions: those of even rows go to the lower
    /// halves, those of odd rows to the upper.
    #[inline(always)]
    unsafe fn transpose<S: Simd>(from: *const Self, width: usize, to: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe {
            let (from, row_bytes) = (from.cast(), width * size_of::<f16>());
            let even = row_pointers(from, row_bytes, 0, 2);
            let odd = row_pointers(from, row_bytes, 1, 2);
            let (low, high) = (S::i_splat(0xffff), S::i_splat(0xffff_0000));
            for lane in (0..PAGE_LEN / 2).step_by(S::LANES) {
                for i in (0..width).step_by(8) {
                    let even = S::i_load_transposed(even.as_ptr().add(lane), i * size_of::<f16>());
                    let odd = S::i_load_transposed(odd.as_ptr().add(lane), i * size_of::<f16>());
                    for (j, (even, odd)) in even.into_iter().zip(odd).enumerate() {
                        let to = to.add((i + 2 * j) * PAGE_LEN + 2 * lane).cast::<u32>();
                        S::i_store(to, S::i_or(S::i_and(even, low), S::i_shl::<16>(odd)));
                        let next = to.add(PAGE_LEN / 2);
                        S::i_store(next, S::i_or(S::i_shr::<16>(even), S::i_and(odd, high)));
                    }
                }
            }
        }
    }
}

/// Where rows begin: `first`, and each `step` further.
#[inline(always)]
fn row_pointers(from: *const u8, row_bytes: usize, first: usize, step: usize) -> [*const u8; PAGE_LEN] {
    let mut pointers = [from; PAGE_LEN];
    for (i, pointer) in pointers.iter_mut().enumerate() {
        *pointer = from.wrapping_add((first + i * step) * row_bytes);
    }
    pointers
}

impl<T: Element> Cached for T {
    fn query_bytes(key_dim: usize) -> usize {
        key_dim * size_of::<f32>()
    }

    #[inline(always)]
    unsafe fn query<S: Simd>(from: *const f32, key_dim: usize, scale: f32, to: *mut u8) {
        for i in 0..key_dim {
            // SAFETY: the caller's promise.
            unsafe { *to.cast::<f32>().add(i) = *from.add(i) * scale };
        }
    }

    #[inline(always)]
    unsafe fn append<S: Simd>(
        chunk: &Chunk,
        at: usize,
        key: *const f32,
        value: *const f32,
        value_dim: usize,
    ) {
        let (keys, values) = (chunk.keys.cast::<T>(), chunk.values.cast::<T>());
        // SAFETY: the caller's promise.
        unsafe {
            for i in (0..chunk.key_dim).step_by(16) {
                let stored = convert::<S, T>(key.add(i), (chunk.key_dim - i).min(16));
                for (j, element) in stored.into_iter().take(chunk.key_dim - i).enumerate() {
                    *keys.add((i + j) * PAGE_LEN + at) = element;
                }
            }
            for i in (0..value_dim).step_by(16) {
                let stored = convert::<S, T>(value.add(i), (value_dim - i).min(16));
                values.add(at * chunk.value_stride + i).cast::<[T; 16]>().write_unaligned(stored);
            }
        }
    }

    #[inline(always)]
    unsafe fn whole_keys<S: Simd>(chunk: &Chunk, to: *mut u8) {
        let to = to.cast::<T>();
        // SAFETY: the caller's promise; what is not in the value follows it.
        unsafe {
            T::transpose::<S>(chunk.values.cast(), chunk.value_stride, to);
            let rest = to.add(chunk.value_stride * PAGE_LEN);
            std::ptr::copy_nonoverlapping(chunk.keys.cast(), rest, chunk.key_dim * PAGE_LEN);
        }
    }

    #[inline(always)]
    unsafe fn scores<S: Simd>(chunk: &Chunk, queries: *const u8, rows: usize, seen: usize, to: *mut f32) {
        let keys = Strided(chunk.keys.cast::<T>().cast_const(), PAGE_LEN);
        let queries = Strided(queries.cast::<f32>(), chunk.key_dim);
        // SAFETY: the caller's promise.
        unsafe {
            let to = StridedMut(to, PAGE_LEN);
            product::<S, T>(rows, chunk.key_dim, seen, queries, keys, to, chunk.next_keys);
        }
    }

    #[inline(always)]
    unsafe fn outputs<S: Simd>(
        chunk: &Chunk,
        weights: *const f32,
        rows: usize,
        span: Span,
        to: *mut f32,
        _: *mut f32,
    ) {
        let stride = chunk.value_stride;
        // SAFETY: the caller's promise.
        unsafe {
            let weights = Strided(weights.add(span.from), PAGE_LEN);
            let values = Strided(chunk.values.cast::<T>().add(span.from * stride).cast_const(), stride);
            let to = StridedMut(to, record_len(stride));
            let next = chunk.next_values;
            product::<S, T>(rows, span.to - span.from, stride, weights, values, to, next);
        }
    }
}

/// The first `n` values as elements, then zeros.
#[inline(always)]
unsafe fn convert<S: Simd, T: Element>(from: *const f32, n: usize) -> [T; 16] {
    let mut padded = [0.0f32; 16];
    // SAFETY: the caller's promise: n ≤ 16 values are readable. Each element is written.
    unsafe {
        std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), n);
        let mut out = std::mem::MaybeUninit::<[T; 16]>::uninit();
        for part in (0..16).step_by(S::LANES) {
            T::store::<S>(out.as_mut_ptr().cast::<T>().add(part), S::f_load(padded.as_ptr().add(part)));
        }
        out.assume_init()
    }
}
