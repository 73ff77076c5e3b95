//! Weight matrices, activations, and their product: the safe-to-hold side of the kernels.

use std::cell::UnsafeCell;
use std::ops::Range;

use super::entry_points;
use super::generic::float::{self, Float, FloatProduct};
use super::generic::formats::{CHUNK, Format, TILE, Unpacked, with_format};
use super::generic::quantized::{self, Bytes, PASS, Product, QuantizedChunk, RowPointers};
use super::isa::Isa;
use crate::checkpoint::Tensor;
use crate::quant::BlockType;
use crate::{Error, Result};

entry_points! {
    /// [`quantized::multiply`] on an ISA.
    fn multiply_quantized<F: Format>(p: &Product) = quantized::multiply;
    /// [`float::multiply_float`] on an ISA.
    fn multiply_float<W: Float>(p: &FloatProduct) = float::multiply_float;
    /// [`quantized::quantize`] on an ISA.
    fn quantize(x: *const f32, columns: usize, out: *mut QuantizedChunk, stride: usize) = quantized::quantize;
}

/// How a matrix is held. Results are equal to the bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// In memory of its own, 16 rows interleaved: the fast one. (F32, F16 and BF16 stay as in the file.)
    Interleaved,
    /// In the mapped file: takes no memory of its own, and is interleaved on the way.
    AsInFile,
}

/// What a matrix multiplies with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationKind {
    /// f32, as they are.
    F32,
    /// int8 with a scale for each 16 values.
    I8,
}

