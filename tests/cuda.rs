//! The backend of the CUDA kernels, whose text is compiled as C++ here: everything but NVIDIA's compiler, driver and cuBLAS.

mod common;

use std::sync::atomic::Ordering;

use common::emulated::Emulated;
use common::tiny::{self, Architecture};
use pensive::backend::cpu::{CpuBackend, CpuOptions};
use pensive::backend::cuda::CudaBackend;
use pensive::backend::{
    Activation, Attention, Backend, Experts, Gate, KvShape, KvType, PAGE_LEN, Plan, Rope, RopeStyle, Routing,
    Row, Stacked, Step,
};
use pensive::checkpoint::Tensor;
use pensive::engine::{Engine, Feed, Sequence, Wants};
use pensive::quant::{self, BlockType};

fn emulated() -> Option<Box<dyn Backend>> {
    Some(Box::new(CudaBackend::new(Box::new(Emulated::new()?))))
}

fn cpu() -> Box<dyn Backend> {
    Box::new(CpuBackend::new(CpuOptions::default()).unwrap())
}

/// Logits after all of some tokens.
fn logits(engine: &mut Engine, sequence: &mut Sequence, tokens: &[u32]) -> Vec<f32> {
    engine.step(&mut [Feed { sequence, tokens, wants: Wants::All }]).unwrap().to_vec()
}

fn tokens(len: usize) -> Vec<u32> {
    (0..len).map(|i| (i * 31 % tiny::VOCABULARY) as u32).collect()
}

/// One row, few and many are multiplied by three kernels.
fn is_near_the_cpus_logits(architecture: Architecture, kind: BlockType, kv_type: KvType) {
    let Some(backend) = emulated() else { return };
    let model = tiny::model_of(architecture, kind, 1);
    let [mut device, mut cpu] = [backend, cpu()].map(|backend| tiny::engine_on(&model, backend, kv_type));
    for (len, chunk) in [(70, 70), (12, 11), (3, 1)] {
        let (mut here, mut there) = (Sequence::new(), Sequence::new());
        let mut kl = 0.0;
        for tokens in tokens(len).chunks(chunk) {
            let got = logits(&mut device, &mut here, tokens);
            let expected = logits(&mut cpu, &mut there, tokens);
            kl += tiny::divergence(&got, &expected) * tokens.len() as f64 / len as f64;
        }
        println!("{kind} {architecture:?} {kv_type}, chunks of {chunk}: KL {kl:.1e}");
        let limit = if kind.block_len() == 1 { 1e-4 } else { 0.02 };
        assert!(kl < limit, "{kind} {architecture:?} {kv_type}, chunks of {chunk}: KL {kl}");
    }
}

#[test]
fn dense_models_of_every_kind_of_blocks_are_near_the_cpus_logits() {
    // of the types that become Q8_0 one
    use BlockType::*;
    for kind in [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS] {
        is_near_the_cpus_logits(Architecture::Llama, kind, KvType::F16);
    }
}

#[test]
fn latent_attention_and_experts_are_near_the_cpus_logits() {
    for kind in [BlockType::F32, BlockType::BF16, BlockType::Q8_0, BlockType::Q4_K] {
        is_near_the_cpus_logits(Architecture::Deepseek2, kind, KvType::F16);
    }
    is_near_the_cpus_logits(Architecture::Deepseek2, BlockType::F16, KvType::F32);
}

#[test]
fn steps_that_are_run_as_graphs_give_the_same_bits() {
    for (architecture, kind) in
        [(Architecture::Llama, BlockType::Q4_K), (Architecture::Deepseek2, BlockType::Q8_0)]
    {
        let Some(driver) = Emulated::new() else { return };
        let runs = driver.runs.clone();
        let model = tiny::model_of(architecture, kind, 1);
        let mut engine = tiny::engine_on(&model, Box::new(CudaBackend::new(Box::new(driver))), KvType::F16);
        let mut run = |chunk: usize| {
            let mut sequence = Sequence::new();
            let tokens = tokens(24);
            tokens.chunks(chunk).flat_map(|t| logits(&mut engine, &mut sequence, t)).collect::<Vec<_>>()
        };
        let first = run(3); // the first step is queued, the second recorded, the others are run from the record
        assert_eq!(runs.load(Ordering::Relaxed), 7);
        assert!(run(3) == first);
        assert_eq!(runs.load(Ordering::Relaxed), 15);
        let single = run(1);
        assert!(run(1) == single);
        assert!(tiny::divergence(&single, &first) < 1e-3);
    }
}

