//! The trait a decoder is written against.
//!
//! A backend owns weights, activation buffers and the KV pages. The decoder names them by handle and asks for
//! about a dozen fused operations. Activations are f32, [rows of the step, width].

#[cfg(feature = "candle")]
pub mod candle;
pub mod cpu;
#[cfg(feature = "candle")]
pub mod cuda;
pub mod devices;
mod memory;
pub mod recorder;
pub mod split;

pub use memory::available_and_total_bytes;

use crate::Result;
use crate::checkpoint::Tensor;
use crate::quant::BlockType;

/// Handle of a matrix [rows, columns] held by the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix(pub usize);

/// Handle of several matrices of one shape: one for each head, or for each expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack(pub usize);

/// What the matrices of a stack are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stacked {
    /// One for each head: [`Backend::linear_by_head`].
    Heads,
    /// Experts, of which each row goes to `used`: [`Backend::experts`].
    Experts {
        /// See [`Routing::used`].
        used: usize,
    },
}

/// Handle of an f32 vector (a norm's weight, a bias).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vector(pub usize);

/// Handle of an activation buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer(pub usize);

/// How keys and values are stored in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvType {
    /// 32-bit floats: for comparisons with a reference.
    F32,
    /// 16-bit floats.
    #[default]
    F16,
    /// 8-bit integers, an f16 scale for each 32 of them; heads are filled up to a multiple of 32.
    Q8_0,
}

/// Positions in a KV page: one attention chunk. Page `p` of a sequence holds positions
/// `p * PAGE_LEN .. (p + 1) * PAGE_LEN`, so chunk boundaries are absolute.
pub const PAGE_LEN: usize = 64;

/// Attention scores that a GPU holds at once where it does not read pages where they are: rows are taken in blocks.
pub const MOST_SCORES: usize = 1 << 24;

/// Shape of one layer's KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Key/value heads.
    pub heads: usize,
    /// Width of a key head.
    pub key_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
    /// The value of a position is the first `value_dim` numbers of its key, and is cached once: a multiple of 32 then, so
    /// that it is whole blocks of q8_0.
    pub value_in_key: bool,
}

impl KvType {
    /// Every type, most exact first.
    pub const ALL: [KvType; 3] = [KvType::F32, KvType::F16, KvType::Q8_0];

    /// Bytes of a key of this width.
    pub const fn key_bytes(self, dim: usize) -> usize {
        match self {
            KvType::F32 => 4 * dim,
            KvType::F16 => 2 * dim,
            KvType::Q8_0 => 34 * dim.div_ceil(32),
        }
    }
}

impl std::fmt::Display for KvType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Q8_0 => "q8_0",
        })
    }
}

impl KvShape {
    /// Heads with keys and values of their own.
    pub const fn grouped(heads: usize, key_dim: usize, value_dim: usize) -> Self {
        KvShape { heads, key_dim, value_dim, value_in_key: false }
    }

    /// Latent attention's one head: a key is the latent and a rotated part, a value the latent. A latent that ends within
    /// a block of q8_0 is cached twice.
    pub const fn latent(rank: usize, rope_dims: usize) -> Self {
        let value_in_key = rank.is_multiple_of(32);
        KvShape { heads: 1, key_dim: rank + rope_dims, value_dim: rank, value_in_key }
    }

    /// Width of what is cached of a key beside the value.
    pub const fn cached_key_dim(&self) -> usize {
        if self.value_in_key { self.key_dim - self.value_dim } else { self.key_dim }
    }

    /// Width of a value head as it is stored: filled up to whole vectors, or whole blocks of q8_0.
    pub const fn value_stride(&self, kv_type: KvType) -> usize {
        match kv_type {
            KvType::F32 | KvType::F16 => self.value_dim.next_multiple_of(16),
            KvType::Q8_0 => self.value_dim.next_multiple_of(32),
        }
    }

    /// Bytes of what is cached of a key, and of a value, of one head at one position.
    pub const fn head_bytes(&self, kv_type: KvType) -> (usize, usize) {
        (kv_type.key_bytes(self.cached_key_dim()), kv_type.key_bytes(self.value_stride(kv_type)))
    }

    /// Bytes of one layer at one position.
    pub const fn position_bytes(&self, kv_type: KvType) -> usize {
        let (key, value) = self.head_bytes(kv_type);
        self.heads * (key + value)
    }

    /// Bytes of one layer's share of a page.
    pub const fn page_bytes(&self, kv_type: KvType) -> usize {
        self.position_bytes(kv_type) * PAGE_LEN
    }
}

