use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Tensor};
use proptest::prelude::*;

use super::*;

/// A small generator of test data: reproducible, and independent of any library's version.
struct Random(u64);

impl Random {
    /// splitmix64
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// Roughly normal, standard deviation 1.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32).sum::<f32>() - 6.0
    }
}

/// The formats that candle has too.
fn candles() -> impl Iterator<Item = BlockType> {
    BlockType::ALL.into_iter().filter(|kind| candle_type(*kind).is_some())
}

fn candle_type(kind: BlockType) -> Option<GgmlDType> {
    Some(match kind {
        BlockType::F32 => GgmlDType::F32,
        BlockType::F16 => GgmlDType::F16,
        BlockType::BF16 => GgmlDType::BF16,
        BlockType::Q4_0 => GgmlDType::Q4_0,
        BlockType::Q4_1 => GgmlDType::Q4_1,
        BlockType::Q5_0 => GgmlDType::Q5_0,
        BlockType::Q5_1 => GgmlDType::Q5_1,
        BlockType::Q8_0 => GgmlDType::Q8_0,
        BlockType::Q2_K => GgmlDType::Q2K,
        BlockType::Q3_K => GgmlDType::Q3K,
        BlockType::Q4_K => GgmlDType::Q4K,
        BlockType::Q5_K => GgmlDType::Q5K,
        BlockType::Q6_K => GgmlDType::Q6K,
        _ => return None,
    })
}

fn candle_values(kind: BlockType, blocks: &[u8]) -> Vec<f32> {
    let len = blocks.len() / kind.block_bytes() * kind.block_len();
    let storage =
        QStorage::from_data(Cow::Borrowed(blocks), &Device::Cpu, candle_type(kind).unwrap()).unwrap();
    let tensor = QTensor::new(storage, len).unwrap().dequantize(&Device::Cpu).unwrap();
    tensor.to_vec1().unwrap()
}

fn candle_blocks(kind: BlockType, values: &[f32]) -> Vec<u8> {
    let tensor = Tensor::new(values, &Device::Cpu).unwrap();
    QTensor::quantize(&tensor, candle_type(kind).unwrap()).unwrap().data().unwrap().into_owned()
}

fn values_of(kind: BlockType, blocks: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; blocks.len() / kind.block_bytes() * kind.block_len()];
    dequantize(kind, blocks, &mut out);
    out
}

fn blocks_of(kind: BlockType, values: &[f32]) -> Vec<u8> {
    let mut blocks = vec![0xa5; kind.row_bytes(values.len())];
    quantize(kind, values, &mut blocks);
    blocks
}

/// Where the f16 factors of a block are; for F16 and BF16 the value itself.
fn half_offsets(kind: BlockType) -> &'static [usize] {
    match kind {
        BlockType::F32 => &[],
        BlockType::F16 | BlockType::BF16 | BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 => &[0],
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4_K | BlockType::Q5_K => &[0, 2],
        BlockType::Q2_K => &[80, 82],
        BlockType::Q3_K => &[108],
        BlockType::Q6_K => &[208],
        _ => &[],
    }
}

/// Equal bits; NaN equals NaN, because which NaN an operation gives is not defined.
fn assert_same(kind: BlockType, blocks: &[u8]) {
    let (ours, candles) = (values_of(kind, blocks), candle_values(kind, blocks));
    for (i, (a, b)) in ours.iter().zip(&candles).enumerate() {
        assert!(
            a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(),
            "{kind}: value {i} is {a:e}, candle has {b:e}"
        );
    }
}

#[test]
fn block_sizes_are_those_of_candle() {
    for kind in BlockType::ALL {
        if let Some(candle) = candle_type(kind) {
            assert_eq!(kind.block_len(), candle.block_size(), "{kind}");
            assert_eq!(kind.block_bytes(), candle.type_size(), "{kind}");
        }
        assert_eq!(BlockType::from_id(kind as u32), Some(kind));
    }
}

#[test]
fn random_blocks_dequantize_to_the_bits_of_candle() {
    let mut random = Random(1);
    for kind in candles() {
        let blocks = random.bytes(kind.block_bytes() * 256);
        assert_same(kind, &blocks);
    }
}

