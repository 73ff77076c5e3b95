//! A backend that does what the CPU's does, and looks at what its matrices are multiplied with.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::cpu::CpuBackend;
use super::{
    Attention, Backend, Buffer, Device, Experts, Heads, KvShape, Limits, Matrix, Plan, Projection, Rope,
    Source, Stack, Stacked, Step, Vector,
};
use crate::Result;
use crate::checkpoint::Tensor;
use crate::quant::BlockType;

/// Sums of squares of what a matrix is multiplied with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Squares {
    /// One of each column.
    pub sums: Vec<f64>,
    /// Of so many rows.
    pub rows: u64,
}

impl Squares {
    /// Adds rows.
    fn add(&mut self, values: &[f32], width: usize) {
        self.sums.resize(width, 0.0);
        for row in values.chunks_exact(width) {
            self.sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
        }
        self.rows += (values.len() / width) as u64;
    }

    /// Adds what was seen elsewhere.
    fn merge(&mut self, other: &Squares) {
        self.sums.resize(other.sums.len(), 0.0);
        self.sums.iter_mut().zip(&other.sums).for_each(|(sum, more)| *sum += more);
        self.rows += other.rows;
    }
}

/// Of each matrix, by its tensor's name, and which of the tensor's it is where that has those of all experts (0 else).
/// Matrices by head are left out.
pub type Record = Arc<Mutex<BTreeMap<(String, usize), Squares>>>;

/// The backend.
pub struct Recorder {
    inner: CpuBackend,
    /// Of the buffers, by handle; and what matrices and stacks are recorded by.
    widths: BTreeMap<usize, usize>,
    matrices: BTreeMap<usize, String>,
    stacks: BTreeMap<usize, Vec<(String, usize)>>,
    record: Record,
}

impl Recorder {
    /// One that works through `inner`, and what it will have seen.
    pub fn new(inner: CpuBackend) -> (Self, Record) {
        let record = Record::default();
        let (widths, matrices, stacks) = Default::default();
        (Recorder { inner, widths, matrices, stacks, record: Arc::clone(&record) }, record)
    }

    /// Adds the rows of a buffer to what is known of these tensors' inputs.
    fn look(&mut self, buffer: Buffer, names: &[String]) {
        let width = self.widths[&buffer.0];
        // what fails on the device is reported by the step's end
        let Ok(values) = self.inner.read(buffer) else { return };
        let mut seen = Squares::default();
        seen.add(values, width);
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        for name in names {
            record.entry((name.clone(), 0)).or_default().merge(&seen);
        }
    }
}

impl Backend for Recorder {
    fn add_matrix(&mut self, tensor: &Tensor) -> Result<Matrix> {
        let matrix = self.inner.add_matrix(tensor)?;
        self.matrices.insert(matrix.0, tensor.name.clone());
        Ok(matrix)
    }

    fn add_stack(&mut self, tensors: &[Tensor], of: Stacked) -> Result<Stack> {
        let stack = self.inner.add_stack(tensors, of)?;
        let together = tensors.iter().all(|tensor| tensor.name == tensors[0].name);
        let place = |(i, tensor): (usize, &Tensor)| (tensor.name.clone(), if together { i } else { 0 });
        self.stacks.insert(stack.0, tensors.iter().enumerate().map(place).collect());
        Ok(stack)
    }

    fn linear(&mut self, source: Source, projections: &[Projection]) {
        self.inner.linear(source, projections);
        let names: Vec<String> =
            projections.iter().filter_map(|p| self.matrices.get(&p.matrix.0).cloned()).collect();
        self.look(source.buffer(), &names);
    }

    fn experts(&mut self, experts: &Experts) {
        let Recorder { inner, stacks, record, widths, .. } = self;
        let width = widths[&experts.from.0];
        let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
        inner.experts_seen(experts, |expert, [input, activated]| {
            let made = [(experts.gate, input), (experts.up, input), (experts.down, activated)];
            for (stack, values) in made {
                let Some(places) = stacks.get(&stack.0) else { continue };
                let rows = input.len() / width;
                record.entry(places[expert].clone()).or_default().add(values, values.len() / rows);
            }
        });
    }

    fn device(&self) -> Device {
        self.inner.device()
    }

    fn limits(&self) -> Result<Limits> {
        self.inner.limits()
    }

    fn stores(&self, kind: BlockType, columns: usize) -> BlockType {
        self.inner.stores(kind, columns)
    }

    fn enter(&mut self, layer: Option<usize>) {
        self.inner.enter(layer);
    }

    fn add_embedding(&mut self, tensor: &Tensor) -> Result<Matrix> {
        self.inner.add_embedding(tensor)
    }

    fn add_vector(&mut self, values: Vec<f32>) -> Result<Vector> {
        self.inner.add_vector(values)
    }

    fn add_buffer(&mut self, width: usize) -> Buffer {
        let buffer = self.inner.add_buffer(width);
        self.widths.insert(buffer.0, width);
        buffer
    }

    fn add_kv(&mut self, shape: KvShape) -> usize {
        self.inner.add_kv(shape)
    }

    fn prepare(&mut self, plan: Plan, rope: &Rope) -> Result<()> {
        self.inner.prepare(plan, rope)
    }

    fn begin(&mut self, step: &Step<'_>) {
        self.inner.begin(step);
    }

    fn embed(&mut self, table: Matrix, to: Buffer) {
        self.inner.embed(table, to);
    }

    fn rope(&mut self, heads: &[Heads]) {
        self.inner.rope(heads);
    }

    fn linear_by_head(&mut self, matrices: Stack, from: Buffer, to: Buffer) {
        self.inner.linear_by_head(matrices, from, to);
    }

    fn add_norm(&mut self, from: Buffer, weight: Vector, epsilon: f32, sum: Buffer) {
        self.inner.add_norm(from, weight, epsilon, sum);
    }

    fn append_kv(&mut self, layer: usize, key: Buffer, value: Buffer) {
        self.inner.append_kv(layer, key, value);
    }

    fn attention(&mut self, layer: usize, query: Buffer, attention: &Attention, to: Buffer) {
        self.inner.attention(layer, query, attention, to);
    }

    fn gather(&mut self, from: Buffer, to: Buffer) {
        self.inner.gather(from, to);
    }

    fn end(&mut self) -> Result<()> {
        self.inner.end()
    }

    fn read(&mut self, buffer: Buffer) -> Result<&mut [f32]> {
        self.inner.read(buffer)
    }

    fn write(&mut self, buffer: Buffer, values: &[f32]) {
        self.inner.write(buffer, values);
    }

    fn copy_page(&mut self, from: u32, to: u32, positions: usize) {
        self.inner.copy_page(from, to, positions);
    }

    fn read_page(&self, page: u32, positions: usize, to: &mut Vec<u8>) -> Result<()> {
        self.inner.read_page(page, positions, to)
    }

    fn write_page(&mut self, page: u32, positions: usize, from: &[u8]) {
        self.inner.write_page(page, positions, from);
    }
}
