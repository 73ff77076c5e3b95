//! A loaded model.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::FairMutex;

#[cfg(feature = "hub")]
use super::CancelHandle;
use super::Quantize;
use super::memory::Sizes;
use crate::backend::devices::DeviceChoice;
use crate::backend::{Device, KvType};
use crate::catalog::{self, Entry};
#[cfg(not(feature = "hub"))]
use crate::checkpoint::embedded;
use crate::checkpoint::{Checkpoint, GgufMetadata, Metadata};
use crate::engine::{Engine, Feed, Sequence, Wants};
use crate::model::{Hyperparameters, Scaling, Synthetic};
use crate::quant::Mix;
use crate::reasoning::control::{self, ControlTokens};
use crate::reasoning::{Markers, Think};
use crate::text::{ChatTemplate, Special, Tokenizer};
use crate::{Error, Result, Sampling, SamplingOverrides};

mod loading;

use loading::Loaded;

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
    /// A download, bytes.
    Download {
        /// So far.
        done: u64,
        /// Of so many.
        total: u64,
    },
    /// Something the user should read once ("the context is 8192 tokens: …").
    Notice(String),
}

/// How to load a model.
pub struct ModelBuilder {
    name: String,
    context: Option<usize>,
    threads: Option<usize>,
    device: DeviceChoice,
    gpu_layers: Option<usize>,
    sizes: Sizes,
    /// Rows of a step that were asked for.
    chunk: Option<usize>,
    quantize: Quantize,
    #[cfg(feature = "hub")]
    cancel: CancelHandle,
    force: bool,
    synthetic: Option<Option<usize>>,
    download: bool,
    sampling: SamplingOverrides,
    think: Option<Think>,
    progress: Box<dyn FnMut(Progress) + Send>,
}

impl ModelBuilder {
    /// Context in tokens; without it the model's own, lowered to what fits into memory.
    pub fn context(mut self, tokens: usize) -> Self {
        self.context = Some(tokens);
        self
    }

    /// Threads; without it one per fast physical core that this process may use.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// What it runs on; without it a GPU that this build can use, else the CPU.
    pub fn device(mut self, device: DeviceChoice) -> Self {
        self.device = device;
        self
    }

    /// Layers that go to the GPU, the last ones, with the output matrix; without it as many as fit into its memory.
    pub fn gpu_layers(mut self, layers: usize) -> Self {
        self.gpu_layers = Some(layers);
        self
    }

    /// Tokens of a prompt that are read in one step (512, on NVIDIA GPUs 2048). Changes speed and memory; on the CPU never a
    /// result.
    pub fn chunk(mut self, tokens: usize) -> Self {
        self.chunk = Some(tokens.max(1));
        self
    }

    /// How many sequences of a full context the KV cache has room for (1). Generations that run at the same time,
    /// and chats that keep theirs, share it.
    pub fn sequences(mut self, sequences: usize) -> Self {
        self.sizes.sequences = sequences.max(1);
        self
    }

    /// Rows whose logits one step can give (16): drafts are that long at most, and receipts are checked in such pieces.
    pub fn logit_rows(mut self, rows: usize) -> Self {
        self.sizes.logit_rows = rows.max(1);
        self
    }

    /// How keys and values are stored.
    pub fn kv_type(mut self, kv_type: KvType) -> Self {
        self.sizes.kv_type = kv_type;
        self
    }

    /// What becomes of weights that are stored as plain floats.
    pub fn quantize(mut self, quantize: Quantize) -> Self {
        self.quantize = quantize;
        self
    }

    /// Loads even what does not fit into memory.
    pub fn force(mut self, force: bool) -> Self {
        self.force = force;
        self
    }

    /// Makes a model in memory instead of loading one: that of the catalog by this name, in shapes and types, with weights
    /// that are noise ([`Synthetic`]). `layers`: only so many, the first ones.
    pub fn synthetic(mut self, layers: Option<usize>) -> Self {
        self.synthetic = Some(layers);
        self
    }

    /// Lets the loader fetch a missing model from the hub. Off by default: loading never touches the network.
    pub fn download(mut self, download: bool) -> Self {
        self.download = download;
        self
    }

