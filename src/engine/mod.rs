//! Sequences, KV pages, batches, sampling.

pub mod sampling;
