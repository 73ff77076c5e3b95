//! The backend of pensive's own kernels on NVIDIA GPUs.
//!
//! Weights stay quantized; buffers are allocated once. Everything is put in the device's queue; what comes back is the logits.
//! A step of few rows that was seen before is a recorded graph: the queue gets it at once.
//!
//! Results are close to those of the CPU's kernels, not equal to the bit; the same steps give the same bits.

mod attention;
mod cache;
#[cfg(feature = "cuda")]
mod device;
pub mod driver;
mod experts;
mod memory;
pub mod params;
pub mod planes;
mod products;
mod program;
mod step;
mod weights;

use driver::{Driver, Launch};
use memory::Memory;
use params::{Address, Params};
use step::Progress;
use weights::{Held, stored_as};

#[cfg(feature = "cuda")]
pub use device::CudaDriver;

use crate::backend::{
    Attention, Backend, Buffer, Device, Experts, Heads, KvShape, KvType, Limits, Matrix, Plan, Projection,
    Rope, Row, Source, Stack, Stacked, Step, Vector,
};
use crate::checkpoint::Tensor;
use crate::quant::{self, BlockType};
use crate::{Error, Result};

/// Blocks that a grid has in its second dimension, at most.
const MOST_GRID: usize = 65_535;

/// Bytes above which memory is no longer reserved by powers of two.
const MUCH: usize = 1 << 20;

/// pensive's kernels as a [`Backend`].
pub struct CudaBackend {
    driver: Box<dyn Driver>,
    weights: Vec<Weight>,
    stacks: Vec<Held>,
    /// Where they are, and how many values they have.
    vectors: Vec<(Address, usize)>,
    widths: Vec<usize>,
    /// By buffer; [rows, width].
    buffers: Vec<Memory>,
    /// Rows that each buffer has.
    rows_of: Vec<usize>,
    shapes: Vec<KvShape>,
    ready: Option<Ready>,
    rows: Vec<Row>,
    tables: Vec<Vec<u32>>,
    /// Rows that operations work on.
    present: usize,
    /// What `rope` was called with and `append_kv` is to do.
    rotated: Vec<Heads>,
    /// What `linear` was called with and waits for its activation.
    pair: Option<products::Pair>,
    /// Whether any layer has experts, which look at the norm that `linear` made.
    has_experts: bool,
    /// Places of a row in a grid's second dimension: as many as experts it goes to where these are plain numbers.
    products_of_row: usize,
    /// The step's rows, as kernels take them.
    on_device: params::Rows,
    wanted: Address,
    tiles: (Address, usize),
    progress: Progress,
    /// What `scratch.program` counts to when all that was queued is done.
    arrived: u32,
    scratch: Scratch,
    /// Blocks as in a file.
    raw: Memory,
    /// What `embed` and `read` give out.
    host: Vec<f32>,
    /// What failed since the last [`Backend::end`]; nothing is computed meanwhile.
    fault: Option<Error>,
}

enum Weight {
    Matrix(Held),
    /// Only looked up, in the file's mapping: the rows of a step go to the device.
    Table(Tensor),
}

/// Memory that operations use on the way.
#[derive(Default)]
struct Scratch {
    /// What the kernels are told of a step.
    step: Memory,
    /// Rows as f16, and their scales.
    narrow: Memory,
    scales: Memory,
    /// A part of a matrix as f16, and its product.
    dense: Memory,
    product: Memory,
    /// Attention's splits, and how many of them are done.
    partial: Memory,
    arrived: Memory,
    /// How many operations blocks have done in programs.
    program: Memory,
    /// Experts: which, their weights, the results of each, and what they make.
    ids: Memory,
    shares: Memory,
    groups: Memory,
    gate: Memory,
    up: Memory,
    down: Memory,
}

struct Ready {
    plan: Plan,
    rope: Rope,
    cache: cache::Cache,
    /// Of each position, as far as any was seen: the cosines of the pairs, and the sines.
    angles: Vec<f32>,
}

impl CudaBackend {
    /// A backend without weights.
    pub fn new(driver: Box<dyn Driver>) -> Self {
        CudaBackend {
            driver,
            weights: Vec::new(),
            stacks: Vec::new(),
            vectors: Vec::new(),
            widths: Vec::new(),
            buffers: Vec::new(),
            rows_of: Vec::new(),
            shapes: Vec::new(),
            ready: None,
            rows: Vec::new(),
            tables: Vec::new(),
            present: 0,
            rotated: Vec::new(),
            pair: None,
            has_experts: false,
            products_of_row: 1,
            on_device: params::Rows::default(),
            wanted: 0,
            tiles: (0, 0),
            progress: Progress::default(),
            arrived: 0,
            scratch: Scratch::default(),
            raw: Memory::default(),
            host: Vec::new(),
            fault: None,
        }
    }

