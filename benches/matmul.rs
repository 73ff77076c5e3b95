//! Matrix products by format and instruction set, on one thread and on all, beside what the machine can do.
//!
//! `cargo bench --bench matmul -- [FILTER…]`, filters as in `Q4_K` or `avx512`. Decode is one token, or a batch of eight,
//! through a matrix larger than the caches, in GB/s of weights read; prefill is 512 tokens through some rows of the down
//! projection of a 1.5B model, in G multiply-adds per second. Work is timed in pieces of a few milliseconds and the best
//! is shown: what the kernel does, not what other programs leave to it. Each cell: on one thread, on all.

use std::hint::black_box;
use std::sync::Mutex;
use std::time::Instant;

use pensive::backend::cpu::kernels::{
    ActivationKind, Activations, Input, Isa, Layout, Output, Scratch, WeightMatrix,
};
use pensive::backend::cpu::limits;
use pensive::backend::cpu::pool::{Pool, Tasks};
use pensive::checkpoint::Tensor;
use pensive::quant::BlockType;

fn main() {
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let wanted = |name: &str, of: &[&str]| {
        let mut of_this = filters.iter().filter(|f| of.contains(&f.as_str())).peekable();
        of_this.peek().is_none() || of_this.any(|f| f == name)
    };
    let isas: Vec<_> = Isa::ALL.iter().map(|isa| isa.name()).collect();
    let kinds: Vec<_> = BlockType::ALL.iter().map(|kind| kind.to_string()).collect();
    let kinds: Vec<_> = kinds.iter().map(String::as_str).collect();

    let pools = [Some(1), None].map(|threads| Pool::new(threads).expect("threads start"));
    for pool in &pools {
        let threads = pool.threads();
        for isa in Isa::available().filter(|isa| wanted(isa.name(), &isas)) {
            let rate = limits::int8_rate(pool, isa) / 1e9;
            println!("{isa}, threads: {threads}: {rate:.0} GMAC/s of int8 dot products");
        }
        let bandwidth = Isa::detect().and_then(|isa| limits::read_bandwidth(pool, isa)).expect("memory");
        println!("read bandwidth, threads: {threads}: {:.1} GB/s", bandwidth / 1e9);
    }
    println!("| format | isa | layout | decode GB/s | batch of 8 GB/s | prefill 512 GMAC/s |");
    println!("|---|---|---|---|---|---|");
    for kind in BlockType::ALL.into_iter().filter(|kind| wanted(&kind.to_string(), &kinds)) {
        for isa in Isa::available().filter(|isa| wanted(isa.name(), &isas)) {
            for layout in [Layout::Interleaved, Layout::AsInFile] {
                let [one, eight] = [1, 8].map(|tokens| cell(1, decode(kind, isa, layout, tokens, &pools)));
                let prefill = cell(0, prefill(kind, isa, layout, &pools));
                println!("| {kind} | {isa} | {layout:?} | {one} | {eight} | {prefill} |");
            }
        }
    }
}

fn cell(digits: usize, [one, all]: [f64; 2]) -> String {
    format!("{one:.digits$}, {all:.digits$}")
}

/// GB/s of weights, some tokens through [rows, 1536] of 200 MB, a sixteenth at a time.
fn decode(kind: BlockType, isa: Isa, layout: Layout, tokens: usize, pools: &[Pool; 2]) -> [f64; 2] {
    let columns = 1536;
    let rows = (200 << 20) / kind.row_bytes(columns) / 256 * 256;
    let bench = Product::new(kind, rows, columns, tokens, isa, layout);
    let bytes = rows / 16 * kind.row_bytes(columns);
    pools.each_ref().map(|pool| bytes as f64 / bench.seconds(16, pool) / 1e9)
}

/// G multiply-adds per second, 512 tokens through [512, 8960], half of it at a time.
fn prefill(kind: BlockType, isa: Isa, layout: Layout, pools: &[Pool; 2]) -> [f64; 2] {
    let (rows, columns, tokens) = if isa == Isa::Scalar { (256, 2048, 64) } else { (512, 8960, 512) };
    let bench = Product::new(kind, rows, columns, tokens, isa, layout);
    let products = rows / 2 * columns * tokens;
    pools.each_ref().map(|pool| products as f64 / bench.seconds(2, pool) / 1e9)
}

/// A matrix with its input.
struct Product {
    matrix: WeightMatrix,
    isa: Isa,
    tokens: usize,
    x: Vec<f32>,
}

impl Product {
    fn new(kind: BlockType, rows: usize, columns: usize, tokens: usize, isa: Isa, layout: Layout) -> Self {
        let mut random = 1u64;
        let mut next = || {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) as u32
        };
        // Arbitrary bytes are valid blocks; a zero every other byte of a 16-bit scale keeps sums finite.
        let bytes = (0..rows * kind.row_bytes(columns)).map(|_| next() as u8 & 0x3b).collect();
        let tensor = Tensor::from_bytes("bench", kind, &[rows, columns], bytes);
        let matrix = WeightMatrix::new(&tensor, layout).expect("a matrix");
        let x = (0..tokens * columns).map(|_| next() as i32 as f32 / 1e9 - 1.0).collect();
        Self { matrix, isa, tokens, x }
    }

    /// The best time of the product of one of `pieces` parts of the matrix, on all threads of a pool.
    fn seconds(&self, pieces: usize, pool: &Pool) -> f64 {
        let (rows, columns) = (self.matrix.rows(), self.matrix.columns());
        let activations = Activations::new(self.matrix.activation(), self.tokens, columns);
        if self.matrix.activation() != ActivationKind::F32 {
            for (row, x) in self.x.chunks(columns).enumerate() {
                // SAFETY: this thread is the only one.
                unsafe { activations.quantize(self.isa, row, x) };
            }
        }
        let input = match self.matrix.activation() {
            ActivationKind::F32 => Input::Floats { x: &self.x, width: columns },
            _ => Input::Quantized(&activations),
        };
        let scratch: Vec<_> = (0..pool.threads()).map(|_| Mutex::new(Scratch::new(self.tokens))).collect();
        let mut out = vec![0.0; self.tokens * rows];
        let to = Output { to: out.as_mut_ptr(), stride: rows };
        let tiles = self.matrix.tiles() / pieces;
        // SAFETY: as below; the first product copies all that is to be interleaved.
        unsafe {
            self.matrix.begin(u64::MAX);
            let mut scratch = scratch[0].lock().expect("no thread panics");
            self.matrix.multiply(self.isa, 0..self.matrix.tiles(), input, None, to, &mut scratch);
            self.matrix.finish();
        }
        let mut best = f64::INFINITY;
        let begin = Instant::now();
        while begin.elapsed().as_secs_f64() < 0.5 {
            for piece in 0..pieces {
                let start = Instant::now();
                let tasks = Tasks::new(tiles, 4, pool.threads());
                pool.run(|worker| {
                    let mut scratch = scratch[worker.index].lock().expect("no thread panics");
                    for run in tasks.claims(worker) {
                        let tiles = piece * tiles + run.start..piece * tiles + run.end;
                        // SAFETY: `out` has the shape [tokens, rows]; each tile is claimed by one thread.
                        unsafe { self.matrix.multiply(self.isa, tiles, input, None, to, &mut scratch) };
                    }
                });
                best = best.min(start.elapsed().as_secs_f64());
            }
        }
        black_box(&out);
        best
    }
}
