//! The CPU backend: pensive's own kernels on all cores.
//!
//! Every operation gives a row the same bits whatever the other rows, the number of threads and the vector width; each
//! module says by which order of its sums.

mod attention;
mod cores;
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
    Attention, Backend, Buffer, Device, Heads, KvShape, KvType, Limits, Matrix, PAGE_LEN, Plan, Projection,
    Rope, Source, Step, Vector,
};
use crate::checkpoint::Tensor;
use crate::quant::{self, BlockType};
use crate::{Error, Result};

use half::f16;
use kernels::attention::{Q8_0, append};
use kernels::elementwise::head_norms;
use kernels::{Isa, Layout, WeightMatrix};
use kv::KvCache;
use linear::{Input, Made, Product};
use memory::{Memory, Shared};
use pool::Pool;
use step::{RopeTable, SERIAL, StepRows};

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

    /// Rows of this width that one thread takes at least.
    fn least_rows(width: usize) -> usize {
        (SERIAL / width.max(1)).max(1)
    }

    /// [`Backend::rope`] of one row.
    fn rope_row(&self, heads: &Heads, row: usize) {
        let width = self.width(heads.x);
        // SAFETY: the row lies in the buffer and belongs to one task.
        let x = unsafe { std::slice::from_raw_parts_mut(self.buffer(heads.x).at(row * width), width) };
        if let Some((weight, epsilon)) = heads.norm {
            let weight = &self.vectors[weight.0];
            assert!(weight.len() == heads.dim && width.is_multiple_of(heads.dim), "width of a head's norm");
            // SAFETY: the backend's ISA; lengths were checked.
            unsafe {
                head_norms(self.isa, x.as_mut_ptr(), weight.as_ptr(), width / heads.dim, heads.dim, epsilon);
            }
        }
        self.ready().rope.rotate(self.isa, row, x, heads.dim);
        if let Some(center) = heads.center {
            let center = &self.vectors[center.0];
            assert_eq!(width, center.len(), "width of a center");
            x.iter_mut().zip(center).for_each(|(x, v)| *x -= v);
        }
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

/// How a product's source comes to be.
fn made<'a>(source: Source, vectors: &'a [Vec<f32>], buffers: &[Rows]) -> Made<'a> {
    let like = |buffer: Buffer, other: Buffer| {
        let (width, other_width) = (buffers[buffer.0].width, buffers[other.0].width);
        assert!(buffer != other && width == other_width, "two buffers of one width");
        buffers[other.0].memory.shared()
    };
    match source {
        Source::Buffer(_) => Made::Already,
        Source::RmsNorm { from, weight, epsilon, to } => {
            let weight = &vectors[weight.0][..];
            assert_eq!(buffers[to.0].width, weight.len(), "width of a norm's weight");
            Made::RmsNorm { from: like(to, from), weight, epsilon }
        }
        Source::SwiGlu { gate, up } => Made::SwiGlu { up: like(gate, up) },
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

    fn linear(&mut self, source: Source, projections: &[Projection]) {
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
            let Projection { matrix, bias, to, sum } = projections[i];
            let matrix = weights[matrix.0].matrix();
            assert!(to != from && sum != Some(from) && sum != Some(to), "input and outputs are distinct");
            for buffer in [Some(to), sum].into_iter().flatten() {
                assert_eq!(buffers[buffer.0].width, matrix.rows(), "width of a product's output");
            }
            let bias = bias.map(|bias| &vectors[bias.0][..]);
            Product { matrix, bias, to: values(to), sum: sum.map(values) }
        });
    }

    fn rope(&mut self, heads: &[Heads]) {
        let width = heads.iter().map(|heads| self.width(heads.x)).sum();
        self.pool.for_each(self.step.rows.len(), Self::least_rows(width), |row| {
            heads.iter().for_each(|heads| self.rope_row(heads, row));
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
