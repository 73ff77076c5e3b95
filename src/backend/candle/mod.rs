//! The backend on candle's tensors: on Metal, on candle's CPU device for tests and comparisons, and on CUDA where it is
//! asked for.
//!
//! A buffer is a tensor [rows, width] that each operation makes anew; the device's allocator reuses their memory. Weights
//! stay quantized. The decoder's order of operations is put in the device's queue; what comes back is the logits, and the
//! scores of experts.
//!
//! Results are close to those of the CPU's kernels, not equal to the bit; the same steps give the same bits.

mod attention;
mod cache;
mod device;
mod experts;
mod limits;
mod weights;

use candle_core::{DType, Device as CandleDevice, Result as Fallible, Tensor as Values};
use candle_nn::{ops as nn, rotary_emb};

use crate::backend::{
    Activation, Attention, Backend, Buffer, Device, Experts, Heads, KvShape, KvType, Limits, Matrix,
    PAGE_LEN, Plan, Projection, Rope, RopeStyle, Row, Source, Stack, Stacked, Step, Vector,
};
use crate::checkpoint::Tensor;
use crate::quant::{self, BlockType};
use crate::{Error, Result};

use cache::Cache;
pub use device::{Accelerator, Kind, accelerators};
use weights::{Held, Matrices, stored_as};

/// Candle's tensors as a [`Backend`].
pub struct CandleBackend {
    accelerator: Accelerator,
    weights: Vec<Weight>,
    stacks: Vec<Matrices>,
    vectors: Vec<HeldVector>,
    widths: Vec<usize>,
    shapes: Vec<KvShape>,
    /// By buffer, [rows, width]; none before it is first written.
    buffers: Vec<Option<Values>>,
    /// What `read` gives out.
    host: Vec<f32>,
    rows: Vec<Row>,
    tables: Vec<Vec<u32>>,
    /// Rows that operations work on.
    present: usize,
    /// Cosines and sines of the rows' positions, [rows, 1, pairs].
    angles: Option<[Values; 2]>,
    ready: Option<Ready>,
    /// What failed since the last [`Backend::end`]; nothing is computed meanwhile.
    fault: Option<Error>,
}

enum Weight {
    /// For products, on the device.
    Matrix(Held),
    /// Only looked up, in the file's mapping: the rows of a step go to the device.
    Table(Tensor),
}

/// A vector on both sides.
struct HeldVector {
    host: Vec<f32>,
    device: Values,
}

struct Ready {
    plan: Plan,
    rope: Rope,
    cache: Cache,
}

impl CandleBackend {
    /// A backend without weights.
    pub fn new(accelerator: Accelerator) -> Self {
        CandleBackend {
            accelerator,
            weights: Vec::new(),
            stacks: Vec::new(),
            vectors: Vec::new(),
            widths: Vec::new(),
            shapes: Vec::new(),
            buffers: Vec::new(),
            host: Vec::new(),
            rows: Vec::new(),
            tables: Vec::new(),
            present: 0,
            angles: None,
            ready: None,
            fault: None,
        }
    }

    fn device(&self) -> &CandleDevice {
        &self.accelerator.device
    }

    fn error(&self, error: &candle_core::Error) -> Error {
        self.accelerator.error(error)
    }

    /// Does something, unless something has failed in this step.
    fn attempt(&mut self, what: impl FnOnce(&mut Self) -> Fallible<()>) {
        if self.fault.is_none()
            && let Err(error) = what(self)
        {
            self.fault = Some(self.error(&error));
        }
    }

    fn ready(&self) -> &Ready {
        self.ready.as_ref().expect("`prepare` comes before the first step")
    }

    fn buffer(&self, buffer: Buffer) -> &Values {
        self.buffers[buffer.0].as_ref().expect("a buffer is written before it is read")
    }

    fn set(&mut self, buffer: Buffer, values: Values) {
        debug_assert_eq!(values.dims(), [self.present, self.widths[buffer.0]], "rows of a buffer");
        self.buffers[buffer.0] = Some(values);
    }

    /// `sum += y`
    fn add_to(&mut self, sum: Buffer, y: &Values) -> Fallible<()> {
        let total = (self.buffer(sum) + y)?;
        self.set(sum, total);
        Ok(())
    }

