//! Several matrix products of one input, with what comes before and after them, as one job of the pool.

use std::ops::Range;
use std::time::Instant;

use super::fetch::Trials;
use super::kernels::elementwise::{activate, norm_factor, scale};
use super::kernels::{
    self, ActivationKind, Activations, CHUNK, Isa, Output, PASS, Scratch, TILE, WeightMatrix,
};
use super::memory::Shared;
use super::pool::{Pool, Tasks, Worker};
use super::step::{FEW_ROWS, SMALL};
use crate::backend::Activation;

/// Multiply-adds that a thread claims at least: two or three µs of decoding. A claim itself may take half a µs.
const CLAIM: usize = 65_536;

/// What is multiplied.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// [rows, width]
    pub values: Shared<f32>,
    /// Rows of the step.
    pub rows: usize,
    /// Values of a row.
    pub width: usize,
    /// How `values` come to be.
    pub made: Made<'a>,
}

/// What happens to an input before it is multiplied.
#[derive(Clone, Copy)]
pub enum Made<'a> {
    /// Nothing.
    Already,
    /// It becomes the root-mean-square norm of `from`, which is other memory.
    RmsNorm {
        /// [rows, width]
        from: Shared<f32>,
        /// [width]
        weight: &'a [f32],
        /// Added to the mean of the squares.
        epsilon: f32,
    },
    /// It becomes `activation(itself, up)`.
    Gated {
        /// [rows, width]
        up: Shared<f32>,
        /// Which.
        activation: Activation,
    },
}

/// One product: `to = matrix * input + bias`, `to` as wide as the matrix has rows.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// The matrix.
    pub matrix: &'a WeightMatrix,
    /// Added to each row.
    pub bias: Option<&'a [f32]>,
    /// [input rows, matrix rows]
    pub to: Shared<f32>,
    /// What `to` is added to, of the same shape.
    pub sum: Option<Shared<f32>>,
    /// What `to` is the gate of.
    pub gated: Option<Gated<'a>>,
}

/// The other half of a gated product: `to = activation(to, matrix * input + bias)`.
#[derive(Clone, Copy)]
pub struct Gated<'a> {
    /// Of the same shape as the gate's.
    pub matrix: &'a WeightMatrix,
    /// Added to each row.
    pub bias: Option<&'a [f32]>,
    /// What is made of both.
    pub activation: Activation,
}

/// Memory for products, allocated once.
pub struct Workspace {
    /// How weights are best fetched.
    pub trials: Trials,
    /// Bytes of matrices that products may still interleave in this step.
    pub copies: u64,
    /// Of each kind of int8 that the matrices take.
    activations: Vec<Activations>,
    /// By thread.
    pub scratch: Vec<Scratch>,
}

