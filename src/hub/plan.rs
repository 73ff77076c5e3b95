//! What a download will fetch, and how it goes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::Settings;
use super::cache::CachedRepo;
use super::client::{Client, Failure, LONGEST_PAUSE, RemoteFile};
use super::group::Group;
use super::models::{Choice, choose, models};
use super::reference::{HubReference, Select};
use crate::catalog::Entry;
use crate::checkpoint::safetensors::{INDEX, Index};
use crate::quant::Mix;
use crate::{Error, Result};

/// What a download will fetch; nothing is fetched yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// `owner/name`.
    pub repository: String,
    /// Branch, tag or commit that was asked for.
    pub revision: String,
    /// The commit it stands for.
    pub commit: String,
    /// Quantization by the files' name.
    pub quantization: Option<String>,
    /// The files, in the order of their parts.
    pub files: Vec<PlannedFile>,
    /// Whether they are a checkpoint of safetensors, which is named by its folder.
    pub is_folder: bool,
    /// Licence: the catalog's words, else what the repository states; none if it states none.
    pub licence: Option<String>,
    /// Free bytes on the cache's disk, if the system says.
    pub free_disk: Option<u64>,
    /// The catalog's entry.
    pub entry: Option<&'static Entry>,
    /// What the repository has: quantizations (`Q4_K_M`), paths of files whose names have none, or `safetensors`.
    pub choices: Vec<String>,
    /// Whether files that are here are read again, and fetched anew where their bytes are not the hub's (off).
    pub verify: bool,
}

/// A file of a [`Plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedFile {
    /// Path in the repository.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 by the hub, hexadecimal; none for a small file outside LFS, which has a git hash instead.
    pub sha256: Option<String>,
    /// Git blob hash (SHA-1), hexadecimal.
    pub git_sha1: Option<String>,
    /// Bytes that are here already: all of them, or those of a download that was stopped.
    pub here: u64,
}

impl Plan {
    /// Size of all files, bytes.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.size).sum()
    }

    /// What is still to be downloaded, bytes.
    pub fn missing_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.size - f.here.min(f.size)).sum()
    }

    /// # Errors
    /// If the cache's disk has no room for what is missing.
    pub(super) fn check_room(&self, cache: &Path) -> Result<()> {
        match self.free_disk {
            Some(free) if free < self.missing_bytes() => Err(Error::Hub(format!(
                "{} needs {} more on the disk of {}, and {} are free: make room, or set HF_HUB_CACHE to a folder on another disk",
                self.repository,
                size(self.missing_bytes()),
                cache.display(),
                size(free)
            ))),
            _ => Ok(()),
        }
    }
}

impl PlannedFile {
    /// The hash that names its blob: SHA-256, else git's.
    pub(super) fn hash(&self) -> &str {
        self.sha256.as_deref().or(self.git_sha1.as_deref()).unwrap_or_default()
    }

    /// That bytes with the hash `found` came in its place.
    pub(super) fn other_bytes(&self, found: &str) -> String {
        let name = if self.sha256.is_some() { "SHA-256" } else { "the git hash" };
        let (path, hash) = (&self.path, self.hash());
        format!("{path}: the bytes that came are not the hub's ({name} is {found}, the hub says {hash})")
    }
}

/// The hash that the hub names a file by: SHA-256, or git's own (SHA-1 over a short head and the bytes) for a small file
/// outside LFS.
pub(super) enum Hash {
    Sha256(Box<Sha256>),
    Git(Box<Sha1>),
}

impl Hash {
    pub fn of(file: &PlannedFile) -> Hash {
        if file.sha256.is_some() {
            return Hash::Sha256(Box::default());
        }
        let head = format!("blob {}\0", file.size);
        Hash::Git(Box::new(Sha1::new_with_prefix(head)))
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hash::Sha256(hash) => hash.update(bytes),
            Hash::Git(hash) => hash.update(bytes),
        }
    }

    pub fn finish(self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Hash::Sha256(hash) => hex(&hash.finalize()),
            Hash::Git(hash) => hex(&hash.finalize()),
        }
    }
}

/// How a download goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file at hand: its path in the repository.
    pub file: &'a str,
    /// What is being done.
    pub phase: Phase,
    /// Bytes of all files that are here (while [`Phase::Checking`]: that were read again).
    pub done: u64,
    /// Bytes of all files.
    pub total: u64,
}

