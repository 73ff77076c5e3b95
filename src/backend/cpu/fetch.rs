//! Which way of fetching weights suits this processor: all are tried in turn by the first steps of one row, and by the first
//! of several.
//!
//! Processors differ by a half in either direction (`kernels/generic/few_tokens.rs`), and what they do in a virtual machine
//! no table of models says. The results are the same to the bit.

use std::time::Duration;

use super::kernels::Fetch;

/// Of at most so many rounds, a step each way, the faster ways are counted; an odd number.
const ROUNDS: usize = 9;

/// After so many rounds in which it took over half as long again as the fastest, a way is tried no more. (One may have been
/// disturbed.)
const SLOW_ROUNDS: usize = 2;

/// The ways of a step of one row.
const OF_ONE: &[Fetch] = &[Fetch::ToSecond, Fetch::Twice, Fetch::ToFirst, Fetch::Unasked];

/// The ways of a step of several rows, whose kernels do not keep up with memory.
const OF_SEVERAL: &[Fetch] = &[Fetch::ToSecond, Fetch::Twice, Fetch::ToFirst];

/// Most rows of a step that is tried: more are rare, or a prompt.
const SEVERAL: usize = 8;

/// The trials, and later their outcomes.
#[derive(Debug)]
pub struct Trials {
    of_one: Trial,
    of_several: Trial,
    /// Whether the present step is of one row.
    is_one: bool,
}

#[derive(Debug)]
struct Trial {
    ways: &'static [Fetch],
    /// Rounds that each way won.
    won: [usize; OF_ONE.len()],
    /// Rounds in which it was slow.
    slow: [usize; OF_ONE.len()],
    /// What the products of the round's steps took.
    took: [Duration; OF_ONE.len()],
    /// Rows of the round's steps.
    rows: usize,
    /// Which step of a round this is, if it is one.
    trying: Option<usize>,
    /// Which the next one will be.
    next: usize,
}

impl Default for Trials {
    fn default() -> Self {
        Trials { of_one: Trial::new(OF_ONE), of_several: Trial::new(OF_SEVERAL), is_one: true }
    }
}

impl Trials {
    /// Begins a step: how it fetches weights. `is_comparable`: with others of as many rows.
    pub fn begin(&mut self, rows: usize, is_comparable: bool) -> Fetch {
        self.is_one = rows == 1;
        self.present().begin(rows, is_comparable && rows <= SEVERAL)
    }

    /// Whether the times of this step's products are wanted.
    pub fn is_on(&self) -> bool {
        let present = if self.is_one { &self.of_one } else { &self.of_several };
        present.trying.is_some()
    }

    /// A product of this step took so long.
    pub fn took(&mut self, time: Duration) {
        let trial = self.present();
        if let Some(step) = trial.trying {
            trial.took[step] += time;
        }
    }

    fn present(&mut self) -> &mut Trial {
        if self.is_one { &mut self.of_one } else { &mut self.of_several }
    }
}

impl Trial {
    fn new(ways: &'static [Fetch]) -> Self {
        Trial {
            ways,
            won: [0; OF_ONE.len()],
            slow: [0; OF_ONE.len()],
            took: [Duration::ZERO; OF_ONE.len()],
            rows: 0,
            trying: None,
            next: 0,
        }
    }

    fn begin(&mut self, rows: usize, is_comparable: bool) -> Fetch {
        if self.trying.is_some_and(|step| self.after(step) <= step) {
            self.end_round();
        }
        let ways = self.ways.len();
        let best = (0..ways).rev().max_by_key(|&way| self.won[way]).unwrap_or(0);
        let is_open = self.won[best] <= ROUNDS / 2 && self.won.iter().sum::<usize>() < ROUNDS;
        if is_comparable && is_open && rows != self.rows {
            (self.rows, self.next) = (rows, self.after(ways));
        }
        self.trying = (is_comparable && is_open).then_some(self.next);
        let Some(step) = self.trying else { return self.ways[best] };
        self.took[step] = Duration::ZERO;
        self.next = self.after(step);
        self.ways[step]
    }