impl Workspace {
    /// For inputs of up to `rows` rows to these matrices, and `threads` threads.
    pub fn new<'a>(rows: usize, matrices: impl Iterator<Item = &'a WeightMatrix>, threads: usize) -> Self {
        let mut widest = [(ActivationKind::I8, 0), (ActivationKind::I8Powers, 0)];
        for matrix in matrices {
            for (kind, columns) in &mut widest {
                if *kind == matrix.activation() {
                    *columns = matrix.columns().max(*columns);
                }
            }
        }
        let quantized = widest.into_iter().filter(|(_, columns)| *columns > 0);
        Workspace {
            trials: Trials::default(),
            copies: 0,
            activations: quantized.map(|(kind, columns)| Activations::new(kind, rows, columns)).collect(),
            scratch: (0..threads).map(|_| Scratch::new(rows)).collect(),
        }
    }

    /// Begins a step of `rows` rows, in which up to `copies` bytes of matrices may be interleaved. `is_comparable`: nothing is
    /// left to interleave.
    pub fn begin(&mut self, rows: usize, copies: u64, is_comparable: bool) {
        self.copies = copies;
        let fetch = self.trials.begin(rows, is_comparable);
        self.scratch.iter_mut().for_each(|scratch| scratch.fetch = fetch);
    }

    /// Computes the products that `product(0..count)` gives.
    ///
    /// First the threads share out the input to make and quantize it; then, in the same job, the tiles of all matrices. Each
    /// thread's share is the same part of every matrix's rows, and of the input's columns where these need nothing of each
    /// other: so most of what it takes is what it made in the product before, in its own caches. Up to
    /// [`copies`](Self::copies) bytes of the matrices are interleaved on the way and taken off.
    pub fn multiply<'a>(
        &mut self,
        isa: Isa,
        pool: &Pool,
        input: Input<'_>,
        count: usize,
        product: impl Fn(usize) -> Product<'a> + Sync,
    ) {
        let Input { rows, width, .. } = input;
        let products = || (0..count).map(&product);
        let tile_counts = || products().map(|p| p.matrix.tiles());
        let matrices = || products().flat_map(|p| [Some(p.matrix), p.gated.map(|g| g.matrix)]).flatten();
        let asked_for = |kind| matrices().any(|matrix| matrix.activation() == kind);
        let mut quantized = false;
        for activations in self.activations.iter_mut().filter(|a| asked_for(a.kind())) {
            activations.begin(activations.kind(), rows, width);
            quantized = true;
        }
        let work: usize = matrices().map(WeightMatrix::rows).sum::<usize>() * rows * width;
        let threads = if work < SMALL { 1 } else { pool.threads() };
        let parts = Parts::new(input, threads);
        let make = quantized || !matches!(input.made, Made::Already);
        let to_make = Tasks::new(if make { rows * parts.count } else { 0 }, 1, threads);
        let tiles = Tasks::of_lists(tile_counts(), least_tiles(input, tile_counts().sum(), threads), threads);

        for matrix in matrices() {
            // SAFETY: the job below multiplies each tile once, and `finish` follows it.
            self.copies = unsafe { matrix.begin(self.copies) };
        }
        let began = self.trials.is_on().then(Instant::now);
        let (activations, scratch) = (&self.activations, Shared::of(&mut self.scratch));
        let job = |worker: &Worker| {
            for run in to_make.claims(worker) {
                for task in run {
                    let (row, columns) = (task % rows, parts.columns(task / rows));
                    // SAFETY: the part lies in the input, and belongs to one task.
                    unsafe {
                        input.make(isa, row, columns.clone());
                        for activations in activations.iter().filter(|a| asked_for(a.kind())) {
                            let x = input.part(row, columns.clone());
                            activations.quantize_part(isa, row, columns.start, x);
                        }
                    }
                }
            }
            worker.wait(&to_make);
            // SAFETY: one scratch for each thread of the pool.
            let scratch = unsafe { &mut *scratch.at(worker.index) };
            for run in tiles.claims(worker) {
                tiles.in_lists(run, tile_counts(), |i, tiles| {
                    // SAFETY: the input was made; a tile belongs to one task.
                    unsafe { product(i).multiply(isa, tiles, input, activations, scratch) }
                });
            }
        };
        if threads == 1 {
            pool.solo(job)
        } else {
            pool.run(job)
        }
        if let Some(began) = began {
            self.trials.took(began.elapsed());
        }
        // SAFETY: the job has ended.
        matrices().for_each(|matrix| unsafe { matrix.finish() });
    }
}

/// Tiles that a thread claims at least, or a multiple of so many. For many rows it is whole passes, of which each reads the
/// whole input: by counting, runs of any length make 17 of 48 tiles, and on Granite Rapids a prompt took 5% longer. But not
/// where a thread has only some of them, and one more or less than the others would take longer.
fn least_tiles(input: Input<'_>, tiles: usize, threads: usize) -> usize {
    if input.rows > FEW_ROWS && tiles / threads >= 8 * PASS {
        return PASS;
    }
    (CLAIM / (TILE * input.rows * input.width).max(1)).max(1)
}

/// How rows are divided into parts of whole chunks.
struct Parts {
    count: usize,
    part: usize,
    width: usize,
}

impl Parts {
    /// Whole rows if there are so many that no cache keeps what a thread made of them, or if they are norms, which take a whole
    /// row to make any of it; but a part for each thread at least.
    fn new(input: Input<'_>, threads: usize) -> Self {
        let Input { rows, width, made, .. } = input;
        let is_by_row = rows > FEW_ROWS || matches!(made, Made::RmsNorm { .. });
        let count = if is_by_row { threads.div_ceil(rows.max(1)) } else { threads };
        let part = width.div_ceil(count).next_multiple_of(CHUNK);
        Parts { count: width.div_ceil(part), part, width }
    }

    fn columns(&self, index: usize) -> Range<usize> {
        index * self.part..((index + 1) * self.part).min(self.width)
    }
}

