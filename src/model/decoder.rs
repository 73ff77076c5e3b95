//! The one decoder text.

use super::conversion::made_bytes;
use super::layer::{AttentionWeights, Cost, FeedForward, Gated, Layer, Linear};
use super::load::Load;
use super::{Conversion, Hyperparameters};
use crate::Result;
use crate::backend::{Attention, Backend, Buffer, Experts, Heads, Matrix, Source, Step, Vector};
use crate::checkpoint::Checkpoint;
use sha2::{Digest, Sha256};

/// What a step takes at least, by its matrices (attention and what is done value by value are not counted).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes of the matrices that are read. The embedding table is only looked up.
    pub bytes: u64,
    /// Multiply-adds of all rows.
    pub products: u64,
    /// Whether all matrices are quantized, so that the products are in int8.
    pub int8: bool,
}

impl Work {
    /// So many rows are multiplied with a matrix.
    fn add(&mut self, cost: Cost, rows: usize) {
        self.bytes += if rows > 0 { cost.bytes } else { 0 };
        self.products += cost.values * rows as u64;
        self.int8 &= cost.quantized;
    }
}

/// Activation buffers, named by what they hold; widths in the comments.
#[derive(Debug)]
struct Buffers {
    hidden: Buffer,      // width: the residual stream
    normed: Buffer,      // width
    query: Buffer,       // heads * head_dim
    key: Buffer,         // kv_heads * head_dim; latent: [latent, rotated part]
    value: Buffer,       // kv_heads * head_dim; latent: as key
    attended: Buffer,    // heads * value width in the cache
    gate: Buffer,        // feed_forward
    up: Buffer,          // feed_forward
    update: Buffer,      // width: what a block adds to the residual stream
    last_hidden: Buffer, // width: rows that want logits
    last_attended: Buffer,
    logits: Buffer, // vocabulary
    latent: Option<LatentBuffers>,
    scores: Option<Buffer>,           // experts
    guess: Option<Buffer>,            // experts: the next layer's scores, guessed
    shared: Option<(Buffer, Buffer)>, // width of the shared expert: gate, up
}

/// Those of latent attention.
#[derive(Debug)]
struct LatentBuffers {
    compressed: Option<(Buffer, Buffer)>, // query_rank; normed
    absorbed: Buffer,                     // heads * (rank + rope_dims)
    expanded: Buffer,                     // heads * value_dim
}

impl Buffers {
    fn new(h: &Hyperparameters, backend: &mut dyn Backend) -> Self {
        let kv = h.kv_shape();
        let shared = h.experts.as_ref().map(|e| e.shared).filter(|&width| width > 0);
        let mut buffer = |width| backend.add_buffer(width);
        let key = buffer(kv.heads * kv.key_dim);
        Buffers {
            hidden: buffer(h.width),
            normed: buffer(h.width),
            query: buffer(h.heads * h.head_dim),
            key,
            value: if h.latent.is_some() { key } else { buffer(kv.heads * kv.value_dim) },
            attended: buffer(h.heads * kv.value_dim),
            gate: buffer(h.feed_forward),
            up: buffer(h.feed_forward),
            update: buffer(h.width),
            last_hidden: buffer(h.width),
            last_attended: buffer(h.heads * kv.value_dim),
            logits: buffer(h.vocabulary),
            latent: h.latent.map(|l| LatentBuffers {
                compressed: l.query_rank.map(|rank| (buffer(rank), buffer(rank))),
                absorbed: buffer(h.heads * kv.key_dim),
                expanded: buffer(h.heads * l.value_dim),
            }),
            scores: h.experts.as_ref().map(|e| buffer(e.count)),
            guess: h.experts.as_ref().map(|e| buffer(e.count)),
            shared: shared.map(|width| (buffer(width), buffer(width))),
        }
    }
}

/// A model on a backend: the handles of its weights and buffers, and the order of operations.
#[derive(Debug)]
pub struct Decoder {
    hyperparameters: Hyperparameters,
    fingerprint: [u8; 32],
    embedding: Matrix,
    layers: Vec<Layer>,
    output_norm: Vector,
    output: Linear,
    buffers: Buffers,
}

impl Decoder {
    /// Hands a checkpoint's tensors to a backend. `progress` is told (bytes done, bytes in all) after each tensor.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape than the hyperparameters say, named.
    pub fn load(
        checkpoint: &Checkpoint,
        hyperparameters: &Hyperparameters,
        backend: &mut dyn Backend,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        Self::load_as(checkpoint, hyperparameters, None, backend, progress)
    }

