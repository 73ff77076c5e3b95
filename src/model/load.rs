//! From a checkpoint's tensors to handles of a backend: finds them, checks their shapes, cuts and turns what is stored
//! otherwise.

use super::conversion::turned_kind;
use super::layer::{AttentionWeights, Cost, FeedForward, Gated, Layer, Linear, Matrices};
use super::{Conversion, ExpertShape, Hyperparameters, Latent, loaded_bytes, names, rope};
use crate::backend::{Backend, Matrix, Rope, Stacked, Vector};
use crate::checkpoint::{Checkpoint, Metadata, Tensor};
use crate::quant::{self, BlockType};
use crate::{Error, Result};

/// Loading in progress.
pub struct Load<'a> {
    checkpoint: &'a Checkpoint,
    h: &'a Hyperparameters,
    conversion: Option<&'a Conversion>,
    rope: Rope,
    backend: &'a mut dyn Backend,
    progress: &'a mut dyn FnMut(u64, u64),
    done: u64,
    total: u64,
}

impl<'a> Load<'a> {
    pub fn new(
        checkpoint: &'a Checkpoint,
        h: &'a Hyperparameters,
        conversion: Option<&'a Conversion>,
        backend: &'a mut dyn Backend,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> Self {
        let total = loaded_bytes(checkpoint, conversion);
        Load { checkpoint, h, conversion, rope: h.rope(), backend, progress, done: 0, total }
    }

    /// What follows belongs to this layer.
    pub fn enter(&mut self, layer: Option<usize>) {
        self.backend.enter(layer);
    }

    pub fn layer(&mut self, i: usize) -> Result<Layer> {
        self.enter(Some(i));
        let h = self.h;
        let name = |part: &str| format!("blk.{i}.{part}");
        let (attention, attended) = match h.latent {
            Some(latent) => (self.latent(i, latent)?, h.heads * latent.value_dim),
            None => (self.grouped(i)?, h.heads * h.head_dim),
        };
        // gpt-oss calls the norm before the feed-forward as others call one after attention
        let has_ffn_norm = self.find(&name("ffn_norm.weight")).is_some();
        let ffn_norm = if has_ffn_norm { "ffn_norm.weight" } else { "post_attention_norm.weight" };
        Ok(Layer {
            attn_norm: self.vector(&name("attn_norm.weight"), h.width)?,
            attention,
            output: self.linear(&name("attn_output"), h.width, attended)?,
            sinks: self.optional_vector(&name("attn_sinks.weight"), h.heads)?,
            post_attention_norm: match has_ffn_norm {
                true => self.optional_vector(&name("post_attention_norm.weight"), h.width)?,
                false => None,
            },
            ffn_norm: self.vector(&name(ffn_norm), h.width)?,
            feed_forward: match &h.experts {
                Some(shape) if self.find(&name("ffn_gate_inp.weight")).is_some() => self.experts(i, shape)?,
                _ => FeedForward::Dense(self.gated(i, "", h.feed_forward)?),
            },
            post_ffn_norm: self.optional_vector(&name("post_ffw_norm.weight"), h.width)?,
        })
    }

    fn grouped(&mut self, i: usize) -> Result<AttentionWeights> {
        let h = self.h;
        let (queries, keys) = (h.heads * h.head_dim, h.kv_heads * h.head_dim);
        let name = |part: &str| format!("blk.{i}.{part}");
        let key_norm = self.optional_vector(&name("attn_k_norm.weight"), h.head_dim)?;
        Ok(AttentionWeights::Grouped {
            query: self.linear(&name("attn_q"), queries, h.width)?,
            key: self.linear(&name("attn_k"), keys, h.width)?,
            value: self.linear(&name("attn_v"), keys, h.width)?,
            query_norm: self.optional_vector(&name("attn_q_norm.weight"), h.head_dim)?,
            key_norm,
            key_center: match key_norm {
                Some(_) => None, // it takes away what a bias adds
                // a sink's score would have to move with the others
                None if self.find(&name("attn_sinks.weight")).is_some() => None,
                None => self.key_center(&name("attn_k.bias"), h.head_dim)?,
            },
        })
    }

