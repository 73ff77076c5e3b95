//! The numbers that make one decoder text many models.

mod config;
mod gguf;

use super::rope::Scaling;
use crate::backend::{Activation, KvShape, Rope, RopeStyle, Routing};
use crate::catalog::ARCHITECTURES;
use crate::checkpoint::{Checkpoint, Metadata};
use crate::{Error, Result};

/// Sizes and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Hyperparameters {
    /// GGUF's name of the architecture: `qwen2`, `llama`, `deepseek2`.
    pub architecture: String,
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; each serves heads / kv_heads query heads.
    pub kv_heads: usize,
    /// Width of a head's query and key.
    pub head_dim: usize,
    /// Latent attention instead of grouped-query attention.
    pub latent: Option<Latent>,
    /// Width of the dense feed-forward.
    pub feed_forward: usize,
    /// Between the matrices of a feed-forward.
    pub activation: Activation,
    /// Experts, in those layers that have a router.
    pub experts: Option<ExpertShape>,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Context that the model was made for, tokens.
    pub context: usize,
    /// Tokens that sequences are limited to; read as what the model is best used with, changed before it is loaded. It
    /// decides which factors LongRoPE takes.
    pub context_limit: usize,
    /// Added to the mean square in norms.
    pub norm_epsilon: f32,
    /// Factor on attention's scores.
    pub attention_scale: f32,
    /// By layer: how many of the last positions attention sees, if not all.
    pub windows: Vec<Option<usize>>,
    /// Rotary embedding: base frequency.
    pub rope_base: f64,
    /// Rotary embedding: how many dimensions of a head are rotated: the first, with latent attention the last.
    pub rope_dims: usize,
    /// Rotary embedding: stretching.
    pub rope_scaling: Scaling,
    /// Rotary embedding: which dimensions form a pair.
    pub rope_style: RopeStyle,
}

/// Sizes of latent attention (DeepSeek-V2, arXiv:2405.04434).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latent {
    /// Width that queries are compressed to on the way, if they are.
    pub query_rank: Option<usize>,
    /// Width that keys and values are compressed to: what the cache holds.
    pub rank: usize,
    /// Dimensions of a key that are not rotated.
    pub plain_dims: usize,
    /// Dimensions of a key that are rotated; all heads share them.
    pub rope_dims: usize,
    /// Width of a head's value.
    pub value_dim: usize,
}

/// Sizes of the experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertShape {
    /// How many there are in a layer.
    pub count: usize,
    /// Width of an expert's feed-forward.
    pub feed_forward: usize,
    /// Width of the feed-forward that all rows go through beside them; 0: none.
    pub shared: usize,
    /// How they are chosen.
    pub routing: Routing,
}

