//! A checkpoint as GGUF has it: names, metadata, and the order in which tensors stand.
//!
//! What is read from a GGUF file stays as it is. Of a Hugging Face repository tensors are renamed, experts are put
//! together, and what GGUF wants otherwise (llama's queries and keys) is turned while it is written.

use std::collections::BTreeMap;

use super::hyperparameters::yarn_magnitude;
use super::load::{every_other, transposed};
use super::{ExpertShape, Hyperparameters, Scaling, names};
use crate::backend::{Gate, RopeStyle};
use crate::checkpoint::{Checkpoint, Metadata, Tensor, Value};
use crate::quant::BlockType;
use crate::text::gguf_vocabulary;
use crate::{Error, Result};

/// A tensor as it is to be written.
pub struct Export<'a> {
    /// GGUF's name.
    pub name: String,
    /// Dimensions, slowest first.
    pub shape: Vec<usize>,
    /// What is stored, one matrix after the other.
    parts: Vec<&'a Tensor>,
    turn: Turn,
}

/// What GGUF has otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Nothing.
    Nothing,
    /// The halves of the rows of each of so many heads stand by turns.
    Heads(usize),
    /// A stack of experts' matrices, of which every other row is taken, beginning with this one (`None`: all of them); in
    /// plain numbers rows and columns are exchanged (gpt-oss).
    Experts(Option<usize>),
    /// Every other value of a row, beginning with this one.
    Values(usize),
}

impl Export<'_> {
    /// How the values are stored now.
    pub fn kind(&self) -> BlockType {
        self.parts[0].kind
    }

    /// How many matrices it is made of, which [`part`](Self::part) gives one by one.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Bytes that a part takes where it is stored.
    pub fn stored_bytes(&self, index: usize) -> u64 {
        self.parts[index].bytes().len() as u64
    }

    /// Gives the memory of a part's pages back, where it is stored in a mapped file.
    pub fn drop_pages(&self, index: usize) {
        self.parts[index].drop_pages();
    }

    /// A matrix, [rows, columns], as it is to stand in the file.
    pub fn part(&self, index: usize) -> Tensor {
        let tensor = self.parts[index].decoded();
        match self.turn {
            Turn::Nothing => tensor,
            Turn::Heads(heads) => interleave_halves(&tensor, heads),
            Turn::Experts(odd) => experts(&tensor, odd),
            Turn::Values(odd) => {
                let values = tensor.values().into_iter().skip(odd).step_by(2);
                let bytes = values.flat_map(f32::to_le_bytes).collect();
                Tensor::from_bytes(&tensor.name, BlockType::F32, &self.shape, bytes)
            }
        }
    }
}

/// The experts' matrices, [experts, rows, columns].
fn experts(tensor: &Tensor, odd: Option<usize>) -> Tensor {
    let (count, rows) = (tensor.shape[0], tensor.shape[1]);
    let is_turned = tensor.kind.block_len() == 1;
    let mut bytes = Vec::with_capacity(tensor.bytes().len());
    let mut shape = vec![count];
    for expert in 0..count {
        let matrix = tensor.slice(&tensor.name, expert * rows..(expert + 1) * rows);
        let matrix = if is_turned { transposed(&matrix) } else { matrix };
        let matrix = odd.map_or(matrix.clone(), |odd| every_other(&matrix, odd));
        bytes.extend_from_slice(matrix.bytes());
        shape.truncate(1);
        shape.extend(&matrix.shape);
    }
    Tensor::from_bytes(&tensor.name, tensor.kind, &shape, bytes)
}

/// In each head rows i and i + half become neighbours: GGUF's order for `llama`.
fn interleave_halves(tensor: &Tensor, heads: usize) -> Tensor {
    let vector = tensor.shape.len() == 1;
    let rows = if vector { tensor.columns() } else { tensor.rows() };
    let (row_bytes, half) = (tensor.bytes().len() / rows, rows / heads / 2);
    let mut bytes = Vec::with_capacity(tensor.bytes().len());
    for head in tensor.bytes().chunks(2 * half * row_bytes) {
        for i in 0..half {
            bytes.extend_from_slice(&head[i * row_bytes..][..row_bytes]);
            bytes.extend_from_slice(&head[(half + i) * row_bytes..][..row_bytes]);
        }
    }
    Tensor::from_bytes(&tensor.name, tensor.kind, &tensor.shape, bytes)
}

