//! Text to token ids and back: tokenizer, chat template, incremental detokenizer.

use std::path::Path;

use crate::Result;
use crate::checkpoint::Metadata;

/// How special tokens that stand literally in a text are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// `<think>` is the control token.
    Parse,
    /// `<think>` is seven characters of text.
    Text,
}

/// A vocabulary with its merges.
pub struct Tokenizer {}

impl Tokenizer {
    /// From a checkpoint: GGUF metadata, or the folder's tokenizer.json.
    ///
    /// # Errors
    /// An unknown pre-tokenizer or tokenizer model, named; missing or inconsistent fields, named.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self> {
        let _ = metadata;
        unimplemented!("W5")
    }

    /// From a tokenizer.json.
    pub fn from_file(path: &Path) -> Result<Self> {
        let _ = path;
        unimplemented!("W5")
    }

    /// Token ids of a text; nothing stripped, nothing added.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        let _ = (text, special);
        unimplemented!("W5")
    }

    /// The bytes that a token stands for (a control token: its literal); empty for an id that has none.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let _ = id;
        unimplemented!("W5")
    }

    /// The id of the token written exactly so.
    pub fn id(&self, token: &str) -> Option<u32> {
        let _ = token;
        unimplemented!("W5")
    }

    /// Whether the token is a control token (begin, end, role markers): never part of visible text.
    /// `<think>` markers may or may not be control tokens in a given vocabulary.
    pub fn is_control(&self, id: u32) -> bool {
        let _ = id;
        unimplemented!("W5")
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        unimplemented!("W5")
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The begin-of-sequence token, and whether the metadata asks for it before every prompt.
    pub fn bos(&self) -> Option<(u32, bool)> {
        unimplemented!("W5")
    }

    /// Tokens that end a generation (end of sequence, end of turn).
    pub fn ends(&self) -> &[u32] {
        unimplemented!("W5")
    }

    /// The text of ids, control tokens included; broken UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Bytes in, whole UTF-8 characters out.
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {}

impl Detokenizer {
    /// Adds a token's bytes and gives what is complete; never half a character.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let _ = bytes;
        unimplemented!("W5")
    }

    /// What is left at the end (broken bytes as U+FFFD).
    pub fn finish(&mut self) -> String {
        unimplemented!("W5")
    }
}

/// A message as chat templates see it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TemplateMessage {
    /// `system`, `user`, `assistant`, `tool`
    pub role: String,
    /// The text.
    pub content: String,
    /// The thought before an assistant's answer, for templates that keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
}

/// What a template is rendered with beside the messages.
#[derive(Clone, Debug, Default)]
pub struct TemplateContext {
    /// Ends with the opening of an assistant's turn.
    pub add_generation_prompt: bool,
    /// `bos_token`
    pub bos_token: String,
    /// `eos_token`
    pub eos_token: String,
    /// Further variables (`enable_thinking`, `tools`, …).
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// A compiled chat template (Jinja, as Hugging Face renders it).
pub struct ChatTemplate {}

impl ChatTemplate {
    /// Compiles a template's source.
    pub fn new(source: &str) -> Result<Self> {
        let _ = source;
        unimplemented!("W5")
    }

    /// From a checkpoint: `tokenizer.chat_template`, chat_template.jinja or tokenizer_config.json; `None` if it has none.
    pub fn from_metadata(metadata: &Metadata) -> Result<Option<Self>> {
        let _ = metadata;
        unimplemented!("W5")
    }

    /// The source, for searching it.
    pub fn source(&self) -> &str {
        unimplemented!("W5")
    }

    /// The rendered text.
    pub fn render(&self, messages: &[TemplateMessage], context: &TemplateContext) -> Result<String> {
        let _ = (messages, context);
        unimplemented!("W5")
    }

    /// Token ids of the rendered prompt. Marker literals inside messages are text, the template's own are
    /// control tokens; never a second BOS.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[TemplateMessage],
        context: &TemplateContext,
    ) -> Result<Vec<u32>> {
        let _ = (tokenizer, messages, context);
        unimplemented!("W5")
    }
}
