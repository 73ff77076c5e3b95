//! A cache of q8_0: int8 values, an f16 scale for each 32 dimensions of a position.
//!
//! A query is split into two int8 terms, 128 high + low, with one f32 scale for each 32 dimensions: 15 bits, next to
//! the keys' 8 exact. With the integer sum `dot = Σ query * key` of a block, which is exact, a score takes up the blocks
//! in ascending order, `score = fma(dot * query_scale, key_scale, score)` from 0 on.
//!
//! A weight is multiplied by its position's value scale, rounded once; an output takes up the positions in ascending
//! order, `output = fma(weight, value, output)` from 0 on.

use half::f16;

use super::product::{Strided, StridedMut, Tiles, compute, product};
use super::{Cached, Chunk, Simd, Span, record_len};
use crate::backend::{KvType, PAGE_LEN};

/// The kind of cache.
#[derive(Clone, Copy, Debug)]
pub struct Q8_0;

/// Dimensions that share a scale.
const BLOCK: usize = 32;

/// Largest magnitude of a query's two terms together: 128 * 127.
const QUERY_MAX: f32 = 16256.0;

/// Blocks of a query whose largest magnitude is at most this are taken as zero: 1 / scale must be finite.
const TINY: f32 = 1e-30;

/// 32 dimensions of PAGE_LEN positions in the cache.
#[derive(Clone, Copy)]
struct Block {
    /// f16 [PAGE_LEN]
    scales: *mut u16,
    /// Keys: [8, PAGE_LEN] lanes of four dimensions. Values: [PAGE_LEN, 32].
    values: *mut i8,
}

impl Block {
    #[inline(always)]
    unsafe fn at(start: *mut u8, index: usize) -> Self {
        // SAFETY: the block is one of the chunk's.
        unsafe {
            let scales = start.add(index * PAGE_LEN * (size_of::<u16>() + BLOCK));
            Block { scales: scales.cast(), values: scales.add(PAGE_LEN * size_of::<u16>()).cast() }
        }
    }
}

/// 32 dimensions of a query.
#[repr(C)]
struct QueryBlock {
    high: [i8; BLOCK],
    low: [i8; BLOCK],
    scale: f32,
    /// Where the integer sum starts: -Σ (128 high + low) if the dot product adds 128 to each key, which 128 times over
    /// is what it adds up to.
    start: i32,
}

/// 32 f32, of which those beyond a head's end are zero.
#[inline(always)]
unsafe fn padded(from: *const f32, width: usize, block: usize) -> [f32; BLOCK] {
    let mut values = [0.0; BLOCK];
    // SAFETY: the caller's promise that `width` values are readable.
    unsafe {
        let from = from.add(block * BLOCK);
        std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), (width - block * BLOCK).min(BLOCK));
    }
    values
}

/// The largest magnitude; NaN does not count.
#[inline(always)]
unsafe fn largest<S: Simd>(values: &[f32; BLOCK]) -> f32 {
    // SAFETY: the caller's promise that the CPU has the ISA.
    unsafe {
        let mut most = S::f_splat(0.0);
        for i in (0..BLOCK).step_by(S::LANES) {
            let bits = S::i_and(S::f_bits(S::f_load(values.as_ptr().add(i))), S::i_splat(0x7fff_ffff));
            most = S::f_max(S::f_from_bits(bits), most);
        }
        S::f_max_lane(most)
    }
}

/// 1 / scale, or 0 for a scale of 0.
#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale > 0.0 { 1.0 / scale } else { 0.0 }
}

/// The scale, and the values in units of the scale as it is stored.
#[inline(always)]
unsafe fn quantize<S: Simd>(values: &[f32; BLOCK]) -> (f16, [i8; BLOCK]) {
    let mut out = [0; BLOCK];
    // SAFETY: the caller's promise that the CPU has the ISA.
    unsafe {
        let scale = f16::from_f32(largest::<S>(values) / 127.0);
        let inverse = inverse(scale.to_f32());
        for i in (0..BLOCK).step_by(S::LANES) {
            let v = S::f_mul(S::f_load(values.as_ptr().add(i)), S::f_splat(inverse));
            // a tiny scale may be rounded down a good part
            let v = S::f_max(S::f_min(v, S::f_splat(127.0)), S::f_splat(-127.0));
            S::i_store_u8(out.as_mut_ptr().add(i).cast(), S::f_to_i(v));
        }
        (scale, out)
    }
}