    fn latent(&mut self, i: usize, l: Latent) -> Result<AttentionWeights> {
        let h = self.h;
        let name = |part: &str| format!("blk.{i}.{part}");
        let queries = h.heads * h.head_dim;
        let (query, expand_query) = match l.query_rank {
            None => (self.linear(&name("attn_q"), queries, h.width)?, None),
            Some(rank) => {
                let norm = self.vector(&name("attn_q_a_norm.weight"), rank)?;
                let expand = self.linear(&name("attn_q_b"), queries, rank)?;
                (self.linear(&name("attn_q_a"), rank, h.width)?, Some((norm, expand)))
            }
        };
        let (absorb, expand_value) = self.absorbed(i, l)?;
        Ok(AttentionWeights::Latent {
            query,
            expand_query,
            latent: self.linear(&name("attn_kv_a_mqa"), l.rank + l.rope_dims, h.width)?,
            latent_norm: self.vector(&name("attn_kv_a_norm.weight"), l.rank)?,
            absorb,
            expand_value,
        })
    }

    /// The matrices by head that latent attention has instead of expanded keys and values: as they are stored, or cut
    /// from the unsplit matrix [heads * (plain_dims + value_dim), rank].
    fn absorbed(&mut self, i: usize, l: Latent) -> Result<(Matrices, Matrices)> {
        let heads = self.h.heads;
        let [keys, values] = ["attn_k_b", "attn_v_b"].map(|part| format!("blk.{i}.{part}.weight"));
        if let (Some(k), Some(v)) = (self.find(&keys), self.find(&values)) {
            let k = self.cut(&k.decoded(), heads, l.rank, l.plain_dims)?;
            let v = self.cut(&v.decoded(), heads, l.value_dim, l.rank)?;
            return Ok((
                self.matrices(&keys, k, Stacked::Heads)?,
                self.matrices(&values, v, Stacked::Heads)?,
            ));
        }
        let (name, of_head) = (format!("blk.{i}.attn_kv_b.weight"), l.plain_dims + l.value_dim);
        let both = self.tensor(&name, heads * of_head, l.rank)?;
        let part = |head: usize, from: usize, len: usize| {
            both.slice(&name, head * of_head + from..head * of_head + from + len)
        };
        let kind = turned_kind(self.conversion, &keys, both.kind, l);
        let k: Vec<Tensor> = (0..heads).map(|head| turned(&part(head, 0, l.plain_dims), kind)).collect();
        let v = (0..heads).map(|head| part(head, l.plain_dims, l.value_dim)).collect();
        Ok((self.add(&k, Stacked::Heads)?, self.matrices(&values, v, Stacked::Heads)?))
    }

    fn gated(&mut self, i: usize, suffix: &str, width: usize) -> Result<Gated> {
        let name = |part: &str| format!("blk.{i}.ffn_{part}{suffix}");
        let h = self.h;
        Ok(Gated {
            gate: self.linear(&name("gate"), width, h.width)?,
            up: self.linear(&name("up"), width, h.width)?,
            down: self.linear(&name("down"), h.width, width)?,
        })
    }

    fn experts(&mut self, i: usize, shape: &ExpertShape) -> Result<FeedForward> {
        let (width, &ExpertShape { count, feed_forward, shared, .. }) = (self.h.width, shape);
        let name = |part: &str| format!("blk.{i}.{part}");
        let [gate, up] = self.gates(i, count, feed_forward, width)?;
        let down = self.stack(i, "down", count, width, feed_forward)?;
        let of = Stacked::Experts { used: shape.routing.used };
        Ok(FeedForward::Experts {
            router: self.linear(&name("ffn_gate_inp"), count, width)?,
            correction: self.optional_vector(&name("exp_probs_b.bias"), count)?,
            gate: self.matrices(&name("ffn_gate_exps.weight"), gate, of)?,
            up: self.matrices(&name("ffn_up_exps.weight"), up, of)?,
            down: self.matrices(&name("ffn_down_exps.weight"), down, of)?,
            biases: self.expert_biases(i, count, feed_forward)?,
            shared: if shared > 0 { Some(self.gated(i, "_shexp", shared)?) } else { None },
        })
    }

