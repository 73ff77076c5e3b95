//! The search for the scales of K-quants: a few steps near the plain one are tried for each group, scale and
//! minimum are fitted to the resulting codes by least squares, and the best is kept. The square of each value's error counts
//! by its weight.

use super::{farthest, inverse, round_code, to_f16};

/// A super-block of a format with minima: value = d * scale * code - dmin * min.
pub(super) struct Affine {
    pub(super) d: f32,
    pub(super) dmin: f32,
    /// One of each group; formats with 8 groups use the first 8.
    pub(super) scales: [u8; 16],
    pub(super) mins: [u8; 16],
    pub(super) codes: [u8; 256],
}

/// A super-block of a format without minima: value = d * scale * (code - zero).
pub(super) struct Centred {
    pub(super) d: f32,
    pub(super) scales: [i8; 16],
    pub(super) codes: [u8; 256],
}

/// Fits groups of `GROUP` values with codes `0..=max_code`, scales and minima `0..=max_scale`.
pub(super) fn affine_groups<const GROUP: usize>(
    values: &[f32; 256],
    weights: &[f32; 256],
    max_code: u8,
    max_scale: u8,
) -> Affine {
    let (groups, weights) = (values.as_chunks::<GROUP>().0, weights.as_chunks::<GROUP>().0);
    let (mut scales, mut mins) = ([0.0; 16], [0.0; 16]);
    for (g, (group, weights)) in groups.iter().zip(weights).enumerate() {
        (scales[g], mins[g]) = fit_affine(group, weights, max_code);
    }
    let (d, scales) = integers(&scales, max_scale);
    let (dmin, mins) = integers(&mins, max_scale);
    let mut codes = [0; 256];
    for (g, (codes, group)) in codes.as_chunks_mut::<GROUP>().0.iter_mut().zip(groups).enumerate() {
        let inverse = inverse(d * f32::from(scales[g]));
        let min = dmin * f32::from(mins[g]);
        *codes = group.map(|x| round_code((x + min) * inverse, max_code));
    }
    Affine { d, dmin, scales, mins, codes }
}

/// Fits groups of 16 values with codes `0..2 * zero` and scales `-max_scale..max_scale`.
pub(super) fn centred_groups(values: &[f32; 256], weights: &[f32; 256], zero: u8, max_scale: u8) -> Centred {
    let (groups, weights) = (values.as_chunks::<16>().0, weights.as_chunks::<16>().0);
    let mut fits = [0.0; 16];
    for (fit, (group, weights)) in fits.iter_mut().zip(groups.iter().zip(weights)) {
        *fit = fit_centred(group, weights, zero);
    }
    let bound = f32::from(max_scale);
    let d = to_f16(-farthest(&fits) / bound).to_f32();
    let to_integer = inverse(d);
    let scales = fits.map(|s| (s * to_integer).round().clamp(-bound, bound - 1.0) as i8);
    let mut codes = [0; 256];
    for (g, (codes, group)) in codes.as_chunks_mut::<16>().0.iter_mut().zip(groups).enumerate() {
        let inverse = inverse(d * f32::from(scales[g]));
        *codes = group.map(|x| round_code(x * inverse + f32::from(zero), 2 * zero - 1));
    }
    Centred { d, scales, codes }
}

/// Non-negative factors as integers `0..=max` under a common f16 factor.
fn integers(factors: &[f32; 16], max: u8) -> (f32, [u8; 16]) {
    let d = to_f16(factors.iter().copied().fold(0.0, f32::max) / f32::from(max)).to_f32();
    let inverse = inverse(d);
    (d, factors.map(|f| round_code(f * inverse, max)))
}

/// How many tenths of a step the search goes to each side of the plain step.
const TENTHS: i32 = 10;

/// (scale, min), both >= 0, that make `scale * code - min` close to the values, with codes `0..=max`.
fn fit_affine(values: &[f32], weights: &[f32], max: u8) -> (f32, f32) {
    let low = values.iter().copied().fold(0.0, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let range = high - low;
    let mut best = (0.0, -low);
    if !range.is_normal() {
        return best;
    }
    let mut best_error = f32::INFINITY;
    for tenths in -TENTHS..=TENTHS {
        let steps = (f32::from(max) + tenths as f32 / 10.0) / range;
        let code = |x: f32| f32::from(round_code((x - low) * steps, max));
        let (mut n, mut q1, mut q2, mut x1, mut qx) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (&x, &w) in values.iter().zip(weights) {
            let q = code(x);
            n += w;
            q1 += w * q;
            q2 += w * q * q;
            x1 += w * x;
            qx += w * q * x;
        }
        let determinant = n * q2 - q1 * q1;
        let mut scale = (n * qx - x1 * q1) / determinant;
        let mut min = (q1 * qx - q2 * x1) / determinant;
        if determinant <= 0.0 || min < 0.0 {
            (scale, min) = (qx / q2, 0.0);
        }
        let errors = values.iter().zip(weights).map(|(&x, &w)| w * (scale * code(x) - min - x).powi(2));
        let error: f32 = errors.sum();
        if scale >= 0.0 && error < best_error {
            (best, best_error) = ((scale, min), error);
        }
    }
    best
}

/// The scale, of either sign, that makes `scale * (code - zero)` close to the values, with codes `0..2 * zero`.
pub(super) fn fit_centred(values: &[f32], weights: &[f32], zero: u8) -> f32 {
    let extreme = farthest(values);
    if !extreme.is_normal() {
        return 0.0;
    }
    let (mut best, mut best_error) = (0.0, f32::INFINITY);
    for tenths in -TENTHS..=TENTHS {
        let steps = -(f32::from(zero) + tenths as f32 / 10.0) / extreme;
        let code =
            |x: f32| f32::from(round_code(x * steps + f32::from(zero), 2 * zero - 1)) - f32::from(zero);
        let (mut q2, mut qx) = (0.0, 0.0);
        for (&x, &w) in values.iter().zip(weights) {
            q2 += w * code(x) * code(x);
            qx += w * code(x) * x;
        }
        let scale = qx / q2;
        let errors = values.iter().zip(weights).map(|(&x, &w)| w * (scale * code(x) - x).powi(2));
        let error: f32 = errors.sum();
        if error < best_error {
            (best, best_error) = (scale, error);
        }
    }
    best
}