impl Cached for Q8_0 {
    fn query_bytes(key_dim: usize) -> usize {
        key_dim.div_ceil(BLOCK) * size_of::<QueryBlock>()
    }

    #[inline(always)]
    unsafe fn query<S: Simd>(from: *const f32, key_dim: usize, scale: f32, to: *mut u8) {
        for block in 0..key_dim.div_ceil(BLOCK) {
            // SAFETY: the caller's promise.
            unsafe {
                let values = padded(from, key_dim, block).map(|v| v * scale);
                split::<S>(&values, &mut *to.cast::<QueryBlock>().add(block));
            }
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
        // SAFETY: the caller's promise.
        unsafe {
            for block in 0..chunk.key_dim.div_ceil(BLOCK) {
                let (scale, lanes) = quantize::<S>(&padded(key, chunk.key_dim, block));
                let to = Block::at(chunk.keys, block);
                *to.scales.add(at) = scale.to_bits();
                for (i, four) in lanes.as_chunks::<4>().0.iter().enumerate() {
                    *to.values.cast::<[i8; 4]>().add(i * PAGE_LEN + at) = *four;
                }
            }
            for block in 0..value_dim.div_ceil(BLOCK) {
                let (scale, stored) = quantize::<S>(&padded(value, value_dim, block));
                let to = Block::at(chunk.values, block);
                *to.scales.add(at) = scale.to_bits();
                *to.values.cast::<[i8; BLOCK]>().add(at) = stored;
            }
        }
    }

    /// A block has the same scales and numbers in both forms: words of four dimensions change their places.
    #[inline(always)]
    unsafe fn whole_keys<S: Simd>(chunk: &Chunk, to: *mut u8) {
        let blocks = chunk.value_stride / BLOCK;
        // SAFETY: the caller's promise; what is not in the value follows it.
        unsafe {
            for block in 0..blocks {
                let (from, to) = (Block::at(chunk.values, block), Block::at(to, block));
                std::ptr::copy_nonoverlapping(from.scales, to.scales, PAGE_LEN);
                let mut rows = [from.values.cast::<u8>().cast_const(); PAGE_LEN];
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = row.add(i * BLOCK);
                }
                for lane in (0..PAGE_LEN).step_by(S::LANES) {
                    for i in (0..BLOCK / 4).step_by(4) {
                        let four = S::i_load_transposed(rows.as_ptr().add(lane), i * 4);
                        for (j, positions) in four.into_iter().enumerate() {
                            S::i_store(to.values.cast::<u32>().add((i + j) * PAGE_LEN + lane), positions);
                        }
                    }
                }
            }
            let rest = Block::at(to, blocks).scales.cast::<u8>();
            let bytes = KvType::Q8_0.key_bytes(chunk.key_dim) * PAGE_LEN;
            std::ptr::copy_nonoverlapping(chunk.keys, rest, bytes);
        }
    }

    #[inline(always)]
    unsafe fn scores<S: Simd>(chunk: &Chunk, queries: *const u8, rows: usize, seen: usize, to: *mut f32) {
        let blocks = chunk.key_dim.div_ceil(BLOCK);
        // SAFETY: the caller's promise.
        unsafe { compute::<S, _>(rows, seen, Scores { chunk, blocks, queries: queries.cast(), to }) }
    }

    #[inline(always)]
    unsafe fn outputs<S: Simd>(
        chunk: &Chunk,
        weights: *const f32,
        rows: usize,
        span: Span,
        to: *mut f32,
        scratch: *mut f32,
    ) {
        let record = record_len(chunk.value_stride);
        // SAFETY: the caller's promise; 16-blocks of positions that the span touches lie in the page.
        unsafe {
            for block in 0..chunk.value_stride / BLOCK {
                let Block { scales, values } = Block::at(chunk.values, block);
                for line in (0..PAGE_LEN).step_by(32) {
                    S::prefetch_far(chunk.value_ahead(scales.add(line)));
                }
                for i in (span.from / 16 * 16..span.to.next_multiple_of(16)).step_by(S::LANES) {
                    let scale = S::f_load_f16(scales.add(i));
                    for row in 0..rows {
                        let weight = S::f_load(weights.add(row * PAGE_LEN + i));
                        S::f_store(scratch.add(row * PAGE_LEN + i), S::f_mul(weight, scale));
                    }
                }
                let weights = Strided(scratch.add(span.from).cast_const(), PAGE_LEN);
                let values = Strided(values.add(span.from * BLOCK).cast_const(), BLOCK);
                let to = StridedMut(to.add(block * BLOCK), record);
                let next = chunk.value_ahead(values.0);
                product::<S, i8>(rows, span.to - span.from, BLOCK, weights, values, to, next);
            }
        }
    }
}

