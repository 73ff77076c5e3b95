//! The public face: a model, a generation, a chat. The command line is written against it and has no private door.

mod chat;
mod generation;
mod model;
mod options;

pub use chat::{Chat, Turn};
pub use generation::{CancelHandle, Event, Finish, Generation, Seconds, Stats, ThoughtEnd};
pub use model::{Model, ModelBuilder, Progress};
pub use options::{LogitsHook, Message, Options, Prompt, Role};
