//! Checkpoints that were never trained: the tensors of a catalog's model, in name, shape and type, filled with noise. What
//! a model takes of memory and time can be measured with them before it is downloaded.
//!
//! Names and shapes are those of GGUF files as llama.cpp converts them, latent attention's split matrices included. Numbers
//! that change values but no work (the rotary embedding's base and stretching, factors of LongRoPE) are left out.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use super::{ExpertShape, Hyperparameters, Latent, Scaling, export};
use crate::backend::{Activation, Gate, RopeStyle, Routing};
use crate::catalog::{self, Entry};
use crate::checkpoint::write::{GgufWriter, TensorSpec};
use crate::checkpoint::{Checkpoint, GgufMetadata, Metadata, Tensor, Value};
use crate::quant::{self, BlockType, Mix, ModelShape};
use crate::{Error, Result};

/// What is made: a model of the catalog in a quantization, perhaps with fewer layers.
#[derive(Clone, Debug)]
pub struct Synthetic {
    entry: &'static Entry,
    types: Types,
    h: Hyperparameters,
    /// The first layers, which have no experts.
    dense_layers: usize,
}

impl Synthetic {
    /// By short name, which may end in a quantization (`deepseek-r1:8b-q8_0`); else it is the catalog's for that model.
    /// `layers`: only so many, the first ones.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name that is not in the catalog, a quantization whose types are not known, or more layers
    /// than the model has.
    pub fn new(name: &str, layers: Option<usize>) -> Result<Synthetic> {
        let Some((entry, quantization)) = catalog::find_quantized(name) else {
            let near = match catalog::nearest(name) {
                names if names.is_empty() => String::new(),
                names => format!("; near it are {}", names.join(", ")),
            };
            let what = "is no short name of the catalog, whose shapes are needed to make a synthetic model";
            return Err(Error::Usage(format!("{name} {what}{near}")));
        };
        let types = Types::parse(quantization.as_deref().unwrap_or(&entry.quantization), entry)?;
        let h = hyperparameters(entry);
        let layers = layers.unwrap_or(h.layers);
        if layers == 0 || layers > h.layers {
            return Err(Error::Usage(format!("{layers} layers of {name}: it has {}", h.layers)));
        }
        let dense_layers = entry.shape.experts.map_or(0, |experts| experts.dense_layers);
        Ok(Synthetic { entry, types, h: Hyperparameters { layers, ..h }, dense_layers })
    }

    /// The catalog's entry.
    pub fn entry(&self) -> &'static Entry {
        self.entry
    }

    /// The decoder's numbers.
    pub fn hyperparameters(&self) -> &Hyperparameters {
        &self.h
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        let bytes = |t: &TensorSpec| t.kind.row_bytes(t.shape.iter().product::<usize>()) as u64;
        self.tensors().iter().map(bytes).sum()
    }

    /// Metadata as of a GGUF file, with a vocabulary of bytes.
    pub fn metadata(&self) -> BTreeMap<String, Value> {
        let dense_layers = self.dense_layers.min(self.h.layers);
        let mut pairs = export::metadata(&self.h, dense_layers).expect("the catalog's shapes have a place");
        pairs.insert("general.name".into(), Value::String(format!("synthetic {}", self.entry.name)));
        pairs.extend(vocabulary(self.h.vocabulary));
        pairs
    }

    /// The tensors, without their bytes.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let h = &self.h;
        let tied = self.entry.shape.tied;
        let shape = ModelShape {
            layers: h.layers,
            group: h.heads / h.kv_heads,
            experts: h.experts.as_ref().map_or(0, |experts| experts.count),
            tied,
            calibrated: matches!(self.types, Types::Mix(mix) if mix.wants_importance()),
        };
        let mut list = List::default();
        list.add("token_embd.weight", &[h.vocabulary, h.width]);
        (0..h.layers).for_each(|layer| list.layer(h, layer, layer < self.dense_layers));
        list.add("output_norm.weight", &[h.width]);
        if !tied {
            list.add("output.weight", &[h.vocabulary, h.width]);
        }
        let spec = |(name, dimensions): (String, Vec<usize>)| {
            let kind = self.types.kind(&name, &dimensions, &shape);
            TensorSpec { name, kind, shape: dimensions }
        };
        list.0.into_iter().map(spec).collect()
    }

    /// The checkpoint. Its tensors take no memory before they are decoded; of each type they repeat the same blocks, begun
    /// at different places.
    pub fn checkpoint(&self) -> Checkpoint {
        let mut patterns = BTreeMap::new();
        let tensors = self.tensors().into_iter().enumerate().map(|(i, TensorSpec { name, kind, shape })| {
            let noise = Noise::of(&name);
            let pattern = patterns.entry((kind, noise)).or_insert_with(|| noise.pattern(kind));
            (name.clone(), Tensor::repeated(&name, &shape, pattern, i * 97))
        });
        Checkpoint {
            files: vec![],
            tensors: tensors.collect(),
            metadata: Metadata::Gguf(GgufMetadata::new(
                format!("synthetic {}", self.entry.name),
                self.metadata(),
            )),
        }
    }

    /// Writes it as a GGUF file.
    ///
    /// # Errors
    /// What the system says; a file that is only half there is removed.
    pub fn write(&self, path: &Path) -> Result<()> {
        let write = || {
            let mut writer = GgufWriter::new(File::create(path)?, &self.metadata(), &self.tensors())?;
            let checkpoint = self.checkpoint();
            for TensorSpec { name, .. } in self.tensors() {
                writer.tensor(checkpoint.tensors[&name].decoded().bytes())?;
            }
            writer.finish().map(drop)
        };
        write().map_err(|e| {
            let _ = std::fs::remove_file(path); // that it was not whole matters more
            Error::io(path, e)
        })
    }
}

