//! Tiny random models of two layers, in any block format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pensive::backend::cpu::{CpuBackend, CpuOptions};
use pensive::backend::{Backend, KvType, Plan};
use pensive::checkpoint::write::{TensorSpec, write_gguf};
use pensive::checkpoint::{Checkpoint, Value};
use pensive::engine::{Engine, Feed, Sequence, Wants};
use pensive::model::{Decoder, Hyperparameters};
use pensive::quant::{self, BlockType};

/// Tokens of the vocabulary.
pub const VOCABULARY: usize = 75;

/// What a model is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Grouped-query attention, dense.
    Llama,
    /// Latent attention, in its unsplit form; the second layer has 8 experts in 4 groups and a shared one.
    Deepseek2,
}

/// Sizes that a format's blocks allow.
struct Shape {
    width: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    feed_forward: usize,
    /// Of latent attention: width of queries and of the latent, dimensions not rotated and rotated, of a value.
    latent: [usize; 5],
    expert: usize,
}

impl Shape {
    fn of(kind: BlockType, architecture: Architecture) -> Self {
        let latent = architecture == Architecture::Deepseek2;
        let (width, heads, head_dim) = match kind.block_len() {
            1 => (100, if latent { 3 } else { 6 }, 10),
            32 => (96, if latent { 4 } else { 8 }, 24),
            _ => (256, if latent { 8 } else { 32 }, 24),
        };
        let (kv_heads, feed_forward, latent, expert) = match kind.block_len() {
            1 => (2, 77, [30, 32, 10, 6, 9], 33),
            32 => (1, 160, [64, 32, 24, 8, 24], 64),
            _ => (1, 512, [256, 256, 32, 16, 32], 256),
        };
        Shape { width, heads, kv_heads, head_dim, feed_forward, latent, expert }
    }
}

/// Numbers between -1 and 1, the same for a seed.
fn noise(seed: u64, len: usize) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
    .take(len)
}

/// A model's tensors in the making.
struct Tensors {
    kind: BlockType,
    seed: u64,
    tensors: Vec<(TensorSpec, Vec<u8>)>,
}

impl Tensors {
    fn add(&mut self, name: String, kind: BlockType, shape: &[usize]) {
        let len = shape.iter().product();
        let norm = shape.len() == 1;
        let size = 1.7 / (shape[shape.len() - 1] as f32).sqrt();
        let values: Vec<f32> = noise(self.seed + self.tensors.len() as u64, len)
            .map(|v| if norm { 1.0 + v / 4.0 } else { v * size })
            .collect();
        let mut bytes = vec![0; kind.row_bytes(len)];
        quant::quantize(kind, &values, &mut bytes);
        self.tensors.push((TensorSpec { name, kind, shape: shape.to_vec() }, bytes));
    }

    /// Parts of a layer: vectors and the router stay F32.
    fn layer(&mut self, layer: usize, parts: &[(&str, &[usize])]) {
        for &(name, shape) in parts {
            let kind = if shape.len() == 1 || name == "ffn_gate_inp" { BlockType::F32 } else { self.kind };
            let suffix = if name.ends_with(".bias") { "" } else { ".weight" };
            self.add(format!("blk.{layer}.{name}{suffix}"), kind, shape);
        }
    }
}

/// Metadata beside that of the shapes.
type Extra = BTreeMap<String, Value>;