    fn vector(&self, vector: Vector) -> &Values {
        &self.vectors[vector.0].device
    }

    fn held(&self, matrix: Matrix) -> &Held {
        match &self.weights[matrix.0] {
            Weight::Matrix(held) => held,
            Weight::Table(table) => panic!("{} is an embedding, not a matrix for products", table.name),
        }
    }

    /// Puts a list of values on the device.
    fn upload<T: candle_core::WithDType>(&self, values: Vec<T>) -> Fallible<Values> {
        let len = values.len();
        Values::from_vec(values, len, self.device())
    }

    /// Makes a product's source, and returns it.
    fn make(&mut self, source: Source) -> Fallible<Values> {
        let made = match source {
            Source::Buffer(buffer) => return Ok(self.buffer(buffer).clone()),
            Source::RmsNorm { from, weight, epsilon, .. } => {
                nn::rms_norm(self.buffer(from), self.vector(weight), epsilon)?
            }
            Source::Gated { gate, up, activation } => gated(self.buffer(gate), self.buffer(up), activation)?,
        };
        self.set(source.buffer(), made.clone());
        Ok(made)
    }

    /// [`Backend::rope`] of one buffer.
    fn rotate(&mut self, heads: &Heads) -> Fallible<()> {
        let Heads { x: buffer, dim, norm, rotate_from, center } = *heads;
        let (rows, width) = (self.present, self.widths[buffer.0]);
        let mut x = self.buffer(buffer).reshape((rows * (width / dim), dim))?;
        if let Some((weight, epsilon)) = norm {
            let weight = self.vector(weight);
            x = of_columns(&x, 0, weight.elem_count(), |part| nn::rms_norm(part, weight, epsilon))?;
        }
        let [cos, sin] = self.angles.as_ref().expect("`begin` comes before");
        let style = self.ready().rope.style;
        let rotated = 2 * cos.dim(2)?;
        x = of_columns(&x, rotate_from, rotated, |part| {
            let part = part.reshape((rows, width / dim, 1, rotated))?;
            let part = match style {
                RopeStyle::Halves => rotary_emb::rope(&part, cos, sin)?,
                RopeStyle::Interleaved => rotary_emb::rope_i(&part, cos, sin)?,
            };
            part.reshape((rows * (width / dim), rotated))
        })?;
        let mut x = x.reshape((rows, width))?;
        if let Some(center) = center {
            x = x.broadcast_sub(self.vector(center))?;
        }
        self.set(buffer, x);
        Ok(())
    }

    /// Angles of the rows' positions: in f64, as on the CPU.
    fn set_angles(&mut self) -> Fallible<()> {
        let rope = &self.ready().rope;
        let pairs = rope.inverse_frequencies.len();
        let mut tables = [Vec::new(), Vec::new()];
        for row in &self.rows {
            for frequency in &rope.inverse_frequencies {
                let (sin, cos) = libm::sincos(row.position as f64 * frequency);
                tables[0].push((cos * rope.magnitude) as f32);
                tables[1].push((sin * rope.magnitude) as f32);
            }
        }
        let [cos, sin] = tables.map(|table| Values::from_vec(table, (self.present, 1, pairs), self.device()));
        self.angles = Some([cos?, sin?]);
        Ok(())
    }

    /// The places in the cache where the rows' keys and values go: page * PAGE_LEN + position in it.
    fn slots(&self) -> Vec<u32> {
        let slot = |row: &Row| {
            let page = self.tables[row.sequence][row.position / PAGE_LEN];
            page * PAGE_LEN as u32 + (row.position % PAGE_LEN) as u32
        };
        self.rows.iter().map(slot).collect()
    }
}

/// What stands between a gated feed-forward's matrices.
fn gated(gate: &Values, up: &Values, activation: Activation) -> Fallible<Values> {
    match activation {
        Activation::SwiGlu => gate.silu()? * up,
        Activation::Clamped { alpha, limit } => {
            let gate = gate.minimum(limit)?;
            let up = (up.clamp(-limit, limit)? + 1.0)?;
            (&gate * nn::sigmoid(&(&gate * f64::from(alpha))?)?)? * up
        }
    }
}

