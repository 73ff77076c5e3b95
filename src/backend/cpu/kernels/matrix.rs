//! Weight matrices, activations, and their product: the safe-to-hold side of the kernels.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use super::super::memory::{Arena, Memory};
use super::super::pool::Pool;
use super::entry_points;
use super::generic::few_tokens;
use super::generic::float::{self, Float, FloatProduct};
use super::generic::formats::{CHUNK, Format, TILE, Unpacked};
use super::generic::interleave::{self, RowPointers};
use super::generic::many_tokens::{self, PASS};
use super::generic::quantized::{self, Bytes, Fetch, Product, QuantizedChunk};
use super::generic::with_format;
use super::isa::{Isa, Processor};
use crate::checkpoint::Tensor;
use crate::quant::BlockType;
use crate::{Error, Result};

entry_points! {
    /// [`few_tokens::multiply`] on an ISA.
    fn multiply_few<F: Format>(p: &Product) = few_tokens::multiply;
    /// [`few_tokens::suits`] on an ISA.
    fn suits_few<F: Format>(tokens: usize, interleaved: bool, processor: Processor) -> bool = few_tokens::suits;
    /// [`many_tokens::multiply`] on an ISA.
    fn multiply_many<F: Format>(p: &Product) = many_tokens::multiply;
    /// [`interleave::interleave`] on an ISA.
    fn interleave<F: Format>(rows: &RowPointers, skip: usize, blocks: usize, out: *mut u8) = interleave::interleave;
    /// [`float::multiply_float`] on an ISA.
    fn multiply_float<W: Float>(p: &FloatProduct) = float::multiply_float;
    /// [`quantized::quantize`] on an ISA.
    fn quantize(
        x: *const f32,
        columns: usize,
        powers: bool,
        out: *mut QuantizedChunk,
        stride: usize,
    ) = quantized::quantize;
}

/// Bytes that a thread interleaves at a time when a matrix is settled.
const SETTLE_BYTES: usize = 1 << 18;

/// How a matrix is held. Results are equal to the bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// In memory of its own, 16 rows interleaved: the fast one. It is copied from the file in the course of products
    /// ([`WeightMatrix::begin`]). (F32, F16 and BF16 stay as in the file.)
    Interleaved,
    /// In the mapped file: takes no memory of its own, and is interleaved on the way.
    AsInFile,
}

/// What a matrix multiplies with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationKind {
    /// f32, as they are.
    F32,
    /// int8 with a scale for each 16 values: what blocks of 32 take.
    I8,
    /// int8 with a scale for each 256 values, and a power of two for each 32 of them: what super-blocks take. Of two
    /// scales in a product one then costs no multiplication.
    I8Powers,
}

impl ActivationKind {
    /// What matrices of this type multiply with.
    pub const fn of(kind: BlockType) -> Self {
        match kind {
            BlockType::F32 | BlockType::F16 | BlockType::BF16 => ActivationKind::F32,
            _ if kind.block_len() == CHUNK => ActivationKind::I8Powers,
            _ => ActivationKind::I8,
        }
    }
}

/// A matrix [rows, columns], ready for products.
#[derive(Debug)]
pub struct WeightMatrix {
    rows: usize,
    columns: usize,
    kind: BlockType,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    Interleaved(Copied),
    AsInFile(Tensor),
}

/// A matrix on its way from the file into memory of its own.
#[derive(Debug)]
struct Copied {
    /// Tiles of 16 rows, interleaved; the last is filled up with its last row. Committed as tiles are copied.
    tiles: Memory,
    /// Tiles below are there for good.
    ready: AtomicUsize,
    /// Tiles from `ready` to here are copied by the present product.
    end: AtomicUsize,
    tensor: Tensor,
}

impl WeightMatrix {
    /// Takes a tensor; reads nothing of it. For [`Layout::Interleaved`] memory is reserved.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the columns are no whole blocks, [`Error::Memory`] if there is none for the copy.
    pub fn new(tensor: &Tensor, layout: Layout) -> Result<Self> {
        Self::in_memory(tensor, layout, |bytes, purpose| {
            let memory = Memory::new(bytes, purpose)?;
            memory.prefer_huge_pages();
            Ok(memory)
        })
    }

    /// [`new`](Self::new) beside other matrices.
    ///
    /// # Errors
    /// As there.
    pub fn new_in(arena: &mut Arena, tensor: &Tensor, layout: Layout) -> Result<Self> {
        Self::in_memory(tensor, layout, |bytes, purpose| arena.take(bytes, purpose))
    }

