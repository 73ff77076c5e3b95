//! A loaded model.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Chat, Generation, Options, Prompt};
use crate::Result;
use crate::backend::KvType;
use crate::engine::sampling::{Sampling, SamplingOverrides};
use crate::reasoning::Think;
use crate::text::Tokenizer;

/// Progress of loading, for a bar.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Progress {
    /// Weights made ready, bytes.
    Load {
        /// So far.
        done: u64,
        /// Of so many.
        total: u64,
    },
    /// Something the user should read once ("the context is 8192 tokens: …").
    Notice(String),
}

/// How to load a model.
#[allow(dead_code)]
pub struct ModelBuilder {
    pub(crate) name: String,
    pub(crate) context: Option<usize>,
    pub(crate) threads: Option<usize>,
    pub(crate) kv_type: KvType,
    pub(crate) force: bool,
    pub(crate) download: bool,
    pub(crate) sampling: SamplingOverrides,
    pub(crate) think: Option<Think>,
    pub(crate) progress: Option<Box<dyn FnMut(Progress) + Send>>,
}

impl ModelBuilder {
    /// Context in tokens; without it the model's own, lowered to what fits into memory.
    pub fn context(mut self, tokens: usize) -> Self {
        self.context = Some(tokens);
        self
    }

    /// Threads; without it one per core that this process may use.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// How keys and values are stored.
    pub fn kv_type(mut self, kv_type: KvType) -> Self {
        self.kv_type = kv_type;
        self
    }

    /// Loads even what does not fit into memory.
    pub fn force(mut self, force: bool) -> Self {
        self.force = force;
        self
    }

    /// Lets the loader fetch a missing model from the hub. Off by default: loading never touches the network.
    pub fn download(mut self, download: bool) -> Self {
        self.download = download;
        self
    }

    /// Default sampling that goes before the model's own.
    pub fn sampling(mut self, sampling: SamplingOverrides) -> Self {
        self.sampling = sampling;
        self
    }

    /// Default for thinking that goes before the model's own.
    pub fn think(mut self, think: Think) -> Self {
        self.think = Some(think);
        self
    }

    /// Is told how loading goes on.
    pub fn progress(mut self, progress: impl FnMut(Progress) + Send + 'static) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }

    /// Loads it.
    pub fn load(self) -> Result<Model> {
        unimplemented!("W8")
    }
}

pub(crate) struct Inner {}

/// A loaded model: a cheap clone, shared between threads.
#[derive(Clone)]
pub struct Model {
    #[allow(dead_code)]
    pub(crate) inner: Arc<Inner>,
}

impl Model {
    /// Loads by short name, hub id (from the local cache) or path.
    pub fn load(name: &str) -> Result<Model> {
        Self::builder(name).load()
    }

    /// Loads with settings.
    pub fn builder(name: impl Into<String>) -> ModelBuilder {
        ModelBuilder {
            name: name.into(),
            context: None,
            threads: None,
            kv_type: KvType::default(),
            force: false,
            download: false,
            sampling: SamplingOverrides::default(),
            think: None,
            progress: None,
        }
    }

    /// Generates from a conversation, a user's text, or a raw prompt.
    pub fn generate(&self, prompt: impl Into<Prompt>, options: &Options) -> Result<Generation> {
        let _ = (prompt.into(), options);
        unimplemented!("W8")
    }

    /// A conversation with this model.
    pub fn chat(&self) -> Chat {
        unimplemented!("W8")
    }

    /// The name it was loaded by.
    pub fn name(&self) -> &str {
        unimplemented!("W8")
    }

    /// The files it was loaded from.
    pub fn files(&self) -> &[PathBuf] {
        unimplemented!("W8")
    }

    /// `qwen2`, `llama`, …
    pub fn architecture(&self) -> &str {
        unimplemented!("W8")
    }

    /// The device and its kernels: "cpu (avx512, 2 threads)".
    pub fn device(&self) -> String {
        unimplemented!("W8")
    }

    /// Context in tokens.
    pub fn context(&self) -> usize {
        unimplemented!("W8")
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        unimplemented!("W8")
    }

    /// Its default sampling.
    pub fn sampling(&self) -> Sampling {
        unimplemented!("W8")
    }

    /// Its default for thinking.
    pub fn think(&self) -> Think {
        unimplemented!("W8")
    }

    /// Seconds that loading took.
    pub fn load_seconds(&self) -> f64 {
        unimplemented!("W8")
    }
}