    /// Lets a download be stopped from another thread; what is there of it is kept.
    #[cfg(feature = "hub")]
    pub fn cancel(mut self, handle: &CancelHandle) -> Self {
        self.cancel = handle.clone();
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
        self.progress = Box::new(progress);
        self
    }

    /// Loads it.
    ///
    /// # Errors
    /// A name that is not known or not on this machine; a file that is broken; an architecture or a format that
    /// pensive does not run; too little memory.
    pub fn load(mut self) -> Result<Model> {
        let began = Instant::now();
        self.check_context()?;
        let (found, checkpoint) = match self.synthetic {
            Some(layers) => {
                let synthetic = Synthetic::new(&self.name, layers)?;
                let found = Found { path: PathBuf::new(), entry: Some(synthetic.entry()) };
                (found, synthetic.checkpoint())
            }
            None => {
                let found = self.find()?;
                let checkpoint = Checkpoint::open(&found.path)?;
                (found, checkpoint)
            }
        };
        let hyperparameters = Hyperparameters::read(&checkpoint)?;
        if checkpoint.tensors.is_empty() {
            return Err(Error::file(&found.path, "holds no tensors, only metadata: there is nothing to run"));
        }
        // a model that was named by its path has the same defaults as by its short name
        let known = || catalog::for_metadata(&hyperparameters.architecture, &checkpoint.names());
        let entry = found.entry.or_else(known);
        // the vocabulary is built while the weights are made ready
        let (text, engine) = std::thread::scope(|scope| {
            let read = || Text::read(&checkpoint.metadata);
            let text = std::thread::Builder::new().spawn_scoped(scope, read);
            let engine = self.engine(&checkpoint, &hyperparameters);
            // where the system has no thread left, it is built afterwards
            let text = text.map_or_else(|_| read(), |text| text.join().expect("building it does not panic"));
            (text, engine)
        });
        let (text, Loaded { engine, context, placed, quantized, weight_bytes }) = (text?, engine?);
        let h = engine.decoder().hyperparameters();
        let own = generation_config(&checkpoint.metadata);
        let recommended = entry.map(|e| e.sampling).unwrap_or_default();
        let markers = entry.map(Entry::markers).or_else(|| text.markers());
        let (thinks, markers) = (markers.is_some(), markers.unwrap_or_default());
        let control_tokens = control_tokens(&text.tokenizer, &markers)?;
        if let Some(id) = control_tokens.all().find(|&id| id as usize >= h.vocabulary) {
            let file = vocabulary_file(&checkpoint.metadata).unwrap_or_else(|| found.path.clone());
            let what = format!(
                "token {id} ({:?}) ends texts or bounds thoughts, but the embedding has {} rows: take the vocabulary that \
                 belongs to these weights",
                text.tokenizer.decode(&[id]),
                h.vocabulary
            );
            return Err(Error::file(file, what));
        }
        let inner = Inner {
            name: self.name,
            weight_bytes,
            quantized,
            parameters: checkpoint.tensors.values().map(|t| t.rows() as u64 * t.columns() as u64).sum(),
            files: checkpoint.files,
            architecture: h.architecture.clone(),
            device: engine.device(),
            placed,
            context,
            long_from: match h.rope_scaling {
                Scaling::Long { original_context, .. } => Some(original_context),
                _ => None,
            },
            vocabulary: h.vocabulary,
            tokenizer: text.tokenizer,
            template: text.template,
            thinks,
            markers,
            control_tokens,
            blank_tokens: OnceLock::new(),
            sampling: self.sampling.or(recommended).or(own).over(Sampling::default()),
            think: self.think.or(entry.map(|e| e.think)).unwrap_or_default(),
            path: found.path,
            kv_type: engine.kv_type(),
            kv_bytes: engine.kv_bytes(),
            engine: FairMutex::new(engine),
            load_seconds: began.elapsed().as_secs_f64(),
        };
        Ok(Model { inner: Arc::new(inner) })
    }