    /// [`load`](Self::load) with matrices of other types than they are stored in.
    ///
    /// # Errors
    /// As [`load`](Self::load), and too little memory.
    pub fn load_as(
        checkpoint: &Checkpoint,
        hyperparameters: &Hyperparameters,
        conversion: Option<&Conversion>,
        backend: &mut dyn Backend,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let h = hyperparameters;
        let mut load = Load::new(checkpoint, h, conversion, backend, progress);
        load.enter(None);
        let embedding = load.embedding("token_embd.weight", h.vocabulary, h.width)?;
        let layers = (0..h.layers).map(|i| load.layer(i)).collect::<Result<Vec<_>>>()?;
        load.enter(None);
        let output_norm = load.vector("output_norm.weight", h.width)?;
        // without an output matrix the embedding serves as one ("tied")
        let output = match load.find("output.weight") {
            Some(_) => load.linear("output", h.vocabulary, h.width)?,
            None => load.linear("token_embd", h.vocabulary, h.width)?,
        };

        for _ in 0..h.layers {
            backend.add_kv(h.kv_shape());
        }
        Ok(Decoder {
            hyperparameters: h.clone(),
            fingerprint: fingerprint(checkpoint, h, conversion),
            embedding,
            layers,
            output_norm,
            output,
            buffers: Buffers::new(h, backend),
        })
    }

    /// Bytes of matrices that loading makes, less those of the checkpoint that they stand for.
    pub fn made_bytes(
        checkpoint: &Checkpoint,
        hyperparameters: &Hyperparameters,
        conversion: Option<&Conversion>,
    ) -> i64 {
        made_bytes(checkpoint, hyperparameters, conversion)
    }

    /// Runs a step. The logits of the rows that want them are then in [`logits`](Self::logits), in order.
    pub fn step(&self, backend: &mut dyn Backend, step: &Step<'_>) {
        let wants_logits = step.rows.iter().any(|row| row.wants_logits);
        let all_want = step.rows.iter().all(|row| row.wants_logits);
        let b = &self.buffers;
        backend.begin(step);
        backend.enter(None);
        backend.embed(self.embedding, b.hidden);
        let (mut hidden, mut attended) = (b.hidden, b.attended);
        for (i, layer) in self.layers.iter().enumerate() {
            let last = i + 1 == self.layers.len();
            backend.enter(Some(i));
            let query = self.keys_and_queries(backend, i, layer);
            if last && !wants_logits {
                return; // the cache is all that was asked for
            }
            backend.attention(i, query, &self.attention(i, layer), attended);
            if last && !all_want {
                // what follows is per row: only the rows that want logits go on
                backend.gather(b.hidden, b.last_hidden);
                backend.gather(b.attended, b.last_attended);
                (hidden, attended) = (b.last_hidden, b.last_attended);
            }
            let attended = self.expanded(backend, layer, attended);
            self.add(backend, Source::Buffer(attended), &layer.output, layer.post_attention_norm, hidden);
            self.feed_forward(backend, i, hidden);
        }
        backend.enter(None);
        backend.linear(self.normed(hidden, self.output_norm), &[self.output.to(b.logits)]);
    }

    fn normed(&self, from: Buffer, weight: Vector) -> Source {
        Source::RmsNorm { from, weight, epsilon: self.hyperparameters.norm_epsilon, to: self.buffers.normed }
    }

    fn attention(&self, i: usize, layer: &Layer) -> Attention {
        let h = &self.hyperparameters;
        Attention {
            heads: h.heads,
            scale: h.attention_scale,
            window: h.windows.get(i).copied().flatten(),
            sinks: layer.sinks,
        }
    }

