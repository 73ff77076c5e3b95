//! The switch that stops what runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
#[cfg(feature = "hub")]
use std::time::{Duration, Instant};

/// Stops a generation between two steps, a download, or a file that is written; clones share the switch. It stays as it is: a
/// handle that was used is [`reset`](Self::reset) before it goes into further options, which else end at once.
#[derive(Clone, Debug, Default)]
pub struct CancelHandle(Arc<AtomicBool>);

impl CancelHandle {
    /// A fresh handle.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks what has the handle to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// What is watched by functions that stand below this face.
    pub(super) fn switch(&self) -> &AtomicBool {
        &self.0
    }

    /// Sleeps so long, or until it is asked to stop.
    #[cfg(feature = "hub")]
    pub(super) fn sleep(&self, time: Duration) {
        const GLANCE: Duration = Duration::from_millis(100);
        let end = Instant::now() + time;
        while !self.is_cancelled() && Instant::now() < end {
            std::thread::sleep(GLANCE.min(end.saturating_duration_since(Instant::now())));
        }
    }

    /// Makes the handle usable again.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
