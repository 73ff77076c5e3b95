use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::checkpoint::Metadata;
use crate::text::{Special, Tokenizer};

/// A tokenizer.json of four entries (0 to 3) and four added tokens (4 to 7).
fn tokenizer_json() -> Value {
    let added = |id: u32, content: &str, special: bool| {
        json!({
            "id": id, "content": content, "special": special, "single_word": false,
            "lstrip": false, "rstrip": content == "<wide>", "normalized": false
        })
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [
            added(4, "<s>", true), added(5, "</s>", true), added(6, "<|im_end|>", true), added(7, "<wide>", false)
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [4], "tokens": ["<s>"]}}
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3}, "merges": ["a b"]}
    })
}

/// A folder with the given files.
fn folder(files: &[(&str, Value)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content.to_string()).unwrap();
    }
    folder
}

fn open(folder: &Path, config: Value) -> crate::Result<Tokenizer> {
    Tokenizer::from_metadata(&Metadata::HuggingFace { config, folder: folder.to_owned() })
}

#[test]
fn text_and_added_tokens_become_ids_and_bytes_again() {
    let folder = folder(&[("tokenizer.json", tokenizer_json())]);
    let tokenizer = open(folder.path(), Value::Null).unwrap();
    assert_eq!(tokenizer.len(), 8);
    assert_eq!(tokenizer.encode("ab a<s>b", Special::Parse).unwrap(), [2, 3, 0, 4, 1]);
    assert_eq!(tokenizer.decode(&[2, 3, 0, 4, 1]), "ab a<s>b");
    assert_eq!(tokenizer.encode("a<wide> \n b", Special::Parse).unwrap(), [0, 7, 1]);
    assert!(tokenizer.is_control(4) && !tokenizer.is_control(7));
    assert_eq!((tokenizer.id("<wide>"), tokenizer.id("ab"), tokenizer.id("abc")), (Some(7), Some(2), None));
}

#[test]
fn bos_is_what_the_post_processor_puts_first_unless_the_configuration_says_otherwise() {
    let bos = |config: Value| {
        let folder = folder(&[("tokenizer.json", tokenizer_json()), ("tokenizer_config.json", config)]);
        open(folder.path(), Value::Null).unwrap().bos()
    };
    assert_eq!(bos(json!({})), Some((4, true)));
    assert_eq!(bos(json!({"add_bos_token": false})), Some((4, false)));
    assert_eq!(bos(json!({"bos_token": {"content": "</s>"}})), Some((5, false)));
    assert_eq!(bos(json!({"bos_token": "</s>", "add_bos_token": true})), Some((5, true)));
}

#[test]
fn ends_come_from_the_configurations_and_from_known_names() {
    let ends = |tokenizer: Value, generation: Value, config: Value| {
        let files = [
            ("tokenizer.json", tokenizer_json()),
            ("tokenizer_config.json", tokenizer),
            ("generation_config.json", generation),
        ];
        open(folder(&files).path(), config).unwrap().ends().to_vec()
    };
    let eos = |id: Value| json!({"eos_token_id": id});
    assert_eq!(ends(json!({}), json!({}), json!({})), [6]);
    assert_eq!(ends(json!({}), json!({}), eos(json!(5))), [5, 6]);
    assert_eq!(ends(json!({}), eos(json!(7)), eos(json!(5))), [7, 6]);
    assert_eq!(ends(json!({"eos_token": {"content": "</s>"}}), eos(json!([6, 99])), json!({})), [6, 5]);
}

#[test]
fn a_file_of_another_name_has_nothing_beside_it() {
    let files = [("other.json", tokenizer_json()), ("generation_config.json", json!({"eos_token_id": 5}))];
    let folder = folder(&files);
    assert_eq!(Tokenizer::from_file(&folder.path().join("other.json")).unwrap().ends(), [6]);
}

#[test]
fn a_text_is_prefixed_once_where_the_vocabulary_wants_that() {
    let mut json = tokenizer_json();
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
    (json["pre_tokenizer"], json["decoder"]) = (metaspace.clone(), metaspace);
    json["model"]["vocab"] = json!({"a": 0, "b": 1, "▁a": 2, "▁": 3});
    json["model"]["merges"] = json!(["▁ a"]);
    let folder = folder(&[("tokenizer.json", json)]);
    let tokenizer = open(folder.path(), Value::Null).unwrap();
    assert_eq!(tokenizer.encode("a<s>a a", Special::Parse).unwrap(), [2, 4, 0, 2]);
    assert_eq!(tokenizer.bytes(2), b" a");
}

#[test]
fn what_cannot_be_read_is_an_error_that_names_the_file() {
    let error = |files: &[(&str, Value)]| {
        open(folder(files).path(), Value::Null).map(|_| ()).unwrap_err().to_string()
    };
    assert!(error(&[]).contains("tokenizer.json"));
    assert!(
        error(&[("tokenizer.json", json!({"model": 1}))]).contains("is not a tokenizer that can be read")
    );
    let mut json = tokenizer_json();
    json["model"]["merges"] = json!(["ab ab"]);
    assert!(error(&[("tokenizer.json", json)]).contains("its merges do not fit its vocabulary"));
    let mut json = tokenizer_json();
    json["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    assert!(error(&[("tokenizer.json", json)]).contains("its decoder is neither"));

    let mut json = tokenizer_json();
    json["model"]["vocab"]["a"] = u32::MAX.into();
    assert!(error(&[("tokenizer.json", json)]).contains("has 4294967296 tokens"));

    let folder = folder(&[("tokenizer.json", tokenizer_json())]);
    std::fs::write(folder.path().join("generation_config.json"), "{").unwrap();
    let message = open(folder.path(), Value::Null).unwrap_err().to_string();
    assert!(message.contains("generation_config.json") && message.contains("is not valid JSON"), "{message}");
}
