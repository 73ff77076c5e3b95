//! The CPU backend: pensive's own kernels on all cores.
//!
//! Every operation gives a row the same bits whatever the other rows, the number of threads and the vector width; each
//! module says by which order of its sums.

mod attention;
mod by_head;
mod cores;
mod experts;
mod fetch;
pub mod kernels;
mod kv;
pub mod limits;
mod linear;
mod memory;
pub mod pool;
pub(super) mod routing;
mod step;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::backend::{
    Activation, Attention, Backend, Buffer, Device, Experts, Heads, KvShape, KvType, Limits, Matrix,
    PAGE_LEN, Plan, Projection, Rope, Source, Stack, Stacked, Step, Vector,
};
use crate::checkpoint::Tensor;
use crate::quant::{self, BlockType};
use crate::{Error, Result};

pub use attention::page_bytes as attention_scratch_bytes;
use half::f16;
use kernels::attention::{Q8_0, append};
use kernels::elementwise::{head_norms, norm_factor, scale};
use kernels::{Isa, Layout, TILE, WeightMatrix};
use kv::KvCache;
use linear::{Gated, Input, Made, Product};
use memory::{Arena, Memory, Shared};
use pool::Pool;
use step::{FETCHED, FEW_ROWS, RopeTable, StepRows, least_rows};

/// How the backend works; the default suits the machine.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Threads; one for each fast physical core that the process may use if None.
    pub threads: Option<usize>,
    /// Instruction set; the fastest, or what PENSIVE_ISA names, if None.
    pub isa: Option<Isa>,
    /// Bytes that matrices may take in memory of their own, as [`Layout::Interleaved`]: without a limit by default.
    /// Those that come after, and do not fit any more, stay in the mapped file.
    pub interleaved_bytes: u64,
}

impl Default for CpuOptions {
    fn default() -> Self {
        CpuOptions { threads: None, isa: None, interleaved_bytes: u64::MAX }
    }
}

/// Rows of an embedding after whose reading the file's pages are given back: each brings its neighbours along (64 KiB on
/// Linux), so that a prompt soon has most of the table in memory.
const MANY_LOOKUPS: usize = 64;

/// Steps in which all matrices are copied to where they are interleaved, after a first step that copies nothing: fresh
/// memory costs more than all else of loading, and the first logits need not wait for it.
const COPY_STEPS: u64 = 8;

/// Bytes that are reserved at a time for interleaved matrices, and for vectors.
const MATRICES_RESERVED: usize = 256 << 20;
const VECTORS_RESERVED: usize = 4 << 20;

/// The CPU as a [`Backend`].
pub struct CpuBackend {
    isa: Isa,
    /// What is left of [`CpuOptions::interleaved_bytes`].
    interleaved_bytes: u64,
    pool: Pool,
    weights: Vec<Weight>,
    /// Matrices of heads, or of experts.
    stacks: Vec<Vec<WeightMatrix>>,
    /// By stack.
    stacked: Vec<Stacked>,
    vectors: Vec<Memory>,
    /// Where interleaved matrices lie: each is committed as it is copied.
    matrix_arena: Arena,
    /// Where vectors lie: apart, as they are there from the beginning, and would commit a huge page each.
    vector_arena: Arena,
    /// Widths of the buffers, in order of declaration.
    widths: Vec<usize>,
    shapes: Vec<KvShape>,
    /// Rows that operations work on: those of the step, or what `gather` left.
    rows: usize,
    step: StepRows,
    /// What `prepare` allocates.
    ready: Option<Ready>,
}

enum Weight {
    /// For products.
    Matrix(WeightMatrix),
    /// Only looked up, in the file's mapping.
    Table(Tensor),
}

struct Ready {
    plan: Plan,
    buffers: Vec<Rows>,
    rope: RopeTable,
    cache: KvCache,
    attention: attention::Scratch,
    linear: linear::Workspace,
    by_head: by_head::Workspace,
    experts: experts::Workspace,
    /// Bytes of matrices that a step may interleave, and the next one: the first none.
    copies_per_step: u64,
    next_copies: u64,
    /// Whether all is interleaved but for stacks: of experts some may never be asked for.
    all_copied: bool,
}

