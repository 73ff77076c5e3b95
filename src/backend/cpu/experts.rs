//! Experts: which rows go to which, and their products.
//!
//! Rows are grouped by expert; an expert's products are those of any matrix, so a row's values do not depend on the
//! rows beside it. They are added to the residual stream in ascending order of experts: `sum += weight * value`, the
//! product rounded, then the sum.

use super::kernels::{Isa, WeightMatrix};
use super::linear::{self, Input, Made, Product};
use super::memory::Shared;
use super::pool::Pool;
use super::routing::Router;
use super::step::least_rows;
use crate::backend::{Activation, Routing, Stacked};
use crate::checkpoint::Tensor;

/// Experts whose matrices are read ahead: as many as a token goes to and some more, few enough that they do not drive one
/// another out of memory.
const AHEAD: usize = 16;

/// A row that goes to an expert.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Assignment {
    expert: usize,
    row: usize,
    weight: f32,
}

/// Memory, allocated once.
pub struct Workspace {
    assignments: Vec<Assignment>,
    router: Router,
    /// [rows, width]
    input: Vec<f32>,
    /// [rows or experts of a row, feed-forward]
    gate: Vec<f32>,
    up: Vec<f32>,
    /// [rows, width]
    output: Vec<f32>,
    /// How guesses of what the next layer chooses fare.
    pub guesses: Guesses,
}

/// How guesses fare. What is read for a wrong one keeps the disk from what is needed, so that few of them must be wrong.
#[derive(Default)]
pub struct Guesses {
    /// The experts of the last guess, ascending; empty: they were compared.
    last: Vec<usize>,
    /// The share of wrong ones of late.
    wrong: f32,
    /// Chances to guess that were let pass since guesses stopped to pay.
    passed: u32,
}

impl Guesses {
    /// Wrong ones above this share cost more than right ones save.
    const MOST_WRONG: f32 = 0.5;
    /// How many chances pass before it is tried again.
    const PAUSE: u32 = 4096;

    /// Whether to guess.
    pub fn pay(&mut self) -> bool {
        if self.wrong <= Self::MOST_WRONG {
            return true;
        }
        self.passed += 1;
        if self.passed > Self::PAUSE {
            (self.passed, self.wrong) = (0, Self::MOST_WRONG);
        }
        false
    }

    /// Compares the last guess with what was chosen.
    fn compare(&mut self, chosen: impl Iterator<Item = usize>) {
        if self.last.is_empty() {
            return;
        }
        let (mut all, mut wrong) = (0, 0);
        for expert in chosen {
            all += 1;
            wrong += usize::from(self.last.binary_search(&expert).is_err());
        }
        self.wrong += 0.05 * (wrong as f32 / all.max(1) as f32 - self.wrong);
        self.last.clear();
    }
}

/// What is multiplied.
pub struct Call<'a> {
    /// Rows of the step.
    pub rows: usize,
    /// [rows, experts]
    pub scores: &'a [f32],
    /// [experts]
    pub correction: Option<&'a [f32]>,
    /// How experts are chosen.
    pub routing: Routing,
    /// [rows, width]
    pub from: Shared<f32>,
    /// [rows, width]
    pub sum: Shared<f32>,
    /// By expert.
    pub gate: &'a [WeightMatrix],
    /// By expert.
    pub up: &'a [WeightMatrix],
    /// By expert.
    pub down: &'a [WeightMatrix],
    /// Of gate, up, down: [experts, rows].
    pub biases: Option<[&'a [f32]; 3]>,
    /// Between them.
    pub activation: Activation,
}

