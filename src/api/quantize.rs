//! From any checkpoint that can be read to a GGUF file of other block types.

use std::io::BufWriter;
use std::path::{Path, PathBuf};

use super::{CancelHandle, Importance};
use crate::checkpoint::write::{GgufWriter, TensorSpec};
use crate::checkpoint::{Checkpoint, Value, WholeFile};
use crate::model::Hyperparameters;
use crate::model::export::{Export, export, frequency_factors};
use crate::quant::{BlockType, Mix, ModelShape, Rows};
use crate::{Error, Result};

/// What was written.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Quantized {
    /// Tensors.
    pub tensors: usize,
    /// Values of all of them.
    pub parameters: u64,
    /// Bytes that they took before.
    pub from_bytes: u64,
    /// Bytes of the file's tensors.
    pub bytes: u64,
    /// Bits of a value, on average.
    pub bits_per_weight: f64,
    /// How many tensors each type has.
    pub types: Vec<(String, usize)>,
    /// Whether the file has a vocabulary; without one it cannot be given text.
    pub has_vocabulary: bool,
}

/// Writes `checkpoint` as a GGUF file with the types of `mix`, tensor by tensor: no more than one matrix of it is in memory.
/// The file appears under its name when it is whole. `progress` is told (bytes read, bytes in all).
///
/// # Errors
/// A checkpoint without weights, of an architecture that is not known, or that has no place in a GGUF file; a mix that
/// [wants importance](Mix::wants_importance) without any; what cannot be written; [`Error::Io`] of the kind `Interrupted`
/// when `cancel` asks to stop.
pub fn quantize(
    checkpoint: &Checkpoint,
    mix: Mix,
    path: &Path,
    cancel: &CancelHandle,
    progress: impl FnMut(u64, u64),
) -> Result<Quantized> {
    quantize_by(checkpoint, mix, None, path, cancel, progress)
}

/// [`quantize`], finer where it matters.
///
/// # Errors
/// As [`quantize`].
pub fn quantize_by(
    checkpoint: &Checkpoint,
    mix: Mix,
    importance: Option<&Importance>,
    path: &Path,
    cancel: &CancelHandle,
    mut progress: impl FnMut(u64, u64),
) -> Result<Quantized> {
    if mix.wants_importance() && importance.is_none() {
        return Err(Error::Usage(format!(
            "{} is of use only where it is known which columns are important: calibrate by a text (--calibrate FILE)",
            mix.name
        )));
    }
    if checkpoint.tensors.is_empty() {
        let file = checkpoint.files.first().map_or(path, PathBuf::as_path);
        return Err(Error::file(file, "holds no tensors, only metadata: there is nothing to quantize"));
    }
    let h = Hyperparameters::read(checkpoint)?;
    let (mut metadata, tensors) = export(checkpoint, &h)?;
    metadata.insert("general.file_type".into(), Value::Unsigned(mix.file_type.into()));
    metadata.insert("general.quantization_version".into(), Value::Unsigned(2));
    let is_tied = !tensors.iter().any(|tensor| tensor.name == "output.weight");
    let experts = h.experts.as_ref().map_or(0, |e| e.count);
    let model = ModelShape {
        layers: h.layers,
        group: h.heads / h.kv_heads,
        experts,
        tied: is_tied,
        calibrated: importance.is_some(),
    };
    let from_gguf = matches!(checkpoint.metadata, crate::checkpoint::Metadata::Gguf(_));
    let factors = if from_gguf { vec![] } else { frequency_factors(&h) };

    let mut specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|tensor| TensorSpec {
            name: tensor.name.clone(),
            kind: mix.kind(&tensor.name, &tensor.shape, &model),
            shape: tensor.shape.clone(),
        })
        .collect();
    specs.extend(factors.iter().map(|(name, factors)| TensorSpec {
        name: (*name).to_owned(),
        kind: BlockType::F32,
        shape: vec![factors.len()],
    }));

    let fault = |error| Error::io(path, error);
    let bytes = specs.iter().map(|spec| spec.kind.row_bytes(spec.shape.iter().product()) as u64).sum();
    let file = WholeFile::create(path, bytes).map_err(fault)?;
    let mut writer = GgufWriter::new(BufWriter::new(file.file()), &metadata, &specs).map_err(fault)?;
    let total = checkpoint.total_bytes();
    let mut done = 0;
    for (tensor, spec) in tensors.iter().zip(&specs) {
        let bytes = converted(tensor, spec.kind, importance, cancel);
        if cancel.is_cancelled() {
            return Err(fault(std::io::ErrorKind::Interrupted.into()));
        }
        writer.tensor(&bytes).map_err(fault)?;
        done += (0..tensor.parts()).map(|i| tensor.stored_bytes(i)).sum::<u64>();
        progress(done.min(total), total);
    }
    for (_, factors) in &factors {
        let bytes: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
        writer.tensor(&bytes).map_err(fault)?;
    }
    writer.finish().map_err(fault)?;
    file.keep().map_err(fault)?;
    let has_vocabulary = metadata.contains_key("tokenizer.ggml.tokens");
    Ok(report(&specs, total, has_vocabulary))
}

fn report(specs: &[TensorSpec], from_bytes: u64, has_vocabulary: bool) -> Quantized {
    let values = |spec: &TensorSpec| spec.shape.iter().product::<usize>();
    let parameters = specs.iter().map(|spec| values(spec) as u64).sum();
    let bytes = specs.iter().map(|spec| spec.kind.row_bytes(values(spec)) as u64).sum();
    let mut types: Vec<(String, usize)> = Vec::new();
    for kind in BlockType::ALL {
        let count = specs.iter().filter(|spec| spec.kind == kind).count();
        if count > 0 {
            types.push((kind.to_string(), count));
        }
    }
    let bits_per_weight = 8.0 * bytes as f64 / f64::max(parameters as f64, 1.0);
    Quantized { tensors: specs.len(), parameters, from_bytes, bytes, bits_per_weight, types, has_vocabulary }
}

/// A tensor's bytes in another type, on all cores.
fn converted(
    export: &Export<'_>,
    kind: BlockType,
    importance: Option<&Importance>,
    cancel: &CancelHandle,
) -> Vec<u8> {
    let mut all = Vec::new();
    for part in 0..export.parts() {
        let tensor = export.part(part);
        let (at, columns) = (all.len(), tensor.columns());
        all.resize(at + kind.row_bytes(tensor.rows() * columns), 0);
        // experts that are one tensor
        let matrices = if tensor.shape.len() == 3 { tensor.shape[0].max(1) } else { 1 };
        let [from, to] = [tensor.bytes().len(), all.len() - at].map(|bytes| bytes / matrices);
        let pieces = tensor.bytes().chunks_exact(from.max(1)).zip(all[at..].chunks_exact_mut(to.max(1)));
        for (i, (bytes, to)) in pieces.enumerate() {
            let importance = importance.and_then(|known| known.of(&tensor.name, i, columns));
            Rows { kind: tensor.kind, columns, bytes, importance }.convert(kind, to, cancel.switch());
        }
        export.drop_pages(part);
    }
    all
}
