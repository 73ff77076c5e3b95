//! What the behaviour tests share: where real models and reference fixtures are, and models loaded once.
#![allow(dead_code)]

#[cfg(feature = "cli")]
pub mod command;
#[cfg(all(feature = "candle", unix))]
pub mod emulated;
pub mod repository;
#[cfg(feature = "hub")]
pub mod server;
pub mod tiny;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use pensive::Model;

/// A reference fixture, or none (with a printed reason) where the folder is absent.
pub fn fixture(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures").join(path);
    present(path)
}

/// A real model's file, or none (with a printed reason) where it is absent.
pub fn real_model(file: &str) -> Option<PathBuf> {
    let home = std::env::home_dir()?;
    present(home.join(".cache/pensive-test-models").join(file))
}

/// Checks that bits are those that another processor left under this name in the folder that PENSIVE_TEST_BITS names; leaves
/// them there where none did. Without that folder nothing is computed.
pub fn same_on_other_processors(name: &str, bits: impl FnOnce() -> Vec<u32>) {
    let Some(folder) = std::env::var_os("PENSIVE_TEST_BITS") else {
        return eprintln!("skipped: PENSIVE_TEST_BITS names no folder for the bits of {name}");
    };
    let path = Path::new(&folder).join(name);
    let bytes: Vec<u8> = bits().iter().flat_map(|bits| bits.to_le_bytes()).collect();
    match std::fs::read(&path) {
        Ok(theirs) => assert!(bytes == theirs, "{}: another processor gave other bits", path.display()),
        Err(_) => std::fs::write(&path, bytes).expect("the folder for bits can be written to"),
    }
}

fn present(path: PathBuf) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is absent", path.display());
    None
}

/// The real models that have weights: (name of the reference, file).
pub const SMOLLM2: (&str, &str) = ("smollm2-135m", "SmolLM2-135M-Instruct.Q4_1.gguf");
pub const QWEN_05B: (&str, &str) = ("qwen-0.5b", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf");
pub const QWEN_15B: (&str, &str) = ("qwen-1.5b", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf");

/// A real model with a context of 4,608 tokens, loaded once for all tests of a file.
pub fn model((name, file): (&str, &str)) -> Option<&'static Model> {
    static MODELS: [OnceLock<Option<Model>>; 3] = [const { OnceLock::new() }; 3];
    let index = [SMOLLM2, QWEN_05B, QWEN_15B].iter().position(|(n, _)| *n == name)?;
    MODELS[index]
        .get_or_init(|| {
            let path = real_model(file)?;
            let model = Model::builder(path.to_str()?).context(4608).load();
            Some(model.expect("a real model loads"))
        })
        .as_ref()
}

/// The tensors of a safetensors file.
pub struct Reference(Vec<u8>);

impl Reference {
    pub fn open(path: &Path) -> Self {
        Reference(std::fs::read(path).expect("the fixture can be read"))
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        let file = safetensors::SafeTensors::deserialize(&self.0).expect("the fixture is safetensors");
        file.tensor(name).expect("the fixture has the tensor").data().to_vec()
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        let bytes = self.bytes(name);
        bytes.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        let bytes = self.bytes(name);
        bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// KL divergence of a row of logits.
pub fn kl(reference: &[f32], logits: &[f32]) -> f64 {
    let log_softmax = |row: &[f32]| {
        let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
        row.iter().map(|&l| f64::from(l) - sum.ln()).collect::<Vec<_>>()
    };
    let (p, q) = (log_softmax(reference), log_softmax(logits));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
}
