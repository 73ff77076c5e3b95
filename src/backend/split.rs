//! Layers on several devices: consecutive ones on each, activations travel between them as f32.
//!
//! Each part is a backend of its own with the weights and the KV cache of its layers. A buffer exists in all of them; where
//! an operation needs what another part wrote last, the values go there by way of the host: the residual stream, once for
//! each boundary.

use super::{
    Activation, Attention, Backend, Buffer, Device, Experts, Heads, KvShape, Limits, Matrix, Plan,
    Projection, Rope, Source, Stack, Stacked, Step, Vector,
};
use crate::checkpoint::Tensor;
use crate::quant::BlockType;
use crate::{Error, Result};

/// Several backends as one.
pub struct SplitBackend {
    parts: Vec<Part>,
    /// The part that operations and weights belong to.
    current: usize,
    /// By handle of this backend: the part, and its own handle.
    matrices: Vec<(usize, Matrix)>,
    stacks: Vec<(usize, Stack)>,
    vectors: Vec<(usize, Vector)>,
    /// By buffer: the part that wrote it last.
    written: Vec<usize>,
    /// By buffer: its width.
    widths: Vec<usize>,
    /// Rows that operations work on: those of the step, and from `gather` on those that want logits.
    rows: usize,
    /// How many want logits.
    rows_with_logits: usize,
    /// What one part said while values were brought to another.
    fault: Option<Error>,
    /// By layer: the part, and its number there.
    layers: Vec<(usize, usize)>,
    /// By layer: the bytes of a position in the cache.
    shapes: Vec<KvShape>,
    plan: Option<Plan>,
}

/// A backend and the number of its layers.
struct Part {
    backend: Box<dyn Backend>,
    layers: usize,
}

impl SplitBackend {
    /// Backends in the order of their layers, each with so many of them. What stands before the first layer goes to the
    /// first, what stands behind the last to the last.
    ///
    /// # Panics
    /// If there are none.
    pub fn new(parts: Vec<(Box<dyn Backend>, usize)>) -> Self {
        assert!(!parts.is_empty(), "a backend at least");
        SplitBackend {
            parts: parts.into_iter().map(|(backend, layers)| Part { backend, layers }).collect(),
            current: 0,
            matrices: Vec::new(),
            stacks: Vec::new(),
            vectors: Vec::new(),
            written: Vec::new(),
            widths: Vec::new(),
            rows: 0,
            rows_with_logits: 0,
            fault: None,
            layers: Vec::new(),
            shapes: Vec::new(),
            plan: None,
        }
    }

    fn backend(&mut self) -> &mut dyn Backend {
        &mut *self.parts[self.current].backend
    }

    /// The part that has a layer; none has those beyond all.
    fn part_of(&self, layer: usize) -> usize {
        let mut end = 0;
        let holds = |part: &Part| {
            end += part.layers;
            layer < end
        };
        self.parts.iter().position(holds).unwrap_or(self.parts.len() - 1)
    }

    /// Brings a buffer to the current part.
    fn bring(&mut self, buffer: Buffer) {
        let (from, to) = (self.written[buffer.0], self.current);
        if from == to {
            return;
        }
        self.written[buffer.0] = to;
        let [from, to] = self.parts.get_disjoint_mut([from, to]).expect("two parts");
        match from.backend.read(buffer) {
            Ok(values) => to.backend.write(buffer, values),
            Err(fault) => {
                self.fault = self.fault.take().or(Some(fault));
                // never seen: `end` tells the fault
                to.backend.write(buffer, &vec![0.0; self.rows * self.widths[buffer.0]]);
            }
        }
    }

    fn wrote(&mut self, buffer: Buffer) {
        self.written[buffer.0] = self.current;
    }

    fn vector(&self, vector: Vector) -> Vector {
        let (part, own) = self.vectors[vector.0];
        debug_assert_eq!(part, self.current, "a vector of this part");
        own
    }

    fn stack(&self, stack: Stack) -> Stack {
        let (part, own) = self.stacks[stack.0];
        debug_assert_eq!(part, self.current, "matrices of this part");
        own
    }

    /// Brings what they are computed from to the current part; its own handles.
    fn own_experts(&mut self, experts: &Experts) -> Experts {
        [experts.from, experts.scores, experts.sum].into_iter().for_each(|buffer| self.bring(buffer));
        Experts {
            correction: experts.correction.map(|vector| self.vector(vector)),
            gate: self.stack(experts.gate),
            up: self.stack(experts.up),
            down: self.stack(experts.down),
            biases: experts.biases.map(|biases| biases.map(|vector| self.vector(vector))),
            ..*experts
        }
    }

