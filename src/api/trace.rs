//! One sequence on its way from a prompt to an answer: what is fed next, and what becomes of the logits.

use std::collections::VecDeque;
use std::time::Duration;

use super::events::{Event, Finish, Seconds, Stats, ThoughtEnd};
use super::record::{Opening, Record, digest, digests};
use super::start::Start;
use super::stream::Channel;
use super::{LogitsHook, Model, Options};
use crate::Error;
use crate::engine::lookup::Lookup;
use crate::engine::sampling::Sampler;
use crate::engine::{Feed, Sequence, Wants};
use crate::reasoning::control::{Act, Control, ControlEvent, Decision, Position};
use crate::reasoning::guard::LoopGuard;
use crate::reasoning::{Part, Piece, ThoughtParser};
use crate::text::Special;

/// What a generation came to before it began.
fn begun(model: &Model, start: &Start, cached_tokens: usize) -> Stats {
    Stats {
        seed: start.seed,
        sampling: start.sampling,
        context: model.context(),
        prompt_tokens: start.prompt.len(),
        cached_tokens,
        read_tokens: 0,
        thought: String::new(),
        answer: String::new(),
        tokens: Vec::new(),
        thought_tokens: 0,
        answer_tokens: 0,
        finish: Finish::Interrupted,
        thought_end: None,
        control: Vec::new(),
        seconds: Seconds { load: model.load_seconds(), ..Seconds::default() },
        record: None,
    }
}

/// A sequence with all that decides on its tokens. Who drives it feeds what [`prepare`](Self::prepare) asks for and
/// gives the logits to [`take`](Self::take).
pub(super) struct Trace {
    pub model: Model,
    pub sequence: Sequence,
    pub events: VecDeque<Event>,
    pub is_over: bool,
    pub stats: Stats,
    history: Vec<u32>,                  // prompt and generated tokens
    draft: Vec<u32>,                    // what is fed next: the last token and a draft of those after it
    limit: usize,                       // of generated tokens
    edits: VecDeque<(usize, Vec<u32>)>, // what the user wrote, and where, when a receipt is checked
    opening: ThoughtParser,
    script: Option<Vec<u32>>, // what is expected, when a receipt is checked
    record: Option<Record>,
    digests: VecDeque<u64>, // of the next rows of logits, where they were made together
    hook: Option<LogitsHook>,
    sampler: Sampler,
    /// None for raw prompts.
    control: Option<Control>,
    /// Watches the part that is being written.
    guard: Option<(Part, LoopGuard)>,
    forced: VecDeque<u32>, // tokens that are written next, whatever their logits
    lookup: Option<Lookup>,
    parser: ThoughtParser,
    pieces: Vec<Piece>,
    thought: Channel,
    answer: Channel,
    thought_began: Option<f64>,
}

impl Trace {
    /// A trace from `start`; `sequence` holds some of its prompt already.
    pub fn new(model: Model, start: Start, options: &Options, sequence: Sequence) -> Trace {
        let stats = begun(&model, &start, sequence.len());
        let room = model.context() - start.prompt.len();
        let limit = options.max_tokens.map_or(room, |max| max.min(room));
        let limit_is = if limit < room { Act::Length } else { Act::Context };
        let is_raw = start.opening == Opening::Raw;
        let control = (!is_raw)
            .then(|| Control::new(options.thought, model.inner.control_tokens.clone(), limit, limit_is));
        let record = options.record.then(|| Record {
            prompt: start.prompt.clone(),
            opening: start.opening,
            sequence: start.sequence,
            bounds: options.thought,
            loop_guard: options.loop_guard,
            limit,
            limit_is,
            stop: options.stop.clone(),
            hooked: options.logits_hook.is_some(),
            digests: Vec::new(),
            by: Vec::new(),
        });
        let guarded = control.is_some() && options.loop_guard;
        Trace {
            sequence,
            events: VecDeque::new(),
            is_over: false,
            stats,
            history: start.prompt,
            draft: Vec::new(),
            edits: VecDeque::new(),
            opening: start.parser.clone(),
            digests: VecDeque::new(),
            script: None,
            record,
            limit,
            hook: options.logits_hook.clone(),
            sampler: Sampler::new(start.sampling, start.seed, start.sequence),
            control,
            guard: guarded.then(|| (start.parser.part(), LoopGuard::default())),
            forced: VecDeque::new(),
            // where logits depend on the batch, what is to be repeated must not depend on drafts
            lookup: (options.speculate && (model.inner.is_exact() || !options.record)).then(Lookup::default),
            parser: start.parser,
            pieces: Vec::new(),
            thought: Channel::new(false, vec![]),
            answer: Channel::new(is_raw, options.stop.clone()),
            thought_began: None,
            model,
        }
    }

