//! Quantized matrix times int8 activations.
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
use super::formats::{Block, CHUNK, Format, GROUP, PAIR, TILE, Unpacked};

/// One chunk of a token's activations: groups of 16 values with a scale each.
#[repr(C, align(32))]
pub struct QuantizedChunk {
    /// Rounded to -127..=127.
    values: [i8; CHUNK],
    /// Largest magnitude / 127, of each group; 0 if it is below [`TINY`].
    scales: [f32; CHUNK / GROUP],
    /// Σ values, negated: where a dot product with offset quants starts from.
    negative_sums: [i32; CHUNK / GROUP],
    /// scale * Σ values, of each group.
    sums: [f32; CHUNK / GROUP],
    /// The same of two groups.
    pair_sums: [f32; CHUNK / GROUP / 2],
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
    /// [PASS]
    pub unpacked: *mut Unpacked,
    /// `[PASS][tokens][16]`: the running sums.
    pub sums: *mut f32,
    /// One chunk of a tile, interleaved.
    pub interleaved: *mut u8,
}

/// Tiles that are unpacked together when there are several tokens, so that each token's activations are read
/// once for all of them. Their quants fill half of a 48 KB first-level cache.
pub const PASS: usize = 4;

/// Up to so many tokens a single tile is a pass: one sequential stream of weights.
const FEW_TOKENS: usize = 16;

/// How far ahead of the unpacking weights are asked for if a pass is a single tile, in bytes (measured: less leaves
/// memory waiting, more falls out of the first-level cache). Else, and where rows are apart, it is the same place of
/// the next pass.
const PREFETCH: usize = 8192;

/// Computes the tiles of a product.
///
/// # Safety
/// The CPU has the ISA; the pointers of `p` are valid for the shapes that they document.
#[inline(always)]
pub unsafe fn multiply<S: Simd, F: Format>(p: &Product) {
    unsafe {
        let pass = if p.tokens <= FEW_TOKENS { 1 } else { PASS };
        let mut tile = p.tiles.0;
        while tile < p.tiles.1 {
            let tiles = pass.min(p.tiles.1 - tile);
            multiply_pass::<S, F>(p, tile, tiles);
            tile += tiles;
        }
    }
}

#[inline(always)]
unsafe fn multiply_pass<S: Simd, F: Format>(p: &Product, first: usize, tiles: usize) {
    unsafe {
        std::ptr::write_bytes(p.sums, 0, tiles * p.tokens * TILE);
        for chunk in 0..p.columns.div_ceil(CHUNK) {
            let columns = (p.columns - chunk * CHUNK).min(CHUNK);
            for tile in 0..tiles {
                unpack_chunk::<S, F>(p, first + tile, chunk, columns, p.unpacked.add(tile));
            }
            multiply_chunk::<S, F>(p, first, tiles, chunk, columns / PAIR);
        }
        for tile in 0..tiles {
            store_tile(p, first + tile, p.sums.add(tile * p.tokens * TILE));
        }
    }
}

#[inline(always)]
unsafe fn unpack_chunk<S: Simd, F: Format>(
    p: &Product,
    tile: usize,
    chunk: usize,
    columns: usize,
    out: *mut Unpacked,
) {
    unsafe {
        let (block_len, block_bytes) = (F::KIND.block_len(), F::KIND.block_bytes());
        let (blocks, skip) = (columns / block_len, chunk * CHUNK / block_len * block_bytes);
        let source = match p.weights {
            Bytes::Interleaved(bytes) => bytes.add(TILE * (tile * F::KIND.row_bytes(p.columns) + skip)),
            Bytes::AsInFile(bytes) => {
                let rows = RowPointers::new(bytes, F::KIND.row_bytes(p.columns), p.rows, tile);
                interleave::<F>(&rows.add(skip), blocks, p.interleaved);
                p.interleaved
            }
        };
        for block in 0..blocks {
            let halves = source.add(block * block_bytes * TILE);
            let words = halves.add(2 * TILE * F::HALVES.len());
            for part in (0..TILE).step_by(S::LANES) {
                F::unpack::<S>(Block {
                    halves: halves.cast::<u16>().add(part),
                    words: words.cast::<u32>().add(part),
                    quants: (*out).quants.as_mut_ptr().add(block * block_len / 4 * TILE + part),
                    scales: (*out).scales.as_mut_ptr().add(block * block_len / F::SCALE_LEN * TILE + part),
                    minima: (*out).minima.as_mut_ptr().add(block * block_len / F::SCALE_LEN * TILE + part),
                });
            }
        }
    }
}