/// Some columns of a matrix changed, the others as they are.
fn of_columns(
    x: &Values,
    from: usize,
    len: usize,
    change: impl FnOnce(&Values) -> Fallible<Values>,
) -> Fallible<Values> {
    let columns = x.dim(1)?;
    if from == 0 && len == columns {
        return change(x);
    }
    let changed = change(&x.narrow(1, from, len)?.contiguous()?)?;
    let rest = from + len;
    Values::cat(&[&x.narrow(1, 0, from)?, &changed, &x.narrow(1, rest, columns - rest)?], 1)
}

impl Backend for CandleBackend {
    fn device(&self) -> Device {
        self.accelerator.describe()
    }

    fn limits(&self) -> Result<Limits> {
        self.accelerator.limits()
    }

    fn stores(&self, kind: BlockType, _columns: usize) -> BlockType {
        stored_as(kind)
    }

    fn add_matrix(&mut self, tensor: &Tensor) -> Result<Matrix> {
        let held = Held::new(tensor, self.device()).map_err(|e| self.error(&e))?;
        self.weights.push(Weight::Matrix(held));
        Ok(Matrix(self.weights.len() - 1))
    }

    fn add_stack(&mut self, tensors: &[Tensor], of: Stacked) -> Result<Stack> {
        let matrices = match of {
            Stacked::Heads => Matrices::of_heads(tensors, self.device()),
            Stacked::Experts { .. } => Matrices::of_experts(tensors, self.device()),
        };
        let matrices = matrices.map_err(|e| self.error(&e))?;
        self.stacks.push(matrices);
        Ok(Stack(self.stacks.len() - 1))
    }

    fn add_embedding(&mut self, tensor: &Tensor) -> Result<Matrix> {
        self.weights.push(Weight::Table(tensor.clone()));
        Ok(Matrix(self.weights.len() - 1))
    }

    fn add_vector(&mut self, values: Vec<f32>) -> Result<Vector> {
        let device = self.upload(values.clone()).map_err(|e| self.error(&e))?;
        self.vectors.push(HeldVector { host: values, device });
        Ok(Vector(self.vectors.len() - 1))
    }

    fn add_buffer(&mut self, width: usize) -> Buffer {
        self.widths.push(width);
        self.buffers.push(None);
        Buffer(self.widths.len() - 1)
    }

    fn add_kv(&mut self, shape: KvShape) -> usize {
        self.shapes.push(shape);
        self.shapes.len() - 1
    }

    fn prepare(&mut self, plan: Plan, rope: &Rope) -> Result<()> {
        plan.check_for_gpu()?;
        let cache = Cache::new(&self.shapes, plan, self.device()).map_err(|e| self.error(&e))?;
        self.ready = Some(Ready { plan, rope: rope.clone(), cache });
        Ok(())
    }

    fn begin(&mut self, step: &Step<'_>) {
        let plan = self.ready().plan;
        assert!(step.rows.len() <= plan.rows, "{} rows in a step planned for {}", step.rows.len(), plan.rows);
        self.rows.clear();
        self.rows.extend_from_slice(step.rows);
        self.tables = step.tables.iter().map(|table| table.to_vec()).collect();
        self.present = step.rows.len();
        let slots = self.slots();
        self.ready.as_mut().expect("checked above").cache.begin(slots);
        self.attempt(Self::set_angles);
    }

    fn embed(&mut self, table: Matrix, to: Buffer) {
        let Weight::Table(table) = &self.weights[table.0] else {
            panic!("a matrix for products is not an embedding")
        };
        let width = self.widths[to.0];
        let row_bytes = table.kind.row_bytes(width);
        let mut values = vec![0.0; self.rows.len() * width];
        for (row, values) in self.rows.iter().zip(values.chunks_exact_mut(width)) {
            let from = &table.bytes()[row.token as usize * row_bytes..][..row_bytes];
            quant::dequantize(table.kind, from, values);
        }
        self.write(to, &values);
    }

    fn linear(&mut self, source: Source, projections: &[Projection]) {
        self.attempt(|this| {
            let x = this.make(source)?;
            for projection in projections {
                let mut y = this.held(projection.matrix).multiply(&x)?;
                if let Some(bias) = projection.bias {
                    y = y.broadcast_add(this.vector(bias))?;
                }
                if let Some(sum) = projection.sum {
                    this.add_to(sum, &y)?;
                }
                this.set(projection.to, y);
            }
            Ok(())
        });
    }