/// One row of a step: a token of a sequence at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Index into [`Step::tables`].
    pub sequence: usize,
    /// Absolute position in the sequence.
    pub position: usize,
    /// Token id, below the vocabulary's size.
    pub token: u32,
    /// Whether the logits after this row are asked for.
    pub wants_logits: bool,
}

/// A step: ragged rows of any number of sequences, ordered by sequence and position.
/// A row attends to all positions of its sequence up to its own; those of earlier rows of the same step count.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The rows.
    pub rows: &'a [Row],
    /// For each sequence its block table: the page ids that hold its positions, in order.
    pub tables: &'a [&'a [u32]],
}

/// What [`Backend::linear`] multiplies: a buffer, or what is made of others on the way.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// The buffer as it is.
    Buffer(Buffer),
    /// `to = from / sqrt(mean(from²) + epsilon) * weight`, row by row; `to` is another buffer than `from`.
    RmsNorm {
        /// What is normed.
        from: Buffer,
        /// As wide as a row.
        weight: Vector,
        /// Keeps a row of zeros finite.
        epsilon: f32,
        /// The result, which is multiplied.
        to: Buffer,
    },
    /// `gate = activation(gate, up)`, and then `gate` is multiplied.
    Gated {
        /// One part, and where the result goes.
        gate: Buffer,
        /// The other.
        up: Buffer,
        /// Which.
        activation: Activation,
    },
}

impl Source {
    /// The buffer that is multiplied.
    pub fn buffer(&self) -> Buffer {
        match *self {
            Source::Buffer(buffer) => buffer,
            Source::RmsNorm { to, .. } => to,
            Source::Gated { gate, .. } => gate,
        }
    }
}

/// One matrix product of [`Backend::linear`]: `to = matrix * source + bias`.
#[derive(Clone, Copy, Debug)]
pub struct Projection {
    /// [rows, columns]; columns = width of the source, rows = width of `to`.
    pub matrix: Matrix,
    /// Added to each output row.
    pub bias: Option<Vector>,
    /// Where the result goes.
    pub to: Buffer,
    /// The residual stream: `sum += to` as well.
    pub sum: Option<Buffer>,
}

/// The heads of a row that [`Backend::rope`] makes ready for attention, in place.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// A row of heads.
    pub x: Buffer,
    /// Width of a head.
    pub dim: usize,
    /// First, the root-mean-square norm of each head's first values, as many as this weight has; and epsilon.
    pub norm: Option<(Vector, f32)>,
    /// The first value of a head that is rotated.
    pub rotate_from: usize,
    /// Last, after it was rotated, this is taken from the row.
    pub center: Option<Vector>,
}

/// Which pairs of a head are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Pairs (i, i + dims/2): Hugging Face's layout, GGUF's "neox".
    Halves,
    /// Pairs (2i, 2i + 1): GGUF's layout for `llama`.
    Interleaved,
}

/// A rotary embedding: the angle of pair i at position p is `p * inverse_frequencies[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// One per rotated pair; twice its length is the number of rotated dimensions.
    pub inverse_frequencies: Vec<f64>,
    /// Factor on sin and cos (YaRN's attention factor; 1 otherwise).
    pub magnitude: f64,
    /// Which pairs.
    pub style: RopeStyle,
}

/// Grouped-query attention over the KV pages: query head h reads kv head h / (heads / kv_heads).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Factor on the scores, usually 1/sqrt(head width).
    pub scale: f32,
    /// Only the last `window` positions (own included) are seen.
    pub window: Option<usize>,
    /// For each head a score that takes its share of the softmax and gives nothing ("sink").
    pub sinks: Option<Vector>,
}

/// What a feed-forward does between its matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// `silu(gate) * up` (SwiGLU, Shazeer 2020, arXiv:2002.05202).
    #[default]
    SwiGlu,
    /// gpt-oss's: `g * sigmoid(alpha * g) * (u + 1)` with `g = min(gate, limit)`, `u = clamp(up, -limit, limit)`.
    Clamped {
        /// See above.
        alpha: f32,
        /// See above.
        limit: f32,
    },
}

/// How a router's scores become experts and their weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Experts that a row goes to.
    pub used: usize,
    /// What the weights are made of.
    pub gate: Gate,
    /// Groups that the experts are divided into, and how many of them are looked at: those whose two best experts
    /// have the largest sum (DeepSeek-V3, arXiv:2412.19437). 1 and 1: all experts.
    pub groups: (usize, usize),
    /// Whether the weights are divided by their sum.
    pub normalize: bool,
    /// Factor on the weights.
    pub scale: f32,
}

/// What the weights of experts are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// The softmax of all scores.
    Softmax,
    /// The sigmoid of each score.
    Sigmoid,
    /// The softmax of the chosen experts' scores.
    SoftmaxOfChosen,
}

