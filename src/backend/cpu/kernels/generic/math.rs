//! Sixteen virtual lanes, and the functions that pensive does not leave to a platform's libm: exp and log.

use super::super::{Simd, entry_points};
use super::scalar::Scalar;
use crate::backend::cpu::kernels::Isa;

/// Sixteen f32 lanes as 16 / LANES vectors: what sums run over, so that each ISA adds in the same order.
#[derive(Clone, Copy)]
pub struct Lanes<S: Simd>([S::F; 4]);

macro_rules! lanewise {
    ($($(#[$attr:meta])* $name:ident($($arg:ident),*) = $op:path;)*) => {$(
        $(#[$attr])*
        #[inline(always)]
        pub unsafe fn $name(self, $($arg: Self),*) -> Self {
            let mut out = self;
            for i in 0..16 / S::LANES {
                // SAFETY: the caller's promise that the CPU has the ISA.
                out.0[i] = unsafe { $op(self.0[i], $($arg.0[i]),*) };
            }
            out
        }
    )*};
}

/// # Safety
/// The CPU has the ISA of S; pointers are valid for what is read and written.
#[allow(clippy::missing_safety_doc, clippy::should_implement_trait)]
impl<S: Simd> Lanes<S> {
    lanewise! {
        /// self + b
        add(b) = S::f_add;
        /// self - b
        sub(b) = S::f_sub;
        /// self * b
        mul(b) = S::f_mul;
        /// self / b
        div(b) = S::f_div;
        /// The larger; b where one is NaN.
        max(b) = S::f_max;
        /// The smaller; b where one is NaN.
        min(b) = S::f_min;
        /// self * b + c, rounded once.
        fma(b, c) = S::f_fma;
        /// e to the power of self; see [`exp`].
        exp() = exp_vector::<S>;
    }

    /// All lanes v.
    #[inline(always)]
    pub unsafe fn splat(v: f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Lanes([S::f_splat(v); 4]) }
    }

    /// 16 values.
    #[inline(always)]
    pub unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let mut out = Self::splat(0.0);
            for i in 0..16 / S::LANES {
                out.0[i] = S::f_load(p.add(i * S::LANES));
            }
            out
        }
    }

    /// The first `n` < 16 values, then zeros.
    #[inline(always)]
    pub unsafe fn load_part(p: *const f32, n: usize) -> Self {
        let mut padded = [0.0f32; 16];
        // SAFETY: the caller's promise.
        unsafe {
            std::ptr::copy_nonoverlapping(p, padded.as_mut_ptr(), n);
            Self::load(padded.as_ptr())
        }
    }

    /// Writes 16 values.
    #[inline(always)]
    pub unsafe fn store(self, p: *mut f32) {
        for i in 0..16 / S::LANES {
            // SAFETY: the caller's promise.
            unsafe { S::f_store(p.add(i * S::LANES), self.0[i]) };
        }
    }

    /// Writes the first `n` < 16 values.
    #[inline(always)]
    pub unsafe fn store_part(self, p: *mut f32, n: usize) {
        let mut all = [0.0f32; 16];
        // SAFETY: the caller's promise.
        unsafe {
            self.store(all.as_mut_ptr());
            std::ptr::copy_nonoverlapping(all.as_ptr(), p, n);
        }
    }

    /// The sum of the lanes, by halving: lane i + lane i + 8, then + 4, + 2, + 1.
    #[inline(always)]
    pub unsafe fn sum(self) -> f32 {
        let mut a = [0.0f32; 16];
        // SAFETY: 16 values of room.
        unsafe { self.store(a.as_mut_ptr()) };
        sum_tree(a)
    }

    /// The largest lane, of none that is NaN.
    #[inline(always)]
    pub unsafe fn largest(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            let mut most = self.0[0];
            for i in 1..16 / S::LANES {
                most = S::f_max(most, self.0[i]);
            }
            S::f_max_lane(most)
        }
    }
}

/// The sum of 16 partial sums by halving: i and i + 8, i and i + 4, i and i + 2, i and i + 1.
#[inline(always)]
pub fn sum_tree(mut v: [f32; 16]) -> f32 {
    for i in 0..8 {
        v[i] += v[i + 8];
    }
    for i in 0..4 {
        v[i] += v[i + 4];
    }
    (v[0] + v[2]) + (v[1] + v[3])
}

// ln 2 in two parts: the first is rounded to f32, the second is what is missing.
const LN2_HIGH: f32 = std::f32::consts::LN_2;
const LN2_LOW: f32 = (std::f64::consts::LN_2 - LN2_HIGH as f64) as f32;

/// q of e^r = 1 + r + r² q(r) for |r| ≤ ln(2) / 2, lowest power first: minimax, relative error 3.1e-9 in exact arithmetic
/// (fitted by iteratively reweighted least squares).
const EXP: [f32; 5] = [0.499_999_94, 0.166_665_21, 0.041_668_39, 0.008_368_745, 0.001_381_454];

/// e^x: x = n ln 2 + r with |r| ≤ ln(2) / 2, then 2^n (1 + r + r² q(r)). Below -104 it is 0, above 88.73 infinite.
#[inline(always)]
unsafe fn exp_vector<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller's promise that the CPU has the ISA.
    unsafe {
        let x = S::f_max(S::f_min(x, S::f_splat(89.0)), S::f_splat(-104.0));
        let n = S::f_to_i(S::f_mul(x, S::f_splat(std::f32::consts::LOG2_E)));
        let n_float = S::f_from_i(n);
        let r = S::f_fma(n_float, S::f_splat(-LN2_HIGH), x);
        let r = S::f_fma(n_float, S::f_splat(-LN2_LOW), r);
        let mut q = S::f_splat(EXP[4]);
        for k in [3, 2, 1, 0] {
            q = S::f_fma(q, r, S::f_splat(EXP[k]));
        }
        let p = S::f_add(S::f_fma(S::f_mul(r, r), q, r), S::f_splat(1.0));
        // 2^n in two factors: n reaches 128 and -150, beyond what one exponent holds.
        let half = S::i_sar::<1>(n);
        let rest = S::i_sub(n, half);
        S::f_mul(S::f_mul(p, power_of_two::<S>(half)), power_of_two::<S>(rest))
    }
}

