//! The i-quants: groups of values are entries of a grid, times a small scale under the f16 factor `d` of a super-block of
//! 256 values. 32 entries of 8 values each (IQ1, IQ2) or 64 of 4 (IQ3).
//!
//! | format  | bytes | layout (parts in order)                                                    | value                       |
//! |---------|-------|----------------------------------------------------------------------------|-----------------------------|
//! | IQ2_XXS | 66    | d; 8 x (4 entries of 8 bits; 4 signs of 7 bits, scale of 4 bits)           | d (s + 1/2) / 4 * grid      |
//! | IQ2_XS  | 74    | d; 32 x (entry of 9 bits, signs of 7); 16 scales of 4 bits                 | the same                    |
//! | IQ2_S   | 82    | d; 32 low bytes of entries; 32 signs of 8 bits; their high bits; 16 scales | the same                    |
//! | IQ3_XXS | 98    | d; 64 entries of 8 bits; 8 x (4 signs of 7 bits, scale of 4 bits)          | d (s + 1/2) / 2 * grid      |
//! | IQ3_S   | 110   | d; 64 low bytes of entries; their ninth bits; 32 signs; 8 scales of 4 bits | d (2 s + 1) * grid          |
//! | IQ1_S   | 50    | d; 32 low bytes; 8 x (4 x 3 high bits, scale of 3 bits, sign of delta)     | d (2 s + 1) (grid +- 1/8)   |
//! | IQ1_M   | 56    | 32 low bytes; 32 x (3 high bits, sign of delta); 16 scales of 3 bits, d between them | the same          |
//!
//! Seven sign bits are completed by an eighth that makes their number even. Products are formed left to right.

use std::sync::LazyLock;

use half::f16;

use super::grid_search::{Search, without_signs};
use super::grids::{IQ1, IQ2_S, IQ2_VALUES, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, IQ3_XXS_VALUES};
use super::{f16_at, put_f16};

const LEN: usize = 256;
/// What is added to, or taken off, all values of an IQ1 entry.
const DELTA: f32 = 0.125;

/// Magnitudes of an entry of IQ2.
const fn eight(entry: u16) -> [u8; 8] {
    let mut values = [0; 8];
    let mut i = 0;
    while i < 8 {
        values[i] = IQ2_VALUES[(entry >> (2 * i) & 3) as usize];
        i += 1;
    }
    values
}

/// Magnitudes of an entry of IQ3.
const fn four(entry: u16, values: [u8; 8]) -> [u8; 4] {
    let mut four = [0; 4];
    let mut i = 0;
    while i < 4 {
        four[i] = values[(entry >> (3 * i) & 7) as usize];
        i += 1;
    }
    four
}

const IQ3_S_VALUES: [u8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];

/// The tables as vectors look them up. A word is four values of IQ3, or all eight of IQ2 and IQ1, two in a byte: values i and
/// i + 4 in byte i.
pub(crate) mod words {
    use super::*;

    /// Codes of two bits, times `factor`; those of the second four values are shifted by `second` bits more.
    const fn pairs<const N: usize>(grid: [u16; N], factor: u32, second: usize) -> [u32; N] {
        let mut words = [0; N];
        let mut i = 0;
        while i < 8 * N {
            let code = (grid[i / 8] >> (2 * (i % 8)) & 3) as u32;
            words[i / 8] |= (code * factor) << (8 * (i % 4) + i % 8 / 4 * second);
            i += 1;
        }
        words
    }

    /// 64 plus the magnitude of a code of IQ2.
    pub(crate) static IQ2_BYTES: [u8; 16] = {
        let mut bytes = [0; 16];
        let mut i = 0;
        while i < IQ2_VALUES.len() {
            bytes[i] = 64 + IQ2_VALUES[i];
            i += 1;
        }
        bytes
    };

    /// 64 plus the magnitude: a word an entry.
    const fn iq3<const N: usize>(grid: [u16; N], values: [u8; 8]) -> [u32; N] {
        let mut words = [0; N];
        let mut i = 0;
        while i < 4 * N {
            words[i / 4] |= (64 + four(grid[i / 4], values)[i % 4] as u32) << (8 * (i % 4));
            i += 1;
        }
        words
    }

