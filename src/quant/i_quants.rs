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

use half::f16;

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

/// The index of the entry whose values are nearest to `x`.
fn nearest<const N: usize>(grid: &[[f32; N]], x: &[f32; N]) -> usize {
    let mut best = (0, f32::INFINITY);
    for (i, entry) in grid.iter().enumerate() {
        let mut error = 0.0;
        for j in 0..N {
            error += (entry[j] - x[j]) * (entry[j] - x[j]);
        }
        if error < best.1 {
            best = (i, error);
        }
    }
    best.0
}

/// Entries with signs for a group of values under one scale.
struct Signed<const N: usize> {
    grid: Vec<[f32; N]>,
    largest: f32,
    /// Whether the number of signs of 8 values must be even.
    even: bool,
}

impl<const N: usize> Signed<N> {
    /// Signs of 8 values: where their number must be even and is not, the smallest value takes the other.
    fn signs(&self, x: &[f32; 8]) -> u8 {
        let signs = x.iter().enumerate().fold(0u8, |signs, (i, &v)| signs | u8::from(v < 0.0) << i);
        if !self.even || signs.count_ones().is_multiple_of(2) {
            return signs;
        }
        let smallest = (0..8).min_by(|&a, &b| x[a].abs().total_cmp(&x[b].abs())).unwrap_or(0);
        signs ^ 1 << smallest
    }

    /// The entries of a group under this scale.
    fn entries(&self, x: &[f32], scale: f32) -> Vec<usize> {
        let inverse = super::inverse(scale);
        let mut entries = Vec::with_capacity(x.len() / N);
        for eight in x.as_chunks::<8>().0 {
            let signs = self.signs(eight);
            for (j, part) in eight.as_chunks::<N>().0.iter().enumerate() {
                let magnitudes = std::array::from_fn(|i| {
                    let sign = if signs >> (N * j + i) & 1 == 0 { inverse } else { -inverse };
                    part[i] * sign
                });
                entries.push(nearest(&self.grid, &magnitudes));
            }
        }
        entries
    }

    /// The scale under which a group's nearest entries have the least square error, after one look.
    fn scale(&self, x: &[f32]) -> f32 {
        let guess = super::farthest(x).abs() / self.largest;
        let entries = self.entries(x, guess);
        let values = x.as_chunks::<8>().0.iter().flat_map(|eight| {
            let signs = self.signs(eight);
            (0..8).map(move |i| if signs >> i & 1 == 0 { eight[i] } else { -eight[i] })
        });
        let grid = entries.iter().flat_map(|&entry| self.grid[entry]);
        let (mut xg, mut gg) = (0.0, 0.0);
        for (x, g) in values.zip(grid) {
            xg += x * g;
            gg += g * g;
        }
        if gg > 0.0 { (xg / gg).max(0.0) } else { 0.0 }
    }
}

fn signed_grid<const N: usize>(grid: &[u16], bits: usize, values: &[u8], even: bool) -> Signed<N> {
    let mask = (1 << bits) - 1;
    let value = |entry: u16, i: usize| f32::from(values[usize::from(entry >> (bits * i) & mask)]);
    Signed {
        grid: grid.iter().map(|&entry| std::array::from_fn(|i| value(entry, i))).collect(),
        largest: f32::from(*values.last().unwrap_or(&1)),
        even,
    }
}

/// Scales of groups as `d * unit * (s + offset)`, s up to `most`: d and each s.
fn small_scales(scales: &[f32], unit: f32, offset: f32, most: f32) -> (f32, Vec<u8>) {
    let d = f16::from_f32(scales.iter().fold(0.0, |a: f32, &b| a.max(b)) / (unit * (most + offset))).to_f32();
    let s = |scale: &f32| (scale * super::inverse(d * unit) - offset).round().clamp(0.0, most) as u8;
    (d, scales.iter().map(s).collect())
}

