//! Matrices of other types than they are stored in, made while a model is loaded: tensor by tensor, so that no more than
//! one of them is in memory in both forms.

use std::sync::atomic::AtomicBool;

use super::{Hyperparameters, Latent, names};
use crate::checkpoint::{Checkpoint, Metadata, Tensor};
use crate::quant::{BlockType, Mix, ModelShape, Rows};
use crate::{Error, Result};

/// What becomes of a model's matrices when it is loaded. What is stored in as few bits already stays as it is, and so
/// does the embedding, which is only looked up.
#[derive(Clone, Copy, Debug)]
pub struct Conversion {
    /// Which type each matrix gets.
    pub mix: Mix,
    shape: ModelShape,
}

impl Conversion {
    /// To the types of `mix`.
    pub fn new(mix: Mix, checkpoint: &Checkpoint, h: &Hyperparameters) -> Self {
        let shape = ModelShape {
            layers: h.layers,
            group: h.heads / h.kv_heads,
            experts: h.experts.as_ref().map_or(0, |experts| experts.count),
            tied: names::find(checkpoint, "output.weight").is_none(),
            calibrated: false,
        };
        Conversion { mix, shape }
    }

    /// The type of a matrix by its GGUF name.
    pub(super) fn kind(&self, name: &str, shape: &[usize], stored: BlockType) -> BlockType {
        let kind = self.mix.kind(name, shape, &self.shape);
        let bits = |kind: BlockType| kind.block_bytes() as f64 / kind.block_len() as f64;
        if bits(kind) < bits(stored) { kind } else { stored }
    }

    /// The matrix that GGUF calls `name` as it is multiplied with.
    ///
    /// # Errors
    /// [`Error::Memory`] where there is none for it.
    pub fn convert(&self, name: &str, tensor: Tensor) -> Result<Tensor> {
        let kind = self.kind(name, &tensor.shape, tensor.kind);
        if kind == tensor.kind {
            return Ok(tensor);
        }
        let rows =
            Rows { kind: tensor.kind, columns: tensor.columns(), bytes: tensor.bytes(), importance: None };
        let len = kind.row_bytes(tensor.columns()) * tensor.rows();
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| {
            Error::Memory(format!("there is no memory for tensor {name} as {kind} ({len} bytes)"))
        })?;
        bytes.resize(len, 0);
        rows.convert(kind, &mut bytes, &AtomicBool::new(false));
        tensor.drop_pages();
        Ok(Tensor::from_bytes(&tensor.name, kind, &tensor.shape, bytes))
    }
}

/// Bytes of a checkpoint's tensors once they are loaded.
pub fn loaded_bytes(checkpoint: &Checkpoint, conversion: Option<&Conversion>) -> u64 {
    let bytes = |tensor: &Tensor| bytes_as(loaded_kind(checkpoint, conversion, tensor), tensor);
    checkpoint.tensors.values().map(bytes).sum()
}

/// Bytes of weights by where they are multiplied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBytes {
    /// Of each layer.
    pub layers: Vec<u64>,
    /// Of each layer's experts, a part of it.
    pub experts: Vec<u64>,
    /// Of the output matrix, which is the embedding's where they are tied.
    pub output: u64,
    /// Of the largest matrix of 16-bit floats, as f32: a GPU widens it for each product.
    pub widened: u64,
}

/// What layers take: on a GPU, which holds a matrix of a type and row length as `stores` says and matrices of heads as
/// 16-bit floats; without it on the CPU.
pub fn layer_bytes(
    checkpoint: &Checkpoint,
    conversion: Option<&Conversion>,
    h: &Hyperparameters,
    gpu: Option<&dyn Fn(BlockType, usize) -> BlockType>,
) -> LayerBytes {
    let of_heads = |tensor: &Tensor| {
        ["attn_k_b.", "attn_v_b.", "attn_kv_b.", "kv_b_proj."].iter().any(|part| tensor.name.contains(part))
    };
    let held = |tensor: &Tensor| {
        let kind = loaded_kind(checkpoint, conversion, tensor);
        match gpu {
            Some(_) if of_heads(tensor) && kind != BlockType::F32 => BlockType::F16,
            Some(stores) => stores(kind, tensor.columns()),
            None => kind,
        }
    };
    let bytes = |tensor: &Tensor| bytes_as(held(tensor), tensor);
    let made = if gpu.is_some() { 0 } else { made_bytes(checkpoint, h, conversion) / h.layers as i64 };
    let (mut layers, mut experts, mut widened) = (vec![0; h.layers], vec![0; h.layers], 0);
    let output = ["output.weight", "token_embd.weight"].iter().find_map(|name| names::find(checkpoint, name));
    for tensor in checkpoint.tensors.values() {
        let layer = layer_of(&tensor.name).filter(|&i| i < h.layers);
        let is_output = output.is_some_and(|output| output.name == tensor.name);
        if tensor.shape.len() > 1
            && (layer.is_some() || is_output)
            && matches!(held(tensor), BlockType::F16 | BlockType::BF16)
        {
            // stacked experts are widened one by one
            let count = if names::is_expert(&tensor.name) {
                tensor.shape[..tensor.shape.len() - 2].iter().product()
            } else {
                1
            };
            widened = (4 * tensor.shape.iter().product::<usize>() as u64 / count as u64).max(widened);
        }
        if let Some(layer) = layer {
            layers[layer] += bytes(tensor);
            experts[layer] += if names::is_expert(&tensor.name) { bytes(tensor) } else { 0 };
        }
    }
    layers.iter_mut().for_each(|layer: &mut u64| *layer = layer.saturating_add_signed(made));
    LayerBytes { layers, experts, output: output.map_or(0, bytes), widened }
}

