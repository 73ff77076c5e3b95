//! Attention of one row over a long cache and of many in prefill, and what a step of the thread pool costs.
//!
//! `cargo bench --bench attention -- [NAME…]`: names of shapes, instruction sets and kinds of cache choose from the table,
//! as in `1.5b avx512 f16`; a number sets the threads of "all". 28 layers, one after the other, as in a decoder. Decode is
//! one row, in GB/s of keys and values read: the median over the layers, and microseconds a layer. Prefill is 512 rows, in
//! GFLOP/s of the products that a causal mask leaves: the fastest of some calls.

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
const DEPTHS: [usize; 2] = [4096, 8192];
const PREFILL: usize = 512;

/// Models by name: query heads, and their kv heads.
const SHAPES: [(&str, usize, KvShape); 5] = [
    ("135m", 9, KvShape::grouped(3, 64, 64)),
    ("0.5b", 14, KvShape::grouped(2, 64, 64)),
    ("1.5b", 12, KvShape::grouped(2, 128, 128)),
    ("r1", 128, KvShape::latent(512, 64)),
    ("r1-twice", 128, KvShape::grouped(1, 576, 512)), // its latent cached as key and as value
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = args.iter().find_map(|a| a.parse().ok()).unwrap_or(cores);
    // Of names of one sort, those that were given, or all.
    let chosen =
        |name: &str, all: &[String]| args.iter().any(|a| a == name) || !args.iter().any(|a| all.contains(a));
    let shapes = SHAPES.map(|(name, ..)| name.to_string());
    let isas: Vec<String> = Isa::ALL.iter().map(ToString::to_string).collect();
    let kinds = KvType::ALL.map(|kind| kind.to_string());

    pool(threads);
    println!("| shape | isa | kv | threads | decode at 4096 | at 8192 | prefill at 0 | at 4096 |");
    println!("|---|---|---|---|---|---|---|---|");
    for (name, heads, shape) in SHAPES.into_iter().filter(|(name, ..)| chosen(name, &shapes)) {
        for isa in Isa::available().filter(|isa| chosen(isa.name(), &isas)) {
            for kv_type in KvType::ALL.into_iter().filter(|kind| chosen(&kind.to_string(), &kinds)) {
                for threads in if threads > 1 { vec![1, threads] } else { vec![1] } {
                    let mut bench = Bench::new(threads, isa, kv_type, heads, shape);
                    let decode = DEPTHS.map(|depth| bench.decode(depth));
                    let prefill = [0, 4096].map(|first| bench.prefill(first));
                    print!("| {name} | {isa} | {kv_type} | {threads} |");
                    decode.iter().for_each(|(rate, micros)| print!(" {rate:.1} GB/s, {micros:.0} µs |"));
                    println!(" {:.0} GFLOP/s | {:.0} |", prefill[0], prefill[1]);
                }
            }
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
                tasks.claims(worker).for_each(drop);
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
    heads: usize,
    shape: KvShape,
    pages: Vec<u32>,
    query: Buffer,
    out: Buffer,
}

impl Bench {
    /// With a full cache of the greatest depth.
    fn new(threads: usize, isa: Isa, kv_type: KvType, heads: usize, shape: KvShape) -> Self {
        let options = CpuOptions { threads: Some(threads), isa: Some(isa), ..CpuOptions::default() };
        let mut backend = CpuBackend::new(options).expect("the processor has it");
        let table = |backend: &mut CpuBackend, width: usize| {
            let bytes =
                (0..16 * width).flat_map(|i| (((i * 37) % 101) as f32 * 0.02 - 1.0).to_le_bytes()).collect();
            let tensor = Tensor::from_bytes("table", BlockType::F32, &[16, width], bytes);
            (backend.add_embedding(&tensor).expect("a matrix"), backend.add_buffer(width))
        };
        let (queries, query) = table(&mut backend, heads * shape.key_dim);
        let (keys, key) = table(&mut backend, shape.heads * shape.key_dim);
        let out = backend.add_buffer(heads * shape.value_dim);
        (0..LAYERS).for_each(|_| _ = backend.add_kv(shape));
        let [_, depth] = DEPTHS;
        let pages: Vec<u32> = (0..(depth / PAGE_LEN) as u32).collect();
        let plan = Plan { rows: PREFILL, logit_rows: 1, sequences: 1, pages: pages.len(), kv_type };
        let rope = Rope { inverse_frequencies: Vec::new(), magnitude: 1.0, style: RopeStyle::Halves };
        backend.prepare(plan, &rope).expect("memory");
        let mut bench = Bench { backend, kv_type, heads, shape, pages, query, out };
        for first in (0..depth).step_by(PREFILL) {
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

    /// Seconds of each of some calls, each on the next layer, ascending.
    fn seconds(&mut self, calls: usize) -> Vec<f64> {
        let attention = Attention { heads: self.heads, scale: 0.09, window: None, sinks: None };
        let mut seconds: Vec<f64> = (0..calls)
            .map(|call| {
                fastest(1, || self.backend.attention(call % LAYERS, self.query, &attention, self.out))
            })
            .collect();
        seconds.sort_by(f64::total_cmp);
        seconds
    }

    /// GB/s, and microseconds a layer, of one row that sees `depth` positions.
    fn decode(&mut self, depth: usize) -> (f64, f64) {
        self.begin(depth - 1, 1);
        let seconds = self.seconds(20 * LAYERS)[10 * LAYERS];
        let layer_bytes = self.shape.page_bytes(self.kv_type) * (depth / PAGE_LEN);
        (layer_bytes as f64 / seconds / 1e9, seconds * 1e6)
    }

    /// GFLOP/s of PREFILL rows from position `first` on.
    fn prefill(&mut self, first: usize) -> f64 {
        self.begin(first, PREFILL);
        let seconds = self.seconds(10)[0];
        let seen: usize = (first..first + PREFILL).map(|position| position + 1).sum();
        let flops = 2 * seen * self.heads * (self.shape.key_dim + self.shape.value_dim);
        flops as f64 / seconds / 1e9
    }
}
