//! Matrices of other types than they are stored in, made while a model is loaded: tensor by tensor, so that no more than
//! one of them is in memory in both forms.

use std::sync::atomic::AtomicBool;

use super::{Hyperparameters, names};
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
    let bytes = |tensor: &Tensor| {
        let kind = match conversion {
            Some(conversion) if tensor.shape.len() > 1 => {
                conversion.kind(&gguf_name(checkpoint, &tensor.name), &tensor.shape, tensor.kind)
            }
            _ => tensor.kind,
        };
        kind.row_bytes(tensor.columns()) as u64 * tensor.rows() as u64
    };
    checkpoint.tensors.values().map(bytes).sum()
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
