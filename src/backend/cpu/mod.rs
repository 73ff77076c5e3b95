//! The CPU backend: pensive's own kernels.

pub mod kernels;