    fn in_memory(
        tensor: &Tensor,
        layout: Layout,
        reserve: impl FnOnce(usize, &str) -> Result<Memory>,
    ) -> Result<Self> {
        let (rows, columns, kind) = (tensor.rows(), tensor.columns(), tensor.kind);
        let is_whole = columns > 0 && columns.is_multiple_of(kind.block_len());
        if !is_whole || tensor.bytes().len() != rows * kind.row_bytes(columns) {
            return Err(Error::Unsupported(format!(
                "tensor {} has {} bytes, which are not {rows} rows of {columns} {kind} values",
                tensor.name,
                tensor.bytes().len()
            )));
        }
        let tensor = tensor.clone();
        let storage = match (layout, ActivationKind::of(kind)) {
            (Layout::Interleaved, ActivationKind::I8 | ActivationKind::I8Powers) => {
                let bytes = rows.next_multiple_of(TILE) * kind.row_bytes(columns);
                let tiles = reserve(bytes, &format!("tensor {}", tensor.name))?;
                let (ready, end) = (AtomicUsize::new(0), AtomicUsize::new(0));
                Storage::Interleaved(Copied { tiles, ready, end, tensor })
            }
            _ => Storage::AsInFile(tensor),
        };
        Ok(Self { rows, columns, kind, storage })
    }

    /// Interleaves at once what lies in memory, so that it is not there twice; what is mapped waits for the first products.
    ///
    /// # Panics
    /// If the CPU has not this ISA.
    pub fn settle(&mut self, isa: Isa, pool: &Pool) {
        assert!(isa.is_available(), "{isa:?}");
        let (tiles, least) = (self.tiles(), (SETTLE_BYTES / self.tile_bytes()).max(1));
        let Storage::Interleaved(copied) = &mut self.storage else { return };
        if !copied.tensor.is_in_memory() {
            return;
        }
        let place = &*copied;
        // SAFETY: nobody else has the matrix; a tile belongs to one task; the CPU has the ISA.
        pool.for_each(tiles, least, |tile| unsafe { place.copy(isa, tile) });
        (copied.ready, copied.end) = (AtomicUsize::new(tiles), AtomicUsize::new(tiles));
        copied.tensor = Tensor::from_bytes(&copied.tensor.name, self.kind, &[0, self.columns], vec![]);
    }

    /// Begins a product that copies up to `bytes` of the matrix, in whole tiles, to where it will be interleaved.
    /// Returns what is left of them.
    ///
    /// # Safety
    /// Until [`finish`](Self::finish) each tile is multiplied exactly once, and no other product of this matrix begins.
    pub unsafe fn begin(&self, bytes: u64) -> u64 {
        let Storage::Interleaved(copied) = &self.storage else { return bytes };
        let ready = copied.ready.load(Relaxed);
        let tile_bytes = self.tile_bytes() as u64;
        let tiles = bytes.div_ceil(tile_bytes).min((self.tiles() - ready) as u64);
        copied.end.store(ready + tiles as usize, Relaxed);
        bytes.saturating_sub(tiles * tile_bytes)
    }

    /// Gives back the file's pages of those of the tiles that the present product has copied: soon after, so that little
    /// is in memory twice, and of many tiles at once, as the system maps the neighbours of a page that is read.
    pub fn drop_copied(&self, tiles: Range<usize>) {
        let Storage::Interleaved(copied) = &self.storage else { return };
        let (ready, end) = copied.range();
        let (first, last) = (tiles.start.max(ready), tiles.end.min(end));
        if first < last {
            copied.tensor.drop_rows(first * TILE..(last * TILE).min(self.rows));
        }
    }

    /// Ends a product: what it copied is used from now on.
    ///
    /// # Safety
    /// All threads of the product have ended.
    pub unsafe fn finish(&self) {
        let Storage::Interleaved(copied) = &self.storage else { return };
        let (ready, end) = copied.range();
        if ready < end {
            copied.ready.store(end, Relaxed);
        }
    }

    /// The tensor, if products read it from a mapped file for good.
    pub fn mapped(&self) -> Option<&Tensor> {
        match &self.storage {
            Storage::AsInFile(tensor) if tensor.is_mapped() => Some(tensor),
            _ => None,
        }
    }

