//! What a generation starts from: a prompt and options become tokens, bounds and a seed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::record::Opening;
use super::{Message, Model, Options, Prompt};
use crate::Sampling;
use crate::engine::Sequence;
use crate::reasoning::{Part, Think, ThoughtParser};
use crate::text::{Special, TemplateContext, TemplateMessage};
use crate::{Error, Result};

/// Where a finished generation leaves its sequence, for the next one that shares a prefix.
pub(super) type Slot = Arc<Mutex<Option<Sequence>>>;

/// What a generation starts from, all resolved.
#[derive(Clone)]
pub(super) struct Start {
    pub prompt: Vec<u32>,
    pub parser: ThoughtParser,
    /// What the text begins as.
    pub opening: Opening,
    pub sampling: Sampling,
    pub seed: u64,
    /// Number of the sequence among those of the seed.
    pub sequence: u64,
    pub slot: Slot,
}

impl Model {
    /// Token ids of a prompt as [`generate`](Self::generate) feeds them.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn encode(&self, prompt: impl Into<Prompt>, options: &Options) -> Result<Vec<u32>> {
        Ok(self.start(&prompt.into(), options)?.prompt)
    }

    /// Resolves prompt and options.
    pub(super) fn start(&self, prompt: &Prompt, options: &Options) -> Result<Start> {
        let sampling = options.sampling.over(self.sampling());
        sampling.check()?;
        let think = match options.thought.budget {
            Some(0) => Think::Off,
            _ => options.think.unwrap_or(self.think()),
        };
        let (tokens, parser) = match prompt {
            Prompt::Messages(messages) => self.render(messages, think, &options.template)?,
            Prompt::Raw(text) => (self.encode_raw(text)?, ThoughtParser::verbatim()),
            Prompt::Tokens(tokens) => (tokens.clone(), ThoughtParser::verbatim()),
        };
        let seed = options.seed.unwrap_or_else(random_seed);
        let opening = match (prompt, parser.part()) {
            (Prompt::Raw(_) | Prompt::Tokens(_), _) => Opening::Raw,
            (_, Part::Thought) => Opening::Thought,
            _ if parser.has_thought() => Opening::Answer,
            _ => Opening::Open,
        };
        Ok(Start { prompt: tokens, parser, opening, sampling, seed, sequence: 0, slot: Slot::default() })
    }

    /// Whether there is room for what `start` asks for.
    pub(super) fn check(&self, start: &Start, options: &Options) -> Result<()> {
        if start.prompt.is_empty() {
            return Err(Error::Usage("the prompt is empty".into()));
        }
        if start.prompt.len() >= self.context() {
            return Err(Error::Context { prompt: start.prompt.len(), context: self.context() });
        }
        if options.thought.min.is_some() && self.inner.control_tokens.markers[1].is_none() {
            let end = self.markers().end_token();
            return Err(Error::Unsupported(format!("min-think: `{end}` is no token of {}", self.name())));
        }
        let (room, least) = (self.context() - start.prompt.len(), self.inner.control_tokens.least_limit());
        let limit = options.max_tokens.map_or(room, |most| most.min(room));
        if start.parser.part() == Part::Thought && limit < least {
            return Err(Error::Room { room: limit, least, of_context: limit == room });
        }
        Ok(())
    }

    /// The conversation as tokens, and the parser of what follows.
    fn render(
        &self,
        messages: &[Message],
        think: Think,
        variables: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<(Vec<u32>, ThoughtParser)> {
        let (tokenizer, markers) = (self.tokenizer(), self.markers());
        let template = self.inner.template.as_ref().ok_or_else(|| {
            Error::Unsupported(format!("{} has no chat template: give it a raw prompt (--raw)", self.name()))
        })?;
        let messages: Vec<TemplateMessage> = messages
            .iter()
            .map(|m| TemplateMessage {
                role: m.role.as_str().to_owned(),
                content: m.content.clone(),
                reasoning_content: m.thought.clone(),
            })
            .collect();
        let mut context = TemplateContext::new(tokenizer);
        if think != Think::Auto {
            // the switches of Qwen3's and of DeepSeek-V3.1's templates
            for key in ["enable_thinking", "thinking"] {
                context.extra.insert(key.into(), (think == Think::On).into());
            }
        }
        context.extra.extend(variables.clone());
        let mut tokens = template.encode(tokenizer, &messages, &context)?;
        const TAIL: usize = 32; // more than the longest marker has tokens
        let tail = tokenizer.decode(&tokens[tokens.len().saturating_sub(TAIL)..]);
        let suffix = think.suffix(&tail, markers);
        tokens.extend(tokenizer.encode(&suffix, Special::Parse)?);
        let tail = tail + &suffix;
        let parser = if markers.opens_answer(&tail) {
            ThoughtParser::answering(markers.clone())
        } else {
            ThoughtParser::new(markers.clone(), markers.opens_thought(&tail))
        };
        Ok((tokens, parser))
    }

    fn encode_raw(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens = self.tokenizer().encode(text, Special::Parse)?;
        if let Some((bos, true)) = self.tokenizer().bos()
            && tokens.first() != Some(&bos)
        {
            tokens.insert(0, bos);
        }
        Ok(tokens)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn random_seed() -> u64 {
    // 53 bits, so that a JSON reader that knows only doubles keeps it exact
    getrandom::u64()
        .unwrap_or_else(|_| std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64))
        >> 11
}
