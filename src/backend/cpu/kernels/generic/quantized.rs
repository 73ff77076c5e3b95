//! Quantized matrix times int8 activations: what [`few_tokens`](super::few_tokens) and
//! [`many_tokens`](super::many_tokens) have in common.
//!
//! The fixed order of a row's sum, the same for every format, ISA, layout and number of tokens. With the exact integer
//! sum `dot = Σ (quant - offset) * activation` of each group of 16 columns, pairs of groups go in ascending order, each
//!
//! `acc = fma(scale, fma(x_scale1, dot1, x_scale0 * dot0), acc)` if the pair shares a weight scale, else
//! `acc = fma(scale0, x_scale0 * dot0, acc); acc = fma(scale1, x_scale1 * dot1, acc)`,
//!
//! and where there are minima then, for each of the pair's one or two
//!
//! `acc = fma(minimum, x_sum, acc)` with `x_sum = x_scale * Σ activation`, or the sum of the two.

use super::super::Simd;
use super::formats::{CHUNK, Format, GROUP, TILE, Unpacked};
use super::interleave::{RowPointers, interleave};

/// One chunk of a token's activations: groups of 16 values with a scale each.
#[repr(C, align(32))]
pub struct QuantizedChunk {
    /// Rounded to -127..=127.
    pub(super) values: [i8; CHUNK],
    /// Largest magnitude / 127, of each group; 0 if it is below [`TINY`].
    pub(super) scales: [f32; CHUNK / GROUP],
    /// Σ values, negated: where a dot product with offset quants starts from.
    negative_sums: [i32; CHUNK / GROUP],
    /// scale * Σ values, of each group.
    pub(super) sums: [f32; CHUNK / GROUP],
    /// The same of two groups.
    pub(super) pair_sums: [f32; CHUNK / GROUP / 2],
}

impl QuantizedChunk {
    /// All zero.
    pub const ZERO: Self = Self {
        values: [0; CHUNK],
        scales: [0.0; CHUNK / GROUP],
        negative_sums: [0; CHUNK / GROUP],
        sums: [0.0; CHUNK / GROUP],
        pair_sums: [0.0; CHUNK / GROUP / 2],
    };

    /// The value that stands for activation `i`.
    pub fn value(&self, i: usize) -> f32 {
        self.scales[i / GROUP] * f32::from(self.values[i])
    }

    /// The values of a group, four to a lane, all lanes alike.
    #[inline(always)]
    pub(super) unsafe fn group<S: Simd>(&self, group: usize) -> [S::I; 4] {
        unsafe {
            let values = self.values.as_ptr().cast::<u32>().add(4 * group);
            let mut four = [S::i_splat(0); 4];
            for i in 0..4 {
                four[i] = S::i_splat(*values.add(i));
            }
            four
        }
    }
}

/// Groups whose largest magnitude is at most this are taken as zero (127 / it must be finite).
const TINY: f32 = 1e-30;

/// Quantizes a token's `columns` values (a multiple of 32): chunk i goes to `out[i * stride]`.
///
/// # Safety
/// The CPU has the ISA; x holds `columns` values, `out` has a place for each chunk.
#[inline(always)]
pub unsafe fn quantize<S: Simd>(x: *const f32, columns: usize, out: *mut QuantizedChunk, stride: usize) {
    unsafe {
        for chunk in 0..columns.div_ceil(CHUNK) {
            let first = chunk * CHUNK;
            quantize_chunk::<S>(x.add(first), (columns - first).min(CHUNK), &mut *out.add(chunk * stride));
        }
    }
}

/// All groups of a chunk go through a stage together, so that they do not wait for each other.
#[inline(always)]
unsafe fn quantize_chunk<S: Simd>(x: *const f32, columns: usize, out: &mut QuantizedChunk) {
    unsafe {
        let groups = columns / GROUP;
        let mut largest = [0.0; CHUNK / GROUP];
        for group in 0..groups {
            largest[group] = largest_magnitude::<S>(x.add(group * GROUP));
        }
        let mut inverses = [0.0; CHUNK / GROUP];
        for group in 0..CHUNK / GROUP {
            let some = largest[group] > TINY;
            out.scales[group] = if some { largest[group] / 127.0 } else { 0.0 };
            inverses[group] = if some { 127.0 / largest[group] } else { 0.0 };
        }
        for group in 0..groups {
            let inverse = S::f_splat(inverses[group]);
            for part in (group * GROUP..(group + 1) * GROUP).step_by(S::LANES) {
                let v = S::f_mul(S::f_load(x.add(part)), inverse);
                S::i_store_u8(out.values.as_mut_ptr().add(part).cast(), S::f_to_i(v));
            }
        }
        let sums = group_sums::<S>(&out.values);
        for group in 0..CHUNK / GROUP {
            out.negative_sums[group] = -sums[group];
            out.sums[group] = out.scales[group] * sums[group] as f32;
        }
        for pair in 0..CHUNK / GROUP / 2 {
            out.pair_sums[pair] = out.sums[2 * pair] + out.sums[2 * pair + 1];
        }
    }
}

/// Of a group.
#[inline(always)]
unsafe fn largest_magnitude<S: Simd>(x: *const f32) -> f32 {
    unsafe {
        let magnitude = S::i_splat(0x7fff_ffff);
        let mut largest = S::f_splat(0.0);
        for part in (0..GROUP).step_by(S::LANES) {
            let v = S::f_bits(S::f_load(x.add(part)));
            largest = S::f_max(S::f_from_bits(S::i_and(v, magnitude)), largest);
        }
        S::f_max_lane(largest)
    }
}