    /// What it has come to so far.
    pub fn stats(&self) -> Stats {
        let mut stats = self.stats.clone();
        stats.read_tokens = self.sequence.len().min(stats.prompt_tokens).saturating_sub(stats.cached_tokens);
        stats.thought = self.thought.text().to_owned();
        stats.answer = self.answer.text().to_owned();
        stats.thought_tokens = self.parser.thought_tokens();
        stats.answer_tokens = self.parser.answer_tokens();
        stats.record = self.record.clone().map(Box::new);
        stats.control = self.control.as_ref().map_or(Vec::new(), |c| c.events().to_vec());
        stats
    }

    /// Makes it the repetition of a recorded one: its limit, what its control did by the clock or the user, what the user
    /// wrote and where, and the tokens that are expected, which are then fed many in a step.
    pub fn repeat(
        &mut self,
        limit: (usize, Act),
        events: &[ControlEvent],
        edits: VecDeque<(usize, Vec<u32>)>,
        script: Option<Vec<u32>>,
    ) {
        self.limit = limit.0;
        self.edits = edits;
        self.script = script;
        if let Some(control) = &mut self.control {
            control.repeat(limit, events);
        }
    }

    /// Whether another token was chosen than the one that was expected.
    pub fn left_script(&self) -> bool {
        let (script, tokens) = (self.script.as_deref(), &self.stats.tokens);
        script.is_some_and(|script| !tokens.is_empty() && script.get(tokens.len() - 1) != tokens.last())
    }

    /// Whether it is in the middle of a thought that can be steered.
    pub fn is_thinking(&self) -> bool {
        !self.is_over
            && self.control.is_some()
            && self.parser.part() == Part::Thought
            && !self.stats.tokens.is_empty()
    }

    /// Closes the thought once the tokens that are due are written: the answer comes next. Does nothing outside a
    /// thought.
    pub fn answer_now(&mut self) {
        if let Some(control) = self.control.as_mut().filter(|_| self.parser.part() == Part::Thought) {
            control.answer_now();
        }
    }

    /// The thought so far.
    pub fn thought(&self) -> &str {
        self.thought.text()
    }

    pub fn answer(&self) -> &str {
        self.answer.text()
    }

    /// Goes on from `text` as if it were the thought so far. Tokens, keys and values are kept up to the first change;
    /// false, and nothing happens, outside a thought.
    ///
    /// # Errors
    /// A text that cannot be encoded, or leaves no room for an answer; nothing happens then.
    pub fn set_thought(&mut self, text: &str) -> crate::Result<bool> {
        if !self.is_thinking() {
            return Ok(false);
        }
        if text == self.thought.text() {
            return Ok(true); // white space that is held back stays
        }
        let model = self.model.clone();
        let tokenizer = model.tokenizer();
        let text = self.before_thought() + text;
        let (mut keep, mut bytes) = (0, 0);
        for &id in &self.stats.tokens {
            if !text.as_bytes()[bytes..].starts_with(tokenizer.bytes(id)) {
                break;
            }
            keep += 1;
            bytes += tokenizer.bytes(id).len();
        }
        while !text.is_char_boundary(bytes) {
            keep -= 1;
            bytes -= tokenizer.bytes(self.stats.tokens[keep]).len();
        }
        if bytes == text.len() && keep == self.stats.tokens.len() {
            return Ok(true);
        }
        let rest = tokenizer.encode(&text[bytes..], Special::Text)?;
        let most = self.limit.saturating_sub(model.inner.control_tokens.least_limit());
        if keep + rest.len() > most {
            return Err(Error::Usage(format!(
                "a thought of {} tokens leaves no room for an answer: shorten it to {most}",
                keep + rest.len()
            )));
        }
        self.go_back(keep);
        if let Some(control) = &mut self.control {
            control.edited(keep);
            self.events.extend(control.events().last().map(|&event| Event::Control(event)));
        }
        self.forced.extend(rest);
        Ok(true)
    }

