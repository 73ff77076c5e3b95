//! Matrix products.

use super::CudaBackend;
use super::attention::FEW_ROWS;
use super::driver::{Launch, Product};
use super::params::{self, Address, Blocks, Dequantize, Finish, Target};
use super::weights::{Dense, Held, THREADS};
use crate::Result;
use crate::backend::{Activation, Buffer, Projection, Source, Stack};
use crate::quant::BlockType;

/// Threads of `row_product`.
const ROW_THREADS: usize = 512;

/// Values of a step of it, and bytes of its warps' sums: ROW_STEP and SUMS_BYTES of products.cuh.
const ROW_STEP: usize = 2048;
const ROW_SUMS: usize = ROW_THREADS * 33 * 4;

/// Bytes of shared memory that kernels declare, whole lines of 128: RowShared of products.cuh, and `block_sum`'s of `dense_product`.
const ROW_OWN: usize = 4480;
const DENSE_OWN: usize = 128;

/// Threads of `many_product_*` at most, columns that a warp takes at once, and the rows of a matrix that a block takes.
const MANY_THREADS: usize = 256;
const MANY_COLUMNS: usize = 256;
const MANY_ROWS: usize = 32;

/// Rows up to which blocks are widened on the way; for more they are first made f16.
const FEW_PRODUCTS: usize = 64;

/// Rows of x that a block of `dense_product` takes, at most.
const DENSE_ROWS: usize = 4;

/// Rows of x that a block of `by_head` takes.
const BY_HEAD_ROWS: usize = 8;

/// Bytes of a part of a matrix as f16.
const DENSE_BYTES: usize = 64 << 20;

/// Matrices that one launch multiplies.
const AT_ONCE: usize = 3;

/// Two products of one row that wait for what comes next: an activation of both, it may be.
pub(super) struct Pair {
    source: params::Source,
    pair: [Wanted<Blocks>; 2],
    gate: Buffer,
    up: Buffer,
}

/// A product that is asked for, in addresses.
#[derive(Clone, Copy)]
pub(super) struct Wanted<M> {
    pub matrix: M,
    pub bias: Address,
    pub to: Address,
    pub sum: Address,
}

/// Rows as f16, and the powers of two that they were divided by.
#[derive(Clone, Copy)]
pub(super) struct Narrow {
    x: Address,
    scales: Address,
    columns: usize,
}

/// Results in the order of the matrices that make them: those of matrix m are order[offsets[m] .. offsets[m + 1]].
#[derive(Clone, Copy)]
pub(super) struct Groups {
    pub order: Address,
    pub offsets: Address,
    pub matrices: usize,
    pub results: usize,
}

impl CudaBackend {
    /// What is multiplied, as kernels take it.
    pub(super) fn source(&mut self, source: Source) -> Result<params::Source> {
        let columns = self.widths[source.buffer().0] as i32;
        let mut made = params::Source { columns, share: 1, ..params::Source::default() };
        match source {
            Source::Buffer(buffer) => made.x = self.buffer(buffer),
            Source::RmsNorm { from, weight, epsilon, to } => {
                let to = self.target(to)?;
                // only experts look at it again
                made.made = if self.has_experts { to } else { 0 };
                (made.x, made.weight, made.epsilon) = (self.buffer(from), self.vector(weight), epsilon);
            }
            Source::Gated { gate, up, activation } if self.gates(gate, up, activation)? => {
                made.x = self.buffer(gate)
            }
            Source::Gated { gate, up, activation } if self.present == 1 => {
                made.x = self.activate(self.buffer(gate), self.buffer(up), activation, columns as usize)?;
            }
            Source::Gated { gate, up, activation } => {
                (made.x, made.up) = (self.buffer(gate), self.buffer(up));
                made.activation = activation.into();
            }
        }
        Ok(made)
    }

