//! Vocabularies of published models against the reference's ids, and a small one that every test can have.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::Value as Json;

use super::vocabulary::byte_level_bytes;
use super::*;
use crate::checkpoint::{Checkpoint, Metadata, Value};

pub(super) const R1_VOCAB: &str = "deepseek-r1-distill-qwen-7b.metadata.gguf";
const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const QWEN: &str = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";
const DEEPSEEK_V3: &str = "deepseek-v3.tokenizer.json";
const LLAMA3: &str = "llama3.tokenizer.json";

pub(super) fn shared(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures").join(path)
}

/// A file under shared/; says so where it is absent.
pub(super) fn read_shared(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(shared(path)).ok();
    if text.is_none() {
        eprintln!("skipped: {} is not here", shared(path).display());
    }
    text
}

/// The tokenizer of a published model; says so where it is not on this machine.
pub(super) fn published(file: &str) -> Option<Tokenizer> {
    let home = std::env::var_os("HOME").or_else(|| std::env::var_os("USERPROFILE"))?;
    let path = Path::new(&home).join(".cache/pensive-test-models").join(file);
    if !path.exists() {
        eprintln!("skipped: {} is not here (shared/models/fetch brings it)", path.display());
        return None;
    }
    Some(if file.ends_with(".json") {
        Tokenizer::from_file(&path).unwrap()
    } else {
        Tokenizer::from_metadata(&Checkpoint::open(&path).unwrap().metadata).unwrap()
    })
}

/// The markers of [`small_fields`] from id 256 on, with their `token_type`.
pub(super) const MARKERS: [(&str, i64); 8] = [
    ("<｜begin▁of▁sentence｜>", 3),
    ("<｜end▁of▁sentence｜>", 3),
    ("<｜User｜>", 3),
    ("<｜Assistant｜>", 3),
    ("<|im_start|>", 3),
    ("<|im_end|>", 3),
    ("<think>", 4),
    ("</think>", 4),
];