    /// What stands before the thought's first visible character: a marker, white space.
    fn before_thought(&self) -> String {
        let (mut parser, mut pieces, mut written) = (self.opening.clone(), Vec::new(), Vec::new());
        for &token in &self.stats.tokens {
            let bytes = self.model.tokenizer().bytes(token);
            written.extend_from_slice(bytes);
            if self.is_text(token) {
                parser.push(bytes, &mut pieces);
            }
            for piece in pieces.drain(..) {
                if let Piece::Text(Part::Thought, text) = piece
                    && !text.trim_ascii_start().is_empty()
                {
                    let behind = text.trim_ascii_start().len() + parser.held();
                    written.truncate(written.len() - behind);
                    return String::from_utf8_lossy(&written).into_owned();
                }
            }
        }
        written.truncate(written.len() - parser.held());
        String::from_utf8_lossy(&written).into_owned()
    }

    /// Forgets all but the first `keep` generated tokens.
    fn go_back(&mut self, keep: usize) {
        let acts = self.control.as_ref().map_or(Vec::new(), |control| control.events().to_vec());
        let kept: Vec<u32> = self.stats.tokens.drain(..).take(keep).collect();
        self.history.truncate(self.stats.prompt_tokens + keep);
        // the last token must be fed to have logits
        self.sequence.truncate(self.sequence.len().min(self.history.len() - 1));
        if let Some(record) = &mut self.record {
            record.digests.truncate(keep);
            record.by.truncate(keep);
        }
        self.parser = self.opening.clone();
        self.forced.clear();
        (self.thought, self.answer) = (Channel::new(false, vec![]), self.answer.fresh());
        self.guard = self.guard.take().map(|_| (self.parser.part(), LoopGuard::default()));
        self.lookup = self.lookup.take().map(|_| Lookup::default());
        for token in kept {
            self.stats.tokens.push(token);
            self.read(token);
            self.forced.clear();
        }
        self.events.clear();
        if let Some(control) = &mut self.control {
            control.restore(acts.into_iter().filter(|act| act.at < keep).collect());
        }
    }

    /// What of the prompt is not fed yet.
    pub fn prompt_left(&self) -> &[u32] {
        let prompt = self.stats.prompt_tokens;
        &self.history[self.sequence.len().min(prompt)..prompt]
    }

