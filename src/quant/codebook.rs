//! Formats whose codes are looked up in a table of 16 values, and ternary ones.
//!
//! | format | bytes | values | layout                                                             | value                   |
//! |--------|-------|--------|--------------------------------------------------------------------|-------------------------|
//! | IQ4_NL | 18    | 32     | d 0..2, codes 2..18                                                | d * IQ4\[code\]         |
//! | IQ4_XS | 136   | 256    | d 0..2, scales: high bits 2..4, low 4..8, codes 8..136             | d * (s - 32) * IQ4\[code\] |
//! | MXFP4  | 17    | 32     | exponent 0, codes 1..17                                            | 2^(e - 128) * FP4\[code\] |
//! | TQ1_0  | 54    | 256    | digits to base 3: five in 0..48, four in 48..52; d 52..54          | d * (digit - 1)         |
//! | TQ2_0  | 66    | 256    | codes of 2 bits 0..64, d 64..66                                    | d * (code - 1)          |
//!
//! MXFP4 is that of the Open Compute Project's Microscaling formats 1.0; [`FP4`] holds its values doubled.

use super::planes::{pack, unpack};
use super::{f16_at, farthest, inverse, put_f16};

/// Values of IQ4_NL and IQ4_XS.
pub(crate) const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// Twice the values of FP4 (E2M1).
pub(crate) const FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of 2^(e - 127).
fn half_power(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

pub(super) fn dequantize_iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    look_up(&IQ4, d, &block[2..], out);
}

pub(super) fn dequantize_iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (i, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scale_iq4_xs(block, i));
        look_up(&IQ4, scale, &block[8 + 16 * i..][..16], out);
    }
}

fn scale_iq4_xs(block: &[u8; 136], i: usize) -> i8 {
    let high = u16::from_le_bytes([block[2], block[3]]) >> (2 * i) & 3;
    (block[4 + i / 2] >> (4 * (i % 2)) & 15 | (high as u8) << 4) as i8 - 32
}

pub(super) fn dequantize_mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    look_up(&FP4, half_power(block[0]), &block[1..], out);
}

/// value = scale * table\[code\]: low nibbles are values 0..16, high ones 16..32.
fn look_up(table: &[i8; 16], scale: f32, codes: &[u8], out: &mut [f32; 32]) {
    for (i, &byte) in codes.iter().enumerate() {
        out[i] = scale * f32::from(table[usize::from(byte & 15)]);
        out[16 + i] = scale * f32::from(table[usize::from(byte >> 4)]);
    }
}

pub(super) fn dequantize_tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let d = f16_at(block, 52);
    let digit = |byte: u8, n: u32| {
        let shifted = byte.wrapping_mul(3u8.pow(n));
        d * (f32::from(((u16::from(shifted) * 3) >> 8) as u8) - 1.0)
    };
    for (i, y) in out.iter_mut().enumerate() {
        *y = match i {
            0..160 => digit(block[i % 32], (i / 32) as u32),
            160..240 => digit(block[32 + (i - 160) % 16], ((i - 160) / 16) as u32),
            _ => digit(block[48 + (i - 240) % 4], ((i - 240) / 4) as u32),
        };
    }
}

pub(super) fn dequantize_tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let mut codes = [0; 256];
    unpack::<2, 32>(&block[..64], 0, &mut codes);
    let d = f16_at(block, 64);
    out.iter_mut().zip(codes).for_each(|(y, code)| *y = d * (f32::from(code) - 1.0));
}

/// The code of IQ4 whose value is nearest to x: as many as there are midpoints below it.
fn nearest_iq4(x: f32) -> u8 {
    const MIDPOINTS: [f32; 15] = {
        let mut midpoints = [0.0; 15];
        let mut i = 0;
        while i < 15 {
            midpoints[i] = (IQ4[i] as f32 + IQ4[i + 1] as f32) / 2.0;
            i += 1;
        }
        midpoints
    };
    MIDPOINTS.iter().map(|&midpoint| u8::from(x > midpoint)).sum()
}

/// The code of FP4 whose value is nearest to x, magnitude first, then the sign.
fn nearest_fp4(x: f32) -> u8 {
    const MIDPOINTS: [f32; 7] = [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0];
    let magnitude: u8 = MIDPOINTS.iter().map(|&midpoint| u8::from(x.abs() > midpoint)).sum();
    magnitude | u8::from(x < 0.0) << 3
}

