//! Measuring a model: tokens per second and the share of the machine's limit, perplexity, divergence from a reference.

mod agreement;
mod quality;
mod speed;

pub use agreement::{Agreement, Trial, agreement, synthetic_agreement};
pub use quality::{Quality, Reference, divergence, perplexity};
pub use speed::{Measurement, SpeedTest, Stopwatch, Summary};
