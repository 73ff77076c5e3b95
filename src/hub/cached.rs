//! What is in the cache.

use std::path::PathBuf;
use std::time::SystemTime;

/// A GGUF model of the cache: one quantization of one revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Cached {
    /// How to name it: the catalog's short name, else `owner/repo:QUANT`, else `owner/repo/file.gguf`.
    pub name: String,
    /// `owner/name`.
    pub repository: String,
    /// Branches and tags that point here, or the commit where there is none.
    pub revision: String,
    /// The commit.
    pub commit: String,
    /// The files in the order of their parts.
    pub files: Vec<PathBuf>,
    /// Quantization by the file's name.
    pub quantization: Option<String>,
    /// Architecture by the file's metadata: `qwen2`.
    pub architecture: Option<String>,
    /// Size on disk, bytes.
    pub bytes: u64,
    /// Licence: the catalog's words, else the file's metadata.
    pub licence: Option<String>,
    /// When its first file was last read or written, whichever is later.
    pub last_used: Option<SystemTime>,
    /// Whether pensive runs it, or why not.
    pub runnable: Result<(), String>,
}
