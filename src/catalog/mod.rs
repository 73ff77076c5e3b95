//! What can be run by a short name: models/catalog.toml, embedded.

pub mod quantization;

use std::sync::LazyLock;

use crate::SamplingOverrides;
use crate::reasoning::{Markers, Think};

/// Architectures that the decoder runs: GGUF's name, and the `model_type`s of config.json.
pub const ARCHITECTURES: [(&str, &[&str]); 8] = [
    ("llama", &["llama", "mistral"]),
    ("qwen2", &["qwen2"]),
    ("qwen3", &["qwen3"]),
    ("qwen3moe", &["qwen3_moe"]),
    ("deepseek2", &["deepseek_v3", "deepseek_v2"]),
    ("phi3", &["phi3"]),
    ("glm4", &["glm4"]),
    ("gpt-oss", &["gpt_oss"]),
];

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
    /// Width of a head's query and key.
    pub head_dim: usize,
    /// Dimensions of a head that are rotated, if not all of them.
    #[serde(default)]
    pub rope_dims: Option<usize>,
    /// How many of the last positions every other layer sees, if not all.
    #[serde(default)]
    pub window: Option<usize>,
    /// Width of the feed-forward, in layers without experts.
    pub feed_forward: usize,
    /// Size of the vocabulary.
    pub vocabulary: usize,
    /// Context that the model was made for, tokens.
    pub context: usize,
    /// Whether the output matrix is the token embedding.
    #[serde(default)]
    pub tied: bool,
    /// Experts.
    #[serde(default)]
    pub experts: Option<Experts>,
    /// Latent attention.
    #[serde(default)]
    pub latent: Option<Latent>,
}

/// The experts of a model.
#[derive(Clone, Copy, Debug, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    /// How many there are in a layer, those that every token goes through included.
    pub count: usize,
    /// How many of the others a token goes to.
    pub used: usize,
    /// How many every token goes through.
    #[serde(default)]
    pub shared: usize,
    /// Groups that the others are divided into, and how many of them are looked at.
    #[serde(default = "one_group")]
    pub groups: (usize, usize),
    /// Factor on their weights.
    #[serde(default = "one")]
    pub scale: f64,
    /// Width of an expert's feed-forward.
    pub feed_forward: usize,
    /// The first layers, which have none.
    #[serde(default)]
    pub dense_layers: usize,
}

fn one_group() -> (usize, usize) {
    (1, 1)
}

fn one() -> f64 {
    1.0
}

/// Sizes of latent attention.
#[derive(Clone, Copy, Debug, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latent {
    /// Width that queries are compressed to on the way.
    pub query_rank: usize,
    /// Width that keys and values are compressed to.
    pub rank: usize,
    /// Dimensions of a key that are rotated; all heads share them.
    pub rope_dims: usize,
    /// Width of a head's value.
    pub value_dim: usize,
}

/// All entries, in the order of the file.
pub fn entries() -> &'static [Entry] {
    static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Catalog {
            model: Vec<Entry>,
        }
        let text = include_str!("../../models/catalog.toml");
        // The file is part of the program and a test parses it: this cannot fail in a build that passed it.
        toml::from_str::<Catalog>(text).expect("models/catalog.toml").model
    });
    &ENTRIES
}

/// The entry with this short name or alias, case-insensitive, without a quantization suffix.
pub fn find(name: &str) -> Option<&'static Entry> {
    entries().iter().find(|entry| entry.names().any(|n| n.eq_ignore_ascii_case(name)))
}

/// The entry of a short name that may end in a quantization (`deepseek-r1:7b-q8_0`), and that quantization in
/// capitals.
pub fn find_quantized(name: &str) -> Option<(&'static Entry, Option<String>)> {
    if let Some(entry) = find(name) {
        return Some((entry, None));
    }
    name.match_indices('-').find_map(|(at, _)| {
        let label = &name[at + 1..];
        let entry = find(&name[..at])?;
        quantization::is_quantization(label).then(|| (entry, Some(label.to_ascii_uppercase())))
    })
}

/// The entry whose GGUF files are in this hub repository, case-insensitive.
pub fn for_repository(repository: &str) -> Option<&'static Entry> {
    entries().iter().find(|entry| entry.repository.eq_ignore_ascii_case(repository))
}

/// The entry whose original weights are in this hub repository, case-insensitive.
pub fn for_original(repository: &str) -> Option<&'static Entry> {
    entries().iter().find(|entry| entry.original.eq_ignore_ascii_case(repository))
}

/// The short names nearest to a mistyped one, best first, at most three.
pub fn nearest(name: &str) -> Vec<&'static str> {
    let name = name.to_lowercase();
    let mut scored: Vec<(f64, &str)> = entries()
        .iter()
        .flat_map(Entry::names)
        .map(|known| (strsim::jaro_winkler(&name, known), known))
        .filter(|(score, _)| *score > 0.75)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().take(3).map(|(_, known)| known).collect()
}

