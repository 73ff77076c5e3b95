//! Attention of a tile of query vectors over one chunk of [`PAGE_LEN`] positions, and the merging of chunks.
//!
//! Both products, scores = queries x keys and output = weights x values, are one small matrix product in which a lane
//! belongs to one column (a position; a value dimension) and each sum runs over its terms in ascending order. So a
//! query's result does not depend on the queries that it shares a tile with.
//!
//! The weights exp(score - m), m the chunk's largest score, are added up in 16 partial sums over position mod 16. Chunks
//! are merged in ascending order, outputs and partial sums alike: the part with the smaller m is multiplied by
//! exp(its m - the other m) and added to the other, rounded once. At the end the partial sums are added by the fixed tree
//! of `Lanes::sum`, and the output is divided by their sum.
//!
//! What is said here holds for every kind of cache; `floats` and `q8_0` say how keys and values are read.

mod floats;
mod product;
mod q8_0;

use super::super::{Simd, entry_points};
use super::math::Lanes;
use crate::backend::PAGE_LEN;
pub use q8_0::Q8_0;

/// Values of a record after its output: 16 sums of weights, the largest score, and room up to a full cache line.
pub const RECORD_TAIL: usize = 32;

/// What attention over some chunks leaves of one query, in memory: the weighted sum of the values [value_stride], not
/// yet divided; the weights exp(score - m) as 16 partial sums over position mod 16; the largest score m.
#[derive(Clone, Copy)]
struct Record(*mut f32, usize);

impl Record {
    #[inline(always)]
    unsafe fn sums(self) -> *mut f32 {
        // SAFETY: a record is RECORD_TAIL values longer than its output.
        unsafe { self.0.add(self.1) }
    }
    #[inline(always)]
    unsafe fn largest(self) -> *mut f32 {
        // SAFETY: as above.
        unsafe { self.0.add(self.1 + 16) }
    }
}

/// Values of a record.
pub const fn record_len(value_stride: usize) -> usize {
    value_stride + RECORD_TAIL
}

/// Makes a record of one position with this score and a value of zeros.
///
/// # Safety
/// `record` has [`record_len`] values.
pub unsafe fn sink_record(record: *mut f32, value_stride: usize, score: f32) {
    // SAFETY: the caller's promise.
    unsafe {
        std::ptr::write_bytes(record, 0, record_len(value_stride));
        let record = Record(record, value_stride);
        *record.sums() = 1.0;
        *record.largest() = score;
    }
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
    /// [key_dim, PAGE_LEN], or blocks of q8_0
    pub keys: *mut u8,
    /// [PAGE_LEN, value_stride], or blocks of q8_0
    pub values: *mut u8,
    /// Width of a key.
    pub key_dim: usize,
    /// Width of a value, rounded up to 16 (q8_0: 32).
    pub value_stride: usize,
    /// The keys of the chunk that is likely read next: asked for ahead, never read.
    pub next_keys: *const u8,
    /// Its values.
    pub next_values: *const u8,
}

impl Chunk {
    /// What lies as far behind the next chunk's keys as `p` behind the keys.
    #[inline(always)]
    fn key_ahead<T>(&self, p: *const T) -> *const u8 {
        self.next_keys.wrapping_add(p.addr() - self.keys.addr())
    }

    /// The same of values.
    #[inline(always)]
    fn value_ahead<T>(&self, p: *const T) -> *const u8 {
        self.next_values.wrapping_add(p.addr() - self.values.addr())
    }
}

