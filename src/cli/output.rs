//! How a generation is written: thought and answer for people, JSON for programs.

use std::io::Write;

use serde::Serialize;

use super::args::Thought;
use super::render::{Console, DIM, RESET, harmless, stdout_error};
use crate::api::{Act, ControlEvent, Seconds, ThoughtEnd};
use crate::{Event, Finish, Model, Result, Sampling, Stats};

/// Thought and answer on two writers, as they stream in.
pub(super) struct Screen {
    stdout: Box<dyn Write>,
    stderr: Box<dyn Write>,
    console: Console,
    thought: Thought,
    thought_text: Trimmed,
    answer_text: Trimmed,
    /// A thought was begun and its last line is open.
    thinking: bool,
    /// A thought ended on standard output: what an answer needs in front of it.
    gap: &'static str,
}

impl Screen {
    /// A raw answer keeps its blanks.
    pub(super) fn new(
        stdout: Box<dyn Write>,
        stderr: Box<dyn Write>,
        thought: Thought,
        raw: bool,
        console: &Console,
    ) -> Screen {
        let answer_text = if raw { Trimmed::last_lines() } else { Trimmed::blanks() };
        let console = *console;
        Screen {
            stdout,
            stderr,
            console,
            thought,
            thought_text: Trimmed::blanks(),
            answer_text,
            thinking: false,
            gap: "",
        }
    }

    /// Writes what the event adds.
    ///
    /// # Errors
    /// Standard output is closed. What happens to standard error is no reason to stop.
    pub(super) fn show(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Thought(text) => self.show_thought(text),
            Event::ThoughtDone { .. } => self.end_thought(),
            Event::Answer(text) => {
                self.end_thought()?;
                let text = self.answer_text.push(text);
                if text.is_empty() {
                    return Ok(());
                }
                let text = if self.console.stdout_terminal { harmless(&text) } else { text.as_str().into() };
                let text = [std::mem::take(&mut self.gap), &text].concat();
                write_flushed(&mut self.stdout, &text).map_err(stdout_error)
            }
            _ => Ok(()),
        }
    }

    /// Ends the last line.
    ///
    /// # Errors
    /// As [`Screen::show`].
    pub(super) fn finish(&mut self) -> Result<()> {
        self.end_thought()?;
        write_flushed(&mut self.stdout, "\n").map_err(stdout_error)
    }

    /// Leaves the last line as it is after a failure, so that its report stands on a line of its own.
    pub(super) fn abandon(&mut self) {
        let _ = self.end_thought();
        if self.console.stdout_terminal && !(self.answer_text.in_front && self.gap.is_empty()) {
            let _ = write_flushed(&mut self.stdout, "\n");
        }
    }

    fn show_thought(&mut self, text: &str) -> Result<()> {
        let text = self.thought_text.push(text);
        if text.is_empty() || self.thought == Thought::Hide {
            return Ok(());
        }
        self.thinking = true;
        let (terminal, dims) = match self.thought {
            Thought::Stdout => (self.console.stdout_terminal, self.console.dims_stdout()),
            _ => (self.console.stderr_terminal, self.console.dims_stderr()),
        };
        let text = if terminal { harmless(&text) } else { text.as_str().into() };
        // Each piece is dimmed by itself: whatever comes between, the terminal is never left dim.
        let text = if dims { format!("{DIM}{text}{RESET}").into() } else { text };
        self.write_thought(&text)
    }

    fn end_thought(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.thinking) {
            return Ok(());
        }
        if self.thought == Thought::Stdout {
            self.gap = "\n\n";
            return Ok(());
        }
        let one_screen = self.console.stdout_terminal && self.console.stderr_terminal;
        self.write_thought(if one_screen { "\n\n" } else { "\n" })
    }

    fn write_thought(&mut self, text: &str) -> Result<()> {
        if self.thought == Thought::Stdout {
            return write_flushed(&mut self.stdout, text).map_err(stdout_error);
        }
        let _ = write_flushed(&mut self.stderr, text);
        Ok(())
    }
}

fn write_flushed(to: &mut dyn Write, text: &str) -> std::io::Result<()> {
    to.write_all(text.as_bytes())?;
    to.flush()
}

/// Drops blanks around a text that comes in pieces: those at the end are held back until more follows.
pub(super) struct Trimmed {
    /// Which characters are blanks at the end.
    blank: fn(char) -> bool,
    /// Blanks in front go as well, until something else came.
    in_front: bool,
    held: String,
}

