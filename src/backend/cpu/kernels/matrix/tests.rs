//! Products against exact sums of what `quant` says the blocks mean, and against each other by bits.

use super::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// A random matrix and the input of some tokens.
#[derive(Clone, Debug)]
struct Case {
    tensor: Tensor,
    /// [tokens][columns]
    x: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Case {
    fn columns(&self) -> usize {
        self.tensor.columns()
    }

    fn tokens(&self) -> usize {
        self.x.len() / self.columns()
    }

    fn matrix(&self, layout: Layout) -> WeightMatrix {
        WeightMatrix::new(&self.tensor, layout).unwrap()
    }

    /// The product of tokens `which`, computed `tiles` tiles at a time: bits [tokens][rows].
    fn product(&self, isa: Isa, layout: Layout, which: Range<usize>, tiles: usize) -> Vec<u32> {
        let matrix = self.matrix(layout);
        let [copying, copied @ ..] = Processor::ALL.map(|processor| {
            let bytes = if processor == Processor::ALL[0] { u64::MAX } else { 0 };
            self.product_of(&matrix, bytes, isa, which.clone(), tiles, (processor, Fetch::ToSecond))
        });
        for (copied, processor) in copied.iter().zip(&Processor::ALL[1..]) {
            assert_eq!(&copying, copied, "copying, and then as for {processor:?}, on {isa}");
        }
        copying
    }

    /// The product of this case's matrix, which copies `bytes` of it; as for one processor, weights fetched one way.
    fn product_of(
        &self,
        matrix: &WeightMatrix,
        bytes: u64,
        isa: Isa,
        which: Range<usize>,
        tiles: usize,
        (processor, fetch): (Processor, Fetch),
    ) -> Vec<u32> {
        let (rows, columns) = (matrix.rows(), matrix.columns());
        let x = &self.x[which.start * columns..which.end * columns];
        let activations = Activations::new(matrix.activation(), which.len(), columns);
        let input = match matrix.activation() {
            ActivationKind::F32 => Input::Floats { x, width: columns },
            _ => {
                for (row, x) in x.chunks(columns).enumerate() {
                    // SAFETY: one thread.
                    unsafe { activations.quantize(isa, row, x) };
                }
                Input::Quantized(&activations)
            }
        };
        let mut scratch = Scratch::new(which.len());
        (scratch.processor, scratch.fetch) = (processor, fetch);
        let mut out = vec![f32::NAN; which.len() * rows];
        // SAFETY: each tile is multiplied once, before `finish`.
        unsafe { matrix.begin(bytes) };
        for first in (0..matrix.tiles()).step_by(tiles) {
            let range = first..(first + tiles).min(matrix.tiles());
            let out = Output { to: out.as_mut_ptr(), stride: rows };
            // SAFETY: `out` has the shape, one thread.
            unsafe { matrix.multiply(isa, range, input, self.bias.as_deref(), out, &mut scratch) };
        }
        // SAFETY: one thread.
        unsafe { matrix.finish() };
        out.into_iter().map(f32::to_bits).collect()
    }

    /// For each output the exact value, and by how much the product may miss it.
    fn exact(&self) -> Vec<(f64, f64)> {
        let (columns, weights, minima) = (self.columns(), self.tensor.values(), self.minima());
        let x = match ActivationKind::of(self.tensor.kind) {
            ActivationKind::F32 => self.x.clone(),
            kind => dequantized(kind, Isa::Scalar, &self.x, columns),
        };
        let mut out = Vec::new();
        for x in x.chunks(columns) {
            for (row, w) in weights.chunks(columns).enumerate() {
                let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[row]));
                let products = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
                let (sum, size) = products.fold((bias, bias.abs()), |(s, m), p| (s + p, m + p.abs()));
                let minima = minima.as_ref().map_or(0.0, |(part, minima)| {
                    let chunks =
                        minima[row * columns..(row + 1) * columns].chunks(CHUNK).zip(x.chunks(CHUNK));
                    let most = chunks.map(|(minima, x)| {
                        let sum: f64 = minima.iter().map(|&minimum| f64::from(minimum).abs()).sum();
                        sum / *part as f64 * largest_sum(x) / 8192.0
                    });
                    most.sum()
                });
                out.push((sum, 1e-5 * size + 1e-30 + 1.001 * minima));
            }
        }
        out
    }

    /// What the weights of a super-block would be if their quants were zero, and how many share one: these are multiplied
    /// with sums of activations that are off by up to 1/8192 of the largest.
    fn minima(&self) -> Option<(usize, Vec<f32>)> {
        let (part, quants) = match self.tensor.kind {
            BlockType::Q2_K => (16, 16..80),
            BlockType::Q4_K => (32, 16..144),
            BlockType::Q5_K => (32, 16..176),
            _ => return None,
        };
        let mut bytes = self.tensor.bytes().to_vec();
        bytes.chunks_mut(self.tensor.kind.block_bytes()).for_each(|block| block[quants.clone()].fill(0));
        Some((part, Tensor::from_bytes("minima", self.tensor.kind, &self.tensor.shape, bytes).values()))
    }
}

