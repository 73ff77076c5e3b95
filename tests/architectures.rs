//! Every architecture against Hugging Face transformers: tiny checkpoints with random weights, all in float32.

mod common;

use std::path::{Path, PathBuf};

use common::{Reference, fixture};
use pensive::backend::cpu::{CpuBackend, CpuOptions};
use pensive::backend::{KvType, Plan};
use pensive::checkpoint::Checkpoint;
use pensive::engine::{Engine, Feed, Sequence, Wants};
use pensive::model::{Decoder, Hyperparameters};

const ROWS: usize = 64;

/// The model with room for so many tokens, or as many as it is best used with.
fn engine(checkpoint: &Checkpoint, context: Option<usize>) -> Engine {
    let mut hyperparameters = Hyperparameters::read(checkpoint).unwrap();
    hyperparameters.context_limit = context.unwrap_or(hyperparameters.context_limit);
    let mut backend = CpuBackend::new(CpuOptions::default()).unwrap();
    let decoder = Decoder::load(checkpoint, &hyperparameters, &mut backend, &mut |_, _| {}).unwrap();
    let plan = Plan { rows: ROWS, logit_rows: ROWS, sequences: 1, pages: 2, kv_type: KvType::F32 };
    Engine::new(Box::new(backend), decoder, plan).unwrap()
}

/// Logits of all positions, fed in chunks of this many tokens.
fn logits(engine: &mut Engine, ids: &[u32], chunk: usize) -> Vec<f32> {
    let mut sequence = Sequence::new();
    let mut all = Vec::new();
    for tokens in ids.chunks(chunk) {
        let feed = Feed { sequence: &mut sequence, tokens, wants: Wants::All };
        all.extend_from_slice(engine.step(&mut [feed]).unwrap());
    }
    all
}

fn agrees_with_transformers(name: &str) {
    if let Some(folder) = fixture(&format!("arch/{name}")) {
        agrees(&folder, "reference", None);
    }
}

/// Compares the logits of a folder's model with those of a file in it.
fn agrees(folder: &Path, reference: &str, context: Option<usize>) {
    let name = folder.file_name().unwrap().display();
    let reference = Reference::open(&folder.join(reference).with_extension("safetensors"));
    let (ids, expected) = (reference.ids("input_ids"), reference.floats("logits"));
    let mut engine = engine(&Checkpoint::open(folder).unwrap(), context);
    let got = logits(&mut engine, &ids, ids.len());
    assert_eq!(got.len(), expected.len());
    let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("{name}: logits differ by at most {worst:.1e}");
    assert!(worst < 1e-3, "{name}: logits differ by {worst}");
    for chunk in [1, 7] {
        assert!(
            logits(&mut engine, &ids, chunk).iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits()),
            "{name}: chunks of {chunk} change the logits"
        );
    }
}

/// A checkpoint that `tests/fixtures/make_arch.py` made.
fn own(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/arch").join(name)
}

#[test]
fn phi3_with_longrope_agrees_with_transformers_within_the_first_context_and_beyond() {
    agrees(&own("phi3-longrope"), "reference", None);
    agrees(&own("phi3-longrope"), "reference-long", Some(40));
}

#[test]
fn deepseek_v3_in_8_bit_floats_agrees_with_transformers() {
    agrees(&own("deepseek-v3-fp8"), "reference", None);
}

/// Activations are quantized for its experts, so the logits are not as near.
#[test]
fn gpt_oss_in_mxfp4_agrees_with_transformers() {
    let folder = own("gpt-oss-mxfp4");
    let reference = Reference::open(&folder.join("reference.safetensors"));
    let (ids, expected) = (reference.ids("input_ids"), reference.floats("logits"));
    let got = logits(&mut engine(&Checkpoint::open(&folder).unwrap(), None), &ids, 7);
    let kl = kl(&expected, &got, expected.len() / ids.len());
    println!("gpt-oss-mxfp4: KL {kl:.1e}");
    assert!(kl < 1e-3, "KL {kl}");
}