/// A kind of cache: f32, f16 or [`Q8_0`].
pub trait Cached: 'static {
    /// Bytes of a query that was made ready.
    fn query_bytes(key_dim: usize) -> usize;

    /// Makes a query `[key_dim]` ready for [`scores`](Self::scores), times `scale`.
    ///
    /// # Safety
    /// The CPU has the ISA; `to` has [`query_bytes`](Self::query_bytes), aligned to 4.
    unsafe fn query<S: Simd>(from: *const f32, key_dim: usize, scale: f32, to: *mut u8);

    /// Stores a key and a value at position `at`.
    ///
    /// # Safety
    /// The CPU has the ISA; `at` < PAGE_LEN, and nobody else is at this position.
    unsafe fn append<S: Simd>(chunk: &Chunk, at: usize, key: *const f32, value: *const f32, value_dim: usize);

    /// Puts keys together that begin with the values: `to` takes keys as wide as value and key of the chunk together.
    ///
    /// # Safety
    /// The CPU has the ISA; `value_stride` is the values' width and a multiple of 32; `to` has room, aligned to 4.
    unsafe fn whole_keys<S: Simd>(chunk: &Chunk, to: *mut u8);

    /// `to[row][position]` = query x key for `rows` queries and the first `seen` positions, a multiple of 16.
    ///
    /// # Safety
    /// The CPU has the ISA; `to` is [rows, PAGE_LEN].
    unsafe fn scores<S: Simd>(chunk: &Chunk, queries: *const u8, rows: usize, seen: usize, to: *mut f32);

    /// `to[row]` = weights x values over the positions of `span`; what lies outside is not touched. `weights` are
    /// [rows, PAGE_LEN], `to` [rows, record], `scratch` has room for so many weights more.
    ///
    /// # Safety
    /// The CPU has the ISA; the pointers are valid for these shapes.
    unsafe fn outputs<S: Simd>(
        chunk: &Chunk,
        weights: *const f32,
        rows: usize,
        span: Span,
        to: *mut f32,
        scratch: *mut f32,
    );
}

entry_points! {
    /// Stores a key and a value of `value_dim` dimensions at position `at` of the chunk.
    pub fn append<C: Cached>(chunk: Chunk, at: usize, key: *const f32, value: *const f32, value_dim: usize)
        = append_generic;
    /// Puts keys together that begin with the values: `to` has room for keys as wide as both.
    pub fn whole_keys<C: Cached>(chunk: Chunk, to: *mut u8) = whole_keys_generic;
    /// Makes `count` queries [count, key_dim] ready, times `scale`.
    pub fn prepare<C: Cached>(from: *const f32, count: usize, key_dim: usize, scale: f32, to: *mut u8)
        = prepare_generic;
    /// One chunk for `spans.len()` rows of `heads` query vectors each: `queries` [rows * heads] come from [`prepare`];
    /// `scores` [2 * rows * heads, PAGE_LEN] is scratch; `records` [rows * heads] are written.
    pub fn chunk<C: Cached>(chunk: Chunk, spans: &[Span], heads: usize, queries: *const u8, scores: *mut f32, records: *mut f32)
        = chunk_generic;
    /// `state` = state and then `next`, which follows it in the sequence.
    pub fn merge(state: *mut f32, next: *const f32, value_stride: usize) = merge_generic;
    /// `to` = the record's output over its sum of weights: the first `width` values.
    pub fn finish(record: *const f32, value_stride: usize, to: *mut f32, width: usize) = finish_generic;
}

#[inline(always)]
unsafe fn append_generic<S: Simd, C: Cached>(
    chunk: Chunk,
    at: usize,
    key: *const f32,
    value: *const f32,
    value_dim: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { C::append::<S>(&chunk, at, key, value, value_dim) }
}

#[inline(always)]
unsafe fn whole_keys_generic<S: Simd, C: Cached>(chunk: Chunk, to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { C::whole_keys::<S>(&chunk, to) }
}

#[inline(always)]
unsafe fn prepare_generic<S: Simd, C: Cached>(
    from: *const f32,
    count: usize,
    key_dim: usize,
    scale: f32,
    to: *mut u8,
) {
    for i in 0..count {
        // SAFETY: the caller's promise.
        unsafe { C::query::<S>(from.add(i * key_dim), key_dim, scale, to.add(i * C::query_bytes(key_dim))) }
    }
}

