use std::collections::BTreeMap;

use crate::checkpoint::{Metadata, Value};
use crate::text::tests::{MARKERS, small, small_fields};
use crate::text::{Special, Tokenizer};

type Fields = BTreeMap<String, Value>;

fn read(fields: Fields) -> crate::Result<Tokenizer> {
    Tokenizer::from_metadata(&Metadata::Gguf(fields.into()))
}

/// The error that a change of the small vocabulary's fields leads to.
fn error(change: impl FnOnce(&mut Fields)) -> String {
    let mut fields = small_fields();
    change(&mut fields);
    read(fields).map(|_| ()).unwrap_err().to_string()
}

fn set(fields: &mut Fields, key: &str, value: Value) {
    fields.insert(format!("tokenizer.ggml.{key}"), value);
}

#[test]
fn every_wrong_field_is_an_error_that_names_it() {
    for key in ["model", "pre", "tokens", "merges"] {
        let key = format!("tokenizer.ggml.{key}");
        let message = error(|fields| drop(fields.remove(&key)));
        assert!(message.contains(&format!("{key} is missing")), "{message}");
        let message = error(|fields| drop(fields.insert(key.clone(), Value::Bool(true))));
        assert!(message.contains(&format!("{key} is true")), "{message}");
    }
    let wrong: [(&str, Value, &str); 9] = [
        ("pre", Value::String("klingon".into()), "'klingon'"),
        ("model", Value::String("bert".into()), "'bert'"),
        ("token_type", Value::Integers(vec![1; 7]), "7 items for 266 tokens"),
        ("token_type", Value::Integers(vec![9; 266]), "9 is not 1 to 6"),
        ("token_type", Value::Bool(true), "an array of integers"),
        ("merges", Value::Strings(vec!["th".into()]), "merge 0"),
        ("merges", Value::Strings(vec!["x y".into()]), "merge 0 makes 'xy'"),
        ("bos_token_id", Value::Unsigned(266), "266 is not one of 266 tokens"),
        ("add_bos_token", Value::Unsigned(1), "a boolean"),
    ];
    for (key, value, part) in wrong {
        let message = error(|fields| set(fields, key, value));
        assert!(message.contains(&format!("tokenizer.ggml.{key}")) && message.contains(part), "{message}");
    }
}

#[test]
fn merges_that_lead_to_a_control_token_are_not_used() {
    let mut fields = small_fields();
    let Some(Value::Integers(kinds)) = fields.get_mut("tokenizer.ggml.token_type") else { unreachable!() };
    kinds[264] = 3; // "th"
    let tokenizer = read(fields).unwrap();
    assert_eq!(tokenizer.encode("thi", Special::Text).unwrap(), [116, 104, 105]);
    assert_eq!(tokenizer.encode("thi", Special::Parse).unwrap(), [264, 105]);
}

#[test]
fn llama_bpe_takes_a_word_that_is_an_entry_as_it_is() {
    let with_entry = |pre: &str| {
        let mut fields = small_fields();
        let Some(Value::Strings(entries)) = fields.get_mut("tokenizer.ggml.tokens") else { unreachable!() };
        entries.push("zebra".to_owned());
        let Some(Value::Integers(kinds)) = fields.get_mut("tokenizer.ggml.token_type") else {
            unreachable!()
        };
        kinds.push(1);
        set(&mut fields, "pre", Value::String(pre.to_owned()));
        read(fields).unwrap().encode("zebra", Special::Text).unwrap()
    };
    assert_eq!(with_entry("llama-bpe"), [266]);
    assert_eq!(with_entry("qwen2").len(), 5);
}

#[test]
fn bos_is_wanted_as_the_metadata_says_or_as_the_kind_of_vocabulary_has_it() {
    let bos = |pre: &str, flag: Option<bool>| {
        let mut fields = small_fields();
        set(&mut fields, "pre", Value::String(pre.to_owned()));
        fields.remove("tokenizer.ggml.add_bos_token");
        if let Some(flag) = flag {
            set(&mut fields, "add_bos_token", Value::Bool(flag));
        }
        read(fields).unwrap().bos()
    };
    assert_eq!(bos("qwen2", None), Some((256, false)));
    assert_eq!(bos("qwen2", Some(true)), Some((256, true)));
    assert_eq!(bos("llama-bpe", None), Some((256, true)));
    assert_eq!(bos("llama-bpe", Some(false)), Some((256, false)));
}

