use super::*;
use crate::backend::cpu::kv::KvCache;
use crate::backend::{Attention, KvShape};
use half::f16;

/// A model of nothing but one attention layer: token t has the query, key and value of row t.
struct Setup {
    shape: KvShape,
    heads: usize,
    window: Option<usize>,
    kv_type: KvType,
    tokens: usize,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
}

/// Each 32 values as multiples of one step, the largest `most` steps away from zero.
fn in_steps(values: &[f32], most: f32, step: impl Fn(f32) -> f32) -> Vec<f64> {
    let block = |block: &[f32]| {
        let largest = block.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        let step = step(largest / most);
        let steps = |v: f32| if step > 0.0 { (v * (1.0 / step)).round_ties_even() } else { 0.0 };
        block.iter().map(|&v| f64::from(steps(v)) * f64::from(step)).collect::<Vec<f64>>()
    };
    values.chunks(32).flat_map(block).collect()
}

/// Rows of one step: (sequence, first position, count).
type Rows = [(usize, usize, usize)];

impl Setup {
    fn new(group: usize, shape: KvShape, tokens: usize, kv_type: KvType) -> Self {
        let heads = group * shape.heads;
        Setup {
            shape,
            heads,
            window: None,
            kv_type,
            tokens,
            query: noise(21, tokens * heads * shape.key_dim, 2.0),
            key: noise(22, tokens * shape.heads * shape.key_dim, 2.0),
            value: noise(23, tokens * shape.heads * shape.value_dim, 1.0),
        }
    }

    fn simple(group: usize, dim: usize, tokens: usize) -> Self {
        Self::new(group, KvShape::grouped(2, dim, dim), tokens, KvType::F16)
    }

    /// Latent attention; the values, which stand in the keys, apart as well.
    fn latent(heads: usize, (rank, rope_dims): (usize, usize), tokens: usize) -> Self {
        let mut setup = Self::new(heads, KvShape::latent(rank, rope_dims), tokens, KvType::F16);
        setup.value = setup.key.chunks(rank + rope_dims).flat_map(|key| &key[..rank]).copied().collect();
        setup
    }

    fn of(self, kv_type: KvType) -> Self {
        Setup { kv_type, ..self }
    }

