//! A thread pool made for a chain of short parallel steps.
//!
//! A decoder issues some hundred parallel steps per token, each of 10 to 500 µs. So the workers wait for the next step
//! by spinning, and sleep only after `SPIN` without one; the caller takes part in every step; a step costs one
//! wake-up even if it has several phases ([`Worker::wait`]); nothing is allocated.
//!
//! Threads wait for tasks, never for threads: a worker that the system keeps from running does not hold up a step
//! unless it was stopped within a task. The others do its share, and it joins when it comes, or finds the step over.
//!
//! What one thread wrote before the start of a step, in a task that was waited for, or before the step's end is seen
//! by all after it: each of the three is a `Signal`, whose `advance` releases and whose `wait` acquires.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::cores;
use crate::{Error, Result};

/// How long a thread spins before it sleeps: longer than the serial work between two steps of a decoder, far shorter
/// than the pause between two prompts.
const SPIN: Duration = Duration::from_micros(50);

/// Most threads of a pool: with many more, the standard library cannot report what the system refuses them.
const MOST_THREADS: usize = 1024;

/// Bytes of a thread's stack: kernels that are not optimized (debug builds) take over two million. The system gives what is touched.
const STACK: usize = 8 << 20;

/// Times that a thread gives way before it sleeps, where there are more threads than cores.
const YIELDS: usize = 4;

/// A fixed set of threads, the caller among them, that execute one job at a time.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// One thread's view of the job that it takes part in.
pub struct Worker {
    /// This thread, among [`Pool::threads`]; 0 is the caller.
    pub index: usize,
    spin: bool,
}

/// What the threads of a job claim from: tasks `0..count`. Each thread has a share of its own, so that it reads one
/// stretch of memory, and helps with the others' when that is taken.
pub struct Tasks {
    shares: [Share; SHARES],
    /// Of which are in use.
    used: usize,
    /// Tasks that are not done yet.
    left: AtomicUsize,
    least: usize,
    /// Advances once, when all are done.
    done: Signal,
}

/// Most shares of a job's tasks; more threads take theirs from the same ones.
const SHARES: usize = 16;

/// Consecutive tasks, claimed in ascending runs that grow smaller towards the end.
#[derive(Default)]
#[repr(align(64))] // a cache line of its own
struct Share {
    next: AtomicUsize,
    end: usize,
}

/// The runs of tasks that one thread claims. They count as done when it is dropped: once for all of them, because
/// a thread that writes where another has just written waits as long as many tasks take.
pub struct Claims<'a> {
    tasks: &'a Tasks,
    share: usize,
    /// Shares that may have tasks left, `share` among them.
    shares: usize,
    claimed: usize,
}

type Job = dyn Fn(&Worker) + Sync;

/// Bit of [`Shared::state`]: workers may join the job.
const OPEN: u32 = 1 << 31;

