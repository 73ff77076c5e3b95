//! The algorithms, each once, over the [`Simd`](super::Simd) trait.

pub mod scalar;