/// An activation buffer: [rows, width].
struct Rows {
    memory: Memory,
    width: usize,
    /// Rows of the last write.
    rows: usize,
}

impl CpuBackend {
    /// A backend without weights.
    ///
    /// # Errors
    /// Threads that the system refuses, an instruction set that the processor lacks, or a wrong PENSIVE_ISA.
    pub fn new(options: CpuOptions) -> Result<Self> {
        let isa = match options.isa {
            Some(isa) if !isa.is_available() => {
                return Err(Error::Usage(format!(
                    "this processor has no {isa}; leave the choice to pensive"
                )));
            }
            Some(isa) => isa,
            None => Isa::detect()?,
        };
        Ok(CpuBackend {
            isa,
            interleaved_bytes: options.interleaved_bytes,
            pool: Pool::new(options.threads)?,
            weights: Vec::new(),
            stacks: Vec::new(),
            stacked: Vec::new(),
            vectors: Vec::new(),
            matrix_arena: Arena::new(MATRICES_RESERVED),
            vector_arena: Arena::new(VECTORS_RESERVED),
            widths: Vec::new(),
            shapes: Vec::new(),
            rows: 0,
            step: StepRows::default(),
            ready: None,
        })
    }

    /// What `prepare` allocated.
    fn ready(&self) -> &Ready {
        self.ready.as_ref().expect("`prepare` comes before the first step")
    }

    fn ready_mut(&mut self) -> &mut Ready {
        self.ready.as_mut().expect("`prepare` comes before the first step")
    }

    /// A tensor as a matrix for products, interleaved if memory has room.
    fn matrix(&mut self, tensor: &Tensor) -> Result<WeightMatrix> {
        check_matrix(tensor)?;
        let bytes = tensor.rows().next_multiple_of(TILE) * tensor.kind.row_bytes(tensor.columns());
        let left = self.interleaved_bytes.checked_sub(bytes as u64);
        let layout = if left.is_some() { Layout::Interleaved } else { Layout::AsInFile };
        let mut matrix = WeightMatrix::new_in(&mut self.matrix_arena, tensor, layout)?;
        if let (Some(left), true) = (left, matrix.interleaved_bytes() > 0) {
            self.interleaved_bytes = left;
            tensor.populate(); // memory has room for all of it
        }
        matrix.settle(self.isa, &self.pool);
        Ok(matrix)
    }

    fn width(&self, buffer: Buffer) -> usize {
        self.widths[buffer.0]
    }

    /// A buffer's values.
    fn buffer(&self, buffer: Buffer) -> Shared<f32> {
        self.ready().buffers[buffer.0].memory.shared()
    }

    /// A buffer's values, of which each present row gets one.
    fn target(&mut self, buffer: Buffer) -> Shared<f32> {
        let rows = self.rows;
        self.ready_mut().buffers[buffer.0].rows = rows;
        self.buffer(buffer)
    }

    /// Does something with the matrices, scores and memory of experts.
    fn with_experts(
        &mut self,
        experts: &Experts,
        run: impl FnOnce(&mut experts::Workspace, Isa, &Pool, &mut linear::Workspace, &experts::Call),
    ) {
        let rows = self.rows;
        let (from, sum) = (self.buffer(experts.from), self.buffer(experts.sum));
        let [from_width, sum_width] = [experts.from, experts.sum].map(|buffer| self.width(buffer));
        let CpuBackend { isa, pool, stacks, vectors, ready: Some(ready), .. } = self else {
            unreachable!("checked by `buffer`")
        };
        let [gate, up, down] = [experts.gate, experts.up, experts.down].map(|stack| &stacks[stack.0][..]);
        let scores = ready.buffers[experts.scores.0].memory.as_floats(rows * gate.len());
        let vector = |vector: Vector| vectors[vector.0].values();
        assert!(
            gate[0].columns() == from_width && up[0].columns() == from_width && down[0].rows() == sum_width,
            "widths of experts"
        );
        assert!(gate[0].rows() == up[0].rows() && gate[0].rows() == down[0].columns(), "heights of experts");
        let call = experts::Call {
            rows,
            scores,
            correction: experts.correction.map(vector),
            routing: experts.routing,
            from,
            sum,
            gate,
            up,
            down,
            biases: experts.biases.map(|biases| biases.map(vector)),
            activation: experts.activation,
        };
        run(&mut ready.experts, *isa, pool, &mut ready.linear, &call);
    }

