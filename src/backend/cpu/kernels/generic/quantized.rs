//! Quantized matrix times int8 activations: what [`few_tokens`](super::few_tokens) and
//! [`many_tokens`](super::many_tokens) have in common.
//!
//! The fixed order of a row's sum, the same for every ISA, layout and number of tokens, is built on the exact integer
//! sums `dot = Σ (quant - offset) * activation`.
//!
//! Blocks of 32: pairs of groups of 16 columns go in ascending order, each
//!
//! `acc = fma(scale, fma(x_scale1, dot1, x_scale0 * dot0), acc)`, and then with minima `acc = fma(minimum, x_sum, acc)`,
//! `x_sum = x_scale0 * Σ activation + x_scale1 * Σ activation`.
//!
//! Super-blocks of 256 begin with 0, or with minima with `of_chunk = minimum * 2^s * Σ integer * sum`, where
//! minimum * integer is the minimum of a part (the 16 or 32 columns that share a weight scale), and 2^s * sum the sum of its
//! activations, sum an integer of 14 bits: off by at most an 8192nd of the chunk's largest sum. Then the parts go in
//! ascending order, each
//!
//! `of_chunk = fma(scale, 2^e * dot, of_chunk)`
//!
//! and the chunk ends with `acc = fma(x_scale, of_chunk, acc)`.
//!
//! The integer sum of such a dot product begins with the bits of the float `1.5 * 2^(23 + e)`, one of whose last places
//! is worth `2^e`: so its bits are again a float, and to take the beginning off leaves `2^e * dot`, exactly. That is a
//! subtraction, on a port that multiplications do not need, in place of a conversion and a multiplication. Minima likewise.

use super::super::{Isa, Processor, Simd};
use super::formats::{CHUNK, Format, GROUP, MINIMA_ORDER, PAIR, TILE, Unpacked, four};
use super::interleave::RowPointers;

/// Runs `$body` with `$i` = 0, 1, … below `$n` (at most 8), each a constant to the compiler.
macro_rules! unrolled {
    ($n:expr, $i:ident => $body:expr) => {
        unrolled!(@ $n, $i, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $n:expr, $i:ident, $body:expr, $($value:literal)*) => {$(
        if $value < $n {
            let $i = $value;
            $body
        }
    )*};
}

pub(super) use unrolled;

/// One chunk of a token's activations. For blocks of 32 each group has a scale. For super-blocks the chunk has one, and
/// each pair of groups a power of two: value = scale * 2^e * quant.
#[repr(C, align(64))]
pub struct QuantizedChunk {
    /// Rounded to -127..=127.
    pub(super) values: [i8; CHUNK],
    /// Of each group. Without powers of two its scale: largest magnitude / 127; 0 if that magnitude is below [`TINY`], NaN if it
    /// is no number. With powers of two what integer sums begin with, as bits: 1.5 * 2^(23 + e), the same for both of a pair.
    pub(super) of_groups: [f32; CHUNK / GROUP],
    /// Σ values, negated: where a dot product with offset quants starts from.
    negative_sums: [i32; CHUNK / GROUP],
    /// scale * Σ values, of two groups. Without powers of two.
    pub(super) pair_sums: [f32; CHUNK / PAIR],
    /// 1.5 * 2^(23 + s): what integer sums of minima begin with, as bits. With powers of two.
    sum_zero: f32,
    /// 2^(e - s) * Σ values of each group, two to a word in the order of [`MINIMA_ORDER`]. With powers of two.
    integer_sums: [[i16; 2]; CHUNK / GROUP / 2],
    /// The same of two groups.
    integer_pair_sums: [[i16; 2]; CHUNK / PAIR / 2],
    /// The chunk's scale, with powers of two.
    pub(super) scale: f32,
}

impl QuantizedChunk {
    /// All zero.
    pub const ZERO: Self = Self {
        values: [0; CHUNK],
        of_groups: [0.0; CHUNK / GROUP],
        negative_sums: [0; CHUNK / GROUP],
        pair_sums: [0.0; CHUNK / PAIR],
        sum_zero: 0.0,
        integer_sums: [[0; 2]; CHUNK / GROUP / 2],
        integer_pair_sums: [[0; 2]; CHUNK / PAIR / 2],
        scale: 0.0,
    };

    /// The value that stands for activation `i`, as blocks of 32 take it, or with powers of two.
    pub fn value(&self, i: usize, powers: bool) -> f32 {
        let of_group = self.of_groups[i / GROUP];
        let scale = if powers { self.scale * unit(of_group) } else { of_group };
        scale * f32::from(self.values[i])
    }

    /// Word i of the integer sums of activations that share a weight scale, in all lanes.
    #[inline(always)]
    pub(super) unsafe fn integer_sums<S: Simd, F: Format>(&self, i: usize) -> S::I {
        let two = if F::SCALE_LEN == GROUP { self.integer_sums[i] } else { self.integer_pair_sums[i] };
        // SAFETY: the caller's promise.
        unsafe { S::i_splat(two[0] as u16 as u32 | (two[1] as u16 as u32) << 16) }
    }

    /// What a sum over words of minima starts from.
    #[inline(always)]
    pub(super) unsafe fn minima_start<S: Simd>(&self) -> S::I {
        // SAFETY: the caller's promise.
        unsafe { S::i_splat(self.sum_zero.to_bits()) }
    }

    /// minimum * 2^s times the sum over words of minima that started from there.
    #[inline(always)]
    pub(super) unsafe fn times_minimum<S: Simd>(&self, minimum: S::F, sum: S::I) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { S::f_mul(minimum, S::f_sub(S::f_from_bits(sum), S::f_splat(self.sum_zero))) }
    }
}