impl Hyperparameters {
    /// Reads them from a checkpoint's metadata.
    ///
    /// # Errors
    /// An architecture the decoder does not run; a field that is missing or makes no sense, named.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let file = match &checkpoint.metadata {
            Metadata::Gguf(_) => checkpoint.files.first().cloned().unwrap_or_default(),
            Metadata::HuggingFace { folder, .. } => folder.join("config.json"),
        };
        let fault = |what: String| Error::file(&file, what);
        let h = match &checkpoint.metadata {
            Metadata::Gguf(pairs) => gguf::read(pairs, checkpoint),
            Metadata::HuggingFace { config, .. } => config::read(config),
        }
        .map_err(fault)?;
        let is_gguf = matches!(checkpoint.metadata, Metadata::Gguf(_));
        let key = |gguf: &str, config: &str| match is_gguf {
            true => format!("{}.{gguf}", h.architecture),
            false => config.to_owned(),
        };
        h.check(&key).map_err(fault)?;
        Ok(h)
    }

    /// The rotary embedding.
    pub fn rope(&self) -> Rope {
        let Self { rope_base, rope_dims, rope_scaling, rope_style, context_limit, .. } = self;
        super::rope::rope(*rope_base, *rope_dims, rope_scaling, *rope_style, *context_limit)
    }

    /// Shape of a layer's KV cache.
    pub fn kv_shape(&self) -> KvShape {
        match self.latent {
            Some(l) => KvShape::latent(l.rank, l.rope_dims),
            None => KvShape::grouped(self.kv_heads, self.head_dim, self.head_dim),
        }
    }

    /// f32 values that the buffers hold for a row of a step.
    pub fn activation_width(&self) -> usize {
        let kv = self.kv_shape();
        let keys_and_values = match self.latent {
            Some(_) => kv.key_dim,
            None => kv.heads * (kv.key_dim + kv.value_dim),
        };
        let of_latent = self.latent.map_or(0, |l| {
            // the last: inputs of products by head, of which a thread keeps one at a time
            let of_heads = self.heads * (kv.key_dim + l.value_dim + l.rank.max(l.plain_dims));
            2 * l.query_rank.unwrap_or(0) + of_heads
        });
        let of_experts = self
            .experts
            .as_ref()
            .map_or(0, |e| 2 * e.count + 2 * e.shared + 2 * (self.width + e.feed_forward));
        3 * self.width
            + self.heads * (self.head_dim + kv.value_dim)
            + keys_and_values
            + 2 * self.feed_forward
            + of_latent
            + of_experts
    }

    /// Further ones that they hold for a row that wants logits.
    pub fn logits_row_width(&self) -> usize {
        self.width + self.heads * self.kv_shape().value_dim + self.vocabulary
    }

    fn check(&self, key: Key<'_>) -> Result<(), String> {
        self.check_sizes(key)?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!(
                "{} is {}: no multiple of {}, which is {}",
                key("attention.head_count", "num_attention_heads"),
                self.heads,
                key("attention.head_count_kv", "num_key_value_heads"),
                self.kv_heads
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
        if !positive(f64::from(self.attention_scale)) {
            return Err(format!(
                "a factor of {} on attention's scores must be positive",
                self.attention_scale
            ));
        }
        if let Some(experts) = &self.experts {
            experts.check(key)?;
        }
        self.check_scaling(positive)
    }

    fn check_sizes(&self, key: Key<'_>) -> Result<(), String> {
        let latent = self.latent.unwrap_or(Latent {
            query_rank: None,
            rank: 1,
            plain_dims: 1,
            rope_dims: 2,
            value_dim: 1,
        });
        let sizes = [
            ("block_count", "num_hidden_layers", self.layers, MOST_LAYERS),
            ("embedding_length", "hidden_size", self.width, 1 << 20),
            ("attention.head_count", "num_attention_heads", self.heads, 1 << 14),
            ("attention.head_count_kv", "num_key_value_heads", self.kv_heads, 1 << 14),
            ("attention.kv_lora_rank", "kv_lora_rank", latent.rank, 1 << 16),
            ("attention.q_lora_rank", "q_lora_rank", latent.query_rank.unwrap_or(1), 1 << 16),
            ("attention.key_length", "qk_nope_head_dim", latent.plain_dims, MOST_HEAD_DIMS),
            ("rope.dimension_count", "qk_rope_head_dim", latent.rope_dims, MOST_HEAD_DIMS),
            ("attention.value_length", "v_head_dim", latent.value_dim, MOST_HEAD_DIMS),
            ("attention.key_length", "head_dim", self.head_dim, MOST_HEAD_DIMS),
            ("feed_forward_length", "intermediate_size", self.feed_forward, 1 << 22),
            ("vocab_size", "vocab_size", self.vocabulary, 1 << 26),
            ("context_length", "max_position_embeddings", self.context, 1 << 30),
            // that of LongRoPE
            (
                "rope.scaling.original_context_length",
                "original_max_position_embeddings",
                self.context_limit,
                1 << 30,
            ),
        ];
        let mut sizes = sizes.into_iter();
        sizes.try_for_each(|(gguf, config, value, limit)| within(&key(gguf, config), value, limit).map(drop))
    }

    fn check_scaling(&self, positive: impl Fn(f64) -> bool) -> Result<(), String> {
        let lists: &[(&str, &[f64])] = match &self.rope_scaling {
            Scaling::Factors(factors) => &[("rope_freqs.weight", factors)],
            Scaling::Long { short, long, .. } => &[("LongRoPE's short list", short), ("its long list", long)],
            Scaling::Linear { factor } | Scaling::Llama3 { factor, .. } | Scaling::Yarn { factor, .. }
                if !positive(*factor) =>
            {
                return Err(format!("rope scaling factor {factor} must be positive"));
            }
            Scaling::Llama3 { low, high, original_context, .. }
                if ![*low, *high, *original_context].into_iter().all(&positive) =>
            {
                return Err(format!(
                    "rope scaling's original context {original_context} and factors {low} and {high} must be positive"
                ));
            }
            Scaling::Yarn { beta_fast, beta_slow, original_context, .. }
                if ![*beta_fast, *beta_slow, *original_context].into_iter().all(&positive) =>
            {
                return Err(format!(
                    "YaRN's original context {original_context} and betas {beta_fast} and {beta_slow} must be positive"
                ));
            }
            _ => &[],
        };
        for (name, factors) in lists {
            if factors.len() != self.rope_dims / 2 {
                return Err(format!("{name} has {} factors, not {}", factors.len(), self.rope_dims / 2));
            }
            if !factors.iter().all(|&f| positive(f)) {
                return Err(format!("{name} holds a factor that is not positive"));
            }
        }
        Ok(())
    }
}