/// Quantizes 8 or 16 groups under signed grids: calls `put(group, s, entries, signs)`, signs of 8 values each.
fn quantize_signed<const N: usize>(
    values: &[f32; LEN],
    grid: &Signed<N>,
    group_len: usize,
    (unit, offset, most): (f32, f32, f32),
    mut put: impl FnMut(usize, u8, &[usize], &[u8]),
) -> f32 {
    let scales: Vec<f32> = values.chunks(group_len).map(|x| grid.scale(x)).collect();
    let (d, small) = small_scales(&scales, unit, offset, most);
    for (group, x) in values.chunks(group_len).enumerate() {
        let s = small[group];
        let entries = grid.entries(x, d * (offset + f32::from(s)) * unit);
        let signs: Vec<u8> = x.as_chunks::<8>().0.iter().map(|eight| grid.signs(eight)).collect();
        put(group, s, &entries, &signs);
    }
    d
}

pub(super) fn quantize_iq2_xxs(values: &[f32; LEN], block: &mut [u8; 66]) {
    let grid = signed_grid::<8>(&IQ2_XXS, 2, &IQ2_VALUES, true);
    let d = quantize_signed(values, &grid, 32, (0.25, 0.5, 15.0), |group, s, entries, signs| {
        let at = 2 + 8 * group;
        entries.iter().enumerate().for_each(|(i, &entry)| block[at + i] = entry as u8);
        let signs = signs.iter().enumerate().fold(0, |all, (i, &s)| all | u32::from(s & 127) << (7 * i));
        block[at + 4..at + 8].copy_from_slice(&(signs | u32::from(s) << 28).to_le_bytes());
    });
    put_f16(block, 0, d);
}

pub(super) fn quantize_iq2_xs(values: &[f32; LEN], block: &mut [u8; 74]) {
    let grid = signed_grid::<8>(&IQ2_XS, 2, &IQ2_VALUES, true);
    let d = quantize_signed(values, &grid, 16, (0.25, 0.5, 15.0), |group, s, entries, signs| {
        for i in 0..2 {
            let code = entries[i] as u16 | u16::from(signs[i] & 127) << 9;
            block[2 + 4 * group + 2 * i..][..2].copy_from_slice(&code.to_le_bytes());
        }
        block[66 + group / 2] |= s << (4 * (group % 2));
    });
    put_f16(block, 0, d);
}

pub(super) fn quantize_iq2_s(values: &[f32; LEN], block: &mut [u8; 82]) {
    let grid = signed_grid::<8>(&IQ2_S, 2, &IQ2_VALUES, false);
    let d = quantize_signed(values, &grid, 16, (0.25, 0.5, 15.0), |group, s, entries, signs| {
        for i in 0..2 {
            let at = 2 * group + i;
            block[2 + at] = entries[i] as u8;
            block[34 + at] = signs[i];
            block[66 + at / 4] |= ((entries[i] >> 8) as u8) << (2 * (at % 4));
        }
        block[74 + group / 2] |= s << (4 * (group % 2));
    });
    put_f16(block, 0, d);
}

pub(super) fn quantize_iq3_xxs(values: &[f32; LEN], block: &mut [u8; 98]) {
    let grid = signed_grid::<4>(&IQ3_XXS, 3, &IQ3_XXS_VALUES, true);
    let d = quantize_signed(values, &grid, 32, (0.5, 0.5, 15.0), |group, s, entries, signs| {
        entries.iter().enumerate().for_each(|(i, &entry)| block[2 + 8 * group + i] = entry as u8);
        let signs = signs.iter().enumerate().fold(0, |all, (i, &s)| all | u32::from(s & 127) << (7 * i));
        block[66 + 4 * group..][..4].copy_from_slice(&(signs | u32::from(s) << 28).to_le_bytes());
    });
    put_f16(block, 0, d);
}

pub(super) fn quantize_iq3_s(values: &[f32; LEN], block: &mut [u8; 110]) {
    let grid = signed_grid::<4>(&IQ3_S, 3, &IQ3_S_VALUES, false);
    let d = quantize_signed(values, &grid, 32, (2.0, 0.5, 15.0), |group, s, entries, signs| {
        for (i, &entry) in entries.iter().enumerate() {
            block[2 + 8 * group + i] = entry as u8;
            block[66 + group] |= ((entry >> 8) as u8) << i;
        }
        block[74 + 4 * group..][..4].copy_from_slice(signs);
        block[106 + group / 2] |= s << (4 * (group % 2));
    });
    put_f16(block, 0, d);
}