/// The metadata and the tensors of a GGUF file of this checkpoint.
///
/// # Errors
/// A tensor or a tokenizer that has no place in such a file, named.
pub fn export<'a>(
    checkpoint: &'a Checkpoint,
    h: &Hyperparameters,
) -> Result<(BTreeMap<String, Value>, Vec<Export<'a>>)> {
    match &checkpoint.metadata {
        Metadata::Gguf(pairs) => {
            let kept = pairs.iter().filter(|(key, _)| !key.starts_with("split."));
            let metadata = kept.map(|(key, value)| (key.clone(), value.clone())).collect();
            let tensors = checkpoint.tensors.values().map(|tensor| Export {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                parts: vec![tensor],
                turn: Turn::Nothing,
            });
            Ok((metadata, tensors.collect()))
        }
        Metadata::HuggingFace { folder, .. } => {
            let router = |i: usize| names::find(checkpoint, &format!("blk.{i}.ffn_gate_inp.weight"));
            let dense_layers = (0..h.layers).find(|&i| router(i).is_some()).unwrap_or(h.layers);
            let fault = |what| Error::file(folder.join("config.json"), what);
            let mut metadata = metadata(h, dense_layers).map_err(fault)?;
            check_what_names_say(h, &metadata).map_err(fault)?;
            if let Some(name) = checkpoint.name() {
                metadata.insert("general.name".into(), Value::String(name.to_owned()));
            }
            metadata.extend(gguf_vocabulary(&checkpoint.metadata, &h.architecture)?);
            Ok((metadata, renamed(checkpoint, h)?))
        }
    }
}

/// The tensors of a Hugging Face repository under GGUF's names.
fn renamed<'a>(checkpoint: &'a Checkpoint, h: &Hyperparameters) -> Result<Vec<Export<'a>>> {
    let fault = |what: String| Error::file(checkpoint.files.first().cloned().unwrap_or_default(), what);
    let mut experts: BTreeMap<String, BTreeMap<usize, &Tensor>> = BTreeMap::new();
    let mut all = Vec::new();
    let has_sinks = names::find(checkpoint, "blk.0.attn_sinks.weight").is_some();
    for tensor in checkpoint.tensors.values() {
        if names::layer(&tensor.name).is_some_and(|layer| layer >= h.layers) {
            continue; // a layer that predicts further tokens
        }
        if let Some((name, expert)) = names::stacked(&tensor.name) {
            experts.entry(name).or_default().insert(expert, tensor);
            continue;
        }
        if let Some(parts) = fused_experts(tensor) {
            all.extend(parts);
            continue;
        }
        let no_place = || {
            let Tensor { name, shape, .. } = tensor;
            let of = &h.architecture;
            fault(format!("tensor {name} of shape {shape:?} has no place in a GGUF file of {of}"))
        };
        let name = names::gguf(&tensor.name).ok_or_else(no_place)?;
        let turned = h.architecture == "llama" && h.rope_style == RopeStyle::Halves;
        let turn = match name.rsplit('.').nth(1) {
            Some("attn_q") if turned => Turn::Heads(h.heads),
            Some("attn_k") if turned => Turn::Heads(h.kv_heads),
            _ => Turn::Nothing,
        };
        if let Turn::Heads(heads) = turn
            && !is_of_heads(tensor, heads, h.head_dim)
        {
            return Err(no_place());
        }
        // with sinks (gpt-oss) what stands before the feed-forward is called by what it follows
        let name = if has_sinks { name.replace(".ffn_norm.", ".post_attention_norm.") } else { name };
        all.push(Export { name, shape: tensor.shape.clone(), parts: vec![tensor], turn });
    }
    for (name, of_name) in experts {
        let shape = of_name.values().next().map(|tensor| tensor.shape.clone()).unwrap_or_default();
        let complete = of_name.keys().copied().eq(0..h.experts.as_ref().map_or(0, |e| e.count));
        if !complete || of_name.values().any(|tensor| tensor.shape != shape) {
            return Err(fault(format!("the experts of {name} are not complete, or not of one shape")));
        }
        let shape = [&[of_name.len()], &shape[..]].concat();
        all.push(Export { name, shape, parts: of_name.into_values().collect(), turn: Turn::Nothing });
    }
    Ok(all)
}