    fn ready(&self) -> &Ready {
        self.ready.as_ref().expect("`prepare` comes before the first step")
    }

    /// Does something, unless something has failed in this step.
    fn attempt(&mut self, what: impl FnOnce(&mut Self) -> Result<()>) {
        if self.fault.is_none()
            && let Err(error) = what(self)
        {
            self.fault = Some(error);
        }
    }

    /// Queues a kernel whatever is being recorded.
    fn launch_now(&self, launch: Launch, params: &impl Params) -> Result<()> {
        // SAFETY: callers give a kernel its parameters, with addresses of this driver and a grid that covers them.
        unsafe { self.driver.launch(launch, params.bytes()) }
    }

    /// Queues a kernel of the step, or records it.
    fn launch(&mut self, launch: Launch, params: &impl Params) -> Result<()> {
        self.settle_pair()?;
        self.put(launch, params)
    }

    /// A buffer that is read.
    fn buffer(&self, buffer: Buffer) -> Address {
        self.buffers[buffer.0].at
    }

    /// A buffer that is written, with room for the present rows.
    fn target(&mut self, buffer: Buffer) -> Result<Address> {
        let rows = self.present;
        self.rows_of[buffer.0] = rows;
        self.room(4 * rows * self.widths[buffer.0], |this| &mut this.buffers[buffer.0])
    }

    /// Has memory for so many bytes and somewhat more, so that it seldom grows: up to the next power of two, of much memory up to an
    /// eighth more.
    fn room(&mut self, bytes: usize, of: impl Fn(&mut Self) -> &mut Memory) -> Result<Address> {
        let mut memory = std::mem::take(of(self));
        let power = bytes.next_power_of_two();
        let bytes = bytes.max(1).next_multiple_of(if power > MUCH { power / 16 } else { power.max(256) });
        // what was listed is done before memory that it uses moves
        let before = if memory.holds(bytes) { Ok(()) } else { self.run_listed() };
        let grown = before.and_then(|()| memory.reserve(&*self.driver, bytes));
        let at = memory.at;
        *of(self) = memory;
        if grown? {
            self.forget_graphs();
        }
        Ok(at)
    }

    fn vector(&self, vector: Vector) -> Address {
        self.vectors[vector.0].0
    }

    fn optional(&self, vector: Option<Vector>) -> Address {
        vector.map_or(0, |vector| self.vector(vector))
    }

    fn held(&self, matrix: Matrix) -> Held {
        match &self.weights[matrix.0] {
            Weight::Matrix(held) => *held,
            Weight::Table(table) => panic!("{} is an embedding, not a matrix for products", table.name),
        }
    }

    /// [`Backend::rope`] and [`Backend::append_kv`] of a layer in one.
    fn rotate(&mut self, append: Option<(usize, Buffer, Buffer)>) -> Result<()> {
        let mut p = params::Rotate { rows: self.on_device, ..params::Rotate::default() };
        let ready = self.ready();
        p.pairs = ready.rope.inverse_frequencies.len() as i32;
        p.interleaved = i32::from(ready.rope.style == crate::backend::RopeStyle::Interleaved);
        p.f32_cache = i32::from(ready.plan.kv_type == KvType::F32);
        let mut blocks = 0;
        let mut key_is_stored = false;
        let rotated = std::mem::take(&mut self.rotated);
        for (to, heads) in p.heads.iter_mut().zip(&rotated) {
            let width = self.widths[heads.x.0];
            to.x = self.buffer(heads.x);
            to.center = self.optional(heads.center);
            (to.count, to.dim, to.from) =
                ((width / heads.dim) as i32, heads.dim as i32, heads.rotate_from as i32);
            if let Some((weight, epsilon)) = heads.norm {
                let (at, len) = self.vectors[weight.0];
                (to.norm, to.normed, to.epsilon) = (at, len as i32, epsilon);
            }
            if let Some((layer, key, _)) = append
                && key == heads.x
            {
                let layer = self.ready().cache.layer(layer);
                let fits = layer.key_width() == width;
                to.cache = if fits { layer.keys } else { 0 };
                key_is_stored = fits;
            }
            blocks += width / heads.dim;
        }
        if let Some((layer, key, value)) = append {
            let layer = *self.ready().cache.layer(layer);
            let mut copies = Vec::new();
            if !key_is_stored {
                copies.push((key, layer.keys, layer.key_width()));
            }
            if !layer.shape.value_in_key {
                copies.push((value, layer.values, layer.value_width()));
            }
            // blocks of one launch do not wait for each other
            if copies.iter().any(|copy| rotated.iter().any(|heads| heads.x == copy.0)) {
                self.launch_rotate(std::mem::take(&mut blocks), &p)?;
                p.heads = Default::default();
            }
            for (to, (from, cache, width)) in p.copied.iter_mut().zip(copies) {
                let stride = self.widths[from.0] as i32;
                *to = params::Copied { x: self.buffer(from), cache, stride, width: width as i32 };
                blocks += width.div_ceil(256);
            }
        }
        self.launch_rotate(blocks, &p)
    }

