//! The one decoder text.

use super::{Hyperparameters, names, rope};
use crate::backend::{Attention, Backend, Buffer, Heads, Matrix, Projection, Rope, Source, Step, Vector};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::{Error, Result};
use sha2::{Digest, Sha256};

/// A weight matrix with its bias, if it has one.
#[derive(Clone, Copy, Debug)]
struct Linear {
    matrix: Matrix,
    bias: Option<Vector>,
    cost: MatrixCost,
}

/// What a product with a matrix takes.
#[derive(Clone, Copy, Debug)]
struct MatrixCost {
    bytes: u64,
    values: u64,
    quantized: bool,
}

/// What a step takes at least, by its matrices (attention and what is done value by value are not counted).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes of all matrices: what a step that gives logits reads. The embedding table is only looked up.
    pub bytes: u64,
    /// Multiply-adds of each row of a step.
    pub row: u64,
    /// Further ones of a row that wants logits.
    pub logits_row: u64,
    /// Whether all of them are of quantized matrices, so in int8.
    pub int8: bool,
}

impl Linear {
    fn to(self, to: Buffer) -> Projection {
        Projection { matrix: self.matrix, bias: self.bias, to, sum: None }
    }

    /// The same, and added to the residual stream.
    fn update(self, to: Buffer, sum: Buffer) -> Projection {
        Projection { sum: Some(sum), ..self.to(to) }
    }
}

/// Handles of one layer's weights.
#[derive(Debug)]
struct Layer {
    attn_norm: Vector,
    query: Linear,
    key: Linear,
    value: Linear,
    query_norm: Option<Vector>,
    key_norm: Option<Vector>,
    /// What all keys have in common: the part of their bias that hardly turns.
    key_center: Option<Vector>,
    output: Linear,
    ffn_norm: Vector,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// Activation buffers, named by what they hold; widths in the comments.
#[derive(Debug)]
struct Buffers {
    hidden: Buffer,      // width: the residual stream
    normed: Buffer,      // width
    query: Buffer,       // heads * head_dim
    key: Buffer,         // kv_heads * head_dim
    value: Buffer,       // kv_heads * head_dim
    attended: Buffer,    // heads * head_dim
    gate: Buffer,        // feed_forward
    up: Buffer,          // feed_forward
    update: Buffer,      // width: what a block adds to the residual stream
    last_hidden: Buffer, // width: rows that want logits
    last_attended: Buffer,
    logits: Buffer, // vocabulary
}

/// A model on a backend: the handles of its weights and buffers, and the order of operations.
#[derive(Debug)]
pub struct Decoder {
    hyperparameters: Hyperparameters,
    fingerprint: [u8; 32],
    attention: Attention,
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
        let h = hyperparameters;
        let (queries, keys) = (h.heads * h.head_dim, h.kv_heads * h.head_dim);
        let rope = h.rope();
        let mut load = Load::new(checkpoint, backend, progress);