    /// Queries of the step's rows, and their keys and values into the cache. Returns where the queries are.
    fn keys_and_queries(&self, backend: &mut dyn Backend, i: usize, layer: &Layer) -> Buffer {
        let (b, h) = (&self.buffers, &self.hyperparameters);
        let heads = |x, norm: Option<Vector>, center| {
            let norm = norm.map(|weight| (weight, h.norm_epsilon));
            Heads { x, dim: h.head_dim, norm, rotate_from: 0, center }
        };
        match (&layer.attention, h.latent, &b.latent) {
            (AttentionWeights::Grouped { query, key, value, query_norm, key_norm, key_center }, ..) => {
                let projections = [query.to(b.query), key.to(b.key), value.to(b.value)];
                backend.linear(self.normed(b.hidden, layer.attn_norm), &projections);
                // softmax does not see what is added to all scores, and without their large common part keys are
                // stored finer
                backend.rope(&[heads(b.query, *query_norm, None), heads(b.key, *key_norm, *key_center)]);
                backend.append_kv(i, b.key, b.value);
                b.query
            }
            (
                AttentionWeights::Latent { query, expand_query, latent, latent_norm, absorb, .. },
                Some(shape),
                Some(buffers),
            ) => {
                let source = self.normed(b.hidden, layer.attn_norm);
                match (expand_query, buffers.compressed) {
                    (Some((norm, expand)), Some((compressed, to))) => {
                        backend.linear(source, &[query.to(compressed), latent.to(b.key)]);
                        let epsilon = h.norm_epsilon;
                        let source = Source::RmsNorm { from: compressed, weight: *norm, epsilon, to };
                        backend.linear(source, &[expand.to(b.query)]);
                    }
                    _ => backend.linear(source, &[query.to(b.query), latent.to(b.key)]),
                }
                let dim = shape.rank + shape.rope_dims;
                let key_norm = Some((*latent_norm, h.norm_epsilon));
                backend.rope(&[
                    Heads { rotate_from: shape.plain_dims, ..heads(b.query, None, None) },
                    Heads { x: b.key, dim, norm: key_norm, rotate_from: shape.rank, center: None },
                ]);
                backend.append_kv(i, b.key, b.value);
                backend.linear_by_head(absorb.stack, b.query, buffers.absorbed);
                buffers.absorbed
            }
            _ => unreachable!("layers and buffers are of one kind"),
        }
    }

    /// What attention gave, as the output matrix takes it: latent attention's comes back from the space of the latent.
    fn expanded(&self, backend: &mut dyn Backend, layer: &Layer, attended: Buffer) -> Buffer {
        match (&layer.attention, &self.buffers.latent) {
            (AttentionWeights::Latent { expand_value, .. }, Some(buffers)) => {
                backend.linear_by_head(expand_value.stack, attended, buffers.expanded);
                buffers.expanded
            }
            _ => attended,
        }
    }

    fn feed_forward(&self, backend: &mut dyn Backend, i: usize, hidden: Buffer) {
        let (b, h, layer) = (&self.buffers, &self.hyperparameters, &self.layers[i]);
        let normed = self.normed(hidden, layer.ffn_norm);
        match &layer.feed_forward {
            FeedForward::Dense(Gated { gate, up, down }) => {
                let sum = layer.post_ffn_norm.is_none().then_some(hidden);
                let projections = [gate.to(b.gate), up.to(b.up), down.update(b.update, sum)];
                backend.feed_forward(normed, projections, h.activation);
                self.add_norm(backend, layer.post_ffn_norm, hidden);
            }
            FeedForward::Experts { router, gate, shared, .. } => {
                let (Some(scores), Some(experts)) = (b.scores, self.experts(i, b.scores, hidden)) else {
                    unreachable!("a layer has experts where the model has them")
                };
                let (router, shared) = (router.to(scores), shared.as_ref().zip(b.shared));
                match shared {
                    Some((shared, (g, u))) if !backend.is_in_file(gate.stack) => {
                        backend.linear(normed, &[router, shared.gate.to(g), shared.up.to(u)]);
                    }
                    _ => {
                        backend.linear(normed, &[router]);
                        backend.read_ahead(&experts); // while the shared expert runs
                        if let Some((shared, (g, u))) = shared {
                            let normed = Source::Buffer(b.normed);
                            backend.linear(normed, &[shared.gate.to(g), shared.up.to(u)]);
                        }
                    }
                }
                if let Some((shared, (g, u))) = shared {
                    let gated = Source::Gated { gate: g, up: u, activation: h.activation };
                    self.add(backend, gated, &shared.down, None, hidden);
                }
                self.guess_ahead(backend, i + 1, hidden);
                backend.experts(&experts);
            }
        }
    }

    /// The experts of a layer, if it has any.
    fn experts(&self, i: usize, scores: Option<Buffer>, sum: Buffer) -> Option<Experts> {
        let h = &self.hyperparameters;
        let FeedForward::Experts { correction, gate, up, down, biases, .. } =
            &self.layers.get(i)?.feed_forward
        else {
            return None;
        };
        Some(Experts {
            from: self.buffers.normed,
            scores: scores?,
            correction: *correction,
            routing: h.experts.as_ref()?.routing,
            gate: gate.stack,
            up: up.stack,
            down: down.stack,
            biases: *biases,
            activation: h.activation,
            sum,
        })
    }

