//! llama.cpp, through the crate llama-cpp-2.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Instant;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;

const BATCH: usize = 512;

pub struct Llama {
    context: LlamaContext<'static>,
    filled: usize, // tokens of the cache that serve the next test at the same depth
    load_seconds: f64,
}

impl Llama {
    pub fn load(path: &Path, threads: usize, context: usize) -> Self {
        let began = Instant::now();
        let mut backend = LlamaBackend::init().expect("llama.cpp starts");
        backend.void_logs();
        // leaked: they live as long as the program
        let backend: &'static LlamaBackend = Box::leak(Box::new(backend));
        let model = LlamaModel::load_from_file(backend, path, &LlamaModelParams::default());
        let model: &'static LlamaModel = Box::leak(Box::new(model.expect("llama.cpp loads the model")));
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(context as u32))
            .with_n_batch(BATCH as u32)
            .with_n_threads(threads as i32)
            .with_n_threads_batch(threads as i32);
        let context = model.new_context(backend, params).expect("llama.cpp makes a context");
        let mut llama = Llama { context, filled: 0, load_seconds: 0.0 };
        llama.feed(0, 1);
        llama.load_seconds = began.elapsed().as_secs_f64();
        llama
    }

    /// Feeds so many tokens from a position on; the logits of the last are computed.
    fn feed(&mut self, from: usize, tokens: usize) {
        let mut at = from;
        while at < from + tokens {
            let end = (at + BATCH).min(from + tokens);
            let mut batch = LlamaBatch::new(BATCH, 1);
            for position in at..end {
                let token = LlamaToken((position * 7919 % 30_000) as i32);
                batch.add(token, position as i32, &[0], position + 1 == end).expect("the batch has room");
            }
            self.context.decode(&mut batch).expect("llama.cpp decodes");
            at = end;
        }
    }

    fn cut(&mut self, len: usize) {
        self.context.clear_kv_cache_seq(Some(0), Some(len as u32), None).expect("the cache is cut back");
        self.filled = len;
    }
}

impl super::Peer for Llama {
    fn load_seconds(&self) -> f64 {
        self.load_seconds
    }

    fn run(&mut self, depth: usize, prompt: usize, generate: usize) -> f64 {
        self.cut(self.filled.min(depth));
        self.feed(self.filled, depth - self.filled);
        let began = Instant::now();
        self.feed(depth, prompt);
        (0..generate).for_each(|i| self.feed(depth + i, 1));
        let seconds = began.elapsed().as_secs_f64();
        self.cut(depth);
        (prompt + generate) as f64 / seconds
    }
}