/// The entry of a model that was loaded by path, so that it gets the same defaults as by its short name.
///
/// `architecture` is `general.architecture`; `names` are what the file calls the model
/// ([`Checkpoint::names`](crate::checkpoint::Checkpoint::names)). One of them must be the name
/// of an entry's original weights and nothing more: case, separators, the publisher's name in front and a
/// quantization or `gguf` behind do not count, any other word does ("Qwen3-4B-Instruct" is not Qwen3-4B). The
/// architecture must agree.
pub fn for_metadata(architecture: &str, names: &[impl AsRef<str>]) -> Option<&'static Entry> {
    names.iter().find_map(|name| {
        let name = words(strip_tail(name.as_ref()));
        entries().iter().find(|entry| {
            let original = words(&entry.original); // publisher and name
            let publisher = entry.original.split('/').next().map_or(0, |p| words(p).len());
            entry.architecture == architecture && (name == original || name == original[publisher..])
        })
    })
}

/// A model's name without `.gguf`, `-GGUF` and a quantization at its end.
fn strip_tail(name: &str) -> &str {
    let mut name = name.rsplit(['/', '\\']).next().unwrap_or(name);
    loop {
        let cut = name.rfind(['-', '.', ' ', '_']).filter(|&at| name[at + 1..].eq_ignore_ascii_case("gguf"));
        let cut = cut.or_else(|| {
            let mut separators = name.match_indices(['-', '.', ' ', '_']);
            separators.find(|(at, _)| quantization::is_quantization(&name[at + 1..])).map(|(at, _)| at)
        });
        match cut {
            Some(at) => name = &name[..at],
            None => return name,
        }
    }
}

/// The runs of letters, digits and points of a name, in lower case.
fn words(name: &str) -> Vec<String> {
    let parts = name.split(|c: char| !(c.is_alphanumeric() || c == '.'));
    parts.filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

/// The largest entry (by parameters) that the decoder runs and whose weights at its preferred quantization and KV
/// at `context` tokens (or at its own context, where that is shorter) fit into `bytes`.
pub fn largest_that_fits(bytes: u64, context: usize) -> Option<&'static Entry> {
    let fits = |entry: &&Entry| {
        let weights = entry.weight_bytes(&entry.quantization);
        entry.runnable().is_ok()
            && weights.is_some_and(|w| w + entry.kv_bytes(context.min(entry.shape.context)) <= bytes)
    };
    entries().iter().filter(fits).max_by(|a, b| {
        // Of equals the first in the file wins.
        a.shape.billions.total_cmp(&b.shape.billions).then(std::cmp::Ordering::Greater)
    })
}

impl Entry {
    /// Its short name and aliases.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.name).chain(&self.aliases).map(String::as_str)
    }

    /// The strings between which it thinks.
    pub fn markers(&self) -> Markers {
        Markers { start: self.think_start.clone(), end: self.think_end.clone() }
    }

    /// Estimated bytes of the weights at a quantization (`Q4_K_M`), before a download; none for one whose widths are
    /// not known (`IQ4_XS`).
    ///
    /// Layers, token embedding and output matrix at the mean bits per weight of the quantization's mix; within 3% of
    /// the published files.
    pub fn weight_bytes(&self, quantization: &str) -> Option<u64> {
        let (layers, embedding, output) = quantization::bits_per_weight(quantization)?;
        let matrix = (self.shape.vocabulary * self.shape.width) as f64;
        let in_layers = self.shape.billions * 1e9 - matrix * if self.shape.tied { 1.0 } else { 2.0 };
        let outside = if self.shape.tied { output } else { embedding + output };
        Some(((in_layers * layers + matrix * outside) / 8.0) as u64)
    }

    /// Bytes of keys and values at `context` tokens, stored as f16; also beyond the model's own context.
    ///
    /// 2 bytes for each of layers × tokens × 2 (key and value) × key/value heads × width of a head; with latent
    /// attention the latent and the keys' rotated dimensions.
    pub fn kv_bytes(&self, context: usize) -> u64 {
        let shape = &self.shape;
        let values = match shape.latent {
            Some(latent) => latent.rank + latent.rope_dims,
            None => 2 * shape.kv_heads * shape.head_dim,
        };
        ((2 * shape.layers * values) as u64).saturating_mul(context as u64)
    }

    /// Whether the decoder runs it.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn runnable(&self) -> Result<(), String> {
        runnable_architecture(&self.architecture)
    }
}

/// Whether the decoder runs an architecture, by GGUF's name of it or by config.json's `model_type`.
///
/// # Errors
/// Why not, in words.
pub fn runnable_architecture(architecture: &str) -> Result<(), String> {
    if ARCHITECTURES.iter().any(|(name, types)| *name == architecture || types.contains(&architecture)) {
        return Ok(());
    }
    let names: Vec<&str> = ARCHITECTURES.iter().map(|(name, _)| *name).collect();
    Err(format!("the architecture {architecture} is not supported; pensive runs {}", names.join(", ")))
}

#[cfg(test)]
mod tests;
