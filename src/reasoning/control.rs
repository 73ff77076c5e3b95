//! What keeps a thought within its bounds, and makes an answer follow it.
//!
//! Before each token the control sees where the trace stands. It edits logits (the soft end of a budget; no end of text
//! and no marker where an answer is due), or has tokens written that nobody drew: a closing sentence and the end marker
//! (the hard end), or "Wait," in place of the end marker (budget forcing, Muennighoff et al. 2025, "s1: Simple
//! test-time scaling").

use std::time::Duration;

use super::Part;

/// The sentence that ends a thought whose bounds are reached.
pub const CLOSING: &str = "\n\nMy time is up; I answer now.\n";
/// What a thought that repeats itself is told, once.
pub const REPEATING: &str =
    "\n\nI am repeating myself; I should look at it another way, or come to an end.\n";
/// What is written in place of an end marker that comes too early.
pub const WAIT: &str = "Wait,";

/// From this share of the budget on the end of the thought is favoured.
const SOFT: f64 = 0.8;
/// What is added to the logit of the end marker at the end of a sentence, at the end of the budget; it grows from 0.
const FAVOUR: f32 = 20.0;
/// Most tokens that are kept for the answer.
const MOST_RESERVED: usize = 512;
/// Tokens that an answer must have room for.
const LEAST_RESERVED: usize = 16;
/// Blank tokens that may stand before an answer's first visible one.
const BLANKS: usize = 8;

/// Bounds on a thought, as asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThoughtBounds {
    /// Most tokens of the thought, the closing sentence included where it fits.
    pub budget: Option<usize>,
    /// Tokens before which it is not let end; every upper bound goes before it.
    pub min: Option<usize>,
    /// Longest time of the thought.
    pub time: Option<Duration>,
}

/// What the control did, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Act {
    /// Closed the thought: its budget was spent.
    Budget,
    /// Closed the thought: its time was up.
    Time,
    /// Closed the thought: the bound on tokens was near.
    Length,
    /// Closed the thought: the end of the context was near.
    Context,
    /// Closed the thought: the model ended the text within it.
    EndOfText,
    /// Wrote "Wait," in place of the end of the thought.
    Wait,
    /// Told a thought that it repeats itself.
    Repeating,
    /// Closed the thought: it went on repeating itself.
    Guard,
    /// Closed the thought: the user wanted the answer.
    User,
    /// Wrote what the user made of the thought.
    Edit,
}

/// An act of the control, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ControlEvent {
    /// Index of the generated token at which it began.
    pub at: usize,
    /// What was done.
    pub what: Act,
}

/// Tokens of a vocabulary that the control needs to know.
#[derive(Clone, Debug, Default)]
pub struct ControlTokens {
    /// [`CLOSING`].
    pub sentence: Vec<u32>,
    /// A line end.
    pub line_end: Vec<u32>,
    /// The end marker and what stands behind it, such as a blank line.
    pub end: Vec<u32>,
    /// [`WAIT`].
    pub wait: Vec<u32>,
    /// [`REPEATING`].
    pub repeating: Vec<u32>,
    /// What the markers are, or begin with, where those are tokens: start, end.
    pub markers: [Option<u32>; 2],
    /// Other tokens that markers are made of.
    pub headers: Vec<u32>,
    /// What ends a text.
    pub ends: Vec<u32>,
}

impl ControlTokens {
    /// Whether it is a marker or a part of one.
    pub fn is_marker(&self, token: u32) -> bool {
        self.markers.contains(&Some(token)) || self.headers.contains(&token)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = u32> {
        let ControlTokens { sentence, line_end, end, wait, repeating, markers, headers, ends } = self;
        let lists = [ends, headers, sentence, line_end, end, wait, repeating];
        markers.iter().flatten().chain(lists.into_iter().flatten()).copied()
    }

    /// The smallest bound on generated tokens that leaves room for an answer.
    pub fn least_limit(&self) -> usize {
        self.line_end.len() + self.end.len() + LEAST_RESERVED
    }
}

/// Where a trace stands before its next token.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    /// What the next token belongs to.
    pub part: Part,
    /// Whether it stands between two messages, where it is not visible.
    pub in_header: bool,
    /// Whether there was a thought, closed or not, or it is certain that none comes.
    pub has_thought: bool,
    /// Tokens of the thought so far.
    pub thought_tokens: usize,
    /// Tokens of the answer so far.
    pub answer_tokens: usize,
    /// Whether something of the answer can be seen.
    pub answer_visible: bool,
    /// Tokens generated so far.
    pub written: usize,
    /// How long the thought took so far.
    pub thought_time: Duration,
    /// Whether the last token ended a sentence or a line.
    pub sentence_end: bool,
}