impl ExpertShape {
    /// What a step of so many rows takes of something that all experts of a layer have `of_all` of: that of the experts
    /// that the rows go to, where no two go to the same one, as far as there are so many.
    pub fn share(&self, of_all: u64, rows: usize) -> u64 {
        let experts = self.count.min(rows.saturating_mul(self.routing.used));
        of_all * experts as u64 / self.count as u64
    }

    fn check(&self, key: Key<'_>) -> Result<(), String> {
        let Routing { used, groups: (groups, used_groups), scale, .. } = self.routing;
        if self.count == 0 || self.count > 1 << 14 || self.feed_forward == 0 || self.feed_forward > 1 << 22 {
            return Err(format!("{} experts of width {}: makes no sense", self.count, self.feed_forward));
        }
        if groups == 0 || used_groups == 0 || used_groups > groups || !self.count.is_multiple_of(groups) {
            return Err(format!(
                "{used_groups} of {groups} groups of {} experts: makes no sense",
                self.count
            ));
        }
        if self.shared > 1 << 22 {
            let key = key("expert_shared_count", "n_shared_experts");
            return Err(format!("{key} makes a width of {}: must be at most {}", self.shared, 1 << 22));
        }
        within(&key("expert_used_count", "num_experts_per_tok"), used, self.count / groups * used_groups)?;
        if !scale.is_finite() {
            return Err(format!("a factor of {scale} on the experts' weights makes no sense"));
        }
        Ok(())
    }
}

/// A field's name in the file at hand, of GGUF's without the architecture and config.json's.
type Key<'a> = &'a dyn Fn(&str, &str) -> String;

/// More makes no sense; looked at before there is anything for each layer.
const MOST_LAYERS: usize = 1 << 12;

/// Nor wider heads.
const MOST_HEAD_DIMS: usize = 1 << 14;

/// The value of a field that must be between 1 and `limit`.
fn within(key: &str, value: usize, limit: usize) -> Result<usize, String> {
    match value {
        _ if (1..=limit).contains(&value) => Ok(value),
        _ => Err(format!("{key} is {value}: must be between 1 and {limit}")),
    }
}

/// GGUF's name of an architecture, that of a GGUF file or a `model_type`.
fn architecture(name: &str, is_model_type: bool) -> Result<&'static str, String> {
    let known = ARCHITECTURES.iter().find(
        |(gguf, types)| {
            if is_model_type { types.contains(&name) } else { *gguf == name }
        },
    );
    known.map(|(gguf, _)| *gguf).ok_or_else(|| {
        let names: Vec<_> = ARCHITECTURES
            .iter()
            .flat_map(|(gguf, types)| if is_model_type { *types } else { std::slice::from_ref(gguf) })
            .copied()
            .collect();
        format!("the architecture '{name}' is not supported; pensive runs {}", names.join(", "))
    })
}

/// What YaRN multiplies attention by: 0.1 m ln(factor) + 1.
pub(super) fn yarn_magnitude(factor: f64, m: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * m * libm::log(factor) + 1.0 }
}

