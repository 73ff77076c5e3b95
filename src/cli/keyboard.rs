//! Keeps typed keys off the screen while an answer streams.

#[cfg(unix)]
use std::{fs::File, sync::Mutex};

#[cfg(unix)]
use rustix::process::getpgrp;
#[cfg(unix)]
use rustix::termios::{InputModes, LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};

/// The terminal, and how it was before it was quieted.
#[cfg(unix)]
static BEFORE: Mutex<Option<(File, Termios)>> = Mutex::new(None);

/// While it lives, what is typed is not echoed and waits for the next prompt. Ctrl-C works as ever.
#[must_use]
pub(super) struct Quiet {
    /// The terminal was quiet before: it stays so until the first guard is dropped.
    nested: bool,
}

/// Quiets this process's terminal, also where standard input is a pipe; where there is none, nothing happens.
///
/// On Windows there is nothing to do: a console echoes only while a program reads a line from it.
pub(super) fn quiet() -> Quiet {
    #[cfg(unix)]
    {
        let mut before = lock();
        if before.is_some() {
            return Quiet { nested: true };
        }
        *before = quiet_terminal();
    }
    Quiet { nested: false }
}

#[cfg(unix)]
fn quiet_terminal() -> Option<(File, Termios)> {
    let terminal = File::options().read(true).write(true).open("/dev/tty").ok()?;
    // A process in the background would be halted for touching the terminal.
    if tcgetpgrp(&terminal).ok()? != getpgrp() {
        return None;
    }
    let before = tcgetattr(&terminal).ok()?;
    let mut quiet = before.clone();
    // Canonical mode would hold typed keys back from the prompt, and make line feeds of carriage returns.
    quiet.local_modes -= LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON;
    quiet.input_modes -= InputModes::ICRNL;
    tcsetattr(&terminal, OptionalActions::Now, &quiet).ok()?;
    Some((terminal, before))
}

/// Puts the terminal back as it was: also for a process that ends without dropping [`Quiet`].
pub(super) fn restore() {
    #[cfg(unix)]
    if let Some((terminal, before)) = lock().take() {
        let _ = tcsetattr(terminal, OptionalActions::Now, &before);
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if !self.nested {
            restore();
        }
    }
}

#[cfg(unix)]
fn lock() -> std::sync::MutexGuard<'static, Option<(File, Termios)>> {
    BEFORE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
