//! pensive, llama.cpp and candle-transformers on the same file, in turn: medians and ratios, and how fast memory was read
//! between the runs (least, median, greatest).
//!
//! `peers quantize` compares what they quantize (quantized.rs), `peers perplexity` how well they predict (perplexity.rs).
//!
//! usage: peers MODEL.gguf [-t THREADS] [-r REPETITIONS] [-d DEPTH,…] [-p PROMPT] [-n GENERATE] [--no-candle]
//!
//! llama.cpp is built for this processor. In another target folder (`--target-dir`) and with other flags for the C compilers it is
//! built for less, which CFLAGS and CXXFLAGS say, both: `-mno-avx512f` for AVX2 alone (pensive is then run with
//! `PENSIVE_ISA=avx2`), `-mno-amx-tile -mno-amx-int8` to leave out AMX.

mod candle;
mod llama;
mod ours;
mod perplexity;
mod quantized;

use std::path::PathBuf;
use std::time::Duration;

use pensive::backend::cpu::kernels::Isa;
use pensive::backend::cpu::limits;
use pensive::backend::cpu::pool::Pool;

/// An engine that can be timed.
trait Peer {
    /// Seconds that it took from nothing to the first logits of a one-token prompt.
    fn load_seconds(&self) -> f64;
    /// Tokens a second of a prompt of `prompt` tokens (or of generating `generate`), after `depth` in the cache.
    fn run(&mut self, depth: usize, prompt: usize, generate: usize) -> f64;
}

/// Name, and how it is loaded.
type Engine = (&'static str, fn(&Args) -> Box<dyn Peer>);

const ENGINES: [Engine; 3] = [
    ("pensive", |args| Box::new(ours::Pensive::load(&args.model, args.threads, args.context()))),
    ("llama.cpp", |args| Box::new(llama::Llama::load(&args.model, args.threads, args.context()))),
    ("candle", |args| Box::new(candle::Candle::load(&args.model, args.threads))),
];

struct Args {
    model: PathBuf,
    threads: usize,
    repetitions: usize,
    depths: Vec<usize>,
    prompt: usize,
    generate: usize,
    candle: bool,
    /// Of [`ENGINES`]: only to print how long it takes to load.
    load_only: Option<usize>,
}

impl Args {
    /// Tokens that the longest test takes.
    fn context(&self) -> usize {
        self.depths.iter().max().unwrap_or(&0) + self.prompt + self.generate
    }
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
        load_only: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "-t" => args.threads = words.next()?.parse().ok()?,
            "-r" => args.repetitions = words.next()?.parse().ok()?,
            "-p" => args.prompt = words.next()?.parse().ok()?,
            "-n" => args.generate = words.next()?.parse().ok()?,
            "-d" => args.depths = words.next()?.split(',').map(|d| d.parse().ok()).collect::<Option<_>>()?,
            "--load-only" => args.load_only = Some(words.next()?.parse().ok()?),
            "--no-candle" => args.candle = false,
            _ => args.model = word.into(),
        }
    }
    args.model.exists().then_some(args)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
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
    if let Some(engine) = args.load_only {
        let mut peer = ENGINES[engine].1(&args);
        let step = 1.0 / peer.run(0, 0, 16);
        return println!("{}", peer.load_seconds() - step);
    }
    let engines = if args.candle { &ENGINES[..] } else { &ENGINES[..2] };
    let names: Vec<_> = engines.iter().map(|(name, _)| *name).collect();
    let ratios: Vec<_> = names[1..].iter().map(|name| format!("times {name}")).collect();
    println!("| test | {} | {} | memory, GB/s |", names.join(" | "), ratios.join(" | "));
    println!("|---|{}---|", "---|".repeat(names.len() + ratios.len()));
    let memory = Memory::new(args.threads);
    time_loads(&args, engines.len(), &memory);
    let mut peers: Vec<_> = engines.iter().map(|(_, load)| load(&args)).collect();
    let mut tests = vec![(0, args.prompt, 0)];
    tests.extend(args.depths.iter().map(|&depth| (depth, 0, args.generate)));
    for (depth, prompt, generate) in tests {
        let (mut samples, mut speeds) = (vec![Vec::new(); peers.len()], Vec::new());
        for _ in 0..args.repetitions {
            for (peer, samples) in peers.iter_mut().zip(&mut samples) {
                samples.push(peer.run(depth, prompt, generate));
                speeds.push(memory.speed());
            }
        }
        let name =
            if prompt > 0 { format!("pp{prompt} @ d{depth}") } else { format!("tg{generate} @ d{depth}") };
        let values: Vec<_> = samples.into_iter().map(median).collect();
        let ratios: Vec<_> = values[1..].iter().map(|other| values[0] / other).collect();
        row(&name, &values, &ratios, speeds);
    }
}

/// From nothing to the first logits of a one-token prompt, less one step of decoding. Each load in a process of its own, as a user meets it; once more before, so that the file is in the page cache.
fn time_loads(args: &Args, engines: usize, memory: &Memory) {
    let program = std::env::current_exe().expect("the path of this program");
    let load = |engine: usize| -> f64 {
        let mut command = std::process::Command::new(&program);
        command.arg(&args.model).args(["-t", &args.threads.to_string(), "--load-only", &engine.to_string()]);
        let output = command.output().expect("this program starts again");
        String::from_utf8_lossy(&output.stdout).trim().parse().expect("seconds")
    };
    load(0);
    let (mut samples, mut speeds) = (vec![Vec::new(); engines], Vec::new());
    for _ in 0..args.repetitions {
        for (engine, samples) in samples.iter_mut().enumerate() {
            samples.push(load(engine));
            speeds.push(memory.speed());
        }
    }
    let values: Vec<_> = samples.into_iter().map(median).collect();
    let ratios: Vec<_> = values[1..].iter().map(|other| other / values[0]).collect();
    row("load, s", &values, &ratios, speeds);
}

/// A line of the table, with how many times as fast as the others pensive is; of memory's speeds the least, the median and the
/// greatest.
fn row(name: &str, values: &[f64], ratios: &[f64], mut speeds: Vec<f64>) {
    let cells: Vec<_> = values.iter().chain(ratios).map(|v| format!("{v:.2}")).collect();
    speeds.sort_by(f64::total_cmp);
    let [low, high] = [speeds[0], speeds[speeds.len() - 1]];
    let memory = format!("{low:.0}, {:.0}, {high:.0}", median(speeds));
    println!("| {name} | {} | {memory} |", cells.join(" | "));
}

/// What the machine gives meanwhile: on a virtual one it changes within seconds.
struct Memory(Pool, Isa);

impl Memory {
    fn new(threads: usize) -> Self {
        Memory(Pool::new(Some(threads)).expect("threads start"), Isa::detect().expect("an instruction set"))
    }

    /// GB/s that the threads together read.
    fn speed(&self) -> f64 {
        let patience = Duration::from_millis(60);
        limits::read_bandwidth_of(&self.0, self.1, 256 << 20, patience).expect("memory") / 1e9
    }
}
