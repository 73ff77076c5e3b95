//! Tensor names: pensive speaks GGUF's; a Hugging Face checkpoint's are translated.

use crate::checkpoint::{Checkpoint, Metadata, Tensor};

/// (GGUF, Hugging Face) outside the layers.
const TOP: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// (GGUF, Hugging Face) inside a layer, without `.weight` or `.bias`.
const LAYER: [(&str, &str); 26] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_q_a", "self_attn.q_a_proj"),
    ("attn_q_a_norm", "self_attn.q_a_layernorm"),
    ("attn_q_b", "self_attn.q_b_proj"),
    ("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"),
    ("attn_kv_a_norm", "self_attn.kv_a_layernorm"),
    ("attn_kv_b", "self_attn.kv_b_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("post_attention_norm", "post_self_attn_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_gate_up", "mlp.gate_up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("post_ffw_norm", "post_mlp_layernorm"),
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_inp", "mlp.router"),
    ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
    ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
];

/// (GGUF, Hugging Face) inside a layer, whole names.
const LAYER_WHOLE: [(&str, &str); 2] =
    [("exp_probs_b.bias", "mlp.gate.e_score_correction_bias"), ("attn_sinks.weight", "self_attn.sinks")];

/// Whether a tensor is of experts that rows are sent to: one of them, or all in a stack.
pub fn is_expert(name: &str) -> bool {
    name.contains("_exps.") || name.contains(".mlp.experts.")
}

/// The names that the tensor which GGUF calls `name` may have in a Hugging Face checkpoint.
fn hugging_face(name: &str) -> Vec<String> {
    if let Some((_, other)) = TOP.iter().find(|(gguf, _)| *gguf == name) {
        return vec![(*other).to_owned()];
    }
    let Some((layer, rest)) = name.strip_prefix("blk.").and_then(|name| name.split_once('.')) else {
        return vec![];
    };
    if let Some((_, other)) = LAYER_WHOLE.iter().find(|(gguf, _)| *gguf == rest) {
        return vec![format!("model.layers.{layer}.{other}")];
    }
    let Some((part, kind)) = rest.rsplit_once('.') else { return vec![] };
    let others = LAYER.iter().filter(|(gguf, _)| *gguf == part);
    others.map(|(_, other)| format!("model.layers.{layer}.{other}.{kind}")).collect()
}

/// The tensor that GGUF calls `name`, if the checkpoint has it.
pub(super) fn find<'a>(checkpoint: &'a Checkpoint, name: &str) -> Option<&'a Tensor> {
    match checkpoint.metadata {
        Metadata::Gguf(_) => checkpoint.tensors.get(name),
        Metadata::HuggingFace { .. } => {
            hugging_face(name).iter().find_map(|name| checkpoint.tensors.get(name))
        }
    }
}

/// Where a Hugging Face checkpoint has expert `expert` of what GGUF calls `blk.LAYER.ffn_PART_exps`.
pub(super) fn expert(layer: usize, part: &str, expert: usize) -> String {
    format!("model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight")
}

/// GGUF's name of a Hugging Face checkpoint's tensor.
pub(super) fn gguf(name: &str) -> Option<String> {
    if let Some((gguf, _)) = TOP.iter().find(|(_, other)| *other == name) {
        return Some((*gguf).to_owned());
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    if let Some((gguf, _)) = LAYER_WHOLE.iter().find(|(_, other)| *other == rest) {
        return Some(format!("blk.{layer}.{gguf}"));
    }
    let (part, kind) = rest.rsplit_once('.')?;
    // GGUF keeps the name of one of the two for both
    let part = if part == "mlp.gate_up_proj" { "mlp.up_proj" } else { part };
    let (gguf, _) = LAYER.iter().find(|(_, other)| *other == part)?;
    Some(format!("blk.{layer}.{gguf}.{kind}"))
}

/// The layer that a tensor belongs to, by its name in GGUF or in a Hugging Face checkpoint.
pub(super) fn layer(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("model.layers.").or_else(|| name.strip_prefix("blk."))?;
    rest.split_once('.')?.0.parse().ok()
}

/// GGUF's name of the stack that an expert's matrix belongs to, and the expert's number.
pub(super) fn stacked(name: &str) -> Option<(String, usize)> {
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once(".mlp.experts.")?;
    let (expert, rest) = rest.split_once('.')?;
    let part = rest.strip_suffix("_proj.weight")?;
    Some((format!("blk.{layer}.ffn_{part}_exps.weight"), expert.parse().ok()?))
}

/// Whether a Hugging Face checkpoint's tensor holds all experts of a layer (gpt-oss's), which are cut or turned for use.
pub(super) fn is_fused_experts(name: &str) -> bool {
    name.starts_with("model.layers.") && name.contains(".mlp.experts.") && stacked(name).is_none()
}

#[cfg(test)]
mod tests {
    use super::hugging_face;

    #[test]
    fn gguf_names_become_hugging_face_names() {
        assert_eq!(hugging_face("output_norm.weight"), ["model.norm.weight"]);
        assert_eq!(hugging_face("blk.12.attn_q.bias"), ["model.layers.12.self_attn.q_proj.bias"]);
        assert_eq!(
            hugging_face("blk.3.ffn_gate_inp.weight"),
            ["model.layers.3.mlp.gate.weight", "model.layers.3.mlp.router.weight"]
        );
        assert_eq!(
            hugging_face("blk.3.exp_probs_b.bias"),
            ["model.layers.3.mlp.gate.e_score_correction_bias"]
        );
        for name in
            ["output.weight", "blk.7.attn_kv_a_mqa.weight", "blk.0.exp_probs_b.bias", "blk.3.attn_v.bias"]
        {
            assert_eq!(super::gguf(&hugging_face(name)[0]).as_deref(), Some(name));
        }
        let stacked = super::stacked("model.layers.3.mlp.experts.17.down_proj.weight");
        assert_eq!(stacked, Some(("blk.3.ffn_down_exps.weight".to_owned(), 17)));
        assert!(hugging_face("blk.0.unheard_of.weight").is_empty());
        assert!(hugging_face("rope_freqs.weight").is_empty());
    }
}