/// Adds the products of a chunk to the running sums, in tiles of tokens that fit the registers.
#[inline(always)]
unsafe fn multiply_chunk<S: Simd, F: Format>(
    p: &Product,
    first: usize,
    tiles: usize,
    chunk: usize,
    pairs: usize,
) {
    unsafe {
        let x = p.x.add(chunk * p.tokens);
        let tile_bytes = TILE * F::KIND.row_bytes(p.columns);
        let (Bytes::Interleaved(bytes) | Bytes::AsInFile(bytes)) = p.weights;
        let ahead = match p.weights {
            Bytes::Interleaved(_) if tiles == 1 => PREFETCH,
            _ => tiles * tile_bytes,
        };
        // A tile's bytes stand together in both layouts.
        let next = bytes.wrapping_add(first * tile_bytes + chunk * TILE * F::KIND.row_bytes(CHUNK) + ahead);
        let mut token = 0;
        macro_rules! token_tiles {
            ($($tokens:literal: $($vectors:literal)*;)*) => {{$(
                while p.tokens - token >= $tokens {
                    let starts = starts::<S, F, $tokens>(x.add(token));
                    let (mut row, rows) = (0, tiles * TILE);
                    $(while rows - row >= $vectors * S::LANES {
                        let next = if token == 0 { next } else { std::ptr::null() };
                        let block = At { row, token, pairs, x: x.add(token), next, tile_bytes };
                        multiply_block::<S, F, $vectors, $tokens>(p, block, &starts);
                        row += $vectors * S::LANES;
                    })*
                    token += $tokens;
                }
            )*}};
        }
        // Tokens of a block: vectors over its rows, as many as the registers hold.
        match (S::LANES, S::REGISTERS) {
            (16, 32) => token_tiles! { 4: 2 1; 1: 1; },
            (8, 16) => token_tiles! { 3: 2; 1: 2; },
            (4, 32) => token_tiles! { 4: 2; 1: 2; },
            _ => token_tiles! { 1: 1; },
        }
    }
}

/// Which part of a pass a block is.
#[derive(Clone, Copy)]
struct At {
    /// First row, counted from the pass's first tile.
    row: usize,
    /// First token.
    token: usize,
    /// Pairs of groups in the chunk.
    pairs: usize,
    /// The first token's activations.
    x: *const QuantizedChunk,
    /// What to ask memory for meanwhile, counted from the pass's first tile; or null.
    next: *const u8,
    /// From one tile to the next, there.
    tile_bytes: usize,
}