impl Workspace {
    /// For up to `rows` rows and these stacks.
    pub fn new<'a>(rows: usize, stacks: impl Iterator<Item = (&'a [WeightMatrix], Stacked)>) -> Self {
        let (mut count, mut used, mut widest) = (0, 0, 0);
        for (matrices, of) in stacks {
            let Stacked::Experts { used: own } = of else { continue };
            (count, used) = (matrices.len().max(count), own.max(used));
            widest = matrices[0].rows().max(matrices[0].columns()).max(widest);
        }
        // zeros of the system: of a narrow part's memory only the beginning is committed
        let memory = || vec![0.0; rows.max(used) * widest];
        Workspace {
            assignments: Vec::with_capacity(rows * used),
            router: Router::new(count, used),
            input: memory(),
            gate: memory(),
            up: memory(),
            output: memory(),
            guesses: Guesses { last: Vec::with_capacity(count), ..Guesses::default() },
        }
    }

    /// Executes a call.
    pub fn run(&mut self, isa: Isa, pool: &Pool, linear: &mut linear::Workspace, call: &Call) {
        self.route(call);
        if call.rows == 1 {
            self.one_row(isa, pool, linear, call);
        } else {
            self.by_expert(isa, pool, linear, call, |_, _| ());
        }
    }

    /// Executes a call and shows the rows that each expert's matrices are multiplied with: of gate and up, and of down.
    pub fn run_seen(
        &mut self,
        isa: Isa,
        pool: &Pool,
        linear: &mut linear::Workspace,
        call: &Call,
        seen: impl FnMut(usize, [&[f32]; 2]),
    ) {
        self.route(call);
        self.by_expert(isa, pool, linear, call, seen);
    }

    /// Begins to read the matrices of the first experts that rows go to, where they are in a file: gates and ups of all of
    /// them first, as they are multiplied first.
    pub fn read_ahead(&mut self, call: &Call) {
        self.route(call);
        self.guesses
            .compare(self.assignments.chunk_by(|a, b| a.expert == b.expert).map(|group| group[0].expert));
        self.begin_to_read(call);
    }

    /// [`read_ahead`](Self::read_ahead) of a guess.
    pub fn guess_ahead(&mut self, call: &Call) {
        self.route(call);
        self.guesses.last.clear();
        let groups = self.assignments.chunk_by(|a, b| a.expert == b.expert);
        self.guesses.last.extend(groups.map(|group| group[0].expert));
        self.begin_to_read(call);
    }

    fn begin_to_read(&self, call: &Call) {
        let chosen = || self.assignments.chunk_by(|a, b| a.expert == b.expert).take(AHEAD);
        for parts in [&[call.gate, call.up][..], &[call.down]] {
            chosen().for_each(|group| read_ahead(parts, group[0].expert));
        }
    }

    /// Rows to their experts, ordered by expert and row.
    fn route(&mut self, call: &Call) {
        self.assignments.clear();
        for (row, scores) in call.scores.chunks_exact(call.gate.len()).enumerate() {
            let chosen = self.router.route(scores, call.correction, &call.routing);
            self.assignments.extend(chosen.iter().map(|&(expert, weight)| Assignment {
                expert,
                row,
                weight,
            }));
        }
        self.assignments.sort_unstable_by_key(|a| (a.expert, a.row));
    }

    /// Decoding: gate and up of all its experts are one job.
    fn one_row(&mut self, isa: Isa, pool: &Pool, linear: &mut linear::Workspace, call: &Call) {
        let (width, feed_forward) = (call.gate[0].columns(), call.gate[0].rows());
        let Workspace { assignments, gate, up, output, .. } = self;
        assert!(
            assignments.len() * feed_forward <= gate.len().min(up.len()),
            "a row goes to no more experts than was planned"
        );
        let (gate, up, output) = (Shared::of(gate), Shared::of(up), Shared::of(output));
        let part = |memory: Shared<f32>, index: usize| {
            // SAFETY: the memory has a place for each assignment.
            Shared::from(unsafe { memory.at(index * feed_forward) })
        };
        let input = Input { values: call.from, rows: 1, width, made: Made::Already };
        linear.multiply(isa, pool, input, 2 * assignments.len(), |i| {
            let expert = assignments[i / 2].expert;
            match i % 2 {
                0 => call.product(0, expert, part(gate, i / 2)),
                _ => call.product(1, expert, part(up, i / 2)),
            }
        });
        for (i, assignment) in assignments.iter().enumerate() {
            let made = Made::Gated { up: part(up, i), activation: call.activation };
            let input = Input { values: part(gate, i), rows: 1, width: feed_forward, made };
            linear.multiply(isa, pool, input, 1, |_| call.product(2, assignment.expert, output));
            call.add(0, assignment, output);
        }
    }

    /// Prefill and batches: expert by expert, all of its rows.
    fn by_expert(
        &mut self,
        isa: Isa,
        pool: &Pool,
        linear: &mut linear::Workspace,
        call: &Call,
        mut seen: impl FnMut(usize, [&[f32]; 2]),
    ) {
        let (width, feed_forward) = (call.gate[0].columns(), call.gate[0].rows());
        let Workspace { assignments, input, gate, up, output, .. } = self;
        let room = input.len(); // all four have the same
        let [input, gate, up, output] = [input, gate, up, output].map(|memory| Shared::of(memory));
        let groups = || assignments.chunk_by(|a, b| a.expert == b.expert);
        let mut ahead = groups().skip(AHEAD);
        for group in groups() {
            let (expert, rows) = (group[0].expert, group.len());
            assert!(rows * width.max(feed_forward) <= room, "a row goes to an expert once");
            if let Some(later) = ahead.next() {
                read_ahead(&[call.gate, call.up, call.down], later[0].expert);
            }
            pool.for_each(rows, least_rows(width), |i| {
                // SAFETY: row i of the memory belongs to one task; `from` has the row.
                unsafe {
                    let from = call.from.at(group[i].row * width);
                    std::ptr::copy_nonoverlapping(from, input.at(i * width), width);
                }
            });
            let x = Input { values: input, rows, width, made: Made::Already };
            linear.multiply(isa, pool, x, 2, |i| call.product(i, expert, [gate, up][i]));
            let made = Made::Gated { up, activation: call.activation };
            let x = Input { values: gate, rows, width: feed_forward, made };
            linear.multiply(isa, pool, x, 1, |_| call.product(2, expert, output));
            // SAFETY: the memory has these rows, and nobody writes there now.
            let made = [(input, width), (gate, feed_forward)]
                .map(|(memory, width)| unsafe { std::slice::from_raw_parts(memory.at(0), rows * width) });
            seen(expert, made);
            pool.for_each(rows, least_rows(width), |i| call.add(i, &group[i], output));
        }
    }
}