#[test]
fn blocks_with_extreme_factors_dequantize_to_the_bits_of_candle() {
    // Zeros of both signs, subnormals, one, the largest values, infinities.
    let halves = [0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x3c00, 0xbc00, 0x7bff, 0xfbff, 0x7c00, 0xfc00u16];
    let mut random = Random(2);
    for kind in candles() {
        for half in halves {
            let mut block = random.bytes(kind.block_bytes());
            for &at in half_offsets(kind) {
                block[at..at + 2].copy_from_slice(&half.to_le_bytes());
            }
            assert_same(kind, &block);
        }
    }
}

#[test]
fn blocks_of_equal_bytes_dequantize_to_the_bits_of_candle() {
    for kind in candles() {
        for byte in 0..=255 {
            assert_same(kind, &vec![byte; kind.block_bytes() * 2]);
        }
    }
}

#[test]
fn blocks_of_every_format_dequantize_to_the_bits_of_the_gguf_package() {
    let file = include_bytes!("../../tests/fixtures/blocks.safetensors");
    let file = safetensors::SafeTensors::deserialize(file).unwrap();
    for kind in BlockType::ALL.into_iter().filter(|kind| kind.block_len() > 1) {
        let [blocks, values] =
            ["blocks", "values"].map(|part| file.tensor(&format!("{kind}.{part}")).unwrap());
        assert_eq!(blocks.shape()[1], kind.block_bytes(), "{kind}");
        let ours = values_of(kind, blocks.data());
        for (i, (ours, theirs)) in ours.iter().zip(values.data().as_chunks::<4>().0).enumerate() {
            let (theirs, block) = (f32::from_le_bytes(*theirs), i / kind.block_len());
            assert_eq!(
                ours.to_bits(),
                theirs.to_bits(),
                "{kind}, block {block}, value {}: {ours:e}, not {theirs:e}",
                i % kind.block_len()
            );
        }
    }
}

#[test]
fn grids_keep_most_of_what_they_quantize() {
    let mut random = Random(4);
    let values: Vec<f32> = (0..8192).map(|_| random.normal() * 0.02).collect();
    let square: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum();
    for (kind, most) in [
        (BlockType::IQ1_S, 0.22),
        (BlockType::IQ1_M, 0.19),
        (BlockType::IQ2_XXS, 0.12),
        (BlockType::IQ2_XS, 0.09),
        (BlockType::IQ2_S, 0.065),
        (BlockType::IQ3_XXS, 0.035),
        (BlockType::IQ3_S, 0.02),
        (BlockType::IQ4_NL, 0.01),
        (BlockType::IQ4_XS, 0.01),
        (BlockType::MXFP4, 0.03),
        (BlockType::TQ1_0, 0.7),
        (BlockType::TQ2_0, 0.7),
    ] {
        let back = values_of(kind, &blocks_of(kind, &values));
        let error: f64 = values.iter().zip(&back).map(|(x, y)| f64::from(x - y).powi(2)).sum();
        println!("{kind}: {:.3} of the square is lost", error / square);
        assert!(error / square < most, "{kind}: {:.3} of the square is lost", error / square);
    }
}

#[test]
fn what_is_important_loses_less_where_that_is_known() {
    let mut random = Random(5);
    let values: Vec<f32> = (0..64 * 512).map(|_| random.normal() * 0.02).collect();
    let importance: Vec<f32> = (0..512).map(|_| random.normal().exp()).collect();
    let heedless = [BlockType::Q8_0, BlockType::MXFP4, BlockType::TQ1_0, BlockType::TQ2_0];
    for kind in BlockType::ALL.into_iter().filter(|kind| kind.block_len() > 1 && !heedless.contains(kind)) {
        let error = |importance: &[f32], known: bool| -> f64 {
            let mut blocks = vec![0; kind.row_bytes(values.len())];
            quantize_by(kind, &values, known.then_some(importance), &mut blocks);
            let back = values_of(kind, &blocks);
            let errors = values.iter().zip(&back).map(|(x, y)| f64::from(x - y).powi(2));
            errors.zip(importance.iter().cycle()).map(|(error, weight)| error * f64::from(*weight)).sum()
        };
        let (plain, by_importance) = (error(&importance, false), error(&importance, true));
        println!("{kind}: {:.3}", by_importance / plain);
        assert!(by_importance < 0.98 * plain, "{kind}: {by_importance:e}, {plain:e} without importance");
    }
}

#[test]
fn quantizing_dequantized_values_keeps_a_constant_and_zero() {
    // the entries of a grid hold few constants
    let is_grid = |kind: &BlockType| format!("{kind}").starts_with("IQ") && kind.block_len() == 256;
    for kind in BlockType::ALL.into_iter().filter(|kind| !is_grid(kind)) {
        for value in [0.0, 1.0, -1.0, 0.25] {
            let values = vec![value; 256];
            let back = values_of(kind, &blocks_of(kind, &values));
            for y in back {
                assert!((y - value).abs() <= value.abs() * 0.005, "{kind}: {value} became {y}");
            }
        }
    }
}

