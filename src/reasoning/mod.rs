//! Thoughts: what of a trace is thought and what is answer, and what keeps a thought within bounds.

pub mod answers;
pub mod control;
pub mod guard;
mod markers;
mod thought;

pub use markers::{Markers, Think};
pub use thought::{Part, Piece, ThoughtParser};