    /// [`Backend::experts`], which shows the rows that each expert's matrices are multiplied with: of gate and up, and of
    /// down.
    pub fn experts_seen(&mut self, experts: &Experts, seen: impl FnMut(usize, [&[f32]; 2])) {
        self.with_experts(experts, |workspace, isa, pool, linear, call| {
            workspace.run_seen(isa, pool, linear, call, seen)
        });
    }

    /// Products of a source; each of them as the gate of `gated`'s product.
    fn products(
        &mut self,
        source: Source,
        projections: &[Projection],
        gated: Option<(Projection, Activation)>,
    ) {
        let CpuBackend { weights, vectors, rows, ready: Some(Ready { buffers, linear, .. }), .. } = self
        else {
            panic!("`prepare` comes before the first step");
        };
        let from = source.buffer();
        for buffer in projections.iter().map(|p| p.to).chain([from]) {
            buffers[buffer.0].rows = *rows;
        }
        let values = |buffer: Buffer| buffers[buffer.0].memory.shared();
        let width = buffers[from.0].width;
        let input = Input { values: values(from), rows: *rows, width, made: made(source, vectors, buffers) };
        linear.multiply(self.isa, &self.pool, input, projections.len(), |i| {
            let Projection { matrix, bias: of, to, sum } = projections[i];
            let matrix = weights[matrix.0].matrix();
            let before = projections[..i].iter().flat_map(|p| [Some(p.to), p.sum]).chain([Some(from)]);
            assert!(
                sum != Some(to) && before.flatten().all(|other| other != to && Some(other) != sum),
                "input and outputs are distinct"
            );
            for buffer in [Some(to), sum].into_iter().flatten() {
                assert_eq!(buffers[buffer.0].width, matrix.rows(), "width of a product's output");
            }
            let bias = |bias: Option<Vector>| bias.map(|bias| vectors[bias.0].values());
            let gated = gated.map(|(up, activation)| {
                let shape = |matrix: &WeightMatrix| (matrix.rows(), matrix.columns());
                let up_matrix = weights[up.matrix.0].matrix();
                assert!(
                    shape(up_matrix) == shape(matrix) && sum.is_none(),
                    "gate and up of one shape, no sum"
                );
                Gated { matrix: up_matrix, bias: bias(up.bias), activation }
            });
            Product { matrix, bias: bias(of), to: values(to), sum: sum.map(values), gated }
        });
    }

    /// [`Backend::rope`] of some heads of a row.
    fn rope_heads(&self, heads: &Heads, row: usize, which: Range<usize>) {
        let (width, dim) = (self.width(heads.x), heads.dim);
        let (first, count) = (which.start * dim, which.len());
        assert!(which.end * dim <= width, "heads of {dim} in a row of {width}");
        // SAFETY: row and heads lie in the buffer and belong to one task.
        let x = unsafe {
            let at = self.buffer(heads.x).at(row * width + first);
            std::slice::from_raw_parts_mut(at, count * dim)
        };
        if let Some((weight, epsilon)) = heads.norm {
            let weight = self.vectors[weight.0].values();
            let n = weight.len();
            assert!(n <= dim, "width of a head's norm");
            // SAFETY: the backend's ISA; lengths were checked.
            unsafe { head_norms(self.isa, x.as_mut_ptr(), weight.as_ptr(), n, count, dim, epsilon) }
        }
        self.ready().rope.rotate(self.isa, row, x, dim, heads.rotate_from);
        if let Some(center) = heads.center {
            let center = self.vectors[center.0].values();
            assert_eq!(width, center.len(), "width of a center");
            x.iter_mut().zip(&center[first..]).for_each(|(x, v)| *x -= v);
        }
    }
}