    /// Brings what a source is made of to the current part; with its own handles.
    fn own_source(&mut self, source: Source) -> Source {
        match source {
            Source::Buffer(buffer) | Source::RmsNorm { from: buffer, .. } => self.bring(buffer),
            Source::Gated { gate, up, .. } => [gate, up].into_iter().for_each(|buffer| self.bring(buffer)),
        }
        self.wrote(source.buffer());
        match source {
            Source::RmsNorm { from, weight, epsilon, to } => {
                Source::RmsNorm { from, weight: self.vector(weight), epsilon, to }
            }
            other => other,
        }
    }

    /// Brings what a product is added to to the current part; with its own handles.
    fn own_projection(&mut self, p: &Projection) -> Projection {
        p.sum.into_iter().for_each(|sum| self.bring(sum));
        self.wrote(p.to);
        let (part, matrix) = self.matrices[p.matrix.0];
        debug_assert_eq!(part, self.current, "a matrix of this part");
        Projection { matrix, bias: p.bias.map(|bias| self.vector(bias)), ..*p }
    }

    /// Bytes that a page's first positions have in each part.
    fn page_bytes(&self, positions: usize) -> Vec<usize> {
        let kv_type = self.plan.expect("`prepare` comes before").kv_type;
        let mut bytes = vec![0; self.parts.len()];
        for (shape, (part, _)) in self.shapes.iter().zip(&self.layers) {
            bytes[*part] += positions * shape.position_bytes(kv_type);
        }
        bytes
    }
}

impl Backend for SplitBackend {
    fn device(&self) -> Device {
        let all: Vec<Device> = self.parts.iter().map(|part| part.backend.device()).collect();
        let joined = |of: fn(&Device) -> &str| all.iter().map(of).collect::<Vec<_>>().join("+");
        Device {
            kind: joined(|device| &device.kind),
            name: joined(|device| &device.name),
            threads: all.iter().map(|device| device.threads).max().unwrap_or(0),
        }
    }

    /// As if all layers took their turn on an average device.
    fn limits(&self) -> Result<Limits> {
        let layers: usize = self.parts.iter().map(|part| part.layers).sum();
        let (mut bandwidth, mut rate) = (0.0, 0.0);
        for part in &self.parts {
            let (limits, share) = (part.backend.limits()?, part.layers as f64 / layers as f64);
            bandwidth += share / limits.read_bandwidth;
            rate += share / limits.int8_rate;
        }
        Ok(Limits { read_bandwidth: 1.0 / bandwidth, int8_rate: 1.0 / rate })
    }

    /// That of the part which needs more bytes: layers are placed after it is asked.
    fn stores(&self, kind: BlockType, columns: usize) -> BlockType {
        let stored = self.parts.iter().map(|part| part.backend.stores(kind, columns));
        stored.max_by_key(|kind| kind.row_bytes(columns)).unwrap_or(kind)
    }

    fn enter(&mut self, layer: Option<usize>) {
        self.current = layer.map_or(self.parts.len() - 1, |layer| self.part_of(layer));
        self.backend().enter(layer);
    }

    fn add_matrix(&mut self, tensor: &Tensor) -> Result<Matrix> {
        let own = self.backend().add_matrix(tensor)?;
        self.matrices.push((self.current, own));
        Ok(Matrix(self.matrices.len() - 1))
    }

    fn add_stack(&mut self, tensors: &[Tensor], of: Stacked) -> Result<Stack> {
        let own = self.backend().add_stack(tensors, of)?;
        self.stacks.push((self.current, own));
        Ok(Stack(self.stacks.len() - 1))
    }

    fn add_embedding(&mut self, tensor: &Tensor) -> Result<Matrix> {
        let own = self.parts[0].backend.add_embedding(tensor)?;
        self.matrices.push((0, own));
        Ok(Matrix(self.matrices.len() - 1))
    }

    fn add_vector(&mut self, values: Vec<f32>) -> Result<Vector> {
        let own = self.backend().add_vector(values)?;
        self.vectors.push((self.current, own));
        Ok(Vector(self.vectors.len() - 1))
    }

    fn add_buffer(&mut self, width: usize) -> Buffer {
        let handles: Vec<Buffer> = self.parts.iter_mut().map(|part| part.backend.add_buffer(width)).collect();
        self.written.push(0);
        self.widths.push(width);
        let buffer = Buffer(self.written.len() - 1);
        assert!(handles.iter().all(|&handle| handle == buffer), "buffers are numbered alike everywhere");
        buffer
    }