    /// Bytes that it takes in memory of its own in the end.
    pub fn interleaved_bytes(&self) -> u64 {
        match self.storage {
            Storage::Interleaved(_) => (self.tiles() * self.tile_bytes()) as u64,
            Storage::AsInFile(_) => 0,
        }
    }

    /// Bytes of them that products have yet to copy.
    pub fn bytes_to_copy(&self) -> u64 {
        match &self.storage {
            Storage::Interleaved(copied) => ((self.tiles() - copied.range().0) * self.tile_bytes()) as u64,
            Storage::AsInFile(_) => 0,
        }
    }

    /// Number of rows: the width of the result.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns: the width of the input.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// What it multiplies with.
    pub fn activation(&self) -> ActivationKind {
        ActivationKind::of(self.kind)
    }

    /// Number of tiles of 16 rows, the unit in which a product is divided among threads.
    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    /// Bytes of a tile, for dividing work.
    pub fn tile_bytes(&self) -> usize {
        TILE * self.kind.row_bytes(self.columns)
    }

    /// Computes rows `16 * tiles.start .. 16 * tiles.end` of the result for every row of the input: `out` row t gets
    /// `matrix * input row t + bias` at these places. Nothing is allocated.
    ///
    /// The same bits for every ISA, layout, division into tiles and number of input rows, however much is copied.
    ///
    /// # Safety
    /// Of the input's rows of results, `out.stride` values apart, the places of these tiles are there (others need not be); no other
    /// thread uses them meanwhile.
    ///
    /// # Panics
    /// If the input is of the wrong kind or width, `bias` has the wrong length, the tiles do not exist, or `scratch`
    /// is for fewer rows.
    pub unsafe fn multiply(
        &self,
        isa: Isa,
        tiles: Range<usize>,
        input: Input<'_>,
        bias: Option<&[f32]>,
        out: Output,
        scratch: &mut Scratch,
    ) {
        assert!(tiles.end <= self.tiles() && isa.is_available());
        assert!(bias.is_none_or(|bias| bias.len() == self.rows), "length of the bias");
        let bias = bias.map_or(std::ptr::null(), <[f32]>::as_ptr);
        // SAFETY: the ISA is available, the tiles are there; the rest is the caller's promise.
        unsafe {
            match input {
                Input::Quantized(x) => self.multiply_quantized(isa, tiles, x, bias, out, scratch),
                Input::Floats { x, width } => self.multiply_floats(isa, tiles, (x, width), bias, out),
            }
        }
    }

    /// [`multiply`](Self::multiply) with quantized activations.
    ///
    /// # Safety
    /// As there; the ISA is available, the tiles are there, `bias` is null or of as many values as there are rows.
    unsafe fn multiply_quantized(
        &self,
        isa: Isa,
        tiles: Range<usize>,
        x: &Activations,
        bias: *const f32,
        out: Output,
        scratch: &mut Scratch,
    ) {
        let (kind, columns) = (self.activation(), self.columns);
        assert_eq!((x.kind, x.columns), (kind, columns), "kind and width of the input");
        assert!(x.rows <= scratch.rows, "{} rows, scratch for {}", x.rows, scratch.rows);
        let mut product = Product {
            weights: Bytes::AsInFile(std::ptr::null()),
            rows: self.rows,
            columns,
            tiles: (0, 0),
            x: x.chunks.as_ptr().cast(),
            tokens: x.rows,
            fetch: scratch.fetch,
            processor: scratch.processor,
            bias,
            out: out.to,
            out_stride: out.stride,
            unpacked: scratch.unpacked.as_mut_ptr(),
            sums: scratch.sums.as_mut_ptr().cast(),
            interleaved: scratch.interleaved.as_mut_ptr().cast(),
            interleave: with_format!(self.kind, F => interleave::<F>, panic!("{} matrices take f32 activations", self.kind)),
            isa,
        };
        let mut multiply = |weights: Bytes, tiles: Range<usize>| {
            (product.weights, product.tiles) = (weights, (tiles.start, tiles.end));
            let interleaved = matches!(weights, Bytes::Interleaved(_));
            // SAFETY: the caller's promise; shapes were checked.
            unsafe {
                with_format!(self.kind, F => if suits_few::<F>(isa, x.rows, interleaved, product.processor) {
                    multiply_few::<F>(isa, &product)
                } else {
                    multiply_many::<F>(isa, &product)
                }, unreachable!("seen above"));
            }
        };
        let copied = match &self.storage {
            Storage::AsInFile(tensor) => return multiply(Bytes::AsInFile(tensor.bytes().as_ptr()), tiles),
            Storage::Interleaved(copied) => copied,
        };
        let (ready, end) = copied.range();
        let [ready, end] = [ready, end].map(|tile| tile.clamp(tiles.start, tiles.end));
        let interleaved = Bytes::Interleaved(copied.at(0));
        multiply(interleaved, tiles.start..ready);
        for first in (ready..end).step_by(PASS) {
            let pass = first..(first + PASS).min(end);
            // SAFETY: the caller of `begin` promised that each tile belongs to one thread.
            pass.clone().for_each(|tile| unsafe { copied.copy(isa, tile) });
            multiply(interleaved, pass);
        }
        multiply(Bytes::AsInFile(copied.tensor.bytes().as_ptr()), end..tiles.end);
    }