/// The scale of 32 values with the least square error, each value's by its weight, of some near the one that fits their largest.
fn scale_iq4(values: &[f32], weights: &[f32]) -> f32 {
    let most = farthest(values);
    let mut best = (0.0, 0.0f32);
    for end in (-133..=-119).chain(105..=121).step_by(2) {
        let x_scale = inverse(most / end as f32);
        let (mut xq, mut qq) = (0.0, 0.0);
        for (&x, &w) in values.iter().zip(weights) {
            let q = f32::from(IQ4[usize::from(nearest_iq4(x * x_scale))]);
            xq += w * x * q;
            qq += w * q * q;
        }
        // the error falls by xq² / qq
        if qq > 0.0 && xq * xq / qq > best.1 {
            best = (xq / qq, xq * xq / qq);
        }
    }
    best.0
}

fn put_codes(nearest: impl Fn(f32) -> u8, scale: f32, values: &[f32], codes: &mut [u8]) {
    let inverse = inverse(scale);
    for (i, byte) in codes.iter_mut().enumerate() {
        *byte = nearest(values[i] * inverse) | nearest(values[16 + i] * inverse) << 4;
    }
}

pub(super) fn quantize_iq4_nl(values: &[f32; 32], weights: &[f32; 32], block: &mut [u8; 18]) {
    let d = put_f16(block, 0, scale_iq4(values, weights));
    put_codes(nearest_iq4, d, values, &mut block[2..]);
}

pub(super) fn quantize_iq4_xs(values: &[f32; 256], weights: &[f32; 256], block: &mut [u8; 136]) {
    let scales: Vec<f32> = values.chunks(32).zip(weights.chunks(32)).map(|(v, w)| scale_iq4(v, w)).collect();
    let d = put_f16(block, 0, farthest(&scales) / -32.0);
    let mut high = 0u16;
    for (i, values) in values.chunks(32).enumerate() {
        let s = (scales[i] * inverse(d)).round().clamp(-32.0, 31.0);
        let code = (s as i8 + 32) as u8;
        block[4 + i / 2] |= (code & 15) << (4 * (i % 2));
        high |= u16::from(code >> 4) << (2 * i);
        put_codes(nearest_iq4, d * s, values, &mut block[8 + 16 * i..][..16]);
    }
    block[2..4].copy_from_slice(&high.to_le_bytes());
}

pub(super) fn quantize_mxfp4(values: &[f32; 32], block: &mut [u8; 17]) {
    let most = farthest(values).abs();
    // the exponent of the largest, less that of FP4's largest power
    block[0] = ((most.to_bits() >> 23) as u8).saturating_sub(2);
    put_codes(nearest_fp4, half_power(block[0]), values, &mut block[1..]);
}

/// Codes 0, 1, 2 of -d, 0, d.
fn ternary(values: &[f32; 256], d: f32) -> [u8; 256] {
    let inverse = inverse(d);
    values.map(|x| (x * inverse).round().clamp(-1.0, 1.0) as i8 as u8).map(|code| code.wrapping_add(1))
}

pub(super) fn quantize_tq1_0(values: &[f32; 256], block: &mut [u8; 54]) {
    let d = put_f16(block, 52, farthest(values).abs());
    let codes = ternary(values, d);
    // the first digit is the highest; the number is a fraction of 256, rounded up
    let number = |first: usize, step: usize, digits: usize| {
        let digits = (0..5).map(|n| if n < digits { codes[first + step * n] } else { 0 });
        let number = digits.fold(0u16, |number, digit| 3 * number + u16::from(digit));
        ((number * 256).div_ceil(243)) as u8
    };
    for (i, byte) in block[..52].iter_mut().enumerate() {
        *byte = match i {
            0..32 => number(i, 32, 5),
            32..48 => number(160 + i - 32, 16, 5),
            _ => number(240 + i - 48, 4, 4),
        };
    }
}

pub(super) fn quantize_tq2_0(values: &[f32; 256], block: &mut [u8; 66]) {
    let d = put_f16(block, 64, farthest(values).abs());
    pack::<2, 32>(&ternary(values, d), 0, &mut block[..64]);
}
