//! Frequencies of rotary embeddings and how they are stretched for long contexts.
//!
//! All in f64 with the `libm` crate, whose results are the same on every platform.

use crate::backend::{Rope, RopeStyle};

/// How a model stretches its rotary embedding beyond the context it was trained on first.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low` are low frequencies.
        low: f64,
        /// Wavelengths below `original_context / high` are high frequencies.
        high: f64,
        /// Context of the first training, tokens.
        original_context: f64,
    },
    /// YaRN (Peng et al. 2023, arXiv:2309.00071).
    Yarn {
        /// Divisor of low frequencies.
        factor: f64,
        /// Rotations within the original context above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which a frequency is divided.
        beta_slow: f64,
        /// Context of the first training, tokens.
        original_context: f64,
        /// Factor on sin and cos; none: 0.1 ln(factor) + 1.
        attention_factor: Option<f64>,
        /// Whether the ramp's ends are rounded to whole dimensions.
        truncate: bool,
    },
    /// Each frequency divided by its own number (GGUF's `rope_freqs.weight`).
    Factors(Vec<f64>),
    /// LongRoPE (Ding et al. 2024, arXiv:2402.13753): each frequency divided by its own number, other ones where
    /// sequences may be longer than the context of the first training.
    Long {
        /// Divisors up to `original_context`.
        short: Vec<f64>,
        /// Divisors beyond.
        long: Vec<f64>,
        /// Context of the first training, tokens.
        original_context: usize,
        /// Factor on sin and cos.
        attention_factor: f64,
    },
}

/// The rotary embedding of `dims` dimensions a head with this base and scaling, for sequences of up to `context` tokens.
pub(super) fn rope(base: f64, dims: usize, scaling: &Scaling, style: RopeStyle, context: usize) -> Rope {
    let mut inverse_frequencies: Vec<f64> =
        (0..dims / 2).map(|i| libm::pow(base, -((2 * i) as f64) / dims as f64)).collect();
    let mut magnitude = 1.0;
    match scaling {
        Scaling::None => {}
        Scaling::Linear { factor } => inverse_frequencies.iter_mut().for_each(|f| *f /= factor),
        Scaling::Factors(factors) => {
            inverse_frequencies.iter_mut().zip(factors).for_each(|(f, factor)| *f /= factor);
        }
        Scaling::Long { short, long, original_context, attention_factor } => {
            let factors = if context > *original_context { long } else { short };
            inverse_frequencies.iter_mut().zip(factors).for_each(|(f, factor)| *f /= factor);
            magnitude = *attention_factor;
        }
        &Scaling::Llama3 { factor, low, high, original_context } => {
            for f in &mut inverse_frequencies {
                let rotations = original_context * *f / std::f64::consts::TAU;
                // 0 where the frequency is low, 1 where it is high
                let keep = ((rotations - low) / (high - low)).clamp(0.0, 1.0);
                *f = (1.0 - keep) * *f / factor + keep * *f;
            }
        }
        &Scaling::Yarn { factor, beta_fast, beta_slow, original_context, attention_factor, truncate } => {
            // the (fractional) pair that turns so many times within the original context
            let pair = |rotations: f64| {
                dims as f64 * libm::log(original_context / (rotations * std::f64::consts::TAU))
                    / (2.0 * libm::log(base))
            };
            let (mut from, mut to) = (pair(beta_fast), pair(beta_slow));
            if truncate {
                (from, to) = (from.floor(), to.ceil());
            }
            (from, to) = (from.max(0.0), to.min(dims as f64 - 1.0));
            if from == to {
                to += 0.001; // as the reference does: no division by zero
            }
            for (i, f) in inverse_frequencies.iter_mut().enumerate() {
                let divide = ((i as f64 - from) / (to - from)).clamp(0.0, 1.0);
                *f = divide * *f / factor + (1.0 - divide) * *f;
            }
            magnitude = attention_factor
                .unwrap_or_else(|| if factor <= 1.0 { 1.0 } else { 0.1 * libm::log(factor) + 1.0 });
        }
    }
    Rope { inverse_frequencies, magnitude, style }
}

/// Positions over which [`mean_rotation`] is taken: a long thought.
const MEAN_POSITIONS: f64 = 4096.0;

