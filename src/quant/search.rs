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
    let groups = || values.as_chunks::<GROUP>().0.iter().zip(weights.as_chunks::<GROUP>().0);
    let (mut scales, mut mins, mut counts) = ([0.0; 16], [0.0; 16], [0.0; 16]);
    for (g, (group, weights)) in groups().enumerate() {
        (scales[g], mins[g]) = fit_affine(group, weights, max_code, 0.0);
        counts[g] = weights.iter().sum::<f32>();
    }
    let number = 256 / GROUP;
    let (d, mut scales) = integers(&scales[..number], &counts, max_scale);
    let (dmin, mut mins) = integers(&mins[..number], &counts, max_scale);
    let code = |d: f32, dmin: f32, s: u8, m: u8| {
        let (min, inverse) = (dmin * f32::from(m), inverse(d * f32::from(s)));
        move |x: f32| round_code((x + min) * inverse, max_code)
    };
    // as they are rounded, a neighbour may fit better
    for (g, (group, weights)) in groups().enumerate() {
        let error = |s: u8, m: u8| {
            let (code, scale, min) = (code(d, dmin, s, m), d * f32::from(s), dmin * f32::from(m));
            let errors = group.iter().zip(weights);
            errors.map(|(&x, &w)| w * (scale * f32::from(code(x)) - min - x).powi(2)).sum::<f32>()
        };
        let neighbours = |n: u8| [n.saturating_sub(1), (n + 1).min(max_scale)];
        let mut best = error(scales[g], mins[g]);
        for s in neighbours(scales[g]) {
            let error = error(s, mins[g]);
            if error < best {
                (best, scales[g]) = (error, s);
            }
        }
        for m in neighbours(mins[g]) {
            let error = error(scales[g], m);
            if error < best {
                (best, mins[g]) = (error, m);
            }
        }
    }
    let codes = |d: f32, dmin: f32| {
        let mut codes = [0; 256];
        for (g, (codes, (group, _))) in codes.as_chunks_mut::<GROUP>().0.iter_mut().zip(groups()).enumerate()
        {
            *codes = group.map(code(d, dmin, scales[g], mins[g]));
        }
        codes
    };
    let mut sums = Sums::default();
    for (i, code) in codes(d, dmin).into_iter().enumerate() {
        let (s, m) = (scales[i / GROUP], mins[i / GROUP]);
        sums.add(f32::from(s) * f32::from(code), f32::from(m), values[i], weights[i]);
    }
    let (d, dmin) = match sums.solve() {
        Some((a, b)) if a > 0.0 && b >= 0.0 => (to_f16(a).to_f32(), to_f16(b).to_f32()),
        _ => (d, dmin),
    };
    Affine { d, dmin, scales, mins, codes: codes(d, dmin) }
}

/// Weighted sums of products of `p`, `q` and `x`, for the least square error of `a p - b q - x`.
#[derive(Default)]
struct Sums {
    pp: f32,
    qq: f32,
    pq: f32,
    px: f32,
    qx: f32,
}

impl Sums {
    fn add(&mut self, p: f32, q: f32, x: f32, weight: f32) {
        self.pp += weight * p * p;
        self.qq += weight * q * q;
        self.pq += weight * p * q;
        self.px += weight * p * x;
        self.qx += weight * q * x;
    }

    /// a and b, where they are determined.
    fn solve(&self) -> Option<(f32, f32)> {
        let determinant = self.pp * self.qq - self.pq * self.pq;
        let a = (self.qq * self.px - self.pq * self.qx) / determinant;
        let b = (self.pq * self.px - self.pp * self.qx) / determinant;
        (determinant > 0.0).then_some((a, b))
    }
}