/// Mean KL divergence of rows of logits.
fn kl(reference: &[f32], logits: &[f32], vocabulary: usize) -> f64 {
    let log_softmax = |row: &[f32]| {
        let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
        row.iter().map(|&l| f64::from(l) - sum.ln()).collect::<Vec<_>>()
    };
    let rows = reference.chunks(vocabulary).zip(logits.chunks(vocabulary));
    let kl = rows.map(|(p, q)| {
        let (p, q) = (log_softmax(p), log_softmax(q));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
    });
    kl.sum::<f64>() / (reference.len() / vocabulary) as f64
}

/// Folders like those of the fixtures, with other shapes.
#[test]
fn checkpoints_of_another_folder_agree_with_transformers() {
    let Some(folder) = std::env::var_os("PENSIVE_ARCH_FIXTURES") else {
        println!("skipped: PENSIVE_ARCH_FIXTURES names no folder");
        return;
    };
    let mut folders: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("PENSIVE_ARCH_FIXTURES: {e}"))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("reference.safetensors").is_file())
        .collect();
    folders.sort();
    assert!(!folders.is_empty(), "PENSIVE_ARCH_FIXTURES: no folder with a reference.safetensors");
    folders.iter().for_each(|folder| agrees(folder, "reference", None));
}

#[test]
fn qwen2_agrees_with_transformers() {
    agrees_with_transformers("qwen2");
}

#[test]
fn qwen2_with_tied_embeddings_agrees_with_transformers() {
    agrees_with_transformers("qwen2-tied");
}

#[test]
fn llama_with_llama3_rope_agrees_with_transformers() {
    agrees_with_transformers("llama3-rope");
}

#[test]
fn llama_with_tied_embeddings_agrees_with_transformers() {
    agrees_with_transformers("llama-tied");
}

#[test]
fn qwen3_agrees_with_transformers() {
    agrees_with_transformers("qwen3");
}

#[test]
fn qwen3_with_yarn_agrees_with_transformers() {
    agrees_with_transformers("qwen3-yarn");
}

#[test]
fn qwen3_with_experts_agrees_with_transformers() {
    agrees_with_transformers("qwen3-moe");
}

#[test]
fn deepseek_v3_agrees_with_transformers() {
    agrees_with_transformers("deepseek-v3");
}

#[test]
fn deepseek_v3_with_yarn_agrees_with_transformers() {
    agrees_with_transformers("deepseek-v3-yarn");
}

#[test]
fn deepseek_v3_with_plain_queries_agrees_with_transformers() {
    agrees_with_transformers("deepseek-v3-noqlora");
}

#[test]
fn phi3_agrees_with_transformers() {
    agrees_with_transformers("phi3");
}

#[test]
fn glm4_agrees_with_transformers() {
    agrees_with_transformers("glm4");
}

#[test]
fn gpt_oss_agrees_with_transformers() {
    agrees_with_transformers("gpt-oss");
}

#[test]
fn mistral_agrees_with_transformers() {
    agrees_with_transformers("mistral");
}

#[test]
fn the_work_of_a_step_counts_every_matrix_once() {
    for (name, table) in [("qwen2", "model.embed_tokens.weight"), ("qwen2-tied", "")] {
        let Some(folder) = fixture(&format!("arch/{name}")) else { return };
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let matrices = checkpoint.tensors.values().filter(|t| t.shape.len() == 2 && t.name != table);
        let (values, bytes) = matrices.fold((0, 0), |(values, bytes), t| {
            (values + (t.rows() * t.columns()) as u64, bytes + t.bytes().len() as u64)
        });
        let work = engine(&checkpoint, None).decoder().work();
        assert_eq!((work.row + work.logits_row, work.bytes, work.int8), (values, bytes, false), "{name}");
    }
}
