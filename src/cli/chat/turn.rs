//! Shows a turn as it happens: the thought, the line it folds to, the answer, and what there is to say about it.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::live::{Live, Size};
use super::steer::{Choice, PAUSED, Pause, Reply};
use crate::api::{Event, Finish, Stats};
use crate::cli::args::Thought;
use crate::cli::output::Trimmed;
use crate::cli::render::{Bar, Console, DIM, RESET, Unit, harmless};
use crate::{Error, Result};

/// Seconds after which a hidden thought says that it goes on.
const PATIENCE: u64 = 2;
/// Share of the context in use from which on a line warns.
const NEARLY_FULL: f64 = 0.9;

/// Where a chat writes.
pub(super) struct Screen<O, E> {
    /// The output is a terminal whose cursor moves, and someone types: thoughts fold, everything goes to `out`.
    /// Otherwise answers alone go to `out`, all else to `err`, and nothing has escape codes.
    pub(super) rich: bool,
    pub(super) console: Console,
    pub(super) out: O,
    pub(super) err: E,
    /// The terminal's size, asked anew each time since it may change.
    pub(super) size: fn() -> Size,
}

impl<O: Write, E: Write> Screen<O, E> {
    /// A dimmed line beside the conversation, unless quiet. An empty one ends the line that is open.
    pub(super) fn note(&mut self, text: &str) -> io::Result<()> {
        if self.console.quiet && !text.is_empty() {
            return Ok(());
        }
        self.aside(&format!("{text}\n"))
    }

    /// Dimmed text beside the conversation.
    pub(super) fn aside(&mut self, text: &str) -> io::Result<()> {
        if self.dims() {
            // Before the line feed: an attribute must not reach into the next line.
            let body = text.trim_end_matches('\n');
            write!(self.out, "{DIM}{body}{RESET}{}", &text[body.len()..])?;
            return self.out.flush();
        }
        self.say(text)
    }

    /// Text that is no answer: what a command says.
    pub(super) fn say(&mut self, text: &str) -> io::Result<()> {
        if self.rich {
            self.out.write_all(text.as_bytes())?;
            return self.out.flush();
        }
        self.err.write_all(text.as_bytes())?;
        self.err.flush()
    }

    fn dims(&self) -> bool {
        self.rich && self.console.dims_stdout()
    }
}

/// Shows the events of a turn to its end; gives what it came to, or what it failed with.
///
/// # Errors
/// A failure to write.
pub(super) fn show<O: Write, E: Write>(
    mut events: impl Reply,
    view: Thought,
    max_tokens: Option<usize>,
    pause: &mut Pause,
    screen: &mut Screen<O, E>,
) -> io::Result<Result<Stats>> {
    let mut turn = Turn::new(view, screen);
    loop {
        if pause.is_due(&events) {
            turn.pause(&mut events, pause)?;
        }
        let Some(event) = events.next() else { break };
        match event {
            Ok(Event::Done(stats)) => {
                turn.finish(&stats, max_tokens)?;
                return Ok(Ok(*stats));
            }
            Ok(event) => turn.event(event)?,
            Err(error) => {
                turn.close()?;
                return Ok(Err(error));
            }
        }
    }
    turn.close()?;
    Ok(Err(Error::Unsupported("the answer ended without its last event: this is a bug in pensive".into())))
}

/// Seconds as one says them.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 59.5 => format!("{s:.0} s"),
        s => format!("{} min {} s", s.round() as u64 / 60, s.round() as u64 % 60),
    }
}

/// A number of things as one says it.
pub(super) fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

struct Turn<'a, O, E> {
    screen: &'a mut Screen<O, E>,
    view: Thought,
    phase: Phase,
    /// The thought, then the answer.
    text: Trimmed,
    /// Something of it was written.
    begun: bool,
    live: Live,
    bar: Bar,
    started: Instant,
    /// Second at which the line of progress was last drawn.
    progress: Option<u64>,
    forgotten: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Waiting,
    Thinking { since: Instant },
    Answering,
}

impl<'a, O: Write, E: Write> Turn<'a, O, E> {
    fn new(view: Thought, screen: &'a mut Screen<O, E>) -> Self {
        Turn {
            live: Live::new((screen.size)(), screen.dims()),
            text: Trimmed::blanks(),
            begun: false,
            bar: screen.console.slow_bar("reading the prompt", Unit::Tokens),
            screen,
            view,
            phase: Phase::Waiting,
            started: Instant::now(),
            progress: None,
            forgotten: false,
        }
    }

    fn event(&mut self, event: Event) -> io::Result<()> {
        match event {
            Event::Prefill { done, total } => {
                self.bar.update(done as u64, total as u64);
                Ok(())
            }
            Event::Thought(text) => self.think(&text),
            Event::ThoughtDone { tokens, seconds } => self.end_thought(tokens, seconds),
            Event::Answer(text) => self.answer(&text),
            Event::Forgotten { turns } => {
                self.forgotten = true;
                self.clear_live()?;
                let turns = count(turns, "oldest turn");
                self.screen.note(&format!("{turns} left the conversation: it outgrew the context"))
            }
            _ => Ok(()),
        }
    }

