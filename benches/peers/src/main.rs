//! pensive, llama.cpp and candle-transformers on the same file, in turn: medians and ratios.
//!
//! `peers quantize` compares what they quantize (quantized.rs), `peers perplexity` how well they predict (perplexity.rs).
//!
//! usage: peers MODEL.gguf [-t THREADS] [-r REPETITIONS] [-d DEPTH,…] [-p PROMPT] [-n GENERATE] [--no-candle]

mod candle;
mod llama;
mod ours;
mod perplexity;
mod quantized;

use std::path::PathBuf;

/// An engine that can be timed.
trait Peer {
    fn name(&self) -> &'static str;
    /// Seconds from nothing to the first logits of a one-token prompt.
    fn load_seconds(&self) -> f64;
    /// Tokens a second of a prompt of `prompt` tokens (or of generating `generate`), after `depth` in the cache.
    fn run(&mut self, depth: usize, prompt: usize, generate: usize) -> f64;
}

struct Args {
    model: PathBuf,
    threads: usize,
    repetitions: usize,
    depths: Vec<usize>,
    prompt: usize,
    generate: usize,
    candle: bool,
}

fn args() -> Option<Args> {
    let mut args = Args {
        model: PathBuf::new(),
        threads: 2,
        repetitions: 5,
        depths: vec![0, 4096, 8192],
        prompt: 512,
        generate: 32,
        candle: true,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "-t" => args.threads = words.next()?.parse().ok()?,
            "-r" => args.repetitions = words.next()?.parse().ok()?,
            "-p" => args.prompt = words.next()?.parse().ok()?,
            "-n" => args.generate = words.next()?.parse().ok()?,
            "-d" => args.depths = words.next()?.split(',').map(|d| d.parse().ok()).collect::<Option<_>>()?,
            "--no-candle" => args.candle = false,
            _ => args.model = word.into(),
        }
    }
    args.model.exists().then_some(args)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "quantize") {
        return quantized::main(&words[1..]);
    }
    if words.first().is_some_and(|word| word == "perplexity") {
        return perplexity::main(&words[1..]);
    }
    let Some(args) = args() else {
        eprintln!(
            "usage: peers MODEL.gguf [-t THREADS] [-r REPETITIONS] [-d DEPTH,…] [-p PROMPT] [-n GENERATE] [--no-candle]"
        );
        std::process::exit(2);
    };
    let context = args.depths.iter().max().unwrap_or(&0) + args.prompt + args.generate;
    let mut peers: Vec<Box<dyn Peer>> = vec![
        Box::new(ours::Pensive::load(&args.model, args.threads, context)),
        Box::new(llama::Llama::load(&args.model, args.threads, context)),
    ];
    if args.candle {
        peers.push(Box::new(candle::Candle::load(&args.model, args.threads)));
    }
    let names: Vec<_> = peers.iter().map(|p| p.name()).collect();
    println!("| test | {} | pensive / llama.cpp |", names.join(" | "));
    println!("|---|{}---|", "---|".repeat(names.len()));
    row("load, s", peers.iter().map(|p| p.load_seconds()).collect());
    let mut tests = vec![(0, args.prompt, 0)];
    tests.extend(args.depths.iter().map(|&depth| (depth, 0, args.generate)));
    for (depth, prompt, generate) in tests {
        let mut samples = vec![Vec::new(); peers.len()];
        for _ in 0..args.repetitions {
            for (peer, samples) in peers.iter_mut().zip(&mut samples) {
                samples.push(peer.run(depth, prompt, generate));
            }
        }
        let name =
            if prompt > 0 { format!("pp{prompt} @ d{depth}") } else { format!("tg{generate} @ d{depth}") };
        row(&name, samples.into_iter().map(median).collect());
    }
}

fn row(name: &str, values: Vec<f64>) {
    let cells: Vec<_> = values.iter().map(|v| format!("{v:.2}")).collect();
    println!("| {name} | {} | {:.2} |", cells.join(" | "), values[0] / values[1]);
}