    fn windowed(self, window: usize) -> Self {
        Setup { window: Some(window), ..self }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.shape.key_dim as f32).sqrt()
    }

    fn width(&self) -> usize {
        self.heads * self.shape.value_dim
    }

    /// Executes the steps; the output rows of all, in order. Token of a row: sequence * stride + position.
    /// With `garbage`, NaN stands in all pages before; of q8_0, which drops NaN, infinite scales.
    fn run(&self, mut backend: CpuBackend, steps: &[&Rows], stride: usize, garbage: bool) -> Vec<f32> {
        let shape = self.shape;
        let mut key = self.key.clone();
        let mut value = self.value.clone();
        let worst = if self.kv_type == KvType::Q8_0 { f32::INFINITY } else { f32::NAN };
        key.resize(key.len() + shape.heads * shape.key_dim, worst); // one more token
        value.resize(value.len() + shape.heads * shape.value_dim, worst);
        let query = Input::new(&mut backend, &self.query, self.heads * shape.key_dim);
        let key = Input::new(&mut backend, &key, shape.heads * shape.key_dim);
        let value = Input::new(&mut backend, &value, shape.heads * shape.value_dim);
        let out = backend.add_buffer(self.width());
        let layer = [backend.add_kv(shape), backend.add_kv(shape)][1];

        let sequences = steps.iter().flat_map(|step| step.iter()).map(|rows| rows.0).max().unwrap_or(0) + 1;
        let pages_each = self.tokens.div_ceil(PAGE_LEN);
        let rows = (sequences * self.tokens).max(PAGE_LEN);
        let plan = Plan { kv_type: self.kv_type, ..plan(rows, sequences * pages_each) };
        backend.prepare(plan, &no_rope()).expect("memory");
        // The pages of the sequences alternate.
        let tables: Vec<Vec<u32>> =
            (0..sequences).map(|s| (0..pages_each).map(|p| (p * sequences + s) as u32).collect()).collect();
        let tables: Vec<&[u32]> = tables.iter().map(Vec::as_slice).collect();
        if garbage {
            let rows: Vec<Row> = (0..sequences * pages_each * PAGE_LEN)
                .map(|i| (i / (pages_each * PAGE_LEN), i % (pages_each * PAGE_LEN)))
                .map(|(sequence, position)| Row {
                    sequence,
                    position,
                    token: self.tokens as u32,
                    wants_logits: false,
                })
                .collect();
            for rows in rows.chunks(PAGE_LEN) {
                backend.begin(&Step { rows, tables: &tables });
                key.load(&mut backend);
                value.load(&mut backend);
                backend.append_kv(layer, key.buffer, value.buffer);
            }
        }
        let attention =
            Attention { heads: self.heads, scale: self.scale(), window: self.window, sinks: None };
        let mut result = Vec::new();
        for step in steps {
            let rows: Vec<Row> = step
                .iter()
                .flat_map(|&(sequence, first, count)| (first..first + count).map(move |p| (sequence, p)))
                .map(|(sequence, position)| Row {
                    sequence,
                    position,
                    token: (sequence * stride + position) as u32,
                    wants_logits: false,
                })
                .collect();
            backend.begin(&Step { rows: &rows, tables: &tables });
            [&query, &key, &value].into_iter().for_each(|input| input.load(&mut backend));
            backend.append_kv(layer, key.buffer, value.buffer);
            backend.attention(layer, query.buffer, &attention, out);
            result.extend_from_slice(backend.read(out).unwrap());
        }
        result
    }

    /// All tokens as one sequence in one step.
    fn at_once(&self, backend: CpuBackend) -> Vec<f32> {
        self.run(backend, &[&[(0, 0, self.tokens)]], 0, false)
    }

    /// All tokens as one sequence, `len` at a time.
    fn in_chunks(&self, backend: CpuBackend, len: usize) -> Vec<f32> {
        let steps: Vec<[(usize, usize, usize); 1]> =
            (0..self.tokens).step_by(len).map(|first| [(0, first, len.min(self.tokens - first))]).collect();
        let steps: Vec<&Rows> = steps.iter().map(|step| &step[..]).collect();
        self.run(backend, &steps, 0, false)
    }

    /// A key or a value as the cache holds it.
    fn stored(&self, head: &[f32]) -> Vec<f64> {
        match self.kv_type {
            KvType::F32 => head.iter().map(|&v| f64::from(v)).collect(),
            KvType::F16 => head.iter().map(|&v| f16::from_f32(v).to_f64()).collect(),
            KvType::Q8_0 => in_steps(head, 127.0, |scale| f16::from_f32(scale).to_f32()),
        }
    }

    /// A query as scores see it, scaled.
    fn asked(&self, head: &[f32]) -> Vec<f64> {
        let scaled: Vec<f32> = head.iter().map(|&v| v * self.scale()).collect();
        match self.kv_type {
            KvType::F32 | KvType::F16 => scaled.iter().map(|&v| f64::from(v)).collect(),
            KvType::Q8_0 => in_steps(&scaled, 128.0 * 127.0, |scale| scale),
        }
    }

    /// The definition, in f64.
    fn reference(&self) -> Vec<f64> {
        let KvShape { heads: kv_heads, key_dim, value_dim, .. } = self.shape;
        let stored = |all: &[f32], width| all.chunks(width).map(|head| self.stored(head)).collect();
        let keys: Vec<Vec<f64>> = stored(&self.key, key_dim);
        let values: Vec<Vec<f64>> = stored(&self.value, value_dim);
        let mut out = Vec::new();
        for position in 0..self.tokens {
            for head in 0..self.heads {
                let kv_head = head / (self.heads / kv_heads);
                let first = (position + 1).saturating_sub(self.window.unwrap_or(usize::MAX));
                let query = self.asked(&self.query[(position * self.heads + head) * key_dim..][..key_dim]);
                let key = |p: usize| &keys[p * kv_heads + kv_head];
                let scores: Vec<f64> =
                    (first..=position).map(|p| query.iter().zip(key(p)).map(|(q, k)| q * k).sum()).collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                out.extend((0..value_dim).map(|d| {
                    let value = |p: usize| values[p * kv_heads + kv_head][d];
                    (first..=position).zip(&weights).map(|(p, w)| w * value(p)).sum::<f64>() / sum
                }));
            }
        }
        out
    }
}

