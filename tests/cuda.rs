//! The backend of the CUDA kernels, whose text is compiled as C++ here: everything but NVIDIA's compiler, driver and cuBLAS.

mod common;

use std::sync::atomic::Ordering;

use common::emulated::Emulated;
use common::tiny::{self, Architecture};
use pensive::backend::cpu::{CpuBackend, CpuOptions};
use pensive::backend::cuda::CudaBackend;
use pensive::backend::{
    Activation, Attention, Backend, Experts, Gate, Heads, KvShape, KvType, PAGE_LEN, Plan, Projection, Rope,
    RopeStyle, Routing, Row, Source, Stack, Stacked, Step,
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

#[test]
fn steps_of_one_row_are_programs_with_the_same_bits_each_time_near_those_of_launches() {
    let Some(driver) = Emulated::like_hopper() else { return };
    let programs = driver.programs.clone();
    let model = tiny::model_of(Architecture::Llama, BlockType::Q4_K, 1);
    let mut engine = tiny::engine_on(&model, Box::new(CudaBackend::new(Box::new(driver))), KvType::F16);
    let mut run = |chunk: usize| {
        let mut sequence = Sequence::new();
        tokens(24).chunks(chunk).flat_map(|t| logits(&mut engine, &mut sequence, t)).collect::<Vec<_>>()
    };
    let single = run(1); // the first steps' memory moves, so that they are run in parts
    let before = programs.load(Ordering::Relaxed);
    assert!(run(1) == single);
    assert_eq!(programs.load(Ordering::Relaxed) - before, 24);
    assert!(tiny::divergence(&single, &run(24)) < 1e-3);
}

#[test]
fn programs_that_share_out_a_rows_positions_are_near_the_cpus_logits() {
    let Some(driver) = Emulated::like_hopper() else { return };
    let programs = driver.programs.clone();
    let model = tiny::model_of(Architecture::Llama, BlockType::Q4_K, 1);
    let backends: [Box<dyn Backend>; 2] = [Box::new(CudaBackend::new(Box::new(driver))), cpu()];
    let engine = |backend| tiny::engine_of_pages(&model, backend, KvType::F16, 9);
    let [mut device, mut cpu] = backends.map(engine);
    let (mut here, mut there) = (Sequence::new(), Sequence::new());
    // one split until 256 positions, then two, from 512 on three
    for (prompt, singles) in [(253, 6), (252, 4)] {
        for tokens in tokens(prompt).chunks(70) {
            logits(&mut device, &mut here, tokens);
            logits(&mut cpu, &mut there, tokens);
        }
        let before = programs.load(Ordering::Relaxed);
        for token in tokens(singles) {
            let got = logits(&mut device, &mut here, &[token]);
            let kl = tiny::divergence(&got, &logits(&mut cpu, &mut there, &[token]));
            assert!(kl < 0.02, "position {}: KL {kl}", here.len() - 1);
        }
        assert!(programs.load(Ordering::Relaxed) - before >= singles);
    }
}

#[test]
fn after_a_step_that_found_no_memory_its_like_works_again() {
    let Some(driver) = Emulated::new() else { return };
    let room = driver.room.clone();
    let model = tiny::model_of(Architecture::Llama, BlockType::Q8_0, 1);
    let mut engine = tiny::engine_on(&model, Box::new(CudaBackend::new(Box::new(driver))), KvType::F16);
    // the first step of one row is queued, the second recorded, the third run from the record
    let three_steps = |engine: &mut Engine| {
        let mut sequence = Sequence::new();
        tokens(3).chunks(1).flat_map(|tokens| logits(engine, &mut sequence, tokens)).collect::<Vec<_>>()
    };
    let expected = three_steps(&mut engine);
    // a step of more rows fails where the first of its buffers grows, then at one behind it
    for allocations in 0..100 {
        room.store(allocations, Ordering::Relaxed);
        let mut sequence = Sequence::new();
        let feed = Feed { sequence: &mut sequence, tokens: &tokens(5), wants: Wants::All };
        let result = engine.step(&mut [feed]).map(|_| ());
        room.store(usize::MAX, Ordering::Relaxed);
        assert!(three_steps(&mut engine) == expected, "after {allocations} allocations");
        if result.is_ok() {
            return assert!(allocations > 3, "{allocations} allocations make a step");
        }
    }
    panic!("a step for which there is memory fails");
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

/// Two products of normed rows, and one of what a gated feed-forward makes of other two; matrices as they are, or as the plain
/// numbers that they stand for.
fn multiplied(
    mut backend: Box<dyn Backend>,
    kind: BlockType,
    columns: usize,
    rows: usize,
    plain: bool,
) -> Vec<f32> {
    const HEIGHT: usize = 24;
    let matrix = |seed: usize| {
        let values: Vec<f32> =
            numbers(seed, HEIGHT * columns).iter().map(|v| v / (columns as f32).sqrt()).collect();
        let mut bytes = vec![0; kind.row_bytes(values.len())];
        quant::quantize(kind, &values, &mut bytes);
        if !plain {
            return Tensor::from_bytes("matrix", kind, &[HEIGHT, columns], bytes);
        }
        let mut values = values;
        quant::dequantize(kind, &bytes, &mut values);
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::from_bytes("matrix", BlockType::F32, &[HEIGHT, columns], bytes)
    };
    let matrices = [1, 2, 3].map(|seed| backend.add_matrix(&matrix(seed)).unwrap());
    let weight = backend.add_vector(numbers(4, columns)).unwrap();
    let [from, normed, up] = [columns; 3].map(|width| backend.add_buffer(width));
    let to = [HEIGHT; 3].map(|width| backend.add_buffer(width));
    let plan = Plan { rows: 8, logit_rows: 8, sequences: 1, pages: 1, kv_type: KvType::F16 };
    let rope = Rope { inverse_frequencies: vec![1.0], magnitude: 1.0, style: RopeStyle::Halves };
    backend.prepare(plan, &rope).unwrap();
    let of_step: Vec<Row> =
        (0..rows).map(|position| Row { sequence: 0, position, token: 0, wants_logits: false }).collect();
    backend.begin(&Step { rows: &of_step, tables: &[&[0]] });
    backend.write(from, &numbers(5, rows * columns));
    backend.write(up, &numbers(6, rows * columns));
    let projection = |i: usize| Projection { matrix: matrices[i], bias: None, to: to[i], sum: None };
    let source = Source::RmsNorm { from, weight, epsilon: 1e-5, to: normed };
    backend.linear(source, &[projection(0), projection(1)]);
    let activation = Activation::SwiGlu;
    backend.linear(Source::Gated { gate: from, up, activation }, &[projection(2)]);
    to.iter().flat_map(|&to| backend.read(to).unwrap().to_vec()).collect()
}

#[test]
fn rows_too_long_for_shared_memory_are_near_the_cpus() {
    // of blocks a row fits below 18,433 columns, of plain numbers one below 25,313 and four below 6,329
    let cases = [
        (BlockType::Q8_0, 20_480),
        (BlockType::Q4_K, 20_480),
        (BlockType::BF16, 20_480),
        (BlockType::F16, 28_672),
        (BlockType::F32, 25_602),
    ];
    for (kind, columns) in cases {
        for rows in [1, 3] {
            let Some(backend) = emulated() else { return };
            let got = multiplied(backend, kind, columns, rows, false);
            let share = difference(&got, &multiplied(cpu(), kind, columns, rows, true));
            println!("{kind}, {columns} columns, {rows} rows: {share:.1e}");
            assert!(share < 3e-3, "{kind}, {columns} columns, {rows} rows: {share}");
        }
    }
}

/// A latent whose rank is no whole number of blocks: values are the first numbers of keys, and have a place of their own.
#[test]
fn values_that_stand_in_rotated_keys_are_stored_after_the_rotation() {
    const RANK: usize = 40;
    const ROWS: usize = 3;
    let kv = KvShape::latent(RANK, 8);
    assert!(!kv.value_in_key);
    let stored = |mut backend: Box<dyn Backend>| {
        let key = backend.add_buffer(kv.key_dim);
        let weight = backend.add_vector(numbers(1, RANK)).unwrap();
        let layer = backend.add_kv(kv);
        let plan = Plan { rows: 8, logit_rows: 8, sequences: 1, pages: 1, kv_type: KvType::F32 };
        let inverse_frequencies = vec![1.0, 0.5, 0.25, 0.125];
        let rope = Rope { inverse_frequencies, magnitude: 1.0, style: RopeStyle::Halves };
        backend.prepare(plan, &rope).unwrap();
        let rows = [0, 1, 2].map(|position| Row { sequence: 0, position, token: 0, wants_logits: false });
        backend.begin(&Step { rows: &rows, tables: &[&[0]] });
        backend.write(key, &numbers(2, ROWS * kv.key_dim));
        let norm = Some((weight, 1e-5));
        backend.rope(&[Heads { x: key, dim: kv.key_dim, norm, rotate_from: RANK, center: None }]);
        backend.append_kv(layer, key, key);
        backend.end().unwrap();
        let mut bytes = Vec::new();
        backend.read_page(0, ROWS, &mut bytes).unwrap();
        bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect::<Vec<f32>>()
    };
    let Some(backend) = emulated() else { return };
    let (got, expected) = (stored(backend), stored(cpu()));
    assert_eq!(got.len(), expected.len());
    assert!(difference(&got, &expected) < 1e-5);
}

#[test]
fn what_the_kernels_have_no_room_for_is_refused() {
    let rope = Rope { inverse_frequencies: vec![1.0], magnitude: 1.0, style: RopeStyle::Halves };
    let plan = Plan { rows: 8, logit_rows: 8, sequences: 1, pages: 1, kv_type: KvType::F16 };
    let Some(mut backend) = emulated() else { return };
    let expert = |_| Tensor::from_bytes("expert", BlockType::F32, &[1, 4], vec![0; 16]);
    let experts: Vec<Tensor> = (0..1025).map(expert).collect();
    let refused = |result: pensive::Result<_>| result.map(|_: Stack| ()).unwrap_err().to_string();
    let many = refused(backend.add_stack(&experts, Stacked::Experts { used: 4 }));
    assert!(many.contains("4 of 1025 experts"), "{many}");
    let used = refused(backend.add_stack(&experts[..64], Stacked::Experts { used: 33 }));
    assert!(used.contains("33 of 64 experts"), "{used}");
    backend.add_stack(&experts[..64], Stacked::Experts { used: 32 }).unwrap();
    let rows = backend.prepare(Plan { rows: 2048, ..plan }, &rope).unwrap_err().to_string();
    assert!(rows.contains("2048 rows") && rows.contains("2047"), "{rows}");
    for width in [640, 65] {
        let mut backend = emulated().unwrap();
        backend.add_kv(KvShape::grouped(1, width, width));
        let heads = backend.prepare(plan, &rope).unwrap_err().to_string();
        assert!(heads.contains(&width.to_string()), "{heads}");
    }
}