/// GGUF fields of a byte-level vocabulary: the 256 bytes (the id is the byte), [`MARKERS`], and the merges
/// `t`+`h` (264) and `th`+`i` (265).
pub(super) fn small_fields() -> BTreeMap<String, Value> {
    let mut entries = vec![String::new(); 256];
    for c in ('\u{21}'..='\u{143}').filter(|c| !matches!(*c as u32, 0x7F..=0xA0 | 0xAD)) {
        entries[usize::from(byte_level_bytes(&c.to_string())[0])] = c.to_string();
    }
    entries.extend(MARKERS.map(|(literal, _)| literal.to_owned()));
    entries.extend(["th".to_owned(), "thi".to_owned()]);
    let kinds = [1; 256].into_iter().chain(MARKERS.map(|(_, kind)| kind)).chain([1, 1]);
    BTreeMap::from([
        ("tokenizer.ggml.model".to_owned(), Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre".to_owned(), Value::String("deepseek-r1-qwen".to_owned())),
        ("tokenizer.ggml.tokens".to_owned(), Value::Strings(entries)),
        ("tokenizer.ggml.token_type".to_owned(), Value::Integers(kinds.collect())),
        ("tokenizer.ggml.merges".to_owned(), Value::Strings(vec!["t h".to_owned(), "th i".to_owned()])),
        ("tokenizer.ggml.bos_token_id".to_owned(), Value::Unsigned(256)),
        ("tokenizer.ggml.eos_token_id".to_owned(), Value::Unsigned(257)),
        ("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(true)),
    ])
}

pub(super) fn small() -> Tokenizer {
    Tokenizer::from_metadata(&Metadata::Gguf(small_fields().into())).unwrap()
}

/// Every line of a fixture: a text, and its ids by the reference with special tokens parsed.
fn agrees_on_every_line(file: &str, fixture: &str) {
    let Some((tokenizer, lines)) = published(file).zip(read_shared(&format!("tokenizer/{fixture}"))) else {
        return;
    };
    assert!(lines.lines().count() > 100);
    for line in lines.lines() {
        let line: Json = serde_json::from_str(line).unwrap();
        let text = line["text"].as_str().unwrap();
        let ids = tokenizer.encode(text, Special::Parse).unwrap();
        assert_eq!(Json::from(ids.clone()), line["ids"], "{text:?}");
        assert_eq!(tokenizer.decode(&ids), text);
    }
}

#[test]
fn r1_distill_qwen_s_vocabulary_gives_the_reference_s_ids() {
    agrees_on_every_line(R1_VOCAB, "deepseek-r1-distill-qwen.jsonl");
}

#[test]
fn smollm2_s_vocabulary_gives_the_reference_s_ids() {
    agrees_on_every_line(SMOLLM2, "smollm2.jsonl");
}

#[test]
fn qwen2_5_coder_s_vocabulary_gives_the_reference_s_ids() {
    agrees_on_every_line(QWEN, "qwen2.5-coder.jsonl");
}

#[test]
fn deepseek_v3_s_tokenizer_json_gives_the_reference_s_ids() {
    agrees_on_every_line(DEEPSEEK_V3, "deepseek-v3.jsonl");
}

#[test]
fn llama3_s_tokenizer_json_gives_the_reference_s_ids() {
    agrees_on_every_line(LLAMA3, "llama3.jsonl");
}

#[test]
fn a_published_vocabulary_says_where_texts_begin_and_end() {
    if let Some(r1) = published(R1_VOCAB) {
        assert_eq!(r1.bos(), Some((r1.id("<｜begin▁of▁sentence｜>").unwrap(), true)));
        assert_eq!(r1.ends(), [r1.id("<｜end▁of▁sentence｜>").unwrap(), r1.id("<|EOT|>").unwrap()]);
        assert!(r1.is_control(r1.id("<｜User｜>").unwrap()) && !r1.is_control(r1.id("<think>").unwrap()));
        assert_eq!(r1.encode("<think>", Special::Parse).unwrap(), [r1.id("<think>").unwrap()]);
        assert_eq!(r1.decode(&r1.encode("<think>", Special::Text).unwrap()), "<think>");
        assert!(r1.encode("<think>", Special::Text).unwrap().len() > 1);
    }
    if let Some(qwen) = published(QWEN) {
        assert_eq!(qwen.bos(), Some((qwen.id("<|endoftext|>").unwrap(), false)));
        assert_eq!(qwen.ends(), [qwen.id("<|im_end|>").unwrap(), qwen.id("<|endoftext|>").unwrap()]);
    }
    if let Some(llama) = published(LLAMA3) {
        assert_eq!(llama.bos(), Some((llama.id("<|begin_of_text|>").unwrap(), true)));
        assert!(llama.ends().contains(&llama.id("<|eot_id|>").unwrap()));
    }
}

#[test]
fn a_long_text_takes_time_in_proportion_to_its_length() {
    // Quadratic work would take hours here: one word, one run of whitespace, one run of a marker's beginning.
    let tokenizer = published(R1_VOCAB).unwrap_or_else(small);
    for text in ["a".repeat(300_000), " ".repeat(300_000) + "x", "<".repeat(300_000), "\n ".repeat(150_000)] {
        let ids = tokenizer.encode(&text, Special::Parse).unwrap();
        assert!(tokenizer.decode(&ids) == text);
    }
}

#[test]
fn markers_are_tokens_or_text_as_the_caller_says() {
    let tokenizer = small();
    let think = tokenizer.id("<think>").unwrap();
    assert_eq!(tokenizer.encode("this<think>", Special::Parse).unwrap(), [265, 115, think]);
    let text: Vec<u32> = [265, 115, 60].into_iter().chain([264, 105, 110, 107, 62]).collect();
    let got = tokenizer.encode("this<think>", Special::Text).unwrap();
    assert!(!got.contains(&think));
    assert_eq!(tokenizer.decode(&got), tokenizer.decode(&text));
}

proptest! {
    #[test]
    fn decoding_gives_back_the_text_that_was_encoded(text in ".{0,60}", marker in 0..MARKERS.len()) {
        static SMALL: LazyLock<Tokenizer> = LazyLock::new(small);
        let tokenizer = &*SMALL;
        let text = format!("{text}{}{text}", MARKERS[marker].0);
        for special in [Special::Parse, Special::Text] {
            let ids = tokenizer.encode(&text, special).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids), text.as_str());
            let markers = ids.iter().filter(|id| (256..264).contains(*id)).count();
            prop_assert_eq!(markers > 0, special == Special::Parse);
        }
    }
}

#[test]
fn a_tokenizer_and_a_template_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Tokenizer>();
    shared::<ChatTemplate>();
}
