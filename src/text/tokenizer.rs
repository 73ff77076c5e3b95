//! A vocabulary with its merges, from wherever it came.

use std::path::Path;

use tokenizers::{Model, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Token};

use super::added::{Added, AddedTokens, Found};
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

/// What a vocabulary's file says, ready to be put together.
pub(super) struct Parts {
    pub core: tokenizers::Tokenizer,
    pub added: Vec<Added>,
    /// The bytes of each token, by id.
    pub pieces: Pieces,
    /// The begin-of-sequence token, and whether every prompt begins with it.
    pub bos: Option<(u32, bool)>,
    /// The tokens that the file names as ends, end of sequence first.
    pub ends: Vec<u32>,
}

/// Refuses a vocabulary of absurd size, before memory is reserved for it; what is wrong with it.
pub(super) fn check_count(tokens: usize) -> Result<(), String> {
    const MOST: usize = 1 << 24; // the largest published have 2^18
    if tokens <= MOST { Ok(()) } else { Err(format!("has {tokens} tokens; at most {MOST} make sense")) }
}

/// The bytes of all tokens, one after the other.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where each token's bytes end.
    ends: Vec<u32>,
}

impl Pieces {
    pub fn push(&mut self, piece: impl IntoIterator<Item = u8>) {
        self.bytes.extend(piece);
        self.ends.push(self.bytes.len() as u32);
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..end as usize]
    }
}

/// Control tokens that end a turn or a text, by the names that published models give them; where a turn has no token
/// at its end, that is the beginning of the next.
const END_LITERALS: &[&str] = &[
    "<｜end▁of▁sentence｜>",
    "<|EOT|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|user|>",
    "<|observation|>",
    "<end_of_turn>",
    "[EOS]",
    "[EOT]",
];

/// Whether a token written like this ends a turn or a text, whatever type its file gives it.
pub(super) fn is_end_literal(literal: &str) -> bool {
    END_LITERALS.contains(&literal)
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

/// Bytes of a vocabulary entry that is written in GPT-2's byte-level alphabet: printable Latin-1 characters stand
/// for their own code, the other 68 bytes in ascending order for U+0100 and up. A character outside of the
/// alphabet stands for itself.
pub(super) fn byte_level_bytes(entry: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entry.len());
    for c in entry.chars() {
        match c as u32 {
            code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => bytes.push(code as u8),
            code @ 0x100..=0x120 => bytes.push((code - 0x100) as u8), // 0x00..=0x20
            code @ 0x121..=0x142 => bytes.push((code - 0x121 + 0x7F) as u8), // 0x7F..=0xA0
            0x143 => bytes.push(0xAD),
            _ => bytes.extend(c.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    bytes
}

/// How GPT-2's byte-level alphabet writes bytes: the inverse of [`byte_level_bytes`].
pub(crate) fn byte_level_entry(bytes: &[u8]) -> String {
    let character = |&byte: &u8| {
        let code = u32::from(byte);
        let code = match byte {
            0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
            0x00..=0x20 => 0x100 + code,
            0x7F..=0xA0 => 0x121 + code - 0x7F,
            0xAD => 0x143,
        };
        char::from_u32(code).expect("all of these are characters")
    };
    bytes.iter().map(character).collect()
}

/// Bytes of a vocabulary entry in SentencePiece's way: `▁` is a space, `<0x0A>` a byte.
pub(super) fn sentencepiece_bytes(entry: &str) -> Vec<u8> {
    match byte_token(entry) {
        Some(byte) => vec![byte],
        None => entry.replace('▁', " ").into_bytes(),
    }
}

/// The byte that a token such as `<0x0A>` stands for.
pub(super) fn byte_token(entry: &str) -> Option<u8> {
    let digits = entry.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}
