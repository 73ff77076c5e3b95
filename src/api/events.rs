//! What happens in a generation, and what it came to.

use super::record::Record;
use crate::Sampling;
use crate::reasoning::control::ControlEvent;

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Finish {
    /// The model ended its answer, or a stop string did.
    Stop,
    /// The bound on tokens, or the context, was reached.
    Length,
    /// The answer repeated itself.
    Loop,
    /// It was cancelled.
    Interrupted,
}

/// How the thought ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ThoughtEnd {
    /// The model closed it (or ended the text within it).
    Natural,
    /// Its budget was spent.
    Budget,
    /// Its time was up.
    Time,
    /// The bound on tokens was near.
    Length,
    /// The end of the context was near.
    Context,
    /// It went on repeating itself.
    Guard,
    /// It was cancelled.
    User,
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Seconds {
    /// Loading the model.
    pub load: f64,
    /// Reading the prompt, up to the first token.
    pub prefill: f64,
    /// Generating, after the first token.
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
    /// How many of them were read; not all the others if it was cancelled meanwhile.
    pub read_tokens: usize,
    /// The thought, trimmed; empty if there was none.
    pub thought: String,
    /// The answer, trimmed (verbatim for a raw prompt).
    pub answer: String,
    /// Every generated id, markers and end token included.
    pub tokens: Vec<u32>,
    /// Tokens of the thought, markers not counted.
    pub thought_tokens: usize,
    /// Tokens of the answer, markers not counted.
    pub answer_tokens: usize,
    /// Why it ended.
    pub finish: Finish,
    /// How the thought ended; none if there was no thought.
    pub thought_end: Option<ThoughtEnd>,
    /// What the control of the thought did, in order.
    pub control: Vec<ControlEvent>,
    /// Where the time went.
    pub seconds: Seconds,
    /// What a receipt needs, if it was asked for.
    pub record: Option<Box<Record>>,
}

impl Stats {
    /// Speed of reading the prompt, tokens a second.
    pub fn prefill_tokens_per_second(&self) -> f64 {
        rate(self.read_tokens, self.seconds.prefill)
    }

    /// Speed of generating, tokens a second (the first token is the prompt's).
    pub fn decode_tokens_per_second(&self) -> f64 {
        rate(self.tokens.len().saturating_sub(1), self.seconds.decode)
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
    /// The control of the thought acted.
    Control(ControlEvent),
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