    /// The experts' gate and up matrices, which may be stored as one.
    fn gates(&self, i: usize, count: usize, rows: usize, columns: usize) -> Result<[Vec<Tensor>; 2]> {
        let fused = format!("model.layers.{i}.mlp.experts.gate_up_proj");
        let Some(both) = self.checkpoint.tensors.get(&fused).map(Tensor::decoded) else {
            let [gate, up] = ["gate", "up"].map(|part| self.stack(i, part, count, rows, columns));
            return Ok([gate?, up?]);
        };
        // gpt-oss: [experts, columns, 2 * rows], gate and up by turns; in MXFP4 [experts, 2 * rows, columns]
        let is_turned = both.kind.block_len() == 1;
        let shape = if is_turned { [count, columns, 2 * rows] } else { [count, 2 * rows, columns] };
        self.check_shape(&both, &shape)?;
        let (tensor_rows, tensor_columns) = (shape[1], shape[2]);
        let mut parts = [Vec::new(), Vec::new()];
        for expert in 0..count {
            let slice = both.slice(&fused, expert * tensor_rows..(expert + 1) * tensor_rows);
            let slice = if is_turned { transposed(&slice) } else { slice };
            debug_assert_eq!(slice.columns(), if is_turned { columns } else { tensor_columns });
            parts.iter_mut().enumerate().for_each(|(odd, part)| part.push(every_other(&slice, odd)));
        }
        Ok(parts)
    }

    /// The experts' matrices of this part, each [rows, columns].
    fn stack(&self, i: usize, part: &str, count: usize, rows: usize, columns: usize) -> Result<Vec<Tensor>> {
        let stacked = format!("blk.{i}.ffn_{part}_exps.weight");
        if let Metadata::Gguf(_) = self.checkpoint.metadata {
            let found = self.find(&stacked);
            let tensor = found.ok_or_else(|| self.fault(format!("has no tensor {stacked}")))?;
            return self.cut(&tensor.decoded(), count, rows, columns);
        }
        let fused = format!("model.layers.{i}.mlp.experts.{part}_proj");
        if let Some(all) = self.checkpoint.tensors.get(&fused).map(Tensor::decoded) {
            let is_turned = all.kind.block_len() == 1; // gpt-oss: [experts, columns, rows]
            let (rows, columns) = if is_turned { (columns, rows) } else { (rows, columns) };
            let parts = self.cut(&all, count, rows, columns)?;
            return Ok(if is_turned { parts.iter().map(transposed).collect() } else { parts });
        }
        let expert = |expert| {
            let name = names::expert(i, part, expert);
            let tensor = self.checkpoint.tensors.get(&name);
            let tensor = tensor.ok_or_else(|| self.fault(format!("has no tensor {name}")))?;
            self.check_shape(tensor, &[rows, columns])?;
            self.converted(&stacked, tensor.decoded()) // one by one: decoded they may not fit into memory together
        };
        (0..count).map(expert).collect()
    }