#[test]
fn ends_are_the_declared_ones_first_and_then_control_tokens_known_by_name() {
    let mut fields = small_fields();
    set(&mut fields, "eot_token_id", Value::Unsigned(259));
    let tokenizer = read(fields).unwrap();
    assert_eq!(tokenizer.ends(), [257, 259, 261]);
    assert_eq!(MARKERS[5].0, "<|im_end|>");
    assert!(tokenizer.is_control(261) && !tokenizer.is_control(262) && !tokenizer.is_control(9999));
}

#[test]
fn an_end_of_turn_that_is_not_typed_as_control_is_one_all_the_same() {
    let mut fields = small_fields();
    fields.remove("tokenizer.ggml.token_type");
    let tokenizer = read(fields).unwrap();
    assert!(tokenizer.is_control(261) && tokenizer.ends().contains(&261));
    assert_eq!(tokenizer.encode("<|im_end|>", Special::Parse).unwrap(), [261]);
}

#[test]
fn every_id_has_its_bytes() {
    let tokenizer = small();
    assert_eq!(tokenizer.len(), 266);
    for byte in 0..=255 {
        assert_eq!(tokenizer.bytes(u32::from(byte)), [byte]);
    }
    assert_eq!(tokenizer.bytes(262), b"<think>");
    assert_eq!(tokenizer.bytes(265), b"thi");
    assert_eq!(tokenizer.bytes(266), b"");
    let mut fields = small_fields();
    let Some(Value::Integers(kinds)) = fields.get_mut("tokenizer.ggml.token_type") else { unreachable!() };
    kinds[265] = 5; // unused
    assert_eq!(read(fields).unwrap().bytes(265), b"");
}

/// A SentencePiece-style vocabulary: `<unk>` 0, `<s>` 1, `</s>` 2, the bytes from 3, then `entries` from 259.
fn sentencepiece(entries: &[(&str, f64)], add_space_prefix: bool) -> Tokenizer {
    let special = [("<unk>", 2), ("<s>", 3), ("</s>", 3)].map(|(entry, kind)| (entry.to_owned(), kind, 0.0));
    let bytes = (0..256).map(|byte| (format!("<0x{byte:02X}>"), 6, 0.0));
    let normal = entries.iter().map(|&(entry, score)| (entry.to_owned(), 1, score));
    let all: Vec<(String, i64, f64)> = special.into_iter().chain(bytes).chain(normal).collect();
    let mut fields = Fields::new();
    set(&mut fields, "model", Value::String("llama".to_owned()));
    set(&mut fields, "tokens", Value::Strings(all.iter().map(|(entry, ..)| entry.clone()).collect()));
    set(&mut fields, "token_type", Value::Integers(all.iter().map(|&(_, kind, _)| kind).collect()));
    set(&mut fields, "scores", Value::Floats(all.iter().map(|&(.., score)| score).collect()));
    set(&mut fields, "bos_token_id", Value::Unsigned(1));
    set(&mut fields, "eos_token_id", Value::Unsigned(2));
    set(&mut fields, "add_space_prefix", Value::Bool(add_space_prefix));
    read(fields).unwrap()
}

/// Single characters, then longer entries: the higher the score, the earlier they are merged.
const ENTRIES: [(&str, f64); 14] = [
    ("▁", -20.0),
    ("h", -21.0),
    ("e", -22.0),
    ("l", -23.0),
    ("o", -24.0),
    ("<", -25.0),
    ("s", -26.0),
    (">", -27.0),
    ("<s", -1.0),
    ("el", -3.0),
    ("he", -2.0),
    ("lo", -4.0),
    ("llo", -5.0),
    ("▁he", -6.0),
];

/// What ids stand for, one string each.
fn pieces(tokenizer: &Tokenizer, text: &str, special: Special) -> Vec<String> {
    let ids = tokenizer.encode(text, special).unwrap();
    ids.iter().map(|id| tokenizer.decode(&[*id])).collect()
}