/// Whether [`interleave_halves`] can turn it: the rows of so many heads, or a bias of them.
fn is_of_heads(tensor: &Tensor, heads: usize, head_dim: usize) -> bool {
    let rows = match tensor.shape[..] {
        [values] if tensor.kind.block_len() == 1 => values,
        [rows, columns] if columns > 0 => rows,
        _ => return false,
    };
    rows == heads * head_dim && head_dim.is_multiple_of(2)
}

/// What gpt-oss stores of all experts together: gate and up by turns, as rows of a matrix (columns, in plain numbers) and as
/// values of a bias.
fn fused_experts(tensor: &Tensor) -> Option<Vec<Export<'_>>> {
    let (layer, part) = tensor.name.strip_prefix("model.layers.")?.split_once(".mlp.experts.")?;
    let one = |name: &str, shape: Vec<usize>, turn: Turn| Export {
        name: format!("blk.{layer}.ffn_{name}"),
        shape,
        parts: vec![tensor],
        turn,
    };
    Some(match (part, &tensor.shape[..]) {
        ("gate_up_proj", &[count, a, b]) => {
            let [rows, columns] = if tensor.kind.block_len() == 1 { [b, a] } else { [a, b] };
            if rows % 2 == 1 || columns == 0 {
                return None;
            }
            let half = |name, odd| one(name, vec![count, rows / 2, columns], Turn::Experts(Some(odd)));
            vec![half("gate_exps.weight", 0), half("up_exps.weight", 1)]
        }
        ("down_proj", &[count, a, b]) => {
            let [rows, columns] = if tensor.kind.block_len() == 1 { [b, a] } else { [a, b] };
            vec![one("down_exps.weight", vec![count, rows, columns], Turn::Experts(None))]
        }
        ("gate_up_proj_bias", &[count, both]) if both.is_multiple_of(2) => {
            let half = |name, odd| one(name, vec![count, both / 2], Turn::Values(odd));
            vec![half("gate_exps.bias", 0), half("up_exps.bias", 1)]
        }
        ("down_proj_bias", &[_, _]) => vec![one("down_exps.bias", tensor.shape.clone(), Turn::Nothing)],
        _ => return None,
    })
}

/// Hyperparameters as GGUF names them, of a model whose first `dense_layers` have no experts; read back they are the same, or
/// it is said what has no place.
pub(super) fn metadata(h: &Hyperparameters, dense_layers: usize) -> Result<BTreeMap<String, Value>, String> {
    let name = h.architecture.clone();
    let mut pairs = BTreeMap::from([("general.architecture".to_owned(), Value::String(name.clone()))]);
    let mut put = |key: &str, value: Value| drop(pairs.insert(format!("{name}.{key}"), value));
    let whole = |n: usize| Value::Unsigned(n as u64);
    put("block_count", whole(h.layers));
    put("context_length", whole(h.context));
    put("embedding_length", whole(h.width));
    put("feed_forward_length", whole(h.feed_forward));
    put("vocab_size", whole(h.vocabulary));
    put("attention.head_count", whole(h.heads));
    put("attention.head_count_kv", whole(h.kv_heads));
    put("attention.key_length", whole(h.head_dim));
    put("attention.value_length", whole(h.latent.map_or(h.head_dim, |l| l.value_dim)));
    put("attention.layer_norm_rms_epsilon", Value::Float(f64::from(h.norm_epsilon)));
    put("rope.dimension_count", whole(h.rope_dims));
    put("rope.freq_base", Value::Float(h.rope_base));
    if let Some(window) = h.windows.iter().flatten().next() {
        put("attention.sliding_window", whole(*window));
    } else if h.architecture == "phi3" {
        put("attention.sliding_window", whole(0)); // some versions of llama.cpp want to be told
    }
    if let Some(l) = h.latent {
        put("attention.kv_lora_rank", whole(l.rank));
        l.query_rank.into_iter().for_each(|rank| put("attention.q_lora_rank", whole(rank)));
        put("leading_dense_block_count", whole(dense_layers));
    }
    if let Some(e) = &h.experts {
        put("expert_count", whole(e.count));
        put("expert_used_count", whole(e.routing.used));
        put("expert_feed_forward_length", whole(e.feed_forward));
        put("expert_shared_count", whole(e.shared / e.feed_forward));
        put("expert_weights_norm", Value::Bool(e.routing.normalize));
        put("expert_weights_scale", Value::Float(f64::from(e.routing.scale)));
        put("expert_group_count", whole(e.routing.groups.0));
        put("expert_group_used_count", whole(e.routing.groups.1));
        let gate = match e.routing.gate {
            Gate::Softmax => 1,
            Gate::Sigmoid => 2,
            Gate::SoftmaxOfChosen => 3,
        };
        put("expert_gating_func", whole(gate));
    }
    scaling(h, &mut put)?;
    Ok(pairs)
}

