//! The algorithms, each once, over the [`Simd`](super::Simd) trait.

pub mod attention;
pub mod elementwise;
pub mod float;
pub mod formats;
pub mod math;
pub mod quantized;
pub mod scalar;
