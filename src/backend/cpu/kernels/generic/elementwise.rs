//! Norms and activations: what works value by value on f32 rows.

use super::super::{Simd, entry_points};
use super::math::Lanes;

entry_points! {
    /// Root-mean-square norm of `rows` rows of `width` values: `to = from / sqrt(mean(from²) + epsilon) * weight`.
    /// `to` may be `from`.
    pub fn rms_norm(from: *const f32, weight: *const f32, to: *mut f32, rows: usize, width: usize, epsilon: f32)
        = rms_norm_generic;
    /// `to = gate / (1 + exp(-gate)) * up` over n values.
    pub fn swiglu(gate: *const f32, up: *const f32, to: *mut f32, n: usize) = swiglu_generic;
}

#[inline(always)]
unsafe fn rms_norm_generic<S: Simd>(
    from: *const f32,
    weight: *const f32,
    to: *mut f32,
    rows: usize,
    width: usize,
    epsilon: f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let (whole, rest) = (width / 16 * 16, width % 16);
        for row in 0..rows {
            let (from, to) = (from.add(row * width), to.add(row * width));
            let mean = sum_of_squares::<S>(from, width) / width as f32;
            let scale = Lanes::<S>::splat(1.0 / (mean + epsilon).sqrt());
            for i in (0..whole).step_by(16) {
                let x = Lanes::<S>::load(from.add(i));
                x.mul(scale).mul(Lanes::load(weight.add(i))).store(to.add(i));
            }
            if rest > 0 {
                let x = Lanes::<S>::load_part(from.add(whole), rest);
                let weight = Lanes::load_part(weight.add(whole), rest);
                x.mul(scale).mul(weight).store_part(to.add(whole), rest);
            }
        }
    }
}

/// 16 partial sums over i mod 16, added up by halving.
#[inline(always)]
unsafe fn sum_of_squares<S: Simd>(x: *const f32, n: usize) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let whole = n / 16 * 16;
        let mut sum = Lanes::<S>::splat(0.0);
        for i in (0..whole).step_by(16) {
            let v = Lanes::<S>::load(x.add(i));
            sum = v.fma(v, sum);
        }
        if whole < n {
            let v = Lanes::<S>::load_part(x.add(whole), n - whole);
            sum = v.fma(v, sum);
        }
        sum.sum()
    }
}

#[inline(always)]
unsafe fn swiglu_generic<S: Simd>(gate: *const f32, up: *const f32, to: *mut f32, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let (whole, rest) = (n / 16 * 16, n % 16);
        for i in (0..whole).step_by(16) {
            silu::<S>(Lanes::load(gate.add(i))).mul(Lanes::load(up.add(i))).store(to.add(i));
        }
        if rest > 0 {
            let gate = Lanes::load_part(gate.add(whole), rest);
            let up = Lanes::load_part(up.add(whole), rest);
            silu::<S>(gate).mul(up).store_part(to.add(whole), rest);
        }
    }
}

/// x / (1 + exp(-x))
#[inline(always)]
unsafe fn silu<S: Simd>(x: Lanes<S>) -> Lanes<S> {
    // SAFETY: the caller's promise.
    unsafe { x.div(Lanes::splat(1.0).add(Lanes::splat(0.0).sub(x).exp())) }
}