    fn launch_rotate(&mut self, blocks: usize, p: &params::Rotate) -> Result<()> {
        self.launch(Launch { kernel: "rotate", grid: [blocks, self.present, 1], threads: 128, shared: 0 }, p)
    }

    /// What was rotated and is not to be stored.
    fn settle(&mut self) -> Result<()> {
        if self.rotated.is_empty() { Ok(()) } else { self.rotate(None) }
    }
}

impl Backend for CudaBackend {
    fn device(&self) -> Device {
        self.driver.device()
    }

    fn limits(&self) -> Result<Limits> {
        self.driver.limits()
    }

    fn stores(&self, kind: BlockType, _columns: usize) -> BlockType {
        stored_as(kind)
    }

    fn add_matrix(&mut self, tensor: &Tensor) -> Result<Matrix> {
        let held = self.hold(std::slice::from_ref(tensor))?;
        self.weights.push(Weight::Matrix(held));
        Ok(Matrix(self.weights.len() - 1))
    }

    fn add_stack(&mut self, tensors: &[Tensor], of: Stacked) -> Result<Stack> {
        let held = match of {
            Stacked::Heads => self.hold_heads(tensors)?,
            Stacked::Experts { used } => {
                experts::check(tensors.len(), used)?;
                self.has_experts = true;
                let held = self.hold(tensors)?;
                if let Held::Dense(_) = held {
                    self.products_of_row = self.products_of_row.max(used);
                }
                held
            }
        };
        self.stacks.push(held);
        Ok(Stack(self.stacks.len() - 1))
    }

    fn add_embedding(&mut self, tensor: &Tensor) -> Result<Matrix> {
        self.weights.push(Weight::Table(tensor.clone()));
        Ok(Matrix(self.weights.len() - 1))
    }

