//! A tokenizer from a GGUF file's `tokenizer.ggml.*` fields.

use std::collections::{BTreeMap, HashSet};

use tokenizers::ModelWrapper;
use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::added::Added;
use super::tokenizer::{Parts, Pieces, byte_level_bytes, is_end_literal, sentencepiece_bytes};
use super::{pretokenizer, spm};
use crate::checkpoint::Value;
use crate::{Error, Result};

type Fields = BTreeMap<String, Value>;

/// `tokenizer.ggml.token_type`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Kind {
    fn from_code(code: i64) -> Option<Self> {
        Some(match code {
            1 => Kind::Normal,
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            _ => return None,
        })
    }
}

/// The fields that both tokenizer models have.
struct Vocabulary<'a> {
    fields: &'a Fields,
    entries: &'a [String],
    kinds: Vec<Kind>,
}

/// Reads the fields.
pub(super) fn parts(fields: &Fields) -> Result<Parts> {
    let vocabulary = Vocabulary::read(fields)?;
    match string(fields, "tokenizer.ggml.model")? {
        "gpt2" => vocabulary.byte_level(),
        "llama" => vocabulary.sentencepiece(),
        other => Err(Error::Unsupported(format!(
            "tokenizer.ggml.model: the tokenizer model '{other}' is not known; known are gpt2, llama"
        ))),
    }
}

impl<'a> Vocabulary<'a> {
    fn read(fields: &'a Fields) -> Result<Self> {
        let entries = strings(fields, "tokenizer.ggml.tokens")?;
        let mut kinds = match fields.get("tokenizer.ggml.token_type") {
            None => vec![Kind::Normal; entries.len()],
            Some(Value::Integers(codes)) if codes.len() == entries.len() => codes
                .iter()
                .map(|&code| Kind::from_code(code).ok_or_else(|| {
                    fault("tokenizer.ggml.token_type", format!("{code} is not a type of token (1 to 6)"))
                }))
                .collect::<Result<_>>()?,
            Some(Value::Integers(codes)) => {
                let what = format!("{} types for {} tokens", codes.len(), entries.len());
                return Err(fault("tokenizer.ggml.token_type", what));
            }
            Some(_) => return Err(fault("tokenizer.ggml.token_type", "is not an array of integers")),
        };
        // Some conversions forget to say that an end of turn is a control token.
        for (kind, entry) in kinds.iter_mut().zip(entries) {
            if is_end_literal(entry) {
                *kind = Kind::Control;
            }
        }
        Ok(Vocabulary { fields, entries, kinds })
    }

    fn byte_level(self) -> Result<Parts> {
        let scheme = pretokenizer::scheme(string(self.fields, "tokenizer.ggml.pre").map_err(|error| {
            Error::Text(format!("{error}; the file is from an old converter, take a newer one"))
        })?)?;
        let mut vocab = Vocab::with_capacity(self.entries.len());
        for (id, (entry, kind)) in self.tokens() {
            if matches!(kind, Kind::Normal | Kind::UserDefined | Kind::Byte) {
                vocab.insert(entry.clone(), id);
            }
        }
        let merges = self.merges(&vocab)?;
        let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(scheme.whole_words);
        let mut core = tokenizers::Tokenizer::new(ModelWrapper::BPE(built("tokenizer.ggml.merges", model.build())?));
        core.with_pre_tokenizer(Some(scheme.pre_tokenizer()));
        self.finish(core, byte_level_bytes, scheme.add_bos)
    }

    /// The merges as pairs. Those of control and unused tokens are left out: plain text must not make one.
    fn merges(&self, vocab: &Vocab) -> Result<Merges> {
        let lines = strings(self.fields, "tokenizer.ggml.merges")?;
        let hidden = self.tokens().filter(|(_, (entry, _))| !vocab.contains_key(*entry));
        let hidden: HashSet<&str> = hidden.map(|(_, (entry, _))| entry.as_str()).collect();
        let mut merges = Merges::with_capacity(lines.len());
        let mut joined = String::new();
        for (number, line) in lines.iter().enumerate() {
            let pair = line.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
            let Some((left, right)) = pair else {
                let what = format!("merge {number} is not two entries with a space between: '{line}'");
                return Err(fault("tokenizer.ggml.merges", what));
            };
            joined.clear();
            joined.extend([left, right]);
            if [left, right, &joined].iter().all(|entry| !hidden.contains(entry)) {
                merges.push((left.to_owned(), right.to_owned()));
            }
        }
        Ok(merges)
    }