impl Weight {
    fn as_matrix(&self) -> Option<&WeightMatrix> {
        match self {
            Weight::Matrix(matrix) => Some(matrix),
            Weight::Table(_) => None,
        }
    }

    fn matrix(&self) -> &WeightMatrix {
        match self {
            Weight::Matrix(matrix) => matrix,
            Weight::Table(table) => panic!("{} is an embedding, not a matrix for products", table.name),
        }
    }

    fn table(&self) -> &Tensor {
        match self {
            Weight::Table(table) => table,
            Weight::Matrix(_) => panic!("a matrix for products is not an embedding"),
        }
    }
}

/// How a product's source comes to be.
fn made<'a>(source: Source, vectors: &'a [Memory], buffers: &[Rows]) -> Made<'a> {
    let like = |buffer: Buffer, other: Buffer| {
        let (width, other_width) = (buffers[buffer.0].width, buffers[other.0].width);
        assert!(buffer != other && width == other_width, "two buffers of one width");
        buffers[other.0].memory.shared()
    };
    match source {
        Source::Buffer(_) => Made::Already,
        Source::RmsNorm { from, weight, epsilon, to } => {
            let weight = vectors[weight.0].values();
            assert_eq!(buffers[to.0].width, weight.len(), "width of a norm's weight");
            Made::RmsNorm { from: like(to, from), weight, epsilon }
        }
        Source::Gated { gate, up, activation } => Made::Gated { up: like(gate, up), activation },
    }
}

/// Whether a tensor is a matrix.
fn check_matrix(tensor: &Tensor) -> Result<()> {
    if tensor.shape.len() == 2 {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "tensor {} has the shape {:?}, not a matrix's",
        tensor.name, tensor.shape
    )))
}

impl Backend for CpuBackend {
    fn device(&self) -> Device {
        Device { kind: "cpu".into(), name: self.isa.name().into(), threads: self.pool.threads() }
    }

    fn limits(&self) -> Result<Limits> {
        limits::measure(&self.pool, self.isa)
    }

    fn stores(&self, kind: BlockType, _columns: usize) -> BlockType {
        kind
    }

    fn add_matrix(&mut self, tensor: &Tensor) -> Result<Matrix> {
        let matrix = self.matrix(tensor)?;
        self.weights.push(Weight::Matrix(matrix));
        Ok(Matrix(self.weights.len() - 1))
    }

    fn add_stack(&mut self, tensors: &[Tensor], of: Stacked) -> Result<Stack> {
        // Where memory is short, it is for what every token needs: experts stay mapped, and the system keeps the hot ones.
        let is_short = matches!(of, Stacked::Experts { .. }) && self.interleaved_bytes < u64::MAX - (1 << 62);
        let left =
            if is_short { std::mem::take(&mut self.interleaved_bytes) } else { self.interleaved_bytes };
        let matrices = tensors.iter().map(|tensor| self.matrix(tensor)).collect::<Result<Vec<_>>>()?;
        if is_short {
            self.interleaved_bytes = left;
        }
        let shape = |matrix: &WeightMatrix| (matrix.rows(), matrix.columns());
        let alike = matrices.windows(2).all(|pair| shape(&pair[0]) == shape(&pair[1]));
        assert!(alike && !matrices.is_empty(), "matrices of one shape");
        self.stacks.push(matrices);
        self.stacked.push(of);
        Ok(Stack(self.stacks.len() - 1))
    }

    fn add_embedding(&mut self, tensor: &Tensor) -> Result<Matrix> {
        check_matrix(tensor)?;
        self.weights.push(Weight::Table(tensor.clone()));
        Ok(Matrix(self.weights.len() - 1))
    }

    fn add_vector(&mut self, values: Vec<f32>) -> Result<Vector> {
        let mut vector = self.vector_arena.take(size_of_val(&values[..]), "a vector")?;
        vector.as_floats_mut(values.len()).copy_from_slice(&values);
        self.vectors.push(vector);
        Ok(Vector(self.vectors.len() - 1))
    }