/// The largest of the sums of 16 and of 32 values.
fn largest_sum(x: &[f32]) -> f64 {
    let sums = x.chunks(16).chain(x.chunks(32));
    sums.map(|part| part.iter().map(|&v| f64::from(v)).sum::<f64>().abs()).fold(0.0, f64::max)
}

/// The rows, quantized and back.
fn dequantized(kind: ActivationKind, isa: Isa, x: &[f32], columns: usize) -> Vec<f32> {
    let mut activations = Activations::new(kind, x.len() / columns, columns);
    let mut out = vec![0.0; x.len()];
    for (row, (x, out)) in x.chunks(columns).zip(out.chunks_mut(columns)).enumerate() {
        // SAFETY: one thread.
        unsafe { activations.quantize(isa, row, x) };
        activations.dequantize(row, out);
    }
    out
}

/// Blocks of arbitrary bytes, except that 16-bit scales (and values of float formats) are finite.
fn tame(kind: BlockType, bytes: &mut [u8]) {
    let halves: &[usize] = match kind {
        BlockType::F32 | BlockType::F16 | BlockType::BF16 => &[0],
        BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 => &[0],
        BlockType::IQ2_XXS | BlockType::IQ2_XS | BlockType::IQ2_S | BlockType::IQ3_XXS => &[0],
        BlockType::IQ3_S | BlockType::IQ1_S | BlockType::IQ4_NL | BlockType::IQ4_XS => &[0],
        BlockType::TQ1_0 => &[52],
        BlockType::TQ2_0 => &[64],
        // the high nibble of the last scales is that of the factor; an exponent
        BlockType::IQ1_M => &[54],
        BlockType::MXFP4 => &[0],
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4_K | BlockType::Q5_K => &[0, 2],
        BlockType::Q2_K => &[80, 82],
        BlockType::Q3_K => &[108],
        BlockType::Q6_K => &[208],
    };
    for block in bytes.chunks_mut(kind.block_bytes()) {
        for &at in halves {
            match kind {
                // Exponents around 1.
                BlockType::F32 => block[3] = block[3] & 0x81 | 0x3e,
                BlockType::BF16 => block[1] = block[1] & 0x81 | 0x3e,
                BlockType::MXFP4 => block[0] = block[0] % 8 + 120,
                _ => block[at + 1] &= 0xb7,
            }
        }
    }
}

fn case(kind: BlockType, max_blocks: usize, tokens: usize) -> impl Strategy<Value = Case> {
    let per = if kind.block_len() == 1 { 1..=70 } else { 1..=max_blocks };
    (1usize..=70, per, any::<bool>()).prop_flat_map(move |(rows, blocks, biased)| {
        let columns = blocks * kind.block_len();
        let x = prop_oneof![8 => -4.0f32..4.0, 1 => Just(0.0), 1 => -1e4f32..1e4];
        (
            proptest::collection::vec(any::<u8>(), rows * kind.row_bytes(columns)),
            proptest::collection::vec(x, tokens * columns),
            proptest::collection::vec(-1.0f32..1.0, rows),
        )
            .prop_map(move |(mut bytes, x, bias)| {
                tame(kind, &mut bytes);
                let tensor = Tensor::from_bytes("random", kind, &[rows, columns], bytes);
                Case { tensor, x, bias: biased.then_some(bias) }
            })
    })
}

