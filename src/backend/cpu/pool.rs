//! A thread pool made for a chain of short parallel steps.
//!
//! A decoder issues some hundred parallel steps per token, each of 10 to 500 µs. So the workers wait for the next step
//! by spinning, and sleep only after `SPIN` without one; the caller takes part in every step; a step costs one
//! wake-up even if it has several phases ([`Worker::barrier`]); nothing is allocated.
//!
//! What one thread wrote before the start of a step, before a barrier or before its end is seen by all after it:
//! each of the three is a `Signal`, whose `advance` releases and whose `wait` acquires.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// How long a thread spins before it sleeps: longer than the serial work between two steps of a decoder, far shorter
/// than the pause between two prompts.
const SPIN: Duration = Duration::from_micros(50);

/// Times that a thread gives way before it sleeps, where there are more threads than cores.
const YIELDS: usize = 4;

/// A fixed set of threads, the caller among them, that execute one job at a time.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// One thread's view of the job that it takes part in.
pub struct Worker<'a> {
    /// This thread: 0 is the caller.
    pub index: usize,
    /// Threads in the job.
    pub threads: usize,
    /// None where the job runs on the caller alone.
    shared: Option<&'a Shared>,
}

/// What the threads of a job claim from: tasks `0..count`, in ascending runs that grow smaller towards the end.
#[repr(align(64))] // a cache line of its own
pub struct Tasks {
    next: AtomicUsize,
    count: usize,
    least: usize,
    shares: usize,
}

