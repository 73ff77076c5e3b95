//! The product for many tokens: prefill, large batches.
//!
//! A chunk of some tiles is unpacked once and used for all tokens, in blocks of tokens and rows that fill the registers.
//! The order of a sum is the one that `quantized` states.

use super::super::Simd;
use super::formats::four;
use super::formats::{Block, CHUNK, Format, GROUP, PAIR, Scales, TILE, Unpacked};
use super::quantized::{
    Bytes, Groups, Product, QuantizedChunk, dot_group, interleaved_chunk, powers, start, starts, store_tile,
    unrolled,
};

/// Tiles that are unpacked together when there are many tokens, so that each token's activations are read
/// once for all of them. Their quants fill half of a 48 KB first-level cache.
pub const PASS: usize = 4;

/// Computes the tiles of a product.
///
/// # Safety
/// The CPU has the ISA; the pointers of `p` are valid for the shapes that they document.
#[inline(always)]
pub unsafe fn multiply<S: Simd, F: Format>(p: &Product) {
    unsafe {
        // once, as in `few_tokens`
        let mut scales = Scales::zero();
        let mut tile = p.tiles.0;
        while tile < p.tiles.1 {
            let tiles = PASS.min(p.tiles.1 - tile);
            multiply_pass::<S, F>(p, tile, tiles, &mut scales);
            tile += tiles;
        }
    }
}

#[inline(always)]
unsafe fn multiply_pass<S: Simd, F: Format>(p: &Product, first: usize, tiles: usize, scales: &mut Scales<S>) {
    unsafe {
        let chunks = p.columns.div_ceil(CHUNK);
        for chunk in 0..chunks {
            let columns = (p.columns - chunk * CHUNK).min(CHUNK);
            for tile in 0..tiles {
                unpack_chunk::<S, F>(p, (first + tile, chunk), columns, scales, p.unpacked.add(tile));
            }
            multiply_chunk::<S, F>(p, first, tiles, chunk, columns / PAIR);
        }
        // all others have gone where they belong with the last chunk
        let whole = (p.rows / TILE - first).min(tiles);
        for tile in whole..tiles {
            for token in 0..p.tokens {
                store_tile(p, first + tile, token, p.sums.add((tile * p.tokens + token) * TILE));
            }
        }
    }
}

#[inline(always)]
unsafe fn unpack_chunk<S: Simd, F: Format>(
    p: &Product,
    (tile, chunk): (usize, usize),
    columns: usize,
    scales: &mut Scales<S>,
    out: *mut Unpacked,
) {
    unsafe {
        let (block_len, block_bytes) = (F::KIND.block_len(), F::KIND.block_bytes());
        let source = interleaved_chunk::<F>(p, tile, chunk, columns);
        for block in 0..columns / block_len {
            let start = source.add(block * block_bytes * TILE);
            for part in (0..TILE).step_by(S::LANES) {
                let b = Block::new::<F>(start, part);
                unpack_block::<S, F>(b, scales, out, block * block_len, part);
            }
        }
    }
}

