//! Ctrl-C: the first one stops what goes on; a later one may stop the process.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::keyboard;
use super::render::{RESET, clear_bar, error_line};

/// Exit code after Ctrl-C, as shells have it: 128 + SIGINT.
pub const EXIT_INTERRUPTED: u8 = 130;

/// So many within [`INSISTENT_WITHIN`] end the process, whatever goes on.
const INSISTENT: usize = 3;
const INSISTENT_WITHIN: Duration = Duration::from_secs(1);

type Stop = Box<dyn FnOnce() + Send>;

/// What a Ctrl-C does after the one that stopped what goes on, until the guard is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Second {
    /// It ends the process.
    Ends,
    /// Nothing: stopping takes as long as it takes. Only three within a second end the process.
    Waits,
}

/// What to do about Ctrl-C while something is armed.
struct Catch {
    stop: Option<Stop>,
    second: Second,
    /// When it was pressed.
    pressed: Vec<Instant>,
}

/// What a Ctrl-C comes to.
enum Answer {
    Stop(Stop),
    Nothing,
    Exit,
}

impl Catch {
    fn new(stop: Stop, second: Second) -> Self {
        Catch { stop: Some(stop), second, pressed: Vec::new() }
    }

    fn press(&mut self, now: Instant) -> Answer {
        self.pressed.retain(|&then| now.duration_since(then) < INSISTENT_WITHIN);
        self.pressed.push(now);
        match self.stop.take() {
            Some(stop) => Answer::Stop(stop),
            None if self.second == Second::Waits && self.pressed.len() < INSISTENT => Answer::Nothing,
            None => Answer::Exit,
        }
    }
}

/// None: Ctrl-C ends the process.
static CATCH: Mutex<Option<Catch>> = Mutex::new(None);

/// Ctrl-C stopped what went on since [`arm`] was called last.
static CAUGHT: AtomicBool = AtomicBool::new(false);

fn catch() -> std::sync::MutexGuard<'static, Option<Catch>> {
    CATCH.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Installs the handler; once, at the start.
pub fn install(color: bool) {
    let handler = move || {
        let answer = catch().as_mut().map_or(Answer::Exit, |catch| catch.press(Instant::now()));
        let bar_was_shown = clear_bar();
        match answer {
            Answer::Stop(stop) => {
                CAUGHT.store(true, Ordering::Relaxed);
                stop();
            }
            Answer::Nothing => {}
            Answer::Exit => {
                keyboard::restore();
                let _ = crossterm::terminal::disable_raw_mode();
                if !bar_was_shown {
                    error_line(if color { RESET } else { "" });
                }
                std::process::exit(EXIT_INTERRUPTED.into());
            }
        }
    };
    // Without a handler Ctrl-C still ends the process: no reason to refuse to run.
    let _ = ctrlc::set_handler(handler);
}

/// Lets the next Ctrl-C call `on_interrupt` instead of ending the process, until the guard is dropped.
pub fn arm(second: Second, on_interrupt: impl FnOnce() + Send + 'static) -> Armed {
    CAUGHT.store(false, Ordering::Relaxed);
    *catch() = Some(Catch::new(Box::new(on_interrupt), second));
    Armed(())
}

/// Whether Ctrl-C stopped what the last [`arm`] was for.
pub fn caught() -> bool {
    CAUGHT.load(Ordering::Relaxed)
}

/// While it lives Ctrl-C is caught.
#[must_use]
pub struct Armed(());

impl Drop for Armed {
    fn drop(&mut self) {
        catch().take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Ctrl-C comes to at these milliseconds.
    fn presses(second: Second, at: &[u64]) -> String {
        let mut catch = Catch::new(Box::new(|| ()), second);
        let start = Instant::now();
        let mut press = |ms: &u64| match catch.press(start + Duration::from_millis(*ms)) {
            Answer::Stop(_) => 's',
            Answer::Nothing => '.',
            Answer::Exit => 'x',
        };
        at.iter().map(&mut press).collect()
    }

    #[test]
    fn the_second_ends_a_command() {
        assert_eq!(presses(Second::Ends, &[0, 5000]), "sx");
    }

    #[test]
    fn in_a_chat_only_three_within_a_second_leave() {
        assert_eq!(presses(Second::Waits, &[0, 400, 1100, 1900, 3000]), "s....");
        assert_eq!(presses(Second::Waits, &[0, 300, 600]), "s.x");
    }
}
