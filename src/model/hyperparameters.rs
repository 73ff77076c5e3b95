//! The numbers that make one decoder text many models.

use super::{names, rope::Scaling};
use crate::backend::{KvShape, Rope, RopeStyle};
use crate::checkpoint::{Checkpoint, Metadata, Value};
use crate::{Error, Result};

/// Architectures that the decoder runs, by GGUF name.
const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];

/// Sizes and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Hyperparameters {
    /// GGUF's name of the architecture: `qwen2`, `llama`, `qwen3`.
    pub architecture: String,
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; each serves heads / kv_heads query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward.
    pub feed_forward: usize,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Context that the model was made for, tokens.
    pub context: usize,
    /// Added to the mean square in norms.
    pub norm_epsilon: f32,
    /// Rotary embedding: base frequency.
    pub rope_base: f64,
    /// Rotary embedding: how many dimensions of a head are rotated.
    pub rope_dims: usize,
    /// Rotary embedding: stretching.
    pub rope_scaling: Scaling,
    /// Rotary embedding: which dimensions form a pair.
    pub rope_style: RopeStyle,
}

impl Hyperparameters {
    /// Reads them from a checkpoint's metadata.
    ///
    /// # Errors
    /// An architecture the decoder does not run; a field that is missing or makes no sense, named.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let file = checkpoint.files.first().cloned().unwrap_or_default();
        let fields = match &checkpoint.metadata {
            Metadata::Gguf(pairs) => Fields::Gguf(pairs),
            Metadata::HuggingFace { config, .. } => Fields::Config(config),
        };
        let fault = |what: String| Error::file(&file, what);
        let mut h = fields.read(checkpoint).map_err(fault)?;
        if let Some(freqs) = names::find(checkpoint, "rope_freqs.weight") {
            h.rope_scaling = Scaling::Factors(freqs.values().iter().map(|&v| f64::from(v)).collect());
        }
        h.check().map_err(fault)?;
        Ok(h)
    }

    /// The rotary embedding.
    pub fn rope(&self) -> Rope {
        super::rope::rope(self.rope_base, self.rope_dims, &self.rope_scaling, self.rope_style)
    }

    /// Shape of a layer's KV cache.
    pub fn kv_shape(&self) -> KvShape {
        KvShape { heads: self.kv_heads, key_dim: self.head_dim, value_dim: self.head_dim }
    }

    fn check(&self) -> Result<(), String> {
        let sizes = [
            ("layers", self.layers, 1 << 12),
            ("embedding width", self.width, 1 << 20),
            ("attention heads", self.heads, 1 << 14),
            ("key/value heads", self.kv_heads, 1 << 14),
            ("head width", self.head_dim, 1 << 14),
            ("feed-forward width", self.feed_forward, 1 << 22),
            ("vocabulary", self.vocabulary, 1 << 26),
            ("context", self.context, 1 << 30),
        ];
        for (name, value, limit) in sizes {
            if value == 0 || value > limit {
                return Err(format!("{name} of {value}: must be between 1 and {limit}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!(
                "{} attention heads are no multiple of {} key/value heads",
                self.heads, self.kv_heads
            ));
        }
        if self.rope_dims > self.head_dim || !self.rope_dims.is_multiple_of(2) {
            return Err(format!(
                "{} rotated dimensions: must be even and at most the head width {}",
                self.rope_dims, self.head_dim
            ));
        }
        let positive = |v: f64| v.is_finite() && v > 0.0;
        if !positive(self.rope_base) || !positive(f64::from(self.norm_epsilon)) {
            return Err(format!(
                "rope base {} and norm epsilon {} must be positive",
                self.rope_base, self.norm_epsilon
            ));
        }
        match &self.rope_scaling {
            Scaling::Factors(f) if f.len() != self.rope_dims / 2 => {
                Err(format!("rope_freqs.weight has {} factors, not {}", f.len(), self.rope_dims / 2))
            }
            Scaling::Factors(f) if !f.iter().all(|&f| positive(f)) => {
                Err("rope_freqs.weight holds a factor that is not positive".into())
            }
            Scaling::Linear { factor } | Scaling::Llama3 { factor, .. } | Scaling::Yarn { factor, .. }
                if !positive(*factor) =>
            {
                Err(format!("rope scaling factor {factor} must be positive"))
            }
            _ => Ok(()),
        }
    }
}

