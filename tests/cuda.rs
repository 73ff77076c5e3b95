//! The backend of the CUDA kernels, whose text is compiled as C++ here: everything but NVIDIA's compiler and driver.

mod common;

use std::sync::atomic::Ordering;

use common::emulated::Emulated;
use common::tiny::{self, Architecture};
use pensive::backend::cpu::{CpuBackend, CpuOptions};
use pensive::backend::cuda::CudaBackend;
use pensive::backend::{Backend, KvType};
use pensive::engine::{Engine, Feed, Sequence, Wants};
use pensive::quant::BlockType;

fn emulated() -> Option<Box<dyn Backend>> {
    Some(Box::new(CudaBackend::new(Box::new(Emulated::new()?))))
}

fn cpu() -> Box<dyn Backend> {
    Box::new(CpuBackend::new(CpuOptions::default()).unwrap())
}

/// Logits after all of some tokens.
fn logits(engine: &mut Engine, sequence: &mut Sequence, tokens: &[u32]) -> Vec<f32> {
    engine.step(&mut [Feed { sequence, tokens, wants: Wants::All }]).unwrap().to_vec()
}

fn tokens(len: usize) -> Vec<u32> {
    (0..len).map(|i| (i * 31 % tiny::VOCABULARY) as u32).collect()
}

/// Mean KL divergence of rows of logits.
fn divergence(got: &[f32], expected: &[f32]) -> f64 {
    let softmax = |row: &[f32]| {
        let weights: Vec<f64> = row.iter().map(|&l| f64::from(l).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|w| w / sum).collect::<Vec<_>>()
    };
    let rows = expected.chunks(tiny::VOCABULARY).zip(got.chunks(tiny::VOCABULARY));
    let kl = rows.map(|(p, q)| softmax(p).iter().zip(softmax(q)).map(|(p, q)| p * (p / q).ln()).sum::<f64>());
    kl.sum::<f64>() / (expected.len() / tiny::VOCABULARY) as f64
}

/// One row, few and many are multiplied by three kernels.
fn is_near_the_cpus_logits(architecture: Architecture, kind: BlockType, kv_type: KvType) {
    let Some(backend) = emulated() else { return };
    let model = tiny::model_of(architecture, kind, 1);
    let [mut device, mut cpu] = [backend, cpu()].map(|backend| tiny::engine_on(&model, backend, kv_type));
    for (len, chunk) in [(70, 70), (12, 11), (3, 1)] {
        let (mut here, mut there) = (Sequence::new(), Sequence::new());
        let mut kl = 0.0;
        for tokens in tokens(len).chunks(chunk) {
            let got = logits(&mut device, &mut here, tokens);
            let expected = logits(&mut cpu, &mut there, tokens);
            kl += divergence(&got, &expected) * tokens.len() as f64 / len as f64;
        }
        println!("{kind} {architecture:?} {kv_type}, chunks of {chunk}: KL {kl:.1e}");
        let limit = if kind.block_len() == 1 { 1e-4 } else { 0.02 };
        assert!(kl < limit, "{kind} {architecture:?} {kv_type}, chunks of {chunk}: KL {kl}");
    }
}

#[test]
fn dense_models_of_every_kind_of_blocks_are_near_the_cpus_logits() {
    // of the types that become Q8_0 one
    use BlockType::*;
    for kind in [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS] {
        is_near_the_cpus_logits(Architecture::Llama, kind, KvType::F16);
    }
}

#[test]
fn latent_attention_and_experts_are_near_the_cpus_logits() {
    for kind in [BlockType::F32, BlockType::BF16, BlockType::Q8_0, BlockType::Q4_K] {
        is_near_the_cpus_logits(Architecture::Deepseek2, kind, KvType::F16);
    }
    is_near_the_cpus_logits(Architecture::Deepseek2, BlockType::F16, KvType::F32);
}

#[test]
fn steps_that_are_run_as_graphs_give_the_same_bits() {
    for (architecture, kind) in
        [(Architecture::Llama, BlockType::Q4_K), (Architecture::Deepseek2, BlockType::Q8_0)]
    {
        let Some(driver) = Emulated::new() else { return };
        let runs = driver.runs.clone();
        let model = tiny::model_of(architecture, kind, 1);
        let mut engine = tiny::engine_on(&model, Box::new(CudaBackend::new(Box::new(driver))), KvType::F16);
        let mut run = |chunk: usize| {
            let mut sequence = Sequence::new();
            let tokens = tokens(24);
            tokens.chunks(chunk).flat_map(|t| logits(&mut engine, &mut sequence, t)).collect::<Vec<_>>()
        };
        let first = run(3); // the first step is queued, the second recorded, the others are run from the record
        assert_eq!(runs.load(Ordering::Relaxed), 7);
        assert!(run(3) == first);
        assert_eq!(runs.load(Ordering::Relaxed), 15);
        let single = run(1);
        assert!(run(1) == single);
        assert!(divergence(&single, &first) < 1e-3);
    }
}
