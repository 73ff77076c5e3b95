//! pensive runs R1-style reasoning models on the machine at hand: open weights from the Hugging Face hub, quantized,
//! with thoughts told from answers.
//!
//! ```no_run
//! use pensive::{Event, Model, Options};
//!
//! # fn main() -> pensive::Result<()> {
//! let model = Model::load("deepseek-r1:1.5b")?; // a short name, a hub id or a path; never touches the network
//! for event in model.generate("Which is bigger, 9.9 or 9.11?", &Options::new().seed(1))? {
//!     match event? {
//!         Event::Thought(text) => eprint!("{text}"),
//!         Event::Answer(text) => print!("{text}"),
//!         Event::Done(stats) => eprintln!("\n{:.1} tokens/s", stats.decode_tokens_per_second()),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`Model`], [`Generation`] and [`Chat`] are the face; the modules below them are open to programs that want less of it
//! or more: [`engine::Engine`] runs steps of many sequences, [`backend::Backend`] is what a decoder is written against.
//!
//! Features that are on by default: `cli` (the command line), `hub` (downloads), `pocket` (the small reasoner inside),
//! `candle` (the backends that `cuda` and `metal` put on a GPU). Without them the crate is the engine alone: no network, no
//! terminal, the CPU.
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
mod sampling;
pub mod text;

pub use api::{
    Act, CancelHandle, Chat, ControlEvent, Event, Finish, Generation, Message, Model, ModelBuilder, Options,
    Outcome, Progress, Prompt, Quantize, Receipt, Role, Seconds, Stats, ThoughtEnd, Turn, VoteEvent,
    VoteOptions, Votes,
};
pub use backend::KvType;
pub use backend::devices::DeviceChoice;
pub use error::{Error, Result};
pub use reasoning::Think;
pub use sampling::{Sampling, SamplingOverrides};

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
