//! The product for many tokens: prefill, large batches.
//!
//! A chunk of some tiles is unpacked once and used for all tokens, in blocks of tokens and rows that fill the registers.
//! The order of a sum is the one that `quantized` states.

use super::super::Simd;
use super::formats::{Block, CHUNK, Format, GROUP, PAIR, Scales, TILE, Unpacked};
use super::quantized::{
    Bytes, Product, QuantizedChunk, dot_group, interleaved_chunk, powers, start, starts, store_tile,
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
        let mut tile = p.tiles.0;
        while tile < p.tiles.1 {
            let tiles = PASS.min(p.tiles.1 - tile);
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
            for token in 0..p.tokens {
                store_tile(p, first + tile, token, p.sums.add((tile * p.tokens + token) * TILE));
            }
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
        let source = interleaved_chunk::<S, F>(p, tile, chunk, columns);
        for block in 0..columns / block_len {
            let start = source.add(block * block_bytes * TILE);
            for part in (0..TILE).step_by(S::LANES) {
                let b = Block::new::<F>(start, part);
                unpack_block::<S, F>(b, out, block * block_len, part);
            }
        }
    }
}

/// Unpacks LANES rows of a block to where column `first` of the chunk is, rows from `part` on.
#[inline(always)]
unsafe fn unpack_block<S: Simd, F: Format>(b: Block, out: *mut Unpacked, first: usize, part: usize) {
    let block_len = F::KIND.block_len();
    unsafe {
        let mut all = Scales::zero();
        F::scales::<S>(b, &mut all);
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
                if !powers::<F>() {
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
        for t in 0..T {
            for v in 0..V {
                if powers::<F>() {
                    let scale = S::f_splat((*x.add(t)).scale);
                    sums[t][v] = S::f_fma(scale, sums[t][v], S::f_load(at[t][v]));
                }
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
        let mut w = [[[S::i_splat(0); 4]; 2]; V];
        let mut scales = [S::f_splat(0.0); V];
        let mut minima = scales;
        for v in 0..V {
            let at = scale * TILE + parts[v];
            scales[v] = S::f_load((*weights[v]).scales.as_ptr().add(at));
            if F::MINIMA && !powers::<F>() {
                minima[v] = S::f_load((*weights[v]).minima.as_ptr().add(at));
            }
            for i in 0..4 * groups {
                let quants = (*weights[v]).quants.as_ptr().add((4 * groups * scale + i) * TILE + parts[v]);
                w[v][i / 4][i % 4] = S::i_load(quants);
            }
        }
        for t in 0..T {
            let x = &*x.add(t);
            let scaled = if powers::<F>() {
                scaled_by_power::<S, F, V>(&w, x, groups * scale, &starts[t])
            } else {
                scaled_by_groups::<S, F, V>(&w, x, groups * scale, &starts[t])
            };
            for v in 0..V {
                sums[t][v] = S::f_fma(scales[v], scaled[v], sums[t][v]);
                if F::MINIMA && !powers::<F>() {
                    sums[t][v] = S::f_fma(minima[v], S::f_splat(x.pair_sums[scale]), sums[t][v]);
                }
                sums[t][v] = S::pin(sums[t][v]);
            }
        }
    }
}

/// 2^e times the dot products of the one or two groups from `first` on.
#[inline(always)]
unsafe fn scaled_by_power<S: Simd, F: Format, const V: usize>(
    w: &[[[S::I; 4]; 2]; V],
    x: &QuantizedChunk,
    first: usize,
    starts: &[u32; CHUNK / GROUP],
) -> [S::F; V] {
    unsafe {
        let mut dots = [S::i_splat(start::<S, F>(x, starts, first)); V];
        for i in 0..F::SCALE_LEN / GROUP {
            let four = x.group::<S>(first + i);
            for v in 0..V {
                dots[v] = dot_group::<S, F>(dots[v], w[v][i], four);
            }
        }
        let mut scaled = [S::f_splat(0.0); V];
        for v in 0..V {
            scaled[v] = x.times_power::<S>(dots[v], first);
        }
        scaled
    }
}

/// The dot products of the one or two groups from `first` on, each times its scale.
#[inline(always)]
unsafe fn scaled_by_groups<S: Simd, F: Format, const V: usize>(
    w: &[[[S::I; 4]; 2]; V],
    x: &QuantizedChunk,
    first: usize,
    starts: &[u32; CHUNK / GROUP],
) -> [S::F; V] {
    unsafe {
        let mut scaled = [S::f_splat(0.0); V];
        for i in 0..F::SCALE_LEN / GROUP {
            let group = first + i;
            let (four, start) = (x.group::<S>(group), S::i_splat(start::<S, F>(x, starts, group)));
            let x_scale = S::f_splat(x.of_groups[group]);
            for v in 0..V {
                let dot = S::f_from_i(dot_group::<S, F>(start, w[v][i], four));
                scaled[v] = if i == 0 { S::f_mul(x_scale, dot) } else { S::f_fma(x_scale, dot, scaled[v]) };
            }
        }
        scaled
    }
}