    fn add_buffer(&mut self, width: usize) -> Buffer {
        self.widths.push(width);
        Buffer(self.widths.len() - 1)
    }

    fn add_kv(&mut self, shape: KvShape) -> usize {
        self.shapes.push(shape);
        self.shapes.len() - 1
    }

    fn prepare(&mut self, plan: Plan, rope: &Rope) -> Result<()> {
        let buffers = self
            .widths
            .iter()
            .map(|&width| {
                let memory = Memory::floats(plan.rows * width, "activations")?;
                Ok(Rows { memory, width, rows: 0 })
            })
            .collect::<Result<_>>()?;
        let matrices = self.weights.iter().filter_map(Weight::as_matrix);
        let matrices = matrices.chain(self.stacks.iter().flatten());
        let interleaved: u64 = matrices.clone().map(WeightMatrix::interleaved_bytes).sum();
        let linear = linear::Workspace::new(plan.rows, matrices, self.pool.threads());
        let stacks = || self.stacks.iter().map(Vec::as_slice).zip(self.stacked.iter().copied());
        let by_head = by_head::Workspace::new(plan.rows, stacks(), self.pool.threads());
        let experts = experts::Workspace::new(plan.rows, stacks());
        let cache = KvCache::new(&self.shapes, plan.pages, plan.kv_type)?;
        // after the cache: what is too large for the system is refused there, with an error
        self.step = StepRows::new(&plan);
        self.ready = Some(Ready {
            plan,
            buffers,
            rope: RopeTable::new(rope, plan.rows)?,
            attention: attention::Scratch::new(&cache, self.pool.threads(), plan.rows, plan.pages)?,
            cache,
            linear,
            by_head,
            experts,
            copies_per_step: interleaved.div_ceil(COPY_STEPS),
            next_copies: 0,
            all_copied: false,
        });
        Ok(())
    }

    fn begin(&mut self, step: &Step<'_>) {
        let plan = self.ready().plan;
        assert!(step.rows.len() <= plan.rows, "{} rows in a step planned for {}", step.rows.len(), plan.rows);
        self.rows = step.rows.len();
        self.step.set(step);
        if let Some(ready) = &mut self.ready {
            let copies = std::mem::replace(&mut ready.next_copies, ready.copies_per_step);
            let mut matrices = self.weights.iter().filter_map(Weight::as_matrix);
            ready.all_copied = ready.all_copied || matrices.all(|matrix| matrix.bytes_to_copy() == 0);
            ready.linear.begin(step.rows.len(), copies, ready.all_copied);
            ready.rope.fill(&self.step.rows, &self.pool);
        }
    }

    fn embed(&mut self, table: Matrix, to: Buffer) {
        let (width, target) = (self.width(to), self.target(to));
        let table = self.weights[table.0].table();
        assert_eq!(table.columns(), width, "width of an embedding's buffer");
        let row_bytes = table.kind.row_bytes(width);
        let rows = &self.step.rows;
        self.pool.for_each(rows.len(), least_rows(width), |row| {
            let from = &table.bytes()[rows[row].token as usize * row_bytes..][..row_bytes];
            // SAFETY: the row lies in the buffer and belongs to one task.
            let to = unsafe { std::slice::from_raw_parts_mut(target.at(row * width), width) };
            quant::dequantize(table.kind, from, to);
        });
        if rows.len() >= MANY_LOOKUPS {
            table.drop_pages();
        }
    }

    fn linear(&mut self, source: Source, projections: &[Projection]) {
        self.products(source, projections, None);
    }

    /// Many rows are gated as they are made, so that only the results go through memory. Few have room in the caches, and
    /// take one matrix after the other in one stretch each.
    fn feed_forward(&mut self, source: Source, [gate, up, down]: [Projection; 3], activation: Activation) {
        if self.rows > FEW_ROWS {
            self.products(source, &[gate], Some((up, activation)));
            self.products(Source::Buffer(gate.to), &[down], None);
        } else {
            self.products(source, &[gate, up], None);
            self.products(Source::Gated { gate: gate.to, up: up.to, activation }, &[down], None);
        }
    }

