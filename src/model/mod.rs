//! Hyperparameters, and one decoder text for every architecture.
//!
//! A new architecture is a mapping of names (`names`) and a few fields of [`Hyperparameters`].

mod conversion;
mod decoder;
pub mod export;
mod hyperparameters;
mod layer;
mod load;
mod names;
mod reads;
mod rope;
mod synthetic;

pub use conversion::{Conversion, LayerBytes, layer_bytes, loaded_bytes, restored_types};
pub use decoder::{Decoder, Work};
pub use hyperparameters::{ExpertShape, Hyperparameters, Latent};
pub use reads::Reads;
pub use rope::Scaling;
pub use synthetic::Synthetic;