/// Which type each tensor has.
#[derive(Clone, Copy, Debug)]
enum Types {
    Mix(Mix),
    /// Experts in MXFP4, other matrices in Q8_0: gpt-oss.
    Mxfp4,
    /// The "1.58-bit" quantization of R1 by Unsloth (DeepSeek-R1-UD-IQ1_S, January 2025): experts in IQ1_S, but for the
    /// first six of down in IQ2_XXS; what every token goes through in Q4_K, Q5_K and Q6_K.
    DynamicIq1,
}

impl Types {
    fn parse(label: &str, entry: &Entry) -> Result<Types> {
        match (label, Mix::parse(label)) {
            (_, Some(mix)) => Ok(Types::Mix(mix)),
            ("MXFP4", _) => Ok(Types::Mxfp4),
            ("UD-IQ1_S", _) if entry.shape.latent.is_some() => Ok(Types::DynamicIq1),
            _ => Err(Error::Usage(format!(
                "{}: which types the tensors of {label} have is not known; there are {}, MXFP4, and UD-IQ1_S of \
                 deepseek-r1:671b",
                entry.name,
                Mix::all().map(|mix| mix.name).collect::<Vec<_>>().join(", ")
            ))),
        }
    }

    fn kind(self, name: &str, shape: &[usize], model: &ModelShape) -> BlockType {
        let q8_0 = Mix::parse("Q8_0").map_or(BlockType::F32, |mix| mix.kind(name, shape, model));
        let is_expert = name.ends_with("_exps.weight");
        match self {
            Types::Mix(mix) => mix.kind(name, shape, model),
            Types::Mxfp4 if is_expert => BlockType::MXFP4,
            Types::Mxfp4 => q8_0,
            Types::DynamicIq1 if q8_0 == BlockType::F32 => q8_0,
            Types::DynamicIq1 => {
                let (layer, part) =
                    name.strip_prefix("blk.").and_then(|n| n.split_once('.')).unwrap_or(("", name));
                let layer: usize = layer.parse().unwrap_or(0);
                match part.trim_end_matches(".weight") {
                    "ffn_down_exps" if layer < 9 => BlockType::IQ2_XXS,
                    _ if is_expert => BlockType::IQ1_S,
                    "output" | "attn_kv_a_mqa" | "attn_v_b" | "ffn_down" | "ffn_down_shexp" => {
                        BlockType::Q6_K
                    }
                    "attn_k_b" => BlockType::Q8_0, // its rows are half a block of Q6_K
                    "ffn_gate_shexp" | "ffn_up_shexp" => BlockType::Q5_K,
                    _ => BlockType::Q4_K,
                }
            }
        }
    }
}