/// A token's groups from one on, counted from there.
#[derive(Clone, Copy)]
pub(super) struct Groups {
    /// Four values to a word.
    values: *const u32,
    /// See [`QuantizedChunk::of_groups`].
    of_groups: *const f32,
}

// SAFETY of every block below: the caller promises the ISA, and that there are such groups.
impl Groups {
    /// The groups of a token's chunk from `first` on.
    #[inline(always)]
    pub(super) unsafe fn new(x: *const QuantizedChunk, first: usize) -> Self {
        unsafe {
            let values = (&raw const (*x).values).cast::<i8>().add(first * GROUP).cast();
            Self { values, of_groups: (&raw const (*x).of_groups).cast::<f32>().add(first) }
        }
    }

    /// The same, and the compiler knows no more of them: [`Simd::p_pin`].
    #[inline(always)]
    pub(super) fn pin<S: Simd>(self) -> Self {
        Self { values: S::p_pin(self.values), of_groups: S::p_pin(self.of_groups) }
    }

    /// The same groups of the `t`th token behind this one.
    #[inline(always)]
    pub(super) unsafe fn of_token(self, t: usize) -> Self {
        let bytes = t * size_of::<QuantizedChunk>();
        unsafe { Self { values: self.values.byte_add(bytes), of_groups: self.of_groups.byte_add(bytes) } }
    }

    /// What [`QuantizedChunk::of_groups`] has of a group.
    #[inline(always)]
    pub(super) unsafe fn of_group(self, group: usize) -> f32 {
        unsafe { *self.of_groups.add(group) }
    }

    /// The float whose bits an integer sum over `group` begins with, where quants are times 2^`times`: 1.5 * 2^(23 + e - times).
    #[inline(always)]
    pub(super) unsafe fn zero<S: Simd>(self, group: usize, times: u32) -> S::F {
        unsafe {
            let zero = S::f_splat(self.of_group(group));
            if times == 0 {
                return zero;
            }
            S::f_from_bits(S::i_sub(S::f_bits(zero), S::i_splat(times << 23)))
        }
    }

    /// 2^e times a dot product of `group`, of an integer sum that started from its zero.
    #[inline(always)]
    pub(super) unsafe fn times_power<S: Simd>(self, sum: S::I, group: usize, times: u32) -> S::F {
        unsafe { S::f_sub(S::f_from_bits(sum), self.zero::<S>(group, times)) }
    }

    /// The values of a group, four to a lane, all lanes alike. `shuffles`: every other group comes by shuffles. For several
    /// tokens with the same quants, whose dot products wait for loads otherwise.
    #[inline(always)]
    pub(super) unsafe fn group<S: Simd>(self, group: usize, shuffles: bool) -> [S::I; 4] {
        unsafe {
            if shuffles && group % 2 == 1 {
                return S::i_splat_four(self.values.add(4 * group));
            }
            four!(i => self.four::<S>(4 * group + i))
        }
    }

    /// Values `4 * i .. 4 * i + 4`, all lanes alike.
    #[inline(always)]
    pub(super) unsafe fn four<S: Simd>(self, i: usize) -> S::I {
        unsafe { S::i_splat(*self.values.add(i)) }
    }
}

/// Groups whose largest magnitude is at most this are taken as zero (127 / it must be finite).
const TINY: f32 = 1e-30;