/// What is to be done about the next token.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// It is drawn.
    Draw,
    /// It is drawn among those that can be seen.
    DrawVisible,
    /// These are written.
    Write(Vec<u32>),
}

/// Keeps one trace within its bounds.
#[derive(Clone, Debug)]
pub struct Control {
    bounds: ThoughtBounds,
    tokens: ControlTokens,
    /// Generated tokens that thought and end marker may take, and what else is the reason to close.
    room: usize,
    room_is: Act,
    events: Vec<ControlEvent>,
    /// In a repetition: what the clock and the user did, and where.
    recorded: Option<Vec<ControlEvent>>,
    /// The user wants the answer, and the thought is not closed yet.
    wants_answer: bool,
}

impl Control {
    /// A control for at most `limit` generated tokens; `limit_is` says of what: [`Act::Length`] or [`Act::Context`].
    pub fn new(bounds: ThoughtBounds, tokens: ControlTokens, limit: usize, limit_is: Act) -> Self {
        let reserved = (limit / 4).clamp(LEAST_RESERVED, MOST_RESERVED);
        Control {
            bounds,
            tokens,
            room: limit.saturating_sub(reserved),
            room_is: limit_is,
            events: Vec::new(),
            recorded: None,
            wants_answer: false,
        }
    }

    /// Makes it repeat a recorded one: time is up where it was then, whatever the clock says, and so with the user.
    pub fn repeat(&mut self, limit: (usize, Act), events: &[ControlEvent]) {
        let Control { bounds, tokens, .. } = self.clone();
        *self = Control { recorded: Some(events.to_vec()), ..Control::new(bounds, tokens, limit.0, limit.1) };
    }

    /// Closes the thought before the next token that is not due yet, because the user wants the answer.
    pub fn answer_now(&mut self) {
        self.wants_answer = true;
    }

    /// Notes that the thought goes on from token `at` as the user wrote it; what was done later is forgotten.
    pub fn edited(&mut self, at: usize) {
        self.wants_answer = false;
        self.events.retain(|event| event.at < at);
        self.events.push(ControlEvent { at, what: Act::Edit });
    }

    /// Goes back to these acts.
    pub fn restore(&mut self, events: Vec<ControlEvent>) {
        self.events = events;
    }

    /// What it did, in order.
    pub fn events(&self) -> &[ControlEvent] {
        &self.events
    }

    /// Decides on the next token and edits its logits `[vocabulary]`.
    pub fn before(&mut self, p: &Position, logits: &mut [f32]) -> Decision {
        match p.part {
            Part::Thought => match self.must_close(p) {
                Some(why) => Decision::Write(self.close(p, why)),
                None => {
                    self.favour_end(p, logits);
                    Decision::Draw
                }
            },
            Part::Answer => {
                if p.has_thought {
                    let ControlTokens { markers, headers, .. } = &self.tokens;
                    markers.iter().flatten().chain(headers).for_each(|&id| forbid(logits, id));
                }
                if p.answer_visible {
                    return Decision::Draw;
                }
                if !p.has_thought && !self.has_room_to_think(p) {
                    self.tokens.markers[0].iter().for_each(|&id| forbid(logits, id));
                }
                self.tokens.ends.iter().for_each(|&id| forbid(logits, id));
                if p.answer_tokens < BLANKS { Decision::Draw } else { Decision::DrawVisible }
            }
        }
    }