#[inline(always)]
unsafe fn chunk_generic<S: Simd, C: Cached>(
    chunk: Chunk,
    spans: &[Span],
    heads: usize,
    queries: *const u8,
    scores: *mut f32,
    records: *mut f32,
) {
    let value_stride = chunk.value_stride;
    let record = record_len(value_stride);
    // SAFETY: the caller's promise; spans end at PAGE_LEN at most.
    unsafe {
        let seen = spans.iter().fold(0, |most, span| most.max(span.to)).next_multiple_of(16);
        C::scores::<S>(&chunk, queries, spans.len() * heads, seen, scores);
        for (row, &span) in spans.iter().enumerate() {
            for query in row * heads..(row + 1) * heads {
                let record = Record(records.add(query * record), value_stride);
                softmax::<S>(scores.add(query * PAGE_LEN), span, record);
            }
        }
        // Rows that see the same positions share a product. What a row does not see is left out rather than
        // multiplied by its weight 0: it may be anything, also infinite.
        let scratch = scores.add(spans.len() * heads * PAGE_LEN);
        let mut row = 0;
        while row < spans.len() {
            let span = spans[row];
            let same = spans[row..].iter().take_while(|other| **other == span).count();
            let weights = scores.add(row * heads * PAGE_LEN);
            C::outputs::<S>(&chunk, weights, same * heads, span, records.add(row * heads * record), scratch);
            row += same;
        }
    }
}

/// Scores [PAGE_LEN] to weights exp(score - largest), 0 where not seen. What lies outside the blocks of 16 positions
/// that the span touches stays as it is.
#[inline(always)]
unsafe fn softmax<S: Simd>(scores: *mut f32, span: Span, record: Record) {
    let (from, to) = (span.from / 16 * 16, span.to.next_multiple_of(16));
    // SAFETY: the caller's promise.
    unsafe {
        for hidden in (from..span.from).chain(span.to..to) {
            *scores.add(hidden) = f32::NEG_INFINITY;
        }
        let mut largest = Lanes::<S>::splat(f32::NEG_INFINITY);
        for i in (from..to).step_by(16) {
            largest = Lanes::load(scores.add(i)).max(largest);
        }
        let largest = largest.largest();
        let mut sums = Lanes::<S>::splat(0.0);
        for i in (from..to).step_by(16) {
            let weights = Lanes::load(scores.add(i)).sub(Lanes::splat(largest)).exp();
            weights.store(scores.add(i));
            sums = sums.add(weights);
        }
        sums.store(record.sums());
        *record.largest() = largest;
    }
}

/// The part with the smaller m is scaled down as it is added: fma(value, exp(its m - other m), other value).
#[inline(always)]
unsafe fn merge_generic<S: Simd>(state: *mut f32, next: *const f32, value_stride: usize) {
    // SAFETY: the caller's promise; `next` is only read.
    unsafe {
        let (state, next) = (Record(state, value_stride), Record(next.cast_mut(), value_stride));
        let (before, other) = (*state.largest(), *next.largest());
        let values = (0..value_stride + 16).step_by(16); // and the sums behind them
        if other > before {
            let factor = Lanes::<S>::splat(before - other).exp();
            for i in values {
                Lanes::load(state.0.add(i)).fma(factor, Lanes::load(next.0.add(i))).store(state.0.add(i));
            }
            *state.largest() = other;
        } else {
            let factor = Lanes::<S>::splat(other - before).exp();
            for i in values {
                Lanes::load(next.0.add(i)).fma(factor, Lanes::load(state.0.add(i))).store(state.0.add(i));
            }
        }
    }
}

#[inline(always)]
unsafe fn finish_generic<S: Simd>(record: *const f32, value_stride: usize, to: *mut f32, width: usize) {
    // SAFETY: the caller's promise; the record is only read.
    unsafe {
        let record = Record(record.cast_mut(), value_stride);
        let sum = Lanes::<S>::splat(Lanes::<S>::load(record.sums()).sum());
        let whole = width / 16 * 16;
        for i in (0..whole).step_by(16) {
            Lanes::load(record.0.add(i)).div(sum).store(to.add(i));
        }
        if whole < width {
            Lanes::load(record.0.add(whole)).div(sum).store_part(to.add(whole), width - whole);
        }
    }
}
