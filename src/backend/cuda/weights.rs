//! Weights on the device.

use std::borrow::Cow;

use super::CudaBackend;
use super::driver::Launch;
use super::params::{Address, Blocks, SplitPlane};
use super::planes::{ALIGNMENT, layout};
use crate::Result;
use crate::checkpoint::Tensor;
use crate::quant::{self, BlockType};

/// Threads of kernels that work value by value.
pub const THREADS: usize = 256;

/// Bytes of a file that are on the device at once before they are split into planes.
const PIECE: usize = 64 << 20;

/// A matrix, or several of one shape, one after the other.
#[derive(Clone, Copy, Debug)]
pub enum Held {
    /// Of blocks.
    Blocks(Blocks),
    /// Of plain numbers.
    Dense(Dense),
}

/// Plain numbers.
#[derive(Clone, Copy, Debug)]
pub struct Dense {
    pub at: Address,
    pub kind: BlockType,
    pub rows: usize,
    pub columns: usize,
    pub matrices: usize,
}

impl Dense {
    /// The kernels' number for the type.
    pub fn code(&self) -> i32 {
        match self.kind {
            BlockType::F32 => 0,
            BlockType::F16 => 1,
            _ => 2,
        }
    }
}

impl Held {
    /// Rows and columns of one matrix.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Held::Blocks(blocks) => (blocks.rows as usize, blocks.columns as usize),
            Held::Dense(dense) => (dense.rows, dense.columns),
        }
    }
}

/// The type that blocks of this type have on the device: what the kernels do not know becomes Q8_0. Its rows are whole blocks
/// of 32, so Q8_0's are too.
pub fn stored_as(kind: BlockType) -> BlockType {
    let known = matches!(kind, BlockType::F32 | BlockType::F16 | BlockType::BF16) || layout(kind).is_some();
    if known { kind } else { BlockType::Q8_0 }
}

/// A tensor's blocks, of a type that the kernels know.
fn known_blocks(tensor: &Tensor) -> Cow<'_, [u8]> {
    if stored_as(tensor.kind) == tensor.kind {
        return Cow::Borrowed(tensor.bytes());
    }
    let (columns, row_bytes) = (tensor.columns(), tensor.kind.row_bytes(tensor.columns()));
    let q8_bytes = BlockType::Q8_0.row_bytes(columns);
    let mut bytes = vec![0; tensor.rows() * q8_bytes];
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = tensor.rows().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let parts = tensor.bytes().chunks(share * row_bytes).zip(bytes.chunks_mut(share * q8_bytes));
        for (from, to) in parts {
            scope.spawn(move || {
                let mut values = vec![0.0; columns];
                for (from, to) in from.chunks_exact(row_bytes).zip(to.chunks_exact_mut(q8_bytes)) {
                    quant::dequantize(tensor.kind, from, &mut values);
                    quant::quantize(BlockType::Q8_0, &values, to);
                }
            });
        }
    });
    Cow::Owned(bytes)
}

impl CudaBackend {
    /// Puts matrices of one shape on the device.
    pub(super) fn hold(&mut self, tensors: &[Tensor]) -> Result<Held> {
        let first = &tensors[0];
        let alike = tensors.iter().all(|t| t.shape == first.shape && t.kind == first.kind);
        assert!(alike, "matrices of one shape and type");
        let (rows, columns, kind) = (first.rows(), first.columns(), stored_as(first.kind));
        let Some((format, planes)) = layout(kind) else {
            let bytes = first.bytes().len();
            let at = self.driver.alloc(bytes * tensors.len())?;
            for (i, tensor) in tensors.iter().enumerate() {
                self.driver.upload(at + (i * bytes) as Address, tensor.bytes())?;
            }
            return Ok(Held::Dense(Dense { at, kind, rows, columns, matrices: tensors.len() }));
        };
        let blocks = rows * columns / kind.block_len();
        // kernels may look at a block behind the last, and take nothing of it
        let sizes = planes.iter().map(|p| (p.len * (blocks * tensors.len() + 1)).next_multiple_of(ALIGNMENT));
        let mut next = self.driver.alloc(sizes.clone().sum())?;
        let mut at = [0; 4];
        for (at, size) in at.iter_mut().zip(sizes) {
            *at = next;
            next += size as Address;
        }
        for (i, tensor) in tensors.iter().enumerate() {
            let bytes = known_blocks(tensor);
            if planes.len() == 1 {
                self.driver.upload(at[0] + (i * bytes.len()) as Address, &bytes)?;
                continue;
            }
            self.split(&bytes, kind, &at, i * blocks)?;
        }
        let (rows, columns, matrices) = (rows as i32, columns as i32, tensors.len() as i32);
        Ok(Held::Blocks(Blocks { planes: at, blocks: blocks as u64, format, rows, columns, matrices }))
    }

    /// Blocks as in a file go to their planes, from block `first` on.
    fn split(&mut self, bytes: &[u8], kind: BlockType, planes: &[Address; 4], first: usize) -> Result<()> {
        let (_, parts) = layout(kind).expect("a format of the kernels");
        let size = kind.block_bytes();
        let piece = PIECE / size * size;
        self.raw.reserve(&*self.driver, bytes.len().min(piece))?;
        let mut done = first;
        for bytes in bytes.chunks(piece) {
            let from = self.raw.at;
            self.driver.upload(from, bytes)?;
            for (part, &to) in parts.iter().zip(planes) {
                let count = bytes.len() / size * part.len;
                let params = SplitPlane {
                    from,
                    to: to + (done * part.len) as Address,
                    block_bytes: size as i32,
                    offset: part.offset as i32,
                    len: part.len as i32,
                    pad: 0,
                    bytes: count as u64,
                };
                let grid = [count.div_ceil(THREADS), 1, 1];
                self.launch_now(
                    Launch { kernel: "split_plane", grid, threads: THREADS, shared: 0 },
                    &params,
                )?;
            }
            done += bytes.len() / size;
        }
        Ok(())
    }

    /// Those of heads, f16, but F32, which loses nothing that counts.
    pub(super) fn hold_heads(&mut self, tensors: &[Tensor]) -> Result<Held> {
        let first = &tensors[0];
        let as_f32 = first.kind == BlockType::F32;
        let mut bytes = Vec::new();
        let mut values = vec![0.0; first.columns()];
        for tensor in tensors {
            for row in tensor.bytes().chunks_exact(tensor.kind.row_bytes(tensor.columns())) {
                quant::dequantize(tensor.kind, row, &mut values);
                match as_f32 {
                    true => values.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes())),
                    false => values
                        .iter()
                        .for_each(|v| bytes.extend_from_slice(&half::f16::from_f32(*v).to_le_bytes())),
                }
            }
        }
        let at = self.driver.alloc(bytes.len())?;
        self.driver.upload(at, &bytes)?;
        let kind = if as_f32 { BlockType::F32 } else { BlockType::F16 };
        Ok(Held::Dense(Dense {
            at,
            kind,
            rows: first.rows(),
            columns: first.columns(),
            matrices: tensors.len(),
        }))
    }
}
