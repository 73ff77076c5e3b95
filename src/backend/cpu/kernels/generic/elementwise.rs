//! Norms, rotations and activations: what works value by value on f32 rows.
//!
//! Only a norm has a sum: 16 partial sums over i mod 16, `fma(x, x, partial)` with i ascending (filled up with zeros to a multiple
//! of 16), added up by halving; then `(x * factor) * weight`. A rotation is two products and their difference or sum, each rounded.
//! SwiGLU is `silu(gate) * up`. Each of these is computed for itself, so that no order is to be kept.

use super::super::{Simd, entry_points};
use super::math::Lanes;
use crate::backend::{Activation, RopeStyle};

entry_points! {
    /// `1 / sqrt(mean(x²) + epsilon)` of n values: the factor of their root-mean-square norm.
    pub fn norm_factor(x: *const f32, n: usize, epsilon: f32) -> f32 = norm_factor_generic;
    /// `to = from * factor * weight`, n values; `to` may be `from`.
    pub fn scale(from: *const f32, factor: f32, weight: *const f32, to: *mut f32, n: usize) = scale_generic;
    /// Root-mean-square norm of the first n values of `heads` heads of `dim` values, in place.
    pub fn head_norms(x: *mut f32, weight: *const f32, n: usize, heads: usize, dim: usize, epsilon: f32)
        = head_norms_generic;
    /// Rotates `2 * pairs` values from `from` on of `heads` heads of `dim` values, in place: pair (a, b) becomes
    /// `(a * cos - b * sin, b * cos + a * sin)`.
    pub fn rotate(x: *mut f32, heads: usize, dim: usize, from: usize, cos: *const f32, sin: *const f32, pairs: usize, style: RopeStyle)
        = rotate_generic;
    /// `gate = activation(gate, up)` over `rows` rows of n values, which begin `strides` values apart.
    pub fn activate(activation: Activation, gate: *mut f32, up: *const f32, strides: [usize; 2], rows: usize, n: usize)
        = activate_generic;
}

#[inline(always)]
unsafe fn norm_factor_generic<S: Simd>(x: *const f32, n: usize, epsilon: f32) -> f32 {
    // SAFETY: the caller's promise.
    let mean = unsafe { sum_of_squares::<S>(x, n) } / n as f32;
    1.0 / (mean + epsilon).sqrt()
}

#[inline(always)]
unsafe fn scale_generic<S: Simd>(from: *const f32, factor: f32, weight: *const f32, to: *mut f32, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let (whole, rest) = (n / 16 * 16, n % 16);
        let factor = Lanes::<S>::splat(factor);
        for i in (0..whole).step_by(16) {
            let x = Lanes::<S>::load(from.add(i));
            x.mul(factor).mul(Lanes::load(weight.add(i))).store(to.add(i));
        }
        if rest > 0 {
            let x = Lanes::<S>::load_part(from.add(whole), rest);
            let weight = Lanes::load_part(weight.add(whole), rest);
            x.mul(factor).mul(weight).store_part(to.add(whole), rest);
        }
    }
}

#[inline(always)]
unsafe fn head_norms_generic<S: Simd>(
    x: *mut f32,
    weight: *const f32,
    n: usize,
    heads: usize,
    dim: usize,
    epsilon: f32,
) {
    for head in 0..heads {
        // SAFETY: the caller's promise.
        unsafe {
            let x = x.add(head * dim);
            scale_generic::<S>(x, norm_factor_generic::<S>(x, n, epsilon), weight, x, n);
        }
    }
}

/// Plain loops, which the compiler turns into the instance's vectors: each value is computed for itself.
#[inline(always)]
#[allow(clippy::too_many_arguments, clippy::extra_unused_type_parameters)] // S stands for the features that it is compiled with
unsafe fn rotate_generic<S: Simd>(
    x: *mut f32,
    heads: usize,
    dim: usize,
    from: usize,
    cos: *const f32,
    sin: *const f32,
    pairs: usize,
    style: RopeStyle,
) {
    // SAFETY: the caller's promise.
    let (x, cos, sin) = unsafe {
        (
            std::slice::from_raw_parts_mut(x, heads * dim),
            std::slice::from_raw_parts(cos, pairs),
            std::slice::from_raw_parts(sin, pairs),
        )
    };
    for head in x.chunks_exact_mut(dim) {
        let head = &mut head[from..from + 2 * pairs];
        match style {
            RopeStyle::Halves => {
                let (first, second) = head.split_at_mut(pairs);
                for i in 0..pairs {
                    let (a, b) = (first[i], second[i]);
                    (first[i], second[i]) = (a * cos[i] - b * sin[i], b * cos[i] + a * sin[i]);
                }
            }
            RopeStyle::Interleaved => {
                for i in 0..pairs {
                    let (a, b) = (head[2 * i], head[2 * i + 1]);
                    (head[2 * i], head[2 * i + 1]) = (a * cos[i] - b * sin[i], b * cos[i] + a * sin[i]);
                }
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
unsafe fn activate_generic<S: Simd>(
    activation: Activation,
    gate: *mut f32,
    up: *const f32,
    strides: [usize; 2],
    rows: usize,
    n: usize,
) {
    let (whole, rest) = (n / 16 * 16, n % 16);
    for row in 0..rows {
        // SAFETY: the caller's promise.
        unsafe {
            let (gate, up) = (gate.add(row * strides[0]), up.add(row * strides[1]));
            for i in (0..whole).step_by(16) {
                let (at, up) = (gate.add(i), Lanes::load(up.add(i)));
                activated::<S>(activation, Lanes::load(at), up).store(at);
            }
            if rest > 0 {
                let (at, up) = (gate.add(whole), Lanes::load_part(up.add(whole), rest));
                activated::<S>(activation, Lanes::load_part(at, rest), up).store_part(at, rest);
            }
        }
    }
}

#[inline(always)]
unsafe fn activated<S: Simd>(activation: Activation, gate: Lanes<S>, up: Lanes<S>) -> Lanes<S> {
    // SAFETY: the caller's promise.
    unsafe {
        let (one, zero) = (Lanes::splat(1.0), Lanes::splat(0.0));
        match activation {
            Activation::SwiGlu => silu::<S>(gate).mul(up),
            Activation::Clamped { alpha, limit } => {
                let limit = Lanes::splat(limit);
                let g = gate.min(limit);
                let u = up.min(limit).max(zero.sub(limit));
                let sigmoid = one.div(one.add(zero.sub(g.mul(Lanes::splat(alpha))).exp()));
                g.mul(sigmoid).mul(u.add(one))
            }
        }
    }
}

/// x / (1 + exp(-x))
#[inline(always)]
unsafe fn silu<S: Simd>(x: Lanes<S>) -> Lanes<S> {
    // SAFETY: the caller's promise.
    unsafe { x.div(Lanes::splat(1.0).add(Lanes::splat(0.0).sub(x).exp())) }
}