    pub(crate) static IQ2_XXS_WORDS: [u32; 256] = pairs(IQ2_XXS, 1, 4);
    pub(crate) static IQ2_XS_WORDS: [u32; 512] = pairs(IQ2_XS, 1, 4);
    pub(crate) static IQ2_S_WORDS: [u32; 1024] = pairs(IQ2_S, 1, 4);
    pub(crate) static IQ3_XXS_WORDS: [u32; 256] = iq3(IQ3_XXS, IQ3_XXS_VALUES);
    pub(crate) static IQ3_S_WORDS: [u32; 512] = iq3(IQ3_S, IQ3_S_VALUES);
    /// 8 times one more than the value: bits 3 and 4 of a byte, and two bits higher those of the other.
    pub(crate) static IQ1_WORDS: [u32; 2048] = pairs(IQ1, 8, 2);
}

/// Seven sign bits and the one that makes their number even.
const fn even(signs: u8) -> u8 {
    let signs = signs & 127;
    signs | (signs.count_ones() as u8 & 1) << 7
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Nibble i of some bytes, low ones first.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 2] >> (4 * (i % 2)) & 15
}

/// value = scale * magnitude, negative where the sign bit is set.
fn signed(scale: f32, magnitudes: &[u8], signs: u8, out: &mut [f32]) {
    for (i, (y, &magnitude)) in out.iter_mut().zip(magnitudes).enumerate() {
        let value = scale * f32::from(magnitude);
        *y = if signs >> i & 1 == 0 { value } else { -value };
    }
}

/// Entry `i` of 32, its signs and its scale, of a block of IQ2.
fn iq2(out: &mut [f32; LEN], entry: impl Fn(usize) -> (u16, u8, f32)) {
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let (grid, signs, scale) = entry(i);
        signed(scale, &eight(grid), signs, out);
    }
}

/// d (s + 1/2) * unit
fn half_scale(d: f32, s: u8, unit: f32) -> f32 {
    d * (0.5 + f32::from(s)) * unit
}

pub(super) fn dequantize_iq2_xxs(block: &[u8; 66], out: &mut [f32; LEN]) {
    let d = f16_at(block, 0);
    iq2(out, |i| {
        let at = 2 + i / 4 * 8;
        let signs = u32_at(block, at + 4);
        let grid = IQ2_XXS[usize::from(block[at + i % 4])];
        (grid, even((signs >> (7 * (i % 4))) as u8), half_scale(d, (signs >> 28) as u8, 0.25))
    });
}

pub(super) fn dequantize_iq2_xs(block: &[u8; 74], out: &mut [f32; LEN]) {
    let d = f16_at(block, 0);
    iq2(out, |i| {
        let code = u16_at(block, 2 + 2 * i);
        let scale = half_scale(d, nibble(&block[66..], i / 2), 0.25);
        (IQ2_XS[usize::from(code & 511)], even((code >> 9) as u8), scale)
    });
}

pub(super) fn dequantize_iq2_s(block: &[u8; 82], out: &mut [f32; LEN]) {
    let d = f16_at(block, 0);
    iq2(out, |i| {
        let high = u16::from(block[66 + i / 4] >> (2 * (i % 4)) & 3);
        let grid = IQ2_S[usize::from(u16::from(block[2 + i]) | high << 8)];
        (grid, block[34 + i], half_scale(d, nibble(&block[74..], i / 2), 0.25))
    });
}

pub(super) fn dequantize_iq3_xxs(block: &[u8; 98], out: &mut [f32; LEN]) {
    let d = f16_at(block, 0);
    for (i, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let signs = u32_at(block, 66 + i / 8 * 4);
        let eight = even((signs >> (7 * (i / 2 % 4))) as u8);
        let grid = four(IQ3_XXS[usize::from(block[2 + i])], IQ3_XXS_VALUES);
        signed(half_scale(d, (signs >> 28) as u8, 0.5), &grid, eight >> (4 * (i % 2)), out);
    }
}

pub(super) fn dequantize_iq3_s(block: &[u8; 110], out: &mut [f32; LEN]) {
    let d = f16_at(block, 0);
    for (i, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let high = u16::from(block[66 + i / 8] >> (i % 8) & 1);
        let grid = IQ3_S[usize::from(u16::from(block[2 + i]) | high << 8)];
        let scale = d * f32::from(1 + 2 * nibble(&block[106..], i / 8));
        signed(scale, &four(grid, IQ3_S_VALUES), block[74 + i / 2] >> (4 * (i % 2)), out);
    }
}