#[test]
fn sentencepiece_merges_the_best_score_first() {
    let tokenizer = sentencepiece(&ENTRIES, true);
    // "he" (-2) before "el" (-3); then "lo", "llo", "▁he".
    assert_eq!(pieces(&tokenizer, "hello", Special::Parse), [" he", "llo"]);
    assert_eq!(pieces(&tokenizer, "sell", Special::Parse), [" ", "s", "el", "l"]);
}

#[test]
fn sentencepiece_puts_a_space_before_each_stretch_of_text_if_the_vocabulary_wants_it() {
    let with = sentencepiece(&ENTRIES, true);
    assert_eq!(pieces(&with, "he<s>he", Special::Parse), [" he", "<s>", " he"]);
    let without = sentencepiece(&ENTRIES, false);
    assert_eq!(pieces(&without, "he<s>he he", Special::Parse), ["he", "<s>", "he", " he"]);
    assert!(with.encode("", Special::Parse).unwrap().is_empty());
}

#[test]
fn sentencepiece_writes_characters_that_it_lacks_as_bytes() {
    let tokenizer = sentencepiece(&ENTRIES, false);
    let ids = tokenizer.encode("hé\n", Special::Parse).unwrap();
    assert_eq!(ids, [260, 3 + 0xC3, 3 + 0xA9, 3 + 0x0A]);
    assert_eq!(tokenizer.decode(&ids), "hé\n");
}

#[test]
fn sentencepiece_makes_no_control_or_byte_token_from_text() {
    let tokenizer = sentencepiece(&ENTRIES, false);
    assert_eq!(pieces(&tokenizer, "<s>", Special::Text), ["<s", ">"]);
    assert_eq!(tokenizer.encode("<s>", Special::Parse).unwrap(), [1]);
    let ids = tokenizer.encode("<0x0A>", Special::Parse).unwrap();
    assert!(!ids.contains(&(3 + 0x0A)));
    assert_eq!(tokenizer.decode(&ids), "<0x0A>");
}

#[test]
fn sentencepiece_takes_time_in_proportion_to_the_text() {
    // The whole text is one word: quadratic work would take hours.
    let tokenizer = sentencepiece(&ENTRIES, false);
    for text in ["he ".repeat(100_000), " ".repeat(300_000), "é".repeat(150_000)] {
        let ids = tokenizer.encode(&text, Special::Parse).unwrap();
        assert!(tokenizer.decode(&ids) == text);
    }
}

#[test]
fn sentencepiece_asks_for_bos_unless_the_metadata_says_otherwise() {
    let tokenizer = sentencepiece(&ENTRIES, true);
    assert_eq!((tokenizer.bos(), tokenizer.ends()), (Some((1, true)), &[2][..]));
    assert!(tokenizer.is_control(0));
}

/// The small vocabulary with more tokens, all of them control tokens.
fn with_control(pre: &str, literals: &[&str]) -> Tokenizer {
    let mut fields = small_fields();
    let Some(Value::Strings(entries)) = fields.get_mut("tokenizer.ggml.tokens") else { unreachable!() };
    entries.extend(literals.iter().map(|literal| (*literal).to_owned()));
    let Some(Value::Integers(kinds)) = fields.get_mut("tokenizer.ggml.token_type") else { unreachable!() };
    kinds.extend(literals.iter().map(|_| 3));
    set(&mut fields, "pre", Value::String(pre.to_owned()));
    read(fields).unwrap()
}

#[test]
fn the_end_of_a_message_ends_a_text_unless_messages_have_channels() {
    let phi = with_control("gpt-4o", &["<|end|>", "<|user|>"]);
    assert!(phi.ends().contains(&266) && phi.ends().contains(&267));
    let gpt_oss = with_control("gpt-4o", &["<|channel|>", "<|end|>", "<|return|>", "<|call|>"]);
    assert!(!gpt_oss.ends().contains(&267) && gpt_oss.is_control(267));
    assert!(gpt_oss.ends().contains(&268) && gpt_oss.ends().contains(&269));
}