struct Shared {
    threads: usize,
    /// Whether each thread may have a core to itself.
    spin: bool,
    /// Set while a job runs; guards `job`.
    busy: AtomicBool,
    stop: AtomicBool,
    /// [`OPEN`], and the number of workers that are in the job.
    state: AtomicU32,
    /// Valid for those who are in the job, and while it is open.
    job: UnsafeCell<Option<*const Job>>,
    start: Signal,
    /// The last worker has left a job that is no longer open.
    left: Signal,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written by the thread that holds `busy`, before it sets `OPEN`, and read by workers after they
// joined, which they do only while it is set; the holder takes it off and waits until all have left before it returns.
// The job itself is Sync. All else is Sync.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is only ever used within `run`.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` threads, the caller included; `None`: one for each fast physical core that this process may use.
    ///
    /// # Errors
    /// More than 1,024 threads; the operating system refuses a thread.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        let threads = threads.unwrap_or_else(|| cores::count().min(MOST_THREADS)).max(1);
        if threads > MOST_THREADS {
            return Err(Error::Usage(format!("{threads} threads: --threads must be at most {MOST_THREADS}")));
        }
        let shared = Arc::new(Shared {
            threads,
            spin: threads <= cores::available(),
            busy: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            state: AtomicU32::new(0),
            job: UnsafeCell::new(None),
            start: Signal::default(),
            left: Signal::default(),
            panic: Mutex::new(None),
        });
        let mut pool = Pool { shared, workers: Vec::with_capacity(threads - 1) };
        for index in 1..threads {
            let shared = pool.shared.clone();
            let worker = std::thread::Builder::new()
                .name(format!("pensive-{index}"))
                .stack_size(STACK)
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

    /// Calls `job` on this thread, and on each worker that comes before this thread is through with it; returns when
    /// all are. The job claims its work from [`Tasks`]: which threads take part is up to the system. A call from
    /// within a job, or while another thread's job runs, is executed by the caller alone.
    ///
    /// # Panics
    /// With the first panic of the job; the pool stays usable.
    pub fn run(&self, job: impl Fn(&Worker) + Sync) {
        let shared = &*self.shared;
        if shared.threads == 1 || shared.busy.swap(true, Ordering::Acquire) {
            return self.solo(job);
        }
        let erased: &(dyn Fn(&Worker) + Sync) = &job;
        // SAFETY: only the lifetime changes; the pointer is not used after this function returns, because it waits
        // for every worker that joined. `busy` makes this thread the only writer.
        unsafe {
            *shared.job.get() =
                Some(std::mem::transmute::<*const (dyn Fn(&Worker) + Sync + '_), *const Job>(erased))
        };
        shared.state.store(OPEN, Ordering::Release);
        shared.start.advance();
        shared.take_part(0, &job);
        let seen = shared.left.now();
        if shared.state.fetch_and(!OPEN, Ordering::AcqRel) != OPEN {
            shared.left.wait(seen, shared.spin);
        }
        let panic = lock(&shared.panic).take();
        shared.busy.store(false, Ordering::Release);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Calls `job` on the caller alone, without waking anybody.
    pub fn solo(&self, job: impl Fn(&Worker)) {
        job(&Worker { index: 0, spin: false });
    }

    /// Calls `task` for each of `0..count`; threads claim at least `least` at a time.
    pub fn for_each(&self, count: usize, least: usize, task: impl Fn(usize) + Sync) {
        if count <= least {
            return (0..count).for_each(task);
        }
        let tasks = Tasks::new(count, least, self.threads());
        self.run(|worker| {
            tasks.claims(worker).for_each(|run| run.for_each(&task));
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

impl Worker {
    /// Waits until all of these tasks are done. There must be none left to claim.
    pub fn wait(&self, tasks: &Tasks) {
        tasks.done.wait(0, self.spin);
    }
}

impl Tasks {
    /// `count` tasks for `threads` threads, claimed `least` or a multiple of it at a time.
    pub fn new(count: usize, least: usize, threads: usize) -> Self {
        Self::of_lists(std::iter::once(count), least, threads)
    }

    /// The tasks of some lists, so many each. A share is the same part of every list, one after the other: see
    /// [`in_lists`](Self::in_lists).
    pub fn of_lists(counts: impl Iterator<Item = usize> + Clone, least: usize, threads: usize) -> Self {
        let used = threads.clamp(1, SHARES);
        let before = |share| counts.clone().map(|count| part(count, share, used).start).sum();
        let shares = std::array::from_fn(|i| match i < used {
            true => Share { next: AtomicUsize::new(before(i)), end: before(i + 1) },
            false => Share::default(),
        });
        let (count, done) = (before(used), Signal::default());
        if count == 0 {
            done.advance();
        }
        Tasks { shares, used, left: AtomicUsize::new(count), least: least.max(1), done }
    }

    /// Calls `call(list, tasks)` for the tasks of each list that a claimed run consists of.
    pub fn in_lists(
        &self,
        run: Range<usize>,
        counts: impl Iterator<Item = usize> + Clone,
        mut call: impl FnMut(usize, Range<usize>),
    ) {
        let mut first = 0; // tasks of the parts before
        for share in 0..self.used {
            for (list, count) in counts.clone().enumerate() {
                let part = part(count, share, self.used);
                let (from, to) = (run.start.max(first), run.end.min(first + part.len()));
                if from < to {
                    call(list, part.start + from - first..part.start + to - first);
                }
                first += part.len();
            }
        }
    }

    /// Claims tasks for a thread, run by run, until all are taken.
    pub fn claims(&self, worker: &Worker) -> Claims<'_> {
        Claims { tasks: self, share: worker.index % self.used, shares: self.used, claimed: 0 }
    }
}

/// A share's part of so many things.
pub fn part(count: usize, share: usize, shares: usize) -> Range<usize> {
    count * share / shares..count * (share + 1) / shares
}

impl Share {
    /// The next run: a third of what is left, in multiples of `least`.
    fn claim(&self, least: usize) -> Option<Range<usize>> {
        // Relaxed: a claim orders nothing but itself; the tasks' data is ordered by the job's start, waits and end.
        let mut from = self.next.load(Ordering::Relaxed);
        loop {
            let left = self.end - from;
            if left == 0 {
                return None;
            }
            let take = (left / 3).max(1).next_multiple_of(least).min(left);
            match self.next.compare_exchange_weak(from, from + take, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(from..from + take),
                Err(now) => from = now,
            }
        }
    }
}

impl Iterator for Claims<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        while self.shares > 0 {
            if let Some(run) = self.tasks.shares[self.share].claim(self.tasks.least) {
                self.claimed += run.len();
                return Some(run);
            }
            self.share = (self.share + 1) % self.tasks.used;
            self.shares -= 1;
        }
        None
    }
}

impl Drop for Claims<'_> {
    /// After a panic too: the others must not wait for ever.
    fn drop(&mut self) {
        let (tasks, claimed) = (self.tasks, self.claimed);
        // AcqRel: who finishes last has seen what the others wrote, and hands it on through `done`.
        if claimed > 0 && tasks.left.fetch_sub(claimed, Ordering::AcqRel) == claimed {
            tasks.done.advance();
        }
    }
}

impl Shared {
    /// A worker's life: job after job until the pool is dropped.
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            self.start.wait(seen, self.spin);
            seen = self.start.now();
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            // It may be a later job than the one that woke this thread, or even the same once more: no matter.
            let join = |state| (state & OPEN != 0).then(|| state + 1);
            if self.state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, join).is_err() {
                continue; // the others were through already
            }
            // SAFETY: this thread has joined, so the pointer is set, and its target lives until it leaves.
            if let Some(job) = unsafe { *self.job.get() } {
                self.take_part(index, unsafe { &*job });
            }
            // AcqRel: the last one to leave has seen what the others wrote, and hands it on through `left`.
            if self.state.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.left.advance();
            }
        }
    }

    /// Executes the job on this thread; a panic is kept for the caller.
    fn take_part(&self, index: usize, job: &(impl Fn(&Worker) + Sync + ?Sized)) {
        let worker = Worker { index, spin: self.spin };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(&worker))) {
            lock(&self.panic).get_or_insert(payload);
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
