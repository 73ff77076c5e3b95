//! The public face: a model, a generation, a chat. The command line is written against it and has no private door.

mod chat;
mod digest;
mod generation;
pub mod measure;
pub mod memory;
mod model;
mod options;
mod stream;

pub use crate::reasoning::control::{Act, ControlEvent, ThoughtBounds};
pub use chat::{Chat, Turn};
pub use generation::{CancelHandle, Event, Finish, Generation, Seconds, Stats, ThoughtEnd};
#[cfg(feature = "cli")]
pub(crate) use model::generation_config;
pub use model::{Model, ModelBuilder, Progress};
pub use options::{LogitsHook, Message, Options, Prompt, Role};