/// The mean of a head's rotations over positions 0 to 4,096 (as an integral): what turns slowly stays, what turns fast
/// goes to zero.
pub(super) fn mean_rotation(rope: &Rope, head: &mut [f32]) {
    let pairs = rope.inverse_frequencies.len();
    for (i, frequency) in rope.inverse_frequencies.iter().enumerate() {
        let angle = frequency * MEAN_POSITIONS;
        let (sin, cos) = libm::sincos(angle);
        let (mean_cos, mean_sin) = (rope.magnitude * sin / angle, rope.magnitude * (1.0 - cos) / angle);
        let (first, second) = match rope.style {
            RopeStyle::Halves => (i, i + pairs),
            RopeStyle::Interleaved => (2 * i, 2 * i + 1),
        };
        let (a, b) = (f64::from(head[first]), f64::from(head[second]));
        head[first] = (a * mean_cos - b * mean_sin) as f32;
        head[second] = (b * mean_cos + a * mean_sin) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_rotation_keeps_what_turns_slowly() {
        for style in [RopeStyle::Halves, RopeStyle::Interleaved] {
            let slow = Rope { inverse_frequencies: vec![1e-9, 1.0], magnitude: 1.5, style };
            let mut head = [1.0f32, 2.0, 3.0, 4.0, 5.0];
            mean_rotation(&slow, &mut head);
            let (kept, gone) = match style {
                RopeStyle::Halves => ([(0, 1.5), (2, 4.5)], [1, 3]),
                RopeStyle::Interleaved => ([(0, 1.5), (1, 3.0)], [2, 3]),
            };
            assert!(kept.iter().all(|&(i, value)| (head[i] - value).abs() < 1e-4), "{head:?}");
            assert!(gone.iter().all(|&i: &usize| head[i].abs() < 0.01), "{head:?}");
            assert_eq!(head[4], 5.0, "what is not rotated stays");
        }
    }

    #[test]
    fn the_mean_rotation_is_the_mean_of_the_rotations() {
        let rope = rope(1e6, 16, &Scaling::None, RopeStyle::Halves, 4096);
        let head: Vec<f32> = (0..16).map(|i| i as f32 - 7.0).collect();
        let mut mean = head.clone();
        mean_rotation(&rope, &mut mean);
        for (i, f) in rope.inverse_frequencies.iter().enumerate() {
            let turned = |p: usize| {
                let (sin, cos) = libm::sincos(p as f64 * f);
                f64::from(head[i]) * cos - f64::from(head[i + 8]) * sin
            };
            let sum: f64 = (0..4096).map(turned).sum();
            assert!((f64::from(mean[i]) - sum / 4096.0).abs() < 0.01, "pair {i}");
        }
    }

    #[test]
    fn plain_frequencies_fall_from_one_towards_one_over_base() {
        let rope = rope(10_000.0, 8, &Scaling::None, RopeStyle::Halves, 4096);
        let expected = [1.0, 0.1, 0.01, 0.001];
        for (f, e) in rope.inverse_frequencies.iter().zip(expected) {
            assert!((f - e).abs() < 1e-15, "{f} {e}");
        }
        assert_eq!(rope.magnitude, 1.0);
    }

    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_context: 8192.0 };
        let plain = rope(500_000.0, 128, &Scaling::None, RopeStyle::Halves, 4096).inverse_frequencies;
        let scaled = rope(500_000.0, 128, &scaling, RopeStyle::Halves, 4096).inverse_frequencies;
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[63] / scaled[63] - 8.0).abs() < 1e-12);
    }

    #[test]
    fn yarn_keeps_the_first_pair_divides_the_last_and_scales_the_magnitude() {
        let scaling = Scaling::Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_context: 32768.0,
            attention_factor: None,
            truncate: true,
        };
        let plain = rope(1e6, 128, &Scaling::None, RopeStyle::Halves, 4096).inverse_frequencies;
        let yarn = rope(1e6, 128, &scaling, RopeStyle::Halves, 4096);
        assert_eq!(plain[0], yarn.inverse_frequencies[0]);
        assert!((plain[63] / yarn.inverse_frequencies[63] - 4.0).abs() < 1e-12);
        assert!((yarn.magnitude - 1.138_629_436_111_989).abs() < 1e-12);
    }
}
