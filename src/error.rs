//! The one error type: each message names the file or argument, what is wrong with it, and what to do.

use std::path::{Path, PathBuf};

/// What went wrong, in one line that a person can act on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument or option is wrong (the command line exits with 2).
    #[error("{0}")]
    Usage(String),
    /// A file is not what it should be.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it: the field and the values.
        what: String,
    },
    /// The operating system refused something.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// The hub, the network or the local cache said no.
    #[error("{0}")]
    Hub(String),
    /// The model is of a kind that this build cannot run.
    #[error("{0}")]
    Unsupported(String),
    /// The model and its context do not fit into memory.
    #[error("{0}")]
    Memory(String),
    /// A GPU, or the library that drives it, refused something.
    #[error("{device}: {what}")]
    Device {
        /// Which: "cuda:0".
        device: String,
        /// Its word.
        what: String,
    },
    /// The model's arithmetic overflowed, or its weights are no numbers.
    #[error("the model computes what is no number: its file may be damaged: remove and pull it again")]
    Numbers,
    /// The prompt leaves no room in the context.
    #[error("the prompt has {prompt} tokens and the context holds {context}: shorten it, or raise --context")]
    Context {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that the context holds.
        context: usize,
    },
    /// What may be generated is too little for a thought and an answer.
    #[error("{} of {room}: the end of a thought and an answer need at least {least}; raise it, or switch the thought off", match of_context {
        true => "room in the context",
        false => "max-tokens",
    })]
    Room {
        /// Tokens that may be generated.
        room: usize,
        /// Tokens that are needed.
        least: usize,
        /// Whether it is the context that ends there, else the bound on tokens.
        of_context: bool,
    },
    /// A saved sequence cannot be taken back.
    #[error("{0}")]
    Saved(String),
    /// The text cannot be rendered or encoded (chat template, tokenizer).
    #[error("{0}")]
    Text(String),
}

/// A result with pensive's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A fault in a file: `what` names the field and the remedy.
    pub fn file(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::File { path: path.as_ref().to_owned(), what: what.into() }
    }

    /// A failed system call on `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_owned(), source }
    }
}