/// Bits of the integer sums' magnitudes: eight of them times minima of 6 bits (16 times 4) remain below 2^22.
const SUM_BITS: u32 = 13;

/// The power of two of a chunk's largest pair. Pairs that are more than 2^16 times smaller get the power 0.
const LARGEST_EXPONENT: u32 = 16;

/// Quantizes a token's `columns` values (a multiple of 32): chunk i goes to `out[i * stride]`. `powers`: as super-blocks
/// take it, with powers of two.
///
/// # Safety
/// The CPU has the ISA; x holds `columns` values, `out` has a place for each chunk.
#[inline(always)]
pub unsafe fn quantize<S: Simd>(
    x: *const f32,
    columns: usize,
    powers: bool,
    out: *mut QuantizedChunk,
    stride: usize,
) {
    unsafe {
        for chunk in 0..columns.div_ceil(CHUNK) {
            let first = chunk * CHUNK;
            let (x, columns) = (x.add(first), (columns - first).min(CHUNK));
            // Of many tokens neither is in a near cache.
            ask::<S, f32>(x.wrapping_add(2 * CHUNK), CHUNK);
            ask::<S, QuantizedChunk>(out.wrapping_add((chunk + 2) * stride), 1);
            quantize_chunk::<S>(x, columns, powers, &mut *out.add(chunk * stride));
        }
    }
}

/// Asks memory for `n` values, which need not be there.
#[inline(always)]
unsafe fn ask<S: Simd, T>(values: *const T, n: usize) {
    for byte in (0..n * size_of::<T>()).step_by(64) {
        // SAFETY: it need not be anybody's memory.
        unsafe { S::prefetch(values.cast::<u8>().wrapping_add(byte)) }
    }
}

/// All groups of a chunk go through a stage together, so that they do not wait for each other.
#[inline(always)]
unsafe fn quantize_chunk<S: Simd>(x: *const f32, columns: usize, powers: bool, out: &mut QuantizedChunk) {
    unsafe {
        let groups = columns / GROUP;
        let largest = largest_magnitudes::<S>(x, groups);
        let inverses = if powers { scale_by_powers(&largest, out) } else { scale_groups(&largest, out) };
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
        }
        if powers {
            sum_integers(&sums, out);
        } else {
            let of = |group: usize| out.of_groups[group] * sums[group] as f32;
            for pair in 0..CHUNK / PAIR {
                out.pair_sums[pair] = of(2 * pair) + of(2 * pair + 1);
            }
        }
    }
}

/// Sets the integer sums, given Σ values of each group.
#[inline(always)]
fn sum_integers(sums: &[i32; CHUNK / GROUP], out: &mut QuantizedChunk) {
    // 2^e * Σ values, at most 32 * 127 * 2^16
    let (mut of_groups, mut of_pairs) = ([0; CHUNK / GROUP], [0; CHUNK / PAIR]);
    for group in 0..CHUNK / GROUP {
        of_groups[group] = sums[group] * unit(out.of_groups[group]) as i32;
    }
    for pair in 0..CHUNK / PAIR {
        of_pairs[pair] = of_groups[2 * pair] + of_groups[2 * pair + 1];
    }
    // all bits of the magnitudes: the highest is the largest one's
    let bits = of_groups.iter().chain(&of_pairs).fold(0, |bits, sum: &i32| bits | sum.unsigned_abs());
    let s = (u32::BITS - bits.leading_zeros()).saturating_sub(SUM_BITS);
    out.sum_zero = ZERO * power(s << 23);
    let rounded = |sum: i32| ((sum + ((1 << s) >> 1)) >> s) as i16;
    in_order(&of_groups.map(rounded), &mut out.integer_sums);
    in_order(&of_pairs.map(rounded), &mut out.integer_pair_sums);
}

/// Puts sums in the order of minima.
#[inline(always)]
fn in_order(sums: &[i16], words: &mut [[i16; 2]]) {
    for (four, words) in sums.chunks_exact(4).zip(words.chunks_exact_mut(2)) {
        let [a, b, c, d] = MINIMA_ORDER.map(|i| four[i]);
        (words[0], words[1]) = ([a, b], [c, d]);
    }
}

/// Sets the scale of each group, of which the bits of the largest magnitude are given; returns their inverses.
#[inline(always)]
fn scale_groups(largest: &[u32; CHUNK / GROUP], out: &mut QuantizedChunk) -> [f32; CHUNK / GROUP] {
    let mut inverses = [0.0; CHUNK / GROUP];
    for group in 0..CHUNK / GROUP {
        (out.of_groups[group], inverses[group]) = scale_and_inverse(largest[group]);
    }
    inverses
}

