//! Opens real files: the models of shared/models/fetch and the tiny repositories of shared/fixtures/arch.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pensive::checkpoint::{Checkpoint, GgufMetadata, Metadata};
use pensive::quant::BlockType;

/// A real model, or `None` with a printed reason.
fn model(file: &str) -> Option<PathBuf> {
    let path = std::env::home_dir()?.join(".cache/pensive-test-models").join(file);
    if !path.exists() {
        eprintln!("skipped: {} is absent", path.display());
        return None;
    }
    Some(path)
}

fn gguf(checkpoint: &Checkpoint) -> &GgufMetadata {
    match &checkpoint.metadata {
        Metadata::Gguf(values) => values,
        Metadata::HuggingFace { .. } => panic!("a GGUF file has GGUF metadata"),
    }
}

#[test]
fn each_real_model_opens_with_its_tensors_and_hyperparameters() {
    use BlockType::*;
    let expected: [(&str, &str, u64, usize, &[BlockType]); 4] = [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "llama", 30, 272, &[F32, Q4_1, Q8_0]),
        ("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "qwen2", 24, 291, &[F32, Q5_0, Q8_0, Q4_K, Q6_K]),
        ("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", "qwen2", 28, 339, &[F32, Q4_K, Q6_K]),
        ("deepseek-r1-distill-qwen-7b.metadata.gguf", "qwen2", 28, 0, &[]),
    ];
    for (file, architecture, layers, tensors, kinds) in expected {
        let Some(path) = model(file) else { continue };
        let started = Instant::now();
        let checkpoint = Checkpoint::open(&path).unwrap();
        eprintln!("{file}: {} tensors in {:?}", checkpoint.tensors.len(), started.elapsed());
        let metadata = gguf(&checkpoint);
        assert_eq!(metadata.require::<&str>("general.architecture").unwrap(), architecture);
        assert_eq!(metadata.require::<u64>(&format!("{architecture}.block_count")).unwrap(), layers);
        assert_eq!(checkpoint.tensors.len(), tensors);
        let mut found: Vec<BlockType> = checkpoint.tensors.values().map(|t| t.kind).collect();
        found.sort();
        found.dedup();
        assert_eq!(found, kinds, "{file}");
        assert!(checkpoint.total_bytes() < path.metadata().unwrap().len());
        assert_eq!(checkpoint.files, [path]);
    }
}

#[test]
fn a_matrix_has_its_rows_first_and_all_values_are_finite() {
    let Some(path) = model("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf") else { return };
    let checkpoint = Checkpoint::open(path).unwrap();
    let embedding = checkpoint.tensor("token_embd.weight").unwrap();
    assert_eq!(embedding.shape, [151_936, 896]);
    assert_eq!((embedding.rows(), embedding.columns()), (151_936, 896));
    let gate = checkpoint.tensor("blk.0.ffn_gate.weight").unwrap();
    assert_eq!(gate.shape, [4864, 896]);
    assert!(gate.values().iter().all(|x| x.is_finite() && x.abs() < 10.0));
}

#[test]
fn dropped_pages_come_back_with_the_same_bytes() {
    let Some(path) = model("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let checkpoint = Checkpoint::open(path).unwrap();
    let tensor = checkpoint.tensor("blk.3.ffn_down.weight").unwrap();
    let before = tensor.bytes().to_vec();
    tensor.drop_pages();
    tensor.populate();
    assert_eq!(tensor.bytes(), before);
}

#[test]
fn a_vocabulary_of_150_000_tokens_opens_within_a_moment() {
    let Some(path) = model("deepseek-r1-distill-qwen-7b.metadata.gguf") else { return };
    let fastest = (0..5).map(|_| {
        let started = Instant::now();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let elapsed = started.elapsed();
        assert_eq!(gguf(&checkpoint).require::<&[String]>("tokenizer.ggml.tokens").unwrap().len(), 152_064);
        elapsed
    });
    let fastest = fastest.min().unwrap();
    eprintln!("fastest: {fastest:?}");
    assert!(fastest < Duration::from_millis(500), "{fastest:?}");
}

#[test]
fn each_tiny_repository_opens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures/arch");
    if !folder.exists() {
        eprintln!("skipped: {} is absent", folder.display());
        return;
    }
    let mut opened = 0;
    for entry in folder.read_dir().unwrap() {
        let checkpoint = Checkpoint::open(entry.unwrap().path()).unwrap();
        assert!(checkpoint.tensors.contains_key("model.embed_tokens.weight"));
        assert!(checkpoint.tensors.values().all(|t| t.values().len() == t.rows() * t.columns()));
        opened += 1;
    }
    assert!(opened >= 6, "{opened} repositories");
}