/// Types of matrices that a device holds as others, and these, each once.
pub fn restored_types(
    checkpoint: &Checkpoint,
    conversion: Option<&Conversion>,
    stores: impl Fn(BlockType, usize) -> BlockType,
) -> Vec<(BlockType, BlockType)> {
    let types = |tensor: &Tensor| {
        let kind = loaded_kind(checkpoint, conversion, tensor);
        (kind, stores(kind, tensor.columns()))
    };
    let multiplied = |tensor: &&Tensor| tensor.shape.len() > 1 && layer_of(&tensor.name).is_some();
    let mut found: Vec<_> = checkpoint.tensors.values().filter(multiplied).map(types).collect();
    found.retain(|(kind, stored)| kind != stored);
    found.sort_unstable();
    found.dedup();
    found
}

/// The layer in a tensor's name: "blk.3.attn_q.weight", "model.layers.3.self_attn.q_proj.weight".
fn layer_of(name: &str) -> Option<usize> {
    let mut parts = name.split('.');
    parts.find(|part| matches!(*part, "blk" | "layers"))?;
    parts.next()?.parse().ok()
}

/// The type that a tensor is loaded as.
fn loaded_kind(checkpoint: &Checkpoint, conversion: Option<&Conversion>, tensor: &Tensor) -> BlockType {
    match conversion {
        Some(conversion) if tensor.shape.len() > 1 => {
            conversion.kind(&gguf_name(checkpoint, &tensor.name), &tensor.shape, tensor.kind)
        }
        _ => tensor.kind,
    }
}

/// Bytes of matrices that are made while loading, less those of the checkpoint that they stand for: keys of latent attention
/// that are stored together with values.
pub(super) fn made_bytes(
    checkpoint: &Checkpoint,
    h: &Hyperparameters,
    conversion: Option<&Conversion>,
) -> i64 {
    let Some(l) = h.latent else { return 0 };
    let bytes = |kind: BlockType, columns: usize, rows: usize| (kind.row_bytes(columns) * rows) as i64;
    let of_layer = |i: usize| {
        let split = ["attn_k_b", "attn_v_b"].map(|part| format!("blk.{i}.{part}.weight"));
        if split.iter().all(|name| names::find(checkpoint, name).is_some()) {
            return 0;
        }
        names::find(checkpoint, &format!("blk.{i}.attn_kv_b.weight")).map_or(0, |both| {
            let made =
                bytes(turned_kind(conversion, &split[0], both.kind, l), l.plain_dims, h.heads * l.rank);
            let counted = loaded_kind(checkpoint, conversion, both);
            made - bytes(counted, l.rank, h.heads * l.plain_dims)
        })
    };
    (0..h.layers).map(of_layer).sum()
}

/// How `Load` stores the keys of latent attention that it turns, which GGUF calls `name`: as F16, which loses nothing that counts
/// beside what is stored in 16 bits or fewer, else as F32. Where a conversion quantizes, as Q8_0 and no coarser: all scores are
/// made of them.
pub(super) fn turned_kind(
    conversion: Option<&Conversion>,
    name: &str,
    stored: BlockType,
    l: Latent,
) -> BlockType {
    let Some(to) = conversion else {
        return if stored == BlockType::F32 { BlockType::F32 } else { BlockType::F16 };
    };
    let is_quantized = to.kind(name, &[l.rank, l.plain_dims], BlockType::F16).block_len() > 1;
    match is_quantized && l.plain_dims.is_multiple_of(BlockType::Q8_0.block_len()) {
        true => BlockType::Q8_0,
        false => BlockType::F16,
    }
}

fn bytes_as(kind: BlockType, tensor: &Tensor) -> u64 {
    kind.row_bytes(tensor.columns()) as u64 * tensor.rows() as u64
}

/// GGUF's name of a tensor; of one that stands in a stack, the stack's.
pub(super) fn gguf_name(checkpoint: &Checkpoint, name: &str) -> String {
    match checkpoint.metadata {
        Metadata::Gguf(_) => name.to_owned(),
        Metadata::HuggingFace { .. } => names::gguf(name)
            .or_else(|| names::stacked(name).map(|(stack, _)| stack))
            .unwrap_or_else(|| format!("{}.weight", name.trim_end_matches(".weight"))),
    }
}
