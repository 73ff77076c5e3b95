//! From a router's scores to experts and their weights: on the CPU, for every backend.

use super::kernels::math::exp;
use crate::backend::{Gate, Routing};

/// Chooses experts; memory is reused.
#[derive(Default)]
pub struct Router {
    /// What weights are made of, by expert.
    gates: Vec<f32>,
    /// What they are chosen by.
    choice: Vec<f32>,
    /// The value of each group.
    groups: Vec<f32>,
    /// Experts and weights.
    chosen: Vec<(usize, f32)>,
}

impl Router {
    /// With room for so many experts, of which a row goes to `used`.
    pub fn new(experts: usize, used: usize) -> Self {
        let [gates, choice, groups] = [(); 3].map(|()| Vec::with_capacity(experts));
        Router { gates, choice, groups, chosen: Vec::with_capacity(used) }
    }

    /// The experts of a row and their weights, in ascending order of experts. Of equals the first is chosen.
    pub fn route(
        &mut self,
        scores: &[f32],
        correction: Option<&[f32]>,
        routing: &Routing,
    ) -> &[(usize, f32)] {
        let Router { gates, choice, groups, chosen } = self;
        gates.clear();
        gates.extend_from_slice(scores);
        match routing.gate {
            Gate::Softmax => softmax(gates, |gate| gate),
            Gate::Sigmoid => gates.iter_mut().for_each(|g| *g = 1.0 / (1.0 + exp(-*g))),
            Gate::SoftmaxOfChosen => {}
        }
        choice.clear();
        choice.extend_from_slice(gates);
        if let Some(correction) = correction {
            choice.iter_mut().zip(correction).for_each(|(choice, c)| *choice += c);
        }
        // -inf is only what is out of the question: NaN must not be chosen twice
        choice.iter_mut().for_each(|choice| *choice = choice.max(f32::MIN));
        mask_groups(choice, routing.groups, groups);
        chosen.clear();
        for _ in 0..routing.used {
            let best = largest(choice);
            choice[best] = f32::NEG_INFINITY;
            chosen.push((best, gates[best]));
        }
        chosen.sort_unstable_by_key(|&(expert, _)| expert);
        if routing.gate == Gate::SoftmaxOfChosen {
            softmax(chosen, |(_, weight)| weight);
        }
        let sum: f32 = chosen.iter().map(|&(_, weight)| weight).sum();
        // as the reference does: no division by zero
        let factor = if routing.normalize { routing.scale / (sum + 1e-20) } else { routing.scale };
        chosen.iter_mut().for_each(|(_, weight)| *weight *= factor);
        chosen
    }
}

/// Leaves only the groups whose two best have the largest sum. `values` is memory for them.
fn mask_groups(choice: &mut [f32], (groups, used): (usize, usize), values: &mut Vec<f32>) {
    if used >= groups {
        return;
    }
    let len = choice.len() / groups;
    let value = |group: &[f32]| {
        let best = largest(group);
        let second = group.iter().enumerate().filter(|&(i, _)| i != best).map(|(_, &v)| v);
        group[best] + second.fold(f32::NEG_INFINITY, f32::max).max(f32::MIN)
    };
    let beats = |a: f32, i: usize, b: f32, j: usize| a > b || a == b && i < j;
    // a group stays if fewer than `used` others beat it
    values.clear();
    values.extend(choice.chunks_exact(len).map(value));
    for (i, group) in choice.chunks_exact_mut(len).enumerate() {
        let better = values.iter().enumerate().filter(|&(j, &v)| beats(v, j, values[i], i)).count();
        if better >= used {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

/// The index of the largest value, the first of equals.
fn largest(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, &value) in values.iter().enumerate() {
        if value > values[best] {
            best = i;
        }
    }
    best
}

/// The softmax of what `value` gives of each item, in place.
fn softmax<T>(items: &mut [T], value: impl Fn(&mut T) -> &mut f32) {
    let most = items.iter_mut().fold(f32::NEG_INFINITY, |most, item| most.max(*value(item)));
    let mut sum = 0.0;
    for item in items.iter_mut() {
        let value = value(item);
        *value = exp(*value - most);
        sum += *value;
    }
    items.iter_mut().for_each(|item| *value(item) /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(scores: &[f32], correction: Option<&[f32]>, routing: Routing) -> Vec<(usize, f32)> {
        Router::default().route(scores, correction, &routing).to_vec()
    }

    const ALL: Routing =
        Routing { used: 2, gate: Gate::Softmax, groups: (1, 1), normalize: false, scale: 1.0 };

    fn close(got: &[(usize, f32)], expected: &[(usize, f32)]) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!(got.0 == expected.0 && (got.1 - expected.1).abs() < 1e-6, "{got:?}, not {expected:?}");
        }
    }

    #[test]
    fn the_softmax_of_all_scores_gives_the_weights_of_the_best() {
        let scores = [1f32, 3.0, 2.0].map(f32::ln);
        close(&route(&scores, None, ALL), &[(1, 0.5), (2, 1.0 / 3.0)]);
        let normalized = Routing { normalize: true, scale: 10.0, ..ALL };
        close(&route(&scores, None, normalized), &[(1, 6.0), (2, 4.0)]);
    }

    #[test]
    fn a_row_goes_to_different_experts_even_if_its_scores_are_no_numbers() {
        for gate in [Gate::Softmax, Gate::Sigmoid, Gate::SoftmaxOfChosen] {
            for scores in [[f32::NAN; 4], [f32::NEG_INFINITY; 4], [1.0, f32::NAN, f32::INFINITY, f32::NAN]] {
                let chosen = route(&scores, None, Routing { used: 4, gate, ..ALL });
                assert_eq!(chosen.iter().map(|&(expert, _)| expert).collect::<Vec<_>>(), [0, 1, 2, 3]);
            }
        }
    }

    #[test]
    fn the_softmax_of_the_chosen_leaves_the_others_out() {
        let scores = [1f32, 3.0, 2.0].map(f32::ln);
        close(&route(&scores, None, Routing { gate: Gate::SoftmaxOfChosen, ..ALL }), &[(1, 0.6), (2, 0.4)]);
    }

    #[test]
    fn a_correction_chooses_and_does_not_weigh() {
        let sigmoid = Routing { gate: Gate::Sigmoid, used: 1, ..ALL };
        close(&route(&[0.0, 1.0], Some(&[0.9, 0.0]), sigmoid), &[(0, 0.5)]);
    }

    #[test]
    fn groups_are_chosen_by_their_two_best() {
        // the single best expert is in the first group, the best pair in the second
        let scores = [3.0, -9.0, 1.0, 1.0, 0.0, 0.0];
        let routing = Routing { gate: Gate::Sigmoid, groups: (3, 1), ..ALL };
        let got = route(&scores, None, routing);
        assert_eq!(got.iter().map(|c| c.0).collect::<Vec<_>>(), [2, 3]);
        let two = route(&scores, None, Routing { groups: (3, 2), ..routing });
        assert_eq!(
            two.iter().map(|c| c.0).collect::<Vec<_>>(),
            [2, 3],
            "the second group is that of two zeros"
        );
    }

    #[test]
    fn of_equal_scores_the_first_are_chosen() {
        let got = route(&[0.5; 6], None, Routing { used: 3, ..ALL });
        assert_eq!(got.iter().map(|c| c.0).collect::<Vec<_>>(), [0, 1, 2]);
    }
}
