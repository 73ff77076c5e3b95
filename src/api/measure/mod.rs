//! Measuring a model: tokens per second and the share of the machine's limit, perplexity, divergence from a reference.

mod quality;
mod speed;

pub use quality::{Quality, Reference, divergence, perplexity};
pub use speed::{SpeedTest, Stopwatch, Summary};