        let embedding = load.embedding("token_embd.weight", h.vocabulary, h.width)?;
        let layers = (0..h.layers)
            .map(|i| {
                let name = |part: &str| format!("blk.{i}.{part}");
                let key_norm = load.optional_vector(&name("attn_k_norm.weight"), h.head_dim)?;
                let key_center = match key_norm {
                    Some(_) => None, // it takes away what a bias adds
                    None => load.key_center(&name("attn_k.bias"), &rope, h.head_dim)?,
                };
                Ok(Layer {
                    attn_norm: load.vector(&name("attn_norm.weight"), h.width)?,
                    query: load.linear(&name("attn_q"), queries, h.width)?,
                    key: load.linear(&name("attn_k"), keys, h.width)?,
                    value: load.linear(&name("attn_v"), keys, h.width)?,
                    query_norm: load.optional_vector(&name("attn_q_norm.weight"), h.head_dim)?,
                    key_norm,
                    key_center,
                    output: load.linear(&name("attn_output"), h.width, queries)?,
                    ffn_norm: load.vector(&name("ffn_norm.weight"), h.width)?,
                    gate: load.linear(&name("ffn_gate"), h.feed_forward, h.width)?,
                    up: load.linear(&name("ffn_up"), h.feed_forward, h.width)?,
                    down: load.linear(&name("ffn_down"), h.width, h.feed_forward)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let output_norm = load.vector("output_norm.weight", h.width)?;
        // without an output matrix the embedding serves as one ("tied")
        let output = match load.find("output.weight") {
            Some(_) => load.linear("output", h.vocabulary, h.width)?,
            None => load.linear("token_embd", h.vocabulary, h.width)?,
        };

        for _ in 0..h.layers {
            backend.add_kv(h.kv_shape());
        }
        let mut buffer = |width| backend.add_buffer(width);
        let buffers = Buffers {
            hidden: buffer(h.width),
            normed: buffer(h.width),
            query: buffer(queries),
            key: buffer(keys),
            value: buffer(keys),
            attended: buffer(queries),
            gate: buffer(h.feed_forward),
            up: buffer(h.feed_forward),
            update: buffer(h.width),
            last_hidden: buffer(h.width),
            last_attended: buffer(queries),
            logits: buffer(h.vocabulary),
        };
        let scale = (1.0 / (h.head_dim as f64).sqrt()) as f32;
        let attention = Attention { heads: h.heads, scale, window: None };
        Ok(Decoder {
            hyperparameters: h.clone(),
            fingerprint: fingerprint(checkpoint, h),
            attention,
            embedding,
            layers,
            output_norm,
            output,
            buffers,
        })
    }

    /// Runs a step. The logits of the rows that want them are then in [`logits`](Self::logits), in order.
    pub fn step(&self, backend: &mut dyn Backend, step: &Step<'_>) {
        let wants_logits = step.rows.iter().any(|row| row.wants_logits);
        let all_want = step.rows.iter().all(|row| row.wants_logits);
        let b = &self.buffers;
        backend.begin(step);
        backend.embed(self.embedding, b.hidden);
        let (mut hidden, mut attended) = (b.hidden, b.attended);
        for (i, layer) in self.layers.iter().enumerate() {
            let last = i + 1 == self.layers.len();
            self.keys_and_queries(backend, i, layer);
            if last && !wants_logits {
                return; // the cache is all that was asked for
            }
            backend.attention(i, b.query, &self.attention, attended);
            if last && !all_want {
                // what follows is per row: only the rows that want logits go on
                backend.gather(b.hidden, b.last_hidden);
                backend.gather(b.attended, b.last_attended);
                (hidden, attended) = (b.last_hidden, b.last_attended);
            }
            backend.linear(Source::Buffer(attended), &[layer.output.update(b.update, hidden)]);
            let normed = self.normed(hidden, layer.ffn_norm);
            backend.linear(normed, &[layer.gate.to(b.gate), layer.up.to(b.up)]);
            let gated = Source::SwiGlu { gate: b.gate, up: b.up };
            backend.linear(gated, &[layer.down.update(b.update, hidden)]);
        }
        backend.linear(self.normed(hidden, self.output_norm), &[self.output.to(b.logits)]);
    }

    fn normed(&self, from: Buffer, weight: Vector) -> Source {
        Source::RmsNorm { from, weight, epsilon: self.hyperparameters.norm_epsilon, to: self.buffers.normed }
    }

    /// Queries of the step's rows, and their keys and values into the cache.
    fn keys_and_queries(&self, backend: &mut dyn Backend, i: usize, layer: &Layer) {
        let (b, h) = (&self.buffers, &self.hyperparameters);
        let projections = [layer.query.to(b.query), layer.key.to(b.key), layer.value.to(b.value)];
        backend.linear(self.normed(b.hidden, layer.attn_norm), &projections);
        let heads = |x, norm: Option<Vector>, center| {
            let norm = norm.map(|weight| (weight, h.norm_epsilon));
            Heads { x, dim: h.head_dim, norm, center }
        };
        // softmax does not see what is added to all scores, and without their large common part keys are stored finer
        backend
            .rope(&[heads(b.query, layer.query_norm, None), heads(b.key, layer.key_norm, layer.key_center)]);
        backend.append_kv(i, b.key, b.value);
    }

    /// What a step takes at least.
    pub fn work(&self) -> Work {
        let mut work = Work { int8: true, ..Work::default() };
        let mut count = |linear: &Linear, wants_logits: bool| {
            let MatrixCost { bytes, values, quantized } = linear.cost;
            work.bytes += bytes;
            *if wants_logits { &mut work.logits_row } else { &mut work.row } += values;
            work.int8 &= quantized;
        };
        for (i, layer) in self.layers.iter().enumerate() {
            let last = i + 1 == self.layers.len();
            [&layer.query, &layer.key, &layer.value].into_iter().for_each(|linear| count(linear, false));
            let rest = [&layer.output, &layer.gate, &layer.up, &layer.down];
            rest.into_iter().for_each(|linear| count(linear, last));
        }
        count(&self.output, true);
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
fn fingerprint(checkpoint: &Checkpoint, h: &Hyperparameters) -> [u8; 32] {
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
    hash.finalize().into()
}

/// Loading in progress: finds tensors, checks shapes, counts bytes.
struct Load<'a> {
    checkpoint: &'a Checkpoint,
    backend: &'a mut dyn Backend,
    progress: &'a mut dyn FnMut(u64, u64),
    done: u64,
    total: u64,
}

impl<'a> Load<'a> {
    fn new(
        checkpoint: &'a Checkpoint,
        backend: &'a mut dyn Backend,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> Self {
        let total = checkpoint.tensors.values().map(|t| t.bytes().len() as u64).sum();
        Load { checkpoint, backend, progress, done: 0, total }
    }

    fn find(&self, name: &str) -> Option<&'a Tensor> {
        names::find(self.checkpoint, name)
    }

    fn fault(&self, what: String) -> Error {
        Error::file(self.checkpoint.files.first().cloned().unwrap_or_default(), what)
    }

    /// The tensor `name`, of shape [rows, columns] (a vector: one row).
    fn tensor(&self, name: &str, rows: usize, columns: usize) -> Result<&'a Tensor> {
        let tensor = self.find(name).ok_or_else(|| self.fault(format!("has no tensor {name}")))?;
        if (tensor.rows(), tensor.columns()) != (rows, columns) {
            return Err(self.fault(format!(
                "tensor {name} has shape {:?}, the hyperparameters say [{rows}, {columns}]",
                tensor.shape
            )));
        }
        Ok(tensor)
    }

    fn count(&mut self, tensor: &Tensor) {
        self.done = (self.done + tensor.bytes().len() as u64).min(self.total);
        (self.progress)(self.done, self.total);
    }

    fn embedding(&mut self, name: &str, rows: usize, columns: usize) -> Result<Matrix> {
        let tensor = self.tensor(name, rows, columns)?;
        self.backend.add_embedding(tensor)
    }

    fn linear(&mut self, name: &str, rows: usize, columns: usize) -> Result<Linear> {
        let tensor = self.tensor(&format!("{name}.weight"), rows, columns)?;
        if !self.backend.supports(tensor.kind) {
            let device = self.backend.device();
            return Err(
                self.fault(format!("tensor {name}.weight is {}, which {device} does not run", tensor.kind))
            );
        }
        let matrix = self.backend.add_matrix(tensor)?;
        self.count(tensor);
        let bias = self.optional_vector(&format!("{name}.bias"), rows)?;
        let cost = MatrixCost {
            bytes: tensor.bytes().len() as u64,
            values: (rows * columns) as u64,
            quantized: tensor.kind.block_len() > 1,
        };
        Ok(Linear { matrix, bias, cost })
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vector> {
        let tensor = self.tensor(name, 1, len)?;
        self.count(tensor);
        self.backend.add_vector(tensor.values())
    }

    /// The mean of a key bias's rotations.
    fn key_center(&mut self, bias: &str, rope: &Rope, head_dim: usize) -> Result<Option<Vector>> {
        let Some(bias) = self.find(bias) else { return Ok(None) };
        let mut center = bias.values();
        center.chunks_exact_mut(head_dim).for_each(|head| rope::mean_rotation(rope, head));
        self.backend.add_vector(center).map(Some)
    }

    fn optional_vector(&mut self, name: &str, len: usize) -> Result<Option<Vector>> {
        match self.find(name) {
            Some(_) => self.vector(name, len).map(Some),
            None => Ok(None),
        }
    }
}
