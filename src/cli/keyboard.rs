//! Keeps typed keys off the screen while an answer streams.

#[cfg(unix)]
use std::sync::Mutex;

#[cfg(unix)]
use rustix::termios::{InputModes, LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// The terminal as it was before it was quieted.
#[cfg(unix)]
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// While it lives, what is typed is not echoed and waits for the next prompt. Ctrl-C works as ever.
#[must_use]
pub(super) struct Quiet(());

/// Quiets the terminal that is standard input; where that is none, nothing happens.
///
/// On Windows there is nothing to do: a console echoes only while a program reads a line from it.
pub(super) fn quiet() -> Quiet {
    #[cfg(unix)]
    if let Ok(before) = tcgetattr(std::io::stdin()) {
        let mut quiet = before.clone();
        // Canonical mode would hold typed keys back from the prompt, and make line feeds of carriage returns.
        quiet.local_modes -= LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON;
        quiet.input_modes -= InputModes::ICRNL;
        *lock() = Some(before);
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &quiet);
    }
    Quiet(())
}

/// Puts the terminal back as it was: also for a process that ends without dropping [`Quiet`].
pub(super) fn restore() {
    #[cfg(unix)]
    if let Some(before) = lock().take() {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &before);
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        restore();
    }
}

#[cfg(unix)]
fn lock() -> std::sync::MutexGuard<'static, Option<Termios>> {
    BEFORE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