/// Unpacks LANES rows of a block to where column `first` of the chunk is, rows from `part` on.
#[inline(always)]
unsafe fn unpack_block<S: Simd, F: Format>(
    b: Block,
    all: &mut Scales<S>,
    out: *mut Unpacked,
    first: usize,
    part: usize,
) {
    let block_len = F::KIND.block_len();
    unsafe {
        F::scales::<S>(b, all);
        let scales = (*out).scales.as_mut_ptr();
        for i in 0..block_len / F::SCALE_LEN {
            let at = (first / F::SCALE_LEN + i) * TILE + part;
            S::f_store(scales.add(at), all.scales[i]);
        }
        if F::MINIMA {
            S::f_store((*out).minima.as_mut_ptr().add(first / PAIR * TILE + part), all.minimum);
        }
        if F::MINIMA && powers::<F>() {
            let minima = (*out).integer_minima.as_mut_ptr().add(part);
            for i in 0..CHUNK / F::SCALE_LEN / 2 {
                S::i_store(minima.add(i * TILE), all.minima[i]);
            }
        }
        let quants = (*out).quants.as_mut_ptr().add(first / 4 * TILE + part);
        for unit in 0..block_len / F::UNIT {
            for group in 0..F::UNIT / GROUP {
                let four = F::quants::<S>(b, unit, group);
                let to = quants.add((unit * F::UNIT + group * GROUP) / 4 * TILE);
                for i in 0..4 {
                    S::i_store(to.add(i * TILE), four[i]);
                }
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
        // The same place of the next pass; a tile's bytes stand together in both layouts.
        let next = bytes.wrapping_add((first + tiles) * tile_bytes + chunk * TILE * F::KIND.row_bytes(CHUNK));
        let mut token = 0;
        macro_rules! token_tiles {
            ($($tokens:literal: $($vectors:literal)*;)*) => {{$(
                while takes($tokens, p.tokens - token) {
                    let starts = starts::<S, F, $tokens>(x.add(token));
                    let (mut row, rows) = (0, tiles * TILE);
                    $(while rows - row >= $vectors * S::LANES {
                        let next = if token == 0 { next } else { std::ptr::null() };
                        let block = At { first, row, token, chunk, pairs, x: x.add(token), next, tile_bytes };
                        multiply_block::<S, F, $vectors, $tokens>(p, block, &starts);
                        row += $vectors * S::LANES;
                    })*
                    token += $tokens;
                }
            )*}};
        }
        // Tokens of a block: vectors over its rows, as many as the registers hold.
        match (S::LANES, S::REGISTERS) {
            (16, 32) if powers::<F>() => token_tiles! { 6: 2 1; 4: 2 1; 1: 4 1; },
            // a scale for each group takes registers of its own
            (16, 32) => token_tiles! { 4: 2 1; 1: 4 1; },
            (8, 16) => token_tiles! { 3: 2; 1: 2; },
            (4, 32) => token_tiles! { 4: 2; 1: 2; },
            _ => token_tiles! { 1: 1; },
        }
    }
}

/// Whether a block of `tokens` is next where so many are left: not six if that would leave two or three to blocks of one, whose
/// few sums wait for themselves.
#[inline(always)]
fn takes(tokens: usize, left: usize) -> bool {
    left >= tokens && (tokens != 6 || !matches!(left, 8 | 9))
}

/// Which part of a pass a block is.
#[derive(Clone, Copy)]
struct At {
    /// The pass's first tile.
    first: usize,
    /// First row, counted from there.
    row: usize,
    /// First token.
    token: usize,
    /// Which chunk.
    chunk: usize,
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
        let At { row, token, chunk, pairs, x, next, tile_bytes, .. } = block;
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
                if !powers::<F>() && chunk > 0 {
                    sums[t][v] = S::f_load(at[t][v]);
                }
            }
        }
        if F::MINIMA && powers::<F>() {
            multiply_minima::<S, F, V, T>(&weights, &parts, x, &mut sums);
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
            for i in 0..scales {
                multiply_scale::<S, F, V, T>(&weights, &parts, scales * pair + i, x, starts, &mut sums);
            }
        }
        end_block::<S, F, V, T>(p, block, at, sums);
    }
}

