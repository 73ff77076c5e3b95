//! The block formats of GGUF: layout, quantize, dequantize.
//!
//! Plain scalar Rust, exact: the truth that kernels are tested against.

pub(crate) mod codebook;
mod convert;
mod grid_search;
mod grids;
pub(crate) mod i_quants;
pub(crate) mod k_quants;
mod legacy;
mod mix;
pub(crate) mod planes;
mod search;

pub use convert::Rows;
use half::{bf16, f16};
pub use mix::{Mix, ModelShape};

/// How the values of a tensor are stored. Names and numbers are GGUF's (`ggml_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u32)]
#[allow(missing_docs, non_camel_case_types)]
pub enum BlockType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
}

impl BlockType {
    /// Every type that pensive reads.
    pub const ALL: [BlockType; 25] = [
        BlockType::F32,
        BlockType::F16,
        BlockType::Q4_0,
        BlockType::Q4_1,
        BlockType::Q5_0,
        BlockType::Q5_1,
        BlockType::Q8_0,
        BlockType::Q2_K,
        BlockType::Q3_K,
        BlockType::Q4_K,
        BlockType::Q5_K,
        BlockType::Q6_K,
        BlockType::IQ2_XXS,
        BlockType::IQ2_XS,
        BlockType::IQ3_XXS,
        BlockType::IQ1_S,
        BlockType::IQ4_NL,
        BlockType::IQ3_S,
        BlockType::IQ2_S,
        BlockType::IQ4_XS,
        BlockType::IQ1_M,
        BlockType::BF16,
        BlockType::TQ1_0,
        BlockType::TQ2_0,
        BlockType::MXFP4,
    ];

    /// The type with GGUF's number `id`, if pensive reads it.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| *t as u32 == id)
    }

    /// Values in one block (1 for F32, F16, BF16).
    pub const fn block_len(self) -> usize {
        use BlockType::*;
        match self {
            F32 | F16 | BF16 => 1,
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | IQ4_NL | MXFP4 => 32,
            Q2_K | Q3_K | Q4_K | Q5_K | Q6_K => 256,
            IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_XS | TQ1_0 | TQ2_0 => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        use BlockType::*;
        match self {
            F32 => 4,
            F16 | BF16 => 2,
            Q4_0 => 18,
            Q4_1 => 20,
            Q5_0 => 22,
            Q5_1 => 24,
            Q8_0 => 34,
            Q2_K => 84,
            Q3_K => 110,
            Q4_K => 144,
            Q5_K => 176,
            Q6_K => 210,
            IQ2_XXS => 66,
            IQ2_XS => 74,
            IQ3_XXS => 98,
            IQ1_S => 50,
            IQ4_NL => 18,
            IQ3_S => 110,
            IQ2_S => 82,
            IQ4_XS => 136,
            IQ1_M => 56,
            TQ1_0 => 54,
            TQ2_0 => 66,
            MXFP4 => 17,
        }
    }

    /// Bytes of a row of `len` values; `len` must be a multiple of [`block_len`](Self::block_len).
    pub const fn row_bytes(self, len: usize) -> usize {
        len / self.block_len() * self.block_bytes()
    }
}

