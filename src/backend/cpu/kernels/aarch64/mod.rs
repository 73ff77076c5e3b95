//! Instances of [`Simd`](super::Simd) for 64-bit Arm.

pub mod neon;
