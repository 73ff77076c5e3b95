//! pensive runs R1-style reasoning models on the machine at hand.
#![warn(missing_docs)]

pub mod api;
pub mod backend;
pub mod catalog;
pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod cli;
pub mod engine;
mod error;
#[cfg(feature = "hub")]
pub mod hub;
pub mod model;
pub mod quant;
pub mod reasoning;
pub mod text;

pub use api::{
    CancelHandle, Chat, Event, Finish, Generation, Message, Model, ModelBuilder, Options, Prompt, Role,
    Stats, Turn,
};
pub use engine::sampling::{Sampling, SamplingOverrides};
pub use error::{Error, Result};
pub use reasoning::Think;
