//! A small matrix product, cut into tiles that are held in registers.

use half::f16;

use super::super::super::Simd;

/// A number that is read as f32.
pub trait Load: Copy + 'static {
    /// LANES of them.
    ///
    /// # Safety
    /// The CPU has the ISA; LANES of them are readable.
    unsafe fn load<S: Simd>(p: *const Self) -> S::F;
}

impl Load for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { S::f_load(p) }
    }
}

impl Load for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::F {
        // SAFETY: the caller's promise; an f16 is its bits.
        unsafe { S::f_load_f16(p.cast()) }
    }
}

impl Load for i8 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { S::f_load_i8(p) }
    }
}

/// A matrix in memory: where it begins, elements from row to row.
#[derive(Clone, Copy)]
pub struct Strided<T>(pub *const T, pub usize);
/// The same, to be written.
#[derive(Clone, Copy)]
pub struct StridedMut(pub *mut f32, pub usize);

/// A product [rows, columns] that is computed tile by tile.
pub trait Tiles<S: Simd>: Copy {
    /// Registers that an element of a tile takes.
    const REGISTERS: usize;

    /// Computes `R` rows from `row` on and `V` vectors of columns from `column` on.
    ///
    /// # Safety
    /// The CPU has the ISA; the tile lies in the product.
    unsafe fn tile<const R: usize, const V: usize>(self, row: usize, column: usize);
}

/// Computes all tiles. Columns are a multiple of 16.
///
/// # Safety
/// The CPU has the ISA; the product is [rows, columns].
#[inline(always)]
pub unsafe fn compute<S: Simd, T: Tiles<S>>(rows: usize, columns: usize, product: T) {
    let tiles = if rows <= tile_rows::<S>() { 1 } else { rows.div_ceil(6) };
    for tile in 0..tiles {
        let (from, to) = (tile * rows / tiles, (tile + 1) * rows / tiles); // 7 rows are 3 and 4, not 6 and 1
        // SAFETY: the caller's promise; from..to is in 0..rows.
        unsafe {
            match to - from {
                1 => tile_row::<S, T, 1>(from, columns, product),
                2 => tile_row::<S, T, 2>(from, columns, product),
                3 => tile_row::<S, T, 3>(from, columns, product),
                4 => tile_row::<S, T, 4>(from, columns, product),
                5 => tile_row::<S, T, 5>(from, columns, product),
                7 if tile_rows::<S>() > 6 => tile_row::<S, T, 7>(from, columns, product),
                8 if tile_rows::<S>() > 6 => tile_row::<S, T, 8>(from, columns, product),
                _ => tile_row::<S, T, 6>(from, columns, product),
            }
        }
    }
}

/// Most rows of a tile: 6 rows of 4 vectors, or 8 of 2, leave room for operands in 32 registers; 6 of 2 in 16.
const fn tile_rows<S: Simd>() -> usize {
    if S::REGISTERS >= 32 { 8 } else { 6 }
}

/// Tiles side by side, as wide as three quarters of the registers allow.
#[inline(always)]
unsafe fn tile_row<S: Simd, T: Tiles<S>, const R: usize>(row: usize, columns: usize, product: T) {
    let most = S::REGISTERS * 3 / 4 / (R * T::REGISTERS);
    let end = columns / S::LANES;
    let mut v = 0;
    // SAFETY: the caller's promise; v..v + width is in 0..end.
    unsafe {
        while most >= 4 && v + 4 <= end {
            product.tile::<R, 4>(row, v * S::LANES);
            v += 4;
        }
        while most >= 2 && v + 2 <= end {
            product.tile::<R, 2>(row, v * S::LANES);
            v += 2;
        }
        while v < end {
            product.tile::<R, 1>(row, v * S::LANES);
            v += 1;
        }
    }
}

/// `c[rows, columns] = a[rows, depth] x b[depth, columns]`: each element starts at 0 and takes up its products in
/// ascending order, each rounded once. Columns are a multiple of 16. On the way it asks for as many bytes from `ahead` on
/// as b has.
///
/// # Safety
/// The CPU has the ISA; the pointers are valid for these shapes.
#[inline(always)]
pub unsafe fn product<S: Simd, T: Load>(
    rows: usize,
    depth: usize,
    columns: usize,
    a: Strided<f32>,
    b: Strided<T>,
    c: StridedMut,
    ahead: *const u8,
) {
    // SAFETY: the caller's promise.
    unsafe { compute::<S, _>(rows, columns, Product { depth, a, b, c, ahead }) }
}

#[derive(Clone, Copy)]
struct Product<T> {
    depth: usize,
    a: Strided<f32>,
    b: Strided<T>,
    c: StridedMut,
    ahead: *const u8,
}

impl<S: Simd, T: Load> Tiles<S> for Product<T> {
    const REGISTERS: usize = 1;

    #[allow(clippy::needless_range_loop)] // index loops of constant length unroll for sure
    #[inline(always)]
    unsafe fn tile<const R: usize, const V: usize>(self, row: usize, column: usize) {
        let Product { depth, a, b, c, ahead } = self;
        // SAFETY: the caller's promise.
        unsafe {
            let (a, c) = (Strided(a.0.add(row * a.1), a.1), StridedMut(c.0.add(row * c.1 + column), c.1));
            let bytes = V * S::LANES * size_of::<T>();
            let ahead = ahead.wrapping_add(depth * column * size_of::<T>());
            let mut sums = [[S::f_splat(0.0); V]; R];
            for k in 0..depth {
                let from = b.0.add(k * b.1 + column);
                for line in 0..bytes.div_ceil(64) {
                    S::prefetch_far(ahead.wrapping_add(k * bytes + line * 64));
                }
                let mut vectors = [S::f_splat(0.0); V];
                for v in 0..V {
                    vectors[v] = T::load::<S>(from.add(v * S::LANES));
                }
                for r in 0..R {
                    // Every other factor from memory: all would make loads the limit (Zen 5), none costs multiply-adds (Zen 4).
                    let factor = S::f_splat(*a.0.add(r * a.1 + k));
                    for v in 0..V {
                        sums[r][v] = if r % 2 == 0 {
                            S::f_fma(vectors[v], factor, sums[r][v])
                        } else {
                            S::f_fma_by(vectors[v], a.0.add(r * a.1 + k), sums[r][v])
                        };
                    }
                }
            }
            for r in 0..R {
                for v in 0..V {
                    S::f_store(c.0.add(r * c.1 + v * S::LANES), sums[r][v]);
                }
            }
        }
    }
}