    /// [`Backend::linear`](crate::backend::Backend::linear)
    pub(super) fn multiply(&mut self, source: Source, projections: &[Projection]) -> Result<()> {
        self.settle()?;
        let source = self.source(source)?;
        let (mut blocks, mut dense) = (Vec::new(), Vec::new());
        for projection in projections {
            let to = self.target(projection.to)?;
            let sum = projection.sum.map_or(0, |sum| self.buffer(sum));
            let bias = self.optional(projection.bias);
            match self.held(projection.matrix) {
                Held::Blocks(matrix) => blocks.push(Wanted { matrix, bias, to, sum }),
                Held::Dense(matrix) => dense.push(Wanted { matrix, bias, to, sum }),
            }
        }
        let mut narrowed = None;
        for wanted in &dense {
            if self.present > FEW_ROWS
                && wanted.matrix.kind == BlockType::F16
                && wanted.matrix.columns % 8 == 0
            {
                let x = self.narrow_once(&source, &mut narrowed)?;
                self.multiply_f16(x, wanted)?;
            } else {
                self.multiply_dense(source, wanted, 0, self.present)?;
            }
        }
        if blocks.is_empty() {
            return Ok(());
        }
        match self.present {
            0 => Ok(()),
            1 if dense.is_empty() && self.can_pair(&blocks) => {
                let pair = [blocks[0], blocks[1]];
                self.pair = Some(Pair { source, pair, gate: projections[0].to, up: projections[1].to });
                Ok(())
            }
            1 if self.row_fits(source.columns as usize) => {
                blocks.chunks(AT_ONCE).try_for_each(|part| self.multiply_row(source, part, None, 0, 1))
            }
            1..=FEW_PRODUCTS => {
                let x = self.narrow_once(&source, &mut narrowed)?;
                blocks.chunks(AT_ONCE).try_for_each(|part| self.multiply_few(x, part))
            }
            _ => {
                let x = self.narrow_once(&source, &mut narrowed)?;
                blocks.iter().try_for_each(|wanted| self.multiply_many(x, wanted))
            }
        }
    }

    /// x = activation(x, up), so many values; for `row_product`, which takes rows as they are.
    pub(super) fn activate(
        &mut self,
        x: Address,
        up: Address,
        activation: Activation,
        len: usize,
    ) -> Result<Address> {
        let p = params::Activate { x, up, activation: activation.into(), len: len as i32 };
        let grid = [len.div_ceil(THREADS), 1, 1];
        self.launch(Launch { kernel: "activate", grid, threads: THREADS, shared: 0 }, &p)?;
        Ok(x)
    }

    /// The present rows as f16, made when they are first asked for.
    fn narrow_once(&mut self, source: &params::Source, made: &mut Option<Narrow>) -> Result<Narrow> {
        match *made {
            Some(narrow) => Ok(narrow),
            None => Ok(*made.insert(self.narrow(source, self.present)?)),
        }
    }

    /// So many rows as f16.
    pub(super) fn narrow(&mut self, source: &params::Source, rows: usize) -> Result<Narrow> {
        let columns = source.columns as usize;
        let x = self.room(2 * rows * columns, |this| &mut this.scratch.narrow)?;
        let scales = self.room(4 * rows, |this| &mut this.scratch.scales)?;
        let p = params::Prepare { source: *source, to: x, scales };
        self.launch(Launch { kernel: "prepare_rows", grid: [rows, 1, 1], threads: THREADS, shared: 0 }, &p)?;
        Ok(Narrow { x, scales, columns })
    }

    /// Whether two products may be those of a gated feed-forward, which one launch makes with what stands between them.
    pub(super) fn can_pair(&self, wanted: &[Wanted<Blocks>]) -> bool {
        let [gate, up] = wanted else { return false };
        let shape = |w: &Wanted<Blocks>| (w.matrix.format, w.matrix.rows, w.matrix.columns);
        let rows = gate.matrix.rows as usize;
        let most = ROW_THREADS / 2 * self.driver.multiprocessors().min(rows);
        let fits = rows <= most && self.row_fits(gate.matrix.columns as usize);
        shape(gate) == shape(up) && gate.sum == 0 && up.sum == 0 && fits
    }

    /// Whether a block of `row_product` has room for so long a row; else one row goes where few go.
    pub(super) fn row_fits(&self, columns: usize) -> bool {
        row_shared(columns) + ROW_OWN <= self.driver.shared_memory()
    }

