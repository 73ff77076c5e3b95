//! Another engine on the same file: candle-transformers' quantized Qwen2.

mod common;

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_qwen2::ModelWeights;
use common::{QWEN_05B, Reference, fixture, model, real_model};

/// Probabilities of all tokens.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|&l| f64::from(l - best).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / sum).collect()
}

#[test]
fn candle_gives_nearly_the_same_probabilities() {
    let Some(reference) = fixture("real/qwen-0.5b.safetensors") else { return };
    let (Some(path), Some(model)) = (real_model(QWEN_05B.1), model(QWEN_05B)) else { return };
    let ids = &Reference::open(&reference).ids("input_ids")[..100];

    let mut file = std::fs::File::open(path).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    let mut candle = ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
    let mut theirs = Vec::new();
    for (position, &id) in ids.iter().enumerate() {
        let input = Tensor::new(&[[id]], &Device::Cpu).unwrap();
        let logits = candle.forward(&input, position).unwrap().flatten_all().unwrap();
        theirs.push(softmax(&logits.to_vec1::<f32>().unwrap()));
    }

    let mut distance: f64 = 0.0;
    let mut positions = 0;
    model
        .evaluate(ids, |position, logits| {
            let ours = softmax(logits);
            // total variation: half the sum of differences
            let differences = ours.iter().zip(&theirs[position]).map(|(a, b)| (a - b).abs());
            distance += differences.sum::<f64>() / 2.0;
            positions += 1;
        })
        .unwrap();
    let mean = distance / f64::from(positions);
    println!("mean total variation from candle over {positions} positions: {mean:.4}");
    assert_eq!(positions as usize, ids.len());
    assert!(mean < 0.03, "mean total variation {mean}");
}
