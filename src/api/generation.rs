//! A generation: an owned iterator of events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::engine::sampling::Sampling;
use crate::{Error, Result};

/// Stops a generation between two steps; clones share the switch.
#[derive(Clone, Debug, Default)]
pub struct CancelHandle(Arc<AtomicBool>);

impl CancelHandle {
    /// A fresh handle.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the generation to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Makes the handle usable again.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Finish {
    /// The model ended its answer, or a stop string did.
    Stop,
    /// The bound on tokens, or the context, was reached.
    Length,
    /// It was cancelled.
    Interrupted,
}

/// How the thought ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ThoughtEnd {
    /// The model closed it.
    Natural,
    /// The bound on tokens or the context cut it.
    Context,
    /// It was cancelled.
    User,
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Seconds {
    /// Loading the model (0 where it was loaded before).
    pub load: f64,
    /// Reading the prompt.
    pub prefill: f64,
    /// Generating.
    pub decode: f64,
}

/// What a generation came to.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Seed of the draws.
    pub seed: u64,
    /// Sampling parameters, resolved.
    pub sampling: Sampling,
    /// Context of the model as loaded, tokens.
    pub context: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// How many of them were still in the KV cache.
    pub cached_tokens: usize,
    /// The thought, trimmed; empty if there was none.
    pub thought: String,
    /// The answer, trimmed (verbatim for a raw prompt).
    pub answer: String,
    /// Every generated id, markers included.
    pub tokens: Vec<u32>,
    /// Tokens of the thought, markers not counted.
    pub thought_tokens: usize,
    /// Tokens of the answer, markers not counted.
    pub answer_tokens: usize,
    /// Why it ended.
    pub finish: Finish,
    /// How the thought ended; none if there was no thought.
    pub thought_end: Option<ThoughtEnd>,
    /// Where the time went.
    pub seconds: Seconds,
}

impl Stats {
    /// Speed of reading the prompt, tokens a second (those that were not in the cache).
    pub fn prefill_tokens_per_second(&self) -> f64 {
        rate(self.prompt_tokens - self.cached_tokens, self.seconds.prefill)
    }

    /// Speed of generating, tokens a second.
    pub fn decode_tokens_per_second(&self) -> f64 {
        rate(self.tokens.len(), self.seconds.decode)
    }
}

fn rate(tokens: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}

/// What happens in a generation, in order.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// Progress of reading the prompt, tokens.
    Prefill {
        /// Read so far.
        done: usize,
        /// Of so many.
        total: usize,
    },
    /// A piece of the thought.
    Thought(String),
    /// The thought is over; the answer follows.
    ThoughtDone {
        /// Tokens of the thought.
        tokens: usize,
        /// Seconds it took.
        seconds: f64,
    },
    /// A piece of the answer.
    Answer(String),
    /// Oldest turns left the conversation because it outgrew the context ([`Chat`](super::Chat) only).
    Forgotten {
        /// How many whole turns.
        turns: usize,
    },
    /// The end.
    Done(Box<Stats>),
}

/// A running generation: owned, `Send`, and stopped by dropping it.
pub struct Generation {}

impl Generation {
    /// A handle that cancels this generation.
    pub fn cancel_handle(&self) -> CancelHandle {
        unimplemented!("W8")
    }
}

impl Iterator for Generation {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Result<Event>> {
        Some(Err(Error::Usage("W8".into())))
    }
}
