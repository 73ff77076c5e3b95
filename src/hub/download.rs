//! One file, from the hub into the cache.
//!
//! What has arrived is kept as `<hash>.incomplete` whatever happens, and the next download goes on behind it. Before it
//! becomes the blob its hash is compared with the hub's.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use ureq::http::header;
use ureq::http::response::Parts;

use super::cache::CachedRepo;
use super::client::{Client, Failure, LONGEST_PAUSE};
use super::plan::{Hash, Phase, Plan, PlannedFile, Progress, size};
use crate::{Error, Result};

/// Tries in a row that bring no byte before a download gives up.
const TRIES: u32 = 5;
/// Wait after the first failure; it doubles with every further one.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a cancel may stay unseen while nothing arrives.
const GLANCE: Duration = Duration::from_millis(100);
/// Bytes of a piece of a body, and pieces that may wait to be written.
const PIECE: usize = 64 << 10;
const PIECES: usize = 4;

/// The download of a plan's files.
pub(super) struct Download<'a> {
    pub client: Arc<Client>,
    pub repo: CachedRepo,
    pub plan: &'a Plan,
    pub progress: &'a mut dyn FnMut(&Progress),
    pub cancel: &'a AtomicBool,
    /// Bytes of the files before this one.
    pub before: u64,
}

/// A partial file and the hash of what it holds.
struct Partial {
    file: File,
    hash: Hash,
    length: u64,
}

/// What a connection brings: a head, then pieces of the body.
enum Arrival {
    Head(Box<Parts>),
    Piece(Vec<u8>),
}

/// How one connection ended.
enum End {
    /// The file is complete.
    Complete,
    /// It broke; whether bytes had come.
    Broken(Failure, bool),
}