/// For values of at most this magnitude; no numbers where it is none, or infinite, so that the products are none either.
#[inline(always)]
fn scale_and_inverse(largest: u32) -> (f32, f32) {
    let value = f32::from_bits(largest);
    if largest <= TINY.to_bits() {
        (0.0, 0.0)
    } else if largest < f32::INFINITY.to_bits() {
        (value / 127.0, 127.0 / value)
    } else {
        (f32::NAN, f32::NAN)
    }
}

/// Sets the scale of the chunk, that of its largest value, and the powers of two; returns the inverse for each group.
#[inline(always)]
fn scale_by_powers(largest: &[u32; CHUNK / GROUP], out: &mut QuantizedChunk) -> [f32; CHUNK / GROUP] {
    let of_chunk = largest.iter().copied().fold(0, u32::max);
    let (scale, inverse) = scale_and_inverse(of_chunk);
    out.scale = scale * (1.0 / power(LARGEST_EXPONENT << 23));
    let mut inverses = [0.0; CHUNK / GROUP];
    for pair in 0..CHUNK / GROUP / 2 {
        let of_pair = largest[2 * pair].max(largest[2 * pair + 1]);
        // how often the pair can be doubled without becoming larger than the chunk: a difference of exponents, less one
        // if the pair's mantissa is the larger
        let doublings = ((of_chunk - of_pair) >> 23).min(LARGEST_EXPONENT);
        let zero = ZERO * power((LARGEST_EXPONENT - doublings) << 23);
        (out.of_groups[2 * pair], out.of_groups[2 * pair + 1]) = (zero, zero);
        let inverse = inverse * power(doublings << 23);
        (inverses[2 * pair], inverses[2 * pair + 1]) = (inverse, inverse);
    }
    inverses
}

/// The integers from 2/3 of it to 4/3 of it are floats whose bits follow one another: 2^22 either way.
const ZERO: f32 = 1.5 * (1 << 23) as f32;

/// 2^e of a pair that begins with `zero`.
#[inline(always)]
fn unit(zero: f32) -> f32 {
    zero * (1.0 / ZERO)
}

/// 2^e, for e where the exponent of an f32 stands.
#[inline(always)]
fn power(e: u32) -> f32 {
    f32::from_bits(e + 1f32.to_bits())
}

/// The bits of each group's largest magnitude, 0 from `groups` on: as integers they have the order of the values, and what is
/// no number is the largest. A lane is a group, so that nothing goes from lane to lane.
#[inline(always)]
unsafe fn largest_magnitudes<S: Simd>(x: *const f32, groups: usize) -> [u32; CHUNK / GROUP] {
    static NOTHING: [f32; GROUP] = [0.0; GROUP];
    let mut rows = [NOTHING.as_ptr().cast::<u8>(); CHUNK / GROUP];
    let mut all = [0; CHUNK / GROUP];
    unsafe {
        for group in 0..groups {
            rows[group] = x.add(group * GROUP).cast();
        }
        let magnitude = S::i_splat(0x7fff_ffff);
        for first in (0..CHUNK / GROUP).step_by(S::LANES) {
            let mut largest = S::i_splat(0);
            for four in 0..GROUP / 4 {
                for v in S::i_load_transposed(rows.as_ptr().add(first), 16 * four) {
                    largest = S::i_max(S::i_and(v, magnitude), largest);
                }
            }
            S::i_store(all.as_mut_ptr().add(first), largest);
        }
    }
    all
}

/// Σ values of each group, a lane a group: dot products with ones.
#[inline(always)]
unsafe fn group_sums<S: Simd>(values: &[i8; CHUNK]) -> [i32; CHUNK / GROUP] {
    let mut rows = [values.as_ptr().cast::<u8>(); CHUNK / GROUP];
    let mut all = [0; CHUNK / GROUP];
    unsafe {
        for group in 0..CHUNK / GROUP {
            rows[group] = rows[group].add(group * GROUP);
        }
        for first in (0..CHUNK / GROUP).step_by(S::LANES) {
            let mut sums = S::i_splat(0);
            for four in S::i_load_transposed(rows.as_ptr().add(first), 0) {
                sums = S::dot(sums, S::i_splat(0x0101_0101), four);
            }
            S::i_store(all.as_mut_ptr().add(first).cast(), sums);
        }
    }
    all
}

/// Where a matrix's bytes are.
#[derive(Clone, Copy)]
pub enum Bytes {
    /// Tiles of 16 rows, each block by block, interleaved.
    Interleaved(*const u8),
    /// Row after row, as in the file.
    AsInFile(*const u8),
}

