//! The public face: a model, a generation, a chat. The command line is written against it and other
//! public modules, and has no private door.

mod calibrate;
mod cancel;
mod chat;
mod digest;
mod events;
pub mod expectation;
mod generation;
pub mod measure;
pub mod memory;
mod model;
mod options;
mod placement;
mod quantize;
mod quantize_on_load;
mod receipt;
mod record;
mod start;
mod stream;
mod trace;
mod votes;

pub use crate::reasoning::answers::{Count, FinalAnswer};
pub use crate::reasoning::control::{Act, ControlEvent, ThoughtBounds};
pub use calibrate::Importance;
pub use cancel::CancelHandle;
pub use chat::{Chat, Turn};
pub use events::{Event, Finish, Seconds, Stats, ThoughtEnd};
pub use generation::Generation;
pub use model::{Model, ModelBuilder, Progress, generation_config};
pub use options::{LogitsHook, Message, Options, Prompt, Role};
pub use quantize::{Quantized, quantize, quantize_by};
pub use quantize_on_load::{Quantize, ROOM};
pub use receipt::{Difference, Receipt, ReceiptDevice, ReceiptModel, RecordedSequence, SCHEMA, Verdict};
pub use record::{Opening, Record};
pub use votes::{BOXED, Outcome, VoteEvent, VoteOptions, Votes};
