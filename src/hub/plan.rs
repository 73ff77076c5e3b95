//! What a download will fetch, and how it goes.

use crate::catalog::Entry;

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
    /// Licence: the catalog's words, else what the repository states; none if it states none.
    pub licence: Option<String>,
    /// Free bytes on the cache's disk, if the system says.
    pub free_disk: Option<u64>,
    /// The catalog's entry.
    pub entry: Option<&'static Entry>,
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
    /// Bytes arrive.
    Downloading,
    /// The connection broke; the next try is this one.
    Retrying {
        /// 1 is the first try after the first failure.
        attempt: u32,
    },
}
