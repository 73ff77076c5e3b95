//! The CPU backend: pensive's own kernels.

pub mod kernels;
pub mod pool;
