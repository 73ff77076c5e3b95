//! What can be run by a short name: models/catalog.toml, embedded.

use std::sync::LazyLock;

use crate::SamplingOverrides;
use crate::reasoning::Think;

/// A model of the catalog.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Short name: `deepseek-r1:1.5b`.
    pub name: String,
    /// Other short names of the same model: `deepseek-r1`.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Hub repository with GGUF files: `owner/name`.
    pub repository: String,
    /// Hub repository of the original weights.
    pub original: String,
    /// Preferred quantization: `Q4_K_M`.
    pub quantization: String,
    /// Licence, with the base model's where it binds: "MIT + Llama 3.1 Community License".
    pub licence: String,
    /// Architecture as GGUF names it: `qwen2`.
    pub architecture: String,
    /// Marker that opens a thought.
    pub think_start: String,
    /// Marker that closes it.
    pub think_end: String,
    /// What `--think` defaults to.
    pub think: Think,
    /// Sampling that the model's authors recommend.
    pub sampling: SamplingOverrides,
    /// Shapes, for memory estimates before a download.
    pub shape: Shape,
}

/// The shapes of a model.
#[derive(Clone, Copy, Debug, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Parameters, in billions.
    pub billions: f64,
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward.
    pub feed_forward: usize,
    /// Size of the vocabulary.
    pub vocabulary: usize,
    /// Context that the model was made for, tokens.
    pub context: usize,
}

/// All entries, in the order of the file.
pub fn entries() -> &'static [Entry] {
    static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(Vec::new);
    &ENTRIES
}

/// The entry with this short name or alias, case-insensitive, without a quantization suffix.
pub fn find(name: &str) -> Option<&'static Entry> {
    entries()
        .iter()
        .find(|e| e.name.eq_ignore_ascii_case(name) || e.aliases.iter().any(|a| a.eq_ignore_ascii_case(name)))
}

/// The entry of a short name that may end in a quantization (`deepseek-r1:7b-q8_0`), and that quantization in
/// capitals.
pub fn find_quantized(name: &str) -> Option<(&'static Entry, Option<String>)> {
    let _ = name;
    unimplemented!()
}

/// The short names nearest to a mistyped one, best first, at most three.
pub fn nearest(name: &str) -> Vec<&'static str> {
    let _ = name;
    unimplemented!()
}

/// The entry of a model loaded by path, by its metadata: `general.architecture` and the names in it
/// (`general.name`, `general.basename`, the file's own name, …). All must agree, else none.
pub fn for_metadata(architecture: &str, names: &[&str]) -> Option<&'static Entry> {
    let _ = (architecture, names);
    unimplemented!()
}

/// The largest entry (by parameters) that the decoder runs and whose weights at its preferred quantization and KV
/// at `context` tokens fit into `bytes`.
pub fn largest_that_fits(bytes: u64, context: usize) -> Option<&'static Entry> {
    let _ = (bytes, context);
    unimplemented!()
}

impl Entry {
    /// Estimated bytes of the weights at a quantization (`Q4_K_M`), before a download.
    pub fn weight_bytes(&self, quantization: &str) -> Option<u64> {
        let _ = quantization;
        unimplemented!()
    }

    /// Bytes of keys and values at `context` tokens, stored as f16.
    pub fn kv_bytes(&self, context: usize) -> u64 {
        let _ = context;
        unimplemented!()
    }

    /// Whether the decoder runs this architecture, or why not.
    pub fn runnable(&self) -> Result<(), String> {
        unimplemented!()
    }
}
