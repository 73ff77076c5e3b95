//! Several thoughts about one question, at once, and the answer that most of them come to (self-consistency, Wang et al.
//! 2022; the cons@k of R1's paper).

use std::collections::VecDeque;
use std::time::Instant;

use super::options::Role;
use super::start::Start;
use super::trace::Trace;
use super::{CancelHandle, Event, Finish, Model, Options, Prompt, Stats};
use crate::engine::{Feed, Sequence};
use crate::reasoning::answers::{Count, FinalAnswer, final_answer, tally};
use crate::{Error, Result};

/// What a question gains, as R1's authors advise, so that answers can be found.
pub const BOXED: &str = "\n\nPlease reason step by step, and put your final answer within \\boxed{}.";

/// How to vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoteOptions {
    /// Thoughts at once: 2 or more; the model must be loaded for as many sequences.
    pub count: usize,
    /// Stop when so many agree, or when no other answer can catch up.
    pub until_agree: Option<usize>,
    /// Whether the question gains [`BOXED`].
    pub boxed: bool,
}

impl VoteOptions {
    /// So many thoughts, all to their end.
    pub fn new(count: usize) -> Self {
        VoteOptions { count, until_agree: None, boxed: true }
    }
}

/// What a vote came to.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Outcome {
    /// Each trace, in order of its sequence number.
    pub traces: Vec<Stats>,
    /// The final answer of each.
    pub answers: Vec<Option<FinalAnswer>>,
    /// The answers, the most frequent first; none if they cannot be compared.
    pub tally: Option<Vec<Count>>,
    /// Which trace is shown: the shortest of the majority; without one, the shortest.
    pub shown: usize,
    /// Seconds of all together.
    pub seconds: f64,
}

/// What happens in a vote, in order.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum VoteEvent {
    /// Something happened in a trace.
    Trace {
        /// Number of its sequence.
        sequence: usize,
        /// What.
        event: Event,
    },
    /// The end.
    Done(Box<Outcome>),
}

/// A running vote.
pub struct Votes {
    model: Model,
    options: VoteOptions,
    traces: Vec<Trace>,
    /// The question, while it is read: a trace of which only the prompt is fed.
    reader: Option<Trace>,
    answers: Vec<Option<FinalAnswer>>,
    events: VecDeque<VoteEvent>,
    cancel: CancelHandle,
    seconds: f64,
    is_over: bool,
}

impl Model {
    /// Thinks several times at once and counts the answers; sequences 0, 1, … of one seed.
    ///
    /// # Errors
    /// [`Error::Usage`] for fewer than two thoughts, for more sequences than the model was loaded for
    /// ([`ModelBuilder::sequences`](super::ModelBuilder::sequences)), or at temperature 0, where all would be the same; as
    /// [`generate`](Model::generate).
    pub fn vote(&self, prompt: impl Into<Prompt>, options: &Options, votes: VoteOptions) -> Result<Votes> {
        let room = self.inner.engine.lock().max_sequences();
        if votes.count < 2 || votes.count > room {
            return Err(Error::Usage(format!(
                "{} votes: from 2 to the {room} sequences that the model was loaded for",
                votes.count
            )));
        }
        let mut prompt = prompt.into();
        if votes.boxed {
            ask_for_a_box(&mut prompt);
        }
        let start = self.start(&prompt, options)?;
        if start.sampling.temperature == 0.0 {
            return Err(Error::Usage("a vote at temperature 0: all thoughts would be the same".into()));
        }
        self.check(&start, options)?;
        let trace = |sequence| {
            let start = Start { sequence, ..start.clone() };
            Trace::new(self.clone(), start, options, Sequence::new())
        };
        Ok(Votes {
            model: self.clone(),
            options: votes,
            traces: (0..votes.count as u64).map(trace).collect(),
            reader: Some(trace(0)),
            answers: vec![None; votes.count],
            events: VecDeque::new(),
            cancel: options.cancel.clone().unwrap_or_default(),
            seconds: 0.0,
            is_over: false,
        })
    }
}

fn ask_for_a_box(prompt: &mut Prompt) {
    if let Prompt::Messages(messages) = prompt
        && let Some(last) = messages.iter_mut().rfind(|m| m.role == Role::User)
    {
        last.content.push_str(BOXED);
    }
}

impl Votes {
    /// A handle that cancels this vote.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// Runs to the end without a look at the events.
    ///
    /// # Errors
    /// Of the first step that fails; [`Error::Usage`] if the end was seen before.
    pub fn finish(mut self) -> Result<Outcome> {
        let mut last = None;
        self.try_for_each(|event| event.map(|event| last = Some(event)))?;
        match last {
            Some(VoteEvent::Done(outcome)) => Ok(*outcome),
            _ => Err(Error::Usage("the vote's end was seen before".into())),
        }
    }

    /// What each trace has come to so far.
    pub fn stats(&self) -> impl Iterator<Item = Stats> {
        self.traces.iter().map(Trace::stats)
    }

