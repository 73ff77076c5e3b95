//! From a Hugging Face repository's config.json.

use super::gguf::long_magnitude;
use super::{ExpertShape, Hyperparameters, Latent, architecture, attention_scale, yarn_magnitude};
use crate::backend::{Activation, Gate, RopeStyle, Routing};
use crate::model::rope::Scaling;

struct Fields<'a> {
    config: &'a serde_json::Value,
    /// GGUF's name.
    architecture: &'static str,
    /// transformers 5 writes rope_parameters, 4 wrote rope_theta and rope_scaling
    rope: &'a serde_json::Value,
}

pub(super) fn read(config: &serde_json::Value) -> Result<Hyperparameters, String> {
    let model_type = config.get("model_type").and_then(|v| v.as_str());
    let model_type = model_type.ok_or("config.json has no model_type")?;
    let rope = ["rope_parameters", "rope_scaling"]
        .iter()
        .find_map(|k| config.get(k).filter(|v| v.is_object()))
        .unwrap_or(&serde_json::Value::Null);
    Fields { config, architecture: architecture(model_type, true)?, rope }.read(model_type)
}

impl Fields<'_> {
    fn read(&self, model_type: &str) -> Result<Hyperparameters, String> {
        let name = self.architecture;
        let (width, heads) = (self.need("hidden_size")?, self.need("num_attention_heads")?);
        let latent = self.latent()?;
        let head_dim = match latent {
            Some(l) => l.plain_dims + l.rope_dims,
            None => self.whole("head_dim").or(width.checked_div(heads)).unwrap_or_default(),
        };
        let context = self.need("max_position_embeddings")?;
        let layers = self.need("num_hidden_layers")?;
        let partial =
            self.rope.get("partial_rotary_factor").or_else(|| self.config.get("partial_rotary_factor"));
        let partial = partial.and_then(|v| v.as_f64());
        let rope_scaling = self.scaling(context)?;
        let context_limit = match &rope_scaling {
            Scaling::Long { original_context, .. } => *original_context,
            _ => context,
        };
        let base = self.rope.get("rope_theta").and_then(|v| v.as_f64());
        Ok(Hyperparameters {
            architecture: name.to_owned(),
            layers,
            width,
            heads,
            kv_heads: match latent {
                Some(_) => heads,
                None => self.whole("num_key_value_heads").unwrap_or(heads),
            },
            head_dim,
            latent,
            feed_forward: self.need("intermediate_size")?,
            activation: match name {
                "gpt-oss" => Activation::Clamped {
                    alpha: self.number("swiglu_alpha").unwrap_or(1.702) as f32,
                    limit: self.number("swiglu_limit").unwrap_or(7.0) as f32,
                },
                _ => Activation::SwiGlu,
            },
            experts: self.experts(model_type)?,
            vocabulary: self.need("vocab_size")?,
            context,
            context_limit,
            norm_epsilon: self.number("rms_norm_eps").ok_or("config.json has no rms_norm_eps")? as f32,
            attention_scale: attention_scale(head_dim, self.yarn_scale()),
            windows: self.windows(layers),
            rope_base: base.or_else(|| self.number("rope_theta")).unwrap_or(10_000.0),
            rope_dims: match (latent, partial) {
                (Some(l), _) => l.rope_dims,
                (None, Some(share)) => (head_dim as f64 * share) as usize,
                (None, None) => head_dim,
            },
            rope_scaling,
            rope_style: match name {
                "deepseek2" if self.flag("rope_interleave") != Some(false) => RopeStyle::Interleaved,
                "glm4" => RopeStyle::Interleaved,
                _ => RopeStyle::Halves,
            },
        })
    }

    fn latent(&self) -> Result<Option<Latent>, String> {
        if self.architecture != "deepseek2" {
            return Ok(None);
        }
        Ok(Some(Latent {
            query_rank: self.whole("q_lora_rank"),
            rank: self.need("kv_lora_rank")?,
            plain_dims: self.need("qk_nope_head_dim")?,
            rope_dims: self.need("qk_rope_head_dim")?,
            value_dim: self.need("v_head_dim")?,
        }))
    }

    fn experts(&self, model_type: &str) -> Result<Option<ExpertShape>, String> {
        let count = ["n_routed_experts", "num_local_experts", "num_experts"];
        let Some(count) = count.iter().find_map(|key| self.whole(key)) else { return Ok(None) };
        let feed_forward = match self.whole("moe_intermediate_size") {
            Some(n) => n,
            None => self.need("intermediate_size")?,
        };
        let sigmoid = match self.config.get("scoring_func").and_then(|v| v.as_str()) {
            None => model_type == "deepseek_v3",
            Some("sigmoid") => true,
            Some("softmax") => false,
            Some(other) => return Err(format!("config.json: scoring_func '{other}' is not supported")),
        };
        let gate = match self.architecture {
            "gpt-oss" => Gate::SoftmaxOfChosen,
            _ if sigmoid => Gate::Sigmoid,
            _ => Gate::Softmax,
        };
        let groups = (self.whole("n_group").unwrap_or(1), self.whole("topk_group").unwrap_or(1));
        if groups.1 < groups.0 && !sigmoid {
            return Err("config.json: groups of experts under a softmax are not supported".into());
        }
        Ok(Some(ExpertShape {
            count,
            feed_forward,
            shared: self.whole("n_shared_experts").unwrap_or(0) * feed_forward,
            routing: Routing {
                used: self.need("num_experts_per_tok")?,
                gate,
                groups,
                normalize: self.flag("norm_topk_prob").unwrap_or(false),
                scale: self.number("routed_scaling_factor").unwrap_or(1.0) as f32,
            },
        }))
    }

    /// By layer: `layer_types` says which have a window; without it all or none.
    fn windows(&self, layers: usize) -> Vec<Option<usize>> {
        let unused = self.flag("use_sliding_window") == Some(false);
        let window = self.whole("sliding_window").filter(|&n| n > 0 && !unused);
        let kinds = self.config.get("layer_types").and_then(|v| v.as_array());
        let slides = |layer: usize| match kinds {
            Some(kinds) => kinds.get(layer).and_then(|v| v.as_str()) == Some("sliding_attention"),
            // qwen's lower layers see everything
            None if self.architecture.starts_with("qwen") => {
                layer >= self.whole("max_window_layers").unwrap_or(usize::MAX)
            }
            None if self.architecture == "gpt-oss" => layer.is_multiple_of(2),
            None => true,
        };
        (0..layers).map(|layer| window.filter(|_| slides(layer))).collect()
    }

    /// What attention's scores are multiplied by twice: DeepSeek's `mscale_all_dim`.
    fn yarn_scale(&self) -> f64 {
        let number = |key: &str| self.rope.get(key).and_then(|v| v.as_f64());
        match (self.architecture, number("factor"), number("mscale_all_dim")) {
            ("deepseek2", Some(factor), Some(m)) if m != 0.0 => yarn_magnitude(factor, m),
            _ => 1.0,
        }
    }

    fn scaling(&self, context: usize) -> Result<Scaling, String> {
        let kind = ["rope_type", "type"].iter().find_map(|k| self.rope.get(k)?.as_str()).unwrap_or("default");
        let optional = |key: &str| self.rope.get(key).and_then(|v| v.as_f64());
        let number =
            |key: &str| optional(key).ok_or(format!("config.json: rope scaling '{kind}' has no {key}"));
        let original = optional("original_max_position_embeddings")
            .or_else(|| self.number("original_max_position_embeddings"))
            .unwrap_or(context as f64);
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
            "yarn" => {
                let factor = number("factor")?;
                let ratio = match (optional("mscale"), optional("mscale_all_dim")) {
                    (Some(m), Some(all)) if m != 0.0 && all != 0.0 => {
                        Some(yarn_magnitude(factor, m) / yarn_magnitude(factor, all))
                    }
                    _ => None,
                };
                Scaling::Yarn {
                    factor,
                    beta_fast: optional("beta_fast").unwrap_or(32.0),
                    beta_slow: optional("beta_slow").unwrap_or(1.0),
                    original_context: original,
                    attention_factor: optional("attention_factor").or(ratio),
                    truncate: self.rope.get("truncate").and_then(|v| v.as_bool()).unwrap_or(true),
                }
            }
            "longrope" | "su" => {
                let factors = |key: &str| {
                    let list = self.rope.get(key).and_then(|v| v.as_array());
                    let list = list.ok_or(format!("config.json: rope scaling '{kind}' has no {key}"))?;
                    Ok::<_, String>(list.iter().filter_map(|v| v.as_f64()).collect())
                };
                let original_context = original as usize;
                Scaling::Long {
                    short: factors("short_factor")?,
                    long: factors("long_factor")?,
                    original_context,
                    attention_factor: optional("attention_factor")
                        .unwrap_or_else(|| long_magnitude(context, original_context.max(2))),
                }
            }
            other => return Err(format!("config.json: rope scaling '{other}' is not supported")),
        })
    }

    fn need(&self, name: &str) -> Result<usize, String> {
        self.whole(name).ok_or_else(|| format!("config.json has no {name}"))
    }

    fn whole(&self, name: &str) -> Option<usize> {
        usize::try_from(self.config.get(name)?.as_u64()?).ok()
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.config.get(name)?.as_f64()
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.config.get(name)?.as_bool()
    }
}