/// Numbers between -2 and 2, the same for a seed.
fn numbers(seed: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729) % 4001) as f32 / 1000.0 - 2.0).collect()
}

/// Attention of a step of many rows, then of one with a row for each of the two sequences, whose pages are not in order.
fn attended(mut backend: Box<dyn Backend>, kv: KvShape, attention: Attention) -> [Vec<f32>; 2] {
    let heads = attention.heads;
    let query = backend.add_buffer(heads * kv.key_dim);
    let key = backend.add_buffer(kv.heads * kv.key_dim);
    let value = backend.add_buffer(kv.heads * kv.value_dim);
    let to = backend.add_buffer(heads * kv.value_dim);
    let sinks = attention.sinks.map(|_| backend.add_vector(numbers(9, heads)).unwrap());
    let layer = backend.add_kv(kv);
    let plan = Plan { rows: 256, logit_rows: 256, sequences: 2, pages: 6, kv_type: KvType::F16 };
    let rope = Rope { inverse_frequencies: vec![1.0], magnitude: 1.0, style: RopeStyle::Halves };
    backend.prepare(plan, &rope).unwrap();
    let lens = [2 * PAGE_LEN + 20, 5];
    let mut step = |positions: [std::ops::Range<usize>; 2]| {
        let rows = positions.into_iter().enumerate();
        let row = |sequence, position| Row { sequence, position, token: 0, wants_logits: true };
        let rows: Vec<Row> = rows.flat_map(|(i, range)| range.map(move |p| row(i, p))).collect();
        backend.begin(&Step { rows: &rows, tables: &[&[4, 0, 3], &[1]] });
        for (seed, buffer, width) in [
            (1, query, heads * kv.key_dim),
            (2, key, kv.heads * kv.key_dim),
            (3, value, kv.heads * kv.value_dim),
        ] {
            backend.write(buffer, &numbers(seed + rows.len(), rows.len() * width));
        }
        backend.append_kv(layer, key, value);
        backend.attention(layer, query, &Attention { sinks, ..attention }, to);
        backend.read(to).unwrap().to_vec()
    };
    let many = step([0..lens[0], 0..lens[1]]);
    let few = step([lens[0]..lens[0] + 1, lens[1]..lens[1] + 1]);
    [many, few]
}

#[test]
fn attention_over_pages_is_near_the_cpus_with_groups_windows_and_sinks() {
    let case = |kv_heads: usize, group: usize, dims: (usize, usize)| {
        let kv = KvShape::grouped(kv_heads, dims.0, dims.1);
        let scale = 1.0 / (dims.0 as f32).sqrt();
        (kv, Attention { heads: kv_heads * group, scale, window: None, sinks: None })
    };
    let with = |(kv, attention): (KvShape, Attention), window, sinks: bool| {
        let sinks = sinks.then_some(pensive::backend::Vector(0));
        (kv, Attention { window, sinks, ..attention })
    };
    let cases = [
        case(1, 1, (64, 64)),
        case(2, 4, (128, 128)),
        case(1, 12, (96, 80)),
        with(case(2, 3, (64, 64)), Some(50), false),
        with(case(1, 8, (64, 64)), Some(100), true),
        with(case(1, 2, (128, 128)), None, true),
        case(1, 3, (20, 18)), // not for tensor cores
        case(1, 2, (192, 128)),
    ];
    for (kv, attention) in cases {
        let Some(backend) = emulated() else { return };
        let (got, expected) = (attended(backend, kv, attention), attended(cpu(), kv, attention));
        for (got, expected) in got.iter().zip(&expected) {
            let share = difference(got, expected);
            assert!(share < 3e-3, "{kv:?} {attention:?}: {share}");
        }
    }
}

/// How long the vector between two is, against the second.
fn difference(got: &[f32], expected: &[f32]) -> f32 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
    norm(&mut got.iter().zip(expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied())
}

/// Of a layer's experts, of which a row goes to [`USED`].
const EXPERTS: usize = 8;
const USED: usize = 3;

/// A layer of experts.
#[derive(Clone, Copy, Debug)]
struct Layer {
    kind: BlockType,
    width: usize,
    feed_forward: usize,
    biases: bool,
    activation: Activation,
}

