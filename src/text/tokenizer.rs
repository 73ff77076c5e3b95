//! A vocabulary with its merges, from wherever it came.

use std::path::Path;

use tokenizers::{Model, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Token};

use super::added::{AddedTokens, Found};
use super::vocabulary::{Parts, Pieces, is_end_literal};
use super::{from_gguf, from_json, from_tekken};
use crate::checkpoint::Metadata;
use crate::{Error, Result};

/// How special tokens that stand literally in a text are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// `<think>` is the control token.
    Parse,
    /// `<think>` is seven characters of text.
    Text,
}

/// A vocabulary with its merges.
#[derive(Debug)]
pub struct Tokenizer {
    /// Normalizer, pre-tokenizer and merges. Its own handling of added tokens is not used: it cannot leave
    /// those that are not `special` unread, nor single occurrences.
    core: tokenizers::Tokenizer,
    added: AddedTokens,
    pieces: Pieces,
    control: Vec<bool>,
    bos: Option<(u32, bool)>,
    ends: Vec<u32>,
}

impl Tokenizer {
    /// From a checkpoint: GGUF metadata, or the folder's tokenizer.json or, without that, its tekken.json.
    ///
    /// Of GGUF's tokenizer models `gpt2` (byte-level byte-pair encoding) and `llama` (SentencePiece-style) are
    /// read. Where two merges of a `llama` vocabulary have the same score, the one of the vocabulary's order
    /// wins, as in Hugging Face's conversion, not the leftmost; this concerns runs of one repeated character.
    ///
    /// # Errors
    /// An unknown pre-tokenizer or tokenizer model, named; missing or inconsistent fields, named.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self> {
        let parts = match metadata {
            Metadata::Gguf(pairs) => from_gguf::parts(pairs)?,
            Metadata::HuggingFace { config, folder } => {
                let (json, tekken) = (folder.join("tokenizer.json"), folder.join("tekken.json"));
                match (json.exists(), tekken.exists()) {
                    (true, _) => from_json::parts(&json, Some(config))?,
                    (_, true) => from_tekken::parts(&tekken)?,
                    _ => {
                        return Err(Error::file(
                            folder,
                            "has neither tokenizer.json nor tekken.json: put one of them there, from the model's \
                             repository, or take a GGUF file, which holds its vocabulary",
                        ));
                    }
                }
            }
        };
        Ok(Tokenizer::assemble(parts))
    }

    /// From a tokenizer.json or a tekken.json. What ends a generation and whether BOS is wanted is also read from
    /// tokenizer_config.json and generation_config.json beside a tokenizer.json, if they are there.
    ///
    /// # Errors
    /// A file that cannot be read or is not a tokenizer's; a decoder that is neither byte-level nor
    /// SentencePiece-style.
    pub fn from_file(path: &Path) -> Result<Self> {
        let is_tekken = path.file_name().is_some_and(|name| name == "tekken.json");
        let parts = if is_tekken { from_tekken::parts(path) } else { from_json::parts(path, None) };
        Ok(Tokenizer::assemble(parts?))
    }

    fn assemble(parts: Parts) -> Self {
        let Parts { core, added, pieces, bos, mut ends } = parts;
        let mut control = vec![false; pieces.len()];
        for token in added.iter().filter(|token| token.control) {
            control[token.id as usize] = true;
            if is_end_literal(&token.literal) {
                ends.push(token.id);
            }
        }
        for &id in ends.iter().chain(bos.as_ref().map(|(id, _)| id)) {
            control[id as usize] = true;
        }
        // where messages have channels, a turn is several of them, and this ends one
        let message_end = added
            .iter()
            .any(|token| token.literal == "<|channel|>")
            .then(|| added.iter().find(|token| token.literal == "<|end|>"))
            .flatten()
            .map(|token| token.id);
        let mut seen = std::collections::HashSet::new();
        ends.retain(|&id| Some(id) != message_end && seen.insert(id));
        Tokenizer { core, added: AddedTokens::new(added), pieces, control, bos, ends }
    }

    /// Token ids of a text; nothing stripped, nothing added.
    ///
    /// With [`Special::Text`] no control token and no token added by hand (`<think>` is one in many
    /// vocabularies) is read from the text; runs of whitespace that a vocabulary adds by hand are.
    ///
    /// # Errors
    /// A tokenizer.json whose unknown token is not in its vocabulary, for a text that needs it.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        let found = match special {
            Special::Parse => self.added.find(text, |_, _| true),
            Special::Text => self.added.find(text, |token, _| !token.is_marker()),
        };
        self.encode_around(text, &found)
    }

    /// Token ids of a text in which the added tokens have been found already (in order, not overlapping).
    pub(super) fn encode_around(&self, text: &str, found: &[Found]) -> Result<Vec<u32>> {
        self.try_encode(text, found)
            .map_err(|error| Error::Text(format!("the text cannot be encoded: {error}")))
    }

    fn try_encode(&self, text: &str, found: &[Found]) -> tokenizers::Result<Vec<u32>> {
        let mut words = PreTokenizedString::from(text);
        if !found.is_empty() {
            words.split(|_, whole| {
                let mut pieces = Vec::with_capacity(2 * found.len() + 1);
                let mut push = |range: std::ops::Range<usize>, tokens| {
                    let piece = whole.slice(tokenizers::normalizer::Range::Normalized(range));
                    pieces.extend(piece.map(|piece| (piece, tokens)));
                };
                let mut free = 0;
                for Found { range, id } in found {
                    push(free..range.start, None);
                    push(range.clone(), Some(vec![Token::new(*id, String::new(), (0, range.len()))]));
                    free = range.end;
                }
                push(free..text.len(), None);
                Ok(pieces)
            })?;
        }
        if let Some(normalizer) = self.core.get_normalizer() {
            words.normalize(|piece| normalizer.normalize(piece))?;
        }
        if let Some(pre_tokenizer) = self.core.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut words)?;
        }
        words.tokenize(|word| self.core.get_model().tokenize(word.get()))?;
        let words = words.get_splits(OffsetReferential::Normalized, OffsetType::None);
        Ok(words.into_iter().filter_map(|(_, _, tokens)| tokens.as_ref()).flatten().map(|t| t.id).collect())
    }

    /// The control tokens and the tokens added by hand.
    pub(super) fn added(&self) -> &AddedTokens {
        &self.added
    }

    /// The bytes that a token stands for (a control token: its literal); empty for an id that has none.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.pieces.get(id)
    }

    /// The id of the token written exactly so: an added token's literal, or an entry as the vocabulary's file
    /// writes it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.added.get(token).map(|token| token.id).or_else(|| self.core.get_model().token_to_id(token))
    }

    /// Whether the token is a control token (begin, end, role markers): never part of visible text.
    /// `<think>` markers may or may not be control tokens in a given vocabulary.
    pub fn is_control(&self, id: u32) -> bool {
        self.control.get(id as usize).is_some_and(|&control| control)
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The begin-of-sequence token, and whether the metadata asks for it before every prompt.
    pub fn bos(&self) -> Option<(u32, bool)> {
        self.bos
    }

    /// Tokens that end a generation (end of sequence, end of turn), the declared end of sequence first.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The text of ids, control tokens included; broken UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