    /// Feeds the next `count` tokens of the prompt, whose logits nobody wants.
    pub fn prompt_feed(&mut self, count: usize) -> Feed<'_> {
        let done = self.sequence.len();
        let tokens = &self.history[done..done + count];
        Feed { sequence: &mut self.sequence, tokens, wants: Wants::Nothing }
    }

    /// Gets the next tokens ready: what is not fed yet, and where `rows` rows with logits allow a draft. Ends the trace
    /// at its bound; false if it is over.
    pub fn prepare(&mut self, rows: usize) -> bool {
        if !self.is_over && self.stats.tokens.len() >= self.limit {
            self.end(Finish::Length);
        }
        if self.is_over {
            return false;
        }
        self.draft.clear();
        self.draft.extend_from_slice(&self.history[self.sequence.len()..]);
        if self.draft.len() == 1 && !self.stats.tokens.is_empty() {
            // a draft must leave room for the token that is chosen after it
            let most = (self.limit - self.stats.tokens.len() - 1).min(rows - 1);
            if let Some(script) = &self.script {
                let written = self.stats.tokens.len();
                let end = script.len().saturating_sub(1); // the last one is chosen, not fed
                self.draft.extend(script[written.min(end)..end].iter().take(most));
            } else if !self.forced.is_empty() {
                self.draft.extend(self.forced.iter().take(most));
            } else if let Some(lookup) = &mut self.lookup {
                let found = lookup.draft(&self.history, most);
                self.draft.extend_from_slice(&self.history[found]);
            }
        }
        true
    }

    /// What was got ready.
    pub fn feed(&mut self) -> Feed<'_> {
        let wants = if self.stats.tokens.is_empty() { Wants::Last } else { Wants::All };
        Feed { sequence: &mut self.sequence, tokens: &self.draft, wants }
    }

    /// Leaves out the draft; false if there is none.
    pub fn gives_up_draft(&mut self) -> bool {
        let drafted = !self.stats.tokens.is_empty() && self.draft.len() > 1;
        if drafted {
            self.draft.truncate(self.history.len() - self.sequence.len());
        }
        drafted
    }

    /// How many rows of logits it wants.
    pub fn logit_rows(&self) -> usize {
        if self.stats.tokens.is_empty() { 1 } else { self.draft.len() }
    }

    /// Takes the logits `[rows, vocabulary]` of what was fed: as many tokens as the draft has right, and one more.
    pub fn take(&mut self, logits: &mut [f32]) {
        let rows = self.logit_rows();
        let vocabulary = logits.len() / rows;
        let known = self.history.len();
        let mut right = 0;
        if self.script.is_some() && rows > 1 {
            self.digests = digests(logits, vocabulary).into();
        }
        for row in logits.chunks_mut(vocabulary) {
            let token = self.choose(row);
            if self.is_over || rows == 1 || self.draft.get(right + 1) != Some(&token) {
                break;
            }
            right += 1;
        }
        self.digests.clear();
        self.sequence.truncate(known + right);
    }

    /// What was fed after the prompt took so long, in a step of its own.
    pub fn took(&mut self, time: Duration) {
        if let Some(lookup) = &mut self.lookup {
            lookup.took(self.draft.len(), time.as_secs_f64());
        }
    }

    /// Chooses the next token: the one that is due, or one by its logits.
    fn choose(&mut self, logits: &mut [f32]) -> u32 {
        if let Some(record) = &mut self.record {
            record.digests.push(self.digests.pop_front().unwrap_or_else(|| digest(logits)));
        }
        if let Some((_, tokens)) = self.edits.pop_front_if(|edit| edit.0 == self.stats.tokens.len())
            && let Some(control) = &mut self.control
        {
            control.edited(self.stats.tokens.len());
            self.forced = tokens.into();
        }
        let (token, is_forced) = match self.forced.pop_front() {
            Some(token) => (token, true),
            None => self.draw(logits),
        };
        if let Some(record) = &mut self.record {
            let latest = self.control.as_ref().map_or(0, |control| control.events().len());
            record.by.push(is_forced.then(|| latest - 1));
        }
        self.history.push(token);
        self.stats.tokens.push(token);
        self.read(token);
        token
    }

    /// Draws a token, within what the control allows.
    fn draw(&mut self, logits: &mut [f32]) -> (u32, bool) {
        if let Some(hook) = &self.hook {
            hook(&self.stats.tokens, logits);
        }
        let index = self.stats.tokens.len();
        let position = self.standing();
        let Some(control) = &mut self.control else {
            return (self.sampler.sample(logits, &self.history, index as u64), false);
        };
        let acts = control.events().len();
        let decision = control.before(&position, logits);
        if decision == Decision::DrawVisible {
            self.model.blank_tokens().iter().for_each(|&id| logits[id as usize] = f32::NEG_INFINITY);
        }
        let token = match decision {
            Decision::Write(tokens) => (self.force(tokens), true),
            Decision::Draw | Decision::DrawVisible => {
                let token = self.sampler.sample(logits, &self.history, index as u64);
                match control.instead(&position, token) {
                    Some(tokens) => (self.force(tokens), true),
                    None => (token, false),
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
        let bytes = |&id: &u32| self.model.tokenizer().bytes(id);
        let mut latest = self.stats.tokens.iter().rev().map(bytes);
        let last = latest.next().unwrap_or(b"\n");
        Position {
            part: self.parser.part(),
            in_header: self.parser.in_header(),
            has_thought: self.parser.has_thought(),
            thought_tokens: self.parser.thought_tokens(),
            answer_tokens: self.parser.answer_tokens(),
            answer_visible: self.parser.answer_visible(),
            written: self.stats.tokens.len(),
            thought_time: Duration::from_secs_f64(
                self.seconds() - self.thought_began.unwrap_or(self.seconds()),
            ),
            sentence_end: ends_sentence(latest.next().unwrap_or_default(), last),
        }
    }

    /// What a token means for thought and answer.
    fn read(&mut self, token: u32) {
        let model = self.model.clone();
        let tokenizer = model.tokenizer();
        if tokenizer.ends().contains(&token) {
            self.end(Finish::Stop);
        } else if self.is_text(token) {
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

    /// Whether the parser sees a token: text and markers.
    fn is_text(&self, token: u32) -> bool {
        !self.model.tokenizer().is_control(token) || self.model.inner.control_tokens.is_marker(token)
    }

    /// Shows a token to the loop guard. Sees to a thought that is a loop; true for an answer that is one.
    fn repeats(&mut self, token: u32) -> bool {
        let part = self.parser.part();
        let position = self.standing();
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
        self.forced.extend(control.looped(&position));
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
                    let rest = self.answer.finish();
                    self.event(Part::Answer, rest);
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
        let last = self.control.as_ref().and_then(|c| {
            c.events().iter().rfind(|e| !matches!(e.what, Act::Wait | Act::Repeating | Act::Edit))
        });
        self.stats.thought_end = Some(match last.map(|e| e.what) {
            Some(Act::Budget) => ThoughtEnd::Budget,
            Some(Act::Time) => ThoughtEnd::Time,
            Some(Act::Length) => ThoughtEnd::Length,
            Some(Act::Context) => ThoughtEnd::Context,
            Some(Act::Guard) => ThoughtEnd::Guard,
            Some(Act::User) => ThoughtEnd::User,
            _ => ThoughtEnd::Natural,
        });
        // one that nothing opened began with the first token
        let seconds = self.seconds() - self.thought_began.take().unwrap_or(self.stats.seconds.prefill);
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
    pub fn end(&mut self, finish: Finish) {
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
        self.is_over = true;
        self.stats = self.stats();
        self.events.push_back(Event::Done(Box::new(self.stats.clone())));
    }
}

/// Whether bytes end a sentence or a line; `before` stands in front of them. A point behind a digit may be a decimal one.
fn ends_sentence(before: &[u8], bytes: &[u8]) -> bool {
    let text = bytes.trim_ascii_end();
    let ends_in_digit = |text: &[u8]| text.last().is_some_and(u8::is_ascii_digit);
    text.len() < bytes.len() && bytes[text.len()..].contains(&b'\n')
        || text.strip_suffix(b".").is_some_and(|rest| {
            text.len() < bytes.len() || !ends_in_digit(if rest.is_empty() { before } else { rest })
        })
        || text.ends_with(b"!")
        || text.ends_with(b"?")
        || text.ends_with("。".as_bytes())
}

#[cfg(test)]
mod tests {
    use super::ends_sentence;

    #[test]
    fn a_point_ends_a_sentence_unless_it_may_be_a_decimal_one() {
        for (before, bytes) in
            [("so", "."), ("", " it."), ("x", "?"), ("3", ".\n"), ("3", ". "), ("", "3.\n")]
        {
            assert!(ends_sentence(before.as_bytes(), bytes.as_bytes()), "{before}{bytes}");
        }
        for (before, bytes) in [("3", "."), (" ", "3."), ("so", " it"), ("so", " ")] {
            assert!(!ends_sentence(before.as_bytes(), bytes.as_bytes()), "{before}{bytes}");
        }
    }
}
