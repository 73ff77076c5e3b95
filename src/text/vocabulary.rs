//! What a vocabulary's file says, whichever it is, and how entries are written in it.

use super::added::Added;

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

    /// Empty for an id that has none.
    pub fn get(&self, id: u32) -> &[u8] {
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
