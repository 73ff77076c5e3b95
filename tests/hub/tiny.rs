//! A tiny checkpoint of safetensors as a repository of the hub has it.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::json;

pub type Files = Vec<(&'static str, Vec<u8>)>;

/// The files of a qwen2 of three layers, in the order in which they are pulled; none (with a printed reason) where the
/// fixture is absent.
pub fn repository() -> Option<Files> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures/arch/qwen2");
    if !folder.exists() {
        eprintln!("skipped: {} is absent", folder.display());
        return None;
    }
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
    Some(vec![
        ("config.json", read("config.json")),
        ("generation_config.json", json!({ "eos_token_id": 256, "temperature": 0.25 }).to_string().into()),
        ("chat_template.jinja", template.into()),
        ("tokenizer.json", tokenizer().into()),
        ("model.safetensors", read("model.safetensors")),
    ])
}

/// The same with the weights in two shards under an index.
pub fn split() -> Option<Files> {
    let mut files = repository()?;
    let (_, weights) = files.pop()?;
    let weights = SafeTensors::deserialize(&weights).unwrap();
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let of = |name: &str| usize::from(name.contains("layers.2"));
    let shard = |i: usize| {
        safetensors::serialize(weights.tensors().into_iter().filter(|(name, _)| of(name) == i), None).unwrap()
    };
    let map: BTreeMap<_, _> = weights.names().into_iter().map(|name| (name, shards[of(name)])).collect();
    files.push(("model.safetensors.index.json", json!({ "weight_map": map }).to_string().into()));
    files.extend([(shards[0], shard(0)), (shards[1], shard(1))]);
    Some(files)
}

/// Every byte is a token, and 256 ends.
fn tokenizer() -> String {
    let plain = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut others = 256..;
    let character = |b: u32| if plain(b) { b } else { others.next().unwrap() };
    let characters = (0..256).map(character).map(|c| char::from_u32(c).unwrap().to_string());
    let vocabulary: BTreeMap<String, u32> = characters.zip(0..).collect();
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let digits = json!({ "type": "Digits", "individual_digits": true });
    json!({
        "version": "1.0",
        "added_tokens": [{ "id": 256, "content": "<|end|>", "special": true, "single_word": false, "lstrip": false,
                           "rstrip": false, "normalized": false }],
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [digits, byte_level] },
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": { "type": "BPE", "vocab": vocabulary, "merges": [] },
    })
    .to_string()
}
