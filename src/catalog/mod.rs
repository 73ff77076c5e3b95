//! What can be run by a short name: models/catalog.toml, embedded.

use std::sync::LazyLock;

use crate::SamplingOverrides;
use crate::reasoning::Think;

/// A model of the catalog.
#[derive(Clone, Debug, serde::Deserialize)]
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
#[derive(Clone, Copy, Debug, serde::Deserialize)]
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