    /// [`multiply`](Self::multiply) with rows of `width` floats.
    ///
    /// # Safety
    /// As [`multiply_quantized`](Self::multiply_quantized).
    unsafe fn multiply_floats(
        &self,
        isa: Isa,
        tiles: Range<usize>,
        (x, width): (&[f32], usize),
        bias: *const f32,
        out: Output,
    ) {
        let Storage::AsInFile(tensor) = &self.storage else {
            panic!("{} matrices take quantized activations", self.kind)
        };
        assert_eq!(width, self.columns, "width of the input");
        assert!(x.len().is_multiple_of(width), "{} values in rows of {width}", x.len());
        let product = FloatProduct {
            weights: tensor.bytes().as_ptr(),
            rows: self.rows,
            columns: self.columns,
            tiles: (tiles.start, tiles.end),
            x: x.as_ptr(),
            x_stride: width,
            tokens: x.len() / width,
            bias,
            out: out.to,
            out_stride: out.stride,
        };
        // SAFETY: the caller's promise; shapes were checked.
        unsafe {
            match self.kind {
                BlockType::F32 => multiply_float::<float::F32>(isa, &product),
                BlockType::F16 => multiply_float::<float::F16>(isa, &product),
                BlockType::BF16 => multiply_float::<float::Bf16>(isa, &product),
                kind => panic!("{kind} matrices take quantized activations"),
            }
        }
    }
}

impl Copied {
    /// The tiles that the present product copies; those below are interleaved already.
    ///
    /// Relaxed, here and where they are set: a product's threads are started after [`WeightMatrix::begin`] and have
    /// ended before [`WeightMatrix::finish`], which orders these numbers and the tiles themselves.
    fn range(&self) -> (usize, usize) {
        (self.ready.load(Relaxed), self.end.load(Relaxed))
    }

    /// Where a byte of the interleaved tiles is.
    fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < self.tiles.len());
        // SAFETY: within the memory.
        unsafe { self.tiles.shared::<u8>().at(offset) }
    }

    /// Copies a tile.
    ///
    /// # Safety
    /// No other thread reads or writes this tile of the copy meanwhile.
    unsafe fn copy(&self, isa: Isa, tile: usize) {
        let (kind, rows) = (self.tensor.kind, self.tensor.rows());
        let row_bytes = kind.row_bytes(self.tensor.columns());
        let (blocks, out) = (row_bytes / kind.block_bytes(), self.at(tile * TILE * row_bytes));
        // SAFETY: the tensor has `rows` rows and the copy room for all tiles; the caller promises that this one is ours.
        unsafe {
            let from = RowPointers::new(self.tensor.bytes().as_ptr(), row_bytes, rows, tile);
            with_format!(kind, F => interleave::<F>(isa, &from, 0, blocks, out), unreachable!(
                "{kind} is not interleaved"
            ));
        }
    }
}

/// Input of a product: the rows of a step.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// Of the kind that [`WeightMatrix::activation`] says.
    Quantized(&'a Activations),
    /// [rows, width], for [`ActivationKind::F32`].
    Floats {
        /// The rows, one after the other.
        x: &'a [f32],
        /// Values of a row.
        width: usize,
    },
}

/// Where a product goes: [rows, stride].
#[derive(Clone, Copy)]
pub struct Output {
    /// The first row.
    pub to: *mut f32,
    /// From one row to the next.
    pub stride: usize,
}

// SAFETY: threads write to disjoint places, as `multiply` asks for.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

/// The quantized rows of a step.
pub struct Activations {
    /// [chunks of 256 columns][rows]: a chunk of all rows is read in one go.
    chunks: Box<[UnsafeCell<QuantizedChunk>]>,
    kind: ActivationKind,
    rows: usize,
    columns: usize,
}