/// Names and shapes.
#[derive(Default)]
struct List(Vec<(String, Vec<usize>)>);

impl List {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.push((name.into(), shape.to_owned()));
    }

    /// The tensors of a layer.
    fn layer(&mut self, h: &Hyperparameters, layer: usize, is_dense: bool) {
        let mut add = |part: &str, shape: &[usize]| self.add(format!("blk.{layer}.{part}"), shape);
        let architecture = h.architecture.as_str();
        add("attn_norm.weight", &[h.width]);
        match h.latent {
            Some(latent) => latent_attention(h, latent, &mut add),
            None => grouped_attention(h, &mut add),
        }
        match architecture {
            "gpt-oss" => add("post_attention_norm.weight", &[h.width]),
            "glm4" => ["post_attention_norm.weight", "ffn_norm.weight", "post_ffw_norm.weight"]
                .into_iter()
                .for_each(|norm| add(norm, &[h.width])),
            _ => add("ffn_norm.weight", &[h.width]),
        }
        match &h.experts {
            Some(experts) if !is_dense => feed_experts(h, experts, &mut add),
            _ if matches!(architecture, "phi3" | "glm4") => {
                add("ffn_up.weight", &[2 * h.feed_forward, h.width]); // gate and up in one
                add("ffn_down.weight", &[h.width, h.feed_forward]);
            }
            _ => gated(h, "", h.feed_forward, &mut add),
        }
    }
}

type Add<'a> = &'a mut dyn FnMut(&str, &[usize]);

fn grouped_attention(h: &Hyperparameters, add: Add) {
    let (queries, keys) = (h.heads * h.head_dim, h.kv_heads * h.head_dim);
    let architecture = h.architecture.as_str();
    if architecture == "phi3" {
        add("attn_qkv.weight", &[queries + 2 * keys, h.width]);
    } else {
        for (part, rows) in [("q", queries), ("k", keys), ("v", keys)] {
            add(&format!("attn_{part}.weight"), &[rows, h.width]);
            if matches!(architecture, "qwen2" | "gpt-oss") {
                add(&format!("attn_{part}.bias"), &[rows]);
            }
        }
    }
    if matches!(architecture, "qwen3" | "qwen3moe") {
        add("attn_q_norm.weight", &[h.head_dim]);
        add("attn_k_norm.weight", &[h.head_dim]);
    }
    add("attn_output.weight", &[h.width, queries]);
    if architecture == "gpt-oss" {
        add("attn_output.bias", &[h.width]);
        add("attn_sinks.weight", &[h.heads]);
    }
}

fn latent_attention(h: &Hyperparameters, l: Latent, add: Add) {
    let queries = h.heads * h.head_dim;
    match l.query_rank {
        Some(rank) => {
            add("attn_q_a.weight", &[rank, h.width]);
            add("attn_q_a_norm.weight", &[rank]);
            add("attn_q_b.weight", &[queries, rank]);
        }
        None => add("attn_q.weight", &[queries, h.width]),
    }
    add("attn_kv_a_mqa.weight", &[l.rank + l.rope_dims, h.width]);
    add("attn_kv_a_norm.weight", &[l.rank]);
    add("attn_k_b.weight", &[h.heads, l.rank, l.plain_dims]);
    add("attn_v_b.weight", &[h.heads, l.value_dim, l.rank]);
    add("attn_output.weight", &[h.width, h.heads * l.value_dim]);
}

fn gated(h: &Hyperparameters, suffix: &str, width: usize, add: Add) {
    add(&format!("ffn_gate{suffix}.weight"), &[width, h.width]);
    add(&format!("ffn_up{suffix}.weight"), &[width, h.width]);
    add(&format!("ffn_down{suffix}.weight"), &[h.width, width]);
}

fn feed_experts(h: &Hyperparameters, experts: &ExpertShape, add: Add) {
    let &ExpertShape { count, feed_forward, shared, .. } = experts;
    add("ffn_gate_inp.weight", &[count, h.width]);
    if experts.routing.gate == Gate::Sigmoid {
        add("exp_probs_b.bias", &[count]);
    }
    let has_biases = h.architecture == "gpt-oss";
    if has_biases {
        add("ffn_gate_inp.bias", &[count]);
    }
    let parts =
        [("gate", feed_forward, h.width), ("up", feed_forward, h.width), ("down", h.width, feed_forward)];
    for (part, rows, columns) in parts {
        add(&format!("ffn_{part}_exps.weight"), &[count, rows, columns]);
        if has_biases {
            add(&format!("ffn_{part}_exps.bias"), &[count, rows]);
        }
    }
    if shared > 0 {
        gated(h, "_shexp", shared, add);
    }
}