    fn add_kv(&mut self, shape: KvShape) -> usize {
        let layer = self.layers.len();
        let part = self.part_of(layer);
        let own = self.parts[part].backend.add_kv(shape);
        self.layers.push((part, own));
        self.shapes.push(shape);
        layer
    }

    fn prepare(&mut self, plan: Plan, rope: &Rope) -> Result<()> {
        self.plan = Some(plan);
        self.parts.iter_mut().try_for_each(|part| part.backend.prepare(plan, rope))
    }

    fn begin(&mut self, step: &Step<'_>) {
        (self.rows, self.fault) = (step.rows.len(), None);
        self.rows_with_logits = step.rows.iter().filter(|row| row.wants_logits).count();
        self.parts.iter_mut().for_each(|part| part.backend.begin(step));
    }

    fn embed(&mut self, table: Matrix, to: Buffer) {
        let (part, own) = self.matrices[table.0];
        self.current = part;
        self.wrote(to);
        self.backend().embed(own, to);
    }

    fn linear(&mut self, source: Source, projections: &[Projection]) {
        let own_source = self.own_source(source);
        let own: Vec<Projection> = projections.iter().map(|p| self.own_projection(p)).collect();
        self.backend().linear(own_source, &own);
    }

    fn feed_forward(&mut self, source: Source, projections: [Projection; 3], activation: Activation) {
        let source = self.own_source(source);
        let own = projections.map(|p| self.own_projection(&p));
        self.backend().feed_forward(source, own, activation);
    }

    fn rope(&mut self, heads: &[Heads]) {
        heads.iter().for_each(|heads| self.bring(heads.x));
        let own = |heads: &Heads| Heads {
            norm: heads.norm.map(|(weight, epsilon)| (self.vector(weight), epsilon)),
            center: heads.center.map(|center| self.vector(center)),
            ..*heads
        };
        let own: Vec<Heads> = heads.iter().map(own).collect();
        self.backend().rope(&own);
    }

    fn linear_by_head(&mut self, matrices: Stack, from: Buffer, to: Buffer) {
        self.bring(from);
        self.wrote(to);
        let own = self.stack(matrices);
        self.backend().linear_by_head(own, from, to);
    }

    fn experts(&mut self, experts: &Experts) {
        let own = self.own_experts(experts);
        self.backend().experts(&own);
    }

    fn is_in_file(&self, stack: Stack) -> bool {
        let (part, own) = self.stacks[stack.0];
        self.parts[part].backend.is_in_file(own)
    }

    fn read_ahead(&mut self, experts: &Experts) {
        if self.is_in_file(experts.gate) {
            let own = self.own_experts(experts);
            self.backend().read_ahead(&own);
        }
    }

    /// A guess needs the next layer's router: where that is another part's, none is made.
    fn wants_guess(&mut self, stack: Stack) -> bool {
        let (part, own) = self.stacks[stack.0];
        part == self.current && self.backend().wants_guess(own)
    }

    fn guess_ahead(&mut self, experts: &Experts) {
        let own = self.own_experts(experts);
        self.backend().guess_ahead(&own);
    }

    fn add_norm(&mut self, from: Buffer, weight: Vector, epsilon: f32, sum: Buffer) {
        self.bring(from);
        self.bring(sum);
        let own = self.vector(weight);
        self.backend().add_norm(from, own, epsilon, sum);
    }

    fn append_kv(&mut self, layer: usize, key: Buffer, value: Buffer) {
        self.bring(key);
        self.bring(value);
        let own = self.layers[layer].1;
        self.backend().append_kv(own, key, value);
    }

    fn attention(&mut self, layer: usize, query: Buffer, attention: &Attention, to: Buffer) {
        self.bring(query);
        self.wrote(to);
        let own = self.layers[layer].1;
        let attention = Attention { sinks: attention.sinks.map(|sinks| self.vector(sinks)), ..*attention };
        self.backend().attention(own, query, &attention, to);
    }

    fn gather(&mut self, from: Buffer, to: Buffer) {
        self.bring(from);
        self.wrote(to);
        self.rows = self.rows_with_logits;
        self.backend().gather(from, to);
    }

    fn end(&mut self) -> Result<()> {
        let ended: Vec<Result<()>> = self.parts.iter_mut().map(|part| part.backend.end()).collect();
        self.fault.take().map_or(Ok(()), Err)?;
        ended.into_iter().collect()
    }