impl ActivationKind {
    /// What matrices of this type multiply with.
    pub const fn of(kind: BlockType) -> Self {
        match kind {
            BlockType::F32 | BlockType::F16 | BlockType::BF16 => ActivationKind::F32,
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
    /// Tiles of 16 rows; the last is filled up with its last row.
    Interleaved(memmap2::MmapMut),
    AsInFile(Tensor),
}

/// Runs `task(0)..task(n - 1)`, on any threads, and returns when all are done.
pub type Parallel<'a> = &'a dyn Fn(usize, &(dyn Fn(usize) + Sync));

/// Tiles that are interleaved by one task.
const TILES_PER_TASK: usize = 16;

impl WeightMatrix {
    /// Takes a tensor. With [`Layout::Interleaved`] a copy is made by `parallel` and the tensor's pages are
    /// given back to the system as it grows.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the columns are no whole blocks, [`Error::Memory`] if there is none for the copy.
    pub fn new(tensor: &Tensor, layout: Layout, parallel: Parallel<'_>) -> Result<Self> {
        let (rows, columns, kind) = (tensor.rows(), tensor.columns(), tensor.kind);
        if !columns.is_multiple_of(kind.block_len()) || tensor.bytes().len() != rows * kind.row_bytes(columns)
        {
            return Err(Error::Unsupported(format!(
                "tensor {} has {} bytes, which are not {rows} rows of {columns} {kind} values",
                tensor.name,
                tensor.bytes().len()
            )));
        }
        let storage = match (layout, ActivationKind::of(kind)) {
            (Layout::Interleaved, ActivationKind::I8) => Storage::Interleaved(interleave(tensor, parallel)?),
            _ => Storage::AsInFile(tensor.clone()),
        };
        Ok(Self { rows, columns, kind, storage })
    }

    /// Whether it is in memory of its own.
    pub fn is_interleaved(&self) -> bool {
        matches!(self.storage, Storage::Interleaved(_))
    }

    /// Number of rows: the width of the result.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns: the width of the input.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// How the values are stored.
    pub fn kind(&self) -> BlockType {
        self.kind
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
    /// The same bits for every ISA, layout, division into tiles and number of input rows.
    ///
    /// # Safety
    /// `out` holds input.rows() rows that are as wide as this matrix has rows, and no other thread uses these
    /// places meanwhile.
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
        match input {
            Input::Quantized(x) => {
                assert_eq!(x.columns, self.columns, "width of the input");
                assert!(x.rows <= scratch.rows, "{} rows, scratch for {}", x.rows, scratch.rows);
                let product = Product {
                    weights: match &self.storage {
                        Storage::Interleaved(map) => Bytes::Interleaved(map.as_ptr()),
                        Storage::AsInFile(tensor) => Bytes::AsInFile(tensor.bytes().as_ptr()),
                    },
                    rows: self.rows,
                    columns: self.columns,
                    tiles: (tiles.start, tiles.end),
                    x: x.chunks.as_ptr().cast(),
                    tokens: x.rows,
                    bias,
                    out: out.to,
                    out_stride: out.stride,
                    unpacked: scratch.unpacked.as_mut_ptr(),
                    sums: scratch.sums.as_mut_ptr(),
                    interleaved: scratch.interleaved.as_mut_ptr(),
                };
                // SAFETY: the ISA is available; shapes were checked, and the caller promises `out`.
                unsafe {
                    with_format!(self.kind, F => multiply_quantized::<F>(isa, &product), panic!(
                        "{} matrices take f32 activations", self.kind
                    ));
                }
            }
            Input::Floats { x, width } => {
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
                // SAFETY: as above.
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
    }
}

/// Input of a product: the rows of a step.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// For matrices whose [`WeightMatrix::activation`] is [`ActivationKind::I8`].
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
    rows: usize,
    columns: usize,
}

// SAFETY: rows are written by one thread each, as `quantize` asks for.
unsafe impl Sync for Activations {}

impl Activations {
    /// Room for a step of this shape, and any smaller one.
    pub fn new(rows: usize, columns: usize) -> Self {
        let chunks = rows * columns.div_ceil(CHUNK);
        let chunks = (0..chunks).map(|_| UnsafeCell::new(QuantizedChunk::ZERO)).collect();
        Self { chunks, rows, columns }
    }

    /// Starts a step: what follows is about `rows` rows of `columns` values. Earlier contents are void.
    ///
    /// # Panics
    /// If the step is larger than what was made room for.
    pub fn begin(&mut self, rows: usize, columns: usize) {
        assert!(rows * columns.div_ceil(CHUNK) <= self.chunks.len(), "[{rows}, {columns}] activations");
        (self.rows, self.columns) = (rows, columns);
    }

    /// Number of rows of the step.
    pub fn rows(&self) -> usize {
        self.rows
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
        unsafe { quantize(isa, x.as_ptr(), x.len(), out, self.rows) }
    }

    /// The values that stand for a row, as the product sees them.
    pub fn dequantize(&mut self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns);
        for (i, value) in out.iter_mut().enumerate() {
            *value = self.chunks[i / CHUNK * self.rows + row].get_mut().value(i % CHUNK);
        }
    }
}

/// What a thread needs for products.
pub struct Scratch {
    rows: usize,
    unpacked: Box<[Unpacked]>,
    sums: Vec<f32>,
    interleaved: Vec<u8>,
}

impl Scratch {
    /// For steps of up to `rows` rows.
    pub fn new(rows: usize) -> Self {
        let largest =
            BlockType::ALL.into_iter().map(|kind| TILE * CHUNK / kind.block_len() * kind.block_bytes());
        Self {
            rows,
            unpacked: (0..PASS).map(|_| Unpacked::ZERO).collect(),
            sums: vec![0.0; PASS * rows * TILE],
            interleaved: vec![0; largest.max().unwrap_or(0)],
        }
    }
}

/// The memory that the tasks of [`interleave`] fill.
struct Tiles(*mut u8);

// SAFETY: each task writes tiles of its own.
unsafe impl Sync for Tiles {}

impl Tiles {
    fn at(&self, offset: usize) -> *mut u8 {
        self.0.wrapping_add(offset)
    }
}

/// Memory for [`Layout::Interleaved`], filled from the tensor.
fn interleave(tensor: &Tensor, parallel: Parallel<'_>) -> Result<memmap2::MmapMut> {
    let (rows, row_bytes) = (tensor.rows(), tensor.kind.row_bytes(tensor.columns()));
    let tiles = rows.div_ceil(TILE);
    let size = tiles * TILE * row_bytes;
    let mut map = memmap2::MmapMut::map_anon(size.max(1)).map_err(|error| {
        Error::Memory(format!("tensor {}: no memory for {size} bytes ({error})", tensor.name))
    })?;
    #[cfg(target_os = "linux")]
    {
        // Fewer page faults and TLB misses; a system without huge pages says no, which is no harm.
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    let copy = Tiles(map.as_mut_ptr());
    let task = |task: usize| {
        let tiles = task * TILES_PER_TASK..((task + 1) * TILES_PER_TASK).min(tiles);
        for tile in tiles.clone() {
            // SAFETY: the tensor has `rows` rows; each tile of the copy is written by one task.
            unsafe {
                let from = RowPointers::new(tensor.bytes().as_ptr(), row_bytes, rows, tile);
                let (blocks, out) = (row_bytes / tensor.kind.block_bytes(), copy.at(tile * TILE * row_bytes));
                with_format!(tensor.kind, F => quantized::interleave::<F>(&from, blocks, out), unreachable!(
                    "{} is not interleaved", tensor.kind
                ));
            }
        }
        tensor.drop_rows(tiles.start * TILE..(tiles.end * TILE).min(rows));
    };
    parallel(tiles.div_ceil(TILES_PER_TASK), &task);
    Ok(map)
}

#[cfg(test)]
mod tests;
