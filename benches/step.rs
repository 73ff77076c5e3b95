//! What a decode step costs beside its matrices and attention.
//!
//! `cargo bench --bench step -- [THREADS]`. First chains of short parallel steps, on pensive's pool and on rayon's, in
//! turn: each step is 5, 20 or 100 µs of work for every thread, in four tasks a thread. Then what is done row by row,
//! for one row of a 1.5B model (width 1536, feed-forward 8960): with a product of 16 rows, which is next to nothing.

use std::hint::black_box;
use std::time::Instant;

use pensive::backend::cpu::pool::Pool;
use pensive::backend::cpu::{CpuBackend, CpuOptions};
use pensive::backend::{
    Activation, Backend, Buffer, Heads, KvType, Plan, Projection, Rope, RopeStyle, Row, Source, Step,
};
use pensive::checkpoint::Tensor;
use pensive::quant::BlockType;
use rayon::prelude::*;

const WIDTH: usize = 1536;
const KEYS: usize = 256;
const FEED_FORWARD: usize = 8960;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let cores = Pool::new(None).expect("threads start").threads();
    let threads = args.first().map_or(cores, |n| n.parse().expect("the argument is a number of threads"));
    pools(threads);
    rows(threads);
}

/// µs that a step takes, in the fastest of some chains.
fn pools(threads: usize) {
    const STEPS: usize = 100;
    let pool = Pool::new(Some(threads)).expect("threads start");
    let rayon = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
    let tasks = 4 * threads;
    let per_micro = 10_000.0 / fastest(100, || work(10_000)) / 1e6;
    println!("| step, µs of work | pensive, µs | rayon, µs | rayon / pensive | beyond the work |");
    println!("|---|---|---|---|---|");
    for micros in [5, 20, 100] {
        let length = (f64::from(micros) * per_micro / 4.0) as u64;
        let ours = || (0..STEPS).for_each(|_| pool.for_each(tasks, 1, |_| work(length)));
        // From within its pool, where a step needs no hand-over: the way in which rayon does best.
        let theirs = || {
            rayon.install(|| {
                (0..STEPS).for_each(|_| (0..tasks).into_par_iter().with_max_len(1).for_each(|_| work(length)))
            })
        };
        let mut best = [f64::INFINITY; 2];
        for _ in 0..200 {
            best = [best[0].min(seconds(ours)), best[1].min(seconds(theirs))];
        }
        let [a, b] = best.map(|time| time / STEPS as f64 * 1e6);
        let beyond = [a, b].map(|time| time - f64::from(micros));
        println!("| {micros} | {a:.1} | {b:.1} | {:.2} | {:.1}, {:.1} |", b / a, beyond[0], beyond[1]);
    }
}

/// Some work for the processor alone, that takes the same time anywhere.
fn work(length: u64) {
    let mut x = 1u64;
    for _ in 0..length {
        x = black_box(x.wrapping_mul(6364136223846793005).wrapping_add(1));
    }
}

/// µs that operations on one row take at best.
fn rows(threads: usize) {
    println!("\n| one row, {threads} threads | µs |\n|---|---|");
    let mut bench = Bench::new(threads);
    let [hidden, normed, query, key, gate, up] = bench.buffers;
    let norm = Source::RmsNorm { from: hidden, weight: bench.weight, epsilon: 1e-6, to: normed };
    let heads = |x| Heads { x, dim: 128, norm: None, rotate_from: 0, center: None };
    println!("| quantize {WIDTH} | {:.2} |", bench.linear(0, Source::Buffer(normed)));
    println!("| norm and quantize {WIDTH} | {:.2} |", bench.linear(0, norm));
    println!("| quantize {FEED_FORWARD} | {:.2} |", bench.linear(1, Source::Buffer(up)));
    println!(
        "| swiglu and quantize {FEED_FORWARD} | {:.2} |",
        bench.linear(1, Source::Gated { gate, up, activation: Activation::SwiGlu })
    );
    println!("| rope of {WIDTH} and {KEYS} | {:.2} |", bench.rope(&[heads(query), heads(key)]));
}

struct Bench {
    backend: CpuBackend,
    /// hidden, normed, query, key, gate, up
    buffers: [Buffer; 6],
    weight: pensive::backend::Vector,
    /// From WIDTH, and from FEED_FORWARD.
    projections: [Projection; 2],
}

impl Bench {
    fn new(threads: usize) -> Self {
        let options = CpuOptions { threads: Some(threads), ..CpuOptions::default() };
        let mut backend = CpuBackend::new(options).expect("threads start");
        let weight = backend.add_vector(vec![1.0; WIDTH]).expect("memory");
        let widths = [WIDTH, WIDTH, WIDTH, KEYS, FEED_FORWARD, FEED_FORWARD];
        let buffers = widths.map(|width| backend.add_buffer(width));
        let mut projection = |columns: usize| {
            let bytes = vec![0; BlockType::Q8_0.row_bytes(16 * columns)];
            let tensor = Tensor::from_bytes("w", BlockType::Q8_0, &[16, columns], bytes);
            let matrix = backend.add_matrix(&tensor).expect("a matrix");
            Projection { matrix, bias: None, to: backend.add_buffer(16), sum: None }
        };
        let projections = [projection(WIDTH), projection(FEED_FORWARD)];
        let tables = widths.map(|width| {
            let floats = (0..width).flat_map(|i| (((i * 37) % 101) as f32 * 0.02 - 1.0).to_le_bytes());
            let tensor = Tensor::from_bytes("table", BlockType::F32, &[1, width], floats.collect());
            backend.add_embedding(&tensor).expect("a matrix")
        });
        let plan = Plan { rows: 1, logit_rows: 1, sequences: 1, pages: 1, kv_type: KvType::F16 };
        let inverse_frequencies = (0..64).map(|i| 1e6f64.powf(-f64::from(i) / 64.0)).collect();
        let rope = Rope { inverse_frequencies, magnitude: 1.0, style: RopeStyle::Halves };
        backend.prepare(plan, &rope).expect("memory");
        let rows = [Row { sequence: 0, position: 9, token: 0, wants_logits: true }];
        backend.begin(&Step { rows: &rows, tables: &[&[0]] });
        tables.into_iter().zip(buffers).for_each(|(table, buffer)| backend.embed(table, buffer));
        Bench { backend, buffers, weight, projections }
    }

    fn linear(&mut self, projection: usize, source: Source) -> f64 {
        fastest(20_000, || self.backend.linear(source, &self.projections[projection..=projection])) * 1e6
    }

    fn rope(&mut self, heads: &[Heads]) -> f64 {
        fastest(20_000, || self.backend.rope(heads)) * 1e6
    }
}

fn seconds(mut call: impl FnMut()) -> f64 {
    let start = Instant::now();
    call();
    start.elapsed().as_secs_f64()
}

/// Seconds of the fastest of some calls.
fn fastest(times: usize, mut call: impl FnMut()) -> f64 {
    (0..times).map(|_| seconds(&mut call)).fold(f64::INFINITY, f64::min)
}