impl std::fmt::Display for BlockType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Values from blocks: `blocks` holds `out.len()` values of type `kind`.
///
/// Layouts and order of operations are ggml's (`dequantize_row_*` of ggml-quants.c), so the values are too, bit
/// for bit. `blocks` need not be aligned.
///
/// # Panics
/// If `blocks` is not exactly the bytes of `out.len()` values.
pub fn dequantize(kind: BlockType, blocks: &[u8], out: &mut [f32]) {
    check_lengths(kind, blocks, out);
    match kind {
        BlockType::F32 => from_blocks(blocks, out, |b, y: &mut [f32; 1]| y[0] = f32::from_le_bytes(*b)),
        BlockType::F16 => {
            from_blocks(blocks, out, |b, y: &mut [f32; 1]| y[0] = f16::from_le_bytes(*b).to_f32())
        }
        BlockType::BF16 => {
            from_blocks(blocks, out, |b, y: &mut [f32; 1]| y[0] = bf16::from_le_bytes(*b).to_f32())
        }
        BlockType::Q4_0 => from_blocks(blocks, out, legacy::dequantize_q4_0),
        BlockType::Q4_1 => from_blocks(blocks, out, legacy::dequantize_q4_1),
        BlockType::Q5_0 => from_blocks(blocks, out, legacy::dequantize_q5_0),
        BlockType::Q5_1 => from_blocks(blocks, out, legacy::dequantize_q5_1),
        BlockType::Q8_0 => from_blocks(blocks, out, legacy::dequantize_q8_0),
        BlockType::Q2_K => from_blocks(blocks, out, k_quants::dequantize_q2_k),
        BlockType::Q3_K => from_blocks(blocks, out, k_quants::dequantize_q3_k),
        BlockType::Q4_K => from_blocks(blocks, out, k_quants::dequantize_q4_k),
        BlockType::Q5_K => from_blocks(blocks, out, k_quants::dequantize_q5_k),
        BlockType::Q6_K => from_blocks(blocks, out, k_quants::dequantize_q6_k),
        BlockType::IQ2_XXS => from_blocks(blocks, out, i_quants::dequantize_iq2_xxs),
        BlockType::IQ2_XS => from_blocks(blocks, out, i_quants::dequantize_iq2_xs),
        BlockType::IQ3_XXS => from_blocks(blocks, out, i_quants::dequantize_iq3_xxs),
        BlockType::IQ1_S => from_blocks(blocks, out, i_quants::dequantize_iq1_s),
        BlockType::IQ4_NL => from_blocks(blocks, out, codebook::dequantize_iq4_nl),
        BlockType::IQ3_S => from_blocks(blocks, out, i_quants::dequantize_iq3_s),
        BlockType::IQ2_S => from_blocks(blocks, out, i_quants::dequantize_iq2_s),
        BlockType::IQ4_XS => from_blocks(blocks, out, codebook::dequantize_iq4_xs),
        BlockType::IQ1_M => from_blocks(blocks, out, i_quants::dequantize_iq1_m),
        BlockType::TQ1_0 => from_blocks(blocks, out, codebook::dequantize_tq1_0),
        BlockType::TQ2_0 => from_blocks(blocks, out, codebook::dequantize_tq2_0),
        BlockType::MXFP4 => from_blocks(blocks, out, codebook::dequantize_mxfp4),
    }
}

/// Blocks from values, by rounding to the nearest code; K-quants and i-quants search for scales (and entries of grids) with a small
/// square error, all values weighing the same.
///
/// Values must be finite and within the format's range (F16, and the scales of all block formats, end at
/// 65504): others saturate or become arbitrary values, never a panic.
///
/// # Panics
/// If `blocks` is not exactly the bytes of `values.len()` values.
pub fn quantize(kind: BlockType, values: &[f32], blocks: &mut [u8]) {
    quantize_by(kind, values, None, blocks);
}

/// [`quantize`] where the columns are not equally important: `importance` has a number for each, such as the mean square of
/// what they are multiplied with. K-quants, i-quants, Q4_0, Q4_1, Q5_0 and Q5_1 heed it.
///
/// # Panics
/// As [`quantize`], and if the values are no rows as long as `importance`.
pub fn quantize_by(kind: BlockType, values: &[f32], importance: Option<&[f32]>, blocks: &mut [u8]) {
    check_lengths(kind, blocks, values);
    assert!(
        importance.is_none_or(|row| values.len().is_multiple_of(row.len().max(1))),
        "columns by importance"
    );
    blocks.fill(0);
    match kind {
        BlockType::Q4_0 if importance.is_some() => to_weighted(values, importance, blocks, legacy::fit_q4_0),
        BlockType::Q4_1 if importance.is_some() => to_weighted(values, importance, blocks, legacy::fit_q4_1),
        BlockType::Q5_0 if importance.is_some() => to_weighted(values, importance, blocks, legacy::fit_q5_0),
        BlockType::Q5_1 if importance.is_some() => to_weighted(values, importance, blocks, legacy::fit_q5_1),
        BlockType::F32 => to_blocks(values, blocks, |x: &[f32; 1], b| *b = x[0].to_le_bytes()),
        BlockType::F16 => to_blocks(values, blocks, |x: &[f32; 1], b| *b = to_f16(x[0]).to_le_bytes()),
        BlockType::BF16 => {
            to_blocks(values, blocks, |x: &[f32; 1], b| *b = bf16::from_f32(x[0]).to_le_bytes())
        }
        BlockType::Q4_0 => to_blocks(values, blocks, legacy::quantize_q4_0),
        BlockType::Q4_1 => to_blocks(values, blocks, legacy::quantize_q4_1),
        BlockType::Q5_0 => to_blocks(values, blocks, legacy::quantize_q5_0),
        BlockType::Q5_1 => to_blocks(values, blocks, legacy::quantize_q5_1),
        BlockType::Q8_0 => to_blocks(values, blocks, legacy::quantize_q8_0),
        BlockType::Q2_K => to_weighted(values, importance, blocks, k_quants::quantize_q2_k),
        BlockType::Q3_K => to_weighted(values, importance, blocks, k_quants::quantize_q3_k),
        BlockType::Q4_K => to_weighted(values, importance, blocks, k_quants::quantize_q4_k),
        BlockType::Q5_K => to_weighted(values, importance, blocks, k_quants::quantize_q5_k),
        BlockType::Q6_K => to_weighted(values, importance, blocks, k_quants::quantize_q6_k),
        BlockType::IQ2_XXS => to_weighted(values, importance, blocks, i_quants::quantize_iq2_xxs),
        BlockType::IQ2_XS => to_weighted(values, importance, blocks, i_quants::quantize_iq2_xs),
        BlockType::IQ3_XXS => to_weighted(values, importance, blocks, i_quants::quantize_iq3_xxs),
        BlockType::IQ1_S => to_weighted(values, importance, blocks, i_quants::quantize_iq1_s),
        BlockType::IQ4_NL => to_weighted(values, importance, blocks, codebook::quantize_iq4_nl),
        BlockType::IQ3_S => to_weighted(values, importance, blocks, i_quants::quantize_iq3_s),
        BlockType::IQ2_S => to_weighted(values, importance, blocks, i_quants::quantize_iq2_s),
        BlockType::IQ4_XS => to_weighted(values, importance, blocks, codebook::quantize_iq4_xs),
        BlockType::IQ1_M => to_weighted(values, importance, blocks, i_quants::quantize_iq1_m),
        BlockType::TQ1_0 => to_blocks(values, blocks, codebook::quantize_tq1_0),
        BlockType::TQ2_0 => to_blocks(values, blocks, codebook::quantize_tq2_0),
        BlockType::MXFP4 => to_blocks(values, blocks, codebook::quantize_mxfp4),
    }
}