/// 2^n for -126 ≤ n ≤ 127.
#[inline(always)]
unsafe fn power_of_two<S: Simd>(n: S::I) -> S::F {
    // SAFETY: the caller's promise that the CPU has the ISA.
    unsafe { S::f_from_bits(S::i_shl::<23>(S::i_add(n, S::i_splat(127)))) }
}

/// e^x to within 1 ulp, the same bits as in every kernel. exp(-∞) = 0; NaN is not carried.
pub fn exp(x: f32) -> f32 {
    // SAFETY: plain Rust. Only one lane is used; the compiler drops the others.
    unsafe { exp_vector::<Scalar>([x; 16])[0] }
}

/// [`exp`] of each value, in place, by the vector unit.
///
/// # Panics
/// If the processor lacks `isa`.
pub fn exp_each(isa: Isa, values: &mut [f32]) {
    assert!(isa.is_available(), "this processor has no {isa}");
    // SAFETY: checked above; the pointer and length are a slice's.
    unsafe { exp_values(isa, values.as_mut_ptr(), values.len()) }
}

entry_points! {
    fn exp_values(x: *mut f32, n: usize) = exp_generic;
}

#[inline(always)]
unsafe fn exp_generic<S: Simd>(x: *mut f32, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let whole = n / 16 * 16;
        for i in (0..whole).step_by(16) {
            Lanes::<S>::load(x.add(i)).exp().store(x.add(i));
        }
        if whole < n {
            Lanes::<S>::load_part(x.add(whole), n - whole).exp().store_part(x.add(whole), n - whole);
        }
    }
}

/// The natural logarithm, rounded from f64: x = 2^e m with m in [√½, √2), and ln m = 2 atanh((m - 1) / (m + 1)) as a
/// series. Only additions, multiplications and divisions, so the same bits everywhere. log(0) = -∞; NaN below 0.
pub fn log(x: f32) -> f32 {
    if x.is_nan() || x < 0.0 {
        return f32::NAN;
    }
    if x == 0.0 {
        return f32::NEG_INFINITY;
    }
    if x.is_infinite() {
        return x;
    }
    let bits = f64::from(x).to_bits(); // normal even where x is not
    let mut exponent = (bits >> 52) as i64 - 1023;
    let mut m = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    let s = (m - 1.0) / (m + 1.0); // |s| < 0.1716, so the term after s^15 / 15 is below 1e-14
    let s2 = s * s;
    let series = [15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0].iter().fold(0.0, |sum, k| sum * s2 + 1.0 / k);
    (2.0 * s * series + exponent as f64 * std::f64::consts::LN_2) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units of the last place of `exact`.
    fn ulps(value: f32, exact: f64) -> f64 {
        let nearest = exact as f32;
        let ulp = f64::from(f32::from_bits(nearest.abs().to_bits() + 1)) - f64::from(nearest.abs());
        (f64::from(value) - exact).abs() / ulp
    }

    #[test]
    fn exp_is_within_one_ulp_over_its_whole_range() {
        let mut worst: f64 = 0.0;
        for i in 0..2_000_000 {
            let x = -104.0 + i as f32 * (192.7 / 2_000_000.0);
            worst = worst.max(ulps(exp(x), f64::from(x).exp()));
        }
        assert!(worst <= 1.0, "{worst} ulp");
    }

    #[test]
    fn exp_of_the_ends_is_exact() {
        assert_eq!(exp(0.0).to_bits(), 1.0f32.to_bits());
        assert_eq!(exp(-0.0).to_bits(), 1.0f32.to_bits());
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(exp(-1e30).to_bits(), 0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(100.0), f32::INFINITY);
    }

    #[test]
    fn exp_has_the_same_bits_on_every_instruction_set_and_alone() {
        let inputs: Vec<f32> = (0..10_007).map(|i| -110.0 + i as f32 * 0.0201).collect();
        let alone: Vec<u32> = inputs.iter().map(|&x| exp(x).to_bits()).collect();
        for isa in Isa::available() {
            let mut values = inputs.clone();
            exp_each(isa, &mut values);
            assert!(values.iter().map(|v| v.to_bits()).eq(alone.iter().copied()), "{isa}");
        }
    }

    #[test]
    fn log_is_within_one_ulp_from_the_smallest_to_the_largest() {
        let mut worst: f64 = 0.0;
        for bits in (1..0x7f80_0000u32).step_by(1009) {
            let x = f32::from_bits(bits);
            worst = worst.max(ulps(log(x), f64::from(x).ln()));
        }
        assert!(worst <= 0.501, "{worst} ulp");
    }

    #[test]
    fn log_of_the_ends_is_what_ieee_says() {
        assert_eq!(log(0.0), f32::NEG_INFINITY);
        assert_eq!(log(1.0).to_bits(), 0);
        assert_eq!(log(f32::INFINITY), f32::INFINITY);
        assert!(log(-1.0).is_nan() && log(f32::NAN).is_nan());
    }
}