/// Runs a property for every block format.
fn for_every_format(cases: u32, tokens: usize, property: impl Fn(&Case) -> Result<(), TestCaseError>) {
    for kind in BlockType::ALL {
        let blocks = if kind.block_len() == 32 { 19 } else { 3 };
        let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
        let result = runner.run(&case(kind, blocks, tokens), |case| property(&case));
        result.unwrap_or_else(|error| panic!("{kind}: {error}"));
    }
}

const LAYOUTS: [Layout; 2] = [Layout::Interleaved, Layout::AsInFile];

#[test]
fn the_scalar_product_is_the_sum_of_dequantized_weights_times_dequantized_activations() {
    for_every_format(12, 2, |case| {
        let got = case.product(Isa::Scalar, Layout::Interleaved, 0..2, 100);
        for (i, (got, (exact, most))) in got.into_iter().zip(case.exact()).enumerate() {
            let error = (f64::from(f32::from_bits(got)) - exact).abs();
            prop_assert!(error <= most, "output {i}: {} for {exact}", f32::from_bits(got));
        }
        Ok(())
    });
}

#[test]
fn every_isa_and_layout_gives_the_same_bits() {
    for_every_format(12, 5, |case| {
        let expected = case.product(Isa::Scalar, Layout::Interleaved, 0..5, 100);
        for isa in Isa::available() {
            for layout in LAYOUTS {
                let got = case.product(isa, layout, 0..5, 100);
                prop_assert_eq!(&got, &expected, "{} {:?}", isa, layout);
            }
        }
        Ok(())
    });
}

#[test]
fn tokens_get_the_same_bits_however_their_weights_are_fetched() {
    for_every_format(4, 8, |case| {
        let ways = [Fetch::ToSecond, Fetch::Twice, Fetch::ToFirst, Fetch::Unasked];
        for tokens in [1, 2, 3, 4, 5, 6, 7, 8] {
            let expected = case.product(Isa::Scalar, Layout::AsInFile, 0..tokens, 100);
            for isa in Isa::available() {
                let matrix = case.matrix(Layout::Interleaved);
                for way in
                    ways.into_iter().flat_map(|fetch| Processor::ALL.map(|processor| (processor, fetch)))
                {
                    let got = case.product_of(&matrix, u64::MAX, isa, 0..tokens, 100, way);
                    prop_assert_eq!(&got, &expected, "{} tokens on {}, {:?}", tokens, isa, way);
                }
            }
        }
        Ok(())
    });
}

#[test]
fn pairs_of_every_power_of_two_get_the_same_bits_by_every_isa_with_the_largest_quants() {
    // each pair's factor; the last two are less than 2^-16 of the chunk's largest
    let factors: Vec<f32> = [0, 1, 2, 4, 8, 15, 17, 20].map(|power| 0.5f32.powi(power)).to_vec();
    let chunk = |sign: f32| factors.iter().flat_map(move |factor| [sign * 3.0 * factor; 32]);
    let zeros = || [0.0; 256].into_iter();
    let x: Vec<f32> = chunk(1.0).chain(zeros()).chain(chunk(-1.0)).collect();
    for kind in BlockType::ALL.into_iter().filter(|kind| kind.block_len() == 256) {
        for byte in [0xff, 0xf0, 0x0f] {
            let mut bytes = vec![byte; 16 * kind.row_bytes(x.len())];
            tame(kind, &mut bytes);
            let tensor = Tensor::from_bytes("powers", kind, &[16, x.len()], bytes);
            let case = Case { tensor, x: x.clone(), bias: None };
            let expected = case.product(Isa::Scalar, Layout::AsInFile, 0..1, 1);
            for isa in Isa::available() {
                for layout in LAYOUTS {
                    let got = case.product(isa, layout, 0..1, 1);
                    assert_eq!(got, expected, "{kind} {byte:#x} on {isa}, {layout:?}");
                }
            }
        }
    }
}