    /// Biases of gate, up and down, [experts * rows].
    fn expert_biases(&mut self, i: usize, count: usize, feed_forward: usize) -> Result<Option<[Vector; 3]>> {
        let find = |name: String| self.checkpoint.tensors.get(&name);
        let hugging_face = |part: &str| find(format!("model.layers.{i}.mlp.experts.{part}_proj_bias"));
        let gguf = |part: &str| find(format!("blk.{i}.ffn_{part}_exps.bias"));
        let width = self.h.width;
        let values = if let (Some(both), Some(down)) = (hugging_face("gate_up"), hugging_face("down")) {
            self.check_shape(both, &[count, 2 * feed_forward])?;
            self.check_shape(down, &[count, width])?;
            let both = both.values();
            let part = |odd: usize| both.iter().copied().skip(odd).step_by(2).collect::<Vec<_>>();
            [part(0), part(1), down.values()]
        } else if let (Some(gate), Some(up), Some(down)) = (gguf("gate"), gguf("up"), gguf("down")) {
            for (bias, rows) in [(gate, feed_forward), (up, feed_forward), (down, width)] {
                self.check_shape(bias, &[count, rows])?;
            }
            [gate.values(), up.values(), down.values()]
        } else {
            return Ok(None);
        };
        let [gate, up, down] = values.map(|values| self.backend.add_vector(values));
        Ok(Some([gate?, up?, down?]))
    }

    pub fn embedding(&mut self, name: &str, rows: usize, columns: usize) -> Result<Matrix> {
        let tensor = self.tensor(name, rows, columns)?;
        self.backend.add_embedding(&tensor)
    }

    pub fn linear(&mut self, name: &str, rows: usize, columns: usize) -> Result<Linear> {
        let tensor = self.tensor(&format!("{name}.weight"), rows, columns)?;
        let tensor = self.converted(&format!("{name}.weight"), tensor)?;
        let matrix = self.backend.add_matrix(&tensor)?;
        self.count(&tensor);
        let bias = self.optional_vector(&format!("{name}.bias"), rows)?;
        Ok(Linear { matrix, bias, cost: Cost::of(&tensor) })
    }

    /// The matrices of what GGUF calls `name`.
    fn matrices(&mut self, name: &str, tensors: Vec<Tensor>, of: Stacked) -> Result<Matrices> {
        let tensors: Vec<Tensor> =
            tensors.into_iter().map(|tensor| self.converted(name, tensor)).collect::<Result<_>>()?;
        self.add(&tensors, of)
    }

    /// Matrices as they are.
    fn add(&mut self, tensors: &[Tensor], of: Stacked) -> Result<Matrices> {
        let mut cost = Cost { bytes: 0, values: 0, quantized: true };
        for tensor in tensors {
            self.count(tensor);
            let one = Cost::of(tensor);
            cost.bytes += one.bytes;
            cost.values += one.values;
            cost.quantized &= one.quantized;
        }
        Ok(Matrices { stack: self.backend.add_stack(tensors, of)?, cost })
    }

    pub fn vector(&mut self, name: &str, len: usize) -> Result<Vector> {
        let tensor = self.tensor(name, 1, len)?;
        self.count(&tensor);
        self.backend.add_vector(tensor.values())
    }

    pub fn optional_vector(&mut self, name: &str, len: usize) -> Result<Option<Vector>> {
        match self.part(name, 1, len) {
            Some(_) => self.vector(name, len).map(Some),
            None => Ok(None),
        }
    }

    /// The mean of a key bias's rotations.
    fn key_center(&mut self, bias: &str, head_dim: usize) -> Result<Option<Vector>> {
        let Some(bias) = self.part(bias, 1, self.h.kv_heads * head_dim) else { return Ok(None) };
        let mut center = bias.values();
        center.chunks_exact_mut(head_dim).for_each(|head| rope::mean_rotation(&self.rope, head));
        self.backend.add_vector(center).map(Some)
    }

