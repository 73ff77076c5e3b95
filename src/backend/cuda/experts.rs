//! Experts: the device routes rows itself, and multiplies each with the matrices of its experts; many rows expert by expert.

use super::CudaBackend;
use super::driver::Launch;
use super::params::{Address, Blocks, Combine, GroupResults, Route, Source};
use super::products::{Groups, Wanted};
use super::weights::{Held, THREADS};
use crate::backend::{Activation, Experts, Gate, Stack, Vector};
use crate::{Error, Result};

/// Results for each expert, in the mean, from which on rows are brought together by expert: as from two rows on other matrices
/// are multiplied in tiles. For fewer most experts have one row or none, and the order costs more than it saves.
const FEWEST_GROUPED: usize = 2;

/// Experts that `route` has room for, and that a row goes to: MOST_EXPERTS and MOST_USED of elements.cuh.
const MOST_EXPERTS: usize = 1024;
const MOST_USED: usize = 32;

/// Whether `route` can choose among so many.
pub fn check(experts: usize, used: usize) -> Result<()> {
    if experts <= MOST_EXPERTS && used <= MOST_USED {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "{used} of {experts} experts: the CUDA kernels choose {MOST_USED} of {MOST_EXPERTS} at most; --device cpu takes any"
    )))
}

/// A stack, its bias, and where its products go.
type Part = (Stack, Address, Address);

/// The rows of a step that go through a layer's experts.
struct Routed {
    /// The rows, and what gate makes of them.
    x: Source,
    made: Source,
    up: Address,
    activation: Activation,
    /// The expert of each result.
    ids: Address,
    results: usize,
}

impl CudaBackend {
    pub(super) fn run_experts(&mut self, experts: &Experts) -> Result<()> {
        self.settle()?;
        let (rows, used) = (self.present, experts.routing.used);
        let results = rows * used;
        let (feed_forward, columns) = self.stacks[experts.gate.0].shape();
        let width = self.stacks[experts.down.0].shape().0;
        let ids = self.room(4 * results, |this| &mut this.scratch.ids)?;
        let weights = self.room(4 * results, |this| &mut this.scratch.shares)?;
        self.route(experts, ids, weights)?;

        let gate = self.room(4 * results * feed_forward, |this| &mut this.scratch.gate)?;
        let up = self.room(4 * results * feed_forward, |this| &mut this.scratch.up)?;
        let down = self.room(4 * results * width, |this| &mut this.scratch.down)?;
        let bias = |part: usize| self.optional(experts.biases.map(|biases: [Vector; 3]| biases[part]));
        let parts = [(experts.gate, bias(0), gate), (experts.up, bias(1), up), (experts.down, bias(2), down)];
        let x = self.buffer(experts.from);
        let routed = Routed {
            x: Source { x, columns: columns as i32, share: used as i32, ..Source::default() },
            made: Source { x: gate, columns: feed_forward as i32, share: 1, ..Source::default() },
            up,
            activation: experts.activation,
            ids,
            results,
        };
        match self.blocks(&parts) {
            Some(wanted)
                if results >= FEWEST_GROUPED * wanted[0].matrix.matrices as usize
                    || !wanted.iter().all(|wanted| self.row_fits(wanted.matrix.columns as usize)) =>
            {
                self.multiply_by_expert(&routed, &wanted)?;
            }
            _ => self.multiply_by_row(routed, &parts)?,
        }

        let sum = self.buffer(experts.sum);
        let p = Combine { y: down, weights, sum, used: used as i32, width: width as i32 };
        let grid = [width.div_ceil(THREADS), rows, 1];
        self.launch(Launch { kernel: "combine", grid, threads: THREADS, shared: 0 }, &p)
    }

    fn route(&mut self, experts: &Experts, ids: Address, weights: Address) -> Result<()> {
        let routing = experts.routing;
        let p = Route {
            scores: self.buffer(experts.scores),
            correction: self.optional(experts.correction),
            ids,
            weights,
            experts: self.widths[experts.scores.0] as i32,
            used: routing.used as i32,
            gate: match routing.gate {
                Gate::Softmax => 0,
                Gate::Sigmoid => 1,
                Gate::SoftmaxOfChosen => 2,
            },
            groups: routing.groups.0 as i32,
            groups_used: routing.groups.1 as i32,
            normalize: i32::from(routing.normalize),
            scale: routing.scale,
        };
        self.launch(Launch { kernel: "route", grid: [self.present, 1, 1], threads: 32, shared: 0 }, &p)
    }

    /// Each row for itself: gate, up and down.
    fn multiply_by_row(&mut self, routed: Routed, parts: &[Part; 3]) -> Result<()> {
        let Routed { x, mut made, up, activation, ids, results } = routed;
        let (both, last) = parts.split_at(2);
        match self.blocks(both) {
            Some(pair) if self.can_pair(&pair) => {
                self.multiply_row(x, &pair, Some(activation), ids, results)?;
            }
            _ => {
                self.multiply_experts(x, both, ids, results)?;
                made.x = self.activate(made.x, up, activation, results * made.columns as usize)?;
            }
        }
        self.multiply_experts(made, last, ids, results)
    }

    /// The rows of each expert together: gate, up and down.
    fn multiply_by_expert(&mut self, routed: &Routed, wanted: &[Wanted<Blocks>]) -> Result<()> {
        let (both, last) = wanted.split_at(2);
        let groups = self.group(routed, last[0].matrix.matrices as usize)?;
        let x = self.narrow(&routed.x, self.present)?;
        self.multiply_groups(x, both, groups, routed.x.share)?;
        let made = Source { up: routed.up, activation: routed.activation.into(), ..routed.made };
        let x = self.narrow(&made, routed.results)?;
        self.multiply_groups(x, last, groups, made.share)
    }

    /// The results of each expert, in their order.
    fn group(&mut self, routed: &Routed, experts: usize) -> Result<Groups> {
        let &Routed { ids, results, .. } = routed;
        let order = self.room(4 * (results + experts + 1), |this| &mut this.scratch.groups)?;
        let offsets = order + 4 * results as Address;
        let p = GroupResults { ids, offsets, order, results: results as i32 };
        let grid = [experts, 1, 1];
        self.launch(Launch { kernel: "group_results", grid, threads: THREADS, shared: 0 }, &p)?;
        Ok(Groups { order, offsets, matrices: experts, results })
    }

    /// What is asked of stacks, if all of them are blocks.
    fn blocks(&self, parts: &[Part]) -> Option<Vec<Wanted<Blocks>>> {
        let wanted = |&(stack, bias, to): &Part| match self.stacks[stack.0] {
            Held::Blocks(matrix) => Some(Wanted { matrix, bias, to, sum: 0 }),
            Held::Dense(_) => None,
        };
        parts.iter().map(wanted).collect()
    }

    /// Products of one source with the experts' matrices of some stacks.
    fn multiply_experts(
        &mut self,
        source: Source,
        parts: &[Part],
        ids: Address,
        results: usize,
    ) -> Result<()> {
        let mut blocks = Vec::new();
        for &(stack, bias, to) in parts {
            match self.stacks[stack.0] {
                Held::Blocks(matrix) => blocks.push(Wanted { matrix, bias, to, sum: 0 }),
                Held::Dense(matrix) => {
                    self.multiply_dense(source, &Wanted { matrix, bias, to, sum: 0 }, ids, results)?;
                }
            }
        }
        if blocks.is_empty() { Ok(()) } else { self.multiply_row(source, &blocks, None, ids, results) }
    }
}
