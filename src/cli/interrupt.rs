//! Ctrl-C: the first one stops what goes on; a later one may stop the process. SIGTERM and SIGHUP end the process.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
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

/// What a Ctrl-C or another signal comes to.
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

    /// SIGTERM or SIGHUP: a command is stopped first, so that it leaves nothing half-done; a chat is not asked.
    #[cfg(unix)]
    fn end(&mut self, again: bool) -> Answer {
        if again || self.second == Second::Waits {
            return Answer::Exit;
        }
        self.stop.take().map_or(Answer::Nothing, Answer::Stop)
    }
}

/// None: Ctrl-C ends the process.
static CATCH: Mutex<Option<Catch>> = Mutex::new(None);

/// The exit code of the process once what is armed has stopped; 0: it goes on.
static ENDING: AtomicI32 = AtomicI32::new(0);

/// Ctrl-C stopped what went on since [`arm`] was called last.
static CAUGHT: AtomicBool = AtomicBool::new(false);

fn catch() -> std::sync::MutexGuard<'static, Option<Catch>> {
    CATCH.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Installs the handlers; once, at the start. Without one a signal still ends the process: no reason to refuse to run.
pub fn install(color: bool) {
    let _ = ctrlc::set_handler(move || {
        let answer = catch().as_mut().map_or(Answer::Exit, |catch| catch.press(Instant::now()));
        give(answer, EXIT_INTERRUPTED.into(), color);
    });
    #[cfg(unix)]
    install_end(color);
}

/// SIGTERM and SIGHUP; one that is ignored, as SIGHUP under `nohup`, stays so.
#[cfg(unix)]
fn install_end(color: bool) {
    use signal_hook::consts::{SIGHUP, SIGTERM};
    let heeded = [SIGTERM, SIGHUP].into_iter().filter(|&signal| !is_ignored(signal));
    let Ok(mut signals) = signal_hook::iterator::Signals::new(heeded) else { return };
    std::thread::spawn(move || {
        let mut first = None;
        for signal in signals.forever() {
            // a terminal that closes sends SIGHUP several times, a service manager SIGHUP behind SIGTERM: that is one end
            let (code, begun) = *first.get_or_insert((128 + signal, Instant::now()));
            let again = begun.elapsed() >= INSISTENT_WITHIN;
            let mut catch = catch();
            // under the lock, so that a guard that is dropped from here on sees it
            ENDING.store(code, Ordering::Relaxed);
            let answer = catch.as_mut().map_or(Answer::Exit, |catch| catch.end(again));
            drop(catch);
            give(answer, code, color);
        }
    });
}

#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    // SAFETY: a sigaction is plain data, and without a new one the call only fills in the present one.
    unsafe {
        let mut present: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut present) == 0
            && present.sa_sigaction == libc::SIG_IGN
    }
}

fn give(answer: Answer, code: i32, color: bool) {
    let bar_was_shown = clear_bar();
    match answer {
        Answer::Stop(stop) => {
            CAUGHT.store(true, Ordering::Relaxed);
            stop();
        }
        Answer::Nothing => {}
        Answer::Exit => {
            if !bar_was_shown {
                error_line(if color { RESET } else { "" });
            }
            leave(code);
        }
    }
}

fn leave(code: i32) -> ! {
    keyboard::restore();
    let _ = crossterm::terminal::disable_raw_mode();
    std::process::exit(code)
}

/// Ends the process from within what [`arm`] was given, with the code of the signal that came.
pub fn end() -> ! {
    match ENDING.load(Ordering::Relaxed) {
        0 => leave(EXIT_INTERRUPTED.into()),
        code => leave(code),
    }
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

/// While it lives Ctrl-C is caught. Its end is that of a process that waited for what was armed to stop.
#[must_use]
pub struct Armed(());

impl Drop for Armed {
    fn drop(&mut self) {
        catch().take();
        match ENDING.load(Ordering::Relaxed) {
            0 => {}
            code => leave(code),
        }
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

    #[cfg(unix)]
    #[test]
    fn a_signal_to_end_stops_a_command_first_and_leaves_a_chat_at_once() {
        let catch = |second| Catch::new(Box::new(|| ()), second);
        let mut command = catch(Second::Ends);
        assert!(matches!(command.end(false), Answer::Stop(_)));
        assert!(matches!(command.end(true), Answer::Exit), "a second one does not wait");
        let mut stopping = catch(Second::Ends);
        stopping.press(Instant::now());
        assert!(matches!(stopping.end(false), Answer::Nothing), "Ctrl-C has stopped it");
        assert!(matches!(catch(Second::Waits).end(false), Answer::Exit));
    }
}