/// Where the numbers stand.
enum Fields<'a> {
    Gguf(&'a std::collections::BTreeMap<String, Value>),
    Config(&'a serde_json::Value),
}

impl Fields<'_> {
    fn read(&self, checkpoint: &Checkpoint) -> Result<Hyperparameters, String> {
        match self {
            Fields::Gguf(_) => self.read_gguf(checkpoint),
            Fields::Config(_) => self.read_config(),
        }
    }

    fn read_gguf(&self, checkpoint: &Checkpoint) -> Result<Hyperparameters, String> {
        let architecture = self.text("general.architecture").ok_or("has no general.architecture")?;
        supported(&architecture)?;
        let key = |name: &str| format!("{architecture}.{name}");
        let whole = |name: &str| self.whole(&key(name)).ok_or(format!("has no {}", key(name)));
        let number = |name: &str| self.number(&key(name));

        let (width, heads) = (whole("embedding_length")?, whole("attention.head_count")?);
        let head_dim =
            self.whole(&key("attention.key_length")).or(width.checked_div(heads)).unwrap_or_default();
        let context = whole("context_length")?;
        let vocabulary = names::find(checkpoint, "token_embd.weight")
            .map(|t| t.rows())
            .or_else(|| self.whole(&key("vocab_size")))
            .or_else(|| match &checkpoint.metadata {
                Metadata::Gguf(pairs) => match pairs.get("tokenizer.ggml.tokens") {
                    Some(Value::Strings(tokens)) => Some(tokens.len()),
                    _ => None,
                },
                Metadata::HuggingFace { .. } => None,
            })
            .ok_or("has no token_embd.weight")?;
        let factor = number("rope.scaling.factor").unwrap_or(1.0);
        let original = number("rope.scaling.original_context_length").unwrap_or(context as f64);
        let scaling = match self.text(&key("rope.scaling.type")).as_deref() {
            None | Some("none" | "") => Scaling::None,
            Some("linear") => Scaling::Linear { factor },
            // rope.scaling.attn_factor is left aside, as transformers leaves `attn_factor` aside in the config
            // of R1-0528-Qwen3-8B: the magnitude is YaRN's own 0.1 ln(factor) + 1
            Some("yarn") => Scaling::Yarn {
                factor,
                beta_fast: number("rope.scaling.yarn_beta_fast").unwrap_or(32.0),
                beta_slow: number("rope.scaling.yarn_beta_slow").unwrap_or(1.0),
                original_context: original,
                attention_factor: None,
                truncate: true,
            },
            Some(other) => return Err(format!("rope scaling '{other}' is not supported")),
        };
        Ok(Hyperparameters {
            layers: whole("block_count")?,
            width,
            heads,
            kv_heads: self.whole(&key("attention.head_count_kv")).unwrap_or(heads),
            head_dim,
            feed_forward: whole("feed_forward_length")?,
            vocabulary,
            context,
            norm_epsilon: number("attention.layer_norm_rms_epsilon")
                .ok_or(format!("has no {}", key("attention.layer_norm_rms_epsilon")))?
                as f32,
            rope_base: number("rope.freq_base").unwrap_or(10_000.0),
            rope_dims: self.whole(&key("rope.dimension_count")).unwrap_or(head_dim),
            rope_scaling: scaling,
            // llama's queries and keys are permuted in GGUF so that pairs stand side by side
            rope_style: if architecture == "llama" { RopeStyle::Interleaved } else { RopeStyle::Halves },
            architecture,
        })
    }

    fn read_config(&self) -> Result<Hyperparameters, String> {
        let architecture = self.text("model_type").ok_or("config.json has no model_type")?;
        supported(&architecture)?;
        let whole = |name: &str| self.whole(name).ok_or(format!("config.json has no {name}"));
        let (width, heads) = (whole("hidden_size")?, whole("num_attention_heads")?);
        let head_dim = self.whole("head_dim").or(width.checked_div(heads)).unwrap_or_default();
        let context = whole("max_position_embeddings")?;
        let Fields::Config(config) = self else { unreachable!("called for a config") };
        // transformers 5 writes rope_parameters, 4 wrote rope_theta and rope_scaling
        let rope = ["rope_parameters", "rope_scaling"]
            .iter()
            .find_map(|k| config.get(k).filter(|v| v.is_object()))
            .unwrap_or(&serde_json::Value::Null);
        let base = rope.get("rope_theta").and_then(|v| v.as_f64()).or_else(|| self.number("rope_theta"));
        Ok(Hyperparameters {
            architecture,
            layers: whole("num_hidden_layers")?,
            width,
            heads,
            kv_heads: self.whole("num_key_value_heads").unwrap_or(heads),
            head_dim,
            feed_forward: whole("intermediate_size")?,
            vocabulary: whole("vocab_size")?,
            context,
            norm_epsilon: self.number("rms_norm_eps").ok_or("config.json has no rms_norm_eps")? as f32,
            rope_base: base.unwrap_or(10_000.0),
            rope_dims: head_dim,
            rope_scaling: config_scaling(rope, context)?,
            rope_style: RopeStyle::Halves,
        })
    }

    fn text(&self, key: &str) -> Option<String> {
        match self {
            Fields::Gguf(pairs) => match pairs.get(key)? {
                Value::String(s) => Some(s.clone()),
                _ => None,
            },
            Fields::Config(config) => Some(config.get(key)?.as_str()?.to_owned()),
        }
    }

    fn number(&self, key: &str) -> Option<f64> {
        match self {
            Fields::Gguf(pairs) => match pairs.get(key)? {
                Value::Unsigned(v) => Some(*v as f64),
                Value::Signed(v) => Some(*v as f64),
                Value::Float(v) => Some(*v),
                _ => None,
            },
            Fields::Config(config) => config.get(key)?.as_f64(),
        }
    }

    /// A count; of an array (per layer) the common value.
    fn whole(&self, key: &str) -> Option<usize> {
        match self {
            Fields::Gguf(pairs) => match pairs.get(key)? {
                Value::Unsigned(v) => usize::try_from(*v).ok(),
                Value::Signed(v) => usize::try_from(*v).ok(),
                Value::Integers(all) => {
                    let first = *all.first()?;
                    all.iter().all(|v| *v == first).then_some(usize::try_from(first).ok()?)
                }
                _ => None,
            },
            Fields::Config(config) => usize::try_from(config.get(key)?.as_u64()?).ok(),
        }
    }
}

