//! Attention by whole matrices: the pages of a sequence are brought together, and multiplied with the queries of its rows.

use candle_core::{D, Result, Tensor as Values};
use candle_nn::ops;

use super::CandleBackend;
use super::cache::gathered;
use crate::backend::{Attention, Buffer, KvShape, MOST_SCORES, PAGE_LEN, Row};

impl CandleBackend {
    /// Attention of all rows, [rows, heads * value_dim].
    pub(super) fn attend(&self, layer: usize, query: Buffer, attention: &Attention) -> Result<Values> {
        let query = self.buffer(query);
        let mut parts = Vec::new();
        let mut first = 0;
        for rows in self.rows.chunk_by(|a, b| a.sequence == b.sequence) {
            let query = query.narrow(0, first, rows.len())?;
            parts.push(self.attend_sequence(layer, &query, rows, attention)?);
            first += rows.len();
        }
        if parts.len() == 1 { Ok(parts.remove(0)) } else { Values::cat(&parts, 0) }
    }

    /// Attention of the rows of one sequence.
    fn attend_sequence(
        &self,
        layer: usize,
        query: &Values,
        rows: &[Row],
        attention: &Attention,
    ) -> Result<Values> {
        let layer = self.ready().cache.layer(layer);
        let KvShape { heads: kv_heads, key_dim, value_dim, value_in_key } = layer.shape;
        let (heads, group) = (attention.heads, attention.heads / kv_heads);
        let seen_from =
            |row: &Row| attention.window.map_or(0, |window| (row.position + 1).saturating_sub(window));
        let (from, to) = (seen_from(&rows[0]), rows[rows.len() - 1].position + 1);
        let pages = &self.tables[rows[0].sequence][from / PAGE_LEN..to.div_ceil(PAGE_LEN)];
        let cached = |values| gathered(values, pages, from % PAGE_LEN, to - from, kv_heads);
        let keys = cached(&layer.keys)?;
        let values = match value_in_key {
            true => keys.narrow(2, 0, value_dim)?.contiguous()?,
            false => cached(&layer.values)?,
        };
        let keys = keys.transpose(1, 2)?;

        let block = (MOST_SCORES / (heads * (to - from))).max(1);
        let mut parts = Vec::new();
        for (rows, first) in rows.chunks(block).zip((0..).step_by(block)) {
            let n = rows.len();
            let query = query.narrow(0, first, n)?.reshape((n, kv_heads, group, key_dim))?;
            let query = query.permute((1, 2, 0, 3))?.contiguous()?.reshape((kv_heads, group * n, key_dim))?;
            let scores = (query.matmul(&keys)? * f64::from(attention.scale))?;
            let mut scores = scores.reshape((heads, n, to - from))?;
            if n > 1 {
                scores = scores.broadcast_add(&self.mask(rows, from, to, seen_from)?)?;
            }
            let shares = match attention.sinks {
                None => ops::softmax_last_dim(&scores)?,
                Some(sinks) => {
                    let sinks = self.vector(sinks).reshape((heads, 1, 1))?.broadcast_as((heads, n, 1))?;
                    let all = Values::cat(&[&scores, &sinks.contiguous()?], D::Minus1)?;
                    ops::softmax_last_dim(&all)?.narrow(2, 0, to - from)?.contiguous()?
                }
            };
            let shares = shares.reshape((kv_heads, group * n, to - from))?;
            let attended = shares.matmul(&values)?.reshape((heads, n, value_dim))?;
            parts.push(attended.transpose(0, 1)?.contiguous()?.reshape((n, heads * value_dim))?);
        }
        if parts.len() == 1 { Ok(parts.remove(0)) } else { Values::cat(&parts, 0) }
    }

    /// What is added to scores: 0 where a row sees a position, -inf elsewhere; [rows, to - from].
    fn mask(
        &self,
        rows: &[Row],
        from: usize,
        to: usize,
        seen_from: impl Fn(&Row) -> usize,
    ) -> Result<Values> {
        let mut mask = vec![f32::NEG_INFINITY; rows.len() * (to - from)];
        for (row, mask) in rows.iter().zip(mask.chunks_exact_mut(to - from)) {
            mask[seen_from(row) - from..=row.position - from].fill(0.0);
        }
        Values::from_vec(mask, (rows.len(), to - from), self.device())
    }
}
