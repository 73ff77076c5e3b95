//! From a Hugging Face repository's config.json.

use super::gguf::long_magnitude;
use super::{
    ExpertShape, Hyperparameters, Latent, MOST_LAYERS, architecture, attention_scale, within, yarn_magnitude,
};
use crate::backend::{Activation, Gate, RopeStyle, Routing};
use crate::model::rope::Scaling;
use serde_json::Value;

struct Fields<'a> {
    config: Object<'a>,
    /// GGUF's name.
    architecture: &'static str,
    /// transformers 5 writes rope_parameters, 4 wrote rope_theta and rope_scaling
    rope: Object<'a>,
}

/// What `config` says. Messages name the key, what stands there and what should.
pub(super) fn read(config: &Value) -> Result<Hyperparameters, String> {
    let config = Object { name: "", value: config };
    let model_type = config.text("model_type")?.ok_or("has no model_type, which must be text")?;
    let architecture = architecture(model_type, true)?;
    let rope = match config.object("rope_parameters")? {
        Some(rope) => rope,
        None => {
            config.object("rope_scaling")?.unwrap_or(Object { name: "rope_scaling", value: &Value::Null })
        }
    };
    Fields { config, architecture, rope }.read(model_type)
}

/// The fields of an object. One that is null is not there; one of another type than it must be is an error.
#[derive(Clone, Copy)]
struct Object<'a> {
    /// Its key; none of the whole.
    name: &'static str,
    value: &'a Value,
}

impl<'a> Object<'a> {
    fn find<T>(
        self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(value) = self.value.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
        let fault = || format!("{} is {}, not {expected}", self.path(key), describe(value));
        read(value).map(Some).ok_or_else(fault)
    }

    /// `rope_scaling.factor`
    fn path(self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn whole(self, key: &str) -> Result<Option<usize>, String> {
        self.find(key, "a whole number", |value| usize::try_from(value.as_u64()?).ok())
    }

    fn number(self, key: &str) -> Result<Option<f64>, String> {
        self.find(key, "a number", Value::as_f64)
    }

    fn flag(self, key: &str) -> Result<Option<bool>, String> {
        self.find(key, "true or false", Value::as_bool)
    }

    fn text(self, key: &str) -> Result<Option<&'a str>, String> {
        self.find(key, "text", Value::as_str)
    }

    fn texts(self, key: &str) -> Result<Option<Vec<&'a str>>, String> {
        let texts = |value: &'a Value| value.as_array()?.iter().map(Value::as_str).collect();
        self.find(key, "a list of texts", texts)
    }

    fn numbers(self, key: &str) -> Result<Option<Vec<f64>>, String> {
        let numbers = |value: &Value| value.as_array()?.iter().map(Value::as_f64).collect();
        self.find(key, "a list of numbers", numbers)
    }

    fn object(self, name: &'static str) -> Result<Option<Object<'a>>, String> {
        let object = |value: &'a Value| value.is_object().then_some(Object { name, value });
        self.find(name, "an object", object)
    }

    fn need(self, key: &str) -> Result<usize, String> {
        self.whole(key)?.ok_or_else(|| format!("has no {}, which must be a whole number", self.path(key)))
    }

    fn need_number(self, key: &str) -> Result<f64, String> {
        self.number(key)?.ok_or_else(|| format!("has no {}, which must be a number", self.path(key)))
    }
}

/// A value for messages, its kind where it may be long.
fn describe(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) if text.chars().count() > 40 => "a long text".to_owned(),
        short => short.to_string(),
    }
}