#[test]
fn a_matrix_gives_the_same_bits_while_it_is_copied_tile_by_tile() {
    for_every_format(6, 5, |case| {
        for isa in Isa::available() {
            let expected = case.product(isa, Layout::AsInFile, 0..5, 100);
            let matrix = case.matrix(Layout::Interleaved);
            for product in 0..=matrix.tiles() + 1 {
                let got = case.product_of(&matrix, 1, isa, 0..5, 3, (Processor::Other, Fetch::ToSecond));
                prop_assert_eq!(&got, &expected, "product {} on {}", product, isa);
            }
        }
        Ok(())
    });
}

#[test]
fn a_product_copies_as_many_whole_tiles_as_it_may() {
    let tensor = Tensor::from_bytes("w", BlockType::Q8_0, &[40, 32], vec![0; 40 * 34]); // 3 tiles of 544 bytes
    let matrix = WeightMatrix::new(&tensor, Layout::Interleaved).unwrap();
    let mut scratch = Scratch::new(1);
    let mut out = [0.0; 40];
    for (bytes, left) in [(600, 0), (0, 0), (1000, 456), (1000, 1000)] {
        let to = Output { to: out.as_mut_ptr(), stride: 40 };
        let activations = Activations::new(ActivationKind::I8, 1, 32);
        // SAFETY: each tile is multiplied once, by one thread; `out` has the shape.
        unsafe {
            assert_eq!(matrix.begin(bytes), left, "of {bytes}");
            matrix.multiply(Isa::Scalar, 0..3, Input::Quantized(&activations), None, to, &mut scratch);
            matrix.finish();
        }
    }
}

#[test]
fn a_token_gets_the_same_bits_alone_and_among_any_number_of_others() {
    for_every_format(3, 40, |case| {
        let rows = case.tensor.rows();
        for isa in Isa::available() {
            let alone: Vec<u32> = (0..case.tokens())
                .flat_map(|token| case.product(isa, Layout::Interleaved, token..token + 1, 100))
                .collect();
            for tokens in [2, 3, 4, 5, 6, 7, 8, 12, 13, 40] {
                let got = case.product(isa, Layout::Interleaved, 0..tokens, 100);
                prop_assert_eq!(&got, &alone[..tokens * rows], "{} tokens on {}", tokens, isa);
            }
        }
        Ok(())
    });
}

#[test]
fn a_few_tokens_of_more_tiles_than_may_wait_get_the_bits_that_each_gets_alone() {
    let (rows, tokens) = (TILE * few_tokens::WAITING / 8 + 5, 24);
    for (kind, columns) in [(BlockType::Q4_K, 256), (BlockType::Q8_0, 32)] {
        let mut bytes: Vec<u8> = (0..rows * kind.row_bytes(columns)).map(|i| (i * 37 % 251) as u8).collect();
        tame(kind, &mut bytes);
        let x = (0..tokens * columns).map(|i| (i * 29 % 83) as f32 - 41.0).collect();
        let case = Case { tensor: Tensor::from_bytes("tall", kind, &[rows, columns], bytes), x, bias: None };
        for isa in Isa::available() {
            let product = |which| case.product(isa, Layout::Interleaved, which, 1000);
            let alone: Vec<u32> = (0..tokens).flat_map(|token| product(token..token + 1)).collect();
            for tokens in [2, 8, 9, tokens] {
                assert!(product(0..tokens) == alone[..tokens * rows], "{tokens} tokens of {kind} on {isa}");
            }
        }
    }
}

#[test]
fn the_division_into_tiles_does_not_show() {
    for_every_format(4, 9, |case| {
        for isa in Isa::available() {
            let whole = case.product(isa, Layout::Interleaved, 0..9, 100);
            for tiles in 1..4 {
                let parts = case.product(isa, Layout::Interleaved, 0..9, tiles);
                prop_assert_eq!(&parts, &whole, "{} tiles at a time on {}", tiles, isa);
            }
        }
        Ok(())
    });
}