/// How a product's interleaved weights come from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetch {
    /// They are asked for ahead of their use, into the second cache level.
    ToSecond,
    /// The same, and shortly before their use again, into the first level.
    Twice,
    /// They are asked for ahead of their use, straight into the first cache level; with one token into it alone, as they are used
    /// once, so that the others keep what is used again.
    ToFirst,
    /// The processor is left to see that they are read in ascending order, by kernels that keep up with memory.
    Unasked,
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
    /// How few tokens' weights come from memory.
    pub fetch: Fetch,
    /// Decides how passes of few tokens go, and how many there may be; the same bits.
    pub processor: Processor,
    /// `[rows]`, or null.
    pub bias: *const f32,
    /// `[tokens][rows]`, rows `out_stride` apart; the rows of other tiles need not be there.
    pub out: *mut f32,
    /// See `out`.
    pub out_stride: usize,
    /// `[PASS]`
    pub unpacked: *mut Unpacked,
    /// Of many tokens `[PASS][tokens][16]`, the running sums; of few `[WAITING][16]`, results.
    pub sums: *mut f32,
    /// One chunk of a tile, interleaved.
    pub interleaved: *mut u8,
    /// [`interleave`](super::interleave::interleave) on an ISA. A call, as each pass is as fast without text of its own for it, and a
    /// release build takes a fifth less time.
    pub interleave: unsafe fn(Isa, &RowPointers, usize, usize, *mut u8),
    /// The ISA of the kernel.
    pub isa: Isa,
}

/// A chunk of a tile, interleaved: where it is, or in `p.interleaved`.
#[inline(always)]
pub(super) unsafe fn interleaved_chunk<F: Format>(
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
                (p.interleave)(p.isa, &rows, skip, columns / block_len, p.interleaved);
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

/// Where the integer sums of T tokens start, for [`start`]: from their zero, less what the quants' offset takes off. One
/// for each group; where two groups have one weight scale and powers of two, one sum is theirs, and starts at the first.
#[inline(always)]
pub(super) unsafe fn starts<S: Simd, F: Format, const T: usize>(
    x: *const QuantizedChunk,
) -> [[u32; CHUNK / GROUP]; T] {
    let mut starts = [[0; CHUNK / GROUP]; T];
    let Some(shift) = shift::<S, F>() else { return starts };
    for t in 0..T {
        for first in (0..CHUNK / GROUP).step_by(S::LANES) {
            // SAFETY: there are T tokens. Behind the last negative sum stands another field: what is loaded one place further on
            // is a group's neighbour, of which only those of even groups are used.
            unsafe {
                let x = x.add(t);
                let sums = (&raw const (*x).negative_sums).cast::<u32>().add(first);
                let mut start = S::i_load(sums);
                if powers::<F>() && F::SCALE_LEN == PAIR {
                    start = S::i_add(start, S::i_load(sums.add(1)));
                }
                start = S::i_mul(start, S::i_splat(1 << shift));
                if powers::<F>() {
                    let zeros = (&raw const (*x).of_groups).cast::<u32>().add(first);
                    start = S::i_add(start, S::i_load(zeros));
                }
                S::i_store(starts[t].as_mut_ptr().add(first), start);
            }
        }
    }
    starts
}

/// Where a token's integer sum of a group starts, `starts` as above: at its zero if nothing is to be taken off. `of_group`:
/// [`QuantizedChunk::of_groups`].
#[inline(always)]
pub(super) fn start<S: Simd, F: Format>(of_group: f32, starts: &[u32; CHUNK / GROUP], group: usize) -> u32 {
    match shift::<S, F>() {
        Some(_) => starts[group],
        None if powers::<F>() => of_group.to_bits(),
        None => 0,
    }
}

/// Whether a chunk of a format's activations has one scale, and powers of two.
#[inline(always)]
pub(super) const fn powers<F: Format>() -> bool {
    F::KIND.block_len() == CHUNK
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
        let out = p.out.wrapping_add(token * p.out_stride + row);
        if p.bias.is_null() && rows == TILE {
            // of a length that is known, so without a call
            out.cast::<[f32; TILE]>().write_unaligned(sums.cast::<[f32; TILE]>().read_unaligned());
        } else if p.bias.is_null() {
            std::ptr::copy_nonoverlapping(sums, out, rows);
        } else {
            for i in 0..rows {
                *out.add(i) = *sums.add(i) + *p.bias.add(row + i);
            }
        }
    }
}