    fn rope(&mut self, heads: &[Heads]) {
        // A thread takes the heads of its share of the product that made them.
        let (rows, shares) = (self.step.rows.len(), self.pool.threads());
        let values = rows * heads.iter().map(|heads| self.width(heads.x)).sum::<usize>();
        self.pool.for_each(shares * rows, if values < FETCHED { usize::MAX } else { 1 }, |task| {
            for heads in heads {
                let width = self.width(heads.x);
                assert!(width.is_multiple_of(heads.dim), "heads of {} in a row of {width}", heads.dim);
                let which = pool::part(width / heads.dim, task / rows, shares);
                self.rope_heads(heads, task % rows, which);
            }
        });
    }

    fn linear_by_head(&mut self, matrices: Stack, from: Buffer, to: Buffer) {
        let rows = self.rows;
        assert!(from != to, "input and output are distinct");
        let (heads, target) = (self.stacks[matrices.0].len(), self.target(to));
        let of_head = |values: Shared<f32>, width: usize| {
            assert!(width.is_multiple_of(heads), "{heads} heads in a row of {width}");
            by_head::HeadRows { values, width: width / heads }
        };
        let (from, to) = (of_head(self.buffer(from), self.width(from)), of_head(target, self.width(to)));
        let CpuBackend { isa, pool, stacks, ready: Some(ready), .. } = self else {
            unreachable!("checked by `buffer`")
        };
        ready.by_head.multiply(*isa, pool, &stacks[matrices.0], rows, from, to, &mut ready.linear);
    }

    fn experts(&mut self, experts: &Experts) {
        self.with_experts(experts, |workspace, isa, pool, linear, call| {
            workspace.run(isa, pool, linear, call)
        });
    }

    fn is_in_file(&self, stack: Stack) -> bool {
        self.stacks[stack.0][0].mapped().is_some()
    }

    fn read_ahead(&mut self, experts: &Experts) {
        if self.is_in_file(experts.gate) {
            self.with_experts(experts, |workspace, _, _, _, call| workspace.read_ahead(call));
        }
    }

    fn wants_guess(&mut self, stack: Stack) -> bool {
        self.is_in_file(stack) && self.ready_mut().experts.guesses.pay()
    }

    fn guess_ahead(&mut self, experts: &Experts) {
        self.with_experts(experts, |workspace, _, _, _, call| workspace.guess_ahead(call));
    }

    fn add_norm(&mut self, from: Buffer, weight: Vector, epsilon: f32, sum: Buffer) {
        let width = self.width(from);
        let weight = self.vectors[weight.0].values();
        assert!(weight.len() == width && self.width(sum) == width && from != sum, "widths of a norm");
        let (from, sum, isa) = (self.buffer(from), self.buffer(sum), self.isa);
        self.pool.for_each(self.rows, least_rows(width), |row| {
            // SAFETY: the rows lie in their buffers and belong to one task; the backend's ISA.
            unsafe {
                let from = from.at(row * width);
                let factor = norm_factor(isa, from, width, epsilon);
                scale(isa, from, factor, weight.as_ptr(), from, width);
                let sum = std::slice::from_raw_parts_mut(sum.at(row * width), width);
                let from = std::slice::from_raw_parts(from, width);
                sum.iter_mut().zip(from).for_each(|(sum, v)| *sum += v);
            }
        });
    }