/// What a tensor is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Noise {
    /// Ones: the weights of norms.
    Ones,
    /// A normal distribution of this family's usual initial deviation, 0.02.
    Normal,
}

impl Noise {
    fn of(name: &str) -> Self {
        if name.ends_with("norm.weight") { Noise::Ones } else { Noise::Normal }
    }

    /// A prime number of blocks, about 65,000 values, so that rows of a matrix do not begin at the same places.
    fn pattern(self, kind: BlockType) -> Tensor {
        let blocks = match kind.block_len() {
            1 => 65_537,
            32 => 2_053,
            _ => 257,
        };
        let len = blocks * kind.block_len();
        let values: Vec<f32> = match self {
            Noise::Ones => vec![1.0; len],
            Noise::Normal => normal(len).map(|v| 0.02 * v).collect(),
        };
        let mut bytes = vec![0; kind.row_bytes(len)];
        quant::quantize(kind, &values, &mut bytes);
        Tensor::from_bytes("noise", kind, &[len], bytes)
    }
}

/// Values of about a standard normal distribution, always the same: sums of four uniform ones.
fn normal(len: usize) -> impl Iterator<Item = f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut uniform = move || {
        // xorshift64 (Marsaglia 2003); the high bits are the better ones
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    std::iter::repeat_with(move || 3f32.sqrt() * (0..4).map(|_| uniform()).sum::<f32>()).take(len)
}

/// The decoder's numbers, by a catalog's entry.
fn hyperparameters(entry: &Entry) -> Hyperparameters {
    let shape = &entry.shape;
    let latent = shape.latent.map(|l| Latent {
        query_rank: Some(l.query_rank),
        rank: l.rank,
        plain_dims: shape.head_dim - l.rope_dims,
        rope_dims: l.rope_dims,
        value_dim: l.value_dim,
    });
    let gate = match entry.architecture.as_str() {
        "deepseek2" => Gate::Sigmoid,
        "gpt-oss" => Gate::SoftmaxOfChosen,
        _ => Gate::Softmax,
    };
    let experts = shape.experts.map(|e| ExpertShape {
        count: e.count - e.shared,
        feed_forward: e.feed_forward,
        shared: e.shared * e.feed_forward,
        routing: Routing { used: e.used, gate, groups: e.groups, normalize: true, scale: e.scale as f32 },
    });
    Hyperparameters {
        architecture: entry.architecture.clone(),
        layers: shape.layers,
        width: shape.width,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        latent,
        feed_forward: shape.feed_forward,
        activation: Activation::SwiGlu,
        experts,
        vocabulary: shape.vocabulary,
        context: shape.context,
        context_limit: shape.context,
        norm_epsilon: 1e-6,
        attention_scale: 1.0 / (shape.head_dim as f32).sqrt(),
        windows: vec![shape.window; shape.layers],
        rope_base: 10_000.0,
        rope_dims: latent.map(|l| l.rope_dims).or(shape.rope_dims).unwrap_or(shape.head_dim),
        rope_scaling: Scaling::None,
        rope_style: RopeStyle::Halves,
    }
}