impl Input<'_> {
    /// Makes these columns of a row.
    ///
    /// # Safety
    /// They lie in the memory, and nobody else uses them meanwhile.
    unsafe fn make(&self, isa: Isa, row: usize, columns: Range<usize>) {
        let (row, n) = (row * self.width, columns.len());
        let first = row + columns.start;
        // SAFETY: the caller's promise; `from` and `up` have the same shape, `weight` was checked for the width.
        unsafe {
            match self.made {
                Made::Already => {}
                Made::RmsNorm { from, weight, epsilon } => {
                    // the same for each part of a row: to compute it again is cheaper than another phase
                    let factor = norm_factor(isa, from.at(row), self.width, epsilon);
                    let weight = weight[columns].as_ptr();
                    scale(isa, from.at(first), factor, weight, self.values.at(first), n);
                }
                Made::Gated { up, activation } => {
                    let gate = self.values.at(first);
                    activate(isa, activation, gate, up.at(first), [self.width; 2], 1, n);
                }
            }
        }
    }

    /// Rows `tiles` of `matrix * input + bias`, for all rows of the input.
    ///
    /// # Safety
    /// The input is made, and `activations` are of it; nobody else uses these places of `out` meanwhile.
    unsafe fn multiply(
        &self,
        isa: Isa,
        (matrix, bias): (&WeightMatrix, Option<&[f32]>),
        tiles: Range<usize>,
        activations: &[Activations],
        out: Output,
        scratch: &mut Scratch,
    ) {
        let Input { values, rows, width, .. } = *self;
        let x = match matrix.activation() {
            ActivationKind::F32 => {
                // SAFETY: the caller's promise.
                let x = unsafe { std::slice::from_raw_parts(values.at(0), rows * width) };
                kernels::Input::Floats { x, width }
            }
            kind => {
                let of_kind = activations.iter().find(|a| a.kind() == kind);
                kernels::Input::Quantized(of_kind.expect("activations of each kind that matrices take"))
            }
        };
        // SAFETY: the caller's promise.
        unsafe { matrix.multiply(isa, tiles, x, bias, out, scratch) }
    }

    /// These columns of a row.
    ///
    /// # Safety
    /// They lie in the memory, and nobody writes there meanwhile.
    unsafe fn part(&self, row: usize, columns: Range<usize>) -> &[f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.values.at(row * self.width + columns.start), columns.len()) }
    }
}

impl Product<'_> {
    /// Computes some tiles for all rows.
    ///
    /// # Safety
    /// The input is made and `activations` are of it; `to` and `sum` have a row for each of the input's; nobody else
    /// uses these tiles' columns of them meanwhile.
    unsafe fn multiply(
        &self,
        isa: Isa,
        tiles: Range<usize>,
        input: Input<'_>,
        activations: &[Activations],
        scratch: &mut Scratch,
    ) {
        let (height, gate) = (self.matrix.rows(), (self.matrix, self.bias));
        let columns = |tiles: &Range<usize>| tiles.start * TILE..(tiles.end * TILE).min(height);
        // SAFETY: the caller's promise.
        unsafe {
            let out = Output { to: self.to.at(0), stride: height };
            let Some(Gated { matrix, bias, activation }) = self.gated else {
                input.multiply(isa, gate, tiles.clone(), activations, out, scratch);
                self.matrix.drop_copied(tiles.clone());
                return self.add(columns(&tiles), input.rows);
            };
            assert!(input.rows * PASS <= scratch.gated.len(), "{} rows, scratch for less", input.rows);
            for first in tiles.clone().step_by(PASS) {
                let pass = first..(first + PASS).min(tiles.end);
                let Range { start, end } = columns(&pass);
                input.multiply(isa, gate, pass.clone(), activations, out, scratch);
                let mut gated = std::mem::take(&mut scratch.gated);
                let gated_at = gated.as_mut_ptr().cast::<f32>();
                let up = Output { to: gated_at.wrapping_sub(start), stride: PASS * TILE };
                input.multiply(isa, (matrix, bias), pass, activations, up, scratch);
                let (to, strides) = (self.to.at(start), [height, PASS * TILE]);
                activate(isa, activation, to, gated_at, strides, input.rows, end - start);
                scratch.gated = gated;
            }
            [self.matrix, matrix].into_iter().for_each(|matrix| matrix.drop_copied(tiles.clone()));
        }
    }

    /// Adds these columns of the result to the sum, if there is one.
    ///
    /// # Safety
    /// As in [`multiply`](Self::multiply).
    unsafe fn add(&self, columns: Range<usize>, rows: usize) {
        let Some(sum) = self.sum else { return };
        for row in 0..rows {
            let first = row * self.matrix.rows() + columns.start;
            // SAFETY: the caller's promise.
            let (sum, to) = unsafe {
                let to = std::slice::from_raw_parts(self.to.at(first), columns.len());
                (std::slice::from_raw_parts_mut(sum.at(first), columns.len()), to)
            };
            sum.iter_mut().zip(to).for_each(|(sum, to)| *sum += to);
        }
    }
}