/// V vectors of rows times T tokens, over one chunk.
#[inline(always)]
unsafe fn multiply_block<S: Simd, F: Format, const V: usize, const T: usize>(
    p: &Product,
    block: At,
    starts: &[[u32; CHUNK / GROUP]; T],
) {
    unsafe {
        let At { row, token, pairs, x, next, tile_bytes } = block;
        let mut weights = [p.unpacked; V];
        let mut parts = [0; V];
        let mut sums = [[S::f_splat(0.0); V]; T];
        let mut at = [[p.sums; V]; T];
        for v in 0..V {
            let tile = (row + v * S::LANES) / TILE;
            weights[v] = p.unpacked.add(tile);
            parts[v] = (row + v * S::LANES) % TILE;
            for t in 0..T {
                at[t][v] = p.sums.add((tile * p.tokens + token + t) * TILE + parts[v]);
                sums[t][v] = S::f_load(at[t][v]);
            }
        }
        let scales = PAIR / F::SCALE_LEN;
        // All at once would fill the queue of misses and hold up the loads.
        let lines = (TILE * F::KIND.row_bytes(CHUNK)).div_ceil(64 * (CHUNK / PAIR));
        for pair in 0..pairs {
            for v in 0..V {
                if !next.is_null() && parts[v] == 0 {
                    let next = next.wrapping_add((row + v * S::LANES) / TILE * tile_bytes);
                    for line in 0..lines {
                        S::prefetch(next.wrapping_add((pair * lines + line) * 64));
                    }
                }
            }
            let mut w = [[[S::i_splat(0); 4]; 2]; V];
            let mut scale = [[S::f_splat(0.0); 2]; V];
            let mut minimum = scale;
            for v in 0..V {
                let quants = (*weights[v]).quants.as_ptr().add(8 * pair * TILE + parts[v]);
                for i in 0..8 {
                    w[v][i / 4][i % 4] = S::i_load(quants.add(i * TILE));
                }
                for i in 0..scales {
                    let at = (scales * pair + i) * TILE + parts[v];
                    scale[v][i] = S::f_load((*weights[v]).scales.as_ptr().add(at));
                    minimum[v][i] = S::f_load((*weights[v]).minima.as_ptr().add(at));
                }
            }
            for t in 0..T {
                let x = x.add(t);
                let mut scaled = [S::f_splat(0.0); V];
                for i in 0..2 {
                    let group = 2 * pair + i;
                    let values = (*x).values.as_ptr().cast::<u32>().add(4 * group);
                    let mut four = [S::i_splat(0); 4];
                    for i in 0..4 {
                        four[i] = S::i_splat(*values.add(i));
                    }
                    let start = S::i_splat(if shift::<S, F>().is_some() { starts[t][group] } else { 0 });
                    let x_scale = S::f_splat((*x).scales[group]);
                    for v in 0..V {
                        let dot = S::f_from_i(dot_group::<S, F>(start, w[v][i], four));
                        let first_of_scale = i == 0 || scales == 2;
                        scaled[v] = if first_of_scale {
                            S::f_mul(x_scale, dot)
                        } else {
                            S::f_fma(x_scale, dot, scaled[v])
                        };
                        if i == 1 || scales == 2 {
                            sums[t][v] = S::f_fma(scale[v][i % scales], scaled[v], sums[t][v]);
                        }
                    }
                }
                if F::MINIMA {
                    for i in 0..scales {
                        let sum = if scales == 1 { (*x).pair_sums[pair] } else { (*x).sums[2 * pair + i] };
                        for v in 0..V {
                            sums[t][v] = S::f_fma(minimum[v][i], S::f_splat(sum), sums[t][v]);
                        }
                    }
                }
                for v in 0..V {
                    sums[t][v] = S::pin(sums[t][v]);
                }
            }
        }
        for t in 0..T {
            for v in 0..V {
                S::f_store(at[t][v], sums[t][v]);
            }
        }
    }
}

/// log2 of what is taken off each quant, in the form that the dot product sees.
#[inline(always)]
const fn shift<S: Simd, F: Format>() -> Option<u32> {
    if F::BITS == 8 && S::SIGNED_BIAS { Some(7) } else { F::OFFSET }
}