/// What a download does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Another process downloads the same file: waiting for it.
    Waiting,
    /// Reads what an earlier download left.
    Checking,
    /// What is here is not what the hub has: it is removed, and fetched anew.
    Damaged,
    /// Bytes arrive.
    Downloading,
    /// The connection broke; the next try is this one.
    Retrying {
        /// 1 is the first try after the first failure.
        attempt: u32,
        /// How long the hub asks to wait before it.
        wait: Option<Duration>,
    },
}

/// Tries for the listing; a download that has begun is more patient.
const TRIES: u32 = 3;

/// Asks the hub for the listing and finds the reference's files in it.
pub(super) fn make(settings: &Settings, reference: &HubReference, wait: &dyn Fn(Duration)) -> Result<Plan> {
    if settings.offline.value {
        let what = "is asked for at the hub, and pensive is offline (--offline or HF_HUB_OFFLINE)";
        return Err(Error::Hub(format!("{reference} {what}")));
    }
    let client = Client::new(settings)?;
    let listing = patiently(wait, || client.listing(&reference.repository, &reference.revision))?;
    let repo = CachedRepo::new(&settings.cache.value, &reference.repository, &reference.revision);
    let planned = |path: &str| {
        let remote = listing.files.iter().find(|file| file.path == path);
        let file = remote.and_then(planned).ok_or_else(|| {
            Error::Hub(format!("{}: the hub states no size and no hash of {path}", reference.repository))
        })?;
        Ok(PlannedFile { here: repo.bytes_here(&file, &listing.commit), ..file })
    };
    let paths: Vec<&str> = listing.files.iter().map(|file| file.path.as_str()).collect();
    let index = || {
        let index = bytes(&client, &repo, reference, &listing.commit, &planned(INDEX)?, wait)?;
        Index::parse(&index).map_err(|what| Error::Hub(format!("{}: {INDEX}: {what}", reference.repository)))
    };
    let groups = models(&paths, index)?;
    let group = pick(&groups, reference)?;
    let mut choices: Vec<String> = groups.iter().map(|group| group.shown().to_owned()).collect();
    choices.sort();
    choices.dedup();
    let files = group.parts.iter().map(|path| planned(path)).collect::<Result<_>>()?;
    let entry = group.entry(&reference.repository, reference.entry);
    Ok(Plan {
        repository: reference.repository.clone(),
        revision: reference.revision.clone(),
        commit: listing.commit,
        quantization: group.label.clone(),
        files,
        is_folder: group.is_folder,
        licence: entry.map(|entry| entry.licence.clone()).or(listing.licence),
        free_disk: free_disk(&settings.cache.value),
        entry,
        choices,
        verify: false,
    })
}

/// A small file's bytes, before it is downloaded: from the cache if it is there, else from the hub, checked.
fn bytes(
    client: &Client,
    repo: &CachedRepo,
    reference: &HubReference,
    commit: &str,
    file: &PlannedFile,
    wait: &dyn Fn(Duration),
) -> Result<Vec<u8>> {
    let hash_of = |bytes: &[u8]| {
        let mut hash = Hash::of(file);
        hash.update(bytes);
        hash.finish()
    };
    if let Some(path) = repo.here(file, commit) {
        let bytes = std::fs::read(&path).map_err(|error| Error::io(&path, error))?;
        if hash_of(&bytes) == file.hash() {
            return Ok(bytes);
        }
    }
    let bytes = patiently(wait, || client.bytes(&reference.repository, commit, &file.path))?;
    let found = hash_of(&bytes);
    if found != file.hash() {
        return Err(Error::Hub(format!("{}; try again", file.other_bytes(&found))));
    }
    Ok(bytes)
}