impl Fields<'_> {
    fn read(&self, model_type: &str) -> Result<Hyperparameters, String> {
        let name = self.architecture;
        let (width, heads) = (self.config.need("hidden_size")?, self.config.need("num_attention_heads")?);
        let latent = self.latent()?;
        let head_dim = match latent {
            Some(l) => l.plain_dims.saturating_add(l.rope_dims),
            None => self.config.whole("head_dim")?.or(width.checked_div(heads)).unwrap_or_default(),
        };
        let context = self.config.need("max_position_embeddings")?;
        let layers = within("num_hidden_layers", self.config.need("num_hidden_layers")?, MOST_LAYERS)?;
        let partial = self.rope_or_config("partial_rotary_factor")?;
        let rope_scaling = self.scaling(context)?;
        let context_limit = match &rope_scaling {
            Scaling::Long { original_context, .. } => *original_context,
            _ => context,
        };
        Ok(Hyperparameters {
            architecture: name.to_owned(),
            layers,
            width,
            heads,
            kv_heads: match latent {
                Some(_) => heads,
                None => self.config.whole("num_key_value_heads")?.unwrap_or(heads),
            },
            head_dim,
            latent,
            feed_forward: self.config.need("intermediate_size")?,
            activation: match name {
                "gpt-oss" => Activation::Clamped {
                    alpha: self.config.number("swiglu_alpha")?.unwrap_or(1.702) as f32,
                    limit: self.config.number("swiglu_limit")?.unwrap_or(7.0) as f32,
                },
                _ => Activation::SwiGlu,
            },
            experts: self.experts(model_type)?,
            vocabulary: self.config.need("vocab_size")?,
            context,
            context_limit,
            norm_epsilon: self.config.need_number("rms_norm_eps")? as f32,
            attention_scale: attention_scale(head_dim, self.yarn_scale()?),
            windows: self.windows(layers)?,
            rope_base: self.rope_or_config("rope_theta")?.unwrap_or(10_000.0),
            rope_dims: match (latent, partial) {
                (Some(l), _) => l.rope_dims,
                (None, Some(share)) => (head_dim as f64 * share) as usize,
                (None, None) => head_dim,
            },
            rope_scaling,
            rope_style: match name {
                "deepseek2" if self.config.flag("rope_interleave")? != Some(false) => RopeStyle::Interleaved,
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
            query_rank: self.config.whole("q_lora_rank")?,
            rank: self.config.need("kv_lora_rank")?,
            plain_dims: self.config.need("qk_nope_head_dim")?,
            rope_dims: self.config.need("qk_rope_head_dim")?,
            value_dim: self.config.need("v_head_dim")?,
        }))
    }

    fn experts(&self, model_type: &str) -> Result<Option<ExpertShape>, String> {
        let count = ["n_routed_experts", "num_local_experts", "num_experts"];
        let counts = count.into_iter().map(|key| self.config.whole(key));
        let Some(count) = counts.filter_map(Result::transpose).next().transpose()? else { return Ok(None) };
        let feed_forward = match self.config.whole("moe_intermediate_size")? {
            Some(n) => n,
            None => self.config.need("intermediate_size")?,
        };
        let sigmoid = match self.config.text("scoring_func")? {
            None => model_type == "deepseek_v3",
            Some("sigmoid") => true,
            Some("softmax") => false,
            Some(other) => return Err(format!("scoring_func '{other}' is not supported")),
        };
        let gate = match self.architecture {
            "gpt-oss" => Gate::SoftmaxOfChosen,
            _ if sigmoid => Gate::Sigmoid,
            _ => Gate::Softmax,
        };
        let groups =
            (self.config.whole("n_group")?.unwrap_or(1), self.config.whole("topk_group")?.unwrap_or(1));
        if groups.1 < groups.0 && !sigmoid {
            return Err("groups of experts under a softmax are not supported".into());
        }
        Ok(Some(ExpertShape {
            count,
            feed_forward,
            shared: self.config.whole("n_shared_experts")?.unwrap_or(0).saturating_mul(feed_forward),
            routing: Routing {
                used: self.config.need("num_experts_per_tok")?,
                gate,
                groups,
                normalize: self.config.flag("norm_topk_prob")?.unwrap_or(false),
                scale: self.config.number("routed_scaling_factor")?.unwrap_or(1.0) as f32,
            },
        }))
    }

    /// By layer: `layer_types` says which have a window; without it all or none.
    fn windows(&self, layers: usize) -> Result<Vec<Option<usize>>, String> {
        // qwen has a window only where it says so
        let by_default = !self.architecture.starts_with("qwen");
        let used = self.config.flag("use_sliding_window")?.unwrap_or(by_default);
        let window = self.config.whole("sliding_window")?.filter(|&n| n > 0 && used);
        let kinds = self.config.texts("layer_types")?;
        // the lower layers of qwen2 and qwen3 see everything: transformers' default
        let qwen_from = self.config.whole("max_window_layers")?.unwrap_or(28);
        let slides = |layer: usize| match &kinds {
            Some(kinds) => kinds.get(layer) == Some(&"sliding_attention"),
            None if matches!(self.architecture, "qwen2" | "qwen3") => layer >= qwen_from,
            None if self.architecture == "gpt-oss" => layer.is_multiple_of(2),
            None => true,
        };
        Ok((0..layers).map(|layer| window.filter(|_| slides(layer))).collect())
    }

    /// What attention's scores are multiplied by twice: DeepSeek's `mscale_all_dim`.
    fn yarn_scale(&self) -> Result<f64, String> {
        let (factor, all) = (self.rope.number("factor")?, self.rope.number("mscale_all_dim")?);
        Ok(match (self.architecture, factor, all) {
            ("deepseek2", Some(factor), Some(m)) if m != 0.0 => yarn_magnitude(factor, m),
            _ => 1.0,
        })
    }

    /// A number that stands with the rotary embedding or, in older files, beside it.
    fn rope_or_config(&self, key: &str) -> Result<Option<f64>, String> {
        Ok(self.rope.number(key)?.or(self.config.number(key)?))
    }

    fn scaling(&self, context: usize) -> Result<Scaling, String> {
        let kind = self.rope.text("rope_type")?.or(self.rope.text("type")?).unwrap_or("default");
        let (optional, number) = (|key| self.rope.number(key), |key| self.rope.need_number(key));
        let original = self.rope_or_config("original_max_position_embeddings")?.unwrap_or(context as f64);
        Ok(match kind {
            "default" => Scaling::None,
            "linear" => Scaling::Linear { factor: number("factor")? },
            "llama3" => Scaling::Llama3 {
                factor: number("factor")?,
                low: number("low_freq_factor")?,
                high: number("high_freq_factor")?,
                original_context: original,
            },
            "yarn" => {
                let factor = number("factor")?;
                let ratio = match (optional("mscale")?, optional("mscale_all_dim")?) {
                    (Some(m), Some(all)) if m != 0.0 && all != 0.0 => {
                        Some(yarn_magnitude(factor, m) / yarn_magnitude(factor, all))
                    }
                    _ => None,
                };
                // R1-0528-Qwen3-8B has one that takes YaRN's magnitude back to 1. transformers does not know the key, but
                // llama.cpp and vLLM, which the model was published for, multiply by it
                let attn_factor = optional("attn_factor")?;
                let multiplied = attn_factor.map(|own| own * ratio.unwrap_or(yarn_magnitude(factor, 1.0)));
                Scaling::Yarn {
                    factor,
                    beta_fast: optional("beta_fast")?.unwrap_or(32.0),
                    beta_slow: optional("beta_slow")?.unwrap_or(1.0),
                    original_context: original,
                    attention_factor: optional("attention_factor")?.or(multiplied).or(ratio),
                    truncate: self.rope.flag("truncate")?.unwrap_or(true),
                }
            }
            "longrope" | "su" => {
                let missing =
                    |key: &str| format!("has no {}, which must be a list of numbers", self.rope.path(key));
                let factors = |key: &str| self.rope.numbers(key)?.ok_or_else(|| missing(key));
                let original_context = original as usize;
                Scaling::Long {
                    short: factors("short_factor")?,
                    long: factors("long_factor")?,
                    original_context,
                    attention_factor: optional("attention_factor")?
                        .unwrap_or_else(|| long_magnitude(context, original_context)),
                }
            }
            other => return Err(format!("rope scaling '{other}' is not supported")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deepseek() -> Value {
        json!({
            "model_type": "deepseek_v3", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
            "max_position_embeddings": 128, "intermediate_size": 96, "vocab_size": 75, "rms_norm_eps": 1e-6,
            "q_lora_rank": null, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
            "n_routed_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": true, "layer_types": ["a", "b"],
            "rope_scaling": {"type": "yarn", "factor": 40, "mscale": 1.0}
        })
    }

    #[test]
    fn attn_factor_multiplies_yarn_s_magnitude_unless_attention_factor_says_what_it_is() {
        let magnitude = |scaling: Value| {
            let mut config = deepseek();
            config["rope_scaling"] = scaling;
            match read(&config).unwrap().rope_scaling {
                Scaling::Yarn { attention_factor, .. } => attention_factor,
                other => panic!("{other:?}"),
            }
        };
        // DeepSeek-R1-0528-Qwen3-8B
        let mut published = json!({
            "type": "yarn", "factor": 4, "original_max_position_embeddings": 32768, "attn_factor": 0.8782488562869419
        });
        assert!((magnitude(published.clone()).unwrap() - 1.0).abs() < 1e-12);
        published["attention_factor"] = json!(1.5);
        assert_eq!(magnitude(published), Some(1.5));
        assert_eq!(magnitude(json!({"type": "yarn", "factor": 4})), None);
    }

    #[test]
    fn qwen_has_a_window_only_where_it_says_so_and_then_from_layer_28_on() {
        let windows = |model_type: &str, used: Value, from: Value| {
            let config = json!({
                "model_type": model_type, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 30,
                "max_position_embeddings": 128, "intermediate_size": 96, "vocab_size": 75, "rms_norm_eps": 1e-6,
                "num_experts_per_tok": 1, "sliding_window": 16, "use_sliding_window": used, "max_window_layers": from
            });
            read(&config).unwrap().windows.iter().flatten().count()
        };
        assert_eq!(windows("qwen2", Value::Null, json!(0)), 0);
        assert_eq!(windows("qwen2", json!(true), json!(0)), 30);
        assert_eq!(windows("qwen3", json!(true), Value::Null), 2);
        // transformers gives all of its layers the window
        assert_eq!(windows("qwen3_moe", json!(true), json!(28)), 30);
        assert_eq!(windows("mistral", Value::Null, Value::Null), 30);
    }

    #[test]
    fn a_value_of_another_type_is_named_with_its_key_and_what_it_must_be() {
        assert_eq!(read(&deepseek()).unwrap().layers, 2);
        let long = "x".repeat(50);
        for (path, value, message) in [
            ("/num_hidden_layers", json!("many"), "num_hidden_layers is \"many\", not a whole number"),
            ("/hidden_size", json!(-1), "hidden_size is -1, not a whole number"),
            ("/vocab_size", json!(75.5), "vocab_size is 75.5, not a whole number"),
            ("/q_lora_rank", json!([8]), "q_lora_rank is a list, not a whole number"),
            ("/n_routed_experts", json!({}), "n_routed_experts is an object, not a whole number"),
            ("/rms_norm_eps", json!("1e-6"), "rms_norm_eps is \"1e-6\", not a number"),
            ("/norm_topk_prob", json!(1), "norm_topk_prob is 1, not true or false"),
            ("/model_type", json!(3), "model_type is 3, not text"),
            ("/layer_types", json!(["a", 1]), "layer_types is a list, not a list of texts"),
            ("/rope_scaling", json!(long), "rope_scaling is a long text, not an object"),
            ("/rope_scaling/factor", json!("40"), "rope_scaling.factor is \"40\", not a number"),
            ("/rope_scaling/factor", Value::Null, "has no rope_scaling.factor, which must be a number"),
            ("/kv_lora_rank", Value::Null, "has no kv_lora_rank, which must be a whole number"),
        ] {
            let mut config = deepseek();
            *config.pointer_mut(path).unwrap() = value;
            assert_eq!(read(&config).unwrap_err(), message);
        }
    }
}
