//! A tokenizer from a GGUF file's `tokenizer.ggml.*` fields.

use std::collections::HashSet;

use tokenizers::ModelWrapper;
use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::added::Added;
use super::vocabulary::{Parts, Pieces, byte_level_bytes, is_end_literal, sentencepiece_bytes};
use super::{pretokenizer, spm};
use crate::checkpoint::GgufMetadata;
use crate::{Error, Result};

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

const MERGES: &str = "tokenizer.ggml.merges";

/// Whether a byte-level text is made of such tokens.
fn is_text(kind: Kind) -> bool {
    matches!(kind, Kind::Normal | Kind::UserDefined | Kind::Byte)
}

/// The fields that both tokenizer models have.
struct Vocabulary<'a> {
    metadata: &'a GgufMetadata,
    entries: &'a [String],
    kinds: Vec<Kind>,
}

/// Reads the fields.
pub(super) fn parts(metadata: &GgufMetadata) -> Result<Parts> {
    let vocabulary = Vocabulary::read(metadata)?;
    match metadata.require("tokenizer.ggml.model")? {
        "gpt2" => vocabulary.byte_level(),
        "llama" => vocabulary.sentencepiece(),
        other => Err(Error::Unsupported(format!(
            "{}: tokenizer.ggml.model: the tokenizer model '{other}' is not known; known are gpt2, llama",
            metadata.file().display()
        ))),
    }
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a GgufMetadata) -> Result<Self> {
        let entries: &[String] = metadata.require("tokenizer.ggml.tokens")?;
        let mut vocabulary = Vocabulary { metadata, entries, kinds: vec![Kind::Normal; entries.len()] };
        if let Some(codes) = metadata.find::<&[i64]>("tokenizer.ggml.token_type")? {
            vocabulary.one_each("tokenizer.ggml.token_type", codes.len())?;
            for (kind, &code) in vocabulary.kinds.iter_mut().zip(codes) {
                let unknown = || {
                    Error::file(metadata.file(), format!("tokenizer.ggml.token_type: {code} is not 1 to 6"))
                };
                *kind = Kind::from_code(code).ok_or_else(unknown)?;
            }
        }
        // Some conversions forget to say that an end of turn is a control token.
        for (kind, entry) in vocabulary.kinds.iter_mut().zip(entries) {
            if is_end_literal(entry) {
                *kind = Kind::Control;
            }
        }
        Ok(vocabulary)
    }

    /// Checks that an array has one item for each token.
    fn one_each(&self, key: &str, len: usize) -> Result<()> {
        let tokens = self.entries.len();
        if len == tokens { Ok(()) } else { Err(self.fault(key, format!("{len} items for {tokens} tokens"))) }
    }

    fn fault(&self, key: &str, what: impl std::fmt::Display) -> Error {
        Error::file(self.metadata.file(), format!("{key}: {what}"))
    }

    fn byte_level(self) -> Result<Parts> {
        let name = self.metadata.require("tokenizer.ggml.pre")?;
        let scheme = pretokenizer::scheme(name).ok_or_else(|| {
            Error::Unsupported(format!(
                "{}: tokenizer.ggml.pre: the pre-tokenizer '{name}' is not known; known are {}",
                self.metadata.file().display(),
                pretokenizer::names().collect::<Vec<_>>().join(", ")
            ))
        })?;
        let (vocab, merges) = std::thread::scope(|scope| {
            let merges = scope.spawn(|| self.merges());
            let mut vocab = Vocab::with_capacity(self.entries.len());
            let text = self.tokens().filter(|(_, (_, kind))| is_text(*kind));
            text.for_each(|(id, (entry, _))| {
                vocab.insert(entry.clone(), id);
            });
            (vocab, merges.join().expect("reading the merges does not panic"))
        });
        let merges = merges?;
        let core = || {
            let model =
                BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(scheme.whole_words).build();
            let model = model.map_err(|error| self.misfit(error))?;
            let mut core = tokenizers::Tokenizer::new(ModelWrapper::BPE(model));
            core.with_pre_tokenizer(Some(scheme.pre_tokenizer()));
            Ok(core)
        };
        self.finish(core, byte_level_bytes, scheme.add_bos)
    }

    /// The merges as pairs. Those of control and unused tokens are left out: plain text must not make one.
    fn merges(&self) -> Result<Merges> {
        let lines: &[String] = self.metadata.require(MERGES)?;
        let mut hidden: HashSet<&str> = HashSet::new();
        let kinds = |wanted: bool| self.tokens().filter(move |(_, (_, kind))| is_text(*kind) == wanted);
        hidden.extend(kinds(false).map(|(_, (entry, _))| entry.as_str()));
        for (_, (entry, _)) in kinds(true) {
            hidden.remove(entry.as_str());
        }
        let longest = self.entries.iter().map(String::len).max().unwrap_or(0);
        let mut merges = Merges::with_capacity(lines.len());
        let mut joined = String::new();
        for (number, line) in lines.iter().enumerate() {
            let pair = line.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
            let Some((left, right)) = pair else {
                let what = format!("merge {number} is not two entries with a space between: '{line}'");
                return Err(self.fault(MERGES, what));
            };
            joined.clear();
            joined.extend([left, right]);
            if joined.len() > longest {
                return Err(self.no_token(number, &joined));
            }
            if [left, right, &joined].iter().all(|entry| !hidden.contains(entry)) {
                merges.push((left.to_owned(), right.to_owned()));
            }
        }
        Ok(merges)
    }

    /// Names the merge that `error` is about.
    fn misfit(&self, error: tokenizers::Error) -> Error {
        let entries: HashSet<&str> = self.entries.iter().map(String::as_str).collect();
        let lines: &[String] = self.metadata.require(MERGES).unwrap_or_default();
        let mut joined = lines.iter().map(|line| line.replacen(' ', "", 1)).enumerate();
        match joined.find(|(_, joined)| !entries.contains(&**joined)) {
            Some((number, joined)) => self.no_token(number, &joined),
            None => self.fault(MERGES, error),
        }
    }

    fn no_token(&self, merge: usize, joined: &str) -> Error {
        self.fault(MERGES, format!("merge {merge} makes '{joined}', which is not a token"))
    }

    fn sentencepiece(self) -> Result<Parts> {
        let scores: &[f64] = self.metadata.require("tokenizer.ggml.scores")?;
        self.one_each("tokenizer.ggml.scores", scores.len())?;
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
        let mut model = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .byte_fallback(true)
            .fuse_unk(true)
            .cache_capacity(0);
        if let Some(id) = unknown {
            model = model.unk_token(self.entries[id].clone());
        }
        let model = model.build().map_err(|error| self.fault("tokenizer.ggml.tokens", error))?;
        let mut core = tokenizers::Tokenizer::new(ModelWrapper::BPE(model));
        let key = "tokenizer.ggml.add_space_prefix";
        spm::normalizer(self.metadata.find(key)?.unwrap_or(true))
            .and_then(|normalizer| core.with_normalizer(Some(normalizer)).map(|_| ()))
            .map_err(|error| self.fault(key, error))?;
        self.finish(|| Ok(core), sentencepiece_bytes, true)
    }

    /// Puts the parts together that do not depend on the tokenizer model, while `core` is made.
    fn finish(
        &self,
        core: impl FnOnce() -> Result<tokenizers::Tokenizer> + Send,
        bytes: fn(&str) -> Vec<u8>,
        add_bos: bool,
    ) -> Result<Parts> {
        std::thread::scope(|scope| {
            let core = scope.spawn(core);
            let (added, pieces) = self.pieces(bytes);
            let add_bos = self.metadata.find("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos);
            let bos = self.id("bos")?.map(|bos| (bos, add_bos));
            let mut ends = Vec::new();
            for name in ["eos", "eot", "eom"] {
                ends.extend(self.id(name)?);
            }
            let core = core.join().expect("merges were checked for what the crate would panic at")?;
            Ok(Parts { core, added, pieces, bos, ends })
        })
    }

    /// The tokens that stand outside of the merges, and the bytes of each token.
    fn pieces(&self, bytes: fn(&str) -> Vec<u8>) -> (Vec<Added>, Pieces) {
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
        (added, pieces)
    }

    /// A special token's id, checked against the vocabulary.
    fn id(&self, name: &str) -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let (id, tokens) = (self.metadata.find::<u32>(&key)?, self.entries.len());
        match id {
            Some(id) if id as usize >= tokens => {
                Err(self.fault(&key, format!("{id} is not one of {tokens} tokens")))
            }
            id => Ok(id),
        }
    }

    fn tokens(&self) -> impl Iterator<Item = (u32, (&String, Kind))> {
        (0..).zip(self.entries.iter().zip(self.kinds.iter().copied()))
    }
}

#[cfg(test)]
mod tests;
