//! What the decoder holds of a layer.

use crate::backend::{Buffer, Matrix, Projection, Stack, Vector};

/// A weight matrix with its bias, if it has one.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    pub matrix: Matrix,
    pub bias: Option<Vector>,
    pub cost: Cost,
}

/// Matrices of the heads, or of the experts.
#[derive(Clone, Copy, Debug)]
pub struct Matrices {
    pub stack: Stack,
    /// Of all of them together.
    pub cost: Cost,
}

/// What a product with a matrix takes.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub bytes: u64,
    pub values: u64,
    pub quantized: bool,
}

impl Linear {
    pub fn to(self, to: Buffer) -> Projection {
        Projection { matrix: self.matrix, bias: self.bias, to, sum: None }
    }

    /// The same, and added to the residual stream if there is one.
    pub fn update(self, to: Buffer, sum: Option<Buffer>) -> Projection {
        Projection { sum, ..self.to(to) }
    }
}

/// Handles of one layer's weights.
#[derive(Debug)]
pub struct Layer {
    pub attn_norm: Vector,
    pub attention: AttentionWeights,
    pub output: Linear,
    /// [heads]
    pub sinks: Option<Vector>,
    /// Of what attention gives, before it is added to the residual stream.
    pub post_attention_norm: Option<Vector>,
    pub ffn_norm: Vector,
    pub feed_forward: FeedForward,
    /// Of what the feed-forward gives.
    pub post_ffn_norm: Option<Vector>,
}

/// Where queries, keys and values come from.
#[derive(Debug)]
pub enum AttentionWeights {
    /// Grouped-query attention.
    Grouped {
        query: Linear,
        key: Linear,
        value: Linear,
        query_norm: Option<Vector>,
        key_norm: Option<Vector>,
        /// What all keys have in common: the part of their bias that hardly turns.
        key_center: Option<Vector>,
    },
    /// Latent attention in the absorbed form: queries go into the space of the latent, and what is attended comes back.
    Latent {
        /// To queries, or to what they are compressed to.
        query: Linear,
        /// From there: a norm, and a matrix.
        expand_query: Option<(Vector, Linear)>,
        /// To [latent, the keys' rotated part].
        latent: Linear,
        latent_norm: Vector,
        /// By head: [rank, plain_dims].
        absorb: Matrices,
        /// By head: [value_dim, rank].
        expand_value: Matrices,
    },
}

/// A gated feed-forward.
#[derive(Debug)]
pub struct Gated {
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// What stands after attention.
#[derive(Debug)]
pub enum FeedForward {
    /// One for all rows.
    Dense(Gated),
    /// Some of many, chosen row by row.
    Experts {
        router: Linear,
        correction: Option<Vector>,
        gate: Matrices,
        up: Matrices,
        down: Matrices,
        /// Of gate, up and down.
        biases: Option<[Vector; 3]>,
        /// What all rows go through beside them.
        shared: Option<Gated>,
    },
}