    fn sentencepiece(self) -> Result<Parts> {
        let scores = match self.fields.get("tokenizer.ggml.scores") {
            Some(Value::Floats(scores)) if scores.len() == self.entries.len() => scores,
            Some(Value::Floats(scores)) => {
                let what = format!("{} scores for {} tokens", scores.len(), self.entries.len());
                return Err(fault("tokenizer.ggml.scores", what));
            }
            Some(_) => return Err(fault("tokenizer.ggml.scores", "is not an array of floats")),
            None => return Err(fault("tokenizer.ggml.scores", "is missing")),
        };
        let text = |kind: Kind| matches!(kind, Kind::Normal | Kind::UserDefined);
        let scored: Vec<(&str, f64)> = self
            .tokens()
            .filter(|(_, (_, kind))| text(*kind))
            .map(|(id, (entry, _))| (entry.as_str(), scores[id as usize]))
            .collect();
        let merges = spm::merges(&scored).into_iter().map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
        let unknown = self.kinds.iter().position(|&kind| kind == Kind::Unknown);
        let usable = |kind| text(kind) || matches!(kind, Kind::Byte | Kind::Unknown);
        let vocab: Vocab = self
            .tokens()
            .filter(|(_, (_, kind))| usable(*kind))
            .map(|(id, (entry, _))| (entry.clone(), id))
            .collect();
        let mut model =
            BPE::builder().vocab_and_merges(vocab, merges).byte_fallback(true).fuse_unk(true).cache_capacity(0);
        if let Some(id) = unknown {
            model = model.unk_token(self.entries[id].clone());
        }
        let mut core = tokenizers::Tokenizer::new(ModelWrapper::BPE(built("tokenizer.ggml.tokens", model.build())?));
        let add_space_prefix = flag(self.fields, "tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let normalizer = built("tokenizer.ggml.add_space_prefix", spm::normalizer(add_space_prefix))?;
        built("tokenizer.ggml.add_space_prefix", core.with_normalizer(Some(normalizer)).map(|_| ()))?;
        self.finish(core, sentencepiece_bytes, true)
    }

    /// Puts the parts together that do not depend on the tokenizer model.
    fn finish(&self, core: tokenizers::Tokenizer, bytes: fn(&str) -> Vec<u8>, add_bos: bool) -> Result<Parts> {
        let mut pieces = Pieces::default();
        let mut added = Vec::new();
        for (id, (entry, kind)) in self.tokens() {
            match kind {
                Kind::Normal | Kind::Byte => pieces.push(bytes(entry)),
                Kind::Unused => pieces.push([]),
                Kind::Control | Kind::Unknown | Kind::UserDefined => {
                    pieces.push(entry.bytes());
                    added.push(Added::new(entry.as_str(), id, kind != Kind::UserDefined));
                }
            }
        }
        let id = |key: &str| id(self.fields, key, self.entries.len());
        let add_bos = flag(self.fields, "tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos);
        let bos = id("tokenizer.ggml.bos_token_id")?.map(|bos| (bos, add_bos));
        let mut ends = Vec::new();
        for key in ["eos", "eot", "eom"] {
            ends.extend(id(&format!("tokenizer.ggml.{key}_token_id"))?);
        }
        Ok(Parts { core, added, pieces, bos, ends })
    }

    fn tokens(&self) -> impl Iterator<Item = (u32, (&String, Kind))> {
        (0..).zip(self.entries.iter().zip(self.kinds.iter().copied()))
    }
}

fn fault(field: &str, what: impl std::fmt::Display) -> Error {
    Error::Text(format!("{field}: {what}"))
}

fn built<T>(field: &str, result: tokenizers::Result<T>) -> Result<T> {
    result.map_err(|error| fault(field, error))
}

fn string<'a>(fields: &'a Fields, key: &str) -> Result<&'a str> {
    match fields.get(key) {
        Some(Value::String(value)) => Ok(value),
        Some(_) => Err(fault(key, "is not a string")),
        None => Err(fault(key, "is missing")),
    }
}

fn strings<'a>(fields: &'a Fields, key: &str) -> Result<&'a [String]> {
    match fields.get(key) {
        Some(Value::Strings(values)) => Ok(values),
        Some(_) => Err(fault(key, "is not an array of strings")),
        None => Err(fault(key, "is missing")),
    }
}

fn flag(fields: &Fields, key: &str) -> Result<Option<bool>> {
    match fields.get(key) {
        None => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(_) => Err(fault(key, "is not a boolean")),
    }
}

/// A token's id, checked against the vocabulary.
fn id(fields: &Fields, key: &str, len: usize) -> Result<Option<u32>> {
    let value = match fields.get(key) {
        None => return Ok(None),
        Some(Value::Unsigned(value)) => i128::from(*value),
        Some(Value::Signed(-1)) => return Ok(None), // how some converters write "none"
        Some(Value::Signed(value)) => i128::from(*value),
        Some(_) => return Err(fault(key, "is not an integer")),
    };
    match u32::try_from(value) {
        Ok(id) if (id as usize) < len => Ok(Some(id)),
        _ => Err(fault(key, format!("{value} is not one of the {len} tokens"))),
    }
}

#[cfg(test)]
mod tests;