/// Writes a model of two layers whose matrices are all of this type.
fn write_model(path: &Path, architecture: Architecture, kind: BlockType, seed: u64, extra: Extra) {
    let s = Shape::of(kind, architecture);
    let [query_rank, rank, plain, rope, value] = s.latent;
    let mut numbers = vec![
        ("block_count", 2),
        ("embedding_length", s.width),
        ("attention.head_count", s.heads),
        ("feed_forward_length", s.feed_forward),
        ("context_length", 64),
    ];
    numbers.extend(match architecture {
        Architecture::Llama => vec![
            ("attention.head_count_kv", s.kv_heads),
            ("attention.key_length", s.head_dim),
            ("rope.dimension_count", s.head_dim),
        ],
        Architecture::Deepseek2 => vec![
            ("attention.q_lora_rank", query_rank),
            ("attention.kv_lora_rank", rank),
            ("attention.key_length", plain + rope),
            ("attention.value_length", value),
            ("rope.dimension_count", rope),
            ("expert_count", 8),
            ("expert_used_count", 3),
            ("expert_group_count", 4),
            ("expert_group_used_count", 2),
            ("expert_gating_func", 2),
            ("expert_shared_count", 1),
            ("expert_feed_forward_length", s.expert),
        ],
    });
    let name = format!("{architecture:?}").to_lowercase();
    let mut metadata: BTreeMap<String, Value> = numbers
        .into_iter()
        .map(|(key, value)| (format!("{name}.{key}"), Value::Unsigned(value as u64)))
        .collect();
    metadata.insert("general.architecture".into(), Value::String(name.clone()));
    metadata.insert(format!("{name}.attention.layer_norm_rms_epsilon"), Value::Float(1e-5));
    metadata.extend(extra);

    let mut tensors = Tensors { kind, seed, tensors: Vec::new() };
    tensors.add("token_embd.weight".into(), kind, &[VOCABULARY, s.width]);
    for layer in 0..2 {
        tensors.layer(layer, &[("attn_norm", &[s.width])]);
        match architecture {
            Architecture::Llama => {
                let (queries, keys) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
                tensors.layer(
                    layer,
                    &[
                        ("attn_q", &[queries, s.width]),
                        ("attn_k", &[keys, s.width]),
                        ("attn_k.bias", &[keys]),
                        ("attn_v", &[keys, s.width]),
                        ("attn_output", &[s.width, queries]),
                    ],
                );
            }
            Architecture::Deepseek2 => tensors.layer(
                layer,
                &[
                    ("attn_q_a", &[query_rank, s.width]),
                    ("attn_q_a_norm", &[query_rank]),
                    ("attn_q_b", &[s.heads * (plain + rope), query_rank]),
                    ("attn_kv_a_mqa", &[rank + rope, s.width]),
                    ("attn_kv_a_norm", &[rank]),
                    ("attn_kv_b", &[s.heads * (plain + value), rank]),
                    ("attn_output", &[s.width, s.heads * value]),
                ],
            ),
        }
        tensors.layer(layer, &[("ffn_norm", &[s.width])]);
        if architecture == Architecture::Deepseek2 && layer == 1 {
            tensors.layer(
                layer,
                &[
                    ("ffn_gate_inp", &[8, s.width]),
                    ("exp_probs_b.bias", &[8]),
                    ("ffn_gate_exps", &[8, s.expert, s.width]),
                    ("ffn_up_exps", &[8, s.expert, s.width]),
                    ("ffn_down_exps", &[8, s.width, s.expert]),
                    ("ffn_gate_shexp", &[s.expert, s.width]),
                    ("ffn_up_shexp", &[s.expert, s.width]),
                    ("ffn_down_shexp", &[s.width, s.expert]),
                ],
            );
        } else {
            tensors.layer(
                layer,
                &[
                    ("ffn_gate", &[s.feed_forward, s.width]),
                    ("ffn_up", &[s.feed_forward, s.width]),
                    ("ffn_down", &[s.width, s.feed_forward]),
                ],
            );
        }
    }
    tensors.add("output_norm.weight".into(), BlockType::F32, &[s.width]);
    tensors.add("output.weight".into(), kind, &[VOCABULARY, s.width]);
    write_gguf(path, &metadata, &tensors.tensors).unwrap();
}