/// A byte-level vocabulary that can write anything: a token for each byte, and the others unused.
fn vocabulary(tokens: usize) -> [(String, Value); 5] {
    let bytes = (0..=255).map(|byte| crate::text::byte_level_entry(&[byte]));
    let unused = (256..tokens).map(|id| format!("[unused{id}]"));
    let kinds = (0..tokens).map(|id| if id < 256 { 1 } else { 5 }).collect();
    let text = |text: &str| Value::String(text.to_owned());
    [
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("qwen2")),
        ("tokenizer.ggml.tokens", Value::Strings(bytes.chain(unused).collect())),
        ("tokenizer.ggml.token_type", Value::Integers(kinds)),
        ("tokenizer.ggml.merges", Value::Strings(vec![])),
    ]
    .map(|(key, value)| (key.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its hyperparameters, as they are read back, and bytes of all tensors.
    fn read(name: &str) -> (Hyperparameters, u64) {
        let checkpoint = Synthetic::new(name, None).unwrap().checkpoint();
        (Hyperparameters::read(&checkpoint).unwrap(), super::super::loaded_bytes(&checkpoint, None))
    }

    #[test]
    fn every_model_of_the_catalog_has_as_many_parameters_and_bytes_as_it_should() {
        for entry in catalog::entries() {
            let synthetic = Synthetic::new(&entry.name, None).unwrap();
            let values: usize = synthetic.tensors().iter().map(|t| t.shape.iter().product::<usize>()).sum();
            let ratio = values as f64 / (entry.shape.billions * 1e9);
            assert!((ratio - 1.0).abs() < 1e-3, "{}: {ratio} of its parameters", entry.name);
            let (h, bytes) = read(&entry.name);
            assert_eq!((h.layers, h.vocabulary), (entry.shape.layers, entry.shape.vocabulary));
            let ratio = bytes as f64 / entry.weight_bytes(&entry.quantization).unwrap() as f64;
            // rows of the feed-forward that are no whole super-blocks get larger types, which the catalog does not count
            let most = if entry.shape.feed_forward.is_multiple_of(256) { 0.03 } else { 0.07 };
            assert!((ratio - 1.0).abs() < most, "{}: {ratio} of its bytes", entry.name);
        }
    }

    #[test]
    fn what_is_written_as_metadata_is_read_as_hyperparameters() {
        let (h, _) = read("deepseek-r1:671b");
        let latent =
            Latent { query_rank: Some(1536), rank: 512, plain_dims: 128, rope_dims: 64, value_dim: 128 };
        assert_eq!((h.latent, h.head_dim, h.kv_shape().key_dim), (Some(latent), 192, 576));
        let experts = h.experts.unwrap();
        assert_eq!((experts.count, experts.shared, experts.feed_forward), (256, 2048, 2048));
        let routing = Routing { used: 8, gate: Gate::Sigmoid, groups: (8, 4), normalize: true, scale: 2.5 };
        assert_eq!(experts.routing, routing);
        let (h, _) = read("gpt-oss:20b");
        assert_eq!(
            (&h.windows[..3], h.experts.unwrap().routing.used),
            (&[Some(128), None, Some(128)][..], 4)
        );
        assert_eq!(read("phi-4-mini-reasoning").0.rope_dims, 96);
    }

    #[test]
    fn r1_in_1_58_bits_has_the_types_of_the_published_file() {
        let synthetic = Synthetic::new("deepseek-r1:671b-ud-iq1_s", None).unwrap();
        let count = |kind| synthetic.tensors().iter().filter(|tensor| tensor.kind == kind).count();
        use BlockType::*;
        assert_eq!([IQ1_S, IQ2_XXS, Q4_K, Q5_K].map(count), [168, 6, 190, 116]);
        let (_, bytes) = read("deepseek-r1:671b-ud-iq1_s");
        assert!((bytes as f64 / 140.2e9 - 1.0).abs() < 0.01, "{bytes} bytes; published: 131 GiB");
    }

    #[test]
    fn weights_have_the_usual_spread_in_every_type() {
        for kind in BlockType::ALL {
            let values = Noise::Normal.pattern(kind).values();
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let square = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / values.len() as f32;
            assert!(
                mean.abs() < 0.002 && (square.sqrt() / 0.02 - 1.0).abs() < 0.3,
                "{kind}: {mean}, {square}"
            );
        }
    }

    #[test]
    fn a_name_or_quantization_that_is_not_known_is_refused_with_advice() {
        let error = |name: &str, layers| Synthetic::new(name, layers).unwrap_err().to_string();
        assert!(error("deepseek-r1:1.6b", None).contains("near it are deepseek-r1:1.5b"));
        assert!(error("qwen3:8b-ud-iq2_xxs", None).contains("Q4_K_M"));
        assert!(error("qwen3:8b", Some(37)).contains("it has 36"));
        assert!(Synthetic::new("qwen3:8b", Some(0)).is_err());
    }
}