    /// Has those experts read that a layer to come will choose by all appearances: by its router, on the present state.
    fn guess_ahead(&self, backend: &mut dyn Backend, i: usize, hidden: Buffer) {
        let (b, guess) = (&self.buffers, self.experts(i, self.buffers.guess, hidden));
        let (Some(guess), Some(Layer { ffn_norm, feed_forward: FeedForward::Experts { router, .. }, .. })) =
            (guess, self.layers.get(i))
        else {
            return;
        };
        if backend.wants_guess(guess.gate) {
            let epsilon = self.hyperparameters.norm_epsilon;
            // `normed` is still needed, and nothing is being added to the residual stream
            let source = Source::RmsNorm { from: hidden, weight: *ffn_norm, epsilon, to: b.update };
            backend.linear(source, &[router.to(guess.scores)]);
            backend.guess_ahead(&guess);
        }
    }

    /// A product, normed where asked to, is added to the residual stream.
    fn add(
        &self,
        backend: &mut dyn Backend,
        source: Source,
        matrix: &Linear,
        norm: Option<Vector>,
        hidden: Buffer,
    ) {
        let update = self.buffers.update;
        let sum = norm.is_none().then_some(hidden);
        backend.linear(source, &[matrix.update(update, sum)]);
        self.add_norm(backend, norm, hidden);
    }

    /// Adds the norm of a block's update to the residual stream, where models have one there.
    fn add_norm(&self, backend: &mut dyn Backend, norm: Option<Vector>, hidden: Buffer) {
        if let Some(weight) = norm {
            backend.add_norm(self.buffers.update, weight, self.hyperparameters.norm_epsilon, hidden);
        }
    }

    /// What a step of so many rows, `logits` of which want logits, takes at least. Of experts those count that the rows go
    /// to where no two go to the same one, as far as there are so many.
    pub fn work(&self, rows: usize, logits: usize) -> Work {
        let mut work = Work { int8: true, ..Work::default() };
        for (i, layer) in self.layers.iter().enumerate() {
            match &layer.attention {
                AttentionWeights::Grouped { query, key, value, .. } => {
                    [query, key, value].into_iter().for_each(|linear| work.add(linear.cost, rows));
                }
                AttentionWeights::Latent { query, expand_query, latent, absorb, .. } => {
                    [query.cost, latent.cost, absorb.cost].into_iter().for_each(|cost| work.add(cost, rows));
                    expand_query.iter().for_each(|(_, linear)| work.add(linear.cost, rows));
                }
            }
            // what comes after the last layer's keys and values is for the rows that want logits
            let rows = if i + 1 == self.layers.len() { logits } else { rows };
            if let AttentionWeights::Latent { expand_value, .. } = &layer.attention {
                work.add(expand_value.cost, rows);
            }
            work.add(layer.output.cost, rows);
            let gated = |work: &mut Work, g: &Gated| {
                [g.gate, g.up, g.down].into_iter().for_each(|linear| work.add(linear.cost, rows));
            };
            match &layer.feed_forward {
                FeedForward::Dense(dense) => gated(&mut work, dense),
                FeedForward::Experts { router, gate, up, down, shared, .. } => {
                    shared.iter().for_each(|shared| gated(&mut work, shared));
                    work.add(router.cost, rows);
                    let share = |of_all, rows| {
                        self.hyperparameters.experts.as_ref().map_or(of_all, |e| e.share(of_all, rows))
                    };
                    for Cost { bytes, values, quantized } in [gate, up, down].map(|stack| stack.cost) {
                        let cost = Cost { bytes: share(bytes, rows), values: share(values, 1), quantized };
                        work.add(cost, rows);
                    }
                }
            }
        }
        work.add(self.output.cost, logits);
        work
    }

    /// The buffer that holds the logits after a step, [rows that want them, vocabulary].
    pub fn logits(&self) -> Buffer {
        self.buffers.logits
    }

    /// Tells models with other weights, another quantization or another rotary embedding apart, without reading all of
    /// the weights: a SHA-256 over each tensor's name, type, shape and first bytes.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// Sizes and constants.
    pub fn hyperparameters(&self) -> &Hyperparameters {
        &self.hyperparameters
    }
}

/// See [`Decoder::fingerprint`].
fn fingerprint(checkpoint: &Checkpoint, h: &Hyperparameters, conversion: Option<&Conversion>) -> [u8; 32] {
    const FIRST: usize = 256; // bytes of a tensor: one system page at most
    let mut hash = Sha256::new();
    for tensor in checkpoint.tensors.values() {
        let head = format!("{} {} {:?}\n", tensor.name, tensor.kind, tensor.shape);
        hash.update(head);
        hash.update(&tensor.bytes()[..tensor.bytes().len().min(FIRST)]);
    }
    let rope = h.rope();
    for number in rope.inverse_frequencies.iter().chain([&rope.magnitude, &f64::from(h.norm_epsilon)]) {
        hash.update(number.to_le_bytes());
    }
    if let Some(conversion) = conversion {
        hash.update(conversion.mix.name);
    }
    hash.finalize().into()
}