/// value = scale * (grid value + delta)
fn iq1(entry: u16, scale: f32, delta: f32, out: &mut [f32; 8]) {
    for (i, y) in out.iter_mut().enumerate() {
        *y = scale * (f32::from(entry >> (2 * i) & 3) - 1.0 + delta);
    }
}

pub(super) fn dequantize_iq1_s(block: &[u8; 50], out: &mut [f32; LEN]) {
    let d = f16_at(block, 0);
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = u16_at(block, 34 + i / 4 * 2);
        let entry = u16::from(block[2 + i]) | (high >> (3 * (i % 4)) & 7) << 8;
        let delta = if high >> 15 == 0 { DELTA } else { -DELTA };
        iq1(IQ1[usize::from(entry)], d * f32::from(2 * (high >> 12 & 7) + 1), delta, out);
    }
}

pub(super) fn dequantize_iq1_m(block: &[u8; 56], out: &mut [f32; LEN]) {
    let d = (0..4).fold(0, |d, i| d | u16_at(block, 48 + 2 * i) >> 12 << (4 * i));
    let d = f16::from_bits(d).to_f32();
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = nibble(&block[32..], i);
        let entry = u16::from(block[i]) | u16::from(high & 7) << 8;
        let scale = u16_at(block, 48 + i / 8 * 2) >> (3 * (i / 2 % 4)) & 7;
        let delta = if high & 8 == 0 { DELTA } else { -DELTA };
        iq1(IQ1[usize::from(entry)], d * f32::from(2 * scale + 1), delta, out);
    }
}

/// The search of a format with signs.
fn search<const N: usize>(grid: &[u16], levels: &[u8], group: usize, scales: (f32, f32, f32)) -> Search<N> {
    let bits = if N == 8 { 2 } else { 3 };
    let entry = |entry: &u16| {
        std::array::from_fn(|i| f32::from(levels[usize::from(entry >> (bits * i)) & ((1 << bits) - 1)]))
    };
    let levels = levels.iter().map(|&level| f32::from(level)).collect();
    Search::signed(grid.iter().map(entry).collect(), levels, group, scales)
}

/// The search of IQ1.
fn search_iq1(group: usize, deltas_for: usize) -> Search<8> {
    let entry = |entry: &u16| std::array::from_fn(|i| f32::from(entry >> (2 * i) & 3) - 1.0);
    Search::ternary(IQ1.iter().map(entry).collect(), group, (&[DELTA, -DELTA], deltas_for))
}

/// Seven bits of each of four signs and a scale.
fn signs_and_scale(signs: &[u8], scale: u8) -> [u8; 4] {
    let signs = signs.iter().enumerate().fold(0, |all, (i, &s)| all | u32::from(s & 127) << (7 * i));
    (signs | u32::from(scale) << 28).to_le_bytes()
}

/// Scales of 4 bits, low nibbles first.
fn put_nibbles(scales: &[u8], bytes: &mut [u8]) {
    scales.iter().enumerate().for_each(|(i, s)| bytes[i / 2] |= s << (4 * (i % 2)));
}

pub(super) fn quantize_iq2_xxs(values: &[f32; LEN], weights: &[f32; LEN], block: &mut [u8; 66]) {
    static SEARCH: LazyLock<Search<8>> =
        LazyLock::new(|| search(&IQ2_XXS, &IQ2_VALUES, 32, (0.25, 0.5, 15.0)));
    let (x, signs) = without_signs(values, weights, true);
    let found = SEARCH.block(&x, weights);
    put_f16(block, 0, found.d);
    for (i, code) in found.codes.iter().enumerate() {
        block[2 + i / 4 * 8 + i % 4] = code.entry as u8;
    }
    for (group, (signs, &s)) in signs.chunks(4).zip(&found.scales).enumerate() {
        block[6 + 8 * group..][..4].copy_from_slice(&signs_and_scale(signs, s));
    }
}

pub(super) fn quantize_iq2_xs(values: &[f32; LEN], weights: &[f32; LEN], block: &mut [u8; 74]) {
    static SEARCH: LazyLock<Search<8>> =
        LazyLock::new(|| search(&IQ2_XS, &IQ2_VALUES, 16, (0.25, 0.5, 15.0)));
    let (x, signs) = without_signs(values, weights, true);
    let found = SEARCH.block(&x, weights);
    put_f16(block, 0, found.d);
    for (i, (code, signs)) in found.codes.iter().zip(signs).enumerate() {
        let code = code.entry | u16::from(signs & 127) << 9;
        block[2 + 2 * i..][..2].copy_from_slice(&code.to_le_bytes());
    }
    put_nibbles(&found.scales, &mut block[66..]);
}

