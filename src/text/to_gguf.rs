//! A tokenizer.json or tekken.json as GGUF's `tokenizer.ggml.*` fields.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::Value as Json;

use super::from_json::optional_json;
use super::vocabulary::{byte_token, check_count};
use super::{ChatTemplate, Tokenizer, from_tekken, pretokenizer, spm};
use crate::checkpoint::{Metadata, Value};
use crate::{Error, Result};

/// `tokenizer.ggml.token_type`
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
const BYTE: i64 = 6;

/// The fields for a repository's tokenizer (tokenizer.json, else tekken.json) and chat template; none where it has neither.
/// `architecture`: GGUF's name of it.
///
/// # Errors
/// A file that cannot be read; a tokenizer that is no byte-pair encoding, or cuts words in a way that GGUF has no name for,
/// or falls back to bytes with merges that no scores stand for.
pub fn gguf_vocabulary(metadata: &Metadata, architecture: &str) -> Result<BTreeMap<String, Value>> {
    let Metadata::HuggingFace { config, folder } = metadata else { return Ok(BTreeMap::new()) };
    let size = config["vocab_size"].as_u64().unwrap_or(0) as usize;
    let (json, tekken) = (folder.join("tokenizer.json"), folder.join("tekken.json"));
    let mut pairs = if json.is_file() {
        of_json(&json, size, architecture)?
    } else if tekken.is_file() {
        of_tekken(&tekken, size)?
    } else {
        return Ok(BTreeMap::new());
    };
    let mut put = |key: &str, value: Value| drop(pairs.insert(format!("tokenizer.{key}"), value));
    let tokenizer = Tokenizer::from_metadata(metadata)?;
    if let Some((id, wanted)) = tokenizer.bos() {
        put("ggml.bos_token_id", Value::Unsigned(id.into()));
        put("ggml.add_bos_token", Value::Bool(wanted));
    }
    if let Some(&id) = tokenizer.ends().first() {
        put("ggml.eos_token_id", Value::Unsigned(id.into()));
    }
    if let Some(template) = ChatTemplate::of(metadata, &tokenizer)? {
        put("chat_template", Value::String(template.source().to_owned()));
    }
    Ok(pairs)
}

fn of_json(path: &Path, size: usize, architecture: &str) -> Result<BTreeMap<String, Value>> {
    let json = optional_json(path)?;
    let model = &json["model"];
    let (Some(vocabulary), Some(merges)) = (model["vocab"].as_object(), model["merges"].as_array()) else {
        return Err(unsupported(path, "the tokenizer is no byte-pair encoding"));
    };
    let merges: Option<Vec<(&str, &str)>> = merges.iter().map(merge).collect();
    let merges = merges.ok_or_else(|| Error::file(path, "a merge is neither a pair nor a string"))?;
    let (tokens, mut kinds) = entries(path, vocabulary, &json["added_tokens"], size)?;
    if model["byte_fallback"].as_bool() == Some(true) {
        let scores = scores(&tokens, &mut kinds, model["unk_token"].as_str(), &merges)
            .ok_or_else(|| unsupported(path, "its merges stand in an order that no scores give"))?;
        let mut fields = fields("llama", "default", tokens, kinds);
        fields.insert("tokenizer.ggml.add_space_prefix".to_owned(), Value::Bool(adds_space(&json)));
        fields.insert("tokenizer.ggml.scores".to_owned(), Value::Floats(scores));
        return Ok(fields);
    }
    let whole_words = model["ignore_merges"].as_bool() == Some(true);
    let pre = pretokenizer::name_of(&patterns(&json["pre_tokenizer"]), whole_words, architecture);
    byte_level(path, pre, tokens, kinds, &merges)
}

fn of_tekken(path: &Path, size: usize) -> Result<BTreeMap<String, Value>> {
    let contents = from_tekken::contents(path)?;
    let kind = |control: bool| if control { CONTROL } else { USER_DEFINED };
    let special = contents.special.into_iter().map(|token| (kind(token.control), token.literal));
    let all = special.chain(contents.entries.into_iter().map(|entry| (NORMAL, entry)));
    let (mut kinds, mut tokens): (Vec<i64>, Vec<String>) = all.unzip();
    tokens.extend((tokens.len()..size).map(pad));
    kinds.resize(tokens.len(), UNUSED);
    let merges: Vec<(&str, &str)> = contents.merges.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    byte_level(path, pretokenizer::name_of(&[contents.pattern], true, ""), tokens, kinds, &merges)
}

fn byte_level(
    path: &Path,
    pre: Option<&str>,
    tokens: Vec<String>,
    kinds: Vec<i64>,
    merges: &[(&str, &str)],
) -> Result<BTreeMap<String, Value>> {
    let no_name = || unsupported(path, "the tokenizer cuts words in a way that has no name");
    let mut fields = fields("gpt2", pre.ok_or_else(no_name)?, tokens, kinds);
    let merges = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
    fields.insert("tokenizer.ggml.merges".to_owned(), Value::Strings(merges));
    Ok(fields)
}

