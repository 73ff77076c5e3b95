//! F32, F16 and BF16 matrix times f32 activations.
//!
//! The fixed order of a row's sum: 16 partial sums, `partial[k mod 16] = fma(weight[k], x[k], partial[k mod 16])` with
//! k ascending (columns are filled up with zeros to a multiple of 16), then halves are added up: i and i + 8, i and
//! i + 4, i and i + 2, i and i + 1.

use super::super::Simd;
use super::formats::TILE;
use super::math::sum_tree;

/// A float format of weights.
pub trait Float: 'static {
    /// Bytes of a value.
    const BYTES: usize;
    /// LANES values as f32.
    ///
    /// # Safety
    /// p holds them; the CPU has the ISA.
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
}

/// [`crate::quant::BlockType::F32`]
pub struct F32;
impl Float for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        unsafe { S::f_load(p.cast()) }
    }
}

/// [`crate::quant::BlockType::F16`]
pub struct F16;
impl Float for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        unsafe { S::f_load_f16(p.cast()) }
    }
}

/// [`crate::quant::BlockType::BF16`]
pub struct Bf16;
impl Float for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        unsafe { S::f_from_bits(S::i_shl::<16>(S::i_load_u16(p.cast()))) }
    }
}

/// A matrix product, or some tiles of it. Sizes in elements.
#[derive(Clone, Copy)]
pub struct FloatProduct {
    /// `[rows][columns]`
    pub weights: *const u8,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub columns: usize,
    /// Tiles from..to of 16 rows are computed.
    pub tiles: (usize, usize),
    /// `[tokens][columns]`, rows `x_stride` apart.
    pub x: *const f32,
    /// See `x`.
    pub x_stride: usize,
    /// Tokens.
    pub tokens: usize,
    /// `[rows]`, or null.
    pub bias: *const f32,
    /// `[tokens][rows]`, rows `out_stride` apart; the rows of other tiles need not be there.
    pub out: *mut f32,
    /// See `out`.
    pub out_stride: usize,
}

/// Columns that are worked on at a time: the rows of a tile stay in the second-level cache, the tokens of a block in
/// the first.
const COLUMNS: usize = 1024;

/// Computes the tiles of a product.
///
/// # Safety
/// The CPU has the ISA; the pointers of `p` are valid for the shapes that they document.
#[inline(always)]
pub unsafe fn multiply_float<S: Simd, W: Float>(p: &FloatProduct) {
    unsafe {
        for tile in p.tiles.0..p.tiles.1 {
            let mut token = 0;
            macro_rules! token_tiles {
                ($vectors:literal, $rows:literal; $($tokens:literal)*) => {{$(
                    while p.tokens - token >= $tokens {
                        multiply_tile::<S, W, $vectors, $rows, $tokens>(p, tile * TILE, token);
                        token += $tokens;
                    }
                )*}};
            }
            // Vectors of 16 virtual lanes, rows of a block; its tokens.
            match (S::LANES, S::REGISTERS) {
                (16, 32) => token_tiles!(1, 4; 4 1),
                (8, 16) => token_tiles!(2, 2; 2 1),
                (4, 32) => token_tiles!(4, 2; 2 1),
                _ => token_tiles!(1, 1; 1),
            }
        }
    }
}

/// 16 rows times T tokens, R rows at a time; 16 virtual lanes are P vectors.
#[inline(always)]
unsafe fn multiply_tile<S: Simd, W: Float, const P: usize, const R: usize, const T: usize>(
    p: &FloatProduct,
    first: usize,
    token: usize,
) {
    unsafe {
        let rows = TILE.min(p.rows - first);
        let mut partials = [[[0f32; 16]; T]; TILE];
        for from in (0..p.columns).step_by(COLUMNS) {
            let to = (from + COLUMNS).min(p.columns);
            for row in (0..rows).step_by(R) {
                let partials = partials.as_mut_ptr().add(row);
                multiply_block::<S, W, P, R, T>(p, first + row, token, (from, to), partials);
            }
        }
        for (row, partials) in partials.iter().enumerate().take(rows) {
            for (t, &partials) in partials.iter().enumerate() {
                let bias = if p.bias.is_null() { None } else { Some(*p.bias.add(first + row)) };
                let sum = sum_tree(partials);
                *p.out.wrapping_add((token + t) * p.out_stride + first + row) =
                    bias.map_or(sum, |bias| sum + bias);
            }
        }
    }
}

/// Adds the products of columns from..to of R rows and T tokens to their partial sums.
#[inline(always)]
unsafe fn multiply_block<S: Simd, W: Float, const P: usize, const R: usize, const T: usize>(
    p: &FloatProduct,
    row: usize,
    token: usize,
    (from, to): (usize, usize),
    partials: *mut [[f32; 16]; T],
) {
    unsafe {
        let mut sums = [[[S::f_splat(0.0); P]; R]; T];
        let mut weights = [p.weights; R];
        let mut x = [p.x; T];
        for r in 0..R {
            // Rows beyond the matrix repeat the last one; nobody reads their sums.
            weights[r] = p.weights.add(((row + r).min(p.rows - 1) * p.columns + from) * W::BYTES);
            for t in 0..T {
                for part in 0..P {
                    sums[t][r][part] = S::f_load((*partials.add(r))[t].as_ptr().add(part * S::LANES));
                }
            }
        }
        for t in 0..T {
            x[t] = p.x.add((token + t) * p.x_stride + from);
        }
        for _ in 0..(to - from) / 16 {
            add_16::<S, W, P, R, T>(&mut sums, weights, x);
            for r in 0..R {
                if T == 1 {
                    S::prefetch(weights[r].wrapping_add(1024));
                }
                weights[r] = weights[r].add(16 * W::BYTES);
            }
            for t in 0..T {
                x[t] = x[t].add(16);
            }
        }
        let rest = (to - from) % 16;
        if rest > 0 {
            let mut last_weights = [[0u8; 64]; R];
            let mut last_x = [[0f32; 16]; T];
            for r in 0..R {
                std::ptr::copy_nonoverlapping(weights[r], last_weights[r].as_mut_ptr(), rest * W::BYTES);
                weights[r] = last_weights[r].as_ptr();
            }
            for t in 0..T {
                std::ptr::copy_nonoverlapping(x[t], last_x[t].as_mut_ptr(), rest);
                x[t] = last_x[t].as_ptr();
            }
            add_16::<S, W, P, R, T>(&mut sums, weights, x);
        }
        for r in 0..R {
            for t in 0..T {
                for part in 0..P {
                    S::f_store((*partials.add(r))[t].as_mut_ptr().add(part * S::LANES), sums[t][r][part]);
                }
            }
        }
    }
}

/// Adds the products of 16 columns to the partial sums.
#[inline(always)]
unsafe fn add_16<S: Simd, W: Float, const P: usize, const R: usize, const T: usize>(
    sums: &mut [[[S::F; P]; R]; T],
    weights: [*const u8; R],
    x: [*const f32; T],
) {
    unsafe {
        for part in 0..P {
            for r in 0..R {
                let w = W::load::<S>(weights[r].add(part * S::LANES * W::BYTES));
                for t in 0..T {
                    let x = S::f_load(x[t].add(part * S::LANES));
                    sums[t][r][part] = S::f_fma(w, x, sums[t][r][part]);
                }
            }
        }
    }
}