#[test]
fn extreme_quants_times_extreme_activations_do_not_overflow() {
    for kind in BlockType::ALL.into_iter().filter(|kind| kind.block_len() > 1) {
        for byte in [0x00, 0x7f, 0x80, 0xff] {
            let columns = 256;
            let mut bytes = vec![byte; 16 * kind.row_bytes(columns)];
            tame(kind, &mut bytes);
            let tensor = Tensor::from_bytes("extreme", kind, &[16, columns], bytes);
            for sign in [1.0, -1.0] {
                let case = Case { tensor: tensor.clone(), x: vec![sign * 3.0; columns], bias: None };
                let expected = case.exact();
                for isa in Isa::available() {
                    let got = case.product(isa, Layout::Interleaved, 0..1, 1);
                    for (got, (exact, most)) in got.into_iter().zip(&expected) {
                        let error = (f64::from(f32::from_bits(got)) - exact).abs();
                        assert!(error <= *most, "{kind} {byte:#x} on {isa}: error {error} of {exact}");
                    }
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn activations_are_within_half_a_step_of_their_group_and_alike_on_every_isa(
        x in proptest::collection::vec(prop_oneof![-1e3f32..1e3, -1e-3f32..1e-3, Just(0.0)], 288)
    ) {
        let expected = dequantized(ActivationKind::I8, Isa::Scalar, &x, x.len());
        for (x, got) in x.chunks(16).zip(expected.chunks(16)) {
            let step = largest(x) / 127.0;
            for (x, got) in x.iter().zip(got) {
                prop_assert!((x - got).abs() <= step / 2.0 * 1.0001, "{x} became {got}");
            }
        }
        for isa in Isa::available() {
            prop_assert_eq!(&dequantized(ActivationKind::I8, isa, &x, x.len()), &expected, "{}", isa);
        }
    }

    #[test]
    fn for_super_blocks_the_steps_of_a_chunk_are_powers_of_two_apart_and_less_than_twice_what_32_values_need(
        x in proptest::collection::vec(prop_oneof![-1e3f32..1e3, -1e-3f32..1e-3, Just(0.0)], 288)
    ) {
        let expected = dequantized(ActivationKind::I8Powers, Isa::Scalar, &x, x.len());
        for (x, got) in x.chunks(256).zip(expected.chunks(256)) {
            let step = largest(x) / 127.0;
            for (x, got) in x.chunks(32).zip(got.chunks(32)) {
                let needed = largest(x) / 127.0;
                let mut step = step;
                while step >= 2.0 * needed && needed > 0.0 && step > largest(x) / 127.0 {
                    step /= 2.0;
                }
                // (but pairs of less than 2^-16 of the chunk's largest share a step)
                let step = step.max(largest(expected.as_slice()) / 127.0 / 65536.0);
                for (x, got) in x.iter().zip(got) {
                    prop_assert!((x - got).abs() <= step / 2.0 * 1.001, "{x} became {got}, step {step}");
                }
            }
        }
        for isa in Isa::available() {
            prop_assert_eq!(&dequantized(ActivationKind::I8Powers, isa, &x, x.len()), &expected, "{}", isa);
        }
    }
}

fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0f32, |m, v| m.max(v.abs()))
}

#[test]
fn groups_too_small_to_scale_become_zero() {
    let x: Vec<f32> = (0..64).map(|i| if i < 32 { 1e-37 } else { 1e-3 }).collect();
    for (isa, kind) in
        Isa::available().flat_map(|isa| [(isa, ActivationKind::I8), (isa, ActivationKind::I8Powers)])
    {
        let got = dequantized(kind, isa, &x, 64);
        assert_eq!(got[..32], [0.0; 32]);
        assert!(got[32..].iter().all(|v| (v - 1e-3).abs() < 1e-8), "{got:?}");
    }
}

#[test]
fn rows_that_are_no_whole_blocks_are_an_error_that_names_the_tensor() {
    let mut tensor = Tensor::from_bytes("blk.0.attn_q", BlockType::Q4_0, &[2, 32], vec![0; 36]);
    tensor.shape = vec![2, 48];
    let error = WeightMatrix::new(&tensor, Layout::Interleaved).unwrap_err().to_string();
    assert!(error.contains("blk.0.attn_q") && error.contains("Q4_0"), "{error}");
}