/// A GGUF file leaves some things to its architecture's name: they must hold for this model.
fn check_what_names_say(h: &Hyperparameters, metadata: &BTreeMap<String, Value>) -> Result<(), String> {
    let metadata = Metadata::Gguf(metadata.clone().into());
    let read = Hyperparameters::read(&Checkpoint { files: vec![], metadata, tensors: BTreeMap::new() })
        .map_err(|error| error.to_string())?;
    let no_place = |what: &str| Err(format!("{what} has no place in a GGUF file of {}", h.architecture));
    if read.windows != h.windows {
        return no_place("which layers attend to a window");
    }
    if read.activation != h.activation {
        return no_place("the limit or the slope of its activation");
    }
    // what llama.cpp does whatever the file says
    let stay_as_they_are = |e: &ExpertShape| e.routing.gate == Gate::Softmax && !e.routing.normalize;
    if h.architecture != "deepseek2" && h.experts.as_ref().is_some_and(stay_as_they_are) {
        return no_place("that the experts' weights stay as they are, not divided by their sum,");
    }
    if h.architecture == "llama" && h.windows.iter().flatten().any(|&window| window < h.context) {
        return no_place("a window shorter than the context");
    }
    // llama's queries and keys are turned, so that their pairs are GGUF's
    if read.rope_style != h.rope_style && h.architecture != "llama" {
        return no_place("its order of rotated pairs");
    }
    Ok(())
}

fn scaling(h: &Hyperparameters, put: &mut impl FnMut(&str, Value)) -> Result<(), String> {
    match &h.rope_scaling {
        Scaling::Linear { factor } => {
            put("rope.scaling.type", Value::String("linear".into()));
            put("rope.scaling.factor", Value::Float(*factor));
        }
        Scaling::Yarn { factor, beta_fast, beta_slow, original_context, attention_factor, truncate } => {
            let no_place =
                |what: String| format!("YaRN's {what} has no place in a GGUF file of {}", h.architecture);
            if *truncate == (h.architecture == "gpt-oss") {
                return Err(no_place(format!("truncate, {truncate},")));
            }
            put("rope.scaling.type", Value::String("yarn".into()));
            put("rope.scaling.factor", Value::Float(*factor));
            put("rope.scaling.original_context_length", Value::Unsigned(*original_context as u64));
            put("rope.scaling.yarn_beta_fast", Value::Float(*beta_fast));
            put("rope.scaling.yarn_beta_slow", Value::Float(*beta_slow));
            let mut own = yarn_magnitude(*factor, 1.0);
            // attention is multiplied by (1 + m ln(factor))²
            let plain = f64::from(h.attention_scale) * (h.head_dim as f64).sqrt();
            if h.architecture == "deepseek2" && plain > 1.0 + 1e-6 {
                let m = (plain.sqrt() - 1.0) / libm::log(*factor);
                put("rope.scaling.yarn_log_multiplier", Value::Float(m));
                own = 1.0;
            }
            // the key is a factor on YaRN's own magnitude; with latent attention llama.cpp multiplies scores by it as well
            let magnitude = attention_factor.unwrap_or_else(|| yarn_magnitude(*factor, 1.0));
            if h.architecture != "deepseek2" {
                put("rope.scaling.attn_factor", Value::Float(magnitude / own));
            } else if (magnitude - own).abs() > 1e-6 {
                return Err(no_place(format!("magnitude of {magnitude} beside {own}")));
            }
        }
        Scaling::Long { original_context, attention_factor, .. } => {
            put("rope.scaling.original_context_length", Value::Unsigned(*original_context as u64));
            put("rope.scaling.attn_factor", Value::Float(*attention_factor));
        }
        Scaling::None | Scaling::Factors(_) | Scaling::Llama3 { .. } => {}
    }
    Ok(())
}

