//! Time from a file to the first logits.
//!
//! `cargo bench --bench load -- MODEL.gguf [THREADS]` loads the model with a context of 1024 tokens, once (for another
//! figure run it again: memory that a process has given back is no longer fresh), and prints seconds: `load` until the
//! model is there, `first` for its first step of one token, `step` for such a step in the end, `later` for what all
//! steps between took longer than that (matrices are interleaved in them), and `load + first - step`: what it takes
//! beyond decoding to have the first logits.

use std::time::Instant;

use pensive::Model;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let Some(name) = words.first() else { return eprintln!("usage: load MODEL.gguf [THREADS]") };
    let began = Instant::now();
    let mut builder = Model::builder(name).context(1024);
    if let Some(threads) = words.get(1).and_then(|w| w.parse().ok()) {
        builder = builder.threads(threads);
    }
    let model = builder.load().expect("the model loads");
    let load = began.elapsed().as_secs_f64();
    let step = || {
        let began = Instant::now();
        model.evaluate(&[1], |_, _| ()).expect("one token");
        began.elapsed().as_secs_f64()
    };
    let first = step();
    let later: Vec<f64> = (0..64).map(|_| step()).collect();
    let mut last = later[48..].to_vec();
    last.sort_by(f64::total_cmp);
    let step = last[last.len() / 2];
    let extra: f64 = later.iter().map(|seconds| seconds - step).sum();
    println!(
        "load {load:.3}, first {first:.3}, step {step:.3}, later {extra:.3}, load + first - step {:.3}",
        load + first - step
    );
}