/// The experts of a feed-forward: `sum += Σ weight * down(activation(gate(x), up(x)))` over the chosen ones, in ascending
/// order, however rows are grouped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    /// The rows that go to experts.
    pub from: Buffer,
    /// Their scores, as wide as there are experts.
    pub scores: Buffer,
    /// Added to what experts are chosen by, not to their weights; one for each.
    pub correction: Option<Vector>,
    /// How they are chosen.
    pub routing: Routing,
    /// Each [feed-forward, width of `from`].
    pub gate: Stack,
    /// The same.
    pub up: Stack,
    /// Each [width of `sum`, feed-forward].
    pub down: Stack,
    /// Biases of gate, up and down: [experts * rows].
    pub biases: Option<[Vector; 3]>,
    /// Between them.
    pub activation: Activation,
    /// The residual stream.
    pub sum: Buffer,
}

/// Sizes that a backend must be ready for; buffers are allocated once, from these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Most rows in a step.
    pub rows: usize,
    /// Most rows of a step that want logits.
    pub logit_rows: usize,
    /// Most sequences in a step.
    pub sequences: usize,
    /// KV pages, each [`PAGE_LEN`] positions in every layer; memory is committed when a page is first written.
    pub pages: usize,
    /// How keys and values are stored.
    pub kv_type: KvType,
}

impl Plan {
    /// # Errors
    /// [`crate::Error::Usage`] for keys and values that GPUs do not store.
    #[cfg(feature = "candle")]
    fn check_for_gpu(&self) -> Result<()> {
        if self.kv_type == KvType::Q8_0 {
            let what = "keys and values in q8_0 are for layers on the CPU: a GPU keeps them as f16 or f32 (--kv-type)";
            return Err(crate::Error::Usage(what.into()));
        }
        Ok(())
    }
}

/// What a backend computes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// "cpu", "cuda", "metal"; "candle" is candle's own CPU device. Where layers are split: "cpu+cuda".
    pub kind: String,
    /// Of a CPU the instruction set of the kernels ("avx512"), of a GPU its name ("NVIDIA H200").
    pub name: String,
    /// Threads that compute; 0 on a GPU.
    pub threads: usize,
}

impl Device {
    /// Whether results depend on nothing but weights and input, on any machine and in any batch: those of pensive's own
    /// kernels do. A GPU repeats itself for the same steps only.
    pub fn is_exact(&self) -> bool {
        self.kind == "cpu"
    }
}

impl std::fmt::Display for Device {
    /// `cpu (avx512, 2 threads)`, `cuda (NVIDIA H200)`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Device { kind, name, threads } = self;
        match threads {
            0 => write!(f, "{kind} ({name})"),
            1 => write!(f, "{kind} ({name}, 1 thread)"),
            _ => write!(f, "{kind} ({name}, {threads} threads)"),
        }
    }
}

/// What a device can do at most, as measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Bytes read from memory, per second.
    pub read_bandwidth: f64,
    /// int8 multiply-adds per second, operands at hand.
    pub int8_rate: f64,
}

/// What executes a decoder. Every operation works on the rows of the current step (or on those that
/// [`gather`](Backend::gather) left) and overwrites its destination.
///
/// Results of an [exact](Device::is_exact) device depend on nothing but the weights and a row's own inputs: not on the
/// other rows of the step, the number of threads, or the vector width. Those of other devices are close to them, and the
/// same for the same steps.
///
/// What fails on a device while a step is computed is kept, and told by [`end`](Backend::end).
pub trait Backend: Send {
    /// What it computes on.
    fn device(&self) -> Device;

    /// Measures what the device can do at most; takes a second or two.
    ///
    /// # Errors
    /// Memory that the system does not give.
    fn limits(&self) -> Result<Limits>;

    /// The type that a matrix of this type, with rows of this length, has on the device.
    fn stores(&self, kind: BlockType, columns: usize) -> BlockType;

    /// What follows, weights that are added or operations of a step, belongs to this layer; none: it stands before the
    /// first or behind the last. Of interest where layers lie on several devices.
    fn enter(&mut self, layer: Option<usize>) {
        let _ = layer;
    }

    /// Takes a matrix. The backend keeps the mapping alive if it reads from it.
    fn add_matrix(&mut self, tensor: &Tensor) -> Result<Matrix>;

    /// Takes matrices of one shape: those of the heads, or the experts.
    fn add_stack(&mut self, tensors: &[Tensor], of: Stacked) -> Result<Stack>;

    /// Takes a matrix whose rows are only looked up by [`embed`](Backend::embed).
    fn add_embedding(&mut self, tensor: &Tensor) -> Result<Matrix>;