/// Vectors that GGUF has as tensors and config.json as numbers: what frequencies are divided by.
pub fn frequency_factors(h: &Hyperparameters) -> Vec<(&'static str, Vec<f32>)> {
    let as_floats = |factors: &[f64]| factors.iter().map(|&f| f as f32).collect();
    match &h.rope_scaling {
        Scaling::Llama3 { .. } => {
            let plain = Hyperparameters { rope_scaling: Scaling::None, ..h.clone() }.rope();
            let pairs = plain.inverse_frequencies.iter().zip(h.rope().inverse_frequencies);
            vec![("rope_freqs.weight", pairs.map(|(plain, scaled)| (plain / scaled) as f32).collect())]
        }
        Scaling::Long { short, long, .. } => vec![
            ("rope_factors_short.weight", as_floats(short)),
            ("rope_factors_long.weight", as_floats(long)),
        ],
        _ => vec![],
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::backend::Activation;
    use crate::model::Synthetic;

    fn hyperparameters(name: &str) -> Hyperparameters {
        Synthetic::new(name, None).unwrap().hyperparameters().clone()
    }

    fn yarn(attention_factor: Option<f64>, truncate: bool) -> Scaling {
        let (beta_fast, beta_slow) = (32.0, 1.0);
        Scaling::Yarn {
            factor: 4.0,
            beta_fast,
            beta_slow,
            original_context: 32768.0,
            attention_factor,
            truncate,
        }
    }

    fn read_back(h: &Hyperparameters) -> Hyperparameters {
        let metadata = Metadata::Gguf(metadata(h, 0).unwrap().into());
        Hyperparameters::read(&Checkpoint { files: vec![], metadata, tensors: BTreeMap::new() }).unwrap()
    }

    #[test]
    fn yarn_s_own_magnitude_and_a_given_one_are_read_back() {
        let h = hyperparameters("qwen3:0.6b");
        for attention_factor in [None, Some(1.0), Some(1.5)] {
            let h = Hyperparameters { rope_scaling: yarn(attention_factor, true), ..h.clone() };
            let magnitude = attention_factor.unwrap_or(0.1 * 4f64.ln() + 1.0);
            let rope = read_back(&h).rope();
            assert!((rope.magnitude - magnitude).abs() < 1e-12, "{attention_factor:?}: {}", rope.magnitude);
            assert_eq!(rope.inverse_frequencies, h.rope().inverse_frequencies);
        }
    }

    #[test]
    fn yarn_without_an_original_context_is_refused_when_it_is_read() {
        let h = Hyperparameters { rope_scaling: yarn(None, true), ..hyperparameters("qwen3:0.6b") };
        let mut pairs = metadata(&h, 0).unwrap();
        let key = "qwen3.rope.scaling.original_context_length".to_owned();
        assert!(pairs.insert(key, Value::Unsigned(0)).is_some());
        let read =
            Checkpoint { files: vec![], metadata: Metadata::Gguf(pairs.into()), tensors: BTreeMap::new() };
        let message = Hyperparameters::read(&read).unwrap_err().to_string();
        assert!(message.contains("original context 0"), "{message}");
    }

    #[test]
    fn what_gguf_cannot_say_of_yarn_is_refused() {
        let refused = |name: &str, rope_scaling| {
            let h = Hyperparameters { rope_scaling, ..hyperparameters(name) };
            metadata(&h, 0).unwrap_err()
        };
        assert!(refused("qwen3:0.6b", yarn(None, false)).contains("truncate"));
        assert!(refused("gpt-oss:20b", yarn(None, true)).contains("truncate"));
        assert!(refused("deepseek-r1:671b", yarn(Some(1.2), true)).contains("magnitude"));
        // its own magnitude, where scores are multiplied by its square as well
        let mut h = hyperparameters("deepseek-r1:671b");
        h.rope_scaling = yarn(None, true);
        metadata(&h, 0).unwrap();
        h.attention_scale *= (0.1 * 4f32.ln() + 1.0).powi(2);
        assert!(metadata(&h, 0).unwrap_err().contains("magnitude"));
    }

    #[test]
    fn what_gguf_leaves_to_the_architecture_s_name_is_refused_where_it_is_otherwise() {
        let refused = |name: &str, change: fn(&mut Hyperparameters)| {
            let mut h = read_back(&hyperparameters(name));
            let metadata = metadata(&h, 0).unwrap();
            check_what_names_say(&h, &metadata).unwrap();
            change(&mut h);
            check_what_names_say(&h, &metadata).unwrap_err()
        };
        assert!(refused("gpt-oss:20b", |h| h.windows.reverse()).contains("window"));
        let limit = |h: &mut Hyperparameters| h.activation = Activation::Clamped { alpha: 1.702, limit: 6.0 };
        assert!(refused("gpt-oss:20b", limit).contains("activation"));
        assert!(refused("deepseek-r1:671b", |h| h.rope_style = RopeStyle::Halves).contains("pairs"));
    }

    #[test]
    fn what_llama_cpp_does_whatever_the_file_says_is_refused_where_it_is_otherwise() {
        let check = |h: &Hyperparameters| check_what_names_say(h, &metadata(h, 0).unwrap());
        let mut moe = read_back(&hyperparameters("qwen3:30b-a3b"));
        check(&moe).unwrap();
        moe.experts.as_mut().unwrap().routing.normalize = false;
        assert!(check(&moe).unwrap_err().contains("their sum"));
        let mut mistral = read_back(&hyperparameters("deepseek-r1:8b-llama"));
        mistral.windows.fill(Some(mistral.context));
        check(&mistral).unwrap();
        mistral.windows.fill(Some(16));
        assert!(check(&mistral).unwrap_err().contains("window"));
    }

    #[test]
    fn tensors_that_cannot_be_turned_are_refused() {
        let refused = |model: &str, name: &str, shape: &[usize]| {
            let h = Hyperparameters { rope_style: RopeStyle::Halves, ..hyperparameters(model) };
            let pattern = Tensor::from_bytes("", BlockType::F32, &[1], vec![0; 4]);
            let tensors = BTreeMap::from([(name.to_owned(), Tensor::repeated(name, shape, &pattern, 0))]);
            let metadata = Metadata::HuggingFace { config: serde_json::json!({}), folder: "folder".into() };
            match renamed(&Checkpoint { files: vec![], metadata, tensors }, &h) {
                Ok(_) => false,
                Err(error) => error.to_string().contains(&format!("{name} of shape {shape:?} has no place")),
            }
        };
        let of_queries = |kind: &str, shape: &[usize]| {
            refused("deepseek-r1:8b-llama", &format!("model.layers.0.self_attn.q_proj.{kind}"), shape)
        };
        assert!(of_queries("weight", &[4095, 8]) && of_queries("weight", &[4096, 0]));
        assert!(of_queries("bias", &[128]) && of_queries("weight", &[2, 2048, 8]));
        assert!(!of_queries("weight", &[4096, 8]) && !of_queries("bias", &[4096]));
        let of_experts = |part: &str, shape: &[usize]| {
            refused("gpt-oss:20b", &format!("model.layers.0.mlp.experts.gate_up_proj{part}"), shape)
        };
        assert!(of_experts("", &[2, 4, 3]) && of_experts("_bias", &[2, 3]));
        assert!(!of_experts("", &[2, 3, 4]) && !of_experts("_bias", &[2, 4]));
    }

    #[test]
    fn layers_before_the_first_router_are_counted() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/arch/deepseek-v3-fp8");
        let checkpoint = Checkpoint::open(folder).unwrap();
        let Metadata::HuggingFace { config, .. } = &checkpoint.metadata else { panic!("it is a folder") };
        let dense = config["first_k_dense_replace"].as_u64().unwrap();
        let (metadata, _) = export(&checkpoint, &Hyperparameters::read(&checkpoint).unwrap()).unwrap();
        assert_eq!(metadata["deepseek2.leading_dense_block_count"], Value::Unsigned(dense));
        let synthetic = Synthetic::new("deepseek-r1:671b", None).unwrap().metadata();
        assert_eq!(synthetic["deepseek2.leading_dense_block_count"], Value::Unsigned(3));
    }

    #[test]
    fn phi3_says_that_it_has_no_window() {
        let metadata = metadata(&hyperparameters("phi-4-reasoning:14b"), 0).unwrap();
        assert_eq!(metadata["phi3.attention.sliding_window"], Value::Unsigned(0));
    }
}
