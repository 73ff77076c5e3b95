//! Blocks of 32 values with one scale `d`, and in the `_1` formats one minimum `m`, both f16.
//!
//! | format | bytes | layout                            | value           |
//! |--------|-------|-----------------------------------|-----------------|
//! | Q4_0   | 18    | d 0..2, codes 2..18               | d * (code - 8)  |
//! | Q4_1   | 20    | d 0..2, m 2..4, codes 4..20       | d * code + m    |
//! | Q5_0   | 22    | d 0..2, bits 2..6, codes 6..22    | d * (code - 16) |
//! | Q5_1   | 24    | d 0..2, m 2..4, bits 4..8, codes 8..24 | d * code + m |
//! | Q8_0   | 34    | d 0..2, codes 2..34 (i8)          | d * code        |
//!
//! Code `j` has its low four bits in the low nibble of byte `j` for j < 16, else in the high nibble of byte
//! `j - 16`; its fifth bit is bit `j` of the little-endian u32 `bits`.

use super::planes::{pack, unpack};
use super::{f16_at, put_f16};

const LEN: usize = 32;

/// The 32 codes of nibbles alone.
fn nibbles(bytes: &[u8]) -> [u8; LEN] {
    let mut codes = [0; LEN];
    unpack::<4, 16>(bytes, 0, &mut codes);
    codes
}

/// The 32 codes of fifth bits (4 bytes) followed by nibbles.
fn five_bits(bytes: &[u8]) -> [u8; LEN] {
    let mut codes = nibbles(&bytes[4..]);
    for (j, code) in codes.iter_mut().enumerate() {
        *code |= (bytes[j / 8] >> (j % 8) & 1) << 4;
    }
    codes
}

/// The inverse of [`five_bits`].
fn put_five_bits(codes: &[u8; LEN], bytes: &mut [u8]) {
    for (j, code) in codes.iter().enumerate() {
        bytes[j / 8] |= (code >> 4) << (j % 8);
    }
    pack::<4, 16>(codes, 0, &mut bytes[4..]);
}

fn centred(d: f32, zero: i32, codes: &[u8; LEN], out: &mut [f32; LEN]) {
    for (y, &code) in out.iter_mut().zip(codes) {
        *y = d * (i32::from(code) - zero) as f32;
    }
}

fn affine(d: f32, m: f32, codes: &[u8; LEN], out: &mut [f32; LEN]) {
    for (y, &code) in out.iter_mut().zip(codes) {
        *y = d * f32::from(code) + m;
    }
}

pub(super) fn dequantize_q4_0(block: &[u8; 18], out: &mut [f32; LEN]) {
    centred(f16_at(block, 0), 8, &nibbles(&block[2..]), out);
}

pub(super) fn dequantize_q4_1(block: &[u8; 20], out: &mut [f32; LEN]) {
    affine(f16_at(block, 0), f16_at(block, 2), &nibbles(&block[4..]), out);
}

pub(super) fn dequantize_q5_0(block: &[u8; 22], out: &mut [f32; LEN]) {
    centred(f16_at(block, 0), 16, &five_bits(&block[2..]), out);
}

pub(super) fn dequantize_q5_1(block: &[u8; 24], out: &mut [f32; LEN]) {
    affine(f16_at(block, 0), f16_at(block, 2), &five_bits(&block[4..]), out);
}

pub(super) fn dequantize_q8_0(block: &[u8; 34], out: &mut [f32; LEN]) {
    let d = f16_at(block, 0);
    for (y, &code) in out.iter_mut().zip(&block[2..]) {
        *y = d * f32::from(code as i8);
    }
}

/// Scale and codes of a `_0` format with codes `0..2 * zero`. The value farthest from zero gets code 0, whose
/// magnitude `zero` is the largest that the format has, so the scale carries that value's sign.
fn quantize_centred(values: &[f32; LEN], zero: u8, block: &mut [u8]) -> [u8; LEN] {
    let d = put_f16(block, 0, -super::farthest(values) / f32::from(zero));
    let inverse = super::inverse(d);
    values.map(|x| super::round_code(x * inverse + f32::from(zero), 2 * zero - 1))
}