/// Σ values of each group: dot products with ones give the sums of four.
#[inline(always)]
unsafe fn group_sums<S: Simd>(values: &[i8; CHUNK]) -> [i32; CHUNK / GROUP] {
    unsafe {
        let mut fours = [0u32; CHUNK / 4];
        for part in (0..CHUNK / 4).step_by(S::LANES) {
            let x = S::i_load(values.as_ptr().cast::<u32>().add(part));
            let sums = S::dot(S::i_splat(0), S::i_splat(0x0101_0101), x);
            S::i_store(fours.as_mut_ptr().add(part), sums);
        }
        let mut sums = [0; CHUNK / GROUP];
        for group in 0..CHUNK / GROUP {
            for i in 0..GROUP / 4 {
                sums[group] += fours[group * GROUP / 4 + i] as i32;
            }
        }
        sums
    }
}

/// Where a matrix's bytes are.
#[derive(Clone, Copy)]
pub enum Bytes {
    /// Tiles of 16 rows, each block by block, interleaved.
    Interleaved(*const u8),
    /// Row after row, as in the file.
    AsInFile(*const u8),
}

/// A matrix product, or some tiles of it. Sizes in elements.
#[derive(Clone, Copy)]
pub struct Product {
    /// The weights.
    pub weights: Bytes,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub columns: usize,
    /// Tiles from..to of 16 rows are computed.
    pub tiles: (usize, usize),
    /// `[chunks][tokens]`
    pub x: *const QuantizedChunk,
    /// Tokens.
    pub tokens: usize,
    /// `[rows]`, or null.
    pub bias: *const f32,
    /// `[tokens][rows]`, rows `out_stride` apart.
    pub out: *mut f32,
    /// See `out`.
    pub out_stride: usize,
    /// `[PASS]`
    pub unpacked: *mut Unpacked,
    /// `[PASS][tokens][16]`: the running sums.
    pub sums: *mut f32,
    /// One chunk of a tile, interleaved.
    pub interleaved: *mut u8,
}

/// A chunk of a tile, interleaved: where it is, or in `p.interleaved`.
#[inline(always)]
pub(super) unsafe fn interleaved_chunk<S: Simd, F: Format>(
    p: &Product,
    tile: usize,
    chunk: usize,
    columns: usize,
) -> *const u8 {
    let (block_len, block_bytes) = (F::KIND.block_len(), F::KIND.block_bytes());
    let skip = chunk * CHUNK / block_len * block_bytes;
    unsafe {
        match p.weights {
            Bytes::Interleaved(bytes) => bytes.add(TILE * (tile * F::KIND.row_bytes(p.columns) + skip)),
            Bytes::AsInFile(bytes) => {
                let rows = RowPointers::new(bytes, F::KIND.row_bytes(p.columns), p.rows, tile);
                interleave::<S, F>(&rows, skip, columns / block_len, p.interleaved);
                p.interleaved
            }
        }
    }
}

/// log2 of what is taken off each quant, in the form that the dot product sees.
#[inline(always)]
const fn shift<S: Simd, F: Format>() -> Option<u32> {
    if F::BITS == 8 && S::SIGNED_BIAS { Some(7) } else { F::OFFSET }
}

/// Whether integer sums start at anything but 0.
#[inline(always)]
pub(super) const fn starts_shifted<S: Simd, F: Format>() -> bool {
    shift::<S, F>().is_some()
}

/// Where the integer sums of T tokens' groups start: what the quants' offset takes off.
#[inline(always)]
pub(super) unsafe fn starts<S: Simd, F: Format, const T: usize>(
    x: *const QuantizedChunk,
) -> [[u32; CHUNK / GROUP]; T] {
    let mut starts = [[0; CHUNK / GROUP]; T];
    if let Some(shift) = shift::<S, F>() {
        for t in 0..T {
            for group in 0..CHUNK / GROUP {
                // SAFETY: there are T tokens.
                starts[t][group] = unsafe { ((*x.add(t)).negative_sums[group] << shift) as u32 };
            }
        }
    }
    starts
}

/// The integer sum of a group.
#[inline(always)]
pub(super) unsafe fn dot_group<S: Simd, F: Format>(start: S::I, w: [S::I; 4], x: [S::I; 4]) -> S::I {
    unsafe {
        if F::BITS < 8 {
            return match F::BITS {
                ..=5 => S::dot4::<5>(start, w, x),
                6 => S::dot4::<6>(start, w, x),
                _ => S::dot4::<7>(start, w, x),
            };
        }
        let two = S::dot_signed(S::dot_signed(start, w[0], x[0]), w[1], x[1]);
        S::dot_signed(S::dot_signed(two, w[2], x[2]), w[3], x[3])
    }
}

/// A token's finished sums of a tile, plus the bias, to where they belong.
#[inline(always)]
pub(super) unsafe fn store_tile(p: &Product, tile: usize, token: usize, sums: *const f32) {
    unsafe {
        let row = tile * TILE;
        let rows = (p.rows - row).min(TILE);
        let out = p.out.add(token * p.out_stride + row);
        if p.bias.is_null() {
            std::ptr::copy_nonoverlapping(sums, out, rows);
        } else {
            for i in 0..rows {
                *out.add(i) = *sums.add(i) + *p.bias.add(row + i);
            }
        }
    }
}
