//! Tensors of safetensors files that are stored in two parts: numbers of eight bits with a scale for each block
//! (DeepSeek's originals), and MXFP4 (gpt-oss). They are decoded one by one, when they are used.

use std::collections::BTreeMap;

use super::{Metadata, Tensor};
use crate::quant::BlockType;

/// How a tensor's bytes are to be read.
#[derive(Clone, Debug)]
pub(super) enum Encoding {
    /// Blocks of its type.
    Blocks,
    /// Bytes that wait for their other half.
    Bare,
    /// E4M3 (OCP 8-bit floating point, 1.0): a factor for each block of [rows, columns].
    Fp8 { scales: Box<Tensor>, block: [usize; 2] },
    /// Two codes in a byte, the first in the low bits; an exponent for each 32 of them.
    Mxfp4 { exponents: Box<Tensor> },
    /// The same blocks over and over, the first time from block `first` on.
    Repeated { first: usize },
}

/// Puts the halves together.
pub(super) fn join(
    mut tensors: BTreeMap<String, Tensor>,
    metadata: &Metadata,
) -> Result<BTreeMap<String, Tensor>, String> {
    let bare: Vec<String> = tensors.values().filter(|t| is_bare(t)).map(|t| t.name.clone()).collect();
    for name in bare {
        let Some(tensor) = tensors.get(&name).filter(|tensor| is_bare(tensor)).cloned() else {
            continue; // it was the other half of another
        };
        let joined = if tensor.kind == BlockType::MXFP4 {
            join_mxfp4(tensor, &mut tensors)?
        } else {
            join_fp8(tensor, &mut tensors, block(metadata))?
        };
        if let Some(joined) = joined {
            tensors.remove(&name);
            tensors.insert(joined.name.clone(), joined);
        }
    }
    match tensors.values().find(|tensor| is_bare(tensor)) {
        Some(tensor) => Err(format!("tensor {} is of bytes without a meaning", tensor.name)),
        None => Ok(tensors),
    }
}

fn is_bare(tensor: &Tensor) -> bool {
    matches!(tensor.encoding, Encoding::Bare)
}

/// Rows and columns that share a factor: `quantization_config.weight_block_size`, 128 by 128 where it does not say.
fn block(metadata: &Metadata) -> [usize; 2] {
    let Metadata::HuggingFace { config, .. } = metadata else { return [128, 128] };
    let sizes = config.pointer("/quantization_config/weight_block_size");
    let size = |i| usize::try_from(sizes?.get(i)?.as_u64()?).ok().filter(|&n| n > 0);
    [size(0).unwrap_or(128), size(1).unwrap_or(128)]
}

fn join_fp8(
    tensor: Tensor,
    tensors: &mut BTreeMap<String, Tensor>,
    [rows, columns]: [usize; 2],
) -> Result<Option<Tensor>, String> {
    let name = &tensor.name;
    let found = ["_scale_inv", "_scale"].iter().find_map(|suffix| tensors.remove(&format!("{name}{suffix}")));
    let scales =
        found.ok_or_else(|| format!("tensor {name} is F8_E4M3, but there is no {name}_scale_inv"))?;
    let count = |n: usize, block: usize| n.div_ceil(block);
    let shape = [tensor.rows(), tensor.columns()];
    // one factor for all, or for a row, or for a block
    let block = if scales.shape.iter().product::<usize>() == 1 {
        shape
    } else if (scales.rows(), scales.columns()) == (shape[0], 1) {
        [1, shape[1]]
    } else {
        [rows, columns]
    };
    // a larger block says no more, and its size may overflow
    let block = [0, 1].map(|i| block[i].min(shape[i]).max(1));
    let expected = [count(shape[0], block[0]), count(shape[1], block[1])];
    if is_bare(&scales) || scales.rows() * scales.columns() != expected[0] * expected[1] {
        return Err(format!("the factors of {name} have the shape {:?}, not {expected:?}", scales.shape));
    }
    Ok(Some(Tensor { encoding: Encoding::Fp8 { scales: Box::new(scales), block }, ..tensor }))
}