#[test]
fn attention_is_softmax_of_scaled_scores_over_what_a_row_sees() {
    for kv_type in KvType::ALL {
        for (group, key_dim, value_dim) in [
            (1, 64, 64),
            (2, 16, 16),
            (3, 64, 64),
            (6, 128, 128),
            (7, 80, 80),
            (2, 32, 32),
            (3, 24, 20),
            (70, 16, 16),
        ] {
            let shape = KvShape::grouped(2, key_dim, value_dim);
            let setup = Setup::new(group, shape, 150, kv_type);
            let values = setup.at_once(backend(2, best()));
            assert_close(&values, &setup.reference(), 1e-5);
        }
    }
}

#[test]
fn a_window_hides_what_lies_further_back() {
    for (window, kv_type) in [1, 5, 64, 65, 100, 1000].into_iter().flat_map(|w| KvType::ALL.map(|k| (w, k))) {
        let setup = Setup::simple(3, 32, 200).windowed(window).of(kv_type);
        let values = setup.at_once(backend(2, best()));
        assert_close(&values, &setup.reference(), 1e-5);
        assert_eq!(
            bits(&setup.in_chunks(backend(2, best()), 1)),
            bits(&values),
            "window {window}, {kv_type}, row by row"
        );
        assert_eq!(
            bits(&setup.in_chunks(backend(8, best()), 33)),
            bits(&values),
            "window {window}, {kv_type}, by 33"
        );
    }
}

#[test]
fn every_instruction_set_and_thread_count_gives_the_same_bits() {
    for kv_type in KvType::ALL {
        for (group, dim) in [(3, 80), (7, 24)] {
            let shape = KvShape::grouped(2, dim, dim);
            let setup = Setup::new(group, shape, 140, kv_type);
            everywhere(|backend| setup.at_once(backend));
        }
    }
}

#[test]
fn chunks_of_prefill_and_single_steps_give_the_same_bits() {
    let more = [(3, KvType::Q8_0), (7, KvType::Q8_0)];
    for (group, kv_type) in [1, 2, 3, 6, 7].map(|group| (group, KvType::F16)).into_iter().chain(more) {
        let setup = Setup::simple(group, 64, 333).of(kv_type);
        let expected = bits(&setup.at_once(backend(2, best())));
        for threads in THREADS {
            for len in [1, 7, 64] {
                let values = setup.in_chunks(backend(threads, best()), len);
                assert_eq!(bits(&values), expected, "group {group}, {kv_type}, {threads} threads, by {len}");
            }
        }
    }
}

#[test]
fn decoding_splits_chunks_over_threads_on_every_instruction_set_alike() {
    for kv_type in [KvType::F16, KvType::Q8_0] {
        let setup = Setup::simple(6, 128, 400).of(kv_type);
        let expected = setup.at_once(backend(2, best()));
        let expected = bits(&expected[399 * setup.width()..]);
        for (isa, threads) in Isa::available().flat_map(|isa| THREADS.map(|threads| (isa, threads))) {
            let values = setup.run(backend(threads, isa), &[&[(0, 0, 399)], &[(0, 399, 1)]], 0, false);
            let last = bits(&values[399 * setup.width()..]);
            assert_eq!(last, expected, "{isa}, {kv_type}, {threads} threads");
        }
    }
}

