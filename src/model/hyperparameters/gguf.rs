//! From the metadata of a GGUF file.

use super::{
    ExpertShape, Hyperparameters, Latent, MOST_HEAD_DIMS, MOST_LAYERS, architecture, attention_scale, within,
    yarn_magnitude,
};
use crate::backend::{Activation, Gate, RopeStyle, Routing};
use crate::checkpoint::{Checkpoint, FromValue, GgufMetadata, Value};
use crate::model::{names, rope::Scaling};

/// The fields `ARCHITECTURE.name`.
struct Fields<'a> {
    pairs: &'a GgufMetadata,
    architecture: &'static str,
}

pub(super) fn read(pairs: &GgufMetadata, checkpoint: &Checkpoint) -> Result<Hyperparameters, String> {
    let name: &str = pairs.typed("general.architecture")?.ok_or("has no general.architecture")?;
    let fields = Fields { pairs, architecture: architecture(name, false)? };
    fields.read(checkpoint)
}

impl Fields<'_> {
    fn read(&self, checkpoint: &Checkpoint) -> Result<Hyperparameters, String> {
        let name = self.architecture;
        let (width, heads) = (self.need("embedding_length")?, self.need("attention.head_count")?);
        let latent = self.latent()?;
        let head_dim = match latent {
            Some(l) => l.plain_dims.saturating_add(l.rope_dims),
            None => self.whole("attention.key_length")?.or(width.checked_div(heads)).unwrap_or_default(),
        };
        let context = self.need("context_length")?;
        let rope_dims = self.whole("rope.dimension_count")?.unwrap_or(head_dim);
        let (rope_scaling, yarn) = self.scaling(checkpoint, context, rope_dims)?;
        let context_limit = match &rope_scaling {
            Scaling::Long { original_context, .. } => *original_context,
            _ => context,
        };
        let layers = self.layers()?;
        let experts = self.experts()?;
        let shape = |experts: &ExpertShape| experts.feed_forward;
        Ok(Hyperparameters {
            architecture: name.to_owned(),
            layers,
            width,
            heads,
            kv_heads: match latent {
                Some(_) => heads,
                None => self.whole("attention.head_count_kv")?.unwrap_or(heads),
            },
            head_dim,
            latent,
            // a model all of whose layers have experts may say nothing, or 0
            feed_forward: match self.whole("feed_forward_length")?.filter(|&n| n > 0) {
                Some(n) => n,
                None => experts.as_ref().map(shape).ok_or_else(|| self.missing("feed_forward_length"))?,
            },
            activation: match name {
                "gpt-oss" => Activation::Clamped { alpha: 1.702, limit: 7.0 },
                _ => Activation::SwiGlu,
            },
            experts,
            vocabulary: self.vocabulary(checkpoint)?.ok_or("has no token_embd.weight")?,
            context,
            context_limit,
            norm_epsilon: self
                .number("attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| self.missing("attention.layer_norm_rms_epsilon"))?
                as f32,
            attention_scale: attention_scale(head_dim, yarn),
            windows: self.windows(layers)?,
            rope_base: self.number("rope.freq_base")?.unwrap_or(10_000.0),
            rope_dims,
            rope_scaling: match self.factors(checkpoint, "rope_freqs.weight", rope_dims)? {
                Some(factors) => Scaling::Factors(factors),
                None => rope_scaling,
            },
            // llama's queries and keys are permuted in GGUF so that pairs stand side by side
            rope_style: match name {
                "llama" | "deepseek2" | "glm4" => RopeStyle::Interleaved,
                _ => RopeStyle::Halves,
            },
        })
    }

    /// Layers, without those that predict further tokens.
    fn layers(&self) -> Result<usize, String> {
        let (all, further) = (self.need("block_count")?, self.whole("nextn_predict_layers")?.unwrap_or(0));
        let layers = all.checked_sub(further).filter(|&layers| layers > 0 || further == 0);
        let key = || self.key("nextn_predict_layers");
        let layers = layers.ok_or_else(|| format!("{} is {further}, of {all} layers", key()))?;
        within(&self.key("block_count"), layers, MOST_LAYERS)
    }

    fn vocabulary(&self, checkpoint: &Checkpoint) -> Result<Option<usize>, String> {
        let table = names::find(checkpoint, "token_embd.weight").map(|t| t.rows());
        let tokens = self.pairs.typed::<&[String]>("tokenizer.ggml.tokens")?.map(<[String]>::len);
        Ok(table.or(self.whole("vocab_size")?).or(tokens))
    }

    /// Sizes of latent attention. Files with a split kv_b give the cache's shape as key_length, and the heads' apart.
    fn latent(&self) -> Result<Option<Latent>, String> {
        if self.architecture != "deepseek2" {
            return Ok(None);
        }
        let of_heads = |name: &str| match self.whole(&format!("{name}_mla"))? {
            Some(n) => Ok(n),
            None => self.need(name),
        };
        let rope_dims = self.need("rope.dimension_count")?;
        Ok(Some(Latent {
            query_rank: self.whole("attention.q_lora_rank")?.filter(|&n| n > 0),
            rank: self.need("attention.kv_lora_rank")?,
            plain_dims: of_heads("attention.key_length")?.saturating_sub(rope_dims),
            rope_dims,
            value_dim: of_heads("attention.value_length")?,
        }))
    }

    fn experts(&self) -> Result<Option<ExpertShape>, String> {
        let count = self.whole("expert_count")?.unwrap_or(0);
        if count == 0 {
            return Ok(None);
        }
        let feed_forward = match self.whole("expert_feed_forward_length")?.filter(|&n| n > 0) {
            Some(n) => n,
            None => self.need("feed_forward_length")?,
        };
        let is_deepseek = self.architecture == "deepseek2";
        let gate = match (self.architecture, self.whole("expert_gating_func")?) {
            ("gpt-oss", _) | (_, Some(3)) => Gate::SoftmaxOfChosen,
            (_, Some(2)) => Gate::Sigmoid,
            (_, None | Some(0 | 1)) => Gate::Softmax,
            (_, Some(other)) => return Err(format!("gating function {other} of experts is not supported")),
        };
        // files made before the keys existed are of DeepSeek-V3 and R1, whose 256 experts form 8 groups
        let groups = match self.whole("expert_group_count")? {
            Some(n) => (n.max(1), self.whole("expert_group_used_count")?.unwrap_or(n).max(1)),
            None if is_deepseek && gate == Gate::Sigmoid && count == 256 => (8, 4),
            None => (1, 1),
        };
        Ok(Some(ExpertShape {
            count,
            feed_forward,
            shared: self.whole("expert_shared_count")?.unwrap_or(0).saturating_mul(feed_forward),
            routing: Routing {
                used: self.need("expert_used_count")?,
                gate,
                groups,
                normalize: self.flag("expert_weights_norm")?.unwrap_or(!is_deepseek),
                scale: self.number("expert_weights_scale")?.filter(|&s| s != 0.0).unwrap_or(1.0) as f32,
            },
        }))
    }

    /// gpt-oss's odd layers see everything, and the even ones a window; elsewhere all are alike.
    fn windows(&self, layers: usize) -> Result<Vec<Option<usize>>, String> {
        let window = self.whole("attention.sliding_window")?.filter(|&n| n > 0);
        let sees_all = |layer: usize| match self.architecture {
            "gpt-oss" => layer % 2 == 1,
            "phi3" | "llama" => false,
            _ => true,
        };
        Ok((0..layers).map(|layer| window.filter(|_| !sees_all(layer))).collect())
    }

    /// How the rotary embedding is stretched, and what YaRN multiplies queries and keys by beside that.
    fn scaling(
        &self,
        checkpoint: &Checkpoint,
        context: usize,
        rope_dims: usize,
    ) -> Result<(Scaling, f64), String> {
        if let Some(scaling) = self.long(checkpoint, context, rope_dims)? {
            return Ok((scaling, 1.0));
        }
        let factor = self.number("rope.scaling.factor")?.unwrap_or(1.0);
        let original = self.number("rope.scaling.original_context_length")?.unwrap_or(context as f64);
        let kind = self.find("rope.scaling.type")?.unwrap_or("none");
        // 0.1 times config.json's mscale_all_dim; sine and cosine then stay as they are, which holds where it equals mscale
        let log_multiplier = self.number("rope.scaling.yarn_log_multiplier")?.filter(|&m| m != 0.0);
        let yarn = log_multiplier.filter(|_| kind == "yarn" && factor > 1.0);
        let yarn = yarn.map_or(1.0, |m| 1.0 + m * libm::log(factor));
        let scaling = match kind {
            "none" | "" => Scaling::None,
            "linear" => Scaling::Linear { factor },
            "yarn" => Scaling::Yarn {
                factor,
                beta_fast: self.number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: self.number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                original_context: original,
                // attn_factor is a factor on YaRN's own magnitude, 0.1 ln(factor) + 1
                attention_factor: match log_multiplier {
                    Some(_) => Some(1.0),
                    None => self.attn_factor()?.map(|own| yarn_magnitude(factor, 1.0) * own),
                },
                truncate: self.architecture != "gpt-oss",
            },
            other => return Err(format!("rope scaling '{other}' is not supported")),
        };
        Ok((scaling, yarn))
    }

    /// Under the name of most converters, or the one that grok's and laguna's brought.
    fn attn_factor(&self) -> Result<Option<f64>, String> {
        Ok(self.number("rope.scaling.attn_factor")?.or(self.number("rope.scaling.yarn_attn_factor")?))
    }

    /// LongRoPE, whose factors are tensors.
    fn long(
        &self,
        checkpoint: &Checkpoint,
        context: usize,
        rope_dims: usize,
    ) -> Result<Option<Scaling>, String> {
        let factors = |name: &str| self.factors(checkpoint, name, rope_dims);
        let (Some(short), Some(long)) =
            (factors("rope_factors_short.weight")?, factors("rope_factors_long.weight")?)
        else {
            return Ok(None);
        };
        let original_context = self.whole("rope.scaling.original_context_length")?.unwrap_or(context);
        let attention_factor = match self.number("rope.scaling.attn_factor")? {
            Some(factor) => factor,
            None => long_magnitude(context, original_context),
        };
        Ok(Some(Scaling::Long { short, long, original_context, attention_factor }))
    }

    /// The values of a tensor that has one for each rotated pair, which is looked at before anything is decoded.
    fn factors(
        &self,
        checkpoint: &Checkpoint,
        name: &str,
        rope_dims: usize,
    ) -> Result<Option<Vec<f64>>, String> {
        let Some(tensor) = names::find(checkpoint, name) else { return Ok(None) };
        let pairs = within(&self.key("rope.dimension_count"), rope_dims, MOST_HEAD_DIMS)? / 2;
        match tensor.rows() * tensor.columns() {
            len if len == pairs => Ok(Some(tensor.values().into_iter().map(f64::from).collect())),
            len => Err(format!("{name} has {len} factors, not {pairs}")),
        }
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn missing(&self, name: &str) -> String {
        format!("has no {}", self.key(name))
    }

    fn need(&self, name: &str) -> Result<usize, String> {
        self.whole(name)?.ok_or_else(|| self.missing(name))
    }

    fn find<'a, T: FromValue<'a>>(&'a self, name: &str) -> Result<Option<T>, String> {
        self.pairs.typed(&self.key(name))
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, String> {
        self.find(name)
    }

    fn number(&self, name: &str) -> Result<Option<f64>, String> {
        self.find(name)
    }

    fn whole(&self, name: &str) -> Result<Option<usize>, String> {
        Ok(self.find::<Count>(name)?.map(|count| count.0))
    }
}

/// A count; of an array (per layer) the common value.
struct Count(usize);

impl FromValue<'_> for Count {
    const EXPECTED: &'static str = "a whole number, the same for all layers";

    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Integers(all) => {
                let first = *all.first()?;
                all.iter().all(|v| *v == first).then_some(Count(first.try_into().ok()?))
            }
            other => usize::from_value(other).map(Count),
        }
    }
}

/// LongRoPE's factor on sine and cosine: sqrt(1 + ln(stretch) / ln(original context)).
pub(super) fn long_magnitude(context: usize, original: usize) -> f64 {
    let original = original.max(2) as f64; // of 1 the logarithm is 0
    let stretch = context as f64 / original;
    if stretch <= 1.0 { 1.0 } else { (1.0 + libm::log(stretch) / libm::log(original)).sqrt() }
}
