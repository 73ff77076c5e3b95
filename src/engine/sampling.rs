//! From logits to a token.
//!
//! The order of the steps: repetition, presence and frequency penalties; temperature; top-k; top-p; min-p; the draw.
//! (The logits hook of [`Options`](crate::Options) comes before all of them.) Temperature 0 takes the most likely
//! token after the penalties; of equals the one with the lowest id.
//!
//! The draw for token i depends only on (seed, sequence, i), see [`philox`]. Candidates are ordered
//! by falling logit, then by rising id; the draw u takes the first one at which the running sum of the
//! probabilities exceeds u.

use super::philox;
use crate::Sampling;
use crate::backend::cpu::kernels::Isa;
use crate::backend::cpu::kernels::math::exp_each;

/// Nats below the best token (after temperature) within which candidates are ordered: the next bound only where the draw
/// is not decided within the one before. Tokens beyond the last are never drawn: all of them together have less than one
/// part in 100,000.
const BOUNDS: [f32; 3] = [6.0, 12.0, 24.0];

/// Logits that are looked at together: most blocks have none that counts.
const BLOCK: usize = 64;

/// Chooses the tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    seed: u64,
    sequence: u64,
    isa: Isa,
    largest: Vec<f32>,           // logit of each block. Reused, as are those below
    weights: Vec<f32>,           // of all tokens in blocks that count; the best has 1
    candidates: Vec<(f32, u32)>, // (logit, id)
    recent: Vec<u32>,
}

impl Sampler {
    /// A sampler for sequence number `sequence` of a run with this seed.
    pub fn new(sampling: Sampling, seed: u64, sequence: u64) -> Self {
        let isa = Isa::detect().unwrap_or(Isa::Scalar);
        let (largest, weights, candidates, recent) = (vec![], vec![], vec![], vec![]);
        Sampler { sampling, seed, sequence, isa, largest, weights, candidates, recent }
    }

    /// The token at index `index` of what is generated. `history` is what stands before it, prompt included.
    /// The logits are changed by the penalties.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32], index: u64) -> u32 {
        if self.sampling.penalizes() {
            self.penalize(logits, history);
        }
        self.largest.clear();
        let best = best(logits, |largest| self.largest.push(largest));
        if self.sampling.temperature == 0.0 {
            return best;
        }
        let best_logit = logits[best as usize];
        if best_logit == f32::NEG_INFINITY {
            return best; // nothing may be drawn
        }
        let [.., last] = BOUNDS;
        let total = self.weigh(logits, best_logit, last);
        let u = philox::uniform(self.seed, self.sequence, index);
        for bound in BOUNDS {
            self.collect(logits, best_logit - bound * self.sampling.temperature);
            if let Some(id) = self.draw(u, total, bound == last) {
                return id;
            }
        }
        best // all logits are NaN
    }

    fn penalize(&mut self, logits: &mut [f32], history: &[u32]) {
        let Sampling { repeat_penalty, presence_penalty, frequency_penalty, repeat_last_n, .. } =
            self.sampling;
        self.recent.clear();
        self.recent.extend_from_slice(&history[history.len().saturating_sub(repeat_last_n)..]);
        self.recent.sort_unstable();
        for run in self.recent.chunk_by(|a, b| a == b) {
            let Some(logit) = logits.get_mut(run[0] as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / repeat_penalty } else { *logit * repeat_penalty };
            *logit -= presence_penalty + frequency_penalty * run.len() as f32;
        }
    }

    /// Gives each token its weight, e to the power of what its logit is below the best (none in blocks without one in reach),
    /// and returns the sum.
    fn weigh(&mut self, logits: &[f32], best: f32, bound: f32) -> f64 {
        let temperature = self.sampling.temperature;
        let floor = best - bound * temperature;
        self.weights.resize(logits.len(), 0.0);
        let mut sums = [0.0; 8];
        let blocks = logits.chunks(BLOCK).zip(self.weights.chunks_mut(BLOCK)).zip(&self.largest);
        for ((logits, weights), _) in blocks.filter(|(_, largest)| **largest >= floor) {
            for (weight, &l) in weights.iter_mut().zip(logits) {
                *weight = if l >= floor { (l - best) / temperature } else { f32::NEG_INFINITY };
            }
            exp_each(self.isa, weights);
            for chunk in weights.chunks(8) {
                sums.iter_mut().zip(chunk).for_each(|(sum, &weight)| *sum += f64::from(weight));
            }
        }
        sums.iter().sum()
    }

    /// Candidates whose logit is at least `floor`, in order of falling logit; of more than top-k only these.
    fn collect(&mut self, logits: &[f32], floor: f32) {
        self.candidates.clear();
        self.candidates.reserve(logits.len()); // once: memory is committed as far as there are candidates
        for (block, _) in self.largest.iter().enumerate().filter(|(_, largest)| **largest >= floor) {
            let first = block * BLOCK;
            let logits = logits[first..].iter().take(BLOCK).copied();
            self.candidates.extend(logits.zip(first as u32..).filter(|&(l, _)| l >= floor));
        }
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        let top_k = self.sampling.top_k;
        if top_k > 0 && top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(top_k - 1, order);
            self.candidates.truncate(top_k);
        }
        self.candidates.sort_unstable_by(order);
    }

    /// Draws among what top-k, top-p and min-p leave; None if more candidates are needed to decide it.
    fn draw(&self, u: f64, total: f64, are_all: bool) -> Option<u32> {
        let Sampling { top_k, top_p, min_p, .. } = self.sampling;
        let are_all = are_all || top_k > 0 && self.candidates.len() == top_k;
        if top_k > 0 && !are_all {
            return None;
        }
        let weights = || self.candidates.iter().map(|&(_, id)| self.weights[id as usize]);
        let total = if top_k > 0 { weights().map(f64::from).sum() } else { total };
        let mut sum = total;
        let mut kept = self.candidates.len();
        if top_p < 1.0 || min_p > 0.0 {
            let enough = f64::from(top_p) * total;
            (sum, kept) = (0.0, 0);
            for weight in weights() {
                if kept > 0 && (sum >= enough || weight < min_p) {
                    break;
                }
                sum += f64::from(weight);
                kept += 1;
            }
            if kept == self.candidates.len() && sum < enough && !are_all {
                return None;
            }
        }
        let (target, mut running) = (u * sum, 0.0);
        for &(_, id) in &self.candidates[..kept] {
            running += f64::from(self.weights[id as usize]);
            if running > target {
                return Some(id);
            }
        }
        let last = self.candidates[..kept].last().map(|&(_, id)| id);
        last.filter(|_| are_all || kept < self.candidates.len())
    }
}