/// 1 / sqrt(head width), times the square of what YaRN asks for.
fn attention_scale(head_dim: usize, yarn: f64) -> f32 {
    (yarn * yarn / (head_dim as f64).sqrt()) as f32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::checkpoint::{Tensor, Value};
    use crate::model::Synthetic;
    use crate::quant::BlockType;

    fn message(metadata: Metadata) -> String {
        let checkpoint = Checkpoint { files: vec![], metadata, tensors: BTreeMap::new() };
        Hyperparameters::read(&checkpoint).unwrap_err().to_string()
    }

    #[test]
    fn sizes_of_config_json_that_make_no_sense_are_named_by_their_key() {
        for (key, value) in [
            ("num_hidden_layers", 1_000_000_000_000_u64),
            ("num_hidden_layers", 1 << 62),
            ("num_hidden_layers", 0),
            ("num_attention_heads", 0),
            ("num_key_value_heads", 0),
            ("num_experts_per_tok", 9),
            ("n_shared_experts", 1 << 62),
        ] {
            let mut config = json!({
                "model_type": "qwen3_moe", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
                "num_hidden_layers": 2, "max_position_embeddings": 128, "intermediate_size": 96, "vocab_size": 75,
                "rms_norm_eps": 1e-6, "num_experts": 8, "num_experts_per_tok": 2
            });
            config[key] = json!(value);
            let message = message(Metadata::HuggingFace { config, folder: "folder".into() });
            assert!(message.contains("config.json") && message.contains(key), "{key}: {message}");
        }
    }

    #[test]
    fn the_context_that_longrope_was_trained_for_must_make_sense() {
        for original in [json!(0), json!(1e30)] {
            let config = json!({
                "model_type": "phi3", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
                "max_position_embeddings": 128, "intermediate_size": 96, "vocab_size": 75, "rms_norm_eps": 1e-6,
                "original_max_position_embeddings": original,
                "rope_scaling": {"type": "longrope", "short_factor": vec![1; 8], "long_factor": vec![1; 8]}
            });
            let message = message(Metadata::HuggingFace { config, folder: "folder".into() });
            assert!(message.contains("original_max_position_embeddings is "), "{message}");
        }
    }

    #[test]
    fn a_value_of_gguf_of_another_type_is_an_error_and_no_default() {
        let synthetic = Synthetic::new("qwen3:30b-a3b", Some(3)).unwrap();
        let read = |key: &str, value: Value| {
            let mut pairs = synthetic.metadata();
            pairs.insert(format!("qwen3moe.{key}"), value);
            let metadata = Metadata::Gguf(pairs.into());
            Hyperparameters::read(&Checkpoint { files: vec![], metadata, tensors: BTreeMap::new() })
        };
        let text = || Value::String("x".into());
        for (key, value, what) in [
            ("rope.freq_base", text(), "a string, not a number"),
            ("rope.scaling.type", Value::Unsigned(1), "1, not a string"),
            ("expert_weights_norm", text(), "a string, not a boolean"),
            ("attention.key_length", Value::Signed(-1), "-1, not a whole number"),
            (
                "attention.head_count_kv",
                Value::Integers(vec![4, 2, 4]),
                "integers, not a whole number, the same",
            ),
        ] {
            let message = read(key, value).unwrap_err().to_string();
            assert!(message.contains(&format!("qwen3moe.{key} is ")) && message.contains(what), "{message}");
        }
        assert_eq!(read("rope.freq_base", Value::Unsigned(500)).unwrap().rope_base, 500.0);
        assert_eq!(read("attention.head_count_kv", Value::Integers(vec![2; 3])).unwrap().kv_heads, 2);
    }

    #[test]
    fn factors_of_the_rotary_embedding_are_counted_before_they_are_decoded() {
        let metadata =
            Metadata::Gguf(Synthetic::new("deepseek-r1:8b-llama", Some(1)).unwrap().metadata().into());
        let pattern = Tensor::from_bytes("", BlockType::IQ1_S, &[256], vec![0; 50]);
        let freqs = Tensor::repeated("rope_freqs.weight", &[1 << 40], &pattern, 0);
        let tensors = BTreeMap::from([(freqs.name.clone(), freqs)]);
        let checkpoint = Checkpoint { files: vec![], metadata, tensors };
        let message = Hyperparameters::read(&checkpoint).unwrap_err().to_string();
        assert!(message.ends_with("rope_freqs.weight has 1099511627776 factors, not 64"), "{message}");
    }

    #[test]
    fn sizes_of_gguf_that_make_no_sense_are_named_by_their_key() {
        let synthetic = Synthetic::new("qwen3:30b-a3b", Some(3)).unwrap();
        for (key, value) in [
            ("block_count", 0xffff_ffff_u64),
            ("nextn_predict_layers", 99),
            ("attention.head_count", 0),
            ("attention.head_count_kv", 0),
            ("expert_used_count", 1000),
        ] {
            let (mut pairs, key) = (synthetic.metadata(), format!("qwen3moe.{key}"));
            pairs.insert(key.clone(), Value::Unsigned(value));
            let message = message(Metadata::Gguf(pairs.into()));
            assert!(message.contains(&key), "{key}: {message}");
        }
    }
}
