//! Text to token ids and back: tokenizer, chat template, incremental detokenizer.
//!
//! [`Tokenizer`] reads a vocabulary from GGUF metadata, a tokenizer.json or a tekken.json and runs on the `tokenizers`
//! crate. [`ChatTemplate`] renders published Jinja templates as Hugging Face transformers does, and encodes the
//! result so that text inside a message can never become a control token. [`Detokenizer`] turns the bytes of
//! tokens into text without ever cutting a character.

mod added;
mod detokenizer;
mod from_gguf;
mod from_json;
mod from_tekken;
mod guard;
mod jinja;
mod pretokenizer;
mod python;
mod spm;
mod template;
mod to_gguf;
mod tokenizer;
mod vocabulary;

pub use detokenizer::Detokenizer;
pub use template::{ChatTemplate, TemplateContext, TemplateMessage};
pub use to_gguf::gguf_vocabulary;
pub use tokenizer::{Special, Tokenizer};
pub(crate) use vocabulary::byte_level_entry;

#[cfg(test)]
mod tests;