    pub fn find(&self, name: &str) -> Option<&'a Tensor> {
        names::find(self.checkpoint, name)
    }

    /// The tensor `name`, of shape [rows, columns] (a vector: one row).
    fn tensor(&self, name: &str, rows: usize, columns: usize) -> Result<Tensor> {
        let tensor =
            self.part(name, rows, columns).ok_or_else(|| self.fault(format!("has no tensor {name}")))?;
        let (shape, is_vector) = ([rows, columns], rows == 1 && tensor.shape.len() == 1);
        self.check_shape(&tensor, if is_vector { &shape[1..] } else { &shape })?;
        Ok(tensor)
    }

    /// The tensor `name`, or the part of another that stands for it: of attn_qkv, or of gate and up in one.
    fn part(&self, name: &str, rows: usize, columns: usize) -> Option<Tensor> {
        let (layer, part) =
            name.rsplit_once("attn_").or_else(|| name.rsplit_once("ffn_")).unwrap_or(("", ""));
        let (part, kind) = part.split_once('.').unwrap_or_default();
        let size = if kind == "bias" { columns } else { rows };
        let h = self.h;
        let (fused, from) = match part {
            "q" => (format!("{layer}attn_qkv.{kind}"), 0),
            "k" => (format!("{layer}attn_qkv.{kind}"), h.heads * h.head_dim),
            "v" => (format!("{layer}attn_qkv.{kind}"), (h.heads + h.kv_heads) * h.head_dim),
            // GGUF keeps the name of one of them for both
            "gate" | "up" => {
                let both = ["ffn_gate_up", "ffn_up"].map(|part| format!("{layer}{part}.{kind}"));
                let [fused, up] = both;
                (if self.find(&fused).is_some() { fused } else { up }, if part == "up" { size } else { 0 })
            }
            _ => return self.find(name).map(Tensor::decoded),
        };
        let whole = self.find(name);
        let Some(fused) = self.find(&fused) else { return whole.map(Tensor::decoded) };
        let range = from..from + size;
        let stored = if kind == "bias" { fused.columns() } else { fused.rows() };
        if whole.is_some_and(|t| t.name != fused.name)
            || stored < range.end
            || (part == "up" && stored == size)
        {
            return whole.map(Tensor::decoded);
        }
        let fused = fused.decoded();
        if kind == "bias" {
            let bytes = fused.values()[range].iter().flat_map(|v| v.to_le_bytes()).collect();
            return Some(Tensor::from_bytes(name, BlockType::F32, &[size], bytes));
        }
        (stored != size || from > 0).then(|| fused.slice(name, range)).or_else(|| whole.map(Tensor::decoded))
    }

    /// The matrix that GGUF calls `name` as it is to be multiplied with.
    fn converted(&self, name: &str, tensor: Tensor) -> Result<Tensor> {
        match self.conversion {
            Some(conversion) => conversion.convert(name, tensor),
            None => Ok(tensor),
        }
    }

    /// A stored stack of matrices as single ones.
    fn cut(&self, tensor: &Tensor, count: usize, rows: usize, columns: usize) -> Result<Vec<Tensor>> {
        self.check_shape(tensor, &[count, rows, columns])?;
        Ok((0..count).map(|i| tensor.slice(&tensor.name, i * rows..(i + 1) * rows)).collect())
    }

    fn check_shape(&self, tensor: &Tensor, shape: &[usize]) -> Result<()> {
        if tensor.shape == shape {
            return Ok(());
        }
        let (name, found) = (&tensor.name, &tensor.shape);
        Err(self.fault(format!("tensor {name} has shape {found:?}, the hyperparameters say {shape:?}")))
    }

    fn fault(&self, what: String) -> Error {
        Error::file(self.checkpoint.files.first().cloned().unwrap_or_default(), what)
    }

    fn count(&mut self, tensor: &Tensor) {
        self.done = (self.done + tensor.bytes().len() as u64).min(self.total);
        (self.progress)(self.done, self.total);
    }
}

impl Cost {
    fn of(tensor: &Tensor) -> Cost {
        Cost {
            bytes: tensor.bytes().len() as u64,
            values: (tensor.rows() * tensor.columns()) as u64,
            quantized: tensor.kind.block_len() > 1,
        }
    }
}