/// `X_blocks` [.., columns / 32, 16] and `X_scales` [.., columns / 32] become `X` [.., columns].
fn join_mxfp4(tensor: Tensor, tensors: &mut BTreeMap<String, Tensor>) -> Result<Option<Tensor>, String> {
    let Some(name) = tensor.name.strip_suffix("_blocks") else { return Ok(None) };
    let exponents = tensors
        .remove(&format!("{name}_scales"))
        .filter(is_bare)
        .ok_or_else(|| format!("tensor {name} has no {name}_scales of bytes"))?;
    let [outer @ .., blocks, 16] = &tensor.shape[..] else {
        return Err(format!(
            "tensor {} has the shape {:?}: not blocks of 16 bytes",
            tensor.name, tensor.shape
        ));
    };
    if exponents.shape[..] != tensor.shape[..tensor.shape.len() - 1] {
        return Err(format!("the exponents of {name} have the shape {:?}", exponents.shape));
    }
    let shape = [outer, &[blocks.checked_mul(32).ok_or("a shape overflows")?]].concat();
    let name = name.to_owned();
    Ok(Some(Tensor { name, shape, encoding: Encoding::Mxfp4 { exponents: Box::new(exponents) }, ..tensor }))
}

impl Tensor {
    /// A tensor that takes no memory before it is decoded: the `pattern`, whole blocks in memory, over and over, the first
    /// time from block `first` on.
    ///
    /// # Panics
    /// If the shape has rows of no whole blocks, or the pattern has no block.
    pub fn repeated(name: &str, shape: &[usize], pattern: &Tensor, first: usize) -> Self {
        super::byte_len(pattern.kind, shape).expect("a row is whole blocks");
        let blocks = pattern.bytes().len() / pattern.kind.block_bytes();
        let (name, shape) = (name.to_owned(), shape.to_owned());
        Tensor { name, shape, encoding: Encoding::Repeated { first: first % blocks }, ..pattern.clone() }
    }

    /// The tensor as blocks of its type: itself, or, where it is stored otherwise (8-bit floats with factors, MXFP4 in two
    /// parts), one in memory.
    pub fn decoded(&self) -> Tensor {
        let bytes = match &self.encoding {
            Encoding::Blocks | Encoding::Bare => return self.clone(),
            Encoding::Fp8 { scales, block } => self.decode_fp8(&scales.values(), *block),
            Encoding::Mxfp4 { exponents } => {
                let (codes, exponents) = (self.bytes().as_chunks::<16>().0, exponents.bytes());
                on_all_cores(codes.len() * 17, 17, |first, part| {
                    let blocks = codes[first..].iter().zip(&exponents[first..]);
                    for (to, (codes, &exponent)) in part.as_chunks_mut().0.iter_mut().zip(blocks) {
                        *to = mxfp4(codes, exponent);
                    }
                })
            }
            Encoding::Repeated { first } => self.repeat(first * self.kind.block_bytes()),
        };
        self.drop_pages(); // what was stored is there a second time now
        Tensor::from_bytes(&self.name, self.kind, &self.shape, bytes)
    }

    fn decode_fp8(&self, scales: &[f32], [rows, columns]: [usize; 2]) -> Vec<u8> {
        let (width, across) = (self.columns(), self.columns().div_ceil(columns));
        let values: [f32; 256] = std::array::from_fn(|code| e4m3(code as u8));
        on_all_cores(4 * self.bytes().len(), 4 * width, |first, part| {
            let codes = self.bytes()[first * width..].chunks(width);
            for ((row, codes), to) in (first..).zip(codes).zip(part.chunks_mut(4 * width)) {
                let scales = &scales[row / rows * across..];
                let pieces = codes.chunks(columns).zip(to.chunks_mut(4 * columns)).zip(scales);
                for ((codes, to), scale) in pieces {
                    for (to, &code) in to.as_chunks_mut().0.iter_mut().zip(codes) {
                        *to = (values[usize::from(code)] * scale).to_le_bytes();
                    }
                }
            }
        })
    }
}

