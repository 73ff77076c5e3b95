//! The algorithms, each once, over the [`Simd`](super::Simd) trait.

pub mod float;
pub mod formats;
pub mod quantized;
pub mod scalar;
