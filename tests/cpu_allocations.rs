//! A step of the CPU backend allocates nothing: all memory is planned by `prepare`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use common::tiny::{self, Architecture};
use pensive::Sampling;
use pensive::backend::cpu::{CpuBackend, CpuOptions};
use pensive::backend::{
    Activation, Attention, Backend, Heads, KvShape, KvType, Plan, Projection, Rope, RopeStyle, Row, Source,
    Step,
};
use pensive::checkpoint::Tensor;
use pensive::engine::sampling::Sampler;
use pensive::engine::{Engine, Feed, Sequence, Wants};
use pensive::quant::BlockType;

mod common;

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// One test at a time: they share the count.
static ALONE: Mutex<()> = Mutex::new(());

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn tensor(kind: BlockType, rows: usize, columns: usize) -> Tensor {
    Tensor::from_bytes("w", kind, &[rows, columns], vec![1; kind.row_bytes(rows * columns)])
}

#[test]
fn a_step_allocates_nothing_whatever_its_shape() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for (threads, kv_type) in [(1, KvType::F16), (2, KvType::Q8_0), (3, KvType::F16)] {
        let options = CpuOptions { threads: Some(threads), ..Default::default() };
        let mut backend = CpuBackend::new(options).expect("threads start");
        let (heads, shape, width) = (4, KvShape::grouped(2, 64, 64), 256);
        let table = backend.add_embedding(&tensor(BlockType::Q8_0, 10, width)).expect("a matrix");
        let mut matrix = |kind, rows| backend.add_matrix(&tensor(kind, rows, width)).expect("a matrix");
        let (wq, wk, wv) =
            (matrix(BlockType::Q4_K, 256), matrix(BlockType::Q6_K, 128), matrix(BlockType::F16, 128));
        let weight = backend.add_vector(vec![1.0; width]).expect("memory");
        let [x, normed, query, out] = [(); 4].map(|()| backend.add_buffer(width));
        let [key, value] = [(); 2].map(|()| backend.add_buffer(128));
        let layer = backend.add_kv(shape);
        let plan = Plan { rows: 200, logit_rows: 3, sequences: 2, pages: 12, kv_type };
        let inverse_frequencies = (0..32).map(|i| 1e4f64.powf(-f64::from(i) / 32.0)).collect();
        let rope = Rope { inverse_frequencies, magnitude: 1.0, style: RopeStyle::Halves };
        backend.prepare(plan, &rope).expect("memory");

        let row = |sequence, position| Row { sequence, position, token: 3, wants_logits: position % 99 == 0 };
        let steps: [Vec<Row>; 3] = [
            (0..200).map(|p| row(0, p)).collect(),
            (200..300).map(|p| row(0, p)).chain((0..99).map(|p| row(1, p))).collect(),
            vec![row(0, 300), row(1, 99)],
        ];
        let attention = Attention { heads, scale: 0.125, window: None, sinks: None };
        let mut run = |rows: &[Row]| {
            backend.begin(&Step { rows, tables: &[&[0, 2, 4, 6, 8], &[1, 3, 5, 7, 9]] });
            backend.embed(table, x);
            let to = |matrix, to| Projection { matrix, bias: None, to, sum: None };
            let norm = Source::RmsNorm { from: x, weight, epsilon: 1e-6, to: normed };
            backend.linear(norm, &[to(wq, query), to(wk, key), to(wv, value)]);
            let heads = |x| Heads { x, dim: 64, norm: None, rotate_from: 0, center: None };
            backend.rope(&[heads(query), heads(key)]);
            backend.append_kv(layer, key, value);
            backend.attention(layer, query, &attention, out);
            let gated = Source::Gated { gate: out, up: normed, activation: Activation::SwiGlu };
            backend.linear(gated, &[Projection { sum: Some(x), ..to(wq, query) }]);
            backend.gather(x, normed);
            backend.read(normed).unwrap().len()
        };
        // the test's harness has a thread of its own, which may allocate meanwhile: the least of three rounds counts
        let rounds = [(); 3].map(|()| {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            let read: usize = steps.iter().map(|rows| run(rows)).sum();
            let after = ALLOCATIONS.load(Ordering::Relaxed);
            assert_eq!(read, 6 * width, "four rows of the first sequence want logits, two of the second");
            after - before
        });
        assert_eq!(rounds.iter().min(), Some(&0), "{threads} threads, {kv_type} cache");
    }
}

/// A prompt, tokens one by one, a draft, and another sequence beside it.
fn generate(engine: &mut Engine, sequences: &mut [Sequence; 2], sampler: &mut Sampler) {
    let [first, second] = sequences;
    engine.step(&mut [Feed { sequence: first, tokens: &[1, 2, 3, 4, 5], wants: Wants::Nothing }]).unwrap();
    let mut token = 6;
    for index in 0..70 {
        let feed = Feed { sequence: first, tokens: &[token], wants: Wants::Last };
        let logits = engine.step(&mut [feed]).unwrap();
        token = sampler.sample(logits, first.tokens(), index);
    }
    let draft = Feed { sequence: first, tokens: &[token, 1, 2], wants: Wants::All };
    let other = Feed { sequence: second, tokens: &[1, 2], wants: Wants::Last };
    engine.step(&mut [draft, other]).unwrap();
}

/// Nothing grows to its size on the way. From the first step on where weights stay in the file; what is interleaved takes its memory
/// in the first steps.
#[test]
fn tokens_are_generated_without_an_allocation() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for architecture in [Architecture::Llama, Architecture::Deepseek2] {
        for kind in [BlockType::Q8_0, BlockType::F16] {
            let model = tiny::model_of(architecture, kind, 1);
            for (interleaved_bytes, kv_type) in
                [(0, KvType::F16), (u64::MAX, KvType::F16), (u64::MAX, KvType::Q8_0)]
            {
                let options = CpuOptions { threads: Some(2), interleaved_bytes, ..Default::default() };
                let rounds = allocations_of_generating(&model, options, kv_type);
                let way = format!(
                    "{architecture:?} in {kind}, {interleaved_bytes} bytes interleaved, {kv_type} cache"
                );
                assert_eq!(rounds.iter().min(), Some(&0), "{way}: {rounds:?}");
            }
        }
    }
}

/// In three rounds, of which the least counts: the test's harness has a thread of its own, which may allocate meanwhile.
fn allocations_of_generating(model: &tiny::Written, options: CpuOptions, kv_type: KvType) -> [usize; 3] {
    let sampling = Sampling { temperature: 0.8, ..Sampling::default() };
    let (mut sequences, mut sampler) = ([Sequence::new(), Sequence::new()], Sampler::new(sampling, 1, 0));
    // then sequences and sampler have the memory that they come to
    generate(&mut tiny::engine(model, options, kv_type), &mut sequences, &mut sampler);
    [(); 3].map(|()| {
        let mut engine = tiny::engine(model, options, kv_type);
        sequences.iter_mut().for_each(|sequence| sequence.truncate(0));
        let first_steps = if options.interleaved_bytes > 0 { 16 } else { 0 };
        for _ in 0..first_steps {
            let feed = Feed { sequence: &mut sequences[1], tokens: &[1], wants: Wants::Last };
            engine.step(&mut [feed]).unwrap();
        }
        sequences[1].truncate(0);
        std::thread::sleep(std::time::Duration::from_millis(50)); // its threads allocate when they start
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        generate(&mut engine, &mut sequences, &mut sampler);
        ALLOCATIONS.load(Ordering::Relaxed) - before
    })
}