    /// Where the files are; fetches them if that is allowed.
    #[cfg(feature = "hub")]
    fn find(&mut self) -> Result<Found> {
        use crate::hub::{Hub, Reference};
        let hub = Hub::from_env()?;
        let reference = hub.reference(&self.name)?;
        let located = match (hub.find(&reference)?, &reference) {
            (Some(located), _) => located,
            (None, Reference::Hub(reference)) if self.download => {
                let plan = hub.plan(reference, &|wait| self.cancel.sleep(wait))?;
                let progress = &mut self.progress;
                let mut report = |p: &crate::hub::Progress<'_>| {
                    progress(Progress::Download { done: p.done, total: p.total });
                };
                hub.pull(&plan, &mut report, self.cancel.switch())?
            }
            (None, _) => {
                return Err(Error::Hub(format!(
                    "{} is not on this machine: fetch it with `pensive pull {}`",
                    self.name, self.name
                )));
            }
        };
        hub.touch(&located);
        let path = located.files.first().cloned().unwrap_or_default();
        Ok(Found { path, entry: located.entry })
    }

    /// Where the files are: without the hub a model is named by its path.
    #[cfg(not(feature = "hub"))]
    fn find(&mut self) -> Result<Found> {
        if self.download {
            return Err(Error::Unsupported("this build cannot download: it was made without `hub`".into()));
        }
        let path = embedded::path(&self.name).map_or_else(|| PathBuf::from(&self.name), Path::to_owned);
        Ok(Found { path, entry: None })
    }
}

struct Found {
    path: PathBuf,
    entry: Option<&'static Entry>,
}

/// What turns text into tokens.
struct Text {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl Text {
    fn read(metadata: &Metadata) -> Result<Self> {
        let tokenizer = Tokenizer::from_metadata(metadata)?;
        let template = ChatTemplate::of(metadata, &tokenizer)?;
        Ok(Text { tokenizer, template })
    }

