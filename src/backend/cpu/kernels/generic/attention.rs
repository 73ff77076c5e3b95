//! Attention of a tile of query vectors over one chunk of [`PAGE_LEN`] positions, and the merging of chunks.
//!
//! Both products, scores = queries x keys and output = weights x values, are one small matrix product in which a lane
//! belongs to one column (a position; a value dimension) and each sum runs over its terms in ascending order. So a
//! query's result does not depend on the queries that it shares a tile with.

use half::f16;

use super::super::{Simd, entry_points};
use super::math::Lanes;
use crate::backend::PAGE_LEN;

/// Values of a record after its output: the largest score, the sum of the weights, and room up to a full cache line.
pub const RECORD_TAIL: usize = 16;

/// What attention over some chunks leaves of one query, in memory: the weighted sum of the values [value_stride], not
/// yet divided; the largest score m; the sum of the weights exp(score - m).
#[derive(Clone, Copy)]
struct Record(*mut f32, usize);

impl Record {
    #[inline(always)]
    unsafe fn largest(self) -> *mut f32 {
        // SAFETY: a record is RECORD_TAIL values longer than its output.
        unsafe { self.0.add(self.1) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> *mut f32 {
        // SAFETY: as above.
        unsafe { self.0.add(self.1 + 1) }
    }
}

/// Values of a record.
pub const fn record_len(value_stride: usize) -> usize {
    value_stride + RECORD_TAIL
}

/// The positions of a chunk that a row sees: `from..to`, not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First position, counted from the chunk's start.
    pub from: usize,
    /// After the last one; at most [`PAGE_LEN`].
    pub to: usize,
}

/// Keys and values of one head in one chunk, as the cache holds them.
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    /// [key_dim, PAGE_LEN]
    pub keys: *mut u8,
    /// [PAGE_LEN, value_stride]
    pub values: *mut u8,
    /// Width of a key.
    pub key_dim: usize,
    /// Width of a value, rounded up to 16.
    pub value_stride: usize,
    /// The keys of the chunk that is likely read next, its values behind them: asked for ahead, never read.
    pub next: *const u8,
}