    /// Stops in a thought until the user says what next.
    fn pause(&mut self, reply: &mut impl Reply, pause: &mut Pause) -> io::Result<()> {
        self.clear_live()?;
        if !self.folds() && self.begun {
            self.screen.note("")?;
        }
        let began = Instant::now();
        let choice = loop {
            self.screen.aside(&format!("{PAUSED}\n"))?;
            match pause.resolve(reply)? {
                Ok(choice) => break choice,
                Err(error) => self.screen.aside(&format!("{}\n", harmless(&error.to_string())))?,
            }
        };
        self.leave_out(began.elapsed());
        // what was erased comes back; what was edited is shown anew
        if choice == Choice::Edit || self.folds() && choice != Choice::Drop {
            (self.text, self.begun) = (Trimmed::blanks(), false);
            self.think(&reply.thought())?;
        }
        Ok(())
    }

    /// A pause is no time of the thought.
    fn leave_out(&mut self, paused: Duration) {
        self.started += paused;
        if let Phase::Thinking { since } = &mut self.phase {
            *since += paused;
        }
    }

    /// The thought folds: it streams in the live area.
    fn folds(&self) -> bool {
        self.screen.rich && self.view == Thought::Fold
    }

    fn think(&mut self, text: &str) -> io::Result<()> {
        if self.phase == Phase::Waiting {
            self.bar.finish();
            self.phase = Phase::Thinking { since: Instant::now() };
        }
        if self.view == Thought::Hide {
            return self.progress();
        }
        let first = !self.begun;
        let piece = self.trim(text, self.screen.rich || self.screen.console.stderr_terminal);
        if piece.is_empty() {
            return Ok(());
        }
        if self.folds() {
            return self.live.push(&piece, (self.screen.size)(), &mut self.screen.out);
        }
        if !self.screen.rich && first {
            self.screen.note("thought:")?;
        }
        self.screen.aside(&piece)
    }

    /// Folds the thought, or ends its text, and says how long it was.
    fn end_thought(&mut self, tokens: usize, seconds: f64) -> io::Result<()> {
        let shown = std::mem::take(&mut self.begun);
        self.clear_live()?;
        self.phase = Phase::Answering;
        self.text = Trimmed::blanks();
        if !shown {
            return Ok(());
        }
        if !self.folds() {
            self.screen.note("")?;
        }
        self.screen.note(&format!("thought for {}, {}", duration(seconds), count(tokens, "token")))
    }

    fn answer(&mut self, text: &str) -> io::Result<()> {
        self.clear_live()?;
        self.phase = Phase::Answering;
        let piece = self.trim(text, self.screen.console.stdout_terminal);
        self.screen.out.write_all(piece.as_bytes())?;
        self.screen.out.flush()
    }

    fn finish(&mut self, stats: &Stats, max_tokens: Option<usize>) -> io::Result<()> {
        if let Phase::Thinking { since } = self.phase {
            self.end_thought(stats.thought_tokens, since.elapsed().as_secs_f64())?;
        }
        self.close()?;
        match remark(stats, max_tokens, self.forgotten) {
            Some(remark) => self.screen.note(&remark),
            None => Ok(()),
        }
    }

    /// Ends the line that is being written, wherever the turn broke off.
    fn close(&mut self) -> io::Result<()> {
        let thinking = matches!(self.phase, Phase::Thinking { .. });
        if thinking && self.folds() {
            return self.live.keep(&mut self.screen.out);
        }
        self.clear_live()?;
        match self.begun {
            true if thinking => self.screen.note(""),
            true => writeln!(self.screen.out).and_then(|()| self.screen.out.flush()),
            false => Ok(()),
        }
    }

    /// What of a piece can be written now, on a terminal with nothing in it that would move the cursor.
    fn trim(&mut self, text: &str, to_terminal: bool) -> String {
        let piece = self.text.push(text);
        self.begun |= !piece.is_empty();
        match to_terminal {
            true => harmless(&piece).into_owned(),
            false => piece,
        }
    }

    /// A line that says how long a hidden thought takes: after a while, and drawn once a second at most.
    fn progress(&mut self) -> io::Result<()> {
        let waited = self.started.elapsed().as_secs();
        if !self.screen.rich || waited < PATIENCE || self.progress == Some(waited) {
            return Ok(());
        }
        self.progress = Some(waited);
        self.live.replace(&format!("thinking for {waited} s"), (self.screen.size)(), &mut self.screen.out)
    }

    /// Takes away what is only there for now.
    fn clear_live(&mut self) -> io::Result<()> {
        self.bar.finish();
        if self.live.is_empty() {
            return Ok(());
        }
        self.live.erase((self.screen.size)(), &mut self.screen.out)
    }
}

/// What there is to say about a turn that did not end by itself, or that nearly filled the context.
fn remark(stats: &Stats, max_tokens: Option<usize>, forgotten: bool) -> Option<String> {
    let generated = stats.tokens.len();
    let used = stats.prompt_tokens + generated;
    match stats.finish {
        Finish::Interrupted => Some("stopped".into()),
        Finish::Length if max_tokens.is_some_and(|most| generated >= most) => {
            Some(format!("stopped at {}: the bound max-tokens", count(generated, "token")))
        }
        Finish::Length => Some(format!(
            "stopped: the context of {} is full (/clear begins anew)",
            count(stats.context, "token")
        )),
        Finish::Loop => Some("stopped: the answer repeated itself (--no-loop-guard lets it go on)".into()),
        Finish::Stop if stats.answer_tokens == 0 && stats.thought_tokens > 0 => {
            Some("the model stopped in its thought, without an answer: /thought shows it".into())
        }
        _ if !forgotten && used as f64 >= NEARLY_FULL * stats.context as f64 => Some(format!(
            "{used} of {} tokens of context are used: soon the oldest turns will be forgotten",
            stats.context
        )),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests;