fn check_lengths(kind: BlockType, blocks: &[u8], values: &[f32]) {
    assert!(
        values.len().is_multiple_of(kind.block_len()),
        "{} values are no whole blocks of {kind}",
        values.len()
    );
    assert_eq!(blocks.len(), kind.row_bytes(values.len()), "bytes of {} values of {kind}", values.len());
}

/// Runs `block` over all blocks: `BYTES` bytes become `LEN` values.
fn from_blocks<const BYTES: usize, const LEN: usize>(
    blocks: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (bytes, values) in blocks.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        block(bytes, values);
    }
}

/// Runs `block` over all blocks: `LEN` values become `BYTES` bytes, which are zero before.
fn to_blocks<const BYTES: usize, const LEN: usize>(
    values: &[f32],
    blocks: &mut [u8],
    block: impl Fn(&[f32; LEN], &mut [u8; BYTES]),
) {
    for (values, bytes) in values.as_chunks().0.iter().zip(blocks.as_chunks_mut().0) {
        block(values, bytes);
    }
}

/// [`to_blocks`], where `block` is also given what the square of each value's error counts: the same for all, or by the
/// importance of its column, and more for large values, of which an error in the scale is one as well.
fn to_weighted<const BYTES: usize, const LEN: usize>(
    values: &[f32],
    importance: Option<&[f32]>,
    blocks: &mut [u8],
    block: impl Fn(&[f32; LEN], &[f32; LEN], &mut [u8; BYTES]),
) {
    for (i, (values, bytes)) in values.as_chunks().0.iter().zip(blocks.as_chunks_mut().0).enumerate() {
        let mut weights = [1.0; LEN];
        if let Some(row) = importance {
            let mean = values.iter().map(|x| x * x).sum::<f32>() / LEN as f32;
            let columns = &row[i * LEN % row.len()..][..LEN];
            for ((weight, x), importance) in weights.iter_mut().zip(values).zip(columns) {
                *weight = importance * (mean + x * x).sqrt();
            }
        }
        block(values, &weights, bytes);
    }
}

/// The f16 at byte `at` of a block.
fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Stores `value` as f16 at byte `at` of a block, and returns what is stored.
fn put_f16(block: &mut [u8], at: usize, value: f32) -> f32 {
    let stored = to_f16(value);
    block[at..at + 2].copy_from_slice(&stored.to_le_bytes());
    stored.to_f32()
}

/// The nearest finite f16: an infinite scale would make every value of its block NaN.
fn to_f16(value: f32) -> f16 {
    f16::from_f32(value.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}

/// The value with the largest magnitude, sign kept.
fn farthest(values: &[f32]) -> f32 {
    values.iter().copied().fold(0.0, |far: f32, x| if x.abs() > far.abs() { x } else { far })
}

/// 1 / scale, or 0 for a scale of 0, whose codes do not matter.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The code nearest to `x`, within `0..=max`.
fn round_code(x: f32, max: u8) -> u8 {
    ((x + 0.5) as u8).min(max)
}

#[cfg(test)]
mod tests;
