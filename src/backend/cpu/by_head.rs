//! Matrices by head: what latent attention has on its way into the cache's space and back.

use super::kernels::{ActivationKind, Activations, Input, Isa, Output, WeightMatrix};
use super::linear;
use super::memory::Shared;
use super::pool::{Pool, Tasks};
use crate::backend::Stacked;

/// Memory for them, allocated once: by thread, a head of all rows.
pub struct Workspace {
    inputs: Vec<Vec<f32>>,
    activations: Vec<Activations>,
}

/// Rows of heads: [rows, heads, width of a head].
#[derive(Clone, Copy)]
pub struct HeadRows {
    /// The first value.
    pub values: Shared<f32>,
    /// Values of a head.
    pub width: usize,
}

impl Workspace {
    /// For up to `rows` rows and these stacks.
    pub fn new<'a>(
        rows: usize,
        stacks: impl Iterator<Item = (&'a [WeightMatrix], Stacked)>,
        threads: usize,
    ) -> Self {
        let of_heads = stacks.filter(|(_, of)| *of == Stacked::Heads);
        let Some(columns) = of_heads.map(|(matrices, _)| matrices[0].columns()).max() else {
            return Workspace { inputs: Vec::new(), activations: Vec::new() };
        };
        Workspace {
            // each its own zeros of the system: memory is committed for threads that get a head
            inputs: (0..threads).map(|_| vec![0.0; rows * columns]).collect(),
            activations: (0..threads).map(|_| Activations::new(ActivationKind::I8, rows, columns)).collect(),
        }
    }

    /// Multiplies head h of each row of `from` by matrix h, into head h of `to`; what a head has behind the matrix's
    /// columns is copied behind its rows. A head belongs to one thread.
    #[allow(clippy::too_many_arguments)]
    pub fn multiply(
        &mut self,
        isa: Isa,
        pool: &Pool,
        matrices: &[WeightMatrix],
        rows: usize,
        from: HeadRows,
        to: HeadRows,
        linear: &mut linear::Workspace,
    ) {
        let heads = matrices.len();
        assert!(
            matrices.iter().all(|matrix| fits(matrix, from.width, to.width)),
            "heads of {} and {}",
            from.width,
            to.width
        );
        let tasks = Tasks::new(heads, 1, pool.threads());
        for matrix in matrices {
            // SAFETY: each matrix is multiplied once below, by one thread, and `finish` follows.
            linear.copies = unsafe { matrix.begin(linear.copies) };
        }
        let inputs = Shared::of(&mut self.inputs);
        let activations = Shared::of(&mut self.activations);
        let scratch = Shared::of(&mut linear.scratch);
        pool.run(|worker| {
            // SAFETY: one of each for each thread of the pool.
            let (input, activations, scratch) = unsafe {
                let at = worker.index;
                (&mut *inputs.at(at), &mut *activations.at(at), &mut *scratch.at(at))
            };
            for head in tasks.claims(worker).flatten() {
                let matrix = &matrices[head];
                let (columns, height) = (matrix.columns(), matrix.rows());
                let rest = from.width - columns;
                for row in 0..rows {
                    let first = (row * heads + head) * from.width;
                    // SAFETY: row and head lie in `from` and `to`, whose widths were checked; a head belongs to one task.
                    unsafe {
                        let to = to.values.at((row * heads + head) * to.width);
                        let x = std::slice::from_raw_parts(from.values.at(first), from.width);
                        input[row * columns..][..columns].copy_from_slice(&x[..columns]);
                        std::ptr::copy_nonoverlapping(x[columns..].as_ptr(), to.add(height), rest);
                    }
                }
                let x = &input[..rows * columns];
                let x = match matrix.activation() {
                    ActivationKind::F32 => Input::Floats { x, width: columns },
                    kind @ (ActivationKind::I8 | ActivationKind::I8Powers) => {
                        activations.begin(kind, rows, columns);
                        for (row, x) in x.chunks_exact(columns).enumerate() {
                            // SAFETY: these activations are this thread's.
                            unsafe { activations.quantize(isa, row, x) };
                        }
                        Input::Quantized(activations)
                    }
                };
                // SAFETY: as above; rows of `to` lie `heads` heads apart.
                unsafe {
                    let out = Output { to: to.values.at(head * to.width), stride: heads * to.width };
                    matrix.multiply(isa, 0..matrix.tiles(), x, None, out, scratch);
                }
                matrix.drop_copied(0..matrix.tiles());
            }
        });
        // SAFETY: the job has ended.
        matrices.iter().for_each(|matrix| unsafe { matrix.finish() });
    }
}

/// Whether a head of `from` has the matrix's columns, and one of `to` room for its rows and what is copied behind them.
fn fits(matrix: &WeightMatrix, from: usize, to: usize) -> bool {
    from.checked_sub(matrix.columns()).is_some_and(|rest| matrix.rows() + rest <= to)
}