impl Call<'_> {
    /// The product with an expert's gate (0), up (1) or down (2).
    fn product(&self, part: usize, expert: usize, to: Shared<f32>) -> Product<'_> {
        let matrix = &[self.gate, self.up, self.down][part][expert];
        let bias = self.biases.map(|biases| &biases[part][expert * matrix.rows()..][..matrix.rows()]);
        Product { matrix, bias, to, sum: None, gated: None }
    }

    /// Adds row i of an expert's output to the row that it belongs to.
    fn add(&self, i: usize, assignment: &Assignment, output: Shared<f32>) {
        let width = self.down[0].rows();
        // SAFETY: both rows lie in their memory; a row of the step is one assignment of an expert, done by one task.
        let (sum, output) = unsafe {
            let sum = std::slice::from_raw_parts_mut(self.sum.at(assignment.row * width), width);
            (sum, std::slice::from_raw_parts(output.at(i * width), width))
        };
        sum.iter_mut().zip(output).for_each(|(sum, value)| *sum += assignment.weight * value);
    }
}

/// Asks the system for the pages of an expert's matrices that are mapped.
fn read_ahead(parts: &[&[WeightMatrix]], expert: usize) {
    parts.iter().filter_map(|part| part[expert].mapped()).for_each(Tensor::read_ahead);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_stop_while_most_are_wrong_and_are_tried_again() {
        let mut guesses = Guesses::default();
        let mut guess = |last: &[usize], chosen: &[usize]| {
            guesses.last = last.to_vec();
            guesses.compare(chosen.iter().copied());
            guesses.pay()
        };
        assert!((0..100).all(|_| guess(&[1, 3, 5, 7], &[3, 5, 6, 7])), "a quarter is wrong");
        assert!((0..100).any(|_| !guess(&[1, 3, 5, 7], &[2, 4, 6, 7])), "three quarters are wrong");
        assert!((0..2 * Guesses::PAUSE).any(|_| guesses.pay()));
    }
}
