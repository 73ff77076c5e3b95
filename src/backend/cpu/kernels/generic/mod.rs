//! The algorithms, each once, over the [`Simd`](super::Simd) trait.
//!
//! SAFETY of the unsafe blocks here: they stand in unsafe functions and lean on what the function's caller promises
//! (the CPU has the ISA of S, pointers are valid for the shapes that are documented); where there is more to say,
//! a line says it.

// Blocks of registers are indexed by row, token and part at once.
#![allow(clippy::needless_range_loop)]

pub mod attention;
pub mod codebooks;
pub mod elementwise;
pub mod few_tokens;
pub mod float;
pub mod formats;
pub mod interleave;
pub mod many_tokens;
pub mod math;
pub mod quantized;
pub mod scalar;