    fn append_kv(&mut self, layer: usize, key: Buffer, value: Buffer) {
        let shape = self.shapes[layer];
        let (key_width, value_width) = (self.width(key), self.width(value));
        assert!(key_width >= shape.heads * shape.key_dim, "width of the keys' buffer");
        let value_fits = shape.value_in_key || value_width >= shape.heads * shape.value_dim;
        assert!(value_fits, "width of the values' buffer");
        let (key, value) = (self.buffer(key), self.buffer(value));
        let cache = &self.ready.as_ref().expect("checked by `buffer`").cache;
        let (isa, step) = (self.isa, &self.step);
        let append = match cache.kind {
            KvType::F32 => append::<f32>,
            KvType::F16 => append::<f16>,
            KvType::Q8_0 => append::<Q8_0>,
        };
        let rows = step.rows.len();
        let values = rows * shape.heads * (shape.key_dim + shape.value_dim);
        // Neighbours in a task list are neighbours in a page's lines.
        self.pool.for_each(rows * shape.heads, if values < FETCHED { usize::MAX } else { 1 }, |task| {
            let (head, row) = (task / rows, task % rows);
            let position = step.rows[row].position;
            let page = step.page(step.rows[row].sequence, position / PAGE_LEN);
            let chunk = cache.chunk(layer, page, head);
            // SAFETY: row and head lie in the buffers; a position of a head belongs to one task.
            unsafe {
                let key = key.at(row * key_width + head * shape.key_dim);
                let (key, value) = match shape.value_in_key {
                    true => (key.add(shape.value_dim), key),
                    false => (key, value.at(row * value_width + head * shape.value_dim)),
                };
                append(isa, chunk, position % PAGE_LEN, key, value, shape.value_dim);
            }
        });
    }

    fn attention(&mut self, layer: usize, query: Buffer, attention: &Attention, to: Buffer) {
        let (shape, heads) = (self.shapes[layer], attention.heads);
        assert!(heads.is_multiple_of(shape.heads), "{heads} query heads over {} kv heads", shape.heads);
        assert_eq!(self.width(query), heads * shape.key_dim, "width of the queries' buffer");
        assert_eq!(self.width(to), heads * shape.value_dim, "width of attention's output");
        let (query, to) = (self.buffer(query), self.target(to));
        let sinks = attention.sinks.map(|sinks| self.vectors[sinks.0].values());
        assert!(sinks.is_none_or(|sinks| sinks.len() == heads), "a sink for each head");
        if let Some(Ready { cache, attention: scratch, .. }) = &mut self.ready {
            let call = attention::Call {
                isa: self.isa,
                cache,
                layer,
                step: &self.step,
                query,
                to,
                attention: *attention,
                sinks,
            };
            call.run(&self.pool, scratch);
        }
    }

    fn gather(&mut self, from: Buffer, to: Buffer) {
        let width = self.width(to);
        assert_eq!(self.width(from), width, "widths of gather");
        let source = self.buffer(from);
        let wanted = self.step.rows.iter().filter(|row| row.wants_logits).count();
        self.rows = wanted;
        let target = self.target(to);
        let rows = self.step.rows.iter().enumerate().filter(|(_, row)| row.wants_logits);
        for (i, (row, _)) in rows.enumerate() {
            // SAFETY: both rows lie in their buffers; `copy` allows that they overlap, and i never passes row.
            unsafe { std::ptr::copy(source.at(row * width), target.at(i * width), width) };
        }
    }

    fn read(&mut self, buffer: Buffer) -> Result<&mut [f32]> {
        let buffer = &mut self.ready_mut().buffers[buffer.0];
        Ok(buffer.memory.as_floats_mut(buffer.rows * buffer.width))
    }

    fn write(&mut self, buffer: Buffer, values: &[f32]) {
        let rows = self.rows;
        let buffer = &mut self.ready_mut().buffers[buffer.0];
        buffer.rows = rows;
        buffer.memory.as_floats_mut(rows * buffer.width).copy_from_slice(values);
    }

    fn copy_page(&mut self, from: u32, to: u32, positions: usize) {
        debug_assert!(positions <= PAGE_LEN);
        self.ready_mut().cache.copy_page(from, to); // what lies behind `positions` is not read before it is written
    }

    fn read_page(&self, page: u32, positions: usize, to: &mut Vec<u8>) -> Result<()> {
        self.ready().cache.read_page(page, positions, to);
        Ok(())
    }

    fn write_page(&mut self, page: u32, positions: usize, from: &[u8]) {
        self.ready_mut().cache.write_page(page, positions, from);
    }
}