impl Download<'_> {
    /// Brings `file` into the cache; afterwards its blob is there, and is what the hub has. Returns where the snapshot
    /// has it; that is made under the lock too, or two processes would both make it.
    pub fn fetch(&mut self, file: &PlannedFile) -> Result<std::path::PathBuf> {
        let hash = file.hash();
        let make = |folder: &Path| fs::create_dir_all(folder).map_err(|error| Error::io(folder, error));
        make(self.repo.lock(hash).parent().unwrap_or(Path::new("")))?;
        let _lock = self.lock(file)?;
        // under the lock: another process may remove what an earlier download left, and the folder with it
        make(&self.repo.blobs())?;
        // Another process may have finished it while this one waited.
        let here = self.repo.here(file, &self.plan.commit);
        if here.map_or(Ok(false), |path| self.is_sound(file, &path))? {
            return self.repo.point(hash, &self.plan.commit, &file.path);
        }
        let path = self.repo.partial(hash);
        let mut partial = self.open_partial(file)?;
        let mut failures = 0;
        let mut furthest = partial.length;
        while partial.length < file.size {
            let (failure, moved) = match self.receive(file, &mut partial)? {
                End::Complete => break,
                // A server without ranges starts over: what came before is no progress.
                End::Broken(failure, moved) => (failure, moved && partial.length > furthest),
            };
            furthest = furthest.max(partial.length);
            failures = if moved { 1 } else { failures + 1 };
            if !failure.passing || failures >= TRIES || failure.wait > Some(LONGEST_PAUSE) {
                let kept = match partial.length {
                    0 => String::new(),
                    length => format!(
                        "; {} of {} are kept, the next pull goes on there",
                        size(length),
                        size(file.size)
                    ),
                };
                return Err(Error::Hub(format!("{}: {}{kept}", file.path, failure.what)));
            }
            self.report(file, Phase::Retrying { attempt: failures, wait: failure.wait }, partial.length);
            self.sleep(failure.wait.unwrap_or(PAUSE * 2u32.pow(failures - 1)))?;
        }
        let found = partial.hash.finish();
        if found != hash || partial.length != file.size {
            drop(partial.file);
            fs::remove_file(&path).map_err(|error| Error::io(&path, error))?;
            let what = file.other_bytes(&found);
            return Err(Error::Hub(format!("{what}; they were removed: pull again")));
        }
        partial.file.sync_data().map_err(|error| Error::io(&path, error))?;
        drop(partial.file); // Windows renames no open file
        let blob = self.repo.blob(hash);
        fs::rename(&path, &blob).map_err(|error| Error::io(&blob, error))?;
        self.repo.point(hash, &self.plan.commit, &file.path)
    }

    /// Counts `file` as done and says so.
    pub fn finish(&mut self, file: &PlannedFile) {
        let phase = if file.here == file.size { Phase::Checking } else { Phase::Downloading };
        self.report(file, phase, file.size);
        self.before += file.size;
    }

    /// Waits until no other process downloads this file. Where the file system knows no locks there is none. The
    /// lock's text is the file's path: by it a removal knows whose beginning this is.
    fn lock(&mut self, file: &PlannedFile) -> Result<Option<File>> {
        let path = self.repo.lock(file.hash());
        let lock = OpenOptions::new().create(true).write(true).truncate(false).open(&path);
        let lock = lock.map_err(|error| Error::io(&path, error))?;
        let note = || {
            let noted = lock.set_len(0).and_then(|()| (&lock).write_all(file.path.as_bytes()));
            noted.map_err(|error| Error::io(&path, error))
        };
        loop {
            match lock.try_lock() {
                Ok(()) => {
                    note()?;
                    return Ok(Some(lock));
                }
                Err(TryLockError::WouldBlock) => self.report(file, Phase::Waiting, 0),
                Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
                    note()?;
                    return Ok(None);
                }
                Err(TryLockError::Error(error)) => return Err(Error::io(&path, error)),
            }
            self.sleep(Duration::from_millis(100))?;
        }
    }

    /// What an earlier download left, read again for its hash.
    fn open_partial(&mut self, file: &PlannedFile) -> Result<Partial> {
        let path = self.repo.partial(file.hash());
        let failed = |error| Error::io(&path, error);
        let options = OpenOptions::new().create(true).read(true).append(true).open(&path);
        let mut partial = Partial { file: options.map_err(failed)?, hash: Hash::of(file), length: 0 };
        if partial.file.metadata().map_err(failed)?.len() > file.size {
            partial.restart(file).map_err(failed)?; // no beginning of this file
        }
        self.read_again(file, &mut partial, &path)?;
        Ok(partial)
    }

    fn read_again(&mut self, file: &PlannedFile, partial: &mut Partial, path: &Path) -> Result<()> {
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = partial.file.read(&mut buffer).map_err(|error| Error::io(path, error))?;
            if n == 0 {
                return Ok(());
            }
            partial.hash.update(&buffer[..n]);
            partial.length += n as u64;
            self.report(file, Phase::Checking, partial.length);
            self.check_cancel()?;
        }
    }

    /// Whether what is here is what the hub has, if the plan asks to look; what is not is removed.
    fn is_sound(&mut self, file: &PlannedFile, path: &Path) -> Result<bool> {
        if !self.plan.verify {
            return Ok(true);
        }
        let failed = |error| Error::io(path, error);
        let there = File::open(path).map_err(failed)?;
        let mut there = Partial { file: there, hash: Hash::of(file), length: 0 };
        self.read_again(file, &mut there, path)?;
        drop(there.file); // Windows removes no open file
        if there.hash.finish() == file.hash() {
            return Ok(true);
        }
        self.report(file, Phase::Damaged, 0);
        fs::remove_file(path).map_err(failed)?;
        Ok(false)
    }

    /// Appends what one connection brings.
    fn receive(&mut self, file: &PlannedFile, partial: &mut Partial) -> Result<End> {
        let path = self.repo.partial(file.hash());
        let failed = |error| Error::io(&path, error);
        let arrivals = self.ask(file, partial.length);
        let mut start = partial.length;
        loop {
            let failure = match self.wait(&arrivals)? {
                Some(Ok(Arrival::Piece(bytes))) => {
                    partial.append(&bytes).map_err(failed)?;
                    if partial.length > file.size {
                        return Ok(End::Complete); // more than there should be: the hash will not match
                    }
                    self.report(file, Phase::Downloading, partial.length);
                    continue;
                }
                Some(Ok(Arrival::Head(head))) if continues(&head, partial.length) => continue,
                // A server that knows no ranges sends everything, and one that has another size has another file.
                Some(Ok(Arrival::Head(head))) => {
                    partial.restart(file).map_err(failed)?;
                    start = 0;
                    if head.status == 200 {
                        continue;
                    }
                    passing("the hub cannot go on where the download stopped")
                }
                Some(Err(failure)) => failure,
                None if partial.length == file.size => return Ok(End::Complete),
                None => passing("the connection ended early"),
            };
            return Ok(End::Broken(failure, partial.length > start));
        }
    }

    /// Asks for a file from byte `from` on, in a thread of its own: one that waits for the network sees no cancel.
    /// When nobody listens any more it ends with the next piece, or by the client's time limits.
    fn ask(&self, file: &PlannedFile, from: u64) -> Receiver<Result<Arrival, Failure>> {
        let client = Arc::clone(&self.client);
        let (repository, commit) = (self.plan.repository.clone(), self.plan.commit.clone());
        let path = file.path.clone();
        let (arrives, arrivals) = sync_channel(PIECES);
        thread::spawn(move || {
            let (head, body) = match client.file(&repository, &commit, &path, from) {
                Ok(answer) => answer.into_parts(),
                Err(failure) => return drop(arrives.send(Err(failure))),
            };
            let mut arrived = Ok(Arrival::Head(Box::new(head)));
            let mut body = body.into_reader();
            while arrives.send(arrived).is_ok() {
                let mut piece = vec![0; PIECE];
                arrived = match body.read(&mut piece) {
                    Ok(0) => return,
                    Ok(n) => {
                        piece.truncate(n);
                        Ok(Arrival::Piece(piece))
                    }
                    Err(error) => Err(passing(format!("the connection broke: {error}"))),
                };
            }
        });
        arrivals
    }

    /// The next arrival; none after the last.
    fn wait(
        &self,
        arrivals: &Receiver<Result<Arrival, Failure>>,
    ) -> Result<Option<Result<Arrival, Failure>>> {
        loop {
            self.check_cancel()?;
            match arrivals.recv_timeout(GLANCE) {
                Ok(arrival) => return Ok(Some(arrival)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }

    fn report(&mut self, file: &PlannedFile, phase: Phase, done: u64) {
        let total = self.plan.total_bytes();
        (self.progress)(&Progress { file: &file.path, phase, done: self.before + done, total });
    }

    fn sleep(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.check_cancel()?;
            thread::sleep(Duration::from_millis(50).min(time));
        }
        self.check_cancel()
    }

    fn check_cancel(&self) -> Result<()> {
        if !self.cancel.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(Error::Hub("the download was stopped; the next pull goes on where it is".into()))
    }
}

impl Partial {
    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self, file: &PlannedFile) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hash = Hash::of(file);
        self.length = 0;
        Ok(())
    }
}

/// A failure after which the same may succeed.
fn passing(what: impl Into<String>) -> Failure {
    Failure { what: what.into(), passing: true, wait: None }
}

/// Whether an answer's body begins at byte `from`.
fn continues(answer: &Parts, from: u64) -> bool {
    if answer.status != 206 {
        return answer.status != 416 && from == 0;
    }
    // Content-Range: bytes 100-199/200
    let range = answer.headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
    start == Some(from)
}