/// Splits 32 values of a query into two int8 terms.
#[inline(always)]
unsafe fn split<S: Simd>(values: &[f32; BLOCK], to: &mut QueryBlock) {
    // SAFETY: the caller's promise that the CPU has the ISA.
    unsafe {
        let largest = largest::<S>(values);
        let scale = if largest > TINY { largest / QUERY_MAX } else { 0.0 };
        let inverse = inverse(scale);
        let mut sums = S::i_splat(0);
        for i in (0..BLOCK).step_by(S::LANES) {
            let v = S::f_to_i(S::f_mul(S::f_load(values.as_ptr().add(i)), S::f_splat(inverse)));
            let high = S::i_sar::<7>(S::i_add(v, S::i_splat(64)));
            S::i_store_u8(to.high.as_mut_ptr().add(i).cast(), high);
            S::i_store_u8(to.low.as_mut_ptr().add(i).cast(), S::i_sub(v, S::i_shl::<7>(high)));
            sums = S::i_add(sums, v);
        }
        let mut lanes = [0i32; 16];
        S::i_store(lanes.as_mut_ptr().cast(), sums);
        to.scale = scale;
        // of what is no number the scale says so; its sum is any
        let sum = lanes.iter().fold(0, |sum: i32, &v| sum.wrapping_add(v));
        to.start = if S::SIGNED_BIAS { sum.wrapping_neg() } else { 0 };
    }
}

/// Queries x keys.
#[derive(Clone, Copy)]
struct Scores<'a> {
    chunk: &'a Chunk,
    blocks: usize,
    /// [rows, blocks]
    queries: *const QueryBlock,
    /// [rows, PAGE_LEN]
    to: *mut f32,
}

impl<S: Simd> Tiles<S> for Scores<'_> {
    const REGISTERS: usize = 2;

    #[allow(clippy::needless_range_loop)] // index loops of constant length unroll for sure
    #[inline(always)]
    unsafe fn tile<const R: usize, const V: usize>(self, row: usize, column: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[S::f_splat(0.0); V]; R];
            for block in 0..self.blocks {
                let keys = Block::at(self.chunk.keys, block);
                let lanes = keys.values.cast::<u32>().add(column);
                let queries = self.queries.add(row * self.blocks + block);
                let query = |r: usize| queries.add(r * self.blocks);

                let mut dots = [[S::i_splat(0); V]; R];
                for r in 0..R {
                    dots[r] = [S::i_splat((*query(r)).start as u32); V];
                }
                for i in 0..BLOCK / 4 {
                    for line in (0..V * S::LANES).step_by(16) {
                        S::prefetch_far(self.chunk.key_ahead(lanes.add(i * PAGE_LEN + line)));
                    }
                    for r in 0..R {
                        let x = S::i_splat((*query(r)).high.as_ptr().cast::<u32>().add(i).read_unaligned());
                        for v in 0..V {
                            let key = S::i_load(lanes.add(i * PAGE_LEN + v * S::LANES));
                            dots[r][v] = S::dot_signed(dots[r][v], key, x);
                        }
                    }
                }
                for r in 0..R {
                    for v in 0..V {
                        dots[r][v] = S::i_shl::<7>(dots[r][v]);
                    }
                }
                for i in 0..BLOCK / 4 {
                    for r in 0..R {
                        let x = S::i_splat((*query(r)).low.as_ptr().cast::<u32>().add(i).read_unaligned());
                        for v in 0..V {
                            let key = S::i_load(lanes.add(i * PAGE_LEN + v * S::LANES));
                            dots[r][v] = S::dot_signed(dots[r][v], key, x);
                        }
                    }
                }
                S::prefetch_far(self.chunk.key_ahead(keys.scales.add(column)));
                for v in 0..V {
                    let scale = S::f_load_f16(keys.scales.add(column + v * S::LANES));
                    for r in 0..R {
                        let dot = S::f_mul(S::f_from_i(dots[r][v]), S::f_splat((*query(r)).scale));
                        sums[r][v] = S::f_fma(dot, scale, sums[r][v]);
                    }
                }
            }
            for r in 0..R {
                for v in 0..V {
                    let at = (row + r) * PAGE_LEN + column + v * S::LANES;
                    S::f_store(self.to.add(at), sums[r][v]);
                }
            }
        }
    }
}