/// Asks several times, unless the hub asks for more patience than there is; `wait` wait as long as it asks.
fn patiently<T>(wait: &dyn Fn(Duration), ask: impl Fn() -> Result<T, Failure>) -> Result<T> {
    let mut tries = 1;
    loop {
        let failure = match ask() {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        if !failure.passing || tries == TRIES || failure.wait > Some(LONGEST_PAUSE) {
            return Err(Error::Hub(failure.what));
        }
        match failure.wait {
            Some(asked) => wait(asked),
            None => std::thread::sleep(Duration::from_millis(250 << tries)),
        }
        tries += 1;
    }
}

const ELSEWHERE: &str = "look for a repository of the same model whose name ends in -GGUF";

/// The model that is meant; an error lists what is there.
fn pick<'a>(groups: &'a [Group], reference: &HubReference) -> Result<&'a Group> {
    let repository = &reference.repository;
    let what = match choose(groups, reference) {
        Choice::One(group) if group.complete() => return Ok(group),
        Choice::One(Group { is_folder: true, missing: Some(file), .. }) => {
            format!("{repository} has no GGUF file, and its checkpoint lacks {file}: {ELSEWHERE}")
        }
        Choice::One(group) => {
            format!(
                "{repository} has {} of the {} parts of {}",
                group.parts.len(),
                group.expected,
                group.stem
            )
        }
        Choice::Several(several) => several_message(repository, &several),
        Choice::None if groups.iter().any(|group| group.is_folder) => safetensors_message(reference),
        Choice::None if groups.is_empty() => {
            format!("{repository} has no GGUF file, and no config.json with safetensors: {ELSEWHERE}")
        }
        Choice::None => {
            let wanted = match &reference.select {
                Select::File(path) => path,
                _ => reference.wanted(),
            };
            let mut shown: Vec<&str> = groups.iter().map(Group::shown).collect();
            shown.dedup();
            format!(
                "{repository} has no {wanted}; it has {} (name one: {repository}:QUANT)",
                shown.join(", ")
            )
        }
    };
    Err(Error::Hub(what))
}

/// That a reference means several models, and how to name one.
pub(super) fn several_message(repository: &str, several: &[&Group]) -> String {
    let files: Vec<String> = several.iter().map(|group| format!("{repository}/{}", group.parts[0])).collect();
    format!("{repository} has several such models; name one of them: {}", files.join(", "))
}

/// That a repository of safetensors has no quantizations, and how to get one.
pub(super) fn safetensors_message(reference: &HubReference) -> String {
    let repository = &reference.repository;
    let known = Mix::parse(reference.wanted()).map_or("Q4_K_M", |mix| mix.name).to_lowercase();
    format!(
        "{repository} holds safetensors, no GGUF files of {}: name it {repository} and add --quantize {known}, which \
         quantizes it while it is loaded",
        match &reference.select {
            Select::File(path) => path,
            _ => reference.wanted(),
        }
    )
}

fn planned(file: &RemoteFile) -> Option<PlannedFile> {
    let known = file.sha256.is_some() || file.git_sha1.is_some();
    Some(PlannedFile {
        path: file.path.clone(),
        size: file.size.filter(|_| known)?,
        sha256: file.sha256.clone(),
        git_sha1: file.git_sha1.clone(),
        here: 0,
    })
}

impl CachedRepo {
    /// Bytes of a file that are here: all of them, or those of a download that was stopped.
    pub(super) fn bytes_here(&self, file: &PlannedFile, commit: &str) -> u64 {
        if self.here(file, commit).is_some() {
            return file.size;
        }
        let partial = std::fs::metadata(self.partial(file.hash())).map_or(0, |meta| meta.len());
        if partial <= file.size { partial } else { 0 }
    }

    /// Where a file is, complete: as a blob, or in the snapshot itself where links cannot be made.
    pub(super) fn here(&self, file: &PlannedFile, commit: &str) -> Option<PathBuf> {
        let places = [self.blob(file.hash()), self.pointer(commit, &file.path)];
        places.into_iter().find(|path| has_size(path, file.size))
    }
}

fn has_size(path: &Path, size: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.len() == size)
}

/// Bytes as a person reads them: `4.68 GB`, `12 MB`.
pub(super) fn size(bytes: u64) -> String {
    match bytes as f64 {
        n if n >= 1e9 => format!("{:.2} GB", n / 1e9),
        n if n >= 1e6 => format!("{:.0} MB", n / 1e6),
        n => format!("{n} bytes"),
    }
}

/// Free bytes on the disk that `folder` is on, or will be.
fn free_disk(folder: &Path) -> Option<u64> {
    folder.ancestors().find(|f| f.exists()).and_then(|f| fs4::available_space(f).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_file_is_checked_by_gits_hash() {
        let file = PlannedFile {
            path: "x.gguf".into(),
            size: 6,
            sha256: None,
            git_sha1: Some("ce013625030ba8dba906f756967f9e9ca394464a".into()),
            here: 0,
        };
        let mut hash = Hash::of(&file);
        hash.update(b"hello\n"); // printf 'hello\n' | git hash-object --stdin
        assert_eq!(hash.finish(), file.hash());
    }

    #[test]
    fn sizes_are_written_for_people() {
        assert_eq!(size(4_683_073_248), "4.68 GB");
        assert_eq!(size(98_362_432), "98 MB");
        assert_eq!(size(512), "512 bytes");
    }
}