    fn rope(&mut self, heads: &[Heads]) {
        self.attempt(|this| heads.iter().try_for_each(|heads| this.rotate(heads)));
    }

    fn linear_by_head(&mut self, matrices: Stack, from: Buffer, to: Buffer) {
        self.attempt(|this| {
            let rows = this.present;
            let dense = this.stacks[matrices.0].dense()?; // [heads, height, columns]
            let (heads, height, columns) = dense.dims3()?;
            let x = this.buffer(from);
            let x = x.reshape((rows, heads, x.dim(1)? / heads))?.transpose(0, 1)?; // [heads, rows, width]
            let part = x.narrow(2, 0, columns)?.contiguous()?;
            let product = part.matmul(&dense.transpose(1, 2)?)?;
            let rest = x.narrow(2, columns, x.dim(2)? - columns)?;
            let both = if rest.dim(2)? == 0 { product } else { Values::cat(&[&product, &rest], 2)? };
            debug_assert_eq!(heads * both.dim(2)?, this.widths[to.0], "heads of {height} values");
            let y = both.transpose(0, 1)?.contiguous()?.reshape((rows, this.widths[to.0]))?;
            this.set(to, y);
            Ok(())
        });
    }

    fn experts(&mut self, experts: &Experts) {
        self.attempt(|this| this.run_experts(experts));
    }

    fn add_norm(&mut self, from: Buffer, weight: Vector, epsilon: f32, sum: Buffer) {
        self.attempt(|this| {
            let normed = nn::rms_norm(this.buffer(from), this.vector(weight), epsilon)?;
            this.set(from, normed.clone());
            this.add_to(sum, &normed)
        });
    }

    fn append_kv(&mut self, layer: usize, key: Buffer, value: Buffer) {
        self.attempt(|this| {
            let (key, value) = (this.buffer(key), this.buffer(value));
            this.ready().cache.append(layer, key, value)
        });
    }

    fn attention(&mut self, layer: usize, query: Buffer, attention: &Attention, to: Buffer) {
        self.attempt(|this| {
            let y = this.attend(layer, query, attention)?;
            this.set(to, y);
            Ok(())
        });
    }

    fn gather(&mut self, from: Buffer, to: Buffer) {
        let wanted = self.rows.iter().zip(0u32..).filter(|(row, _)| row.wants_logits);
        let wanted: Vec<u32> = wanted.map(|(_, i)| i).collect();
        self.present = wanted.len();
        self.attempt(|this| {
            let y = this.buffer(from).index_select(&this.upload(wanted)?, 0)?;
            this.set(to, y);
            Ok(())
        });
    }

    fn end(&mut self) -> Result<()> {
        self.fault.take().map_or(Ok(()), Err)
    }

    fn read(&mut self, buffer: Buffer) -> Result<&mut [f32]> {
        self.end()?;
        let values = self.buffer(buffer).flatten_all().and_then(|values| values.to_vec1());
        self.host = values.map_err(|e| self.error(&e))?;
        Ok(&mut self.host)
    }

    fn write(&mut self, buffer: Buffer, values: &[f32]) {
        let shape = (self.present, self.widths[buffer.0]);
        self.attempt(|this| {
            let values = Values::from_slice(values, shape, this.device())?;
            this.set(buffer, values);
            Ok(())
        });
    }

    fn copy_page(&mut self, from: u32, to: u32, positions: usize) {
        self.attempt(|this| this.ready().cache.copy_page(from, to, positions));
    }

    fn read_page(&self, page: u32, positions: usize, to: &mut Vec<u8>) -> Result<()> {
        self.ready().cache.read_page(page, positions, to).map_err(|e| self.error(&e))
    }

    fn write_page(&mut self, page: u32, positions: usize, from: &[u8]) {
        self.attempt(|this| this.ready().cache.write_page(page, positions, from));
    }
}

/// How candle calls the type of keys and values.
fn kv_dtype(kind: KvType) -> DType {
    match kind {
        KvType::F32 => DType::F32,
        KvType::F16 | KvType::Q8_0 => DType::F16,
    }
}
