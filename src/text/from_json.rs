//! A tokenizer from Hugging Face's tokenizer.json and the files beside it.

use std::path::Path;

use serde_json::Value;

use super::added::Added;
use super::vocabulary::{Parts, Pieces, byte_level_bytes, check_count, sentencepiece_bytes};
use crate::{Error, Result};

/// Reads `path` and, from its folder, tokenizer_config.json and generation_config.json. `config`: the folder's
/// config.json, which names the end of sequence where generation_config.json does not.
pub(super) fn parts(path: &Path, config: Option<&Value>) -> Result<Parts> {
    let text = std::fs::read(path).map_err(|source| Error::io(path, source))?;
    // The crate checks the file's types, not its sense: merges longer than any entry make it panic.
    let core = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(&text))
        .unwrap_or_else(|_| Err("its merges do not fit its vocabulary".into()))
        .map_err(|error| Error::file(path, format!("is not a tokenizer that can be read: {error}")))?;
    let bytes = entry_bytes(path, &core)?;

    let mut added: Vec<Added> = core
        .get_added_tokens_decoder()
        .into_iter()
        .map(|(id, token)| Added {
            id,
            control: token.special,
            takes_left: token.lstrip,
            takes_right: token.rstrip,
            whole_word: token.single_word,
            literal: token.content,
        })
        .collect();
    added.sort_unstable_by_key(|token| token.id);
    let pieces = pieces(&core, &added, bytes).map_err(|what| Error::file(path, what))?;

    // The files beside it belong to it only if it has the name that a repository gives it.
    let beside = path.parent().filter(|_| path.file_name().is_some_and(|name| name == "tokenizer.json"));
    let beside = |name: &str| beside.map_or(Ok(Value::Null), |folder| optional_json(&folder.join(name)));
    let (tokenizer_config, generation_config) =
        (beside("tokenizer_config.json")?, beside("generation_config.json")?);

    let bos = bos(&core, &tokenizer_config);
    let mut ends = ids(&generation_config["eos_token_id"]);
    ends.extend(literal(&tokenizer_config["eos_token"]).and_then(|token| core.token_to_id(token)));
    if generation_config["eos_token_id"].is_null() {
        ends.extend(config.map(|config| ids(&config["eos_token_id"])).unwrap_or_default());
    }
    ends.retain(|&id| (id as usize) < pieces.len());
    Ok(Parts { core, added, pieces, bos, ends })
}

/// How the vocabulary writes bytes, by its decoder.
fn entry_bytes(path: &Path, core: &tokenizers::Tokenizer) -> Result<fn(&str) -> Vec<u8>> {
    let decoder = serde_json::to_string(&core.get_decoder()).unwrap_or_default();
    if decoder.contains("\"ByteLevel\"") {
        Ok(byte_level_bytes)
    } else if ["\"Metaspace\"", "\"ByteFallback\"", "▁"].iter().any(|name| decoder.contains(name)) {
        Ok(sentencepiece_bytes)
    } else {
        Err(Error::file(path, format!("its decoder is neither ByteLevel nor SentencePiece's: {decoder}")))
    }
}

fn pieces(
    core: &tokenizers::Tokenizer,
    added: &[Added],
    bytes: fn(&str) -> Vec<u8>,
) -> Result<Pieces, String> {
    let vocabulary = core.get_vocab(false);
    let ids = vocabulary.values().copied().chain(added.iter().map(|token| token.id));
    let count = ids.max().map_or(0, |last| last as usize + 1);
    check_count(count)?;
    let mut by_id = vec![Vec::new(); count];
    for (entry, id) in &vocabulary {
        by_id[*id as usize] = bytes(entry);
    }
    for token in added {
        by_id[token.id as usize] = token.literal.clone().into_bytes();
    }
    let mut pieces = Pieces::default();
    by_id.into_iter().for_each(|piece| pieces.push(piece));
    Ok(pieces)
}

/// The begin-of-sequence token and whether it is wanted: what tokenizer_config.json says, else what the
/// post-processor's template puts first.
fn bos(core: &tokenizers::Tokenizer, config: &Value) -> Option<(u32, bool)> {
    let first = first_of_template(&serde_json::to_value(core.get_post_processor()).unwrap_or_default());
    let first = first.and_then(|token| core.token_to_id(&token));
    let named = literal(&config["bos_token"]).and_then(|token| core.token_to_id(token));
    let id = named.or(first)?;
    Some((id, config["add_bos_token"].as_bool().unwrap_or(first == Some(id))))
}

/// The special token that a `TemplateProcessing` post-processor, perhaps in a sequence, puts before a text.
fn first_of_template(processor: &Value) -> Option<String> {
    if let Some(processors) = processor["processors"].as_array() {
        return processors.iter().find_map(first_of_template);
    }
    Some(processor["single"][0]["SpecialToken"]["id"].as_str()?.to_owned())
}

/// A token of tokenizer_config.json: a string, or an object with its `content`.
pub(super) fn literal(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

/// One id or an array of them.
fn ids(value: &Value) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(values) => values.iter().filter_map(one).collect(),
        value => one(value).into_iter().collect(),
    }
}

/// A JSON file that may be absent (then null).
pub(super) fn optional_json(path: &Path) -> Result<Value> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map_err(|error| Error::file(path, format!("is not valid JSON: {error}"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(source) => Err(Error::io(path, source)),
    }
}

#[cfg(test)]
mod tests;