pub(super) fn quantize_iq2_s(values: &[f32; LEN], weights: &[f32; LEN], block: &mut [u8; 82]) {
    static SEARCH: LazyLock<Search<8>> = LazyLock::new(|| search(&IQ2_S, &IQ2_VALUES, 16, (0.25, 0.5, 15.0)));
    let (x, signs) = without_signs(values, weights, false);
    let found = SEARCH.block(&x, weights);
    put_f16(block, 0, found.d);
    block[34..66].copy_from_slice(&signs);
    for (i, code) in found.codes.iter().enumerate() {
        block[2 + i] = code.entry as u8;
        block[66 + i / 4] |= ((code.entry >> 8) as u8) << (2 * (i % 4));
    }
    put_nibbles(&found.scales, &mut block[74..]);
}

pub(super) fn quantize_iq3_xxs(values: &[f32; LEN], weights: &[f32; LEN], block: &mut [u8; 98]) {
    static SEARCH: LazyLock<Search<4>> =
        LazyLock::new(|| search(&IQ3_XXS, &IQ3_XXS_VALUES, 32, (0.5, 0.5, 15.0)));
    let (x, signs) = without_signs(values, weights, true);
    let found = SEARCH.block(&x, weights);
    put_f16(block, 0, found.d);
    for (i, code) in found.codes.iter().enumerate() {
        block[2 + i] = code.entry as u8;
    }
    for (group, (signs, &s)) in signs.chunks(4).zip(&found.scales).enumerate() {
        block[66 + 4 * group..][..4].copy_from_slice(&signs_and_scale(signs, s));
    }
}

pub(super) fn quantize_iq3_s(values: &[f32; LEN], weights: &[f32; LEN], block: &mut [u8; 110]) {
    static SEARCH: LazyLock<Search<4>> =
        LazyLock::new(|| search(&IQ3_S, &IQ3_S_VALUES, 32, (2.0, 0.5, 15.0)));
    let (x, signs) = without_signs(values, weights, false);
    let found = SEARCH.block(&x, weights);
    put_f16(block, 0, found.d);
    for (i, code) in found.codes.iter().enumerate() {
        block[2 + i] = code.entry as u8;
        block[66 + i / 8] |= ((code.entry >> 8) as u8) << (i % 8);
    }
    block[74..106].copy_from_slice(&signs);
    put_nibbles(&found.scales, &mut block[106..]);
}

pub(super) fn quantize_iq1_s(values: &[f32; LEN], weights: &[f32; LEN], block: &mut [u8; 50]) {
    static SEARCH: LazyLock<Search<8>> = LazyLock::new(|| search_iq1(32, 32));
    let found = SEARCH.block(values, weights);
    put_f16(block, 0, found.d);
    for (group, (codes, &s)) in found.codes.chunks(4).zip(&found.scales).enumerate() {
        let mut high = u16::from(s) << 12 | u16::from(codes[0].second) << 15;
        for (i, code) in codes.iter().enumerate() {
            block[2 + 4 * group + i] = code.entry as u8;
            high |= (code.entry >> 8) << (3 * i);
        }
        block[34 + 2 * group..][..2].copy_from_slice(&high.to_le_bytes());
    }
}

pub(super) fn quantize_iq1_m(values: &[f32; LEN], weights: &[f32; LEN], block: &mut [u8; 56]) {
    static SEARCH: LazyLock<Search<8>> = LazyLock::new(|| search_iq1(16, 8));
    let found = SEARCH.block(values, weights);
    for (i, code) in found.codes.iter().enumerate() {
        block[i] = code.entry as u8;
        block[32 + i / 2] |= ((code.entry >> 8) as u8 | u8::from(code.second) << 3) << (4 * (i % 2));
    }
    let d = f16::from_f32(found.d).to_bits();
    for (i, scales) in found.scales.chunks(4).enumerate() {
        let scales = scales.iter().rev().fold(0, |all, &s| all << 3 | u16::from(s));
        let word = scales | (d >> (4 * i) & 15) << 12;
        block[48 + 2 * i..][..2].copy_from_slice(&word.to_le_bytes());
    }
}
