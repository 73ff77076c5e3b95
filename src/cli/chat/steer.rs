//! Ctrl-C while a reply streams: it pauses a thought, so that one can go on, ask for the answer or edit it; it stops an
//! answer.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::event::{Event as Input, KeyCode, KeyEventKind, KeyModifiers, read};
use crossterm::terminal::{disable_raw_mode, enable_raw_mode};

use super::input::run_editor;
use super::store::write_private;
use crate::api::{Event, Turn};
use crate::cli::interrupt::{self, Armed, Second};
use crate::cli::text::read_file;
use crate::{CancelHandle, Result};

/// What is said when a thought pauses.
pub(super) const PAUSED: &str =
    "paused: Enter goes on, a answers now, e edits the thought, Ctrl-C again drops the turn";

/// A reply that streams, and whose thought may be steered.
pub(super) trait Reply: Iterator<Item = Result<Event>> {
    fn is_thinking(&self) -> bool {
        false
    }
    fn answer_now(&mut self) {}
    fn thought(&self) -> String {
        String::new()
    }
    fn set_thought(&mut self, _text: &str) -> Result<bool> {
        Ok(false)
    }
    /// Takes the turn back.
    fn discard(&mut self) {}
}

impl Reply for Turn<'_> {
    fn is_thinking(&self) -> bool {
        self.generation().is_thinking()
    }
    fn answer_now(&mut self) {
        self.generation_mut().answer_now();
    }
    fn thought(&self) -> String {
        self.generation().thought().to_owned()
    }
    fn set_thought(&mut self, text: &str) -> Result<bool> {
        self.generation_mut().set_thought(text)
    }
    fn discard(&mut self) {
        Turn::discard(self);
    }
}

/// What is to become of a paused thought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    GoOn,
    Answer,
    Edit,
    Drop,
}

/// Asks what is to become of a paused thought.
pub(super) type Ask = Box<dyn FnMut() -> io::Result<Choice>>;

/// Catches Ctrl-C while it lives.
pub(super) struct Pause {
    pressed: Arc<AtomicBool>,
    cancel: CancelHandle,
    second: Second,
    armed: Option<Armed>,
    /// Asks what next, where there is someone to ask.
    ask: Option<Ask>,
    /// Holds the thought while $EDITOR has it.
    draft: PathBuf,
    /// The user dropped the turn.
    pub(super) dropped: bool,
}

impl Pause {
    pub(super) fn new(cancel: CancelHandle, second: Second, ask: Option<Ask>, draft: PathBuf) -> Self {
        let pressed = Arc::new(AtomicBool::new(false));
        let mut pause = Pause { pressed, cancel, second, armed: None, ask, draft, dropped: false };
        pause.arm();
        pause
    }

    /// Waits for the next Ctrl-C.
    fn arm(&mut self) {
        self.armed = None;
        self.pressed.store(false, Ordering::Relaxed);
        let pressed = self.pressed.clone();
        self.armed = Some(interrupt::arm(self.second, move || pressed.store(true, Ordering::Relaxed)));
    }

    /// What Ctrl-C sets.
    #[cfg(test)]
    pub(super) fn pressed(&self) -> Arc<AtomicBool> {
        self.pressed.clone()
    }

    /// Whether a thought is to pause; anything else that Ctrl-C was pressed in stops.
    pub(super) fn is_due(&self, reply: &impl Reply) -> bool {
        if !self.pressed.load(Ordering::Relaxed) {
            return false;
        }
        let pauses = self.ask.is_some() && reply.is_thinking() && !self.cancel.is_cancelled();
        if !pauses {
            self.cancel.cancel();
        }
        pauses
    }

    /// Asks what next, and does it. An error is what to tell of an edit that came to nothing: the thought still pauses.
    pub(super) fn resolve(&mut self, reply: &mut impl Reply) -> io::Result<Result<Choice>> {
        let choice = self.ask.as_mut().map_or(Ok(Choice::GoOn), |ask| ask())?;
        match choice {
            Choice::GoOn => {}
            Choice::Answer => reply.answer_now(),
            Choice::Edit => {
                if let Err(error) = self.edit(reply) {
                    return Ok(Err(error));
                }
            }
            Choice::Drop => {
                self.dropped = true;
                reply.discard();
                self.cancel.cancel();
                return Ok(Ok(choice));
            }
        }
        self.arm();
        Ok(Ok(choice))
    }

    fn edit(&self, reply: &mut impl Reply) -> Result<()> {
        write_private(&self.draft, reply.thought().as_bytes())?;
        let edited = run_editor(&self.draft).and_then(|()| read_file(&self.draft));
        let _ = std::fs::remove_file(&self.draft);
        reply.set_thought(edited?.trim_end()).map(drop)
    }
}

/// Waits for one of the keys that [`PAUSED`] names.
pub(super) fn ask() -> io::Result<Choice> {
    enable_raw_mode()?;
    let choice = loop {
        match read() {
            Ok(Input::Key(key)) if key.kind == KeyEventKind::Press => {
                if let Some(choice) = choice(key.code, key.modifiers) {
                    break Ok(choice);
                }
            }
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    disable_raw_mode()?;
    choice
}

fn choice(key: KeyCode, modifiers: KeyModifiers) -> Option<Choice> {
    match key {
        KeyCode::Char('c' | 'd') if modifiers.contains(KeyModifiers::CONTROL) => Some(Choice::Drop),
        KeyCode::Enter => Some(Choice::GoOn),
        KeyCode::Char('j' | 'm') if modifiers.contains(KeyModifiers::CONTROL) => Some(Choice::GoOn),
        KeyCode::Char('a') => Some(Choice::Answer),
        KeyCode::Char('e') => Some(Choice::Edit),
        _ => None,
    }
}