/// An element of the cache.
pub trait Element: Copy + 'static {
    /// LANES elements as f32.
    ///
    /// # Safety
    /// The CPU has the ISA; LANES elements are readable.
    unsafe fn load<S: Simd>(p: *const Self) -> S::F;
    /// LANES elements from f32, to nearest even.
    ///
    /// # Safety
    /// The CPU has the ISA; LANES elements are writable.
    unsafe fn store<S: Simd>(p: *mut Self, v: S::F);
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { S::f_load(p) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut Self, v: S::F) {
        // SAFETY: the caller's promise.
        unsafe { S::f_store(p, v) }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::F {
        // SAFETY: the caller's promise; an f16 is its bits.
        unsafe { S::f_load_f16(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut Self, v: S::F) {
        // SAFETY: the caller's promise; an f16 is its bits.
        unsafe { S::f_store_f16(p.cast(), v) }
    }
}

entry_points! {
    /// Stores a key and a value of `value_dim` dimensions at position `at` of the chunk. f16 cache.
    pub fn append_f16(chunk: Chunk, at: usize, key: *const f32, value: *const f32, value_dim: usize) = append_f16_generic;
    /// The same for an f32 cache.
    pub fn append_f32(chunk: Chunk, at: usize, key: *const f32, value: *const f32, value_dim: usize) = append_f32_generic;
    /// One chunk for `spans.len()` rows of `heads` query vectors each: `queries` [rows * heads, key_dim], already
    /// scaled; `scores` [rows * heads, PAGE_LEN] is scratch; `records` [rows * heads] are written. f16 cache.
    pub fn chunk_f16(chunk: Chunk, spans: &[Span], heads: usize, queries: *const f32, scores: *mut f32, records: *mut f32)
        = chunk_f16_generic;
    /// The same over an f32 cache.
    pub fn chunk_f32(chunk: Chunk, spans: &[Span], heads: usize, queries: *const f32, scores: *mut f32, records: *mut f32)
        = chunk_f32_generic;
    /// `state` = state and then `next`, which follows it in the sequence.
    pub fn merge(state: *mut f32, next: *const f32, value_stride: usize) = merge_generic;
    /// `to` = the record's output over its sum of weights: the first `width` values.
    pub fn finish(record: *const f32, value_stride: usize, to: *mut f32, width: usize) = finish_generic;
}

#[inline(always)]
unsafe fn append_f16_generic<S: Simd>(
    chunk: Chunk,
    at: usize,
    key: *const f32,
    value: *const f32,
    value_dim: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { append_generic::<S, f16>(chunk, at, key, value, value_dim) }
}

#[inline(always)]
unsafe fn append_f32_generic<S: Simd>(
    chunk: Chunk,
    at: usize,
    key: *const f32,
    value: *const f32,
    value_dim: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { append_generic::<S, f32>(chunk, at, key, value, value_dim) }
}

#[inline(always)]
unsafe fn append_generic<S: Simd, T: Element>(
    chunk: Chunk,
    at: usize,
    key: *const f32,
    value: *const f32,
    value_dim: usize,
) {
    let (keys, values) = (chunk.keys.cast::<T>(), chunk.values.cast::<T>());
    // SAFETY: the caller's promise; `at` < PAGE_LEN.
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

#[inline(always)]
unsafe fn chunk_f16_generic<S: Simd>(
    chunk: Chunk,
    spans: &[Span],
    heads: usize,
    queries: *const f32,
    scores: *mut f32,
    records: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe { chunk_generic::<S, f16>(chunk, spans, heads, queries, scores, records) }
}

#[inline(always)]
unsafe fn chunk_f32_generic<S: Simd>(
    chunk: Chunk,
    spans: &[Span],
    heads: usize,
    queries: *const f32,
    scores: *mut f32,
    records: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe { chunk_generic::<S, f32>(chunk, spans, heads, queries, scores, records) }
}

#[inline(always)]
unsafe fn chunk_generic<S: Simd, T: Element>(
    chunk: Chunk,
    spans: &[Span],
    heads: usize,
    queries: *const f32,
    scores: *mut f32,
    records: *mut f32,
) {
    let Chunk { key_dim, value_stride, .. } = chunk;
    let record = record_len(value_stride);
    // SAFETY: the caller's promise; spans end at PAGE_LEN at most.
    unsafe {
        let keys = Strided(chunk.keys.cast::<T>().cast_const(), PAGE_LEN);
        let seen = spans.iter().fold(0, |most, span| most.max(span.to)).next_multiple_of(16);
        let queries = Strided(queries, key_dim);
        let to = StridedMut(scores, PAGE_LEN);
        product::<S, T>(spans.len() * heads, key_dim, seen, queries, keys, to, chunk.next);
        let next_values = chunk.next.wrapping_add(key_dim * PAGE_LEN * size_of::<T>());
        for (row, &span) in spans.iter().enumerate() {
            for query in row * heads..(row + 1) * heads {
                let record = Record(records.add(query * record), value_stride);
                softmax::<S>(scores.add(query * PAGE_LEN), span, record);
            }
        }
        // Rows that see the same positions share a product. What a row does not see is left out rather than
        // multiplied by its weight 0: it may be anything, also infinite.
        let mut row = 0;
        while row < spans.len() {
            let span = spans[row];
            let same = spans[row..].iter().take_while(|other| **other == span).count();
            let weights = Strided(scores.add(row * heads * PAGE_LEN + span.from).cast_const(), PAGE_LEN);
            let values =
                Strided(chunk.values.cast::<T>().add(span.from * value_stride).cast_const(), value_stride);
            let to = StridedMut(records.add(row * heads * record), record);
            product::<S, T>(
                same * heads,
                span.to - span.from,
                value_stride,
                weights,
                values,
                to,
                next_values,
            );
            row += same;
        }
    }
}

/// Scores [PAGE_LEN] to weights exp(score - largest), 0 where not seen; the sum has 16 partial sums over position mod 16.
#[inline(always)]
unsafe fn softmax<S: Simd>(scores: *mut f32, span: Span, record: Record) {
    // SAFETY: the caller's promise.
    unsafe {
        for hidden in (0..span.from).chain(span.to..PAGE_LEN) {
            *scores.add(hidden) = f32::NEG_INFINITY;
        }
        let mut largest = Lanes::<S>::load(scores);
        for i in (16..PAGE_LEN).step_by(16) {
            largest = Lanes::load(scores.add(i)).max(largest);
        }
        let largest = largest.largest();
        let mut sum = Lanes::<S>::splat(0.0);
        for i in (0..PAGE_LEN).step_by(16) {
            let weights = Lanes::load(scores.add(i)).sub(Lanes::splat(largest)).exp();
            weights.store(scores.add(i));
            sum = sum.add(weights);
        }
        *record.largest() = largest;
        *record.sum() = sum.sum();
    }
}

#[inline(always)]
unsafe fn merge_generic<S: Simd>(state: *mut f32, next: *const f32, value_stride: usize) {
    // SAFETY: the caller's promise; `next` is only read.
    unsafe {
        let (state, next) = (Record(state, value_stride), Record(next.cast_mut(), value_stride));
        let largest = Lanes::<S>::splat(*state.largest()).max(Lanes::splat(*next.largest()));
        let keep = Lanes::splat(*state.largest()).sub(largest).exp();
        let take = Lanes::splat(*next.largest()).sub(largest).exp();
        for i in (0..value_stride).step_by(16) {
            let taken = Lanes::load(next.0.add(i)).mul(take);
            Lanes::load(state.0.add(i)).fma(keep, taken).store(state.0.add(i));
        }
        let taken = Lanes::splat(*next.sum()).mul(take);
        Lanes::splat(*state.sum()).fma(keep, taken).store_part(state.sum(), 1);
        largest.store_part(state.largest(), 1);
    }
}

#[inline(always)]
unsafe fn finish_generic<S: Simd>(record: *const f32, value_stride: usize, to: *mut f32, width: usize) {
    // SAFETY: the caller's promise; the record is only read.
    unsafe {
        let record = Record(record.cast_mut(), value_stride);
        let sum = Lanes::<S>::splat(*record.sum());
        let whole = width / 16 * 16;
        for i in (0..whole).step_by(16) {
            Lanes::load(record.0.add(i)).div(sum).store(to.add(i));
        }
        if whole < width {
            Lanes::load(record.0.add(whole)).div(sum).store_part(to.add(whole), width - whole);
        }
    }
}

/// A matrix in memory: where it begins, elements from row to row.
#[derive(Clone, Copy)]
struct Strided<T>(*const T, usize);
/// The same, to be written.
#[derive(Clone, Copy)]
struct StridedMut(*mut f32, usize);

/// Most rows of a tile. With 4 vectors of columns it fills 24 of 32 vector registers, with 2 12 of AVX2's 16.
const TILE_ROWS: usize = 6;

/// `c[rows, columns] = a[rows, depth] x b[depth, columns]`: each element starts at 0 and takes up its products in
/// ascending order, each rounded once. Columns are a multiple of 16. On the way it asks for as many bytes from `ahead` on
/// as b has.
#[inline(always)]
unsafe fn product<S: Simd, T: Element>(
    rows: usize,
    depth: usize,
    columns: usize,
    a: Strided<f32>,
    b: Strided<T>,
    c: StridedMut,
    ahead: *const u8,
) {
    let tiles = rows.div_ceil(TILE_ROWS);
    for tile in 0..tiles {
        let (from, to) = (tile * rows / tiles, (tile + 1) * rows / tiles); // 7 rows are 3 and 4, not 6 and 1
        // SAFETY: the caller's promise; from..to is in 0..rows.
        unsafe {
            let a = Strided(a.0.add(from * a.1), a.1);
            let c = StridedMut(c.0.add(from * c.1), c.1);
            match to - from {
                1 => tile_row::<S, T, 1>(depth, columns, a, b, c, ahead),
                2 => tile_row::<S, T, 2>(depth, columns, a, b, c, ahead),
                3 => tile_row::<S, T, 3>(depth, columns, a, b, c, ahead),
                4 => tile_row::<S, T, 4>(depth, columns, a, b, c, ahead),
                5 => tile_row::<S, T, 5>(depth, columns, a, b, c, ahead),
                _ => tile_row::<S, T, TILE_ROWS>(depth, columns, a, b, c, ahead),
            }
        }
    }
}

#[inline(always)]
unsafe fn tile_row<S: Simd, T: Element, const R: usize>(
    depth: usize,
    columns: usize,
    a: Strided<f32>,
    b: Strided<T>,
    c: StridedMut,
    ahead: *const u8,
) {
    let vectors = columns / S::LANES;
    let bytes = depth * S::LANES * size_of::<T>(); // of a vector's columns
    let mut v = 0;
    // SAFETY: the caller's promise; v..v + width is in 0..vectors.
    unsafe {
        while S::LANES != 8 && v + 4 <= vectors {
            tile::<S, T, R, 4>(depth, v * S::LANES, a, b, c, ahead.wrapping_add(v * bytes));
            v += 4;
        }
        while v + 2 <= vectors {
            tile::<S, T, R, 2>(depth, v * S::LANES, a, b, c, ahead.wrapping_add(v * bytes));
            v += 2;
        }
        while v < vectors {
            tile::<S, T, R, 1>(depth, v * S::LANES, a, b, c, ahead.wrapping_add(v * bytes));
            v += 1;
        }
    }
}

/// R rows and V vectors of columns from `column` on, held in registers.
#[allow(clippy::needless_range_loop)] // index loops of constant length unroll for sure
#[inline(always)]
unsafe fn tile<S: Simd, T: Element, const R: usize, const V: usize>(
    depth: usize,
    column: usize,
    a: Strided<f32>,
    b: Strided<T>,
    c: StridedMut,
    ahead: *const u8,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[S::f_splat(0.0); V]; R];
        for k in 0..depth {
            let from = b.0.add(k * b.1 + column);
            let bytes = V * S::LANES * size_of::<T>();
            for line in 0..bytes.div_ceil(64) {
                S::prefetch(ahead.wrapping_add(k * bytes + line * 64));
            }
            let mut vectors = [S::f_splat(0.0); V];
            for v in 0..V {
                vectors[v] = T::load::<S>(from.add(v * S::LANES));
            }
            for r in 0..R {
                let x = S::f_splat(*a.0.add(r * a.1 + k));
                for v in 0..V {
                    sums[r][v] = S::f_fma(x, vectors[v], sums[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                S::f_store(c.0.add(r * c.1 + column + v * S::LANES), sums[r][v]);
            }
        }
    }
}