/// What both tokenizer models have.
fn fields(model: &str, pre: &str, tokens: Vec<String>, kinds: Vec<i64>) -> BTreeMap<String, Value> {
    BTreeMap::from([
        ("tokenizer.ggml.model".to_owned(), Value::String(model.to_owned())),
        ("tokenizer.ggml.pre".to_owned(), Value::String(pre.to_owned())),
        ("tokenizer.ggml.tokens".to_owned(), Value::Strings(tokens)),
        ("tokenizer.ggml.token_type".to_owned(), Value::Integers(kinds)),
    ])
}

fn unsupported(path: &Path, what: &str) -> Error {
    Error::file(path, format!("{what}: GGUF cannot hold that"))
}

/// Two entries: an array, or both in one string.
fn merge(merge: &Json) -> Option<(&str, &str)> {
    match merge {
        Json::String(both) => both.split_once(' '),
        Json::Array(two) => Some((two.first()?.as_str()?, two.get(1)?.as_str()?)),
        _ => None,
    }
}

/// The text of an id that has none.
fn pad(id: usize) -> String {
    format!("[PAD{id}]")
}

/// The text and kind of each id, `size` of them at least.
fn entries(
    path: &Path,
    vocabulary: &serde_json::Map<String, Json>,
    added: &Json,
    size: usize,
) -> Result<(Vec<String>, Vec<i64>)> {
    let added: Vec<(usize, &str, bool)> = added
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
    let count = size.max(last + 1);
    check_count(count).map_err(|what| Error::file(path, what))?;
    let mut tokens: Vec<String> = (0..count).map(pad).collect();
    let mut kinds = vec![UNUSED; count];
    for (text, id) in vocabulary {
        if let Some(id) = id.as_u64() {
            (tokens[id as usize], kinds[id as usize]) = (text.clone(), NORMAL);
        }
    }
    for (id, text, special) in added {
        (tokens[id], kinds[id]) = (text.to_owned(), if special { CONTROL } else { USER_DEFINED });
    }
    Ok((tokens, kinds))
}

/// SentencePiece's scores that lead to `merges`, the first one the best; none if there are none. Entries that no merge makes
/// come last. Bytes and the unknown token get kinds of their own.
fn scores(
    tokens: &[String],
    kinds: &mut [i64],
    unknown: Option<&str>,
    merges: &[(&str, &str)],
) -> Option<Vec<f64>> {
    for (kind, token) in kinds.iter_mut().zip(tokens) {
        if Some(token.as_str()) == unknown {
            *kind = UNKNOWN;
        } else if *kind == NORMAL && byte_token(token).is_some() {
            *kind = BYTE;
        }
    }
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for (left, right) in merges {
        let next = ranks.len();
        ranks.entry(format!("{left}{right}")).or_insert(next);
    }
    let last = ranks.len();
    let scores: Vec<f64> = tokens.iter().map(|token| -(*ranks.get(token).unwrap_or(&last) as f64)).collect();
    let is_text = |kind: i64| kind == NORMAL || kind == USER_DEFINED;
    let all = tokens.iter().zip(&scores).zip(kinds.iter());
    let scored: Vec<(&str, f64)> =
        all.filter(|&(_, &kind)| is_text(kind)).map(|((token, &score), _)| (token.as_str(), score)).collect();
    (pairs_by_entry(&spm::merges(&scored)) == pairs_by_entry(merges)).then_some(scores)
}

/// The entries that merges make, in order, and the left parts of each one's pairs. In which order these stand means nothing:
/// they have one score, and conversions differ.
fn pairs_by_entry<'a>(merges: &[(&'a str, &'a str)]) -> Vec<(String, Vec<&'a str>)> {
    let mut entries: Vec<(String, Vec<&str>)> = Vec::new();
    for (left, right) in merges {
        let entry = format!("{left}{right}");
        match entries.last_mut().filter(|(last, _)| *last == entry) {
            Some((_, lefts)) => lefts.push(left),
            None => entries.push((entry, vec![left])),
        }
    }
    entries.iter_mut().for_each(|(_, lefts)| lefts.sort_unstable());
    entries
}

/// Whether a space is put before a text: by a normalizer, or as newer files have it.
fn adds_space(json: &Json) -> bool {
    let steps = |step: &Json, of: &str| match step[of].as_array() {
        Some(all) => all.clone(),
        None => vec![step.clone()],
    };
    let normalizers = steps(&json["normalizer"], "normalizers");
    let pre_tokenizers = steps(&json["pre_tokenizer"], "pretokenizers");
    normalizers.iter().any(|step| step["type"] == "Prepend")
        || pre_tokenizers.iter().any(|step| step["type"] == "Metaspace" && step["prepend_scheme"] != "never")
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

#[cfg(test)]
mod tests;
