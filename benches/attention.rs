//! Attention over a long cache and in prefill, and what a step of the thread pool costs.
//!
//! `cargo bench --bench attention -- [THREADS [ISA…]]`, as in `2 avx512`. Shapes of a 1.5B model: 28 layers of 12 query
//! heads over 2 kv heads of 128. Decode is one row at depth 8,192, in GB/s of keys and values read; prefill is 512 rows
//! at depths 0 and 4,096, in GFLOP/s of the products that a causal mask leaves.

use std::time::Instant;

use pensive::backend::cpu::kernels::Isa;
use pensive::backend::cpu::pool::{Pool, Tasks};
use pensive::backend::cpu::{CpuBackend, CpuOptions};
use pensive::backend::{
    Attention, Backend, Buffer, KvShape, KvType, PAGE_LEN, Plan, Rope, RopeStyle, Row, Step,
};
use pensive::checkpoint::Tensor;
use pensive::quant::BlockType;

const LAYERS: usize = 28;
const HEADS: usize = 12;
const SHAPE: KvShape = KvShape { heads: 2, key_dim: 128, value_dim: 128 };
const DEPTH: usize = 8192;
const PREFILL: usize = 512;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let threads: usize =
        args.first().map_or(2, |n| n.parse().expect("the first argument is a number of threads"));
    pool(threads);
    println!(
        "| isa | kv | decode at {DEPTH}, GB/s | µs a layer | prefill {PREFILL}, GFLOP/s | at depth 4096 |"
    );
    println!("|---|---|---|---|---|---|");
    for isa in Isa::available().filter(|isa| args.len() < 2 || args[1..].iter().any(|a| a == isa.name())) {
        for kv_type in KvType::ALL {
            let mut bench = Bench::new(threads, isa, kv_type);
            let (gigabytes, micros) = bench.decode();
            let (shallow, deep) = (bench.prefill(0), bench.prefill(4096));
            println!("| {isa} | {kv_type:?} | {gigabytes:.1} | {micros:.0} | {shallow:.0} | {deep:.0} |");
        }
    }
}

/// Seconds of the fastest of some calls.
fn fastest(times: usize, mut call: impl FnMut()) -> f64 {
    (0..times)
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

fn pool(threads: usize) {
    let pool = Pool::new(Some(threads)).expect("threads start");
    let many = 20;
    let runs = fastest(2000, || (0..many).for_each(|_| pool.run(|_| ())));
    let phases = fastest(2000, || {
        let phases: Vec<Tasks> = (0..many).map(|_| Tasks::new(threads, 1, threads)).collect();
        pool.run(|worker| {
            phases.iter().for_each(|tasks| {
                tasks.claims().for_each(drop);
                worker.wait(tasks);
            });
        });
    });
    let micros = |seconds: f64| seconds / many as f64 * 1e6;
    println!("pool of {threads}: {:.2} µs a run, {:.2} µs a phase", micros(runs), micros(phases));
}

struct Bench {
    backend: CpuBackend,
    kv_type: KvType,
    pages: Vec<u32>,
    query: Buffer,
    out: Buffer,
}

impl Bench {
    /// With a cache that is full up to DEPTH.
    fn new(threads: usize, isa: Isa, kv_type: KvType) -> Self {
        let options = CpuOptions { threads: Some(threads), isa: Some(isa), ..CpuOptions::default() };
        let mut backend = CpuBackend::new(options).expect("the processor has it");
        let table = |backend: &mut CpuBackend, width: usize| {
            let bytes =
                (0..16 * width).flat_map(|i| (((i * 37) % 101) as f32 * 0.02 - 1.0).to_le_bytes()).collect();
            let tensor = Tensor::from_bytes("table", BlockType::F32, &[16, width], bytes);
            (backend.add_embedding(&tensor).expect("a matrix"), backend.add_buffer(width))
        };
        let (queries, query) = table(&mut backend, HEADS * SHAPE.key_dim);
        let (keys, key) = table(&mut backend, SHAPE.heads * SHAPE.key_dim);
        let out = backend.add_buffer(HEADS * SHAPE.value_dim);
        (0..LAYERS).for_each(|_| _ = backend.add_kv(SHAPE));
        let pages: Vec<u32> = (0..(DEPTH / PAGE_LEN) as u32).collect();
        let plan = Plan { rows: PREFILL, logit_rows: 1, sequences: 1, pages: pages.len(), kv_type };
        let rope = Rope { inverse_frequencies: Vec::new(), magnitude: 1.0, style: RopeStyle::Halves };
        backend.prepare(plan, &rope).expect("memory");
        let mut bench = Bench { backend, kv_type, pages, query, out };
        for first in (0..DEPTH).step_by(PREFILL) {
            bench.begin(first, PREFILL);
            bench.backend.embed(keys, key);
            bench.backend.embed(queries, query);
            (0..LAYERS).for_each(|layer| bench.backend.append_kv(layer, key, key));
        }
        bench
    }

    fn begin(&mut self, first: usize, count: usize) {
        let rows: Vec<Row> = (first..first + count)
            .map(|position| Row { sequence: 0, position, token: position as u32 % 16, wants_logits: false })
            .collect();
        self.backend.begin(&Step { rows: &rows, tables: &[&self.pages] });
    }

    /// Seconds of the fastest of some calls, each on the next layer.
    fn fastest_layer(&mut self, calls: usize) -> f64 {
        let attention = Attention { heads: HEADS, scale: 0.09, window: None };
        let mut layers = (0..LAYERS).cycle();
        fastest(calls, || {
            let layer = layers.next().unwrap_or(0);
            self.backend.attention(layer, self.query, &attention, self.out);
        })
    }

    /// GB/s, and microseconds a layer.
    fn decode(&mut self) -> (f64, f64) {
        self.begin(DEPTH - 1, 1);
        let seconds = self.fastest_layer(20 * LAYERS);
        let layer_bytes = SHAPE.page_bytes(self.kv_type) * self.pages.len();
        (layer_bytes as f64 / seconds / 1e9, seconds * 1e6)
    }

    /// GFLOP/s of PREFILL rows from position `first` on.
    fn prefill(&mut self, first: usize) -> f64 {
        self.begin(first, PREFILL);
        let seconds = self.fastest_layer(10);
        let seen: usize = (first..first + PREFILL).map(|position| position + 1).sum();
        let flops = 2 * seen * HEADS * (SHAPE.key_dim + SHAPE.value_dim);
        flops as f64 / seconds / 1e9
    }
}
