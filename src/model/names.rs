//! Tensor names: pensive speaks GGUF's; a Hugging Face checkpoint's are translated.

use crate::checkpoint::{Checkpoint, Metadata, Tensor};

/// (GGUF, Hugging Face) outside the layers.
const TOP: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// (GGUF, Hugging Face) inside a layer, without `.weight` or `.bias`.
const LAYER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The name in a Hugging Face checkpoint of the tensor that GGUF calls `name`.
fn hugging_face(name: &str) -> Option<String> {
    if let Some((_, other)) = TOP.iter().find(|(gguf, _)| *gguf == name) {
        return Some((*other).to_owned());
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let (_, other) = LAYER.iter().find(|(gguf, _)| *gguf == part)?;
    Some(format!("model.layers.{layer}.{other}.{kind}"))
}

/// The tensor that GGUF calls `name`, if the checkpoint has it.
pub(super) fn find<'a>(checkpoint: &'a Checkpoint, name: &str) -> Option<&'a Tensor> {
    match checkpoint.metadata {
        Metadata::Gguf(_) => checkpoint.tensors.get(name),
        Metadata::HuggingFace { .. } => checkpoint.tensors.get(&hugging_face(name)?),
    }
}

#[cfg(test)]
mod tests {
    use super::hugging_face;

    #[test]
    fn gguf_names_become_hugging_face_names() {
        assert_eq!(hugging_face("output_norm.weight").as_deref(), Some("model.norm.weight"));
        assert_eq!(
            hugging_face("blk.12.attn_q.bias").as_deref(),
            Some("model.layers.12.self_attn.q_proj.bias")
        );
        assert_eq!(hugging_face("blk.0.unheard_of.weight"), None);
        assert_eq!(hugging_face("rope_freqs.weight"), None);
    }
}