/// Ends a block: super-blocks' sums are added to the running ones, which stand `at` these places. With the last chunk those
/// of whole tiles go where results belong.
#[inline(always)]
unsafe fn end_block<S: Simd, F: Format, const V: usize, const T: usize>(
    p: &Product,
    block: At,
    mut at: [[*mut f32; V]; T],
    mut sums: [[S::F; V]; T],
) {
    let At { first, row, token, chunk, x, .. } = block;
    unsafe {
        if powers::<F>() {
            for t in 0..T {
                let scale = S::f_splat((*x.add(t)).scale);
                for v in 0..V {
                    let before = if chunk > 0 { S::f_load(at[t][v]) } else { S::f_splat(0.0) };
                    sums[t][v] = S::f_fma(scale, sums[t][v], before);
                }
            }
        }
        if (chunk + 1) * CHUNK >= p.columns {
            for v in 0..V {
                let row = first * TILE + row + v * S::LANES;
                if row / TILE < p.rows / TILE {
                    let bias = if p.bias.is_null() { None } else { Some(S::f_load(p.bias.add(row))) };
                    for t in 0..T {
                        at[t][v] = p.out.wrapping_add((token + t) * p.out_stride + row);
                        if let Some(bias) = bias {
                            sums[t][v] = S::f_add(sums[t][v], bias);
                        }
                    }
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

/// The products of a super-block's minima, which its sums begin with.
#[inline(always)]
unsafe fn multiply_minima<S: Simd, F: Format, const V: usize, const T: usize>(
    weights: &[*mut Unpacked; V],
    parts: &[usize; V],
    x: *const QuantizedChunk,
    sums: &mut [[S::F; V]; T],
) {
    unsafe {
        let mut integers = [[S::i_splat(0); V]; T];
        for t in 0..T {
            integers[t] = [(*x.add(t)).minima_start::<S>(); V];
        }
        for i in 0..CHUNK / F::SCALE_LEN / 2 {
            let mut minima = [S::i_splat(0); V];
            for v in 0..V {
                minima[v] = S::i_load((*weights[v]).integer_minima.as_ptr().add(i * TILE + parts[v]));
            }
            for t in 0..T {
                let of_token = (*x.add(t)).integer_sums::<S, F>(i);
                for v in 0..V {
                    integers[t][v] = S::dot_pairs(integers[t][v], minima[v], of_token);
                }
            }
        }
        for v in 0..V {
            let minimum = S::f_load((*weights[v]).minima.as_ptr().add(parts[v]));
            for t in 0..T {
                sums[t][v] = (*x.add(t)).times_minimum::<S>(minimum, integers[t][v]);
            }
        }
    }
}

/// Adds the products of the one or two groups of columns that share weight scale `scale` of the chunk.
#[inline(always)]
unsafe fn multiply_scale<S: Simd, F: Format, const V: usize, const T: usize>(
    weights: &[*mut Unpacked; V],
    parts: &[usize; V],
    scale: usize,
    x: *const QuantizedChunk,
    starts: &[[u32; CHUNK / GROUP]; T],
    sums: &mut [[S::F; V]; T],
) {
    let groups = F::SCALE_LEN / GROUP;
    unsafe {
        let mut dots = [[S::i_splat(0); V]; T];
        let mut scaled = [[S::f_splat(0.0); V]; T];
        unrolled!(groups, i => {
            let (group, is_first) = (groups * scale + i, i == 0);
            if is_first || !powers::<F>() {
                for t in 0..T {
                    let of_group = (*x.add(t)).of_groups[group];
                    dots[t] = [S::i_splat(start::<S, F>(of_group, &starts[t], group)); V];
                }
            }
            add_group::<S, F, V, T>(weights, parts, group, x, &mut dots);
            if !powers::<F>() {
                for t in 0..T {
                    let x_scale = S::f_splat((*x.add(t)).of_groups[group]);
                    for v in 0..V {
                        let dot = S::f_from_i(dots[t][v]);
                        scaled[t][v] = if is_first {
                            S::f_mul(x_scale, dot)
                        } else {
                            S::f_fma(x_scale, dot, scaled[t][v])
                        };
                    }
                }
            }
        });
        for v in 0..V {
            let at = scale * TILE + parts[v];
            let weight_scale = S::f_load((*weights[v]).scales.as_ptr().add(at));
            for t in 0..T {
                if powers::<F>() {
                    scaled[t][v] = Groups::new(x.add(t), groups * scale).times_power::<S>(dots[t][v], 0, 0);
                }
                sums[t][v] = S::f_fma(weight_scale, scaled[t][v], sums[t][v]);
            }
            if F::MINIMA && !powers::<F>() {
                let minimum = S::f_load((*weights[v]).minima.as_ptr().add(at));
                for t in 0..T {
                    sums[t][v] = S::f_fma(minimum, S::f_splat((*x.add(t)).pair_sums[scale]), sums[t][v]);
                }
            }
        }
        for t in 0..T {
            for v in 0..V {
                sums[t][v] = S::pin(sums[t][v]);
            }
        }
    }
}

/// Adds the products of a group of columns to the integer sums.
#[inline(always)]
unsafe fn add_group<S: Simd, F: Format, const V: usize, const T: usize>(
    weights: &[*mut Unpacked; V],
    parts: &[usize; V],
    group: usize,
    x: *const QuantizedChunk,
    dots: &mut [[S::I; V]; T],
) {
    unsafe {
        let mut quants = [std::ptr::null(); V];
        for v in 0..V {
            quants[v] = (*weights[v]).quants.as_ptr().add(4 * group * TILE + parts[v]);
        }
        if S::LANES < TILE {
            for t in 0..T {
                let four = Groups::new(x.add(t), group).group::<S>(0, false);
                for v in 0..V {
                    let w = four!(i => S::i_load(quants[v].add(i * TILE)));
                    dots[t][v] = dot_group::<S, F>(dots[t][v], w, four);
                }
            }
            return;
        }
        unrolled!(4, i => {
            let mut w = [S::i_splat(0); V];
            for v in 0..V {
                w[v] = S::i_load(quants[v].add(i * TILE));
            }
            for t in 0..T {
                let four = S::i_splat(*(*x.add(t)).values.as_ptr().cast::<u32>().add(4 * group + i));
                for v in 0..V {
                    dots[t][v] =
                        if F::BITS < 8 { S::dot(dots[t][v], w[v], four) } else { S::dot_signed(dots[t][v], w[v], four) };
                    dots[t][v] = S::f_bits(S::pin(S::f_from_bits(dots[t][v])));
                }
            }
        });
    }
}
