use super::*;
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
        Self::new(group, KvShape { heads: 2, key_dim: dim, value_dim: dim }, tokens, KvType::F16)
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
    /// With `garbage`, NaN stands in all pages before.
    fn run(&self, mut backend: CpuBackend, steps: &[&Rows], stride: usize, garbage: bool) -> Vec<f32> {
        let shape = self.shape;
        let mut key = self.key.clone();
        let mut value = self.value.clone();
        key.resize(key.len() + shape.heads * shape.key_dim, f32::NAN); // one more token, of NaN
        value.resize(value.len() + shape.heads * shape.value_dim, f32::NAN);
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
        let attention = Attention { heads: self.heads, scale: self.scale(), window: self.window };
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
            result.extend_from_slice(backend.read(out));
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

    fn stored(&self, v: f32) -> f64 {
        match self.kv_type {
            KvType::F16 => f16::from_f32(v).to_f64(),
            KvType::F32 => f64::from(v),
        }
    }

    /// The definition, in f64.
    fn reference(&self) -> Vec<f64> {
        let KvShape { heads: kv_heads, key_dim, value_dim } = self.shape;
        let mut out = Vec::new();
        for position in 0..self.tokens {
            for head in 0..self.heads {
                let kv_head = head / (self.heads / kv_heads);
                let first = (position + 1).saturating_sub(self.window.unwrap_or(usize::MAX));
                let query = &self.query[(position * self.heads + head) * key_dim..][..key_dim];
                let scores: Vec<f64> = (first..=position)
                    .map(|p| {
                        let key = &self.key[(p * kv_heads + kv_head) * key_dim..][..key_dim];
                        let dot: f64 =
                            query.iter().zip(key).map(|(&q, &k)| f64::from(q) * self.stored(k)).sum();
                        dot * f64::from(self.scale())
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                out.extend((0..value_dim).map(|d| {
                    let value = |p: usize| self.stored(self.value[(p * kv_heads + kv_head) * value_dim + d]);
                    (first..=position).zip(&weights).map(|(p, w)| w * value(p)).sum::<f64>() / sum
                }));
            }
        }
        out
    }
}

#[test]
fn attention_is_softmax_of_scaled_scores_over_what_a_row_sees() {
    for kv_type in [KvType::F16, KvType::F32] {
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
            let shape = KvShape { heads: 2, key_dim, value_dim };
            let setup = Setup::new(group, shape, 150, kv_type);
            let values = setup.at_once(backend(2, best()));
            assert_close(&values, &setup.reference(), 1e-5);
        }
    }
}

#[test]
fn a_window_hides_what_lies_further_back() {
    for window in [1, 5, 64, 65, 100, 1000] {
        let setup = Setup::simple(3, 32, 200).windowed(window);
        let values = setup.at_once(backend(2, best()));
        assert_close(&values, &setup.reference(), 1e-5);
        assert_eq!(
            bits(&setup.in_chunks(backend(2, best()), 1)),
            bits(&values),
            "window {window}, row by row"
        );
        assert_eq!(bits(&setup.in_chunks(backend(8, best()), 33)), bits(&values), "window {window}, by 33");
    }
}

#[test]
fn every_instruction_set_and_thread_count_gives_the_same_bits() {
    for kv_type in [KvType::F16, KvType::F32] {
        for (group, dim) in [(3, 80), (7, 24)] {
            let shape = KvShape { heads: 2, key_dim: dim, value_dim: dim };
            let setup = Setup::new(group, shape, 140, kv_type);
            everywhere(|backend| setup.at_once(backend));
        }
    }
}

#[test]
fn chunks_of_prefill_and_single_steps_give_the_same_bits() {
    for group in [1, 2, 3, 6, 7] {
        let setup = Setup::simple(group, 64, 333);
        let expected = bits(&setup.at_once(backend(2, best())));
        for threads in THREADS {
            for len in [1, 7, 64] {
                let values = setup.in_chunks(backend(threads, best()), len);
                assert_eq!(bits(&values), expected, "group {group}, {threads} threads, by {len}");
            }
        }
    }
}

#[test]
fn decoding_splits_chunks_over_threads_on_every_instruction_set_alike() {
    let setup = Setup::simple(6, 128, 400);
    let expected = setup.at_once(backend(2, best()));
    let expected = bits(&expected[399 * setup.width()..]);
    for isa in Isa::available() {
        for threads in THREADS {
            let values = setup.run(backend(threads, isa), &[&[(0, 0, 399)], &[(0, 399, 1)]], 0, false);
            assert_eq!(bits(&values[399 * setup.width()..]), expected, "{isa}, {threads} threads");
        }
    }
}

#[test]
fn a_sequence_gets_the_same_bits_in_a_batch_as_alone() {
    let (tokens, each) = (600, 150);
    let setup = Setup { tokens, ..Setup::simple(3, 64, tokens) };
    let batch: Vec<&Rows> = vec![
        &[(0, 0, 100), (1, 0, 3), (2, 0, 64), (3, 0, 1)],
        &[(0, 100, 1), (1, 3, 70), (2, 64, 1), (3, 1, 1)],
        &[(0, 101, 49), (2, 65, 85), (3, 2, 148)],
        &[(1, 73, 77)],
    ];
    for threads in [1, 2, 8] {
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
                ..Setup::simple(3, 64, each)
            };
            let alone = alone.at_once(backend(2, best()));
            assert_eq!(bits(values), bits(&alone), "sequence {sequence}, {threads} threads");
        }
    }
}