/// Fits groups of 16 values with codes `0..2 * zero` and scales `-max_scale..max_scale`.
pub(super) fn centred_groups(values: &[f32; 256], weights: &[f32; 256], zero: u8, max_scale: u8) -> Centred {
    let groups = || values.as_chunks::<16>().0.iter().zip(weights.as_chunks::<16>().0);
    let (mut fits, mut counts) = ([0.0; 16], [0.0; 16]);
    for (g, (group, weights)) in groups().enumerate() {
        fits[g] = fit_centred(group, weights, zero);
        counts[g] = weights.iter().sum::<f32>();
    }
    let bound = f32::from(max_scale);
    let d = to_f16(fit_centred(&fits, &counts, max_scale)).to_f32();
    let to_integer = inverse(d);
    let code = |scale: f32| {
        let inverse = inverse(scale);
        move |x: f32| round_code(x * inverse + f32::from(zero), 2 * zero - 1)
    };
    let centred = |code: u8| f32::from(code) - f32::from(zero);
    let (mut xq, mut qq) = (0.0, 0.0);
    let mut scales = [0; 16];
    for (best, ((group, weights), fit)) in scales.iter_mut().zip(groups().zip(fits)) {
        let middle = (fit * to_integer).round();
        let mut least = f32::INFINITY;
        // as it is rounded, a neighbour may fit better
        for s in [middle, middle - 1.0, middle + 1.0].map(|s| s.clamp(-bound, bound - 1.0)) {
            let (code, scale) = (code(d * s), d * s);
            let errors = group.iter().zip(weights);
            let error = errors.map(|(&x, &w)| w * (scale * centred(code(x)) - x).powi(2)).sum::<f32>();
            if error < least {
                (least, *best) = (error, s as i8);
            }
        }
        let (code, s) = (code(d * f32::from(*best)), f32::from(*best));
        for (&x, &w) in group.iter().zip(weights) {
            let q = s * centred(code(x));
            xq += w * x * q;
            qq += w * q * q;
        }
    }
    let d = if qq > 0.0 && xq != 0.0 { to_f16(xq / qq).to_f32() } else { d };
    let mut codes = [0; 256];
    for ((codes, s), (group, _)) in codes.as_chunks_mut::<16>().0.iter_mut().zip(scales).zip(groups()) {
        *codes = group.map(code(d * f32::from(s)));
    }
    Centred { d, scales, codes }
}

/// Non-negative factors of groups as integers `0..=max` under a common f16 factor; weights: what a group counts.
fn integers(factors: &[f32], weights: &[f32], max: u8) -> (f32, [u8; 16]) {
    let d = to_f16(fit_scale(factors, weights, 0, max)).to_f32();
    let inverse = inverse(d);
    let mut integers = [0; 16];
    integers.iter_mut().zip(factors).for_each(|(integer, f)| *integer = round_code(f * inverse, max));
    (d, integers)
}

/// How many tenths of a step the search goes to each side of the plain step.
const TENTHS: i32 = 10;

/// (scale, min) that make `scale * code - min` close to the values, with codes `0..=max`; scale >= 0, min >= `least`.
pub(super) fn fit_affine(values: &[f32], weights: &[f32], max: u8, least: f32) -> (f32, f32) {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min).min(-least);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let range = high - low;
    let mut best = (0.0, -low);
    if !range.is_normal() {
        return best;
    }
    let mut best_error = f32::INFINITY;
    let mut attempt = |low: f32, steps: f32| {
        let code = |x: f32| f32::from(round_code((x - low) * steps, max));
        let mut sums = Sums::default();
        for (&x, &w) in values.iter().zip(weights) {
            sums.add(code(x), 1.0, x, w);
        }
        let (scale, min) = match sums.solve() {
            Some((scale, min)) if min >= least => (scale, min),
            _ => ((sums.px + least * sums.pq) / sums.pp, least),
        };
        let errors = values.iter().zip(weights).map(|(&x, &w)| w * (scale * code(x) - min - x).powi(2));
        let error: f32 = errors.sum();
        if scale >= 0.0 && error < best_error {
            (best, best_error) = ((scale, min), error);
        }
        best
    };
    let mut found = (0.0, 0.0);
    for tenths in -TENTHS..=TENTHS {
        found = attempt(low, (f32::from(max) + tenths as f32 / 10.0) / range);
    }
    // codes of what was found may be others
    attempt(-found.1, inverse(found.0))
}

/// The scale, of either sign, that makes `scale * (code - zero)` close to the values, with codes `0..2 * zero`.
pub(super) fn fit_centred(values: &[f32], weights: &[f32], zero: u8) -> f32 {
    fit_scale(values, weights, zero, zero - 1 + zero)
}

/// The scale that makes `scale * (code - zero)` close to the values, with codes `0..=max`: of either sign, where there are codes on
/// both sides of zero.
fn fit_scale(values: &[f32], weights: &[f32], zero: u8, max: u8) -> f32 {
    let extreme = farthest(values);
    if !extreme.is_normal() {
        return 0.0;
    }
    // the code with the largest magnitude
    let end = if zero > 0 { -f32::from(zero) } else { f32::from(max) };
    let zero = f32::from(zero);
    let (mut best, mut best_error) = (0.0, f32::INFINITY);
    for tenths in -TENTHS..=TENTHS {
        let steps = (end + tenths as f32 / 10.0) / extreme;
        let code = |x: f32| f32::from(round_code(x * steps + zero, max)) - zero;
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
