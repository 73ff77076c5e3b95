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
}

/// What is to become of a paused thought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    GoOn,
    Answer,
    Edit,
    Drop,
}

/// Catches Ctrl-C while it lives.
pub(super) struct Pause {
    pressed: Arc<AtomicBool>,
    cancel: CancelHandle,
    second: Second,
    armed: Option<Armed>,
    /// Someone can be asked what next.
    can_ask: bool,
    /// Holds the thought while $EDITOR has it.
    draft: PathBuf,
    /// The user dropped the turn.
    pub(super) dropped: bool,
}

impl Pause {
    pub(super) fn new(cancel: CancelHandle, second: Second, can_ask: bool, draft: PathBuf) -> Self {
        let pressed = Arc::new(AtomicBool::new(false));
        let mut pause = Pause { pressed, cancel, second, armed: None, can_ask, draft, dropped: false };
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

    /// Whether a thought is to pause; anything else that Ctrl-C was pressed in stops.
    pub(super) fn is_due(&self, reply: &impl Reply) -> bool {
        if !self.pressed.load(Ordering::Relaxed) {
            return false;
        }
        let pauses = self.can_ask && reply.is_thinking() && !self.cancel.is_cancelled();
        if !pauses {
            self.cancel.cancel();
        }
        pauses
    }

    /// Asks what next, and does it. An error is what to tell of an edit that came to nothing.
    pub(super) fn resolve(&mut self, reply: &mut impl Reply) -> io::Result<Result<Choice>> {
        let choice = ask()?;
        let mut done = Ok(choice);
        match choice {
            Choice::GoOn => {}
            Choice::Answer => reply.answer_now(),
            Choice::Edit => done = self.edit(reply).map(|()| choice),
            Choice::Drop => {
                self.dropped = true;
                self.cancel.cancel();
                return Ok(done);
            }
        }
        self.arm();
        Ok(done)
    }

    fn edit(&self, reply: &mut impl Reply) -> Result<()> {
        write_private(&self.draft, reply.thought().as_bytes())?;
        let edited = run_editor(&self.draft).and_then(|()| read_file(&self.draft));
        let _ = std::fs::remove_file(&self.draft);
        reply.set_thought(edited?.trim_end()).map(drop)
    }
}

/// Waits for one of the keys that [`PAUSED`] names.
fn ask() -> io::Result<Choice> {
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