    /// Takes a vector.
    fn add_vector(&mut self, values: Vec<f32>) -> Result<Vector>;

    /// Declares an activation buffer of this width.
    fn add_buffer(&mut self, width: usize) -> Buffer;

    /// Declares the next layer's KV cache; layers are numbered in order of declaration.
    fn add_kv(&mut self, shape: KvShape) -> usize;

    /// Allocates everything a step needs. Called once, after the declarations.
    fn prepare(&mut self, plan: Plan, rope: &Rope) -> Result<()>;

    /// Starts a step.
    fn begin(&mut self, step: &Step<'_>);

    /// `to` = rows of the table, one per token.
    fn embed(&mut self, table: Matrix, to: Buffer);

    /// Several matrix products of one source.
    fn linear(&mut self, source: Source, projections: &[Projection]);

    /// A gated feed-forward, `down(activation(gate(source), up(source)))`. A backend may do with less than these two calls:
    /// what the buffers of gate and up hold afterwards is not said.
    fn feed_forward(&mut self, source: Source, [gate, up, down]: [Projection; 3], activation: Activation) {
        self.linear(source, &[gate, up]);
        self.linear(Source::Gated { gate: gate.to, up: up.to, activation }, &[down]);
    }

    /// Norms each head where asked to, rotates it by the row's position, and takes off a center where there is one.
    fn rope(&mut self, heads: &[Heads]);

    /// Matrix h times head h, for each head of a row: heads of `from` have first the values that are multiplied, heads of
    /// `to` have the product first; what stands behind them in a head of `from` is copied.
    fn linear_by_head(&mut self, matrices: Stack, from: Buffer, to: Buffer);

    /// Sends each row to its experts.
    fn experts(&mut self, experts: &Experts);

    /// Whether a stack's matrices are read from a file whenever they are used, so that
    /// [`read_ahead`](Backend::read_ahead) is of use.
    fn is_in_file(&self, stack: Stack) -> bool {
        let _ = stack;
        false
    }

    /// Begins to read what [`experts`](Backend::experts) will be called with, if it is in a file. Changes no result.
    fn read_ahead(&mut self, experts: &Experts) {
        let _ = experts;
    }

    /// Whether [`guess_ahead`](Backend::guess_ahead) is worth its while: the matrices are in a file, and guesses were right
    /// of late.
    fn wants_guess(&mut self, stack: Stack) -> bool {
        let _ = stack;
        false
    }

    /// [`read_ahead`](Backend::read_ahead) of what the next but one call of it will probably say. Changes no result.
    fn guess_ahead(&mut self, experts: &Experts) {
        let _ = experts;
    }

    /// `from = norm(from); sum += from`, the root-mean-square norm of [`Source::RmsNorm`].
    fn add_norm(&mut self, from: Buffer, weight: Vector, epsilon: f32, sum: Buffer);

    /// Stores the rows' keys and values in the pages of layer `layer`. The buffers may be wider than all heads: the first
    /// values are taken, and one buffer may serve as both. Where a value is a part of its key, `value` is not looked at.
    fn append_kv(&mut self, layer: usize, key: Buffer, value: Buffer);

    /// Attention of `query` over layer `layer`, reading keys and values only as stored.
    fn attention(&mut self, layer: usize, query: Buffer, attention: &Attention, to: Buffer);

    /// Keeps only the rows that want logits, in order: `to` has one row for each.
    fn gather(&mut self, from: Buffer, to: Buffer);

    /// Ends a step.
    ///
    /// # Errors
    /// What failed on the device since the last call.
    fn end(&mut self) -> Result<()> {
        Ok(())
    }

    /// The contents of a buffer, [its rows, width]; the caller may change them.
    ///
    /// # Errors
    /// What the device says.
    fn read(&mut self, buffer: Buffer) -> Result<&mut [f32]>;

    /// Puts values into a buffer, [rows that operations work on, width].
    ///
    /// # Panics
    /// If there are not so many.
    fn write(&mut self, buffer: Buffer, values: &[f32]);

    /// Copies the first `positions` of a page, in all layers, to another page.
    fn copy_page(&mut self, from: u32, to: u32, positions: usize);

    /// Appends to `to` what the first `positions` positions of a page hold, in all layers: for each of them
    /// [`KvShape::position_bytes`]. The same on every machine and device, little-endian.
    ///
    /// # Errors
    /// What the device says.
    fn read_page(&self, page: u32, positions: usize, to: &mut Vec<u8>) -> Result<()>;

    /// Puts into the first `positions` positions of a page what [`read_page`](Backend::read_page) gave.
    ///
    /// # Panics
    /// If `from` has another length.
    fn write_page(&mut self, page: u32, positions: usize, from: &[u8]);
}
