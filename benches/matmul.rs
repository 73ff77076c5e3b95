//! Matrix products by format and instruction set, on one thread and on all, beside what the machine can do.
//!
//! `cargo bench --bench matmul -- [FILTER…]`, filters as in `"Q4_K avx512"` or `prefill::Q6_K`. Decode is one token,
//! or a batch of eight, through a matrix larger than the caches, in bytes of weights read (`_unasked`: without asking for
//! them ahead, `_twice`: also shortly before, `_to_first`: into the first cache level alone); prefill is 512 tokens through some rows of the down projection
//! of a 1.5B model, in multiply-adds ("items"). Work is timed in pieces of a few milliseconds, and the fastest tells what the
//! kernel does, not what other programs leave to it.

use std::cell::Cell;
use std::fmt;
use std::sync::Mutex;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use pensive::backend::cpu::kernels::{
    ActivationKind, Activations, Fetch, Input, Isa, Layout, Output, Scratch, WeightMatrix,
};
use pensive::backend::cpu::limits;
use pensive::backend::cpu::pool::{Pool, Tasks};
use pensive::checkpoint::Tensor;
use pensive::quant::BlockType;

fn main() {
    for threads in threads() {
        let pool = Pool::new(Some(threads)).expect("threads start");
        for isa in Isa::available() {
            let rate = limits::int8_rate(&pool, isa) / 1e9;
            eprintln!("{isa}, threads: {threads}: {rate:.0} G multiply-adds a second of int8 dot products");
        }
        let bandwidth = Isa::detect().and_then(|isa| limits::read_bandwidth(&pool, isa)).expect("memory");
        eprintln!("read bandwidth, threads: {threads}: {:.1} GB/s", bandwidth / 1e9);
    }
    divan::main();
}

/// One, and as many as a model takes.
fn threads() -> Vec<usize> {
    let all = Pool::new(None).expect("threads start").threads();
    if all > 1 { vec![1, all] } else { vec![1] }
}

/// What a product is timed with.
struct Case {
    kind: BlockType,
    isa: Isa,
    layout: Layout,
    threads: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?} {}", self.kind, self.isa, self.layout, self.threads)
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in BlockType::ALL {
        for isa in Isa::available() {
            for layout in [Layout::Interleaved, Layout::AsInFile] {
                cases.extend(threads().into_iter().map(|threads| Case { kind, isa, layout, threads }));
            }
        }
    }
    cases
}

#[divan::bench(args = cases(), max_time = 0.5, sample_size = 1)]
fn decode(bencher: Bencher<'_, '_>, case: &Case) {
    through_memory(bencher, case, 1, Fetch::ToSecond);
}

#[divan::bench(args = cases(), max_time = 0.5, sample_size = 1)]
fn decode_unasked(bencher: Bencher<'_, '_>, case: &Case) {
    through_memory(bencher, case, 1, Fetch::Unasked);
}

#[divan::bench(args = cases(), max_time = 0.5, sample_size = 1)]
fn decode_twice(bencher: Bencher<'_, '_>, case: &Case) {
    through_memory(bencher, case, 1, Fetch::Twice);
}

#[divan::bench(args = cases(), max_time = 0.5, sample_size = 1)]
fn batch_of_8(bencher: Bencher<'_, '_>, case: &Case) {
    through_memory(bencher, case, 8, Fetch::ToSecond);
}

#[divan::bench(args = cases(), max_time = 0.5, sample_size = 1)]
fn batch_of_8_to_first(bencher: Bencher<'_, '_>, case: &Case) {
    through_memory(bencher, case, 8, Fetch::ToFirst);
}

/// Some tokens through [rows, 1536] of 200 MB, a sixteenth at a time.
fn through_memory(bencher: Bencher<'_, '_>, case: &Case, tokens: usize, fetch: Fetch) {
    let columns = 1536;
    let rows = (200 << 20) / case.kind.row_bytes(columns) / 256 * 256;
    let bytes = rows / 16 * case.kind.row_bytes(columns);
    Product { fetch, ..Product::new(case, rows, columns, tokens) }
        .bench(bencher.counter(BytesCount::new(bytes)), 16);
}

/// 512 tokens through [512, 8960], half of it at a time.
#[divan::bench(args = cases(), max_time = 0.5, sample_size = 1)]
fn prefill(bencher: Bencher<'_, '_>, case: &Case) {
    let (rows, columns, tokens) = if case.isa == Isa::Scalar { (256, 2048, 64) } else { (512, 8960, 512) };
    let products = ItemsCount::new(rows / 2 * columns * tokens);
    Product::new(case, rows, columns, tokens).bench(bencher.counter(products), 2);
}

/// A matrix with its input.
struct Product {
    matrix: WeightMatrix,
    isa: Isa,
    threads: usize,
    tokens: usize,
    fetch: Fetch,
    x: Vec<f32>,
}

impl Product {
    fn new(case: &Case, rows: usize, columns: usize, tokens: usize) -> Self {
        let mut random = 1u64;
        let mut next = || {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) as u32
        };
        // Arbitrary bytes are valid blocks; a zero every other byte of a 16-bit scale keeps sums finite.
        let bytes = (0..rows * case.kind.row_bytes(columns)).map(|_| next() as u8 & 0x3b).collect();
        let tensor = Tensor::from_bytes("bench", case.kind, &[rows, columns], bytes);
        let matrix = WeightMatrix::new(&tensor, case.layout).expect("a matrix");
        let x = (0..tokens * columns).map(|_| next() as i32 as f32 / 1e9 - 1.0).collect();
        Self { matrix, isa: case.isa, threads: case.threads, tokens, fetch: Fetch::ToSecond, x }
    }

    /// Times the product of one of `pieces` parts of the matrix after the other.
    fn bench(&self, bencher: Bencher<'_, '_>, pieces: usize) {
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
        let scratch = || {
            let mut scratch = Scratch::new(self.tokens);
            scratch.fetch = self.fetch;
            scratch
        };
        let scratch: Vec<_> = (0..self.threads).map(|_| Mutex::new(scratch())).collect();
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
        let pool = Pool::new(Some(self.threads)).expect("threads start");
        let turn = Cell::new(0);
        bencher.bench_local(|| {
            let piece = turn.replace((turn.get() + 1) % pieces);
            let claims = Tasks::new(tiles, 4, self.threads);
            pool.run(|worker| {
                let mut scratch = scratch[worker.index].lock().expect("no thread panics");
                for run in claims.claims(worker) {
                    let tiles = piece * tiles + run.start..piece * tiles + run.end;
                    // SAFETY: `out` has the shape [tokens, rows]; each tile is claimed by one thread.
                    unsafe { self.matrix.multiply(self.isa, tiles, input, None, to, &mut scratch) };
                }
            });
        });
    }
}
