//! The CPU backend: pensive's own kernels on all cores.
//!
//! Every operation gives a row the same bits whatever the other rows, the number of threads and the vector width; each
//! module says by which order of its sums.

mod attention;
pub mod kernels;
mod kv;
pub mod limits;
mod linear;
mod memory;
pub mod pool;
mod step;
#[cfg(test)]
mod tests;

use crate::backend::{
    Attention, Backend, Buffer, Device, KvShape, KvType, Limits, Matrix, PAGE_LEN, Plan, Projection, Rope,
    Step, Vector,
};
use crate::checkpoint::Tensor;
use crate::quant::{self, BlockType};
use crate::{Error, Result};

use half::f16;
use kernels::attention::{Q8_0, append};
use kernels::elementwise::{rms_norm, swiglu};
use kernels::{Isa, Layout, WeightMatrix};
use kv::KvCache;
use memory::{Memory, Shared};
use pool::Pool;
use step::{RopeTable, SERIAL, StepRows};

/// How the backend works; the default suits the machine.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Threads; as many as the process may use at once if None.
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

/// Steps in which all matrices are copied to where they are interleaved, after a first step that copies nothing: fresh
/// memory costs more than all else of loading, and the first logits need not wait for it.
const COPY_STEPS: u64 = 8;

/// The CPU as a [`Backend`].
pub struct CpuBackend {
    isa: Isa,
    /// What is left of [`CpuOptions::interleaved_bytes`].
    interleaved_bytes: u64,
    pool: Pool,
    weights: Vec<Weight>,
    vectors: Vec<Vec<f32>>,
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
    /// Bytes of matrices that the next step may interleave.
    next_copies: u64,
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
            vectors: Vec::new(),
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

    /// Calls `task(first, count)` for runs of `total` values.
    fn for_values(&self, total: usize, task: impl Fn(usize, usize) + Sync) {
        let run = SERIAL / 4;
        self.pool.for_each(total.div_ceil(run), 4, |i| task(i * run, run.min(total - i * run)));
    }

    /// Rows of this width that one thread takes at least.
    fn least_rows(width: usize) -> usize {
        (SERIAL / width.max(1)).max(1)
    }

    /// Norms rows of `weight`'s width, of which each row of the step has `heads`.
    fn norm(&mut self, from: Buffer, weight: Vector, epsilon: f32, to: Buffer, heads: usize) {
        let row_width = self.width(from);
        assert_eq!(row_width, self.width(to), "widths of a norm's buffers");
        assert_eq!(row_width, heads * self.vectors[weight.0].len(), "width of a norm's weight");
        let (from, to) = (self.buffer(from), self.target(to));
        let (isa, weight) = (self.isa, &self.vectors[weight.0]);
        self.pool.for_each(self.rows, Self::least_rows(row_width), |row| {
            // SAFETY: the row lies in both buffers; a row belongs to one task.
            unsafe {
                let (from, to) = (from.at(row * row_width), to.at(row * row_width));
                rms_norm(isa, from, weight.as_ptr(), to, heads, weight.len(), epsilon);
            }
        });
    }
}