    /// The markers of a model that is not in the catalog, if it has any.
    fn markers(&self) -> Option<Markers> {
        let template = self.template.as_ref().map(ChatTemplate::source);
        Markers::find(template, |token| self.tokenizer.id(token).is_some())
    }
}

/// Sampling that a checkpoint recommends: a Hugging Face repository in generation_config.json, a GGUF file under
/// `general.sampling`.
pub fn generation_config(metadata: &Metadata) -> SamplingOverrides {
    let folder = match metadata {
        Metadata::HuggingFace { folder, .. } => folder,
        Metadata::Gguf(pairs) => return gguf_sampling(pairs),
    };
    let Some(config) = std::fs::read(folder.join("generation_config.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok())
    else {
        return SamplingOverrides::default();
    };
    let number = |key: &str| config.get(key).and_then(|v| v.as_f64()).map(|v| v as f32);
    SamplingOverrides {
        temperature: number("temperature"),
        top_k: config.get("top_k").and_then(|v| v.as_u64()).map(|v| v as usize),
        top_p: number("top_p"),
        min_p: number("min_p"),
        repeat_penalty: number("repetition_penalty"),
        ..SamplingOverrides::default()
    }
}

/// `general.sampling.temp` and its like; what is not a number is left out.
fn gguf_sampling(pairs: &GgufMetadata) -> SamplingOverrides {
    let number = |key: &str| pairs.find::<f32>(&format!("general.sampling.{key}")).ok().flatten();
    SamplingOverrides {
        temperature: number("temp"),
        top_k: pairs.find::<usize>("general.sampling.top_k").ok().flatten(),
        top_p: number("top_p"),
        min_p: number("min_p"),
        repeat_penalty: number("penalty_repeat"),
        ..SamplingOverrides::default()
    }
}

/// The file that the vocabulary was read from.
fn vocabulary_file(metadata: &Metadata) -> Option<PathBuf> {
    match metadata {
        Metadata::Gguf(pairs) => Some(pairs.file().to_owned()),
        Metadata::HuggingFace { folder, .. } => ["tokenizer.json", "tekken.json"]
            .map(|name| folder.join(name))
            .into_iter()
            .find(|path| path.exists()),
    }
}

/// What the control of thoughts writes and looks for, in this vocabulary.
fn control_tokens(tokenizer: &Tokenizer, markers: &Markers) -> Result<ControlTokens> {
    let encode = |text: &str| tokenizer.encode(text, Special::Parse);
    let ends = [markers.start_token(), markers.end_token()];
    let others = markers.tokens().into_iter().filter(|token| !ends.contains(token));
    Ok(ControlTokens {
        sentence: encode(control::CLOSING)?,
        line_end: encode("\n")?,
        end: encode(&markers.closing())?,
        wait: encode(control::WAIT)?,
        repeating: encode(control::REPEATING)?,
        markers: ends.map(|token| tokenizer.id(token)),
        headers: others.filter_map(|token| tokenizer.id(token)).collect(),
        ends: tokenizer.ends().to_vec(),
    })
}

pub(crate) struct Inner {
    name: String,
    path: PathBuf,
    files: Vec<PathBuf>,
    architecture: String,
    device: Device,
    placed: Vec<(String, usize)>,
    weight_bytes: u64,
    quantized: Option<Mix>,
    parameters: u64,
    context: usize,
    /// Of LongRoPE: contexts above this one have other factors.
    long_from: Option<usize>,
    vocabulary: usize,
    tokenizer: Tokenizer,
    pub(super) template: Option<ChatTemplate>,
    /// Whether the catalog, its template or its vocabulary knows markers.
    thinks: bool,
    markers: Markers,
    pub(super) control_tokens: ControlTokens,
    /// Tokens of which nothing can be seen, found when they are needed.
    blank_tokens: OnceLock<Vec<u32>>,
    sampling: Sampling,
    think: Think,
    pub(super) kv_type: KvType,
    /// Bytes of a position's keys and values.
    pub(super) kv_bytes: usize,
    /// Fair: generations of several threads take turns step by step.
    pub(super) engine: FairMutex<Engine>,
    load_seconds: f64,
}

impl Inner {
    /// Whether logits do not depend on the batch.
    pub(super) fn is_exact(&self) -> bool {
        self.device.is_exact()
    }
}

/// A loaded model: a cheap clone, shared between threads.
#[derive(Clone)]
pub struct Model {
    pub(super) inner: Arc<Inner>,
}

impl Model {
    /// Loads by short name, hub id (from the local cache) or path.
    ///
    /// # Errors
    /// As [`ModelBuilder::load`].
    pub fn load(name: &str) -> Result<Model> {
        Self::builder(name).load()
    }

    /// Loads with settings.
    pub fn builder(name: impl Into<String>) -> ModelBuilder {
        ModelBuilder {
            name: name.into(),
            context: None,
            threads: None,
            device: DeviceChoice::default(),
            gpu_layers: None,
            sizes: Sizes::default(),
            chunk: None,
            quantize: Quantize::default(),
            force: false,
            synthetic: None,
            download: false,
            #[cfg(feature = "hub")]
            cancel: CancelHandle::new(),
            sampling: SamplingOverrides::default(),
            think: None,
            progress: Box::new(|_| {}),
        }
    }

    /// The logits after each of `tokens`, in order: `visit` is called with the position and the logits `[vocabulary]`. It must not
    /// generate with this model or evaluate: it would wait for its own end.
    ///
    /// # Errors
    /// More tokens than the context holds, or a token beyond the vocabulary.
    pub fn evaluate(&self, tokens: &[u32], visit: impl FnMut(usize, &[f32])) -> Result<()> {
        self.evaluate_from(tokens, 0, visit)
    }

    /// [`evaluate`](Self::evaluate) from position `first` on; what stands before it is only read.
    pub(super) fn evaluate_from(
        &self,
        tokens: &[u32],
        first: usize,
        mut visit: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        if tokens.len() > self.context() {
            return Err(Error::Context { prompt: tokens.len(), context: self.context() });
        }
        let mut engine = self.inner.engine.lock();
        let mut sequence = Sequence::new();
        for tokens in tokens[..first].chunks(engine.max_rows()) {
            engine.step(&mut [Feed { sequence: &mut sequence, tokens, wants: Wants::Nothing }])?;
        }
        for chunk in tokens[first..].chunks(engine.max_logit_rows()) {
            let at = sequence.len();
            let feed = Feed { sequence: &mut sequence, tokens: chunk, wants: Wants::All };
            let logits = engine.step(&mut [feed])?;
            logits.chunks(self.vocabulary()).enumerate().for_each(|(i, row)| visit(at + i, row));
        }
        Ok(())
    }

    /// Tokens of which nothing can be seen: white space and control tokens.
    pub(super) fn blank_tokens(&self) -> &[u32] {
        self.inner.blank_tokens.get_or_init(|| {
            let tokenizer = self.tokenizer();
            let blank = |&id: &u32| {
                tokenizer.is_control(id) || tokenizer.bytes(id).iter().all(u8::is_ascii_whitespace)
            };
            let known = tokenizer.len().min(self.vocabulary()); // no logits are given for tokens beyond the embedding
            (0..known as u32).filter(blank).collect()
        })
    }

    /// The name it was loaded by.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The file or folder it was loaded from; empty for a synthetic model.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The files it was loaded from.
    pub fn files(&self) -> &[PathBuf] {
        &self.inner.files
    }

    /// `qwen2`, `llama`, …
    pub fn architecture(&self) -> &str {
        &self.inner.architecture
    }

    /// The device and its kernels: "cpu (avx512, 2 threads)".
    pub fn device(&self) -> Device {
        self.inner.device.clone()
    }

    /// Devices in the order of their layers, and how many each has: "cpu" 12, "cuda:0" 20.
    pub fn placed(&self) -> &[(String, usize)] {
        &self.inner.placed
    }

    /// Bytes of all its tensors, as they were loaded.
    pub fn weight_bytes(&self) -> u64 {
        self.inner.weight_bytes
    }

    /// What its weights were quantized to while it was loaded; none: they are as its files have them.
    pub fn quantized(&self) -> Option<Mix> {
        self.inner.quantized
    }

    /// Number of values in all its tensors.
    pub fn parameters(&self) -> u64 {
        self.inner.parameters
    }

    /// SHA-256, in hexadecimal, of its files: of one file its own, of several that of one after the other.
    /// `progress` is told (bytes done, bytes in all).
    ///
    /// # Errors
    /// A file that cannot be read any more.
    pub fn sha256(&self, progress: impl FnMut(u64, u64)) -> Result<String> {
        super::digest::sha256(&self.inner.files, progress)
    }

    /// Context in tokens.
    pub fn context(&self) -> usize {
        self.inner.context
    }

    /// The same, where it decides how positions are encoded (LongRoPE).
    pub(super) fn rope_context(&self) -> Option<usize> {
        self.inner.long_from.map(|_| self.inner.context)
    }

    /// Whether positions are encoded as in a context of so many tokens, if that decides it.
    pub(super) fn encodes_positions_as_with(&self, context: usize) -> bool {
        self.inner.long_from.is_some_and(|from| (context > from) == (self.inner.context > from))
    }

    /// Number of tokens that it knows: the width of its logits.
    pub fn vocabulary(&self) -> usize {
        self.inner.vocabulary
    }

    /// How its keys and values are stored.
    pub fn kv_type(&self) -> KvType {
        self.inner.kv_type
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.tokenizer
    }

    /// The source of its chat template.
    pub fn template_source(&self) -> Option<&str> {
        self.inner.template.as_ref().map(ChatTemplate::source)
    }

    /// Whether its chat template reads a variable of this name.
    pub fn reads_variable(&self, name: &str) -> bool {
        self.inner.template.as_ref().is_some_and(|template| template.reads(name))
    }

    /// Whether it is known to think; if not, its [`markers`](Self::markers) are a guess.
    pub fn thinks(&self) -> bool {
        self.inner.thinks
    }

    /// The strings between which it thinks.
    pub fn markers(&self) -> &Markers {
        &self.inner.markers
    }

    /// Its default sampling.
    pub fn sampling(&self) -> Sampling {
        self.inner.sampling
    }

    /// Its default for thinking.
    pub fn think(&self) -> Think {
        self.inner.think
    }

    /// Seconds that loading took.
    pub fn load_seconds(&self) -> f64 {
        self.inner.load_seconds
    }
}
