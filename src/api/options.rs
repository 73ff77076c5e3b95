//! What to generate from, and how.

use std::sync::Arc;
use std::time::Duration;

use super::CancelHandle;
use crate::SamplingOverrides;
use crate::reasoning::Think;
use crate::reasoning::control::ThoughtBounds;

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Role {
    System,
    User,
    Assistant,
}

impl Role {
    /// The word that chat templates use.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// The text; for an assistant the answer alone.
    pub content: String,
    /// The thought before an assistant's answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thought: Option<String>,
}

impl Message {
    /// A system message.
    pub fn system(content: impl Into<String>) -> Self {
        Message { role: Role::System, content: content.into(), thought: None }
    }

    /// A user's message.
    pub fn user(content: impl Into<String>) -> Self {
        Message { role: Role::User, content: content.into(), thought: None }
    }

    /// An assistant's answer.
    pub fn assistant(content: impl Into<String>) -> Self {
        Message { role: Role::Assistant, content: content.into(), thought: None }
    }
}

/// What a generation starts from.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Prompt {
    /// A conversation, rendered by the model's chat template.
    Messages(Vec<Message>),
    /// Text exactly as it is: no template, special tokens parsed, BOS only where the metadata asks for it.
    Raw(String),
    /// Token ids exactly as they are.
    Tokens(Vec<u32>),
}

impl Prompt {
    /// Text exactly as it is, without a template.
    pub fn raw(text: impl Into<String>) -> Self {
        Prompt::Raw(text.into())
    }
}

impl From<&str> for Prompt {
    /// One user's message.
    fn from(text: &str) -> Self {
        Prompt::Messages(vec![Message::user(text)])
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Prompt::Messages(vec![Message::user(text)])
    }
}

impl From<Vec<Message>> for Prompt {
    fn from(messages: Vec<Message>) -> Self {
        Prompt::Messages(messages)
    }
}

impl From<&[Message]> for Prompt {
    fn from(messages: &[Message]) -> Self {
        Prompt::Messages(messages.to_vec())
    }
}

/// Sees, and may edit, the logits before each token is chosen: (tokens generated so far, logits `[vocabulary]`). It must not generate
/// with the model that calls it: it would wait for its own end.
pub type LogitsHook = Arc<dyn Fn(&[u32], &mut [f32]) + Send + Sync>;

/// How to generate. What is not set comes from the model (its catalog entry or generation_config.json).
#[derive(Clone)]
#[non_exhaustive]
pub struct Options {
    /// Sampling parameters that differ from the model's own.
    pub sampling: SamplingOverrides,
    /// Bounds on the thought; a budget of 0 is `think: Off`. They do not go for raw prompts.
    pub thought: ThoughtBounds,
    /// Bound on generated tokens, thought and answer together; none: what the context holds. A quarter of it, at most
    /// 512, is kept for the answer.
    pub max_tokens: Option<usize>,
    /// Seed of the draws; none: random, and reported in [`Stats`](super::Stats).
    pub seed: Option<u64>,
    /// Whether to think; none: the model's default.
    pub think: Option<Think>,
    /// Further variables of the chat template: `reasoning_effort` of gpt-oss, `enable_thinking` of Qwen3.
    pub template: serde_json::Map<String, serde_json::Value>,
    /// Strings that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Sees and may edit the logits of each token.
    pub logits_hook: Option<LogitsHook>,
    /// Cancels the generation from another thread.
    pub cancel: Option<CancelHandle>,
    /// Whether a thought or an answer that repeats itself is stopped (on; never for raw prompts).
    pub loop_guard: bool,
    /// Whether what a [`Receipt`](super::Receipt) needs is kept in the [`Stats`](super::Stats) (off).
    pub record: bool,
    /// Whether tokens are drafted from the text so far and verified several at a time (on). Changes speed; on a CPU
    /// never a token.
    pub speculate: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            sampling: SamplingOverrides::default(),
            thought: ThoughtBounds::default(),
            max_tokens: None,
            seed: None,
            think: None,
            template: serde_json::Map::new(),
            stop: Vec::new(),
            logits_hook: None,
            cancel: None,
            loop_guard: true,
            record: false,
            speculate: true,
        }
    }
}

impl Options {
    /// The model's own defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sampling temperature; 0 is greedy.
    pub fn temperature(mut self, value: f32) -> Self {
        self.sampling.temperature = Some(value);
        self
    }

    /// Sampling parameters that differ from the model's own; what it leaves open stays as it was.
    pub fn sampling(mut self, sampling: SamplingOverrides) -> Self {
        self.sampling = sampling.or(self.sampling);
        self
    }

    /// Bound on generated tokens, thought and answer together.
    pub fn max_tokens(mut self, tokens: usize) -> Self {
        self.max_tokens = Some(tokens);
        self
    }

    /// Seed of the draws.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Whether to think.
    pub fn think(mut self, think: Think) -> Self {
        self.think = Some(think);
        self
    }

    /// Most tokens of the thought: near them its end is favoured, at them it is closed and the answer begins.
    pub fn think_budget(mut self, tokens: usize) -> Self {
        self.thought.budget = Some(tokens);
        self
    }

    /// Tokens before which the thought is not let end; for models whose end marker is a token.
    pub fn min_think(mut self, tokens: usize) -> Self {
        self.thought.min = Some(tokens);
        self
    }

    /// Longest time of the thought. What it cuts depends on the machine's speed.
    pub fn think_time(mut self, time: Duration) -> Self {
        self.thought.time = Some(time);
        self
    }

    /// Sets a variable of the chat template, such as gpt-oss's `reasoning_effort`.
    pub fn template_variable(mut self, name: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        self.template.insert(name.into(), value.into());
        self
    }

    /// Adds a string that ends the answer.
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.stop.push(text.into());
        self
    }

    /// Sees and may edit the logits of each token.
    pub fn logits_hook(mut self, hook: impl Fn(&[u32], &mut [f32]) + Send + Sync + 'static) -> Self {
        self.logits_hook = Some(Arc::new(hook));
        self
    }

    /// Whether a thought or an answer that repeats itself is stopped.
    pub fn loop_guard(mut self, guard: bool) -> Self {
        self.loop_guard = guard;
        self
    }

    /// Whether what a [`Receipt`](super::Receipt) needs is kept.
    pub fn record(mut self, record: bool) -> Self {
        self.record = record;
        self
    }

    /// Whether tokens are drafted from the text so far and verified several at a time.
    pub fn speculate(mut self, speculate: bool) -> Self {
        self.speculate = speculate;
        self
    }

    /// Cancels the generation from another thread.
    pub fn cancel(mut self, handle: &CancelHandle) -> Self {
        self.cancel = Some(handle.clone());
        self
    }
}
