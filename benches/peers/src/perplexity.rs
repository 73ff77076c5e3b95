//! Perplexity of a text by both engines, each with its own tokenizer, in windows of which the second half counts.
//!
//! usage: peers perplexity MODEL.gguf TEXT [-t THREADS]

use std::path::Path;

use llama_cpp_2::llama_backend::LlamaBackend;
use pensive::Model;

use super::quantized::{WINDOW, evaluate, load};

pub fn main(words: &[String]) {
    let (file, text, threads) = match words {
        [file, text] => (file, text, 2),
        [file, text, flag, threads] if flag == "-t" => {
            (file, text, threads.parse().expect("threads are a number"))
        }
        _ => {
            eprintln!("usage: peers perplexity MODEL.gguf TEXT [-t THREADS]");
            std::process::exit(2);
        }
    };
    let text = std::fs::read_to_string(text).expect("the text can be read");
    let model =
        Model::builder(file).context(WINDOW).threads(threads).load().expect("pensive loads the model");
    let ours =
        pensive::api::measure::perplexity(&model, &text, WINDOW, |_, _, _| {}).expect("pensive evaluates");
    drop(model);
    let theirs = by_llama(Path::new(file), &text, threads as i32);
    println!(
        "perplexity over {} positions: pensive {:.4}, llama.cpp {theirs:.4}",
        ours.positions, ours.perplexity
    );
    println!("pensive / llama.cpp: {:.5}", ours.perplexity / theirs);
}

/// As llama-perplexity: without the text's last line end; a vocabulary's first token stands first in each window.
fn by_llama(file: &Path, text: &str, threads: i32) -> f64 {
    let mut backend = LlamaBackend::init().expect("llama.cpp starts");
    backend.void_logs();
    let model = load(&backend, file);
    let vocabulary = model.vocab();
    let text = text.strip_suffix('\n').unwrap_or(text);
    let mut tokens: Vec<u32> =
        vocabulary.tokenize(text.as_bytes(), true, false).iter().map(|token| token.0 as u32).collect();
    if vocabulary.should_add_bos() {
        tokens.chunks_exact_mut(WINDOW).for_each(|window| window[0] = vocabulary.bos().0 as u32);
    }
    let (mut surprise, mut rows) = (0.0, 0);
    evaluate(&backend, &model, tokens.chunks_exact(WINDOW), threads, |row, next| {
        surprise -= f64::from(row[next as usize]);
        rows += 1;
    });
    (surprise / f64::from(rows)).exp()
}
