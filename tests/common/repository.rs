//! A GGUF file's model as a repository of the hub has it: config.json, shards of bf16 under an index, tokenizer.json and
//! the files beside it.

use std::collections::BTreeMap;
use std::path::Path;

use half::bf16;
use pensive::checkpoint::{Checkpoint, GgufMetadata, Metadata, Tensor};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

/// Names inside a layer: GGUF's, Hugging Face's.
const LAYER: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Writes the repository of a `llama` or `qwen2` model.
pub fn write(gguf: &Path, folder: &Path) {
    let checkpoint = Checkpoint::open(gguf).unwrap();
    let Metadata::Gguf(metadata) = &checkpoint.metadata else { panic!("a GGUF file has GGUF metadata") };
    let save = |name: &str, json: Value| std::fs::write(folder.join(name), json.to_string()).unwrap();
    save("config.json", config(metadata, &checkpoint));
    save("tokenizer.json", tokenizer(metadata));
    let token = |key: &str| {
        let id: usize = metadata.require(key).unwrap();
        metadata.require::<&[String]>("tokenizer.ggml.tokens").unwrap()[id].clone()
    };
    save(
        "tokenizer_config.json",
        json!({
            "bos_token": token("tokenizer.ggml.bos_token_id"),
            "eos_token": token("tokenizer.ggml.eos_token_id"),
            "add_bos_token": metadata.find::<bool>("tokenizer.ggml.add_bos_token").unwrap().unwrap_or(false),
            "chat_template": metadata.require::<&str>("tokenizer.chat_template").unwrap(),
        }),
    );
    save("generation_config.json", json!({ "eos_token_id": whole(metadata, "tokenizer.ggml.eos_token_id") }));
    weights(metadata, &checkpoint, folder);
}

fn whole(metadata: &GgufMetadata, key: &str) -> usize {
    metadata.require(key).unwrap()
}

/// In the style of transformers 4: `rope_theta` and no `rope_parameters`.
fn config(metadata: &GgufMetadata, checkpoint: &Checkpoint) -> Value {
    let architecture: &str = metadata.require("general.architecture").unwrap();
    let number = |key: &str| metadata.require::<f64>(&format!("{architecture}.{key}")).unwrap();
    let whole = |key: &str| whole(metadata, &format!("{architecture}.{key}"));
    json!({
        "model_type": architecture,
        "hidden_size": whole("embedding_length"),
        "intermediate_size": whole("feed_forward_length"),
        "num_hidden_layers": whole("block_count"),
        "num_attention_heads": whole("attention.head_count"),
        "num_key_value_heads": whole("attention.head_count_kv"),
        "max_position_embeddings": whole("context_length"),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
        "rope_theta": number("rope.freq_base"),
        "rope_scaling": null,
        "vocab_size": checkpoint.tensor("token_embd.weight").unwrap().rows(),
        "tie_word_embeddings": !checkpoint.tensors.contains_key("output.weight"),
        "torch_dtype": "bfloat16",
    })
}

fn tokenizer(metadata: &GgufMetadata) -> Value {
    let tokens: &[String] = metadata.require("tokenizer.ggml.tokens").unwrap();
    let kinds: &[i64] = metadata.require("tokenizer.ggml.token_type").unwrap();
    let merges: &[String] = metadata.require("tokenizer.ggml.merges").unwrap();
    let all = || tokens.iter().zip(kinds).enumerate();
    let added: Vec<Value> = all()
        .filter(|(_, (_, kind))| matches!(kind, 3 | 4))
        .map(|(id, (content, kind))| {
            json!({ "id": id, "content": content, "special": *kind == 3, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false })
        })
        .collect();
    // added tokens that stand before the vocabulary's last are entries of it; those behind it follow by their number
    let last = kinds.iter().rposition(|&kind| kind == 1).unwrap();
    let vocabulary: BTreeMap<&String, usize> =
        all().take(last + 1).map(|(id, (text, _))| (text, id)).collect();
    let byte_level = |regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex });
    let words = match metadata.require::<&str>("tokenizer.ggml.pre").unwrap() {
        "smollm" => json!([{ "type": "Digits", "individual_digits": true }, byte_level(true)]),
        "qwen2" => {
            let regex = concat!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|",
                r"\s*[\r\n]+|\s+(?!\S)|\s+"
            );
            let split = json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
            json!([split, byte_level(false)])
        }
        other => panic!("how does {other} cut words?"),
    };
    json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": words },
        "post_processor": byte_level(true),
        "decoder": byte_level(true),
        "model": { "type": "BPE", "vocab": vocabulary, "merges": merges },
    })
}

/// Two shards and their index.
fn weights(metadata: &GgufMetadata, checkpoint: &Checkpoint, folder: &Path) {
    let architecture: &str = metadata.require("general.architecture").unwrap();
    let heads = |key: &str| whole(metadata, &format!("{architecture}.attention.{key}"));
    let mut shards = [BTreeMap::new(), BTreeMap::new()];
    let mut map = BTreeMap::new();
    for (i, tensor) in checkpoint.tensors.values().enumerate() {
        let name = hugging_face(&tensor.name);
        let heads = match tensor.name.rsplit('.').nth(1) {
            Some("attn_q") if architecture == "llama" => Some(heads("head_count")),
            Some("attn_k") if architecture == "llama" => Some(heads("head_count_kv")),
            _ => None,
        };
        let shard = i % 2;
        map.insert(name.clone(), file(shard));
        shards[shard].insert(name, (tensor.shape.clone(), as_bf16(tensor, heads)));
    }
    for (i, shard) in shards.iter().enumerate() {
        let views = shard.iter().map(|(name, (shape, bytes))| {
            (name, TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &folder.join(file(i))).unwrap();
    }
    let index = json!({ "metadata": {}, "weight_map": map }).to_string();
    std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
}

fn file(shard: usize) -> String {
    format!("model-{:05}-of-00002.safetensors", shard + 1)
}

fn hugging_face(name: &str) -> String {
    match name {
        "token_embd.weight" => "model.embed_tokens.weight".into(),
        "output_norm.weight" => "model.norm.weight".into(),
        "output.weight" => "lm_head.weight".into(),
        _ => {
            let mut parts = name.splitn(3, '.').skip(1);
            let (layer, (part, kind)) =
                (parts.next().unwrap(), parts.next().unwrap().rsplit_once('.').unwrap());
            let (_, part) = LAYER.iter().find(|(gguf, _)| *gguf == part).unwrap();
            format!("model.layers.{layer}.{part}.{kind}")
        }
    }
}

/// The values as bf16; of a head's rows, which GGUF has by turns, first those of the first half, then the others.
fn as_bf16(tensor: &Tensor, heads: Option<usize>) -> Vec<u8> {
    let values = tensor.values();
    let columns = tensor.columns();
    let row = |r: usize| &values[r * columns..][..columns];
    let rows = tensor.rows();
    let order: Vec<usize> = match heads {
        None => (0..rows).collect(),
        Some(heads) => {
            let of_head = rows / heads;
            let within = move |i: usize| if i < of_head / 2 { 2 * i } else { 2 * (i - of_head / 2) + 1 };
            (0..rows).map(|r| r / of_head * of_head + within(r % of_head)).collect()
        }
    };
    order.into_iter().flat_map(row).flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect()
}
