//! What a model's name means.

use std::fmt;
use std::path::PathBuf;

use crate::Result;
use crate::catalog::Entry;

/// What a name means.
#[derive(Clone, Debug, PartialEq)]
pub enum Reference {
    /// A file or folder of this machine.
    Path(PathBuf),
    /// Files of a hub repository.
    Hub(HubReference),
}

/// Files of a hub repository. [`fmt::Display`] writes it as a name that parses to the same.
#[derive(Clone, Debug, PartialEq)]
pub struct HubReference {
    /// `owner/name`.
    pub repository: String,
    /// Branch, tag or commit; `main` unless said otherwise.
    pub revision: String,
    /// Which of its files.
    pub select: Select,
    /// The catalog's entry, if it was named by a short name or the repository is the catalog's.
    pub entry: Option<&'static Entry>,
}

/// Which files of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Select {
    /// Nothing was said: the catalog's preferred quantization, else Q4_K_M, else the only one there is.
    Default,
    /// This quantization, in any case: `q8_0`.
    Quantization(String),
    /// This file of the repository; of a split model any part.
    File(String),
}

impl Reference {
    /// What `name` means; the first that holds:
    ///
    /// - an existing file or folder;
    /// - a catalog name: `deepseek-r1`, `deepseek-r1:7b`, `deepseek-r1:7b-q8_0`;
    /// - a hub id: `owner/repo[@revision][:QUANT]`, `owner/repo[@revision]/path/file.gguf`;
    /// - the same behind `hf.co/`, `huggingface.co/` or `endpoint`, with or without `https://`, also as copied from a
    ///   browser: `…/resolve/REV/file.gguf`, `…/blob/REV/file.gguf`, `…/tree/REV`.
    ///
    /// # Errors
    /// A path that does not exist; an unknown short name (suggests the nearest); a URL of another host.
    pub fn parse(name: &str, endpoint: &str) -> Result<Reference> {
        let _ = (name, endpoint);
        unimplemented!()
    }
}

impl fmt::Display for HubReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _ = f;
        unimplemented!()
    }
}
