//! candle-transformers: its quantized Qwen2 and Llama.

use std::path::Path;
use std::time::Instant;

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen2};

enum Weights {
    Qwen2(quantized_qwen2::ModelWeights),
    Llama(quantized_llama::ModelWeights),
}

pub struct Candle {
    weights: Weights,
    load_seconds: f64,
}

impl Candle {
    /// candle takes its threads from RAYON_NUM_THREADS.
    pub fn load(path: &Path, threads: usize) -> Self {
        // SAFETY: no other thread of this program reads the environment now
        unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
        let began = Instant::now();
        let mut file = std::fs::File::open(path).expect("the model opens");
        let content = gguf_file::Content::read(&mut file).expect("candle reads the model");
        let architecture = content.metadata["general.architecture"].to_string().expect("a string").clone();
        let weights = match architecture.as_str() {
            "qwen2" => Weights::Qwen2(
                quantized_qwen2::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)
                    .expect("candle loads"),
            ),
            _ => Weights::Llama(
                quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)
                    .expect("candle loads"),
            ),
        };
        let mut candle = Candle { weights, load_seconds: 0.0 };
        candle.feed(0, 1);
        candle.load_seconds = began.elapsed().as_secs_f64();
        candle
    }

    fn feed(&mut self, from: usize, tokens: usize) {
        let ids: Vec<u32> = (from..from + tokens).map(|p| (p * 7919 % 30_000) as u32).collect();
        let input = Tensor::new(ids, &Device::Cpu).and_then(|t| t.unsqueeze(0)).expect("a tensor");
        match &mut self.weights {
            Weights::Qwen2(weights) => weights.forward(&input, from),
            Weights::Llama(weights) => weights.forward(&input, from),
        }
        .expect("candle decodes");
    }
}

impl super::Peer for Candle {
    fn load_seconds(&self) -> f64 {
        self.load_seconds
    }

    fn run(&mut self, depth: usize, prompt: usize, generate: usize) -> f64 {
        // the example's cache cannot be cut back: a run starts anew (position 0 empties it)
        let mut at = 0;
        while at < depth {
            let tokens = (depth - at).min(512);
            self.feed(at, tokens);
            at += tokens;
        }
        let began = Instant::now();
        if prompt > 0 {
            self.feed(depth, prompt);
        }
        (0..generate).for_each(|i| self.feed(depth + i, 1));
        (prompt + generate) as f64 / began.elapsed().as_secs_f64()
    }
}
