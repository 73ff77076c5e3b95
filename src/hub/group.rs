//! The files that are one model.

use crate::catalog::{self, Entry};

/// A model of a repository: a GGUF file, the parts of a split one, or a checkpoint of safetensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// Path without `.gguf` and without the part's number; empty for a checkpoint.
    pub stem: String,
    /// Quantization by the name.
    pub label: Option<String>,
    /// Paths in the repository, in the order of the parts. Of a checkpoint the weights are last: where they are, a
    /// download has brought all.
    pub parts: Vec<String>,
    /// How many parts there should be.
    pub expected: usize,
    /// The first of them that is not there.
    pub missing: Option<String>,
    /// Whether it is a checkpoint, which is named by its folder.
    pub is_folder: bool,
}

impl Group {
    /// Whether every part is there.
    pub fn complete(&self) -> bool {
        self.missing.is_none()
    }

    /// How a list of choices shows it: by quantization, else by path.
    pub fn shown(&self) -> &str {
        match &self.label {
            _ if self.is_folder => "safetensors",
            Some(label) => label,
            None => &self.parts[0],
        }
    }

    /// The catalog's entry of it in a repository whose own is `entry`: a checkpoint is what an entry's authors published.
    pub fn entry(&self, repository: &str, entry: Option<&'static Entry>) -> Option<&'static Entry> {
        entry.or_else(|| catalog::for_original(repository).filter(|_| self.is_folder))
    }

    /// The stem without its folders.
    pub fn file_stem(&self) -> &str {
        self.stem.rsplit('/').next().unwrap_or(&self.stem)
    }
}