impl Weight {
    fn interleaved_bytes(&self) -> u64 {
        match self {
            Weight::Matrix(matrix) => matrix.interleaved_bytes(),
            Weight::Table(_) => 0,
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
        Device { kind: "cpu", isa: self.isa.name(), threads: self.pool.threads() }
    }

    fn limits(&self) -> Result<Limits> {
        limits::measure(&self.pool, self.isa)
    }

    fn add_matrix(&mut self, tensor: &Tensor) -> Result<Matrix> {
        check_matrix(tensor)?;
        let left = self.interleaved_bytes.checked_sub(tensor.bytes().len() as u64);
        let layout = if left.is_some() { Layout::Interleaved } else { Layout::AsInFile };
        let matrix = WeightMatrix::new(tensor, layout)?;
        if let (Some(left), true) = (left, matrix.interleaved_bytes() > 0) {
            self.interleaved_bytes = left;
            tensor.populate(); // memory has room for all of it
        }
        self.weights.push(Weight::Matrix(matrix));
        Ok(Matrix(self.weights.len() - 1))
    }

    fn add_embedding(&mut self, tensor: &Tensor) -> Result<Matrix> {
        check_matrix(tensor)?;
        self.weights.push(Weight::Table(tensor.clone()));
        Ok(Matrix(self.weights.len() - 1))
    }

    fn add_vector(&mut self, values: Vec<f32>) -> Result<Vector> {
        self.vectors.push(values);
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
        self.step = StepRows::new(&plan);
        let columns = self.weights.iter().filter_map(|weight| match weight {
            Weight::Matrix(matrix) => Some(matrix.columns()),
            Weight::Table(_) => None,
        });
        let columns = columns.max().unwrap_or(0);
        let cache = KvCache::new(&self.shapes, plan.pages, plan.kv_type)?;
        self.ready = Some(Ready {
            plan,
            buffers,
            rope: RopeTable::new(rope, plan.rows)?,
            attention: attention::Scratch::new(&cache, self.pool.threads(), plan.rows, plan.pages)?,
            cache,
            linear: linear::Workspace::new(plan.rows, columns, self.pool.threads()),
            next_copies: 0,
        });
        Ok(())
    }

    fn begin(&mut self, step: &Step<'_>) {
        let plan = self.ready().plan;
        assert!(step.rows.len() <= plan.rows, "{} rows in a step planned for {}", step.rows.len(), plan.rows);
        self.rows = step.rows.len();
        self.step.set(step);
        let interleaved: u64 = self.weights.iter().map(Weight::interleaved_bytes).sum();
        if let Some(ready) = &mut self.ready {
            ready.linear.copies = std::mem::replace(&mut ready.next_copies, interleaved.div_ceil(COPY_STEPS));
            ready.rope.fill(&self.step.rows, &self.pool);
        }
    }

    fn embed(&mut self, table: Matrix, to: Buffer) {
        let (width, target) = (self.width(to), self.target(to));
        let table = self.weights[table.0].table();
        assert_eq!(table.columns(), width, "width of an embedding's buffer");
        let row_bytes = table.kind.row_bytes(width);
        let rows = &self.step.rows;
        self.pool.for_each(rows.len(), Self::least_rows(width), |row| {
            let from = &table.bytes()[rows[row].token as usize * row_bytes..][..row_bytes];
            // SAFETY: the row lies in the buffer and belongs to one task.
            let to = unsafe { std::slice::from_raw_parts_mut(target.at(row * width), width) };
            quant::dequantize(table.kind, from, to);
        });
    }

    fn rms_norm(&mut self, from: Buffer, weight: Vector, epsilon: f32, to: Buffer) {
        self.norm(from, weight, epsilon, to, 1);
    }

    fn head_norm(&mut self, x: Buffer, weight: Vector, epsilon: f32) {
        let heads = self.width(x) / self.vectors[weight.0].len();
        self.norm(x, weight, epsilon, x, heads);
    }

    fn linear(&mut self, from: Buffer, projections: &[Projection]) {
        assert!(projections.iter().all(|p| p.to != from), "a product's input is not its output");
        let (rows, width) = (self.rows, self.width(from));
        for p in projections {
            assert_eq!(
                self.width(p.to),
                self.weights[p.matrix.0].matrix().rows(),
                "width of a product's output"
            );
            self.target(p.to);
        }
        let (weights, vectors) = (&self.weights, &self.vectors);
        let Some(Ready { buffers, linear, .. }) = &mut self.ready else { return };
        // SAFETY: the buffer has so many values; it is none of the outputs.
        let input =
            unsafe { std::slice::from_raw_parts(buffers[from.0].memory.shared().at(0), rows * width) };
        let product = |i: usize| {
            let p: &Projection = &projections[i];
            linear::Product {
                matrix: weights[p.matrix.0].matrix(),
                bias: p.bias.map(|bias| &vectors[bias.0][..]),
                to: buffers[p.to.0].memory.shared(),
            }
        };
        linear.multiply(self.isa, &self.pool, input, width, projections.len(), product);
    }

    fn rope(&mut self, x: Buffer, head_dim: usize) {
        let (width, target) = (self.width(x), self.target(x));
        assert!(width.is_multiple_of(head_dim), "heads of {head_dim} in a row of {width}");
        let (rows, pool) = (self.step.rows.len(), &self.pool);
        if let Some(ready) = &self.ready {
            ready.rope.rotate(target, rows, width, head_dim, pool);
        }
    }

    fn subtract(&mut self, x: Buffer, vector: Vector) {
        let (width, target) = (self.width(x), self.target(x));
        let vector = &self.vectors[vector.0];
        assert_eq!(width, vector.len(), "width of a vector to subtract");
        self.pool.for_each(self.rows, Self::least_rows(width), |row| {
            // SAFETY: the row lies in the buffer and belongs to one task.
            let row = unsafe { std::slice::from_raw_parts_mut(target.at(row * width), width) };
            row.iter_mut().zip(vector).for_each(|(x, v)| *x -= v);
        });
    }

    fn append_kv(&mut self, layer: usize, key: Buffer, value: Buffer) {
        let shape = self.shapes[layer];
        assert_eq!(self.width(key), shape.heads * shape.key_dim, "width of the keys' buffer");
        assert_eq!(self.width(value), shape.heads * shape.value_dim, "width of the values' buffer");
        let (key, value) = (self.buffer(key), self.buffer(value));
        let cache = &self.ready.as_ref().expect("checked by `buffer`").cache;
        let (isa, step) = (self.isa, &self.step);
        let append = match cache.kind {
            KvType::F32 => append::<f32>,
            KvType::F16 => append::<f16>,
            KvType::Q8_0 => append::<Q8_0>,
        };
        let rows = step.rows.len();
        let least = Self::least_rows(shape.key_dim + shape.value_dim);
        // Neighbours in a task list are neighbours in a page's lines.
        self.pool.for_each(rows * shape.heads, least, |task| {
            let (head, row) = (task / rows, task % rows);
            let position = step.rows[row].position;
            let page = step.page(step.rows[row].sequence, position / PAGE_LEN);
            let chunk = cache.chunk(layer, page, head);
            // SAFETY: row and head lie in the buffers; a position of a head belongs to one task.
            unsafe {
                let key = key.at((row * shape.heads + head) * shape.key_dim);
                let value = value.at((row * shape.heads + head) * shape.value_dim);
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
        if let Some(Ready { cache, attention: scratch, .. }) = &mut self.ready {
            let call = attention::Call {
                isa: self.isa,
                cache,
                layer,
                step: &self.step,
                query,
                to,
                attention: *attention,
            };
            call.run(&self.pool, scratch);
        }
    }

    fn swiglu(&mut self, gate: Buffer, up: Buffer, to: Buffer) {
        let total = self.rows * self.width(to);
        assert!(self.width(gate) == self.width(to) && self.width(up) == self.width(to), "widths of swiglu");
        let (isa, gate, up, to) = (self.isa, self.buffer(gate), self.buffer(up), self.target(to));
        self.for_values(total, |first, count| {
            // SAFETY: the run lies in the buffers and belongs to one task.
            unsafe { swiglu(isa, gate.at(first), up.at(first), to.at(first), count) }
        });
    }

    fn add(&mut self, from: Buffer, to: Buffer) {
        assert!(from != to && self.width(from) == self.width(to), "two buffers of one width to add");
        let total = self.rows * self.width(to);
        let (from, to) = (self.buffer(from), self.target(to));
        self.for_values(total, |first, count| {
            // SAFETY: the run lies in both buffers, which are two, and belongs to one task.
            let (from, to) = unsafe {
                (
                    std::slice::from_raw_parts(from.at(first), count),
                    std::slice::from_raw_parts_mut(to.at(first), count),
                )
            };
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        });
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

    fn read(&mut self, buffer: Buffer) -> &mut [f32] {
        let ready = self.ready.as_mut().expect("`prepare` comes before the first step");
        let buffer = &mut ready.buffers[buffer.0];
        buffer.memory.as_floats_mut(buffer.rows * buffer.width)
    }

    fn copy_page(&mut self, from: u32, to: u32, positions: usize) {
        debug_assert!(positions <= PAGE_LEN);
        self.ready_mut().cache.copy_page(from, to); // what lies behind `positions` is not read before it is written
    }

    fn read_page(&self, page: u32, positions: usize, to: &mut Vec<u8>) {
        self.ready().cache.read_page(page, positions, to);
    }

    fn write_page(&mut self, page: u32, positions: usize, from: &[u8]) {
        self.ready_mut().cache.write_page(page, positions, from);
    }

    fn supports(&self, kind: BlockType) -> bool {
        BlockType::ALL.contains(&kind)
    }
}
