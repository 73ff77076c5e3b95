//! Keeps typed keys off the screen while an answer streams.

/// While it lives, what is typed is not echoed and waits for the next prompt. Ctrl-C works as ever.
///
/// On Windows there is nothing to do: a console echoes only while a program reads a line from it.
pub(super) struct QuietKeyboard {
    #[cfg(unix)]
    before: Option<rustix::termios::Termios>,
}

impl QuietKeyboard {
    /// Quiets the terminal that is standard input; where that is none, nothing happens.
    #[cfg(unix)]
    pub(super) fn new() -> Self {
        use rustix::termios::{InputModes, LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).ok();
        if let Some(before) = &before {
            let mut quiet = before.clone();
            // Canonical mode would hold typed keys back from the prompt, and make line feeds of carriage returns.
            quiet.local_modes -= LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON;
            quiet.input_modes -= InputModes::ICRNL;
            let _ = tcsetattr(&stdin, OptionalActions::Now, &quiet);
        }
        QuietKeyboard { before }
    }

    /// Nothing to do on this system.
    #[cfg(not(unix))]
    pub(super) fn new() -> Self {
        QuietKeyboard {}
    }
}

#[cfg(unix)]
impl Drop for QuietKeyboard {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            use rustix::termios::{OptionalActions, tcsetattr};
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}