    /// The way that is tried after this one; the first again at the end of a round.
    fn after(&self, way: usize) -> usize {
        let ways = self.ways.len();
        (way + 1..ways).chain(0..ways).find(|&way| self.is_tried(way)).unwrap_or(0)
    }

    fn is_tried(&self, way: usize) -> bool {
        self.slow[way] < SLOW_ROUNDS
    }

    /// Counts who was fastest, and who slow.
    fn end_round(&mut self) {
        let tried = (0..self.ways.len()).filter(|&way| self.is_tried(way));
        let Some(fastest) = tried.min_by_key(|&way| self.took[way]) else { return };
        let slow = self.took[fastest] * 3 / 2;
        self.won[fastest] += 1;
        for way in 0..self.ways.len() {
            if self.is_tried(way) && self.took[way] > slow {
                self.slow[way] += 1;
            }
        }
        self.next = self.after(self.ways.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The way that a step takes, whose products take `micros(way)`.
    fn step(trials: &mut Trials, rows: usize, is_comparable: bool, micros: impl Fn(Fetch) -> u64) -> Fetch {
        let fetch = trials.begin(rows, is_comparable);
        if trials.is_on() {
            (0..2).for_each(|_| trials.took(Duration::from_micros(micros(fetch) / 2)));
        }
        fetch
    }

    #[test]
    fn the_way_that_is_mostly_faster_stays_whatever_disturbs_some_steps() {
        for (rows, ways) in [(1, OF_ONE), (8, OF_SEVERAL)] {
            for &better in ways {
                let (mut trials, most) = (Trials::default(), ways.len() * ROUNDS);
                let tried = (0..=most).take_while(|i| {
                    let disturbed = if i % 7 == 0 { 50 } else { 0 };
                    step(&mut trials, rows, true, |way| disturbed + if way == better { 100 } else { 120 });
                    trials.is_on()
                });
                assert!(tried.count() <= most, "no more than its rounds");
                assert_eq!((0..9).filter(|_| step(&mut trials, rows, true, |_| 0) == better).count(), 9);
            }
        }
    }

    #[test]
    fn a_way_that_takes_twice_as_long_is_tried_twice() {
        for slow in [Fetch::ToSecond, Fetch::ToFirst, Fetch::Unasked] {
            let mut trials = Trials::default();
            let took = |way| if way == slow { 200 } else { 100 + way as u64 };
            let ways = (0..OF_ONE.len() * ROUNDS).map(|_| step(&mut trials, 1, true, took));
            assert_eq!(ways.filter(|&way| way == slow).count(), SLOW_ROUNDS, "{slow:?}");
            assert!(!trials.is_on());
        }
    }

    #[test]
    fn ways_that_are_as_good_as_each_other_are_not_tried_for_ever() {
        let mut trials = Trials::default();
        for round in 0..ROUNDS as u64 {
            for way in 0..OF_ONE.len() as u64 {
                step(&mut trials, 1, true, |_| if way == round % OF_ONE.len() as u64 { 90 } else { 100 });
            }
        }
        step(&mut trials, 1, true, |_| 100);
        assert!(!trials.is_on());
    }

    #[test]
    fn steps_of_other_kinds_are_not_compared_and_take_the_way_that_leads() {
        let mut trials = Trials::default();
        assert_eq!(step(&mut trials, 1, false, |_| 1), Fetch::ToSecond, "at first");
        for _ in OF_ONE {
            step(&mut trials, 1, true, |way| if way == Fetch::Unasked { 50 } else { 100 });
        }
        assert_eq!(step(&mut trials, 1, false, |_| 1), Fetch::Unasked);
        assert!(!trials.is_on());
        assert_eq!(step(&mut trials, 64, true, |_| 1), Fetch::ToSecond, "a prompt");
        assert!(!trials.is_on());
    }

    #[test]
    fn a_round_is_of_steps_of_as_many_rows() {
        let mut trials = Trials::default();
        for rows in [2, 3, 4, 5] {
            let way = step(&mut trials, rows, true, |_| 100 - rows as u64);
            assert_eq!(way, Fetch::ToSecond, "the first of a round, and nothing was compared");
        }
        assert_eq!(step(&mut trials, 5, true, |_| 1), Fetch::Twice);
    }
}
