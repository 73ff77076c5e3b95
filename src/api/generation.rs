//! A generation: an owned iterator of events.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::receipt::{Opening, Record};
use super::trace::Trace;
use super::{Model, Options};
use crate::engine::Sequence;
use crate::reasoning::ThoughtParser;
use crate::reasoning::control::ControlEvent;
use crate::{Result, Sampling};

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

/// Where a finished generation leaves its sequence, for the next one that shares a prefix.
pub(super) type Slot = Arc<Mutex<Option<Sequence>>>;

/// What a generation starts from, all resolved.
#[derive(Clone)]
pub(super) struct Start {
    pub prompt: Vec<u32>,
    pub parser: ThoughtParser,
    /// What the text begins as.
    pub opening: Opening,
    pub sampling: Sampling,
    pub seed: u64,
    /// Number of the sequence among those of the seed.
    pub sequence: u64,
    pub slot: Slot,
}

/// A running generation: owned, `Send`, and stopped by dropping it.
pub struct Generation {
    model: Model,
    trace: Trace,
    slot: Slot,
    cancel: CancelHandle,
    failed: bool,
}

impl Generation {
    pub(super) fn new(model: Model, start: Start, options: &Options) -> Generation {
        let slot = start.slot.clone();
        let mut sequence = lock(&slot).take().unwrap_or_default();
        // at least one token must be fed to have logits
        sequence.truncate(sequence.common_prefix(&start.prompt[..start.prompt.len() - 1]));
        let trace = Trace::new(model.clone(), start, options, sequence);
        Generation { model, trace, slot, cancel: options.cancel.clone().unwrap_or_default(), failed: false }
    }

    /// A handle that cancels this generation.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// What it has come to so far.
    pub fn stats(&self) -> Stats {
        self.trace.stats()
    }

    /// Whether it is in the middle of a thought: what the following act on.
    pub fn is_thinking(&self) -> bool {
        self.trace.is_thinking()
    }

    /// Closes the thought: the answer comes next. What is being written of an edit, or by a bound, is written first.
    pub fn answer_now(&mut self) {
        self.trace.answer_now();
    }

    /// The thought so far.
    pub fn thought(&self) -> &str {
        self.trace.thought()
    }

    /// Goes on from `text` as if the model had thought that so far. The KV cache is kept up to the first change; events
    /// follow for what comes after it. False, and nothing happens, outside a thought.
    ///
    /// # Errors
    /// A text that cannot be encoded; [`Error::Usage`](crate::Error::Usage) for one that leaves no room for an answer.
    pub fn set_thought(&mut self, text: &str) -> Result<bool> {
        self.trace.set_thought(text)
    }

    /// Runs one step.
    fn step(&mut self) -> Result<()> {
        let mut began = Instant::now();
        let trace = &mut self.trace;
        let mut engine = self.model.inner.engine.lock();
        let (left, most) = (trace.prompt_left().len(), engine.max_rows());
        let mut count = |trace: &mut Trace| {
            let seconds = &mut trace.stats.seconds;
            let of = if left == 0 { &mut seconds.decode } else { &mut seconds.prefill };
            *of += began.elapsed().as_secs_f64();
            began = Instant::now();
        };
        if left > most {
            engine.step(&mut [trace.prompt_feed(most)])?;
        } else if trace.prepare(engine.max_logit_rows()) {
            let fed = Instant::now();
            let logits = engine.step(&mut [trace.feed()])?;
            // where logits depend on the batch, drafts must not depend on the time
            if left == 0 && self.model.inner.is_exact() {
                trace.took(fed.elapsed());
            }
            count(trace); // a thought begins after the prompt was read
            trace.take(logits);
        }
        count(trace);
        if left == 0 {
            return Ok(());
        }
        let total = trace.stats.prompt_tokens;
        trace.events.push_front(Event::Prefill { done: total - left.saturating_sub(most), total });
        Ok(())
    }
}

impl Iterator for Generation {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Result<Event>> {
        loop {
            if let Some(event) = self.trace.events.pop_front() {
                return Some(Ok(event));
            }
            if self.failed || self.trace.is_over {
                return None;
            }
            if self.cancel.is_cancelled() {
                self.trace.end(Finish::Interrupted);
            } else if let Err(error) = self.step() {
                self.failed = true;
                self.trace.events.clear();
                return Some(Err(error));
            }
        }
    }
}

impl Drop for Generation {
    /// Leaves the sequence for the next generation that shares a prefix.
    fn drop(&mut self) {
        *lock(&self.slot) = Some(std::mem::take(&mut self.trace.sequence));
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