/// The index of the largest value, the first of equals; NaN is never the largest.
pub fn argmax(logits: &[f32]) -> u32 {
    best(logits, |_| ())
}

/// As [`argmax`]; `note` is told the largest value of each block.
fn best(logits: &[f32], mut note: impl FnMut(f32)) -> u32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (mut best, mut first) = (f32::NEG_INFINITY, 0);
    for (block, logits) in logits.chunks(BLOCK).enumerate() {
        // by lanes, so that the compiler makes vectors of it
        let mut lanes = [f32::NEG_INFINITY; 16];
        let chunks = logits.chunks_exact(16);
        let rest = chunks.remainder();
        for chunk in chunks {
            lanes.iter_mut().zip(chunk).for_each(|(lane, &v)| *lane = larger(*lane, v));
        }
        let largest = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| larger(a, b));
        note(largest);
        if largest > best {
            (best, first) = (largest, block * BLOCK);
        }
    }
    let mut block = logits[first..].iter().copied().take(BLOCK);
    first as u32 + block.position(|v| v == best).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SamplingOverrides;

    fn sampling(overrides: SamplingOverrides) -> Sampling {
        overrides.over(Sampling { temperature: 1.0, top_p: 1.0, ..Sampling::default() })
    }

    /// How often each of the tokens is drawn in 10,000 draws, as a share.
    fn shares(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut sampler = Sampler::new(sampling, 42, 0);
        let mut counts = vec![0.0; logits.len()];
        for i in 0..10_000 {
            counts[sampler.sample(&mut logits.to_vec(), &[], i) as usize] += 1.0 / 10_000.0;
        }
        counts
    }

    fn probabilities(p: &[f64]) -> Vec<f32> {
        p.iter().map(|p| p.ln() as f32).collect()
    }

    #[test]
    fn temperature_zero_takes_the_first_of_the_most_likely() {
        let sampling = sampling(SamplingOverrides { temperature: Some(0.0), ..Default::default() });
        let mut logits: Vec<f32> = (0..100).map(|i| (i % 50) as f32).collect();
        logits[3] = f32::NAN;
        assert_eq!(Sampler::new(sampling, 1, 0).sample(&mut logits, &[], 0), 49);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let got = shares(sampling(Default::default()), &probabilities(&[0.1, 0.6, 0.3]));
        for (share, p) in got.iter().zip([0.1, 0.6, 0.3]) {
            assert!((share - p).abs() < 0.015, "{got:?}");
        }
    }

    #[test]
    fn temperature_sharpens() {
        let s = sampling(SamplingOverrides { temperature: Some(0.5), ..Default::default() });
        let got = shares(s, &probabilities(&[0.25, 0.75]));
        assert!((got[1] - 0.9).abs() < 0.015, "{got:?}"); // 0.75² / (0.75² + 0.25²)
    }

    #[test]
    fn top_k_keeps_the_k_most_likely_and_the_lower_id_of_equals() {
        let s = sampling(SamplingOverrides { top_k: Some(2), ..Default::default() });
        let got = shares(s, &probabilities(&[0.2, 0.2, 0.4, 0.2]));
        assert!(got[0] > 0.0 && got[2] > 0.0);
        assert_eq!((got[1], got[3]), (0.0, 0.0));
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_holds_the_mass() {
        let s = sampling(SamplingOverrides { top_p: Some(0.7), ..Default::default() });
        let got = shares(s, &probabilities(&[0.5, 0.3, 0.15, 0.05]));
        assert!((got[0] - 0.625).abs() < 0.015, "{got:?}");
        assert_eq!((got[2], got[3]), (0.0, 0.0));
    }

    #[test]
    fn min_p_is_a_share_of_the_most_likely() {
        let s = sampling(SamplingOverrides { min_p: Some(0.5), ..Default::default() });
        let got = shares(s, &probabilities(&[0.5, 0.3, 0.2]));
        assert!(got[1] > 0.0 && got[2] == 0.0, "{got:?}");
    }

    #[test]
    fn penalties_look_at_the_last_n_tokens() {
        let mut sampler = Sampler::new(
            Sampling {
                temperature: 0.0,
                repeat_penalty: 2.0,
                presence_penalty: 1.0,
                frequency_penalty: 0.5,
                repeat_last_n: 3,
                ..Sampling::default()
            },
            0,
            0,
        );
        let mut logits = vec![4.0, -4.0, 4.0, 4.0];
        sampler.sample(&mut logits, &[3, 0, 0, 1], 0);
        assert_eq!(logits, [0.0, -9.5, 4.0, 4.0]); // 4/2 - 1 - 2*0.5; -4*2 - 1 - 0.5; unseen; too long ago
    }

    /// The draw as it is defined: all tokens in order, what is not kept cut off, the running sum.
    fn plain_draw(s: &Sampling, logits: &[f32], u: f64) -> u32 {
        let mut all: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let best = all[0].0;
        all.truncate(if s.top_k > 0 { s.top_k } else { usize::MAX });
        let mut all: Vec<(f64, u32)> =
            all.iter().map(|&(l, id)| (f64::from((l - best) / s.temperature).exp(), id)).collect();
        let enough = f64::from(s.top_p) * all.iter().map(|a| a.0).sum::<f64>();
        let mut sum = 0.0;
        let mut kept = 0;
        while kept < all.len() && (kept == 0 || sum < enough && all[kept].0 >= f64::from(s.min_p)) {
            sum += all[kept].0;
            kept += 1;
        }
        all.truncate(kept);
        let mut running = 0.0;
        let found = all.iter().find(|a| {
            running += a.0;
            running > u * sum
        });
        found.unwrap_or(&all[kept - 1]).1
    }

    #[test]
    fn candidates_that_are_looked_at_in_parts_are_drawn_as_if_all_were_ordered() {
        for (case, spread) in [0.1f32, 3.0, 8.0].into_iter().enumerate() {
            for (top_k, top_p, min_p) in [
                (0, 1.0, 0.0),
                (0, 0.95, 0.0),
                (0, 0.5, 0.0),
                (40, 0.9, 0.0),
                (900, 1.0, 0.0),
                (0, 1.0, 0.01),
            ] {
                let s = Sampling { temperature: 0.8, top_k, top_p, min_p, ..Sampling::default() };
                let mut sampler = Sampler::new(s, 7, case as u64);
                for index in 0..200 {
                    let noise = |id: u64| philox::uniform(1000 + index, case as u64, id) as f32;
                    let mut logits: Vec<f32> =
                        (0..1000).map(|id| spread * (noise(2 * id) + noise(2 * id + 1)) * 3.0).collect();
                    let u = philox::uniform(7, case as u64, index);
                    let expected = plain_draw(&s, &logits, u);
                    assert_eq!(sampler.sample(&mut logits, &[], index), expected, "{s:?}, {spread}, {index}");
                }
            }
        }
    }

    #[test]
    fn a_draw_depends_on_seed_sequence_and_index_alone() {
        let logits = vec![0.0; 1000];
        let draw = |seed, sequence, index| {
            Sampler::new(sampling(Default::default()), seed, sequence).sample(&mut logits.clone(), &[], index)
        };
        let mut used = Sampler::new(sampling(Default::default()), 5, 1);
        for i in 0..9 {
            used.sample(&mut logits.clone(), &[1, 2], i);
        }
        assert_eq!(used.sample(&mut logits.clone(), &[], 9), draw(5, 1, 9));
        let all = [draw(5, 1, 9), draw(6, 1, 9), draw(5, 2, 9), draw(5, 1, 8)];
        assert!(all[1..].iter().all(|t| *t != all[0]), "{all:?}");
    }

    proptest::proptest! {
        #[test]
        fn argmax_is_the_first_position_of_the_maximum(values in proptest::collection::vec(-5i8..5, 1..300)) {
            let logits: Vec<f32> = values.iter().map(|&v| f32::from(v)).collect();
            let max = values.iter().max().unwrap();
            let first = values.iter().position(|v| v == max).unwrap();
            proptest::prop_assert_eq!(argmax(&logits) as usize, first);
        }
    }
}