    fn read(&mut self, buffer: Buffer) -> Result<&mut [f32]> {
        self.end()?;
        self.parts[self.written[buffer.0]].backend.read(buffer)
    }

    fn write(&mut self, buffer: Buffer, values: &[f32]) {
        self.wrote(buffer);
        self.backend().write(buffer, values);
    }

    fn copy_page(&mut self, from: u32, to: u32, positions: usize) {
        self.parts.iter_mut().for_each(|part| part.backend.copy_page(from, to, positions));
    }

    fn read_page(&self, page: u32, positions: usize, to: &mut Vec<u8>) -> Result<()> {
        self.parts.iter().try_for_each(|part| part.backend.read_page(page, positions, to))
    }

    fn write_page(&mut self, page: u32, positions: usize, from: &[u8]) {
        let mut rest = from;
        for (part, bytes) in self.page_bytes(positions).into_iter().enumerate() {
            let (own, after) = rest.split_at(bytes);
            rest = after;
            self.parts[part].backend.write_page(page, positions, own);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::backend::cpu::{CpuBackend, CpuOptions};
    use crate::backend::{Activation, Gate, KvType, RopeStyle, Routing, Row};
    use crate::checkpoint::Checkpoint;
    use crate::checkpoint::write::{TensorSpec, write_gguf};

    /// Guesses are compared with what is read ahead, so both must come to the part that has the experts.
    #[test]
    fn what_is_read_ahead_and_guessed_comes_to_the_part_that_has_the_experts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("experts.gguf");
        let (kind, shape) = (BlockType::F32, vec![4, 8, 8]);
        let spec = TensorSpec { name: "blk.0.ffn_up_exps.weight".into(), kind, shape };
        write_gguf(&path, &BTreeMap::new(), &[(spec, vec![0; 4 * 256])]).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let all = checkpoint.tensors.values().next().unwrap();
        let mapped: Vec<Tensor> = (0..4).map(|i| all.slice("expert", 8 * i..8 * (i + 1))).collect();

        let part = || {
            let options = CpuOptions { threads: Some(1), isa: None, interleaved_bytes: 0 };
            (Box::new(CpuBackend::new(options).unwrap()) as Box<dyn Backend>, 1)
        };
        let mut split = SplitBackend::new(vec![part(), part()]);
        let [from, scores, sum] = [8, 4, 8].map(|width| split.add_buffer(width));
        let stacks = [0, 1].map(|layer| {
            split.enter(Some(layer));
            split.add_stack(&mapped, Stacked::Experts { used: 1 }).unwrap()
        });
        let made: Vec<Tensor> =
            (0..4).map(|_| Tensor::from_bytes("made", kind, &[8, 8], vec![0; 256])).collect();
        let in_memory = split.add_stack(&made, Stacked::Experts { used: 1 }).unwrap();
        let plan = Plan { rows: 1, logit_rows: 1, sequences: 1, pages: 1, kv_type: KvType::F16 };
        let rope = Rope { inverse_frequencies: Vec::new(), magnitude: 1.0, style: RopeStyle::Halves };
        split.prepare(plan, &rope).unwrap();
        let row = Row { sequence: 0, position: 0, token: 0, wants_logits: true };
        split.begin(&Step { rows: &[row], tables: &[&[0]] });
        let routing = Routing { used: 1, gate: Gate::Softmax, groups: (1, 1), normalize: false, scale: 1.0 };
        let experts = Experts {
            from,
            scores,
            correction: None,
            routing,
            gate: stacks[1],
            up: stacks[1],
            down: stacks[1],
            biases: None,
            activation: Activation::SwiGlu,
            sum,
        };

        assert!(split.is_in_file(stacks[0]) && split.is_in_file(stacks[1]) && !split.is_in_file(in_memory));
        split.enter(Some(0));
        assert!(split.wants_guess(stacks[0]) && !split.wants_guess(stacks[1]), "a part guesses for itself");
        split.enter(Some(1));
        assert!(split.wants_guess(stacks[1]) && !split.wants_guess(in_memory));
        [from, sum].into_iter().for_each(|buffer| split.write(buffer, &[0.0; 8]));
        for _ in 0..100 {
            split.write(scores, &[1.0, 0.0, 0.0, 0.0]);
            split.guess_ahead(&experts);
            split.write(scores, &[0.0, 1.0, 0.0, 0.0]);
            split.read_ahead(&experts);
        }
        assert!(!split.wants_guess(stacks[1]), "all guesses were wrong");
        split.enter(Some(0));
        assert!(split.wants_guess(stacks[0]), "the other part has made none");
    }
}