/// What the matrices of a layer's experts stand for, in its blocks or as plain numbers.
fn experts(layer: Layer, plain: bool, seed: usize, rows: usize, columns: usize) -> Vec<Tensor> {
    let expert = |i: usize| {
        let values: Vec<f32> =
            numbers(seed * EXPERTS + i, rows * columns).iter().map(|v| v / (columns as f32).sqrt()).collect();
        let mut bytes = vec![0; layer.kind.row_bytes(values.len())];
        quant::quantize(layer.kind, &values, &mut bytes);
        if !plain {
            return Tensor::from_bytes("experts", layer.kind, &[rows, columns], bytes);
        }
        let mut values = values;
        quant::dequantize(layer.kind, &bytes, &mut values);
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::from_bytes("experts", BlockType::F32, &[rows, columns], bytes)
    };
    (0..EXPERTS).map(expert).collect()
}

/// What a layer's experts make of so many rows, twice. All rows go to the second expert and none to the sixth.
fn made_by_experts(mut backend: Box<dyn Backend>, layer: Layer, plain: bool, rows: usize) -> [Vec<f32>; 2] {
    let Layer { width, feed_forward, biases, activation, .. } = layer;
    let mut stack = |seed, rows, columns| {
        let tensors = experts(layer, plain, seed, rows, columns);
        backend.add_stack(&tensors, Stacked::Experts { used: USED }).unwrap()
    };
    let gate = stack(1, feed_forward, width);
    let up = stack(2, feed_forward, width);
    let down = stack(3, width, feed_forward);
    let biases = biases.then(|| {
        [feed_forward, feed_forward, width]
            .map(|len| backend.add_vector(numbers(len, EXPERTS * len)).unwrap())
    });
    let [from, scores, sum] = [width, EXPERTS, width].map(|width| backend.add_buffer(width));
    let plan = Plan { rows: 80, logit_rows: 80, sequences: 1, pages: 2, kv_type: KvType::F16 };
    let rope = Rope { inverse_frequencies: vec![1.0], magnitude: 1.0, style: RopeStyle::Halves };
    backend.prepare(plan, &rope).unwrap();
    let routing =
        Routing { used: USED, gate: Gate::SoftmaxOfChosen, groups: (1, 1), normalize: false, scale: 1.0 };
    let experts =
        Experts { from, scores, correction: None, routing, gate, up, down, biases, activation, sum };
    let of_step: Vec<Row> =
        (0..rows).map(|position| Row { sequence: 0, position, token: 0, wants_logits: false }).collect();
    let of_row = |row: usize| {
        let mut scores = numbers(row, EXPERTS);
        (scores[1], scores[5]) = (2.5, -9.0);
        scores
    };
    [(); 2].map(|()| {
        backend.begin(&Step { rows: &of_step, tables: &[&[0, 1]] });
        backend.write(from, &numbers(7, rows * width));
        backend.write(scores, &(0..rows).flat_map(of_row).collect::<Vec<_>>());
        backend.write(sum, &numbers(8, rows * width));
        backend.experts(&experts);
        backend.read(sum).unwrap().to_vec()
    })
}

/// The CPU takes the same matrices as plain numbers, so that what differs is what the device makes of activations.
#[test]
fn rows_brought_together_by_expert_are_near_the_cpus() {
    let clamped = Activation::Clamped { alpha: 1.7, limit: 1.5 };
    let layer = |kind, width, feed_forward, biases, activation| Layer {
        kind,
        width,
        feed_forward,
        biases,
        activation,
    };
    let cases = [
        // tiles of 8, 16 and 32, of each of which the second expert has more than one
        (layer(BlockType::Q8_0, 64, 2336, false, Activation::SwiGlu), 10),
        (layer(BlockType::Q4_K, 256, 512, true, clamped), 20),
        (layer(BlockType::Q5_1, 96, 160, true, clamped), 70),
        (layer(BlockType::Q6_K, 256, 256, false, Activation::SwiGlu), 70),
    ];
    for (layer, rows) in cases {
        let Some(backend) = emulated() else { return };
        let [got, again] = made_by_experts(backend, layer, false, rows);
        assert!(got == again, "{layer:?}, {rows} rows: other bits");
        let [expected, _] = made_by_experts(cpu(), layer, true, rows);
        let share = difference(&got, &expected);
        println!("{layer:?}, {rows} rows: {share:.1e}");
        assert!(share < 3e-3, "{layer:?}, {rows} rows: {share}");
    }
}
