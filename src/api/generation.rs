//! A generation: an owned iterator of events.

use std::time::Instant;

use super::events::{Event, Finish, Stats};
use super::start::{Slot, Start, lock};
use super::trace::Trace;
use super::{CancelHandle, Model, Options, Prompt};
use crate::{Error, Result};

impl Model {
    /// Generates from a conversation, a user's text, or a raw prompt.
    ///
    /// # Errors
    /// An empty prompt or one that leaves no room in the context; sampling parameters out of range; a template
    /// that refuses the messages.
    pub fn generate(&self, prompt: impl Into<Prompt>, options: &Options) -> Result<Generation> {
        let start = self.start(&prompt.into(), options)?;
        self.begin(start, options, Slot::default())
    }

    /// Starts a generation that takes over the sequence in `slot`.
    pub(super) fn begin(&self, start: Start, options: &Options, slot: Slot) -> Result<Generation> {
        self.check(&start, options)?;
        Ok(Generation::new(self.clone(), Start { slot, ..start }, options))
    }
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

    /// The answer so far.
    pub fn answer(&self) -> &str {
        self.trace.answer()
    }

    /// Runs to the end without a look at the events.
    ///
    /// ```
    /// # #[cfg(feature = "pocket")]
    /// # fn main() -> pensive::Result<()> {
    /// let model = pensive::Model::load("pocket")?;
    /// let stats = model.generate("What is 17 + 25?", &pensive::Options::new().temperature(0.0))?.finish()?;
    /// assert!(stats.answer.contains("42") && stats.thought_tokens > 0);
    /// # Ok(())
    /// # }
    /// # #[cfg(not(feature = "pocket"))]
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    /// Of the first step that fails; not one that was seen before.
    pub fn finish(mut self) -> Result<Stats> {
        self.try_for_each(|event| event.map(drop))?;
        Ok(self.stats())
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
            let logits = match engine.step(&mut [trace.feed()]) {
                // where pages run out one token may still have a place
                Err(Error::Memory(_)) if trace.gives_up_draft() => engine.step(&mut [trace.feed()])?,
                stepped => stepped?,
            };
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