/// So many bytes, made of pieces of `piece` bytes by all cores: `make` is given the number of the first piece of a part, and the
/// part.
fn on_all_cores(bytes: usize, piece: usize, make: impl Fn(usize, &mut [u8]) + Sync) -> Vec<u8> {
    let mut all = vec![0; bytes];
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let piece = piece.max(1);
    let of_core = bytes.div_ceil(cores).next_multiple_of(piece).max(piece);
    let make = &make;
    std::thread::scope(|scope| {
        for (i, part) in all.chunks_mut(of_core).enumerate() {
            scope.spawn(move || make(i * of_core / piece, part));
        }
    });
    all
}

impl Tensor {
    /// The stored bytes from byte `first` on and then from the beginning, as often as the shape asks for; on all cores, as
    /// fresh memory is what takes the time.
    fn repeat(&self, first: usize) -> Vec<u8> {
        let (before, after) = self.bytes().split_at(first);
        let pattern = &[after, before].concat()[..];
        on_all_cores(self.kind.row_bytes(self.columns()) * self.rows(), pattern.len(), |_, part| {
            part.chunks_mut(pattern.len()).for_each(|to| to.copy_from_slice(&pattern[..to.len()]));
        })
    }
}

/// A number of eight bits: sign, four of exponent less 7, three of mantissa; no infinities, one NaN.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (code >> 3 & 15, f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * f32::from_bits((u32::from(exponent) + 120) << 23),
    };
    if code >> 7 == 0 { magnitude } else { -magnitude }
}

/// A block in GGUF's order: the exponent, then codes of which a byte holds those 16 apart.
fn mxfp4(codes: &[u8; 16], exponent: u8) -> [u8; 17] {
    let code = |i: usize| codes[i / 2] >> (4 * (i % 2)) & 15;
    std::array::from_fn(|i| if i == 0 { exponent } else { code(i - 1) | code(i + 15) << 4 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bit_floats_are_those_of_the_standard() {
        let cases = [
            (0x00, 0.0),
            (0x01, 2f32.powi(-9)),
            (0x07, 7.0 * 2f32.powi(-9)),
            (0x08, 2f32.powi(-6)),
            (0x38, 1.0),
            (0x3c, 1.5),
            (0x7e, 448.0),
            (0xb8, -1.0),
            (0xfe, -448.0),
        ];
        for (code, value) in cases {
            assert_eq!(e4m3(code), value, "{code:#x}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
    }

    #[test]
    fn a_block_larger_than_the_tensor_is_one_of_its_size() {
        let codes = Tensor::from_bytes("w", BlockType::F32, &[4], vec![0x38; 16]);
        let tensor = Tensor { shape: vec![4, 4], encoding: Encoding::Bare, ..codes };
        let factors = [1f32, 2.0].iter().flat_map(|factor| factor.to_le_bytes()).collect();
        let scales = Tensor::from_bytes("w_scale_inv", BlockType::F32, &[2, 1], factors);
        let mut tensors = BTreeMap::from([(scales.name.clone(), scales)]);
        let joined = join_fp8(tensor, &mut tensors, [2, usize::MAX]).unwrap().unwrap();
        assert_eq!(joined.values(), [[1.0; 8], [2.0; 8]].concat());
    }

    #[test]
    fn codes_of_mxfp4_are_put_into_gguf_s_order() {
        let codes: [u8; 16] = std::array::from_fn(|i| (2 * i % 16) as u8 | (((2 * i + 1) % 16) as u8) << 4);
        let block = mxfp4(&codes, 130);
        assert_eq!((block[0], block[1], block[2], block[16]), (130, 0x00, 0x11, 0xff));
    }
}