    /// What is written in place of a token that was drawn.
    pub fn instead(&mut self, p: &Position, token: u32) -> Option<Vec<u32>> {
        if p.part != Part::Thought {
            return None;
        }
        let ends_text = self.tokens.ends.contains(&token);
        let ends_thought = self.tokens.markers[1] == Some(token);
        let goes_on = self.too_early(p) && !p.in_header && self.has_room(p, self.tokens.wait.len());
        if (ends_text || ends_thought) && goes_on {
            self.events.push(ControlEvent { at: p.written, what: Act::Wait });
            return Some(self.tokens.wait.clone());
        }
        ends_text.then(|| self.close(p, Act::EndOfText))
    }

    /// What a thought is told, or ended with, that was found to repeat itself.
    pub fn looped(&mut self, p: &Position) -> Vec<u32> {
        let told = self.events.iter().any(|event| event.what == Act::Repeating);
        if told || !self.has_room(p, self.tokens.repeating.len()) {
            return self.close(p, Act::Guard);
        }
        self.events.push(ControlEvent { at: p.written, what: Act::Repeating });
        self.tokens.repeating.clone()
    }

    /// Whether so many tokens can be written and the thought still be closed within its bounds.
    fn has_room(&self, p: &Position, tokens: usize) -> bool {
        let ControlTokens { line_end, end, .. } = &self.tokens;
        p.written + tokens + line_end.len() + end.len() < self.room
            && self.bounds.budget.is_none_or(|budget| p.thought_tokens + tokens + line_end.len() <= budget)
    }

    /// Whether a thought could be opened here and closed at once. On channels an answer is opened like a thought.
    fn has_room_to_think(&self, p: &Position) -> bool {
        let ControlTokens { line_end, end, headers, .. } = &self.tokens;
        !headers.is_empty() || p.written + 1 + line_end.len() + end.len() <= self.room
    }

    fn too_early(&self, p: &Position) -> bool {
        self.bounds.min.is_some_and(|min| p.thought_tokens < min)
    }

    /// Why the thought must be closed here.
    fn must_close(&self, p: &Position) -> Option<Act> {
        let ThoughtBounds { budget, time, .. } = self.bounds;
        if p.written + self.words(p, self.room_is).len() + self.tokens.end.len() >= self.room {
            Some(self.room_is)
        } else if p.in_header {
            None // the model itself has just ended a message
        } else if budget.is_some_and(|b| p.thought_tokens + self.words(p, Act::Budget).len() >= b) {
            Some(Act::Budget)
        } else {
            match &self.recorded {
                Some(recorded) => {
                    let here =
                        |e: &&ControlEvent| e.at == p.written && matches!(e.what, Act::Time | Act::User);
                    recorded.iter().find(here).map(|event| event.what)
                }
                None if self.wants_answer => Some(Act::User),
                None => time.filter(|&time| p.thought_time >= time).map(|_| Act::Time),
            }
        }
    }

    /// What stands before the end marker: the sentence, where there is room for it.
    fn words(&self, p: &Position, why: Act) -> &[u32] {
        let ControlTokens { sentence, line_end, end, .. } = &self.tokens;
        let in_budget = |budget| sentence.len() < budget && p.thought_tokens + sentence.len() <= budget;
        let fits =
            self.bounds.budget.is_none_or(in_budget) && p.written + sentence.len() + end.len() <= self.room;
        if fits && why != Act::EndOfText { sentence } else { line_end }
    }

    fn close(&mut self, p: &Position, what: Act) -> Vec<u32> {
        self.wants_answer = false;
        self.events.push(ControlEvent { at: p.written, what });
        [self.words(p, what), &self.tokens.end].concat()
    }

    /// The soft end: at the end of a sentence the end marker gains, the more the nearer the budget.
    fn favour_end(&self, p: &Position, logits: &mut [f32]) {
        let (Some(budget), Some(end)) = (self.bounds.budget, self.tokens.markers[1]) else { return };
        let over = p.thought_tokens as f64 / budget as f64 - SOFT;
        if over >= 0.0 && p.sentence_end && !p.in_header && !self.too_early(p) {
            logits[end as usize] += FAVOUR * (over / (1.0 - SOFT)) as f32;
        }
    }
}

fn forbid(logits: &mut [f32], id: u32) {
    if let Some(logit) = logits.get_mut(id as usize) {
        *logit = f32::NEG_INFINITY;
    }
}

#[cfg(test)]
mod tests;