// SAFETY: rows are written by one thread each, as `quantize` asks for.
unsafe impl Sync for Activations {}

impl Activations {
    /// Room for a step of this shape, and any smaller one; of this kind until the first [`begin`](Self::begin).
    pub fn new(kind: ActivationKind, rows: usize, columns: usize) -> Self {
        let chunks = rows * columns.div_ceil(CHUNK);
        let chunks = (0..chunks).map(|_| UnsafeCell::new(QuantizedChunk::ZERO)).collect();
        Self { chunks, kind, rows, columns }
    }

    /// Starts a step: what follows is about `rows` rows of `columns` values for matrices that take this kind of int8.
    /// Earlier contents are void.
    ///
    /// # Panics
    /// If the step is larger than what was made room for.
    pub fn begin(&mut self, kind: ActivationKind, rows: usize, columns: usize) {
        assert!(rows * columns.div_ceil(CHUNK) <= self.chunks.len(), "[{rows}, {columns}] activations");
        (self.kind, self.rows, self.columns) = (kind, rows, columns);
    }

    /// What they are quantized for.
    pub fn kind(&self) -> ActivationKind {
        self.kind
    }

    /// Quantizes a row.
    ///
    /// # Safety
    /// No other thread reads or writes this row meanwhile.
    ///
    /// # Panics
    /// If the row does not exist or has another width.
    pub unsafe fn quantize(&self, isa: Isa, row: usize, x: &[f32]) {
        assert_eq!(x.len(), self.columns, "width of a row");
        // SAFETY: the caller's promise.
        unsafe { self.quantize_part(isa, row, 0, x) }
    }

    /// Quantizes the columns of a row from `first` on: whole chunks of [`CHUNK`], or up to the row's end.
    ///
    /// # Safety
    /// No other thread reads or writes this part meanwhile.
    ///
    /// # Panics
    /// If there is no such part.
    pub unsafe fn quantize_part(&self, isa: Isa, row: usize, first: usize, x: &[f32]) {
        let end = first + x.len();
        assert!(row < self.rows && isa.is_available());
        assert!(
            first.is_multiple_of(CHUNK)
                && (end == self.columns || end < self.columns && end.is_multiple_of(CHUNK))
        );
        let out = self.chunks[first / CHUNK * self.rows + row..].as_ptr().cast_mut().cast();
        // SAFETY: the ISA is available, the shape was checked, and the caller promises that the part is ours.
        unsafe { quantize(isa, x.as_ptr(), x.len(), self.kind == ActivationKind::I8Powers, out, self.rows) }
    }

    /// The values that stand for a row, as the product sees them.
    pub fn dequantize(&mut self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns);
        let powers = self.kind == ActivationKind::I8Powers;
        for (i, value) in out.iter_mut().enumerate() {
            *value = self.chunks[i / CHUNK * self.rows + row].get_mut().value(i % CHUNK, powers);
        }
    }
}

/// What a thread needs for products.
pub struct Scratch {
    /// How the thread fetches weights; asked for until set otherwise.
    pub fetch: Fetch,
    /// See [`Product::processor`].
    processor: Processor,
    rows: usize,
    unpacked: Box<[Unpacked]>,
    /// [[`PASS`], rows], but at least [`few_tokens::WAITING`]
    sums: Vec<Lane>,
    interleaved: Vec<Lane>,
    /// [rows, [`PASS`]]: the other factor of what a gated product has in hand.
    pub gated: Vec<Lane>,
}

/// A row or what else is as wide as the widest vector, so that none lies in two cache lines.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Lane([f32; TILE]);

impl Scratch {
    /// For steps of up to `rows` rows.
    pub fn new(rows: usize) -> Self {
        let largest =
            BlockType::ALL.into_iter().map(|kind| TILE * CHUNK / kind.block_len() * kind.block_bytes());
        let lanes = |n| vec![Lane([0.0; TILE]); n];
        Self {
            fetch: Fetch::ToSecond,
            processor: Processor::of_this_machine(),
            rows,
            unpacked: (0..PASS).map(|_| Unpacked::ZERO).collect(),
            sums: lanes((PASS * rows).max(few_tokens::WAITING)),
            interleaved: lanes(largest.max().unwrap_or(0).div_ceil(size_of::<Lane>())),
            gated: lanes(PASS * rows),
        }
    }
}

#[cfg(test)]
mod tests;
