//! Removing a model from the cache.

use std::path::PathBuf;

/// What a removal will delete; nothing is deleted yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The names in the snapshot that go.
    pub files: Vec<PathBuf>,
    /// The blobs that go: those that no other snapshot uses.
    pub blobs: Vec<PathBuf>,
    /// Bytes that become free.
    pub freed_bytes: u64,
    /// Blobs that stay because another snapshot uses them.
    pub kept: Vec<PathBuf>,
}
