//! A generation: an owned iterator of events.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::stream::Channel;
use super::{Model, Options};
use crate::Result;
use crate::engine::lookup::Lookup;
use crate::engine::sampling::{Sampler, Sampling};
use crate::engine::{Engine, Feed, Sequence, Wants};
use crate::reasoning::control::{Act, Control, ControlEvent, Decision, Position};
use crate::reasoning::guard::LoopGuard;
use crate::reasoning::{Part, Piece, ThoughtParser};

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
}

impl Stats {
    /// Speed of reading the prompt, tokens a second (those that were not in the cache).
    pub fn prefill_tokens_per_second(&self) -> f64 {
        rate(self.prompt_tokens - self.cached_tokens, self.seconds.prefill)
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
pub(super) struct Start {
    pub prompt: Vec<u32>,
    pub parser: ThoughtParser,
    /// Whether the answer is given as it is, not trimmed.
    pub verbatim: bool,
    pub sampling: Sampling,
    pub seed: u64,
    /// Number of the sequence among those of the seed.
    pub sequence: u64,
    pub slot: Slot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Prefill,
    Decode,
    Over,
}

/// A running generation: owned, `Send`, and stopped by dropping it.
pub struct Generation {
    model: Model,
    sequence: Sequence,
    slot: Slot,
    cancel: CancelHandle,
    hook: Option<super::LogitsHook>,
    sampler: Sampler,
    /// None for raw prompts.
    control: Option<Control>,
    /// Watches the part that is being written.
    guard: Option<(Part, LoopGuard)>,
    forced: VecDeque<u32>, // tokens that are written next, whatever their logits
    parser: ThoughtParser,
    thought: Channel,
    answer: Channel,
    events: VecDeque<Event>,
    pieces: Vec<Piece>,
    phase: Phase,
    history: Vec<u32>, // prompt and generated tokens
    lookup: Option<Lookup>,
    draft: Vec<u32>, // reused
    limit: usize,    // of generated tokens
    thought_began: Option<f64>,
    stats: Stats,
}

impl Generation {
    pub(super) fn new(model: Model, start: Start, options: &Options) -> Generation {
        let mut sequence = lock(&start.slot).take().unwrap_or_default();
        // at least one token must be fed to have logits
        let keep = sequence.common_prefix(&start.prompt[..start.prompt.len() - 1]);
        sequence.truncate(keep);
        let context = model.context();
        let stats = Stats {
            seed: start.seed,
            sampling: start.sampling,
            context,
            prompt_tokens: start.prompt.len(),
            cached_tokens: keep,
            thought: String::new(),
            answer: String::new(),
            tokens: Vec::new(),
            thought_tokens: 0,
            answer_tokens: 0,
            finish: Finish::Interrupted,
            thought_end: None,
            control: Vec::new(),
            seconds: Seconds { load: model.load_seconds(), ..Seconds::default() },
        };
        let room = context - start.prompt.len();
        let limit = options.max_tokens.map_or(room, |max| max.min(room));
        let limit_is = if limit < room { Act::Length } else { Act::Context };
        let control = (!start.verbatim)
            .then(|| Control::new(options.thought, model.inner.control_tokens.clone(), limit, limit_is));
        Generation {
            sequence,
            slot: start.slot,
            cancel: options.cancel.clone().unwrap_or_default(),
            hook: options.logits_hook.clone(),
            sampler: Sampler::new(start.sampling, start.seed, start.sequence),
            guard: (control.is_some() && options.loop_guard)
                .then(|| (start.parser.part(), LoopGuard::default())),
            control,
            forced: VecDeque::new(),
            parser: start.parser,
            thought: Channel::new(false, vec![]),
            answer: Channel::new(start.verbatim, options.stop.clone()),
            events: VecDeque::new(),
            pieces: Vec::new(),
            phase: Phase::Prefill,
            history: start.prompt,
            lookup: options.speculate.then(Lookup::default),
            draft: Vec::new(),
            limit,
            thought_began: None,
            stats,
            model,
        }
    }

    /// A handle that cancels this generation.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// What it has come to so far.
    pub fn stats(&self) -> Stats {
        let mut stats = self.stats.clone();
        stats.thought = self.thought.text().to_owned();
        stats.answer = self.answer.text().to_owned();
        stats.thought_tokens = self.parser.thought_tokens();
        stats.answer_tokens = self.parser.answer_tokens();
        stats.control = self.control.as_ref().map_or(Vec::new(), |c| c.events().to_vec());
        stats
    }

    fn prefill(&mut self) -> Result<()> {
        let began = Instant::now();
        let model = self.model.clone();
        let mut engine = lock(&model.inner.engine);
        let done = self.sequence.len();
        let total = self.history.len();
        let end = total.min(done + engine.max_rows());
        if end < total {
            let tokens = &self.history[done..end];
            engine.step(&mut [Feed { sequence: &mut self.sequence, tokens, wants: Wants::Nothing }])?;
        } else if self.limit == 0 {
            self.end(Finish::Length);
        } else {
            self.advance(&mut engine, done)?;
            self.phase = Phase::Decode;
        }
        self.stats.seconds.prefill += began.elapsed().as_secs_f64();
        self.events.push_front(Event::Prefill { done: end, total });
        Ok(())
    }

    fn decode(&mut self) -> Result<()> {
        if self.stats.tokens.len() >= self.limit {
            self.end(Finish::Length);
            return Ok(());
        }
        let began = Instant::now();
        let model = self.model.clone();
        let mut engine = lock(&model.inner.engine);
        // a draft must leave room for the token that is chosen after it
        let most = (self.limit - self.stats.tokens.len() - 1).min(engine.max_logit_rows() - 1);
        self.draft.clear();
        self.draft.push(self.history[self.history.len() - 1]);
        if !self.forced.is_empty() {
            self.draft.extend(self.forced.iter().take(most));
            self.verify(&mut engine)?;
        } else if let Some(lookup) = &mut self.lookup {
            let draft = lookup.draft(&self.history, most);
            self.draft.extend_from_slice(&self.history[draft]);
            let right = self.verify(&mut engine)?;
            if let Some(lookup) = self.lookup.as_mut().filter(|_| self.draft.len() > 1) {
                lookup.report(self.draft.len() - 1, right);
            }
        } else {
            self.advance(&mut engine, self.history.len() - 1)?;
        }
        drop(engine);
        self.stats.seconds.decode += began.elapsed().as_secs_f64();
        Ok(())
    }

    /// Feeds the history from position `from` and takes the next token.
    fn advance(&mut self, engine: &mut Engine, from: usize) -> Result<()> {
        let tokens = &self.history[from..];
        let logits = engine.step(&mut [Feed { sequence: &mut self.sequence, tokens, wants: Wants::Last }])?;
        self.choose(logits);
        Ok(())
    }

    /// Feeds the draft: the last token and perhaps some of those after it. Takes as many tokens as it has right, which
    /// is returned, and one more.
    fn verify(&mut self, engine: &mut Engine) -> Result<usize> {
        let known = self.history.len();
        let drafted = self.draft.len() - 1;
        let feed = Feed { sequence: &mut self.sequence, tokens: &self.draft, wants: Wants::All };
        let logits = engine.step(&mut [feed])?;
        let vocabulary = logits.len() / (drafted + 1);
        let mut right = 0;
        for row in logits.chunks_mut(vocabulary) {
            let token = self.choose(row);
            if self.phase == Phase::Over || self.draft.get(right + 1) != Some(&token) {
                break;
            }
            right += 1;
        }
        self.sequence.truncate(known + right);
        Ok(right)
    }

    /// Chooses the next token: the one that is due, or one by its logits.
    fn choose(&mut self, logits: &mut [f32]) -> u32 {
        let token = match self.forced.pop_front() {
            Some(token) => token,
            None => self.draw(logits),
        };
        self.history.push(token);
        self.stats.tokens.push(token);
        self.take(token);
        token
    }

    /// Draws a token, within what the control allows.
    fn draw(&mut self, logits: &mut [f32]) -> u32 {
        if let Some(hook) = &self.hook {
            hook(&self.stats.tokens, logits);
        }
        let index = self.stats.tokens.len();
        let position = self.standing();
        let Some(control) = &mut self.control else {
            return self.sampler.sample(logits, &self.history, index as u64);
        };
        let acts = control.events().len();
        let decision = control.before(&position, logits);
        if decision == Decision::DrawVisible {
            self.model.blank_tokens().iter().for_each(|&id| logits[id as usize] = f32::NEG_INFINITY);
        }
        let token = match decision {
            Decision::Write(tokens) => self.force(tokens),
            Decision::Draw | Decision::DrawVisible => {
                let token = self.sampler.sample(logits, &self.history, index as u64);
                match control.instead(&position, token) {
                    Some(tokens) => self.force(tokens),
                    None => token,
                }
            }
        };
        let acts = self.control.iter().flat_map(|c| &c.events()[acts..]);
        self.events.extend(acts.map(|&event| Event::Control(event)));
        token
    }

    /// The first of some tokens; the others are due next.
    fn force(&mut self, tokens: Vec<u32>) -> u32 {
        let mut tokens = tokens.into_iter();
        let first = tokens.next().expect("there is always an end marker or a word");
        self.forced.extend(tokens);
        first
    }

    /// Where the trace stands before its next token.
    fn standing(&self) -> Position {
        let last = self.stats.tokens.last().map_or(&b"\n"[..], |&id| self.model.tokenizer().bytes(id));
        Position {
            part: self.parser.part(),
            has_thought: self.parser.has_thought(),
            thought_tokens: self.parser.thought_tokens(),
            answer_tokens: self.parser.answer_tokens(),
            answer_visible: self.parser.answer_visible(),
            written: self.stats.tokens.len(),
            thought_time: Duration::from_secs_f64(
                self.seconds() - self.thought_began.unwrap_or(self.seconds()),
            ),
            sentence_end: ends_sentence(last),
        }
    }

    /// What a token means for thought and answer.
    fn take(&mut self, token: u32) {
        let model = self.model.clone();
        let tokenizer = model.tokenizer();
        if tokenizer.ends().contains(&token) {
            self.end(Finish::Stop);
        } else if !tokenizer.is_control(token) || model.inner.control_tokens.markers.contains(&Some(token)) {
            self.parser.push(tokenizer.bytes(token), &mut self.pieces);
            if self.parser.part() == Part::Thought {
                self.thought_began.get_or_insert(self.seconds());
            }
            if self.deliver() {
                self.end(Finish::Stop);
            } else if self.repeats(token) {
                self.end(Finish::Loop);
            }
        }
    }

    /// Shows a token to the loop guard. Sees to a thought that is a loop; true for an answer that is one.
    fn repeats(&mut self, token: u32) -> bool {
        let part = self.parser.part();
        let (Some((watched, guard)), Some(control)) = (&mut self.guard, &mut self.control) else {
            return false;
        };
        if *watched != part {
            (*watched, *guard) = (part, LoopGuard::default());
        }
        if !guard.push(self.model.tokenizer().bytes(token)) || !self.forced.is_empty() {
            return false;
        }
        if part == Part::Answer {
            return true;
        }
        self.forced.extend(control.looped(self.stats.tokens.len()));
        self.events.extend(control.events().last().map(|&event| Event::Control(event)));
        false
    }

    fn seconds(&self) -> f64 {
        self.stats.seconds.prefill + self.stats.seconds.decode
    }

    /// Turns the parser's pieces into events; true if a stop string ended the answer.
    fn deliver(&mut self) -> bool {
        let mut pieces = std::mem::take(&mut self.pieces);
        let mut stopped = false;
        for piece in pieces.drain(..) {
            match piece {
                Piece::Text(Part::Thought, bytes) => {
                    let (text, _) = self.thought.push(&bytes);
                    self.event(Part::Thought, text);
                }
                Piece::Text(Part::Answer, bytes) if !stopped => {
                    let (text, end) = self.answer.push(&bytes);
                    self.event(Part::Answer, text);
                    stopped = end;
                }
                Piece::Text(Part::Answer, _) => {}
                Piece::Closed => {
                    let rest = self.thought.finish();
                    self.event(Part::Thought, rest);
                    self.thought_done();
                }
                Piece::WasThought => {
                    let text = self.answer.take();
                    self.thought.append(&text);
                    self.thought_done();
                }
            }
        }
        self.pieces = pieces;
        stopped
    }

    fn thought_done(&mut self) {
        let last = self
            .control
            .as_ref()
            .and_then(|c| c.events().iter().rfind(|e| !matches!(e.what, Act::Wait | Act::Repeating)));
        self.stats.thought_end = Some(match last.map(|e| e.what) {
            Some(Act::Budget) => ThoughtEnd::Budget,
            Some(Act::Time) => ThoughtEnd::Time,
            Some(Act::Length) => ThoughtEnd::Length,
            Some(Act::Context) => ThoughtEnd::Context,
            Some(Act::Guard) => ThoughtEnd::Guard,
            _ => ThoughtEnd::Natural,
        });
        let seconds = self.seconds() - self.thought_began.take().unwrap_or_default();
        self.events.push_back(Event::ThoughtDone { tokens: self.parser.thought_tokens(), seconds });
    }

    fn event(&mut self, part: Part, text: String) {
        if !text.is_empty() {
            self.events.push_back(match part {
                Part::Thought => Event::Thought(text),
                Part::Answer => Event::Answer(text),
            });
        }
    }

    /// Gives out what was held back, and the end.
    fn end(&mut self, finish: Finish) {
        self.stats.finish = finish;
        self.parser.finish(&mut self.pieces);
        self.deliver();
        let thinking = self.parser.part() == Part::Thought;
        let (thought, answer) = (self.thought.finish(), self.answer.finish());
        self.event(Part::Thought, thought);
        self.event(Part::Answer, answer);
        if thinking && !self.stats.tokens.is_empty() {
            self.stats.thought_end = Some(match finish {
                Finish::Stop | Finish::Loop => ThoughtEnd::Natural,
                Finish::Length if self.history.len() < self.stats.context => ThoughtEnd::Length,
                Finish::Length => ThoughtEnd::Context,
                Finish::Interrupted => ThoughtEnd::User,
            });
        }
        self.phase = Phase::Over;
        self.stats = self.stats();
        self.events.push_back(Event::Done(Box::new(self.stats.clone())));
    }
}

impl Iterator for Generation {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Result<Event>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(Ok(event));
            }
            if self.phase != Phase::Over && self.cancel.is_cancelled() {
                self.end(Finish::Interrupted);
                continue;
            }
            let result = match self.phase {
                Phase::Prefill => self.prefill(),
                Phase::Decode => self.decode(),
                Phase::Over => return None,
            };
            if let Err(error) = result {
                self.phase = Phase::Over;
                self.events.clear();
                return Some(Err(error));
            }
        }
    }
}

impl Drop for Generation {
    /// Leaves the sequence for the next generation that shares a prefix.
    fn drop(&mut self) {
        *lock(&self.slot) = Some(std::mem::take(&mut self.sequence));
    }
}

/// Whether bytes end a sentence or a line.
fn ends_sentence(bytes: &[u8]) -> bool {
    let text = bytes.trim_ascii_end();
    text.len() < bytes.len() && bytes[text.len()..].contains(&b'\n')
        || text.ends_with(b".")
        || text.ends_with(b"!")
        || text.ends_with(b"?")
        || text.ends_with("。".as_bytes())
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