/// The entries of IQ1 as values.
fn iq1_grid() -> Vec<[f32; 8]> {
    IQ1.iter().map(|&entry| std::array::from_fn(|i| f32::from(entry >> (2 * i) & 3) - 1.0)).collect()
}

/// Entry and delta that are nearest to 8 values under this scale.
fn iq1_nearest(grid: &[[f32; 8]], x: &[f32; 8], scale: f32, deltas: &[f32]) -> (usize, f32, f32) {
    let inverse = super::inverse(scale);
    let of_delta = |&delta: &f32| {
        let target = x.map(|v| v * inverse - delta);
        let entry = nearest(grid, &target);
        let error: f32 = (0..8).map(|i| (grid[entry][i] - target[i]).powi(2)).sum();
        (entry, delta, error)
    };
    deltas.iter().map(of_delta).min_by(|a, b| a.2.total_cmp(&b.2)).expect("there are deltas")
}

/// The scale of a group: its values are spread about -1, 0 and 1.
fn iq1_scale(x: &[f32]) -> f32 {
    let square: f32 = x.iter().map(|v| v * v).sum();
    1.2 * (square / x.len() as f32).sqrt()
}

pub(super) fn quantize_iq1_s(values: &[f32; LEN], block: &mut [u8; 50]) {
    let grid = iq1_grid();
    let scales: Vec<f32> = values.chunks(32).map(iq1_scale).collect();
    let (d, small) = small_scales(&scales, 2.0, 0.5, 7.0);
    put_f16(block, 0, d);
    for (group, x) in values.chunks(32).enumerate() {
        let s = small[group];
        let scale = d * f32::from(2 * s + 1);
        let all = |delta: f32| {
            let found = x.as_chunks::<8>().0.iter().map(|x| iq1_nearest(&grid, x, scale, &[delta]));
            found.collect::<Vec<_>>()
        };
        let error = |found: &[(usize, f32, f32)]| found.iter().map(|f| f.2).sum::<f32>();
        let (plus, minus) = (all(DELTA), all(-DELTA));
        let is_minus = error(&minus) < error(&plus);
        let mut high = u16::from(s) << 12 | u16::from(is_minus) << 15;
        for (i, (entry, ..)) in (if is_minus { minus } else { plus }).into_iter().enumerate() {
            block[2 + 4 * group + i] = entry as u8;
            high |= (entry as u16 >> 8) << (3 * i);
        }
        block[34 + 2 * group..][..2].copy_from_slice(&high.to_le_bytes());
    }
}

pub(super) fn quantize_iq1_m(values: &[f32; LEN], block: &mut [u8; 56]) {
    let grid = iq1_grid();
    let scales: Vec<f32> = values.chunks(16).map(iq1_scale).collect();
    let (d, small) = small_scales(&scales, 2.0, 0.5, 7.0);
    let mut words = [0u16; 4];
    for (i, word) in words.iter_mut().enumerate() {
        *word = (f16::from_f32(d).to_bits() >> (4 * i) & 15) << 12;
    }
    for (i, x) in values.as_chunks::<8>().0.iter().enumerate() {
        let scale = d * f32::from(2 * small[i / 2] + 1);
        let (entry, delta, _) = iq1_nearest(&grid, x, scale, &[DELTA, -DELTA]);
        block[i] = entry as u8;
        block[32 + i / 2] |= ((entry >> 8) as u8 | u8::from(delta < 0.0) << 3) << (4 * (i % 2));
    }
    for (i, &s) in small.iter().enumerate() {
        words[i / 4] |= u16::from(s) << (3 * (i % 4));
    }
    for (i, word) in words.iter().enumerate() {
        block[48 + 2 * i..][..2].copy_from_slice(&word.to_le_bytes());
    }
}