/// A model's file in a folder that goes away with it.
pub struct Written {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Written {
    pub fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

/// A dense model, the same for a seed.
#[allow(dead_code)]
pub fn model(kind: BlockType, seed: u64) -> Written {
    model_of(Architecture::Llama, kind, seed)
}

/// A model, the same for a seed.
pub fn model_of(architecture: Architecture, kind: BlockType, seed: u64) -> Written {
    write(architecture, kind, seed, Extra::new())
}

fn write(architecture: Architecture, kind: BlockType, seed: u64, extra: Extra) -> Written {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write_model(&path, architecture, kind, seed, extra);
    Written { path, _folder: folder }
}

/// A model that can be talked to: control tokens (the last one ends a text) and the letters and marks that thoughts are
/// closed with. It knows nothing; what it says is up to the caller's logits hook.
pub fn chat_model(control: &[&str], template: &str) -> Written {
    chat_model_beyond(control, template, &[])
}

/// [`chat_model`] with control tokens that the embedding has no rows for.
pub fn chat_model_beyond(control: &[&str], template: &str, beyond: &[&str]) -> Written {
    // spaces and line ends as byte-level vocabularies write them
    let letters = "abcdefghijklmnopqrstuvwxyzIMW,;.?0123456789ĠĊ".chars().map(String::from);
    let mut tokens: Vec<String> = control.iter().map(|token| token.to_string()).collect();
    let mut kinds = vec![3; tokens.len()];
    tokens.extend(letters);
    kinds.resize(tokens.len(), 1);
    for unused in tokens.len()..VOCABULARY {
        tokens.push(format!("<unused{unused}>"));
        kinds.push(5);
    }
    assert_eq!(tokens.len(), VOCABULARY, "the vocabulary is full");
    tokens.extend(beyond.iter().map(|token| token.to_string()));
    kinds.resize(tokens.len(), 3);
    let text = |text: &str| Value::String(text.to_owned());
    let extra = [
        ("llama.context_length", Value::Unsigned(1024)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("gpt-4o")),
        ("tokenizer.ggml.tokens", Value::Strings(tokens)),
        ("tokenizer.ggml.token_type", Value::Integers(kinds)),
        ("tokenizer.ggml.merges", Value::Strings(vec![])),
        ("tokenizer.ggml.eos_token_id", Value::Unsigned(control.len() as u64 - 1)),
        ("tokenizer.chat_template", text(template)),
    ];
    write(
        Architecture::Llama,
        BlockType::F32,
        1,
        extra.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
    )
}

/// The model on a CPU backend, with room for 4 KV pages.
pub fn engine(model: &Written, options: CpuOptions, kv_type: KvType) -> Engine {
    engine_on(model, Box::new(CpuBackend::new(options).unwrap()), kv_type)
}

/// The model on a backend, with room for 4 KV pages.
pub fn engine_on(model: &Written, backend: Box<dyn Backend>, kv_type: KvType) -> Engine {
    engine_of_pages(model, backend, kv_type, 4)
}

/// The model on a backend, with room for so many KV pages.
pub fn engine_of_pages(
    model: &Written,
    mut backend: Box<dyn Backend>,
    kv_type: KvType,
    pages: usize,
) -> Engine {
    let checkpoint = Checkpoint::open(&model.path).unwrap();
    let hyperparameters = Hyperparameters::read(&checkpoint).unwrap();
    let decoder = Decoder::load(&checkpoint, &hyperparameters, &mut *backend, &mut |_, _| {}).unwrap();
    let plan = Plan { rows: 80, logit_rows: 80, sequences: 2, pages, kv_type };
    Engine::new(backend, decoder, plan).unwrap()
}

/// Feeds tokens in chunks; the bits of all their logits.
pub fn feed(engine: &mut Engine, sequence: &mut Sequence, tokens: &[u32], chunk: usize) -> Vec<u32> {
    let mut bits = Vec::new();
    for tokens in tokens.chunks(chunk) {
        let logits = engine.step(&mut [Feed { sequence, tokens, wants: Wants::All }]).unwrap();
        bits.extend(logits.iter().map(|l| l.to_bits()));
    }
    bits
}

/// Mean KL divergence of rows of logits.
pub fn divergence(got: &[f32], expected: &[f32]) -> f64 {
    let softmax = |row: &[f32]| {
        let weights: Vec<f64> = row.iter().map(|&l| f64::from(l).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|w| w / sum).collect::<Vec<_>>()
    };
    let rows = expected.chunks(VOCABULARY).zip(got.chunks(VOCABULARY));
    let kl = rows.map(|(p, q)| softmax(p).iter().zip(softmax(q)).map(|(p, q)| p * (p / q).ln()).sum::<f64>());
    kl.sum::<f64>() / (expected.len() / VOCABULARY) as f64
}
