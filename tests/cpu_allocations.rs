//! A step of the CPU backend allocates nothing: all memory is planned by `prepare`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use pensive::backend::cpu::{CpuBackend, CpuOptions};
use pensive::backend::{
    Activation, Attention, Backend, Heads, KvShape, KvType, Plan, Projection, Rope, RopeStyle, Row, Source,
    Step,
};
use pensive::checkpoint::Tensor;
use pensive::quant::BlockType;

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

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