    /// Launches what waits for its activation, if it is that of these buffers.
    fn gates(&mut self, gate: Buffer, up: Buffer, activation: Activation) -> Result<bool> {
        match self.pair.take_if(|pair| pair.gate == gate && pair.up == up) {
            Some(Pair { source, pair, .. }) => {
                self.multiply_row(source, &pair, Some(activation), 0, 1)?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Launches what waits for an activation that does not come.
    pub(super) fn settle_pair(&mut self) -> Result<()> {
        match self.pair.take() {
            Some(Pair { source, pair, .. }) => self.multiply_row(source, &pair, None, 0, 1),
            None => Ok(()),
        }
    }

    /// One row, or `results` products of rows with matrices that `ids` names. With an activation two matrices, and where the
    /// first's result would go there is activation(first, second).
    pub(super) fn multiply_row(
        &mut self,
        source: params::Source,
        wanted: &[Wanted<Blocks>],
        pair: Option<Activation>,
        ids: Address,
        results: usize,
    ) -> Result<()> {
        let count = wanted.len() as i32;
        let pair = pair.map(params::Activation::from);
        let mut p =
            params::RowProduct { source, ids, count, pair: pair.unwrap_or_default(), ..Default::default() };
        let blocks = match pair {
            Some(_) => {
                let blocks = self.driver.multiprocessors().min(wanted[0].matrix.rows as usize);
                vec![(0, blocks), (0, 0)]
            }
            None => self.shares(wanted),
        };
        for ((to, wanted), (first, blocks)) in p.targets.iter_mut().zip(wanted).zip(&blocks) {
            *to = target(wanted, *first, *blocks);
        }
        let grid = [blocks.iter().map(|(_, blocks)| blocks).sum(), results, 1];
        let shared = row_shared(source.columns as usize);
        self.launch(Launch { kernel: "row_product", grid, threads: ROW_THREADS, shared }, &p)
    }

    /// Which blocks of a grid each matrix gets, by their bytes: one for each multiprocessor, as far as there are rows.
    fn shares(&self, wanted: &[Wanted<Blocks>]) -> Vec<(usize, usize)> {
        let bytes =
            |w: &Wanted<Blocks>| w.matrix.blocks as usize * super::planes::block_bytes(w.matrix.format);
        let (all, count) = (wanted.iter().map(bytes).sum::<usize>().max(1), self.driver.multiprocessors());
        let (mut before, mut first) = (0, 0);
        let mut shares = Vec::new();
        for (i, w) in wanted.iter().enumerate() {
            before += bytes(w);
            let left = wanted.len() - 1 - i;
            let end =
                (count * before).div_ceil(all).clamp(first + 1, count.saturating_sub(left).max(first + 1));
            let blocks = (end - first).min(w.matrix.rows as usize);
            shares.push((first, blocks));
            first += blocks;
        }
        shares
    }

    /// Up to [`FEW_PRODUCTS`] rows.
    fn multiply_few(&mut self, narrow: Narrow, wanted: &[Wanted<Blocks>]) -> Result<()> {
        let rows = self.present;
        let p = params::ManyProduct { rows: rows as i32, ..Default::default() };
        let tile = tile_of(rows);
        self.multiply_tiles(narrow, wanted, p, tile, rows.div_ceil(tile))
    }

    /// Each result's row, of which `share` results follow each other, with the result's own matrix of some stacks.
    pub(super) fn multiply_groups(
        &mut self,
        narrow: Narrow,
        wanted: &[Wanted<Blocks>],
        groups: Groups,
        share: i32,
    ) -> Result<()> {
        let Groups { order, offsets, matrices, results } = groups;
        let p = params::ManyProduct { order, offsets, share, ..Default::default() };
        // twice the mean: shares are uneven, and each tile more widens the blocks again
        let tile = tile_of(2 * results.div_ceil(matrices));
        self.multiply_tiles(narrow, wanted, p, tile, matrices)
    }

    /// `many_product_*` of one row of the grid, or of several.
    fn multiply_tiles(
        &mut self,
        narrow: Narrow,
        wanted: &[Wanted<Blocks>],
        mut p: params::ManyProduct,
        tile: usize,
        grid_rows: usize,
    ) -> Result<()> {
        let kernel = match tile {
            8 => "many_product_8",
            16 => "many_product_16",
            _ => "many_product_32",
        };
        (p.x, p.scales, p.columns) = (narrow.x, narrow.scales, narrow.columns as i32);
        p.count = wanted.len() as i32;
        let mut first = 0;
        for (to, wanted) in p.targets.iter_mut().zip(wanted) {
            let blocks = (wanted.matrix.rows as usize).div_ceil(MANY_ROWS);
            *to = target(wanted, first, blocks);
            first += blocks;
        }
        // no warps that would find no columns: narrow matrices' blocks leave room for others
        let threads = (32 * narrow.columns.div_ceil(MANY_COLUMNS)).min(MANY_THREADS);
        let shared = threads / 32 * MANY_ROWS * tile * 4;
        self.launch(Launch { kernel, grid: [first, grid_rows, 1], threads, shared }, &p)
    }

    /// Any number of rows: part by part the matrix becomes f16, and is multiplied.
    fn multiply_many(&mut self, x: Narrow, wanted: &Wanted<Blocks>) -> Result<()> {
        let matrix = wanted.matrix;
        let (rows, columns) = (matrix.rows as usize, matrix.columns as usize);
        // the library's fast kernels want rows of the product that begin at multiples of 16 bytes
        let part = (DENSE_BYTES / (2 * columns) / 256 * 256).max(256).min(rows);
        let dense = self.room(2 * part * columns, |this| &mut this.scratch.dense)?;
        for first in (0..rows).step_by(part) {
            let part = part.min(rows - first);
            let p = Dequantize { matrix, to: dense, first: first as i32, rows: part as i32 };
            let grid = [(part * columns.div_ceil(64)).div_ceil(THREADS), 1, 1];
            self.launch(Launch { kernel: "dequantize", grid, threads: THREADS, shared: 0 }, &p)?;
            self.multiply_part(x, dense, rows, first, part, wanted)?;
        }
        Ok(())
    }

    /// A matrix of f16.
    fn multiply_f16(&mut self, x: Narrow, wanted: &Wanted<Dense>) -> Result<()> {
        let Dense { at, rows, .. } = wanted.matrix;
        self.multiply_part(x, at, rows, 0, rows, wanted)
    }

    /// Rows first .. first + part of a matrix, f16 at `dense`.
    fn multiply_part<M>(
        &mut self,
        Narrow { x, scales, columns }: Narrow,
        dense: Address,
        rows: usize,
        first: usize,
        part: usize,
        wanted: &Wanted<M>,
    ) -> Result<()> {
        let count = self.present;
        let y = self.room(4 * count * part, |this| &mut this.scratch.product)?;
        if self.before_launch()? {
            let product = Product { matrix: dense, x, y, rows: part, columns, count };
            // SAFETY: memory of these sizes was reserved above, or belongs to the matrix.
            unsafe { self.driver.product(product)? };
        }
        let from = |at: Address| if at == 0 { 0 } else { at + 4 * first as Address };
        let p = Finish {
            y,
            scales,
            bias: from(wanted.bias),
            to: from(wanted.to),
            sum: from(wanted.sum),
            columns: part as i32,
            stride: rows as i32,
        };
        let grid = [part.div_ceil(THREADS), count, 1];
        self.launch(Launch { kernel: "finish_product", grid, threads: THREADS, shared: 0 }, &p)
    }

    /// A matrix of plain numbers; with `ids` `count` products of rows with those that it names.
    pub(super) fn multiply_dense(
        &mut self,
        source: params::Source,
        wanted: &Wanted<Dense>,
        ids: Address,
        count: usize,
    ) -> Result<()> {
        let Dense { at, rows, columns, .. } = wanted.matrix;
        // a row too long for shared memory is read where it is
        let room = self.driver.shared_memory().saturating_sub(DENSE_OWN) / (4 * columns);
        let staged = room.min(if ids == 0 { DENSE_ROWS.min(count) } else { 1 });
        let tile = staged.max(1);
        let p = params::DenseProduct {
            source,
            matrix: at,
            bias: wanted.bias,
            to: wanted.to,
            sum: wanted.sum,
            ids,
            kind: wanted.matrix.code(),
            rows: rows as i32,
            count: count as i32,
            tile: tile as i32,
            staged: i32::from(staged > 0),
        };
        let tiles = if ids == 0 { count.div_ceil(tile) } else { count };
        let blocks = rows.div_ceil(THREADS / 32).min(2 * self.driver.multiprocessors());
        let shared = staged * columns * 4;
        self.launch(
            Launch { kernel: "dense_product", grid: [blocks, tiles, 1], threads: THREADS, shared },
            &p,
        )
    }

    /// [`Backend::linear_by_head`](crate::backend::Backend::linear_by_head)
    pub(super) fn multiply_by_head(&mut self, matrices: Stack, from: Buffer, to: Buffer) -> Result<()> {
        self.settle()?;
        let Held::Dense(dense) = self.stacks[matrices.0] else {
            panic!("matrices of heads are plain numbers")
        };
        let (heads, from_width) = (dense.matrices, self.widths[from.0]);
        assert!(from_width.is_multiple_of(heads), "{heads} heads in a row of {from_width}");
        let rows = self.present;
        let to = self.target(to)?;
        let p = params::ByHead {
            from: self.buffer(from),
            matrices: dense.at,
            to,
            f32: i32::from(dense.kind == BlockType::F32),
            heads: heads as i32,
            height: dense.rows as i32,
            columns: dense.columns as i32,
            from_dim: (from_width / heads) as i32,
            rows: rows as i32,
        };
        let grid = [heads, rows.div_ceil(BY_HEAD_ROWS), 1];
        let shared = BY_HEAD_ROWS * dense.columns * 4;
        self.launch(Launch { kernel: "by_head", grid, threads: THREADS, shared }, &p)
    }
}

impl From<Activation> for params::Activation {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::SwiGlu => params::Activation { kind: 1, ..Default::default() },
            Activation::Clamped { alpha, limit } => params::Activation { kind: 2, alpha, limit },
        }
    }
}

/// Bytes of shared memory that `row_product` is given.
fn row_shared(columns: usize) -> usize {
    let padded = columns.next_multiple_of(ROW_STEP);
    ROW_SUMS + padded + padded / 2
}

/// The rows of x in a tile that so many are taken in.
fn tile_of(rows: usize) -> usize {
    rows.next_power_of_two().clamp(8, 32)
}

fn target(wanted: &Wanted<Blocks>, first: usize, blocks: usize) -> Target {
    let Wanted { matrix, bias, to, sum } = *wanted;
    let (rows, blocks) = (matrix.rows, blocks.max(1) as i32);
    Target { matrix, bias, to, sum, first: first as i32, share: rows / blocks, more: rows % blocks, pad: 0 }
}
