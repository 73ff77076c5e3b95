//! Super-blocks of 256 values (the K-quants): groups of 16 or 32 values with a small integer scale, and in some
//! formats a small integer minimum, under f16 factors `d` and `dmin` of the whole super-block.
//!
//! | format | bytes | layout                                                     | groups  | value                    |
//! |--------|-------|------------------------------------------------------------|---------|--------------------------|
//! | Q2_K   | 84    | scales 0..16, codes 16..80, d 80..82, dmin 82..84          | 16 x 16 | d * s * code - dmin * m  |
//! | Q3_K   | 110   | bit 2 0..32, bits 0-1 32..96, scales 96..108, d 108..110   | 16 x 16 | d * s * (code - 4)       |
//! | Q4_K   | 144   | d 0..2, dmin 2..4, scales 4..16, codes 16..144             | 8 x 32  | d * s * code - dmin * m  |
//! | Q5_K   | 176   | d 0..2, dmin 2..4, scales 4..16, bit 4 16..48, bits 0-3 48..176 | 8 x 32 | d * s * code - dmin * m |
//! | Q6_K   | 210   | bits 0-3 0..128, bits 4-5 128..192, scales 192..208 (i8), d 208..210 | 16 x 16 | d * s * (code - 32) |
//!
//! Codes are [bit planes](super::planes) with runs of 32 values; the low bits of Q6_K have runs of 64.
//! Products are formed left to right, so that every reader of the format gets the same bits.

use super::planes::{pack, unpack};
use super::search::{affine_groups, centred_groups};
use super::{f16_at, put_f16};

const LEN: usize = 256;

/// Scales and minima of Q2_K: byte `g` has the scale of group `g` in its low nibble, the minimum in its high.
pub(crate) fn scales_q2_k(bytes: &[u8; 16]) -> ([u8; 16], [u8; 16]) {
    (bytes.map(|b| b & 15), bytes.map(|b| b >> 4))
}

/// Scales of Q3_K, -32..=31: 6 bits each, the low four in nibbles of bytes 0..8, the high two in bytes 8..12.
pub(crate) fn scales_q3_k(bytes: &[u8; 12]) -> [i8; 16] {
    let mut scales = [0; 16];
    unpack::<4, 8>(&bytes[..8], 0, &mut scales);
    unpack::<2, 4>(&bytes[8..], 4, &mut scales);
    scales.map(|s| s as i8 - 32)
}

/// Scales and minima of Q4_K and Q5_K, 0..=63. Groups 0..4 have 6 bits in bytes 0..4 (scales) and 4..8 (minima);
/// groups 4..8 have their low four bits in the nibbles of bytes 8..12 and their high two on top of bytes 0..8.
pub(crate) fn scales_q4_k(bytes: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for g in 0..4 {
        scales[g] = bytes[g] & 63;
        mins[g] = bytes[4 + g] & 63;
        scales[4 + g] = bytes[8 + g] & 15 | bytes[g] >> 6 << 4;
        mins[4 + g] = bytes[8 + g] >> 4 | bytes[4 + g] >> 6 << 4;
    }
    (scales, mins)
}

/// The inverse of [`scales_q4_k`].
fn put_scales_q4_k(scales: &[u8; 8], mins: &[u8; 8], bytes: &mut [u8]) {
    for g in 0..4 {
        bytes[g] = scales[g] | scales[4 + g] >> 4 << 6;
        bytes[4 + g] = mins[g] | mins[4 + g] >> 4 << 6;
        bytes[8 + g] = scales[4 + g] & 15 | mins[4 + g] << 4;
    }
}

/// A field of a block as an array.
fn field<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    block[at..].first_chunk().expect("a field lies within its block")
}

/// value = scale * code - min, with (scale, min) for each group of `GROUP` values.
fn affine<const GROUP: usize>(codes: &[u8; LEN], out: &mut [f32; LEN], group: impl Fn(usize) -> (f32, f32)) {
    let groups = codes.as_chunks::<GROUP>().0.iter().zip(out.as_chunks_mut::<GROUP>().0);
    for (g, (codes, out)) in groups.enumerate() {
        let (scale, min) = group(g);
        for (y, &code) in out.iter_mut().zip(codes) {
            *y = scale * f32::from(code) - min;
        }
    }
}

/// value = scale * (code - zero), with a scale for each group of 16 values.
fn centred(codes: &[u8; LEN], zero: i32, out: &mut [f32; LEN], scale: impl Fn(usize) -> f32) {
    let groups = codes.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<16>().0);
    for (g, (codes, out)) in groups.enumerate() {
        let scale = scale(g);
        for (y, &code) in out.iter_mut().zip(codes) {
            *y = scale * (i32::from(code) - zero) as f32;
        }
    }
}