#[test]
fn a_latent_that_is_cached_once_gives_the_bits_of_one_that_is_cached_twice() {
    for (heads, dims, tokens) in [(128, (512, 64), 80), (3, (32, 6), 333), (70, (64, 32), 130)] {
        for kv_type in KvType::ALL {
            let once = Setup::latent(heads, dims, tokens).of(kv_type);
            assert!(once.shape.value_in_key);
            let shape = KvShape { value_in_key: false, ..once.shape };
            let twice = Setup { shape, ..Setup::latent(heads, dims, tokens).of(kv_type) };
            let expected = twice.at_once(backend(2, best()));
            if tokens < 200 {
                assert_close(&expected, &twice.reference(), 1e-4);
            }
            let expected = bits(&expected);
            let last = &expected[(tokens - 1) * once.width()..];
            for isa in Isa::available() {
                let values = once.at_once(backend(3, isa));
                assert_eq!(bits(&values), expected, "{heads} heads, {kv_type}, {isa}");
                let steps: [&Rows; 2] = [&[(0, 0, tokens - 1)], &[(0, tokens - 1, 1)]];
                let values = once.run(backend(2, isa), &steps, 0, true);
                let decoded = &values[(tokens - 1) * once.width()..];
                assert_eq!(bits(decoded), last, "{heads} heads, {kv_type}, {isa}: the last row alone");
            }
            let windowed = |setup: Setup| bits(&setup.windowed(70).in_chunks(backend(2, best()), 33));
            assert_eq!(windowed(once), windowed(twice), "{heads} heads, {kv_type}: a window");
        }
    }
}

#[test]
fn a_position_of_r1_takes_576_numbers_a_layer() {
    let shape = KvShape::latent(512, 64);
    for (kv_type, bytes) in [(KvType::F32, 4 * 576), (KvType::F16, 2 * 576), (KvType::Q8_0, 34 * 576 / 32)] {
        assert_eq!(shape.position_bytes(kv_type), bytes, "{kv_type}");
        assert_eq!(shape.page_bytes(kv_type), PAGE_LEN * bytes, "{kv_type}");
        let cache = KvCache::new(&[shape; 3], 1, kv_type).unwrap();
        let mut page = Vec::new();
        cache.read_page(0, PAGE_LEN, &mut page);
        assert_eq!(page.len(), 3 * PAGE_LEN * bytes, "{kv_type}");
    }
}

#[test]
fn a_sequence_gets_the_same_bits_in_a_batch_as_alone() {
    let (tokens, each) = (600, 150);
    let batch: Vec<&Rows> = vec![
        &[(0, 0, 100), (1, 0, 3), (2, 0, 64), (3, 0, 1)],
        &[(0, 100, 1), (1, 3, 70), (2, 64, 1), (3, 1, 1)],
        &[(0, 101, 49), (2, 65, 85), (3, 2, 148)],
        &[(1, 73, 77)],
    ];
    for (threads, kv_type) in [(1, KvType::F16), (2, KvType::F16), (2, KvType::Q8_0), (8, KvType::Q8_0)] {
        let setup = Setup::simple(3, 64, tokens).of(kv_type);
        let together = setup.run(backend(threads, best()), &batch, each, false);
        let mut together = together.chunks(setup.width());
        let mut by_sequence = vec![Vec::new(); 4];
        for &(sequence, _, count) in batch.iter().flat_map(|step| step.iter()) {
            by_sequence[sequence].extend(together.by_ref().take(count).flatten().copied());
        }
        for (sequence, values) in by_sequence.iter().enumerate() {
            let alone = Setup {
                tokens: each,
                query: setup.query[sequence * each * setup.heads * 64..][..each * setup.heads * 64].to_vec(),
                key: setup.key[sequence * each * 128..][..each * 128].to_vec(),
                value: setup.value[sequence * each * 128..][..each * 128].to_vec(),
                ..Setup::simple(3, 64, each).of(kv_type)
            };
            let alone = alone.at_once(backend(2, best()));
            assert_eq!(bits(values), bits(&alone), "sequence {sequence}, {kv_type}, {threads} threads");
        }
    }
}

