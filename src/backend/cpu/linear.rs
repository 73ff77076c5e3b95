//! Several matrix products of one input, as one job of the pool.

use super::kernels::{ActivationKind, Activations, Input, Isa, Output, Scratch, WeightMatrix};
use super::memory::Shared;
use super::pool::{Pool, Tasks};

/// Multiply-adds below which a call is not worth waking other threads for.
const SMALL: usize = 100_000;

/// One product: `to = matrix * input + bias`, `to` as wide as the matrix has rows.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// The matrix.
    pub matrix: &'a WeightMatrix,
    /// Added to each row.
    pub bias: Option<&'a [f32]>,
    /// [input rows, matrix rows]
    pub to: Shared<f32>,
}

/// Memory for products, allocated once.
pub struct Workspace {
    /// Bytes of matrices that products may still interleave in this step.
    pub copies: u64,
    activations: Activations,
    /// By thread.
    scratch: Vec<Scratch>,
}

impl Workspace {
    /// For inputs of up to [rows, columns] and `threads` threads.
    pub fn new(rows: usize, columns: usize, threads: usize) -> Self {
        Workspace {
            copies: 0,
            activations: Activations::new(rows, columns),
            scratch: (0..threads).map(|_| Scratch::new(rows)).collect(),
        }
    }

    /// Computes the products that `product(0..count)` gives of the input [rows, width].
    ///
    /// First the threads share out the input's rows to quantize them, if some matrix asks for it; then, in the same
    /// job, the tiles of all matrices. Up to [`copies`](Self::copies) bytes of the matrices are interleaved on the way and taken off.
    pub fn multiply<'a>(
        &mut self,
        isa: Isa,
        pool: &Pool,
        input: &[f32],
        width: usize,
        count: usize,
        product: impl Fn(usize) -> Product<'a> + Sync,
    ) {
        let rows = input.len() / width;
        let products = || (0..count).map(&product);
        let quantized = products().any(|p| p.matrix.activation() == ActivationKind::I8);
        if quantized {
            self.activations.begin(rows, width);
        }
        let work: usize = products().map(|p| p.matrix.rows()).sum::<usize>() * input.len();
        let threads = if work < SMALL { 1 } else { pool.threads() };
        let to_quantize = Tasks::new(if quantized { rows } else { 0 }, 1, threads);
        let tiles = Tasks::new(products().map(|p| p.matrix.tiles()).sum(), 1, threads);

        for p in products() {
            // SAFETY: the job below multiplies each tile once, and `finish` follows it.
            self.copies = unsafe { p.matrix.begin(self.copies) };
        }
        let (activations, scratch) = (&self.activations, Shared::of(&mut self.scratch));
        let job = |worker: &super::pool::Worker<'_>| {
            while let Some(range) = to_quantize.claim() {
                for row in range {
                    // SAFETY: a row belongs to one task.
                    unsafe { activations.quantize(isa, row, &input[row * width..][..width]) };
                }
            }
            if quantized {
                worker.barrier();
            }
            // SAFETY: one scratch for each thread of the pool.
            let scratch = unsafe { &mut *scratch.at(worker.index) };
            while let Some(range) = tiles.claim() {
                let mut first = 0; // tiles of the products before
                for p in products() {
                    let end = first + p.matrix.tiles();
                    let (from, to) = (range.start.max(first), range.end.min(end));
                    if from < to {
                        let input = match p.matrix.activation() {
                            ActivationKind::I8 => Input::Quantized(activations),
                            ActivationKind::F32 => Input::Floats { x: input, width },
                        };
                        // SAFETY: `to` has a row for each of the input's; a tile belongs to one task.
                        unsafe {
                            let out = Output { to: p.to.at(0), stride: p.matrix.rows() };
                            p.matrix.multiply(isa, from - first..to - first, input, p.bias, out, scratch);
                        }
                    }
                    first = end;
                }
            }
        };
        if threads == 1 {
            pool.solo(job)
        } else {
            pool.run(job)
        }
        // SAFETY: the job has ended.
        products().for_each(|p| unsafe { p.matrix.finish() });
    }
}