type Job = dyn Fn(&Worker<'_>) + Sync;

struct Shared {
    threads: usize,
    /// Whether each thread may have a core to itself.
    spin: bool,
    /// Set while a job runs; guards `job`.
    busy: AtomicBool,
    stop: AtomicBool,
    /// Valid from `start` until `done` of the same job.
    job: UnsafeCell<Option<*const Job>>,
    start: Signal,
    /// Workers that are still in the job.
    running: AtomicUsize,
    done: Signal,
    /// Threads that stand at the barrier.
    arrived: AtomicUsize,
    passed: Signal,
    /// Some thread panicked and will not come to the barrier.
    broken: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written by the thread that holds `busy`, before `start` advances, and read by workers after that and
// before `running` falls to zero; the holder waits for this. The job itself is Sync. All else is Sync.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is only ever used within `run`.
unsafe impl Send for Shared {}

/// Unwinds a thread that waits at the barrier for one that panicked.
struct Broken;

impl Pool {
    /// A pool of `threads` threads, the caller included; `None`: as many as this process may use at once (affinity
    /// and cgroup limits count).
    ///
    /// # Errors
    /// The operating system refuses a thread.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = threads.unwrap_or(cores).max(1);
        let shared = Arc::new(Shared {
            threads,
            spin: threads <= cores,
            busy: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            job: UnsafeCell::new(None),
            start: Signal::default(),
            running: AtomicUsize::new(0),
            done: Signal::default(),
            arrived: AtomicUsize::new(0),
            passed: Signal::default(),
            broken: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Pool { shared, workers: Vec::with_capacity(threads - 1) };
        for index in 1..threads {
            let shared = pool.shared.clone();
            let worker = std::thread::Builder::new()
                .name(format!("pensive-{index}"))
                .spawn(move || shared.work(index))
                .map_err(|e| Error::Usage(format!("cannot start {threads} threads: {e}; lower --threads")))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Calls `job` once on each thread and returns when all are through. A call from within a job, or while another
    /// thread's job runs, is executed by the caller alone.
    ///
    /// # Panics
    /// With the first panic of the job; the pool stays usable.
    pub fn run(&self, job: impl Fn(&Worker<'_>) + Sync) {
        let shared = &*self.shared;
        if shared.threads == 1 || shared.busy.swap(true, Ordering::Acquire) {
            return job(&Worker { index: 0, threads: 1, shared: None });
        }
        let erased: &(dyn Fn(&Worker<'_>) + Sync) = &job;
        // SAFETY: only the lifetime changes; the pointer is not used after this function returns, because it waits
        // for every worker. `busy` makes this thread the only writer.
        unsafe {
            *shared.job.get() =
                Some(std::mem::transmute::<*const (dyn Fn(&Worker<'_>) + Sync + '_), *const Job>(erased))
        };
        shared.running.store(shared.threads - 1, Ordering::Relaxed);
        let seen = shared.done.now();
        shared.start.advance();
        shared.take_part(0, &job);
        shared.done.wait(seen, shared.spin);

        let panic = lock(&shared.panic).take();
        shared.broken.store(false, Ordering::Relaxed);
        shared.arrived.store(0, Ordering::Relaxed);
        shared.busy.store(false, Ordering::Release);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Calls `job` on the caller alone, without waking anybody.
    pub fn solo(&self, job: impl Fn(&Worker<'_>)) {
        job(&Worker { index: 0, threads: 1, shared: None });
    }

    /// Calls `task` for each of `0..count`; threads claim at least `least` at a time.
    pub fn for_each(&self, count: usize, least: usize, task: impl Fn(usize) + Sync) {
        if count <= least {
            return (0..count).for_each(task);
        }
        let tasks = Tasks::new(count, least, self.threads());
        self.run(|_| {
            while let Some(range) = tasks.claim() {
                range.for_each(&task);
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.start.advance();
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // panics of jobs are caught, so there is nothing to report
        }
    }
}

impl Worker<'_> {
    /// Waits until every thread of the job stands here.
    pub fn barrier(&self) {
        if let Some(shared) = self.shared {
            shared.barrier();
        }
    }
}

impl Tasks {
    /// `count` tasks for `threads` threads, claimed `least` or more at a time.
    pub fn new(count: usize, least: usize, threads: usize) -> Self {
        Tasks { next: AtomicUsize::new(0), count, least: least.max(1), shares: 3 * threads }
    }

    /// The next run of tasks: a fixed share of what is left. None when all are taken.
    pub fn claim(&self) -> Option<Range<usize>> {
        // Relaxed: a claim orders nothing but itself; the tasks' data is ordered by the job's start, barriers and end.
        let mut from = self.next.load(Ordering::Relaxed);
        loop {
            let left = self.count - from;
            if left == 0 {
                return None;
            }
            let take = (left / self.shares).max(self.least).min(left);
            match self.next.compare_exchange_weak(from, from + take, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(from..from + take),
                Err(now) => from = now,
            }
        }
    }
}

impl Shared {
    /// A worker's life: job after job until the pool is dropped.
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            self.start.wait(seen, self.spin);
            seen = seen.wrapping_add(1); // no job is skipped: the next one starts only after this one's `running` is 0
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            // SAFETY: `start` advanced, so the pointer is set, and its target lives until `running` is 0.
            if let Some(job) = unsafe { *self.job.get() } {
                self.take_part(index, unsafe { &*job });
            }
            // AcqRel: the last one to leave has seen what the others wrote, and hands it on through `done`.
            if self.running.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.done.advance();
            }
        }
    }

    /// Executes the job on this thread; a panic is kept for the caller and frees those who wait at the barrier.
    fn take_part(&self, index: usize, job: &(impl Fn(&Worker<'_>) + Sync + ?Sized)) {
        let worker = Worker { index, threads: self.threads, shared: Some(self) };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(&worker))) {
            if !payload.is::<Broken>() {
                lock(&self.panic).get_or_insert(payload);
            }
            self.broken.store(true, Ordering::Relaxed); // released by `advance`
            self.passed.advance();
        }
    }

    fn barrier(&self) {
        // Read before `broken`: if the advance that follows a panic was already seen here, so is the flag; if it
        // comes later, it ends the wait.
        let seen = self.passed.now();
        if !self.broken.load(Ordering::Relaxed) {
            if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
                self.arrived.store(0, Ordering::Relaxed); // released by `advance`; nobody arrives again before it
                self.passed.advance();
            } else {
                self.passed.wait(seen, self.spin);
            }
        }
        if self.broken.load(Ordering::Relaxed) {
            resume_unwind(Box::new(Broken)); // past the panic hook: the first panic was reported already
        }
    }
}

/// A number that only grows, and on whose change threads wait.
#[derive(Default)]
#[repr(align(64))] // a cache line of its own: it is spun on
struct Signal {
    value: AtomicU32,
    sleepers: AtomicU32,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Signal {
    fn now(&self) -> u32 {
        self.value.load(Ordering::Acquire)
    }

    /// Adds one and wakes who waits.
    fn advance(&self) {
        // SeqCst here and in `sleep`: either this thread sees the sleeper, or the sleeper sees the new value.
        self.value.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // A sleeper holds the lock from its look at the value until it waits, so the notice cannot fall between.
            drop(lock(&self.lock));
            self.changed.notify_all();
        }
    }

    /// Returns once the value is no longer `seen`.
    fn wait(&self, seen: u32, spin: bool) {
        if spin {
            let began = Instant::now();
            while began.elapsed() < SPIN {
                for _ in 0..32 {
                    if self.now() != seen {
                        return;
                    }
                    std::hint::spin_loop();
                }
            }
        } else {
            for _ in 0..YIELDS {
                if self.now() != seen {
                    return;
                }
                std::thread::yield_now();
            }
        }
        self.sleep(seen);
    }

    #[cold]
    fn sleep(&self, seen: u32) {
        let mut guard = lock(&self.lock);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while self.value.load(Ordering::SeqCst) == seen {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// No lock of this module is held while foreign code runs, so poison means nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
