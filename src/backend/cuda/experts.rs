//! Experts: the device routes rows itself, and multiplies each with the matrices of its experts.

use super::CudaBackend;
use super::driver::Launch;
use super::params::{Address, Combine, Route, Source};
use super::products::Wanted;
use super::weights::{Held, THREADS};
use crate::Result;
use crate::backend::{Activation, Experts, Gate, Stack, Vector};

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
        let bias =
            |this: &Self, part: usize| this.optional(experts.biases.map(|biases: [Vector; 3]| biases[part]));
        let x = self.buffer(experts.from);
        let source = Source { x, columns: columns as i32, share: used as i32, ..Source::default() };
        let both = [(experts.gate, bias(self, 0), gate), (experts.up, bias(self, 1), up)];
        let mut made = Source { x: gate, columns: feed_forward as i32, share: 1, ..Source::default() };
        if !self.multiply_pair(source, &both, experts.activation, ids, results)? {
            self.multiply_experts(source, &both, ids, results)?;
            made.x = self.activate(gate, up, experts.activation, results * feed_forward)?;
        }
        self.multiply_experts(made, &[(experts.down, bias(self, 2), down)], ids, results)?;

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

    /// Gate and up in one, with what stands between them; false if they cannot be.
    fn multiply_pair(
        &mut self,
        source: Source,
        both: &[(Stack, Address, Address); 2],
        activation: Activation,
        ids: Address,
        results: usize,
    ) -> Result<bool> {
        let wanted = both.map(|(stack, bias, to)| match self.stacks[stack.0] {
            Held::Blocks(matrix) => Some(Wanted { matrix, bias, to, sum: 0 }),
            Held::Dense(_) => None,
        });
        let [Some(gate), Some(up)] = wanted else { return Ok(false) };
        if !self.can_pair(&[gate, up]) {
            return Ok(false);
        }
        self.multiply_row(source, &[gate, up], Some(activation), ids, results)?;
        Ok(true)
    }

    /// Products of one source with the experts' matrices of some stacks: (stack, bias, where they go).
    fn multiply_experts(
        &mut self,
        source: Source,
        stacks: &[(Stack, Address, Address)],
        ids: Address,
        results: usize,
    ) -> Result<()> {
        let mut blocks = Vec::new();
        for &(stack, bias, to) in stacks {
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
