//! Weights on the device: as they are in the file, where candle knows their type.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Result, Tensor as Values};

use crate::checkpoint::Tensor;
use crate::quant::{self, BlockType};

/// The type that blocks of this type have on the device: candle has no i-quants, ternaries and MXFP4, which become Q8_0.
/// Their rows are whole blocks of 32, so Q8_0's are too.
pub fn stored_as(kind: BlockType) -> BlockType {
    if float_type(kind).is_some() || block_type(kind).is_some() { kind } else { BlockType::Q8_0 }
}

/// Candle's name of a type of plain numbers.
fn float_type(kind: BlockType) -> Option<DType> {
    match kind {
        BlockType::F32 => Some(DType::F32),
        BlockType::F16 => Some(DType::F16),
        BlockType::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// Candle's name of a block type.
fn block_type(kind: BlockType) -> Option<GgmlDType> {
    match kind {
        BlockType::Q4_0 => Some(GgmlDType::Q4_0),
        BlockType::Q4_1 => Some(GgmlDType::Q4_1),
        BlockType::Q5_0 => Some(GgmlDType::Q5_0),
        BlockType::Q5_1 => Some(GgmlDType::Q5_1),
        BlockType::Q8_0 => Some(GgmlDType::Q8_0),
        BlockType::Q2_K => Some(GgmlDType::Q2K),
        BlockType::Q3_K => Some(GgmlDType::Q3K),
        BlockType::Q4_K => Some(GgmlDType::Q4K),
        BlockType::Q5_K => Some(GgmlDType::Q5K),
        BlockType::Q6_K => Some(GgmlDType::Q6K),
        _ => None,
    }
}

/// A matrix on the device.
pub enum Held {
    /// [rows, columns] of blocks; activations are quantized for the product.
    Blocks(Arc<QTensor>),
    /// [rows, columns] of plain numbers. Those of 16 bits are widened for each product, so that activations stay f32.
    Floats(Values),
}

impl Held {
    /// Puts a matrix there.
    pub fn new(tensor: &Tensor, device: &Device) -> Result<Held> {
        let shape = (tensor.rows(), tensor.columns());
        if let Some(dtype) = float_type(tensor.kind) {
            return Ok(Held::Floats(Values::from_raw_buffer(
                &aligned(tensor.bytes()),
                dtype,
                &[shape.0, shape.1],
                device,
            )?));
        }
        let (dtype, bytes) = blocks(tensor);
        let storage = QStorage::from_data(aligned(&bytes), device, dtype)?;
        Ok(Held::Blocks(Arc::new(QTensor::new(storage, shape)?)))
    }

    /// `x * matrixᵀ`: [n, columns] becomes [n, rows].
    pub fn multiply(&self, x: &Values) -> Result<Values> {
        match self {
            Held::Blocks(blocks) => x.apply_op1_no_bwd(blocks.as_ref()),
            Held::Floats(_) => x.matmul(&self.dense()?.t()?),
        }
    }

    /// All values, f32, [rows, columns].
    fn dense(&self) -> Result<Values> {
        match self {
            Held::Blocks(blocks) => blocks.dequantize(&blocks.device()),
            Held::Floats(values) => values.to_dtype(DType::F32),
        }
    }
}

/// A tensor's blocks, of a type that candle knows.
fn blocks(tensor: &Tensor) -> (GgmlDType, Cow<'_, [u8]>) {
    if let Some(dtype) = block_type(tensor.kind) {
        return (dtype, Cow::Borrowed(tensor.bytes()));
    }
    let (columns, row_bytes) = (tensor.columns(), tensor.kind.row_bytes(tensor.columns()));
    let q8_bytes = BlockType::Q8_0.row_bytes(columns);
    let mut bytes = vec![0; tensor.rows() * q8_bytes];
    let mut values = vec![0.0; columns];
    for (from, to) in tensor.bytes().chunks_exact(row_bytes).zip(bytes.chunks_exact_mut(q8_bytes)) {
        quant::dequantize(tensor.kind, from, &mut values);
        quant::quantize(BlockType::Q8_0, &values, to);
    }
    (GgmlDType::Q8_0, Cow::Owned(bytes))
}

/// Bytes where candle may take them for floats or blocks: copied where a file has them at an odd place.
fn aligned(bytes: &[u8]) -> Cow<'_, [u8]> {
    const ALIGNMENT: usize = 4;
    if bytes.as_ptr().addr().is_multiple_of(ALIGNMENT) {
        Cow::Borrowed(bytes)
    } else {
        Cow::Owned(bytes.to_vec())
    }
}

/// Matrices of one shape: those of the heads, or the experts.
pub enum Matrices {
    /// One by one.
    Single(Vec<Held>),
    /// [matrices, rows, columns] of blocks, for candle's kernel that takes the experts' numbers (CUDA).
    Blocks(Arc<QTensor>),
    /// [matrices, rows, columns], f32 or f16: those of heads, all of which are multiplied at once.
    Dense(Values),
}

impl Matrices {
    /// Those of heads. They are kept as f16, but F32, which loses nothing that counts; each product widens all of them.
    pub fn of_heads(tensors: &[Tensor], device: &Device) -> Result<Matrices> {
        let kept = if tensors[0].kind == BlockType::F32 { DType::F32 } else { DType::F16 };
        let dense = |tensor| Held::new(tensor, device)?.dense()?.to_dtype(kept);
        let all = tensors.iter().map(dense).collect::<Result<Vec<_>>>()?;
        Ok(Matrices::Dense(Values::stack(&all, 0)?))
    }

    /// Experts.
    pub fn of_experts(tensors: &[Tensor], device: &Device) -> Result<Matrices> {
        let first = &tensors[0];
        let alike = tensors.iter().all(|t| t.shape == first.shape && t.kind == first.kind);
        assert!(alike, "matrices of one shape");
        let indexed =
            block_type(stored_as(first.kind)).filter(|&t| device.is_cuda() && has_indexed_kernel(t));
        let Some(dtype) = indexed else {
            return Ok(Matrices::Single(
                tensors.iter().map(|t| Held::new(t, device)).collect::<Result<_>>()?,
            ));
        };
        let bytes: Vec<u8> = tensors.iter().flat_map(|t| blocks(t).1.into_owned()).collect();
        let storage = QStorage::from_data(aligned(&bytes), device, dtype)?;
        let shape = (tensors.len(), first.rows(), first.columns());
        Ok(Matrices::Blocks(Arc::new(QTensor::new(storage, shape)?)))
    }

    /// `x * matrixᵀ` with one of them: [n, columns] becomes [n, rows].
    pub fn multiply(&self, matrix: usize, x: &Values) -> Result<Values> {
        match self {
            Matrices::Single(matrices) => matrices[matrix].multiply(x),
            Matrices::Blocks(blocks) => {
                let (n, columns) = x.dims2()?;
                let ids = Values::full(matrix as u32, (n, 1), x.device())?;
                blocks.indexed_moe_forward(&x.reshape((n, 1, columns))?, &ids)?.squeeze(1)
            }
            Matrices::Dense(_) => panic!("matrices of heads are multiplied all at once"),
        }
    }

    /// All values of those of heads, f32, [matrices, rows, columns].
    pub fn dense(&self) -> Result<Values> {
        let Matrices::Dense(values) = self else { panic!("experts are not multiplied by head") };
        values.to_dtype(DType::F32)
    }
}

/// Whether candle's CUDA kernel for experts knows the type.
fn has_indexed_kernel(dtype: GgmlDType) -> bool {
    use GgmlDType::*;
    // of Q8_0 it gives wrong products (candle 0.11.1, on an H200)
    matches!(dtype, Q2K | Q3K | Q4K | Q5K | Q6K)
}
