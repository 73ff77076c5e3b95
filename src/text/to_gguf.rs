//! A tokenizer.json as GGUF's `tokenizer.ggml.*` fields.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value as Json;

use super::from_json::optional_json;
use super::{ChatTemplate, Tokenizer, pretokenizer};
use crate::checkpoint::{Metadata, Value};
use crate::{Error, Result};

/// `tokenizer.ggml.token_type`
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// The fields for a repository's tokenizer and chat template; none where it has no tokenizer.json.
///
/// # Errors
/// A file that cannot be read; a tokenizer that is no byte-level byte-pair encoding, or cuts words in a way that GGUF
/// has no name for.
pub fn gguf_vocabulary(metadata: &Metadata) -> Result<BTreeMap<String, Value>> {
    let Metadata::HuggingFace { config, folder } = metadata else { return Ok(BTreeMap::new()) };
    let path = folder.join("tokenizer.json");
    if !path.is_file() {
        return Ok(BTreeMap::new());
    }
    let json = optional_json(&path)?;
    let mut pairs = fields(&path, &json, config["vocab_size"].as_u64().unwrap_or(0) as usize)?;
    let mut put = |key: &str, value: Value| drop(pairs.insert(format!("tokenizer.{key}"), value));
    let tokenizer = Tokenizer::from_metadata(metadata)?;
    if let Some((id, wanted)) = tokenizer.bos() {
        put("ggml.bos_token_id", Value::Unsigned(id.into()));
        put("ggml.add_bos_token", Value::Bool(wanted));
    }
    if let Some(&id) = tokenizer.ends().first() {
        put("ggml.eos_token_id", Value::Unsigned(id.into()));
    }
    if let Some(template) = ChatTemplate::from_metadata(metadata)? {
        put("chat_template", Value::String(template.source().to_owned()));
    }
    Ok(pairs)
}

fn fields(path: &Path, json: &Json, size: usize) -> Result<BTreeMap<String, Value>> {
    let unsupported = |what: &str| Error::file(path, format!("{what}: GGUF cannot hold that"));
    let model = &json["model"];
    let (Some(vocabulary), Some(merges)) = (model["vocab"].as_object(), model["merges"].as_array()) else {
        return Err(unsupported("the tokenizer is no byte-pair encoding"));
    };
    if model["byte_fallback"].as_bool() == Some(true) {
        return Err(unsupported("the tokenizer falls back to bytes, with merges instead of scores"));
    }
    let pre = pretokenizer::name_of(&patterns(&json["pre_tokenizer"]))
        .ok_or_else(|| unsupported("the tokenizer cuts words in a way that has no name"))?;
    let added: Vec<(usize, &str, bool)> = json["added_tokens"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|token| {
            let special = token["special"].as_bool().unwrap_or(false);
            Some((token["id"].as_u64()? as usize, token["content"].as_str()?, special))
        })
        .collect();
    let ids = vocabulary.values().filter_map(|id| id.as_u64()).map(|id| id as usize);
    let last = ids.chain(added.iter().map(|token| token.0)).max().unwrap_or(0);
    if last > 1 << 24 {
        return Err(Error::file(path, format!("a token has the number {last}")));
    }
    let count = size.max(last + 1);
    let mut tokens: Vec<String> = (0..count).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![UNUSED; count];
    for (text, id) in vocabulary {
        if let Some(id) = id.as_u64() {
            (tokens[id as usize], kinds[id as usize]) = (text.clone(), NORMAL);
        }
    }
    for (id, text, special) in added {
        (tokens[id], kinds[id]) = (text.to_owned(), if special { CONTROL } else { USER_DEFINED });
    }
    // pairs, or both in one string
    let merge = |merge: &Json| match merge {
        Json::String(both) => Some(both.clone()),
        Json::Array(two) => Some(format!("{} {}", two.first()?.as_str()?, two.get(1)?.as_str()?)),
        _ => None,
    };
    let merges: Option<Vec<String>> = merges.iter().map(merge).collect();
    let merges = merges.ok_or_else(|| Error::file(path, "a merge is neither a pair nor a string"))?;
    let text = |text: &str| Value::String(text.to_owned());
    Ok(BTreeMap::from([
        ("tokenizer.ggml.model".to_owned(), text("gpt2")),
        ("tokenizer.ggml.pre".to_owned(), text(pre)),
        ("tokenizer.ggml.tokens".to_owned(), Value::Strings(tokens)),
        ("tokenizer.ggml.token_type".to_owned(), Value::Integers(kinds)),
        ("tokenizer.ggml.merges".to_owned(), Value::Strings(merges)),
    ]))
}

/// The patterns that words are cut by, in order.
fn patterns(pre_tokenizer: &Json) -> Vec<String> {
    let of_list = pre_tokenizer["pretokenizers"].as_array().into_iter().flatten().flat_map(patterns);
    let own = match pre_tokenizer["type"].as_str() {
        Some("Split") => pre_tokenizer["pattern"]["Regex"].as_str().map(str::to_owned),
        Some("Digits") if pre_tokenizer["individual_digits"].as_bool() == Some(true) => {
            Some(r"\p{N}".to_owned())
        }
        Some("ByteLevel") if pre_tokenizer["use_regex"].as_bool() != Some(false) => {
            Some(pretokenizer::GPT2.to_owned())
        }
        _ => None,
    };
    own.into_iter().chain(of_list).collect()
}
