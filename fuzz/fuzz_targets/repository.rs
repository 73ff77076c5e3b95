//! Any bytes as one of the files of a Hugging Face repository, the others being whole: an error, or hyperparameters, values of
//! tensors and token ids. The first byte says which file it is, and whether the others are it or what is changed in a whole one.
//!
//!     cargo +nightly fuzz run repository -- -max_len=4096 -malloc_limit_mb=256
#![no_main]

use std::path::Path;
use std::sync::{LazyLock, Once};

use libfuzzer_sys::fuzz_target;
use pensive::checkpoint::Checkpoint;
use pensive::model::Hyperparameters;
use pensive::text::{ChatTemplate, Special, Tokenizer, gguf_vocabulary};
use tempfile::TempDir;

#[path = "edited.rs"]
mod edited;

use edited::edited;

const FILES: [(&str, &[u8]); 7] = [
    ("config.json", include_bytes!("../../tests/fixtures/arch/deepseek-v3-fp8/config.json")),
    (
        "model.safetensors",
        b"\x48\0\0\0\0\0\0\0{\"model.norm.weight\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]}}  \0\x3c\0\x3c",
    ),
    (
        "tokenizer.json",
        br#"{"version":"1.0","added_tokens":[{"id":4,"content":"<s>","special":true,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false}],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2,"\u0120":3},"merges":["a b"]}}"#,
    ),
    (
        "tokenizer_config.json",
        br#"{"bos_token":"<s>","eos_token":{"content":"<s>"},"add_bos_token":true,"chat_template":"{{ messages }}"}"#,
    ),
    ("generation_config.json", br#"{"eos_token_id":[4]}"#),
    ("model.safetensors.index.json", br#"{"metadata":{},"weight_map":{"model.norm.weight":"model.safetensors"}}"#),
    (
        "tekken.json",
        br#"{"config":{"pattern":"[^ ]+","num_vocab_tokens":4,"default_vocab_size":5,"default_num_special_tokens":1},"vocab":[{"rank":0,"token_bytes":"YQ==","token_str":"a"}],"special_tokens":[{"rank":0,"token_str":"<s>","is_control":true}]}"#,
    ),
];

fuzz_target!(|bytes: &[u8]| {
    // the tokenizers crate's panics are caught where it is called; those that are not still end the run
    static QUIET: Once = Once::new();
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| ())));
    let Some((&first, bytes)) = bytes.split_first() else { return };
    let chosen = usize::from(first) % FILES.len();
    static FOLDER: LazyLock<TempDir> =
        LazyLock::new(|| tempfile::tempdir().expect("there is a place for files"));
    let folder = FOLDER.path();
    let changed = if first < 128 { bytes.to_vec() } else { edited(FILES[chosen].1, bytes) };
    for (i, (name, whole)) in FILES.iter().enumerate() {
        // a tokenizer.json or a single file of weights would be taken before these
        let is_hidden = i == 2 && chosen == 6 || i == 6 && chosen != 6;
        let path = folder.join(name);
        if is_hidden {
            let _ = std::fs::remove_file(path);
        } else {
            std::fs::write(path, if i == chosen { &changed } else { *whole }).expect("files can be written");
        }
    }
    read(if chosen == 5 { folder.join(FILES[5].0) } else { folder.to_owned() }.as_path());
});

fn read(path: &Path) {
    let Ok(checkpoint) = Checkpoint::open(path) else { return };
    let _ = Hyperparameters::read(&checkpoint);
    for tensor in checkpoint.tensors.values() {
        assert_eq!(tensor.values().len(), tensor.shape.iter().product::<usize>());
    }
    let _ = gguf_vocabulary(&checkpoint.metadata, "llama");
    let _ = ChatTemplate::from_metadata(&checkpoint.metadata);
    let Ok(tokenizer) = Tokenizer::from_metadata(&checkpoint.metadata) else { return };
    let Ok(ids) = tokenizer.encode("ab <s> b", Special::Parse) else { return };
    for id in ids {
        tokenizer.bytes(id);
    }
}