/// Where the integer sums of T tokens' groups start: what the quants' offset takes off.
#[inline(always)]
unsafe fn starts<S: Simd, F: Format, const T: usize>(x: *const QuantizedChunk) -> [[u32; CHUNK / GROUP]; T] {
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
unsafe fn dot_group<S: Simd, F: Format>(start: S::I, w: [S::I; 4], x: [S::I; 4]) -> S::I {
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

/// A tile's finished sums [tokens][16], plus the bias, to where they belong.
#[inline(always)]
unsafe fn store_tile(p: &Product, tile: usize, sums: *const f32) {
    unsafe {
        let row = tile * TILE;
        let rows = (p.rows - row).min(TILE);
        for token in 0..p.tokens {
            let (sums, out) = (sums.add(token * TILE), p.out.add(token * p.out_stride + row));
            if p.bias.is_null() {
                std::ptr::copy_nonoverlapping(sums, out, rows);
            } else {
                for i in 0..rows {
                    *out.add(i) = *sums.add(i) + *p.bias.add(row + i);
                }
            }
        }
    }
}

/// The rows of a tile as they stand in the file; beyond the matrix the last row again (nobody reads its sums).
#[derive(Clone, Copy)]
pub struct RowPointers([*const u8; TILE]);

impl RowPointers {
    /// The starts of the rows of a tile.
    ///
    /// # Safety
    /// `bytes` holds `rows` rows of `row_bytes`, and one of them is in the tile.
    #[inline(never)]
    pub unsafe fn new(bytes: *const u8, row_bytes: usize, rows: usize, tile: usize) -> Self {
        let mut pointers = [bytes; TILE];
        for (i, pointer) in pointers.iter_mut().enumerate() {
            // SAFETY: the row exists.
            *pointer = unsafe { bytes.add((tile * TILE + i).min(rows - 1) * row_bytes) };
        }
        Self(pointers)
    }

    /// So many bytes further on in each row.
    #[inline(always)]
    pub fn add(&self, bytes: usize) -> Self {
        let mut pointers = self.0;
        for pointer in &mut pointers {
            *pointer = pointer.wrapping_add(bytes);
        }
        Self(pointers)
    }
}

/// Interleaves so many blocks of each row, one after the other.
///
/// A function of its own: it needs no vector unit, and inlined it would crowd the registers of the product.
///
/// # Safety
/// Each pointer stands at so many blocks of F; `out` has room for them.
#[inline(never)]
pub unsafe fn interleave<F: Format>(rows: &RowPointers, blocks: usize, out: *mut u8) {
    for block in 0..blocks {
        let offset = block * F::KIND.block_bytes();
        // SAFETY: the block exists, its copy has room.
        unsafe { interleave_block::<F>(&rows.add(offset), out.add(offset * TILE)) }
    }
}

/// Interleaves the blocks that the pointers stand at: `out` takes 16 blocks.
#[inline(always)]
unsafe fn interleave_block<F: Format>(rows: &RowPointers, out: *mut u8) {
    unsafe {
        for (i, &offset) in F::HALVES.iter().enumerate() {
            for (row, &block) in rows.0.iter().enumerate() {
                let half = block.add(offset).cast::<u16>().read_unaligned();
                out.cast::<u16>().add(i * TILE + row).write_unaligned(half);
            }
        }
        let mut words = out.add(2 * TILE * F::HALVES.len()).cast::<[u32; 4]>();
        for &(offset, count) in F::WORDS {
            let whole = count / 4 * 4;
            for i in (0..whole).step_by(4) {
                let rows = rows.add(offset + 4 * i);
                for quarter in 0..4 {
                    transpose_4x4(&rows.0[4 * quarter..], words.add(i * TILE / 4 + quarter));
                }
            }
            for i in whole..count {
                for (row, &block) in rows.0.iter().enumerate() {
                    let word = block.add(offset + 4 * i).cast::<u32>().read_unaligned();
                    words.cast::<u32>().add(i * TILE + row).write_unaligned(word);
                }
            }
            words = words.add(count * TILE / 4);
        }
    }
}

/// Four words of four rows: word i of the rows goes to `out[4 * i]`.
#[inline(always)]
unsafe fn transpose_4x4(rows: &[*const u8], out: *mut [u32; 4]) {
    unsafe {
        let mut words = [[0; 4]; 4];
        for (words, row) in words.iter_mut().zip(rows) {
            *words = row.cast::<[u32; 4]>().read_unaligned();
        }
        let [a, b, c, d] = words;
        for i in 0..4 {
            out.add(i * TILE / 4).write_unaligned([a[i], b[i], c[i], d[i]]);
        }
    }
}