#[test]
fn what_stands_behind_the_end_of_a_page_changes_nothing() {
    for (window, kv_type) in [None, Some(40)].into_iter().flat_map(|w| KvType::ALL.map(|k| (w, k))) {
        let setup = Setup { window, ..Setup::simple(6, 64, 150).of(kv_type) };
        for isa in Isa::available() {
            let whole: &[&Rows] = &[&[(0, 0, 150)]];
            let parts: &[&Rows] = &[&[(0, 0, 70)], &[(0, 70, 1)], &[(0, 71, 79)]];
            for steps in [whole, parts] {
                let clean = setup.run(backend(2, isa), steps, 0, false);
                let dirty = setup.run(backend(2, isa), steps, 0, true);
                assert!(clean.iter().all(|v| v.is_finite()));
                assert_eq!(bits(&dirty), bits(&clean), "{isa}, {kv_type}");
            }
        }
    }
}

/// Fills page 0 with 64 positions in two layers, lets `copy` bring 63 of them to page 2, and compares what
/// position 62 attends to.
fn reads_alike_on_another_page(kv_type: KvType, copy: impl Fn(&mut CpuBackend)) {
    for setup in [Setup::simple(3, 40, 64), Setup::latent(5, (32, 8), 64)] {
        setup_reads_alike(&setup, kv_type, &copy);
    }
}

fn setup_reads_alike(setup: &Setup, kv_type: KvType, copy: &impl Fn(&mut CpuBackend)) {
    let shape = setup.shape;
    let mut backend = backend(2, best());
    let query = Input::new(&mut backend, &setup.query, setup.heads * shape.key_dim);
    let key = Input::new(&mut backend, &setup.key, shape.heads * shape.key_dim);
    let value = Input::new(&mut backend, &setup.value, shape.heads * shape.value_dim);
    let out = backend.add_buffer(setup.width());
    let layers = [backend.add_kv(shape), backend.add_kv(shape)];
    backend.prepare(Plan { kv_type, ..plan(64, 3) }, &no_rope()).unwrap();
    backend.begin(&Step { rows: &rows(64), tables: &[&[0]] });
    [&query, &key, &value].into_iter().for_each(|input| input.load(&mut backend));
    layers.into_iter().for_each(|layer| backend.append_kv(layer, key.buffer, value.buffer));
    copy(&mut backend);
    let attention = Attention { heads: setup.heads, scale: setup.scale(), window: None, sinks: None };
    let mut results =
        [0u32, 2].into_iter().flat_map(|page| layers.map(|layer| (page, layer))).map(|(page, layer)| {
            let row = Row { sequence: 0, position: 62, token: 5, wants_logits: true };
            backend.begin(&Step { rows: &[row], tables: &[&[page]] });
            query.load(&mut backend);
            backend.attention(layer, query.buffer, &attention, out);
            bits(backend.read(out).unwrap())
        });
    let first = results.next().unwrap();
    assert!(first.iter().any(|&bits| bits != 0));
    assert!(results.all(|other| other == first), "{kv_type}");
}

#[test]
fn a_copied_page_reads_like_its_source() {
    for kv_type in KvType::ALL {
        reads_alike_on_another_page(kv_type, |backend| backend.copy_page(0, 2, 63));
    }
}

#[test]
fn a_page_that_was_read_and_written_back_is_the_same_and_holds_no_more_than_was_asked_for() {
    for kv_type in KvType::ALL {
        reads_alike_on_another_page(kv_type, |backend| {
            let mut bytes = Vec::new();
            backend.read_page(0, 63, &mut bytes).unwrap();
            let shape = backend.shapes[0];
            assert_eq!(bytes.len(), 2 * 63 * shape.position_bytes(kv_type));
            backend.write_page(2, 63, &bytes);
            let mut again = Vec::new();
            backend.read_page(2, 63, &mut again).unwrap();
            assert!(again == bytes);
            again.clear();
            backend.read_page(2, 64, &mut again).unwrap();
            backend.write_page(1, 64, &vec![0; again.len()]);
            backend.write_page(1, 63, &bytes);
            let mut on_empty = Vec::new();
            backend.read_page(1, 64, &mut on_empty).unwrap();
            assert!(on_empty == again, "the last position was written");
        });
    }
}