#[test]
fn quantize_loses_no_more_than_candles() {
    let mut random = Random(3);
    let values: Vec<f32> = (0..16384).map(|_| random.normal() * 0.02).collect();
    let error = |kind, blocks: &[u8]| -> f64 {
        let back = values_of(kind, blocks);
        values.iter().zip(&back).map(|(x, y)| f64::from(x - y).powi(2)).sum()
    };
    for kind in candles() {
        let ours = error(kind, &blocks_of(kind, &values));
        let candles = error(kind, &candle_blocks(kind, &values));
        println!("{kind}: square error {ours:.3e}, candle {candles:.3e}");
        assert!(ours <= candles * 1.02, "{kind}: square error {ours:e}, candle {candles:e}");
    }
}

#[test]
fn values_that_no_format_can_hold_do_not_panic() {
    for kind in BlockType::ALL {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45] {
            let mut values = vec![0.5; 256];
            values[7] = odd;
            blocks_of(kind, &values);
            blocks_of(kind, &[odd; 256]);
        }
    }
}

#[test]
#[should_panic(expected = "bytes of 256 values of Q4_K")]
fn dequantize_refuses_a_buffer_of_another_length() {
    dequantize(BlockType::Q4_K, &[0; 143], &mut [0.0; 256]);
}

#[test]
#[should_panic(expected = "33 values are no whole blocks of Q8_0")]
fn quantize_refuses_a_part_of_a_block() {
    quantize(BlockType::Q8_0, &[0.0; 33], &mut [0; 34]);
}

/// The step between neighbouring codes, as a share of the block's range of values.
fn relative_step(kind: BlockType) -> f32 {
    match kind {
        BlockType::F32 => f32::EPSILON,
        BlockType::F16 => f16::EPSILON.to_f32(),
        BlockType::BF16 => bf16::EPSILON.to_f32(),
        BlockType::Q2_K => 1.0 / 3.0,
        BlockType::Q3_K => 1.0 / 4.0,
        BlockType::Q4_0 => 1.0 / 8.0,
        BlockType::Q4_1 | BlockType::Q4_K => 1.0 / 15.0,
        BlockType::Q5_0 => 1.0 / 16.0,
        BlockType::Q5_1 | BlockType::Q5_K => 1.0 / 31.0,
        BlockType::Q6_K => 1.0 / 32.0,
        BlockType::Q8_0 => 1.0 / 127.0,
        BlockType::IQ4_NL | BlockType::IQ4_XS => 24.0 / 240.0,
        BlockType::MXFP4 => 4.0 / 12.0,
        BlockType::TQ1_0 | BlockType::TQ2_0 => 1.0,
        // eight values at once: no bound on a single one but the range
        _ => 2.0,
    }
}

proptest! {
    #[test]
    fn quantizing_errs_by_no_more_than_a_step_or_two_where_scales_are_searched(
        values in proptest::collection::vec(-1.0f32..1.0, 256),
        scale in prop::sample::select(vec![1e-2f32, 1.0, 300.0]),
        shift in prop::sample::select(vec![0.0f32, -1.0, 1.0]),
    ) {
        let values: Vec<f32> = values.iter().map(|x| (x + shift) * scale).collect();
        let range = values.iter().fold(0.0, |m: f32, x| m.max(*x)) - values.iter().fold(0.0, |m: f32, x| m.min(*x));
        for kind in BlockType::ALL {
            let back = values_of(kind, &blocks_of(kind, &values));
            // the least square error is sought, which may cut off an extreme
            let searched = kind.block_len() == 256 || kind == BlockType::IQ4_NL;
            let steps = if searched { 2.0 } else { 1.0 };
            let bound = steps * range * relative_step(kind);
            for (x, y) in values.iter().zip(&back) {
                prop_assert!((x - y).abs() <= bound, "{kind}: {x} became {y}, at most {bound} is allowed");
            }
        }
    }

    #[test]
    fn any_bytes_dequantize(bytes in proptest::collection::vec(any::<u8>(), 512)) {
        for kind in candles() {
            assert_same(kind, &bytes[..bytes.len() / kind.block_bytes() * kind.block_bytes()]);
        }
    }
}
