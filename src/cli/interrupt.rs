//! Ctrl-C: the first one stops what goes on, a second one the process.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::keyboard;
use super::render::{RESET, error_line};

/// Exit code after Ctrl-C, as shells have it: 128 + SIGINT.
pub const EXIT_INTERRUPTED: u8 = 130;

type Stop = Box<dyn FnOnce() + Send>;

/// What the next Ctrl-C does; none: it ends the process.
static STOP: Mutex<Option<Stop>> = Mutex::new(None);

/// Ctrl-C stopped what went on since [`arm`] was called last.
static CAUGHT: AtomicBool = AtomicBool::new(false);

fn stop() -> std::sync::MutexGuard<'static, Option<Stop>> {
    STOP.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Installs the handler; once, at the start.
pub fn install(color: bool) {
    let handler = move || match stop().take() {
        Some(stop) => {
            CAUGHT.store(true, Ordering::Relaxed);
            stop();
        }
        None => {
            keyboard::restore();
            let _ = crossterm::terminal::disable_raw_mode();
            error_line(if color { RESET } else { "" });
            std::process::exit(EXIT_INTERRUPTED.into());
        }
    };
    // Without a handler Ctrl-C still ends the process: no reason to refuse to run.
    let _ = ctrlc::set_handler(handler);
}

/// Lets the next Ctrl-C call `on_interrupt` instead of ending the process, until the guard is dropped. The one
/// after that ends the process.
pub fn arm(on_interrupt: impl FnOnce() + Send + 'static) -> Armed {
    CAUGHT.store(false, Ordering::Relaxed);
    *stop() = Some(Box::new(on_interrupt));
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
        stop().take();
    }
}