impl Trimmed {
    /// White space in front and at the end.
    pub(super) fn blanks() -> Self {
        Trimmed { blank: char::is_whitespace, in_front: true, held: String::new() }
    }

    /// Line ends at the end.
    fn last_lines() -> Self {
        Trimmed { blank: |c| c == '\n', in_front: false, held: String::new() }
    }

    /// What may be written once `text` has come.
    pub(super) fn push(&mut self, text: &str) -> String {
        let text = if self.in_front { text.trim_start_matches(self.blank) } else { text };
        self.in_front &= text.is_empty();
        let kept = text.trim_end_matches(self.blank).len();
        if kept == 0 {
            self.held.push_str(text);
            return String::new();
        }
        let mut out = std::mem::take(&mut self.held);
        out.push_str(&text[..kept]);
        self.held.push_str(&text[kept..]);
        out
    }
}

/// The line of `--stats`.
pub(super) fn speed(stats: &Stats) -> String {
    format!(
        "prompt: {} tokens, {:.1} tokens/s; generated: {} tokens (thought {}, answer {}), {:.1} tokens/s; seed {}",
        stats.prompt_tokens,
        stats.prefill_tokens_per_second(),
        stats.tokens.len(),
        stats.thought_tokens,
        stats.answer_tokens,
        stats.decode_tokens_per_second(),
        stats.seed
    )
}

/// The object of `--json`.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    version: &'static str,
    model: String,
    architecture: String,
    device: String,
    seed: u64,
    sampling: Sampling,
    context: usize,
    prompt_tokens: usize,
    thought: &'a str,
    answer: &'a str,
    tokens: &'a [u32],
    thought_tokens: usize,
    answer_tokens: usize,
    finish: Finish,
    thought_end: Option<ThoughtEnd>,
    control: &'a [ControlEvent],
    seconds: Seconds,
    tokens_per_second: Speed,
}

/// Tokens a second.
#[derive(Serialize)]
struct Speed {
    prefill: f64,
    decode: f64,
}

impl<'a> Report<'a> {
    pub(super) fn new(stats: &'a Stats, model: &Model) -> Self {
        let mut report =
            Self::of(stats, model.name().into(), model.architecture().into(), model.device().to_string());
        report.seconds.load = model.load_seconds();
        report
    }

    fn of(stats: &'a Stats, model: String, architecture: String, device: String) -> Self {
        Report {
            version: env!("CARGO_PKG_VERSION"),
            model,
            architecture,
            device,
            seed: stats.seed,
            sampling: stats.sampling,
            context: stats.context,
            prompt_tokens: stats.prompt_tokens,
            thought: &stats.thought,
            answer: &stats.answer,
            tokens: &stats.tokens,
            thought_tokens: stats.thought_tokens,
            answer_tokens: stats.answer_tokens,
            finish: stats.finish,
            thought_end: stats.thought_end,
            control: &stats.control,
            seconds: stats.seconds,
            tokens_per_second: Speed {
                prefill: stats.prefill_tokens_per_second(),
                decode: stats.decode_tokens_per_second(),
            },
        }
    }
}

/// A line of `--json-stream`; the last line is a [`Report`].
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum StreamedEvent<'a> {
    Prefill { done: usize, total: usize },
    Thought { text: &'a str },
    ThoughtDone { tokens: usize, seconds: f64 },
    Control { at: usize, what: Act },
    Answer { text: &'a str },
    Forgotten { turns: usize },
}

impl<'a> StreamedEvent<'a> {
    /// None for the last event, which is a [`Report`].
    pub(super) fn new(event: &'a Event) -> Option<Self> {
        Some(match event {
            Event::Prefill { done, total } => StreamedEvent::Prefill { done: *done, total: *total },
            Event::Thought(text) => StreamedEvent::Thought { text },
            Event::ThoughtDone { tokens, seconds } => {
                StreamedEvent::ThoughtDone { tokens: *tokens, seconds: *seconds }
            }
            Event::Control(ControlEvent { at, what }) => StreamedEvent::Control { at: *at, what: *what },
            Event::Answer(text) => StreamedEvent::Answer { text },
            Event::Forgotten { turns } => StreamedEvent::Forgotten { turns: *turns },
            Event::Done(_) => return None,
        })
    }
}

#[cfg(test)]
pub(super) mod tests;