    fn step(&mut self) -> Result<()> {
        match self.reader.take() {
            Some(reader) => self.read(reader)?,
            None => self.advance()?,
        }
        self.collect();
        Ok(())
    }

    /// Reads a piece of the question; all but its last token, once for all traces.
    fn read(&mut self, mut reader: Trace) -> Result<()> {
        let began = Instant::now();
        let mut engine = self.model.inner.engine.lock();
        let left = reader.prompt_left().len() - 1;
        let count = left.min(engine.max_rows());
        if count > 0 {
            engine.step(&mut [reader.prompt_feed(count)])?;
        }
        drop(engine);
        let total = reader.stats.prompt_tokens;
        let event = Event::Prefill { done: total - (left - count), total };
        self.events.push_back(VoteEvent::Trace { sequence: 0, event });
        if left == count {
            self.traces.iter_mut().for_each(|trace| trace.sequence = reader.sequence.fork(total - 1));
        } else {
            self.reader = Some(reader);
        }
        let seconds = began.elapsed().as_secs_f64();
        self.traces.iter_mut().for_each(|trace| trace.stats.seconds.prefill += seconds);
        self.seconds += seconds;
        Ok(())
    }

    /// One step of all traces that are not over.
    fn advance(&mut self) -> Result<()> {
        let began = Instant::now();
        let mut engine = self.model.inner.engine.lock();
        let active = self.traces.iter().filter(|trace| !trace.is_over).count();
        // the rows of many traces keep the cores busy: a draft, which may be wrong, would not be free there
        let rows = if active >= 4 { 1 } else { engine.max_logit_rows() / active.max(1) };
        let mut ready: Vec<&mut Trace> =
            self.traces.iter_mut().filter_map(|trace| trace.prepare(rows).then_some(trace)).collect();
        let counts: Vec<usize> = ready.iter().map(|trace| trace.logit_rows()).collect();
        let mut feeds: Vec<Feed<'_>> = ready.iter_mut().map(|trace| trace.feed()).collect();
        if feeds.is_empty() {
            return Ok(());
        }
        let mut logits = engine.step(&mut feeds)?;
        let vocabulary = logits.len() / counts.iter().sum::<usize>();
        for (trace, rows) in ready.iter_mut().zip(counts) {
            let (own, others) = logits.split_at_mut(rows * vocabulary);
            trace.take(own);
            logits = others;
        }
        let seconds = began.elapsed().as_secs_f64();
        ready.iter_mut().for_each(|trace| trace.stats.seconds.decode += seconds);
        self.seconds += seconds;
        Ok(())
    }

    /// Passes the traces' events on, and ends the vote when it is decided.
    fn collect(&mut self) {
        for (sequence, trace) in self.traces.iter_mut().enumerate() {
            for event in trace.events.drain(..) {
                if let Event::Done(stats) = &event
                    && stats.finish != Finish::Interrupted
                {
                    self.answers[sequence] = final_answer(&stats.answer);
                }
                self.events.push_back(VoteEvent::Trace { sequence, event });
            }
        }
        if self.is_decided() {
            self.end();
        }
    }

    fn is_decided(&self) -> bool {
        let open = self.traces.iter().filter(|trace| !trace.is_over).count();
        if open == 0 {
            return true;
        }
        let (Some(enough), Some((counts, _))) = (self.options.until_agree, tally(&self.answers)) else {
            return false;
        };
        let second = counts.get(1).map_or(0, |count| count.count);
        // an answer that nobody marked may be overruled by one that is
        self.answers.iter().flatten().any(|answer| answer.is_marked)
            && (counts[0].count >= enough || counts[0].count > second + open)
    }

    fn end(&mut self) {
        self.is_over = true;
        for (sequence, trace) in self.traces.iter_mut().enumerate() {
            if !trace.is_over {
                trace.end(Finish::Interrupted);
            }
            self.events.extend(trace.events.drain(..).map(|event| VoteEvent::Trace { sequence, event }));
        }
        let traces: Vec<Stats> = self.stats().collect();
        let tally = tally(&self.answers);
        let all = (0..traces.len()).collect();
        let agreeing = tally.as_ref().map_or(&all, |(_, agreeing)| agreeing);
        // a trace that was broken off is shown only if there is no other
        let length = |&i: &usize| (traces[i].finish == Finish::Interrupted, traces[i].tokens.len());
        let shown = agreeing.iter().copied().min_by_key(length).unwrap_or(0);
        let outcome = Outcome {
            tally: tally.map(|(counts, _)| counts),
            answers: std::mem::take(&mut self.answers),
            shown,
            seconds: self.seconds,
            traces,
        };
        self.events.push_back(VoteEvent::Done(Box::new(outcome)));
    }
}

impl Iterator for Votes {
    type Item = Result<VoteEvent>;

    fn next(&mut self) -> Option<Result<VoteEvent>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(Ok(event));
            }
            if self.is_over {
                return None;
            }
            if self.cancel.is_cancelled() {
                self.end();
            } else if let Err(error) = self.step() {
                self.is_over = true;
                self.events.clear();
                return Some(Err(error));
            }
        }
    }
}
