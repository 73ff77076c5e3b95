//! Which way of fetching weights suits this processor: both are tried in turn by the first steps of one row.
//!
//! Processors differ by a half in either direction (`kernels/generic/few_tokens.rs`), and what they do in a virtual machine
//! no table of models says. The results are the same to the bit.

use std::time::Duration;

use super::kernels::Fetch;

/// Of so many pairs of steps the faster ways are counted; an odd number.
const PAIRS: usize = 9;

/// The two ways, as they are tried.
const WAYS: [Fetch; 2] = [Fetch::Asked, Fetch::Unasked];

/// The trial, and later its outcome.
#[derive(Debug, Default)]
pub struct Trial {
    /// Pairs that each way won.
    won: [usize; 2],
    /// What the products of the pair's steps took.
    took: [Duration; 2],
    /// Which step of a pair this is, if it is one.
    trying: Option<usize>,
    /// Which the next one will be.
    next: usize,
}

impl Trial {
    /// Begins a step: how it fetches weights. `is_like_most`: it can be compared with others.
    pub fn begin(&mut self, is_like_most: bool) -> Fetch {
        if self.trying == Some(1) {
            self.won[usize::from(self.took[1] < self.took[0])] += 1;
        }
        let best = usize::from(self.won[1] > self.won[0]);
        self.trying = (is_like_most && self.won[best] <= PAIRS / 2).then_some(self.next);
        let Some(step) = self.trying else { return WAYS[best] };
        self.took[step] = Duration::ZERO;
        self.next = 1 - step;
        WAYS[step]
    }

    /// Whether the times of this step's products are wanted.
    pub fn is_on(&self) -> bool {
        self.trying.is_some()
    }

    /// A product of this step took so long.
    pub fn took(&mut self, time: Duration) {
        if let Some(step) = self.trying {
            self.took[step] += time;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The way that a step takes, whose products take `micros(way)`.
    fn step(trial: &mut Trial, is_like_most: bool, micros: impl Fn(Fetch) -> u64) -> Fetch {
        let fetch = trial.begin(is_like_most);
        if trial.is_on() {
            (0..2).for_each(|_| trial.took(Duration::from_micros(micros(fetch) / 2)));
        }
        fetch
    }

    #[test]
    fn the_way_that_is_mostly_faster_stays_whatever_disturbs_some_steps() {
        for better in WAYS {
            let mut trial = Trial::default();
            let tried = (0..2 * PAIRS).take_while(|i| {
                let disturbed = if i % 6 == 0 { 50 } else { 0 };
                step(&mut trial, true, |way| disturbed + if way == better { 100 } else { 120 });
                trial.is_on()
            });
            assert!(tried.count() < 2 * PAIRS, "no more than its pairs");
            assert_eq!((0..9).filter(|_| step(&mut trial, true, |_| 0) == better).count(), 9);
        }
    }

    #[test]
    fn steps_of_other_kinds_are_not_compared_and_take_the_way_that_leads() {
        let mut trial = Trial::default();
        assert_eq!(step(&mut trial, false, |_| 1), Fetch::Asked, "at first");
        for _ in 0..2 {
            step(&mut trial, true, |way| if way == Fetch::Asked { 100 } else { 50 });
        }
        assert_eq!(step(&mut trial, false, |_| 1), Fetch::Unasked);
        assert!(!trial.is_on());
    }
}