#[test]
fn what_stands_behind_the_end_of_a_page_changes_nothing() {
    for window in [None, Some(40)] {
        let setup = Setup { window, ..Setup::simple(6, 64, 150) };
        for isa in Isa::available() {
            let whole: &[&Rows] = &[&[(0, 0, 150)]];
            let parts: &[&Rows] = &[&[(0, 0, 70)], &[(0, 70, 1)], &[(0, 71, 79)]];
            for steps in [whole, parts] {
                let clean = setup.run(backend(2, isa), steps, 0, false);
                let dirty = setup.run(backend(2, isa), steps, 0, true);
                assert!(clean.iter().all(|v| v.is_finite()));
                assert_eq!(bits(&dirty), bits(&clean), "{isa}");
            }
        }
    }
}

#[test]
fn a_copied_page_reads_like_its_source() {
    let setup = Setup::simple(3, 32, 64);
    let shape = setup.shape;
    let mut backend = backend(2, best());
    let query = Input::new(&mut backend, &setup.query, setup.heads * 32);
    let key = Input::new(&mut backend, &setup.key, 64);
    let value = Input::new(&mut backend, &setup.value, 64);
    let out = backend.add_buffer(setup.width());
    let layers = [backend.add_kv(shape), backend.add_kv(shape)];
    backend.prepare(plan(64, 3), &no_rope()).unwrap();
    backend.begin(&Step { rows: &rows(64), tables: &[&[0]] });
    [&query, &key, &value].into_iter().for_each(|input| input.load(&mut backend));
    layers.into_iter().for_each(|layer| backend.append_kv(layer, key.buffer, value.buffer));
    backend.copy_page(0, 2, 63);
    let attention = Attention { heads: setup.heads, scale: setup.scale(), window: None };
    let mut results =
        [0u32, 2].into_iter().flat_map(|page| layers.map(|layer| (page, layer))).map(|(page, layer)| {
            let row = Row { sequence: 0, position: 62, token: 5, wants_logits: true };
            backend.begin(&Step { rows: &[row], tables: &[&[page]] });
            query.load(&mut backend);
            backend.attention(layer, query.buffer, &attention, out);
            bits(backend.read(out))
        });
    let first = results.next().unwrap();
    assert!(results.all(|other| other == first));
}
