//! The numbers that make one decoder text many models.

mod config;
mod gguf;

use super::{names, rope::Scaling};
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
        let mut h = match &checkpoint.metadata {
            Metadata::Gguf(pairs) => gguf::read(pairs, checkpoint),
            Metadata::HuggingFace { config, .. } => config::read(config),
        }
        .map_err(fault)?;
        if let Some(freqs) = names::find(checkpoint, "rope_freqs.weight") {
            h.rope_scaling = Scaling::Factors(freqs.values().iter().map(|&v| f64::from(v)).collect());
        }
        h.check().map_err(fault)?;
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

    fn check(&self) -> Result<(), String> {
        self.check_sizes()?;
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
        if !positive(f64::from(self.attention_scale)) {
            return Err(format!(
                "a factor of {} on attention's scores must be positive",
                self.attention_scale
            ));
        }
        if let Some(experts) = &self.experts {
            experts.check()?;
        }
        self.check_scaling(positive)
    }

    fn check_sizes(&self) -> Result<(), String> {
        let latent = self.latent.unwrap_or(Latent {
            query_rank: None,
            rank: 1,
            plain_dims: 1,
            rope_dims: 2,
            value_dim: 1,
        });
        let sizes = [
            ("layers", self.layers, 1 << 12),
            ("embedding width", self.width, 1 << 20),
            ("attention heads", self.heads, 1 << 14),
            ("key/value heads", self.kv_heads, 1 << 14),
            ("head width", self.head_dim, 1 << 14),
            ("feed-forward width", self.feed_forward, 1 << 22),
            ("vocabulary", self.vocabulary, 1 << 26),
            ("context", self.context, 1 << 30),
            ("width of latent keys and values", latent.rank, 1 << 16),
            ("width of latent queries", latent.query_rank.unwrap_or(1), 1 << 16),
            ("width of a key's unrotated part", latent.plain_dims, 1 << 14),
            ("value head width", latent.value_dim, 1 << 14),
        ];
        match sizes.into_iter().find(|&(_, value, limit)| value == 0 || value > limit) {
            Some((name, value, limit)) => Err(format!("{name} of {value}: must be between 1 and {limit}")),
            None => Ok(()),
        }
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

    fn check(&self) -> Result<(), String> {
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
        if used == 0 || used > self.count / groups * used_groups {
            return Err(format!(
                "{used} of {} experts used: makes no sense",
                self.count / groups * used_groups
            ));
        }
        if !scale.is_finite() {
            return Err(format!("a factor of {scale} on the experts' weights makes no sense"));
        }
        Ok(())
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
fn yarn_magnitude(factor: f64, m: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * m * libm::log(factor) + 1.0 }
}

/// 1 / sqrt(head width), times the square of what YaRN asks for.
fn attention_scale(head_dim: usize, yarn: f64) -> f32 {
    (yarn * yarn / (head_dim as f64).sqrt()) as f32
}
