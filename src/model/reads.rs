//! What the generation of a token reads of a model's matrices.

use std::collections::BTreeMap;

use super::conversion::gguf_name;
use super::{Conversion, Hyperparameters, Synthetic, names};
use crate::checkpoint::Checkpoint;
use crate::quant::BlockType;

/// Bytes by type.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reads {
    /// Matrices that every token goes through.
    pub always: BTreeMap<BlockType, u64>,
    /// Experts that one token goes to.
    pub experts: BTreeMap<BlockType, u64>,
    /// All experts, of all types together.
    pub all_experts: u64,
    /// Of these, what may stay in the file: what loading neither decodes, turns nor converts.
    pub experts_in_file: u64,
}

/// A tensor as it is loaded.
struct Matrix<'a> {
    /// GGUF's.
    name: String,
    kind: BlockType,
    shape: &'a [usize],
    /// Whether it may stay in the file.
    stays: bool,
}

impl Reads {
    /// Bytes of all matrices that are multiplied: all but an embedding of which rows are looked up.
    pub fn matrices(&self) -> u64 {
        self.always.values().sum::<u64>() + self.all_experts
    }

    /// Of a checkpoint, as it is loaded.
    pub fn of(checkpoint: &Checkpoint, h: &Hyperparameters, conversion: Option<&Conversion>) -> Reads {
        let predicts_further = |name: &str| names::layer(name).is_some_and(|layer| layer >= h.layers);
        let tensors = checkpoint.tensors.values().filter(|tensor| !predicts_further(&tensor.name));
        let matrices = tensors.map(|tensor| {
            let name = gguf_name(checkpoint, &tensor.name);
            let kind = conversion.map_or(tensor.kind, |to| to.kind(&name, &tensor.shape, tensor.kind));
            let stays =
                conversion.is_none() && tensor.is_ready_in_file() && !names::is_fused_experts(&tensor.name);
            Matrix { name, kind, shape: &tensor.shape, stays }
        });
        Self::sum(matrices, h)
    }

    /// Of a model that is not there.
    pub fn of_synthetic(synthetic: &Synthetic) -> Reads {
        let tensors = synthetic.tensors();
        let matrices = tensors.iter().map(|spec| Matrix {
            name: spec.name.clone(),
            kind: spec.kind,
            shape: &spec.shape,
            stays: true,
        });
        Self::sum(matrices, synthetic.hyperparameters())
    }

    fn sum<'a>(tensors: impl Iterator<Item = Matrix<'a>>, h: &Hyperparameters) -> Reads {
        let mut reads = Reads::default();
        let (mut embedding, mut has_output) = (None, false);
        for Matrix { name, kind, shape, stays } in tensors.filter(|matrix| matrix.shape.len() > 1) {
            let values: usize = shape.iter().product();
            let bytes = (values / kind.block_len() * kind.block_bytes()) as u64;
            has_output |= name == "output.weight";
            match &h.experts {
                _ if name == "token_embd.weight" => embedding = Some((kind, bytes)), // only looked up
                Some(experts) if names::is_expert(&name) => {
                    *reads.experts.entry(kind).or_default() += experts.share(bytes, 1);
                    reads.all_experts += bytes;
                    reads.experts_in_file += if stays { bytes } else { 0 };
                }
                _ => *reads.always.entry(kind).or_default() += bytes,
            }
        }
        if let (Some((kind, bytes)), false) = (embedding, has_output) {
            *reads.always.entry(kind).or_default() += bytes;
        }
        reads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_all_matrices_but_the_embedding_and_eight_of_256_experts() {
        let r1 = Synthetic::new("deepseek-r1:671b-ud-iq1_s", None).unwrap();
        let reads = Reads::of_synthetic(&r1);
        let of_layer = 256 * 3 * 2048 * 7168_u64;
        let iq1_s = (58 * of_layer - 6 * of_layer / 3) / 256 * 50;
        assert_eq!(reads.experts[&BlockType::IQ1_S], iq1_s / 32);
        assert_eq!(reads.experts.len(), 2);
        assert!(reads.all_experts > 32 * reads.experts[&BlockType::IQ1_S]);
        assert_eq!(reads.always[&BlockType::F32], 58 * 256 * 7168 * 4, "routers");
    }

    #[test]
    fn a_tied_embedding_is_read_as_output_matrix() {
        let tied = Synthetic::new("qwen3:0.6b", Some(1)).unwrap();
        let bytes = |shape: [usize; 2]| (shape[0] * shape[1] / 32 * 34) as u64;
        let layer = 2 * bytes([2048, 1024]) + 2 * bytes([1024, 1024]) + 3 * bytes([3072, 1024]);
        let reads = Reads::of_synthetic(&tied);
        assert_eq!(reads.always, BTreeMap::from([(BlockType::Q8_0, layer + bytes([151_936, 1024]))]));
        assert_eq!(
            (reads.all_experts, Reads::of(&tied.checkpoint(), tied.hyperparameters(), None)),
            (0, reads)
        );
    }
}