fn supported(architecture: &str) -> Result<(), String> {
    if ARCHITECTURES.contains(&architecture) {
        return Ok(());
    }
    Err(format!(
        "the architecture '{architecture}' is not supported; pensive runs {}",
        ARCHITECTURES.join(", ")
    ))
}

fn config_scaling(rope: &serde_json::Value, context: usize) -> Result<Scaling, String> {
    let kind = ["rope_type", "type"].iter().find_map(|k| rope.get(k)?.as_str()).unwrap_or("default");
    let optional = |key: &str| rope.get(key).and_then(|v| v.as_f64());
    let number = |key: &str| optional(key).ok_or(format!("config.json: rope scaling '{kind}' has no {key}"));
    let original = optional("original_max_position_embeddings").unwrap_or(context as f64);
    Ok(match kind {
        "default" => Scaling::None,
        "linear" => Scaling::Linear { factor: number("factor")? },
        "llama3" => Scaling::Llama3 {
            factor: number("factor")?,
            low: number("low_freq_factor")?,
            high: number("high_freq_factor")?,
            original_context: original,
        },
        // `attn_factor` (R1-0528-Qwen3-8B has one) is left aside, as transformers does: it reads `attention_factor`
        "yarn" => Scaling::Yarn {
            factor: number("factor")?,
            beta_fast: optional("beta_fast").unwrap_or(32.0),
            beta_slow: optional("beta_slow").unwrap_or(1.0),
            original_context: original,
            attention_factor: optional("attention_factor"),
            truncate: rope.get("truncate").and_then(|v| v.as_bool()).unwrap_or(true),
        },
        other => return Err(format!("config.json: rope scaling '{other}' is not supported")),
    })
}
