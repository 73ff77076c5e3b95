//! Tiny random models of two layers, in any block format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pensive::backend::cpu::{CpuBackend, CpuOptions};
use pensive::backend::{KvType, Plan};
use pensive::checkpoint::write::{TensorSpec, write_gguf};
use pensive::checkpoint::{Checkpoint, Value};
use pensive::engine::{Engine, Feed, Sequence, Wants};
use pensive::model::{Decoder, Hyperparameters};
use pensive::quant::{self, BlockType};

/// Tokens of the vocabulary.
pub const VOCABULARY: usize = 75;

/// Sizes that a format's blocks allow.
struct Shape {
    width: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    feed_forward: usize,
}

impl Shape {
    fn of(kind: BlockType) -> Self {
        match kind.block_len() {
            1 => Shape { width: 100, heads: 6, kv_heads: 2, head_dim: 10, feed_forward: 77 },
            32 => Shape { width: 96, heads: 8, kv_heads: 1, head_dim: 24, feed_forward: 160 },
            _ => Shape { width: 256, heads: 32, kv_heads: 1, head_dim: 24, feed_forward: 512 },
        }
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

/// Writes a model of two layers whose matrices are all of this type; `extra` is what else its metadata says.
fn write_model(path: &Path, kind: BlockType, seed: u64, extra: BTreeMap<String, Value>) {
    let s = Shape::of(kind);
    let metadata = [
        ("block_count", 2),
        ("embedding_length", s.width),
        ("attention.head_count", s.heads),
        ("attention.head_count_kv", s.kv_heads),
        ("attention.key_length", s.head_dim),
        ("rope.dimension_count", s.head_dim),
        ("feed_forward_length", s.feed_forward),
        ("context_length", 64),
    ];
    let mut metadata: BTreeMap<String, Value> = metadata
        .into_iter()
        .map(|(key, value)| (format!("llama.{key}"), Value::Unsigned(value as u64)))
        .collect();
    metadata.insert("general.architecture".into(), Value::String("llama".into()));
    metadata.insert("llama.attention.layer_norm_rms_epsilon".into(), Value::Float(1e-5));
    metadata.extend(extra);

    let mut tensors = Vec::new();
    let mut add = |name: String, kind: BlockType, shape: &[usize]| {
        let len = shape.iter().product();
        let norm = shape.len() == 1;
        let size = 1.7 / (shape[shape.len() - 1] as f32).sqrt();
        let values: Vec<f32> = noise(seed + tensors.len() as u64, len)
            .map(|v| if norm { 1.0 + v / 4.0 } else { v * size })
            .collect();
        let mut bytes = vec![0; kind.row_bytes(len)];
        quant::quantize(kind, &values, &mut bytes);
        tensors.push((TensorSpec { name, kind, shape: shape.to_vec() }, bytes));
    };
    let (queries, keys) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    add("token_embd.weight".into(), kind, &[VOCABULARY, s.width]);
    for layer in 0..2 {
        let mut part = |name: &str, kind, shape: &[usize]| {
            let suffix = if name.ends_with(".bias") { "" } else { ".weight" };
            add(format!("blk.{layer}.{name}{suffix}"), kind, shape);
        };
        part("attn_norm", BlockType::F32, &[s.width]);
        part("attn_q", kind, &[queries, s.width]);
        part("attn_k", kind, &[keys, s.width]);
        part("attn_k.bias", BlockType::F32, &[keys]);
        part("attn_v", kind, &[keys, s.width]);
        part("attn_output", kind, &[s.width, queries]);
        part("ffn_norm", BlockType::F32, &[s.width]);
        part("ffn_gate", kind, &[s.feed_forward, s.width]);
        part("ffn_up", kind, &[s.feed_forward, s.width]);
        part("ffn_down", kind, &[s.width, s.feed_forward]);
    }
    add("output_norm.weight".into(), BlockType::F32, &[s.width]);
    add("output.weight".into(), kind, &[VOCABULARY, s.width]);
    write_gguf(path, &metadata, &tensors).unwrap();
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

/// A model, the same for a seed.
pub fn model(kind: BlockType, seed: u64) -> Written {
    write(kind, seed, BTreeMap::new())
}

fn write(kind: BlockType, seed: u64, extra: BTreeMap<String, Value>) -> Written {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write_model(&path, kind, seed, extra);
    Written { path, _folder: folder }
}

/// A model that can be talked to: control tokens (the last one ends a text) and the letters and marks that thoughts are
/// closed with. It knows nothing; what it says is up to the caller's logits hook.
pub fn chat_model(control: &[&str], template: &str) -> Written {
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
    write(BlockType::F32, 1, extra.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// The model on a CPU backend, with room for 4 KV pages.
pub fn engine(model: &Written, options: CpuOptions, kv_type: KvType) -> Engine {
    let checkpoint = Checkpoint::open(&model.path).unwrap();
    let hyperparameters = Hyperparameters::read(&checkpoint).unwrap();
    let mut backend = CpuBackend::new(options).unwrap();
    let decoder = Decoder::load(&checkpoint, &hyperparameters, &mut backend, &mut |_, _| {}).unwrap();
    let plan = Plan { rows: 80, logit_rows: 80, sequences: 2, pages: 4, kv_type };
    Engine::new(Box::new(backend), decoder, plan).unwrap()
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