pub(super) fn dequantize_q2_k(block: &[u8; 84], out: &mut [f32; LEN]) {
    let mut codes = [0; LEN];
    unpack::<2, 32>(&block[16..80], 0, &mut codes);
    let (scales, mins) = scales_q2_k(field(block, 0));
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    affine::<16>(&codes, out, |g| (d * f32::from(scales[g]), dmin * f32::from(mins[g])));
}

pub(super) fn dequantize_q3_k(block: &[u8; 110], out: &mut [f32; LEN]) {
    let mut codes = [0; LEN];
    unpack::<1, 32>(&block[..32], 2, &mut codes);
    unpack::<2, 32>(&block[32..96], 0, &mut codes);
    let scales = scales_q3_k(field(block, 96));
    let d = f16_at(block, 108);
    centred(&codes, 4, out, |g| d * f32::from(scales[g]));
}

pub(super) fn dequantize_q4_k(block: &[u8; 144], out: &mut [f32; LEN]) {
    let mut codes = [0; LEN];
    unpack::<4, 32>(&block[16..], 0, &mut codes);
    affine_q4_k(block, &codes, out);
}

pub(super) fn dequantize_q5_k(block: &[u8; 176], out: &mut [f32; LEN]) {
    let mut codes = [0; LEN];
    unpack::<1, 32>(&block[16..48], 4, &mut codes);
    unpack::<4, 32>(&block[48..], 0, &mut codes);
    affine_q4_k(block, &codes, out);
}

/// Q4_K and Q5_K begin alike: d, dmin, scales.
fn affine_q4_k(block: &[u8], codes: &[u8; LEN], out: &mut [f32; LEN]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let (scales, mins) = scales_q4_k(field(block, 4));
    affine::<32>(codes, out, |g| (d * f32::from(scales[g]), dmin * f32::from(mins[g])));
}

pub(super) fn dequantize_q6_k(block: &[u8; 210], out: &mut [f32; LEN]) {
    let mut codes = [0; LEN];
    unpack::<4, 64>(&block[..128], 0, &mut codes);
    unpack::<2, 32>(&block[128..192], 4, &mut codes);
    let scales: &[u8; 16] = field(block, 192);
    let d = f16_at(block, 208);
    centred(&codes, 32, out, |g| d * f32::from(scales[g] as i8));
}

pub(super) fn quantize_q2_k(values: &[f32; LEN], weights: &[f32; LEN], block: &mut [u8; 84]) {
    let fit = affine_groups::<16>(values, weights, 3, 15);
    put_f16(block, 80, fit.d);
    put_f16(block, 82, fit.dmin);
    for (byte, (scale, min)) in block.iter_mut().zip(fit.scales.iter().zip(&fit.mins)) {
        *byte = scale | min << 4;
    }
    pack::<2, 32>(&fit.codes, 0, &mut block[16..80]);
}

pub(super) fn quantize_q3_k(values: &[f32; LEN], weights: &[f32; LEN], block: &mut [u8; 110]) {
    let fit = centred_groups(values, weights, 4, 32);
    put_f16(block, 108, fit.d);
    let scales = fit.scales.map(|s| (s + 32) as u8);
    pack::<1, 32>(&fit.codes, 2, &mut block[..32]);
    pack::<2, 32>(&fit.codes, 0, &mut block[32..96]);
    pack::<4, 8>(&scales, 0, &mut block[96..104]);
    pack::<2, 4>(&scales, 4, &mut block[104..108]);
}

pub(super) fn quantize_q4_k(values: &[f32; LEN], weights: &[f32; LEN], block: &mut [u8; 144]) {
    let codes = quantize_affine_q4_k(values, weights, 15, block);
    pack::<4, 32>(&codes, 0, &mut block[16..]);
}

pub(super) fn quantize_q5_k(values: &[f32; LEN], weights: &[f32; LEN], block: &mut [u8; 176]) {
    let codes = quantize_affine_q4_k(values, weights, 31, block);
    pack::<1, 32>(&codes, 4, &mut block[16..48]);
    pack::<4, 32>(&codes, 0, &mut block[48..]);
}

fn quantize_affine_q4_k(values: &[f32; LEN], weights: &[f32; LEN], max: u8, block: &mut [u8]) -> [u8; LEN] {
    let fit = affine_groups::<32>(values, weights, max, 63);
    put_f16(block, 0, fit.d);
    put_f16(block, 2, fit.dmin);
    put_scales_q4_k(field(&fit.scales, 0), field(&fit.mins, 0), &mut block[4..16]);
    fit.codes
}

pub(super) fn quantize_q6_k(values: &[f32; LEN], weights: &[f32; LEN], block: &mut [u8; 210]) {
    let fit = centred_groups(values, weights, 32, 128);
    put_f16(block, 208, fit.d);
    for (byte, scale) in block[192..208].iter_mut().zip(fit.scales) {
        *byte = scale as u8;
    }
    pack::<4, 64>(&fit.codes, 0, &mut block[..128]);
    pack::<2, 32>(&fit.codes, 4, &mut block[128..192]);
}