    fn add_vector(&mut self, values: Vec<f32>) -> Result<Vector> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let at = self.driver.alloc(bytes.len().max(16))?;
        self.driver.upload(at, &bytes)?;
        self.vectors.push((at, values.len()));
        Ok(Vector(self.vectors.len() - 1))
    }

    fn add_buffer(&mut self, width: usize) -> Buffer {
        self.widths.push(width);
        self.buffers.push(Memory::default());
        self.rows_of.push(0);
        Buffer(self.widths.len() - 1)
    }

    fn add_kv(&mut self, shape: KvShape) -> usize {
        self.shapes.push(shape);
        self.shapes.len() - 1
    }

    fn prepare(&mut self, plan: Plan, rope: &Rope) -> Result<()> {
        plan.check_for_gpu()?;
        self.shapes.iter().try_for_each(|&shape| attention::check(shape))?;
        let most = MOST_GRID / self.products_of_row;
        if plan.rows > most {
            return Err(Error::Usage(format!(
                "steps of {} rows: the CUDA kernels take {most} of this model; choose a smaller chunk, or fewer sequences",
                plan.rows
            )));
        }
        self.progress.in_programs = self.can_program(plan.kv_type);
        self.room(4, |this| &mut this.scratch.program)?;
        self.raw.free(&*self.driver)?;
        let cache = cache::Cache::new(&self.shapes, plan, &*self.driver)?;
        self.ready = Some(Ready { plan, rope: rope.clone(), cache, angles: Vec::new() });
        Ok(())
    }

    fn begin(&mut self, step: &Step<'_>) {
        let plan = self.ready().plan;
        assert!(step.rows.len() <= plan.rows, "{} rows in a step planned for {}", step.rows.len(), plan.rows);
        self.rows.clear();
        self.rows.extend_from_slice(step.rows);
        self.tables.clear();
        self.tables.extend(step.tables.iter().map(|table| table.to_vec()));
        self.present = step.rows.len();
        self.rotated.clear();
        self.pair = None;
        self.attempt(Self::begin_step);
    }

    fn embed(&mut self, table: Matrix, to: Buffer) {
        let Weight::Table(table) = &self.weights[table.0] else {
            panic!("a matrix for products is not an embedding")
        };
        let width = self.widths[to.0];
        let row_bytes = table.kind.row_bytes(width);
        let mut values = std::mem::take(&mut self.host);
        values.clear();
        values.resize(self.rows.len() * width, 0.0);
        for (row, values) in self.rows.iter().zip(values.chunks_exact_mut(width)) {
            let from = &table.bytes()[row.token as usize * row_bytes..][..row_bytes];
            quant::dequantize(table.kind, from, values);
        }
        self.write(to, &values);
        self.host = values;
    }

    fn linear(&mut self, source: Source, projections: &[Projection]) {
        self.attempt(|this| this.multiply(source, projections));
    }

    fn rope(&mut self, heads: &[Heads]) {
        self.attempt(Self::settle);
        self.rotated.extend_from_slice(heads);
    }

    fn linear_by_head(&mut self, matrices: Stack, from: Buffer, to: Buffer) {
        self.attempt(|this| this.multiply_by_head(matrices, from, to));
    }

    fn experts(&mut self, experts: &Experts) {
        self.attempt(|this| this.run_experts(experts));
    }

    fn add_norm(&mut self, from: Buffer, weight: Vector, epsilon: f32, sum: Buffer) {
        self.attempt(|this| {
            let p = params::AddNorm {
                x: this.buffer(from),
                sum: this.buffer(sum),
                weight: this.vector(weight),
                epsilon,
                width: this.widths[from.0] as i32,
            };
            let grid = [this.present, 1, 1];
            this.launch(Launch { kernel: "add_norm", grid, threads: weights::THREADS, shared: 0 }, &p)
        });
    }

    fn append_kv(&mut self, layer: usize, key: Buffer, value: Buffer) {
        self.attempt(|this| this.rotate(Some((layer, key, value))));
    }

    fn attention(&mut self, layer: usize, query: Buffer, attention: &Attention, to: Buffer) {
        self.attempt(|this| {
            this.settle()?;
            this.attend(layer, query, attention, to)
        });
    }

    fn gather(&mut self, from: Buffer, to: Buffer) {
        let wanted = self.rows.iter().filter(|row| row.wants_logits).count();
        self.present = wanted;
        self.attempt(|this| {
            let width = this.widths[from.0] as i32;
            let p = params::Gather {
                from: this.buffer(from),
                to: this.target(to)?,
                wanted: this.wanted,
                width,
                pad: 0,
            };
            this.launch(
                Launch { kernel: "gather", grid: [wanted, 1, 1], threads: weights::THREADS, shared: 0 },
                &p,
            )
        });
    }

    fn end(&mut self) -> Result<()> {
        self.attempt(Self::settle_pair);
        self.attempt(Self::finish_graph);
        if self.fault.is_some() {
            self.abandon_step();
        }
        self.fault.take().map_or(Ok(()), Err)
    }

    fn read(&mut self, buffer: Buffer) -> Result<&mut [f32]> {
        self.end()?;
        let len = self.rows_of[buffer.0] * self.widths[buffer.0];
        let bytes = self.driver.download(self.buffer(buffer), 4 * len)?;
        // SAFETY: the driver gave so many bytes, aligned as its host memory is, valid until its next call; f32 has no invalid
        // bits, and the borrow of self keeps others off.
        Ok(unsafe { std::slice::from_raw_parts_mut(bytes.cast(), len) })
    }

    fn write(&mut self, buffer: Buffer, values: &[f32]) {
        assert_eq!(values.len(), self.present * self.widths[buffer.0], "rows of a buffer");
        self.attempt(|this| {
            let to = this.target(buffer)?;
            // SAFETY: f32 values are bytes.
            let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), 4 * values.len()) };
            this.driver.upload(to, bytes)
        });
    }

    fn copy_page(&mut self, from: u32, to: u32, positions: usize) {
        self.attempt(|this| this.ready().cache.copy_page(&*this.driver, from, to, positions));
    }

    fn read_page(&self, page: u32, positions: usize, to: &mut Vec<u8>) -> Result<()> {
        self.ready().cache.read_page(&*self.driver, page, positions, to)
    }

    fn write_page(&mut self, page: u32, positions: usize, from: &[u8]) {
        self.attempt(|this| this.ready().cache.write_page(&*this.driver, page, positions, from));
    }
}