/// A matrix of plain numbers, rows and columns exchanged.
pub(super) fn transposed(tensor: &Tensor) -> Tensor {
    let (rows, columns, size) = (tensor.rows(), tensor.columns(), tensor.kind.block_bytes());
    let from = tensor.bytes();
    let mut bytes = Vec::with_capacity(from.len());
    for column in 0..columns {
        for row in 0..rows {
            bytes.extend_from_slice(&from[(row * columns + column) * size..][..size]);
        }
    }
    Tensor::from_bytes(&tensor.name, tensor.kind, &[columns, rows], bytes)
}

/// The even rows, or the odd ones.
pub(super) fn every_other(tensor: &Tensor, odd: usize) -> Tensor {
    let (rows, row_bytes) = (tensor.rows() / 2, tensor.kind.row_bytes(tensor.columns()));
    let stored = tensor.bytes().chunks_exact(row_bytes).skip(odd).step_by(2);
    let bytes = stored.flatten().copied().collect();
    Tensor::from_bytes(&tensor.name, tensor.kind, &[rows, tensor.columns()], bytes)
}

/// A matrix of any type, rows and columns exchanged: its values are stored anew. The same on every processor.
fn turned(tensor: &Tensor, kind: BlockType) -> Tensor {
    let (rows, columns) = (tensor.rows(), tensor.columns());
    let values = tensor.values();
    let turned: Vec<f32> = (0..columns)
        .flat_map(|column| (0..rows).map(move |row| (row, column)))
        .map(|(r, c)| values[r * columns + c])
        .collect();
    let mut bytes = vec![0; columns * kind.row_bytes(rows)];
    for (values, bytes) in turned.chunks(rows).zip(bytes.chunks_mut(kind.row_bytes(rows))) {
        quant::quantize(kind, values, bytes);
    }
    Tensor::from_bytes(&tensor.name, kind, &[columns, rows], bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::backend::cpu::{CpuBackend, CpuOptions};
    use crate::model::Synthetic;

    /// What `read` does with these tensors, of so many F32 values each.
    fn error<T>(tensors: &[(&str, &[usize])], read: impl Fn(&mut Load<'_>) -> Result<T>) -> String {
        let pattern = Tensor::from_bytes("", BlockType::F32, &[1], vec![0; 4]);
        let tensor =
            |&(name, shape): &(&str, &[usize])| (name.into(), Tensor::repeated(name, shape, &pattern, 0));
        let checkpoint = Checkpoint {
            files: vec![],
            metadata: Metadata::Gguf(BTreeMap::new().into()),
            tensors: tensors.iter().map(tensor).collect(),
        };
        let synthetic = Synthetic::new("gpt-oss:20b", Some(1)).unwrap();
        let mut backend = CpuBackend::new(CpuOptions::default()).unwrap();
        let mut progress = |_, _| ();
        let mut load = Load::new(&checkpoint, synthetic.hyperparameters(), None, &mut backend, &mut progress);
        read(&mut load).err().unwrap().to_string()
    }

    #[test]
    fn a_vector_is_no_matrix_of_as_many_columns() {
        let message =
            error(&[("blk.0.attn_kv_b.weight", &[4])], |load| load.tensor("blk.0.attn_kv_b.weight", 2, 4));
        assert!(message.contains("blk.0.attn_kv_b.weight has shape [4]"), "{message}");
    }

    #[test]
    fn biases_of_experts_are_not_decoded_before_their_shapes_are_right() {
        let [gate, up, down] =
            ["blk.0.ffn_gate_exps.bias", "blk.0.ffn_up_exps.bias", "blk.0.ffn_down_exps.bias"];
        let all: [(&str, &[usize]); 3] = [(gate, &[2, 1 << 40]), (up, &[2, 4]), (down, &[2, 4])];
        let message = error(&all, |load| load.expert_biases(0, 2, 4));
        assert!(message.contains(gate), "{message}");
    }
}
