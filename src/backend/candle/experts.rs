//! Experts: rows are sent to them by the CPU, which reads the router's scores.

use candle_core::{Result, Tensor as Values};

use super::weights::Matrices;
use super::{CandleBackend, gated};
use crate::backend::cpu::routing::Router;
use crate::backend::{Experts, Vector};

/// An expert's rows and their weights, ascending.
type Assigned = Vec<(usize, Vec<(u32, f32)>)>;

impl CandleBackend {
    pub(super) fn run_experts(&mut self, experts: &Experts) -> Result<()> {
        let chosen = self.route(experts)?;
        let all_in_blocks = [experts.gate, experts.up, experts.down]
            .iter()
            .all(|stack| matches!(self.stacks[stack.0], Matrices::Blocks(_)));
        let sum =
            if all_in_blocks { self.indexed(experts, &chosen)? } else { self.by_expert(experts, &chosen)? };
        self.set(experts.sum, sum);
        Ok(())
    }

    /// Of each row its experts and their weights, in ascending order of experts.
    fn route(&self, experts: &Experts) -> Result<Vec<Vec<(usize, f32)>>> {
        let scores = self.buffer(experts.scores).to_vec2::<f32>()?;
        let correction = experts.correction.map(|vector| &self.vectors[vector.0].host[..]);
        let mut router = Router::default();
        Ok(scores.iter().map(|row| router.route(row, correction, &experts.routing).to_vec()).collect())
    }

    /// Expert by expert, all of its rows.
    fn by_expert(&self, experts: &Experts, chosen: &[Vec<(usize, f32)>]) -> Result<Values> {
        let from = self.buffer(experts.from);
        let mut sum = self.buffer(experts.sum).clone();
        for (expert, rows) in assigned(chosen) {
            let (rows, weights): (Vec<u32>, Vec<f32>) = rows.into_iter().unzip();
            let weights = Values::from_vec(weights, (rows.len(), 1), self.device())?;
            let rows = self.upload(rows)?;
            let x = from.index_select(&rows, 0)?;
            let product = |part: usize, x: &Values| -> Result<Values> {
                let y = self.stacks[[experts.gate, experts.up, experts.down][part].0].multiply(expert, x)?;
                match experts.biases {
                    Some(biases) => y.broadcast_add(&self.bias(biases[part], expert, y.dim(1)?)?),
                    None => Ok(y),
                }
            };
            let made = gated(&product(0, &x)?, &product(1, &x)?, experts.activation)?;
            let y = product(2, &made)?.broadcast_mul(&weights)?;
            sum = sum.index_add(&rows, &y, 0)?;
        }
        Ok(sum)
    }

    /// All at once, by candle's kernel that takes the experts' numbers.
    fn indexed(&self, experts: &Experts, chosen: &[Vec<(usize, f32)>]) -> Result<Values> {
        let (rows, used) = (chosen.len(), experts.routing.used);
        let (ids, weights): (Vec<u32>, Vec<f32>) =
            chosen.iter().flatten().map(|&(expert, weight)| (expert as u32, weight)).unzip();
        let ids = Values::from_vec(ids, (rows, used), self.device())?;
        let weights = Values::from_vec(weights, (rows, used, 1), self.device())?;
        let product = |part: usize, x: &Values| -> Result<Values> {
            let Matrices::Blocks(blocks) = &self.stacks[[experts.gate, experts.up, experts.down][part].0]
            else {
                unreachable!("looked at before")
            };
            let y = blocks.indexed_moe_forward(x, &ids)?; // [rows, used, height]
            let Some(biases) = experts.biases else { return Ok(y) };
            let height = y.dim(2)?;
            let all = self.vector(biases[part]);
            let all = all.reshape((all.elem_count() / height, height))?;
            y + all.index_select(&ids.flatten_all()?, 0)?.reshape((rows, used, height))?
        };
        let x = self.buffer(experts.from);
        let x = x.reshape((rows, 1, x.dim(1)?))?;
        let made = gated(&product(0, &x)?, &product(1, &x)?, experts.activation)?;
        let y = product(2, &made)?.broadcast_mul(&weights)?.sum(1)?;
        self.buffer(experts.sum) + y
    }

    /// An expert's part of the biases of all.
    fn bias(&self, biases: Vector, expert: usize, len: usize) -> Result<Values> {
        self.vector(biases).narrow(0, expert * len, len)
    }
}

/// The rows of each expert that has some.
fn assigned(chosen: &[Vec<(usize, f32)>]) -> Assigned {
    let mut all = std::collections::BTreeMap::<usize, Vec<(u32, f32)>>::new();
    for (row, experts) in (0u32..).zip(chosen) {
        for &(expert, weight) in experts {
            all.entry(expert).or_default().push((row, weight));
        }
    }
    all.into_iter().collect()
}
