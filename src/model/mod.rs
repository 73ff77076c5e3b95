//! Hyperparameters, and one decoder text for every architecture.
//!
//! A new architecture is a mapping of names (`names`) and a few fields of [`Hyperparameters`].

mod decoder;
mod hyperparameters;
mod names;
mod rope;

pub use decoder::{Decoder, Work};
pub use hyperparameters::Hyperparameters;
pub use rope::Scaling;