/// Scale, minimum and codes `0..=max` of a `_1` format.
fn quantize_affine(values: &[f32; LEN], max: u8, block: &mut [u8]) -> [u8; LEN] {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let m = put_f16(block, 2, low);
    let d = put_f16(block, 0, (high - m) / f32::from(max));
    let inverse = super::inverse(d);
    values.map(|x| super::round_code((x - m) * inverse, max))
}

/// [`quantize_centred`] with the scale of the least square error, each value's by its weight.
fn fit_centred(values: &[f32; LEN], weights: &[f32; LEN], zero: u8, block: &mut [u8]) -> [u8; LEN] {
    let d = put_f16(block, 0, super::search::fit_centred(values, weights, zero));
    let inverse = super::inverse(d);
    values.map(|x| super::round_code(x * inverse + f32::from(zero), 2 * zero - 1))
}

pub(super) fn fit_q4_0(values: &[f32; LEN], weights: &[f32; LEN], block: &mut [u8; 18]) {
    let codes = fit_centred(values, weights, 8, block);
    pack::<4, 16>(&codes, 0, &mut block[2..]);
}

pub(super) fn fit_q5_0(values: &[f32; LEN], weights: &[f32; LEN], block: &mut [u8; 22]) {
    let codes = fit_centred(values, weights, 16, block);
    put_five_bits(&codes, &mut block[2..]);
}

/// [`quantize_affine`] with scale and minimum of the least square error, each value's by its weight.
fn fit_affine(values: &[f32; LEN], weights: &[f32; LEN], max: u8, block: &mut [u8]) -> [u8; LEN] {
    let (d, min) = super::search::fit_affine(values, weights, max, f32::NEG_INFINITY);
    let (d, m) = (put_f16(block, 0, d), put_f16(block, 2, -min));
    let inverse = super::inverse(d);
    values.map(|x| super::round_code((x - m) * inverse, max))
}

pub(super) fn fit_q4_1(values: &[f32; LEN], weights: &[f32; LEN], block: &mut [u8; 20]) {
    let codes = fit_affine(values, weights, 15, block);
    pack::<4, 16>(&codes, 0, &mut block[4..]);
}

pub(super) fn fit_q5_1(values: &[f32; LEN], weights: &[f32; LEN], block: &mut [u8; 24]) {
    let codes = fit_affine(values, weights, 31, block);
    put_five_bits(&codes, &mut block[4..]);
}

pub(super) fn quantize_q4_0(values: &[f32; LEN], block: &mut [u8; 18]) {
    let codes = quantize_centred(values, 8, block);
    pack::<4, 16>(&codes, 0, &mut block[2..]);
}

pub(super) fn quantize_q4_1(values: &[f32; LEN], block: &mut [u8; 20]) {
    let codes = quantize_affine(values, 15, block);
    pack::<4, 16>(&codes, 0, &mut block[4..]);
}

pub(super) fn quantize_q5_0(values: &[f32; LEN], block: &mut [u8; 22]) {
    let codes = quantize_centred(values, 16, block);
    put_five_bits(&codes, &mut block[2..]);
}

pub(super) fn quantize_q5_1(values: &[f32; LEN], block: &mut [u8; 24]) {
    let codes = quantize_affine(values, 31, block);
    put_five_bits(&codes, &mut block[4..]);
}

pub(super) fn quantize_q8_0(values: &[f32; LEN], block: &mut [u8; 34]) {
    let d = put_f16(block, 0, super::farthest(values).abs() / 127.0);
    let inverse = super::inverse(d);
    for (code, x) in block[2..].iter_mut().zip(values) {
        *code = (x * inverse).round().clamp(-127.0, 127.0) as i8 as u8;
    }
}
