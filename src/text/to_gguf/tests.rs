use serde_json::{Map, Value as Json, json};
use tempfile::TempDir;

use super::gguf_vocabulary;
use crate::checkpoint::{Metadata, Value};
use crate::text::{Special, Tokenizer};

const TEXTS: [&str; 6] = ["hello he", "  he\n\nhello", "héllo\t", "<s>he</s> hello", "<0x0A>", "llo ▁ hell"];

/// A tokenizer.json as SentencePiece's models are converted: `<unk>` 0, `<s>` 1, `</s>` 2, bytes from 3, entries from 259.
fn sentencepiece(merges: &[&str], normalizer: Json, pre_tokenizer: Json) -> Json {
    let added = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false
        })
    };
    let special = ["<unk>", "<s>", "</s>"].map(str::to_owned);
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let letters = ["▁", "h", "e", "l", "o", "<", "s", ">"].map(str::to_owned);
    let made = merges.iter().map(|merge| merge.replacen(' ', "", 1));
    let mut vocabulary = Map::new();
    for entry in special.into_iter().chain(bytes).chain(made).chain(letters) {
        let next = vocabulary.len();
        vocabulary.entry(entry).or_insert(next.into());
    }
    let steps = [
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": normalizer,
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {
            "type": "BPE", "vocab": vocabulary, "merges": merges, "byte_fallback": true, "fuse_unk": true,
            "unk_token": "<unk>"
        }
    })
}

/// The tokenizer that is read from the folder, and the one that is read from what is written of it.
fn both(tokenizer: &Json) -> crate::Result<(Tokenizer, Tokenizer)> {
    let folder: TempDir = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true});
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let metadata = Metadata::HuggingFace { config: Json::Null, folder: folder.path().to_owned() };
    let fields = gguf_vocabulary(&metadata, "llama")?;
    assert_eq!(fields["tokenizer.ggml.model"], Value::String("llama".into()));
    Ok((Tokenizer::from_metadata(&metadata)?, Tokenizer::from_metadata(&Metadata::Gguf(fields.into()))?))
}

/// "llo" is made by one pair only, "ello" by two.
const MERGES: [&str; 7] = ["h e", "e l", "l o", "l lo", "▁ he", "e llo", "el lo"];

#[test]
fn merges_with_bytes_to_fall_back_to_become_scores_and_mean_the_same() {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prepend = json!({"type": "Prepend", "prepend": "▁"});
    let with = json!({"type": "Sequence", "normalizers": [prepend, replace]});
    for (normalizer, first) in [(with, " he"), (replace, "he")] {
        let (json, gguf) = both(&sentencepiece(&MERGES, normalizer, Json::Null)).unwrap();
        for text in TEXTS {
            for special in [Special::Parse, Special::Text] {
                let ids = gguf.encode(text, special).unwrap();
                assert_eq!(ids, json.encode(text, special).unwrap(), "{text}");
                assert_eq!(gguf.decode(&ids), json.decode(&ids), "{text}");
            }
        }
        assert_eq!(gguf.decode(&gguf.encode("hello", Special::Text).unwrap()[..1]), first);
        assert_eq!((gguf.bos(), gguf.ends()), (Some((1, true)), &[2][..]));
        assert!((0..3).all(|id| gguf.is_control(id)) && !gguf.is_control(3));
    }
}

#[test]
fn the_order_of_the_pairs_of_one_entry_means_nothing() {
    let mut turned = MERGES;
    turned.swap(5, 6);
    for merges in [MERGES, turned] {
        let (json, gguf) = both(&sentencepiece(&merges, Json::Null, Json::Null)).unwrap();
        let ids = [json, gguf].map(|tokenizer| tokenizer.encode("hellohell", Special::Text).unwrap());
        assert_eq!(ids[0], ids[1]);
    }
}

#[test]
fn a_space_before_a_text_is_seen_in_newer_files_as_well() {
    for (scheme, expected) in [("first", " he"), ("always", " he"), ("never", "he")] {
        let metaspace =
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
        let (json, gguf) = both(&sentencepiece(&MERGES, Json::Null, metaspace)).unwrap();
        let ids = gguf.encode("hello", Special::Text).unwrap();
        assert_eq!(ids, json.encode("hello", Special::Text).unwrap());
        assert_eq!(gguf.decode(&ids[..1]), expected, "{scheme}");
    }
}

#[test]
fn merges_that_no_scores_stand_for_are_refused() {
    // "ello" by one pair before "llo", by the other one after it
    let torn = ["h e", "e l", "l o", "el lo", "l lo", "e llo"];
    let missing = ["h e", "e l", "l o", "l lo", "e llo"]; // el + lo makes it too
    for merges in [&torn[..], &missing] {
        let error = both(&sentencepiece(merges, Json::Null, Json::Null)).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json") && error.contains("no scores"), "{error}");
    }
}
