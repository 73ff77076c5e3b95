//! `pensive show MODEL`: what is known of a model, from its files or, before a download, from the catalog.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use super::args::ShowArgs;
use super::render::{Console, bytes, gib, print, table};
use super::session::{Named, missing};
use super::{memory, pull};
use crate::api::memory::{Needs, Sizes, available_and_total_bytes};
use crate::api::{Quantize, ROOM, expectation, generation_config};
use crate::backend::KvType;
use crate::catalog::{self, Entry};
use crate::checkpoint::{Checkpoint, Metadata, Tensor, Value, embedded};
use crate::hub::{HubReference, Located, Reference, Select};
use crate::model::{Decoder, Hyperparameters, Reads, Synthetic};
use crate::quant::BlockType;
use crate::reasoning::Markers;
use crate::text::{ChatTemplate, Tokenizer};
use crate::{Error, Result, Sampling, Think};

/// Contexts that the memory is given for beside the model's own, tokens.
const CONTEXTS: [usize; 2] = [8_192, 32_768];

pub(super) fn run(args: &ShowArgs, console: &Console) -> Result<ExitCode> {
    let named = Named::find(&args.model)?;
    let facts = match (&named.located, &named.reference) {
        (Some(located), _) => {
            from_files(&args.model, located, args.context, args.quantize.unwrap_or_default())?
        }
        (None, Reference::Hub(reference)) => match reference.entry {
            Some(entry) if !matches!(reference.select, Select::File(_)) => {
                let quantization = match &reference.select {
                    Select::Quantization(name) => name.to_uppercase(),
                    _ => entry.quantization.clone(),
                };
                from_catalog(&args.model, entry, quantization, args.context)
            }
            _ => from_hub(&args.model, &named.name, reference, args.offline, console)?,
        },
        (None, Reference::Path(_)) => return Err(missing(&named.name)),
    };
    if args.json {
        print(serde_json::to_string_pretty(&facts).map_err(|e| Error::Text(e.to_string()))? + "\n")?;
    } else {
        print(table(&facts.lines()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is known of a model.
#[derive(Debug, Serialize)]
struct Facts {
    name: String,
    /// Its files are on this machine.
    downloaded: bool,
    repository: Option<String>,
    commit: Option<String>,
    /// None of these is known of a model that only the hub has.
    architecture: Option<String>,
    parameters: Option<u64>,
    quantization: Option<String>,
    /// Bytes of the weights: of the files, or estimated.
    bytes: Option<u64>,
    /// What the weights are quantized to while they are loaded.
    loaded_as: Option<String>,
    context: Option<usize>,
    /// None: it will be known when it is here.
    runnable: Option<bool>,
    why_not: Option<String>,
    licence: Option<String>,
    memory: Vec<Memory>,
    /// Of generating with little in the cache, on this machine.
    expected_tokens_per_second: Option<f64>,
    chat_template: Option<bool>,
    thinking: Option<Thinking>,
    sampling: Option<Sampling>,
    /// Of a model that only the hub has: their paths there.
    files: Vec<String>,
    /// Quantizations that the hub has.
    choices: Vec<String>,
}

/// Memory needed at a context.
#[derive(Debug, Serialize)]
struct Memory {
    context: usize,
    bytes: u64,
    /// What is needed at least: experts may stay in the file.
    least: u64,
}

/// How the model marks its thoughts.
#[derive(Debug, Serialize)]
struct Thinking {
    start: String,
    end: String,
    default: Think,
}

impl Thinking {
    fn new(markers: Markers, default: Think) -> Self {
        Thinking { start: markers.start, end: markers.end, default }
    }

    fn of(entry: &Entry) -> Self {
        Thinking::new(entry.markers(), entry.think)
    }
}

fn from_catalog(name: &str, entry: &Entry, quantization: String, context: Option<usize>) -> Facts {
    let bytes = entry.weight_bytes(&quantization);
    let synthetic = Synthetic::new(&format!("{}-{quantization}", entry.name), None).ok();
    let reads = synthetic.as_ref().map(Reads::of_synthetic);
    let bytes = bytes.or_else(|| synthetic.as_ref().map(Synthetic::bytes));
    let own_context = Some(entry.shape.context);
    let memory = match (&synthetic, &reads, bytes) {
        (Some(synthetic), Some(reads), _) => {
            memory_at(context, own_context, of_needs(needs(synthetic.hyperparameters(), reads)))
        }
        (_, _, Some(weights)) => {
            memory_at(context, own_context, |context| (weights.saturating_add(entry.kv_bytes(context)), 0))
        }
        _ => Vec::new(),
    };
    let expected = reads.and_then(|reads| {
        let file = (reads.all_experts > 0).then(file_on_the_disk).flatten();
        expected_speed(&reads, &memory, file.as_deref())
    });
    Facts {
        name: name.to_owned(),
        downloaded: false,
        repository: Some(entry.repository.clone()),
        commit: None,
        architecture: Some(entry.architecture.clone()),
        parameters: Some((entry.shape.billions * 1e9) as u64),
        quantization: Some(quantization),
        bytes,
        loaded_as: None,
        context: Some(entry.shape.context),
        runnable: Some(entry.runnable().is_ok()),
        why_not: entry.runnable().err(),
        licence: Some(entry.licence.clone()),
        memory,
        expected_tokens_per_second: expected,
        chat_template: None,
        thinking: Some(Thinking::of(entry)),
        sampling: Some(entry.sampling.over(Sampling::default())),
        files: Vec::new(),
        choices: Vec::new(),
    }
}

/// Of a repository that is not in the catalog: what the hub lists.
fn from_hub(
    shown: &str,
    name: &str,
    reference: &HubReference,
    offline: bool,
    console: &Console,
) -> Result<Facts> {
    let hub = pull::hub(offline)?;
    if hub.settings().offline.value {
        return Err(missing(name));
    }
    let plan = pull::plan(&hub, reference, console)?;
    let bytes = plan.total_bytes();
    Ok(Facts {
        name: shown.to_owned(),
        downloaded: false,
        repository: Some(plan.repository),
        commit: Some(plan.commit),
        architecture: None,
        parameters: None,
        quantization: plan.quantization,
        bytes: Some(bytes),
        loaded_as: None,
        context: None,
        runnable: None,
        why_not: None,
        licence: plan.licence,
        memory: Vec::new(),
        expected_tokens_per_second: None,
        chat_template: None,
        thinking: None,
        sampling: None,
        files: plan.files.into_iter().map(|file| file.path).collect(),
        choices: plan.choices,
    })
}

fn from_files(name: &str, located: &Located, context: Option<usize>, quantize: Quantize) -> Result<Facts> {
    let first = located.files.first().ok_or_else(|| Error::Hub(format!("{name} has no files")))?;
    let checkpoint = Checkpoint::open(first)?;
    let fields = Fields::new(&checkpoint.metadata);
    let h = Hyperparameters::read(&checkpoint).ok();
    let architecture = h.as_ref().map_or(&fields.architecture, |h| &h.architecture);
    let entry = located.entry.or_else(|| catalog::for_metadata(architecture, &checkpoint.names()));
    let template = match ChatTemplate::from_metadata(&checkpoint.metadata)? {
        Some(own) => Some(own),
        None => {
            let tokenizer = Tokenizer::from_metadata(&checkpoint.metadata).ok();
            let of = |tokenizer: Tokenizer| ChatTemplate::of(&checkpoint.metadata, &tokenizer);
            tokenizer.map(of).transpose()?.flatten()
        }
    };
    let weights = size_on_disk(&checkpoint)?;
    let own_context = fields.number("context_length", "max_position_embeddings");
    let token = kv_bytes_per_token(&checkpoint, &fields);
    let room = context.unwrap_or(ROOM.min(own_context.unwrap_or(ROOM))) as u64;
    let conversion = h.as_ref().and_then(|h| {
        let kv = token.unwrap_or(0).saturating_mul(room);
        let available = available_and_total_bytes().0;
        quantize.conversion(&checkpoint, h, |weights| weights.saturating_add(kv) <= available / 4 * 3)
    });
    let reads = h.as_ref().map(|h| Reads::of(&checkpoint, h, conversion.as_ref()));
    let memory = match (&h, &reads, token) {
        (Some(h), Some(reads), _) => {
            let made = Decoder::made_bytes(&checkpoint, h, conversion.as_ref());
            let needs = needs(h, reads);
            let needs = Needs { weights: needs.weights.saturating_add_signed(made), ..needs };
            memory_at(context, own_context, of_needs(needs))
        }
        (_, _, Some(token)) => memory_at(context, own_context, |context| {
            (weights.saturating_add(token.saturating_mul(context as u64)), 0)
        }),
        _ => Vec::new(),
    };
    let runnable = match checkpoint.tensors.is_empty() {
        true => Err("it holds no weights, only metadata".to_owned()),
        false => catalog::runnable_architecture(&fields.architecture),
    };
    let expected = reads.filter(|_| runnable.is_ok());
    let expected = expected.and_then(|reads| expected_speed(&reads, &memory, Some(first)));
    let by_files = || {
        let tokenizer = Tokenizer::from_metadata(&checkpoint.metadata).ok();
        let is_token = |literal: &str| tokenizer.as_ref().is_some_and(|t| t.id(literal).is_some());
        let markers = Markers::find(template.as_ref().map(ChatTemplate::source), is_token);
        markers.map(|markers| Thinking::new(markers, Think::Auto))
    };
    Ok(Facts {
        name: name.to_owned(),
        downloaded: true,
        repository: located.repository.clone(),
        commit: located.commit.clone(),
        parameters: Some(checkpoint.tensors.values().map(|t| (t.rows() * t.columns()) as u64).sum()),
        quantization: Some(
            located.quantization.clone().unwrap_or_else(|| main_type(checkpoint.tensors.values())),
        ),
        bytes: Some(weights),
        loaded_as: conversion.map(|to| to.mix.name.to_owned()),
        context: own_context,
        runnable: Some(runnable.is_ok()),
        why_not: runnable.err(),
        licence: entry.map(|e| e.licence.clone()).or_else(|| fields.text("general.license")),
        expected_tokens_per_second: expected,
        memory,
        chat_template: Some(template.is_some()),
        thinking: entry.map(Thinking::of).or_else(by_files),
        sampling: Some(
            entry
                .map(|e| e.sampling)
                .unwrap_or_default()
                .or(generation_config(&checkpoint.metadata))
                .over(Sampling::default()),
        ),
        files: checkpoint.files.iter().map(|f| f.display().to_string()).collect(),
        choices: Vec::new(),
        architecture: Some(fields.architecture),
    })
}

/// Keys and values of one token in all layers, as f16: as the decoder stores them, or what the fields of one that it
/// does not run say.
fn kv_bytes_per_token(checkpoint: &Checkpoint, fields: &Fields) -> Option<u64> {
    match Hyperparameters::read(checkpoint) {
        Ok(h) => Some((h.layers * h.kv_shape().position_bytes(KvType::F16)) as u64),
        Err(_) => fields.kv_bytes_per_token(),
    }
}

/// What a model takes beside its context.
fn needs(h: &Hyperparameters, reads: &Reads) -> Needs {
    Needs::new(h, reads.matrices(), reads.experts_in_file, Sizes::default())
}

/// Bytes at a context, and those of experts among them.
fn of_needs(needs: Needs) -> impl Fn(usize) -> (u64, u64) {
    move |context| (needs.total(context), needs.experts)
}

/// Memory at some contexts: the one that was asked for, else usual ones and the model's own.
fn memory_at(asked: Option<usize>, own: Option<usize>, bytes: impl Fn(usize) -> (u64, u64)) -> Vec<Memory> {
    let contexts: Vec<usize> = match (asked, own) {
        (Some(asked), _) => vec![asked],
        (None, Some(own)) => CONTEXTS.into_iter().filter(|&c| c < own).chain([own]).collect(),
        (None, None) => CONTEXTS.to_vec(),
    };
    contexts
        .into_iter()
        .map(|context| {
            let (bytes, experts) = bytes(context);
            Memory { context, bytes, least: bytes.saturating_sub(experts) }
        })
        .collect()
}

/// Tokens per second on this machine, where the first of these contexts fits: `file` is where experts would be read from.
fn expected_speed(reads: &Reads, memory: &[Memory], file: Option<&Path>) -> Option<f64> {
    let (memory, available) = (memory.first()?, available_and_total_bytes().0);
    available.checked_sub(memory.least)?;
    let room = available.saturating_sub(memory.bytes.saturating_sub(reads.all_experts));
    let setting = expectation::Setting { threads: None, room, file };
    expectation::tokens_per_second(reads, setting).ok().flatten()
}

/// A file on the disk that models are downloaded to, as far as one is there: the largest of the cache, else this program.
fn file_on_the_disk() -> Option<PathBuf> {
    let cached = pull::hub(true).and_then(|hub| hub.list()).unwrap_or_default();
    let files = cached.into_iter().flat_map(|model| model.files);
    let size = |file: &PathBuf| std::fs::metadata(file).map_or(0, |there| there.len());
    files.max_by_key(size).or_else(|| std::env::current_exe().ok())
}

fn size_on_disk(checkpoint: &Checkpoint) -> Result<u64> {
    let size = |file: &PathBuf| match embedded::bytes(file) {
        Some(bytes) => Ok(bytes.len() as u64),
        None => std::fs::metadata(file).map(|m| m.len()).map_err(|e| Error::io(file, e)),
    };
    checkpoint.files.iter().map(size).sum()
}

/// The type that most bytes are stored in.
fn main_type<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> String {
    let mut sizes: BTreeMap<BlockType, usize> = BTreeMap::new();
    for tensor in tensors {
        *sizes.entry(tensor.kind).or_default() += tensor.bytes().len();
    }
    sizes.into_iter().max_by_key(|(_, size)| *size).map_or_else(String::new, |(kind, _)| format!("{kind:?}"))
}

/// Fields that GGUF and config.json hold under different names. What the decoder cannot run is shown as well, so
/// a field that is missing is no error here.
struct Fields<'a> {
    metadata: &'a Metadata,
    architecture: String,
}

impl<'a> Fields<'a> {
    fn new(metadata: &'a Metadata) -> Self {
        let mut fields = Fields { metadata, architecture: String::new() };
        fields.architecture = match metadata {
            Metadata::Gguf(_) => fields.text("general.architecture"),
            Metadata::HuggingFace { .. } => fields.text("model_type"),
        }
        .unwrap_or_else(|| "unknown".into());
        fields
    }

    fn text(&self, key: &str) -> Option<String> {
        match self.metadata {
            Metadata::Gguf(pairs) => match pairs.get(key)? {
                Value::String(text) => Some(text.clone()),
                _ => None,
            },
            Metadata::HuggingFace { config, .. } => config.get(key)?.as_str().map(String::from),
        }
    }

    /// A number under GGUF's key, without the architecture in front, or config.json's.
    fn number(&self, gguf: &str, config_key: &str) -> Option<usize> {
        let number = match self.metadata {
            Metadata::Gguf(pairs) => match *pairs.get(&format!("{}.{gguf}", self.architecture))? {
                Value::Unsigned(n) => Some(n),
                Value::Signed(n) => u64::try_from(n).ok(),
                _ => None,
            },
            Metadata::HuggingFace { config, .. } => config.get(config_key)?.as_u64(),
        };
        usize::try_from(number?).ok()
    }

    /// Keys and values of one token in all layers, as f16.
    fn kv_bytes_per_token(&self) -> Option<u64> {
        let layers = self.number("block_count", "num_hidden_layers")?;
        let heads = self.number("attention.head_count", "num_attention_heads")?;
        let kv_heads = self.number("attention.head_count_kv", "num_key_value_heads").unwrap_or(heads);
        let width = self.number("embedding_length", "hidden_size")?;
        let head = |gguf| self.number(gguf, "head_dim").or_else(|| width.checked_div(heads));
        let (key, value) = (head("attention.key_length")?, head("attention.value_length")?);
        // Products of numbers that a file made up may be of any size.
        let per_layer = (kv_heads as u64).checked_mul((key as u64).checked_add(value as u64)?)?;
        per_layer.checked_mul(layers as u64)?.checked_mul(2)
    }
}

impl Facts {
    fn lines(&self) -> Vec<Vec<String>> {
        let unknown = || "unknown".to_owned();
        let mut lines: Vec<(&str, String)> = vec![
            ("model", self.name.clone()),
            ("architecture", self.architecture.clone().unwrap_or_else(unknown)),
            ("parameters", self.parameters.map_or_else(unknown, parameters)),
            ("quantization", self.quantization.clone().unwrap_or_else(unknown)),
            ("size", self.bytes.map_or_else(unknown, |n| self.size(n))),
            ("context", self.context.map_or_else(unknown, |n| format!("{n} tokens"))),
            ("licence", self.licence.clone().unwrap_or_else(unknown)),
        ];
        lines.extend(self.loaded_as.iter().map(|mix| ("loaded as", mix.clone())));
        for (i, memory) in self.memory.iter().enumerate() {
            let name = if i == 0 { "memory" } else { "" };
            let at = format!("at {} tokens of context", memory.context);
            let least = match memory.least < memory.bytes {
                true => format!("; {} GiB with experts left in the file", gib(memory.least)),
                false => String::new(),
            };
            lines.push((name, memory::needs(memory.bytes, &at) + &least));
        }
        lines.extend(self.expected_tokens_per_second.map(|speed| {
            let digits = usize::from(speed < 10.0);
            let speed = match speed {
                ..0.05 => "less than 0.1".to_owned(),
                _ => format!("about {speed:.digits$}"),
            };
            ("speed", format!("{speed} tokens/s are to be expected on this machine"))
        }));
        if let Some(template) = self.chat_template {
            lines.push(("chat template", if template { "yes" } else { "none" }.into()));
        }
        let thinking = self.thinking.as_ref();
        let thinking =
            thinking.map(|t| format!("{} … {}, {} by default", t.start, t.end, json_word(&t.default)));
        if self.runnable.is_some() || thinking.is_some() {
            lines.push(("thinking", thinking.unwrap_or("no markers known".into())));
        }
        lines.extend(self.why_not.iter().map(|why| ("cannot be run", why.clone())));
        lines.extend(self.sampling.iter().map(|s| ("sampling", sampling(s))));
        lines.extend(self.repository.iter().map(|repository| ("repository", repository.clone())));
        lines.extend(self.commit.iter().map(|commit| ("commit", commit.clone())));
        if !self.choices.is_empty() {
            lines.push(("the hub has", self.choices.join(", ")));
        }
        let mut files = self.files.clone();
        if !self.downloaded {
            let advice = match self.runnable {
                Some(false) => String::new(),
                _ => format!(": `pensive pull {}`", self.name),
            };
            files.push(format!("not downloaded{advice}"));
        }
        lines
            .extend(files.into_iter().enumerate().map(|(i, file)| (if i == 0 { "files" } else { "" }, file)));
        lines.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect()
    }

    fn size(&self, n: u64) -> String {
        if self.downloaded { bytes(n) } else { format!("about {}", bytes(n)) }
    }
}

/// "1.5 billion"
fn parameters(n: u64) -> String {
    if n < 1_000_000_000 {
        format!("{} million", n / 1_000_000)
    } else {
        format!("{:.1} billion", n as f64 / 1e9)
    }
}

fn sampling(s: &Sampling) -> String {
    let mut words = vec![format!("temperature {}", s.temperature), format!("top-p {}", s.top_p)];
    if s.top_k > 0 {
        words.push(format!("top-k {}", s.top_k));
    }
    if s.min_p > 0.0 {
        words.push(format!("min-p {}", s.min_p));
    }
    if s.repeat_penalty != 1.0 {
        words.push(format!("repeat-penalty {}", s.repeat_penalty));
    }
    words.join(", ")
}

/// The word that serde has for a plain variant.
fn json_word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(String::from)).unwrap_or_default()
}
