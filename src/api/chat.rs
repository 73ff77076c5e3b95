//! A conversation: a thin history over [`Model::generate`].

use std::io::{self, Read, Write};

use super::start::{Slot, Start, lock};
use super::{CancelHandle, Event, Generation, Message, Model, Options, Role, Stats};
use crate::engine::{Engine, Sequence};
use crate::{Error, Result};

/// A conversation. Keeps the messages, and the KV cache of what turns have in common.
pub struct Chat {
    model: Model,
    messages: Vec<Message>,
    /// How many of the oldest messages (after the system's) are no longer in the context.
    forgotten: usize,
    /// How often the last message was replied to before: other draws of the same seed.
    attempts: u64,
    slot: Slot,
}

impl Model {
    /// A conversation with this model.
    pub fn chat(&self) -> Chat {
        Chat::new(self.clone())
    }
}

impl Chat {
    pub(super) fn new(model: Model) -> Self {
        Chat { model, messages: Vec::new(), forgotten: 0, attempts: 0, slot: Slot::default() }
    }

    /// The model it talks to.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The messages so far, the system message first if there is one.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Replaces the messages (a loaded conversation).
    pub fn set_messages(&mut self, messages: Vec<Message>) {
        self.messages = messages;
        self.forgotten = 0;
    }

    /// Sets or removes the system message.
    pub fn set_system(&mut self, system: Option<String>) {
        self.messages.drain(..self.system_len());
        if let Some(text) = system {
            self.messages.insert(0, Message::system(text));
        }
    }

    /// Moves the conversation to another model.
    pub fn set_model(&mut self, model: Model) {
        self.model = model;
        self.slot = Slot::default(); // the cache was the other model's
        self.forgotten = 0;
    }

    /// Tokens whose keys and values [`save_cache`](Self::save_cache) writes, and about how many bytes.
    pub fn cached(&self, options: &Options) -> (usize, u64) {
        let tokens = self.kept(options).len();
        (tokens, (tokens * self.model.inner.kv_bytes) as u64)
    }

    /// Writes keys and values of the messages as they are, under a hash ([`Engine::save`]): as far as they were computed
    /// and the next prompt with these options begins with them. Nothing is in it of what was said and is no longer there.
    ///
    /// ```
    /// # #[cfg(feature = "pocket")]
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use pensive::{Model, Options};
    ///
    /// let (model, options) = (Model::load("pocket")?, Options::new().temperature(0.0));
    /// let mut chat = model.chat();
    /// chat.ask("What is 12 + 30?", &options)?.finish()?;
    /// let (messages, mut cache) = (chat.messages().to_vec(), Vec::new());
    /// chat.save_cache(&options, &mut cache)?;
    ///
    /// // later, or in another process with the same model
    /// let mut chat = model.chat();
    /// chat.set_messages(messages);
    /// chat.load_cache(&cache[..])?;
    /// let stats = chat.ask("What is 5 + 6?", &options)?.finish()?;
    /// assert!(stats.cached_tokens > 0 && stats.answer.contains("11"));
    /// # Ok(())
    /// # }
    /// # #[cfg(not(feature = "pocket"))]
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    /// What `to` says.
    pub fn save_cache(&self, options: &Options, to: impl Write) -> io::Result<()> {
        let kept = self.kept(options);
        self.model.inner.engine.lock().save(&kept, to)
    }

    /// What of the cache belongs to the messages.
    fn kept(&self, options: &Options) -> Sequence {
        // a template begins also where there is no message
        let start = self.messages.first().map(|_| self.start(self.forgotten, options));
        let prompt = start.and_then(Result::ok).map(|start| start.prompt).unwrap_or_default();
        let slot = lock(&self.slot);
        slot.as_ref().map_or_else(Sequence::new, |all| all.fork(all.common_prefix(&prompt)))
    }

    /// Takes back what [`save_cache`](Self::save_cache) wrote; what follows is equal to the bit. Without it, or where the
    /// messages differ, keys and values are computed anew.
    ///
    /// # Errors
    /// As [`Engine::restore_over`]: the present keys and values are kept as far as there is room for both.
    pub fn load_cache(&mut self, from: impl Read) -> Result<()> {
        let mut slot = lock(&self.slot);
        self.model.inner.engine.lock().restore_over(slot.get_or_insert_default(), from)
    }

    /// Whether it begins as what [`save_cache`](Self::save_cache) writes, in this or another version.
    ///
    /// # Errors
    /// What `from` says.
    pub fn is_cache(from: impl Read) -> io::Result<bool> {
        Engine::is_saved(from)
    }

    /// Forgets all but the system message.
    pub fn clear(&mut self) {
        self.messages.truncate(self.system_len());
        self.forgotten = 0;
    }

    /// Takes the last turn (user and assistant) back; gives the user's text.
    pub fn undo(&mut self) -> Option<String> {
        let at = self.messages.iter().rposition(|m| m.role == Role::User)?;
        let text = self.messages[at].content.clone();
        self.messages.truncate(at);
        self.forgotten = self.forgotten.min(at - self.system_len());
        Some(text)
    }

    /// Says `text` and streams the reply; what of it was generated enters the history, also when the turn is
    /// dropped early.
    ///
    /// # Errors
    /// As [`Model::generate`]; the history is then as before.
    pub fn ask(&mut self, text: impl Into<String>, options: &Options) -> Result<Turn<'_>> {
        self.attempts = 0;
        let before = Before { messages: self.messages.len(), reply: Vec::new(), forgotten: self.forgotten };
        self.messages.push(Message::user(text));
        self.turn(before, options)
    }

    /// Replies to the last user's message anew, with other draws of the seed. Until something of the new reply is
    /// there the old one is kept.
    ///
    /// # Errors
    /// [`Error::Usage`] where there is no such message; as [`Model::generate`]. The history is then as before.
    pub fn regenerate(&mut self, options: &Options) -> Result<Turn<'_>> {
        let last = self.messages.iter().rposition(|m| m.role == Role::User);
        let Some(at) = last else { return Err(Error::Usage("there is no message to reply to yet".into())) };
        let reply = self.messages.split_off(at + 1);
        let before = Before { messages: at + 1, reply, forgotten: self.forgotten };
        self.attempts += 1;
        self.turn(before, options)
    }

    fn turn(&mut self, before: Before, options: &Options) -> Result<Turn<'_>> {
        match self.reply(options) {
            Ok((generation, forgotten)) => {
                Ok(Turn { chat: self, generation, forgotten, before, discarded: false })
            }
            Err(error) => {
                self.go_back(before);
                Err(error)
            }
        }
    }

    /// Puts the conversation back as it was before a turn.
    fn go_back(&mut self, before: Before) {
        self.messages.truncate(before.messages);
        self.messages.extend(before.reply);
        self.forgotten = before.forgotten;
    }

    /// Starts the reply to the messages; oldest turns go if the prompt leaves no room for an answer.
    fn reply(&mut self, options: &Options) -> Result<(Generation, usize)> {
        let context = self.model.context();
        // room for an answer: 512 tokens, or a quarter of a small context
        let most = context - (context / 4).min(512);
        let mut turns = 0;
        let mut start = self.start(self.forgotten, options)?;
        if start.prompt.len() > most {
            let later = self.later_turns();
            // a quarter more than need be, so that what is cached stays the prompt's beginning for some turns; if that left
            // the last message alone, then only what must go
            let mut first = self.first_within(most / 4 * 3, &later, options)?;
            if first + 1 == later.len() {
                first = self.first_within(most, &later, options)?;
            }
            if let Some(&forgotten) = later.get(first) {
                (self.forgotten, turns) = (forgotten, first + 1);
                start = self.start(forgotten, options)?;
            }
        }
        start.sequence = self.attempts;
        Ok((self.model.begin(start, options, self.slot.clone())?, turns))
    }

    /// The first of `later` from which on the conversation makes a prompt of at most `most` tokens; the last if there is none.
    fn first_within(&self, most: usize, later: &[usize], options: &Options) -> Result<usize> {
        let (mut low, mut high) = (0, later.len().saturating_sub(1));
        while low < high {
            let middle = (low + high) / 2;
            if self.start(later[middle], options)?.prompt.len() > most {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// What a reply starts from without the oldest `forgotten` messages.
    fn start(&self, forgotten: usize, options: &Options) -> Result<Start> {
        let (system, rest) = self.messages.split_at(self.system_len());
        self.model.start(&[system, &rest[forgotten..]].concat().into(), options)
    }

    /// Where the turns in the context begin but for the first, without the system's message.
    fn later_turns(&self) -> Vec<usize> {
        let messages = &self.messages[self.system_len()..];
        (self.forgotten + 1..messages.len()).filter(|&at| messages[at].role == Role::User).collect()
    }

    fn system_len(&self) -> usize {
        usize::from(self.messages.first().is_some_and(|m| m.role == Role::System))
    }
}

/// A reply in the making.
pub struct Turn<'a> {
    chat: &'a mut Chat,
    generation: Generation,
    forgotten: usize,
    before: Before,
    discarded: bool,
}

/// What a conversation was before a turn.
#[derive(Default)]
struct Before {
    /// How many messages stay, and the reply that followed them.
    messages: usize,
    reply: Vec<Message>,
    forgotten: usize,
}

impl Turn<'_> {
    /// The generation of this reply.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// The generation of this reply, to steer it.
    pub fn generation_mut(&mut self) -> &mut Generation {
        &mut self.generation
    }

    /// Runs to the end without a look at the events.
    ///
    /// # Errors
    /// Of the first step that fails; what was generated before enters the history.
    pub fn finish(mut self) -> Result<Stats> {
        self.try_for_each(|event| event.map(drop))?;
        Ok(self.generation.stats())
    }

    /// A handle that cancels this reply.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.generation.cancel_handle()
    }

    /// Takes the turn back: once it is dropped the conversation is as it was before, with the old reply where this one
    /// was to replace it.
    pub fn discard(&mut self) {
        self.discarded = true;
    }
}

impl Iterator for Turn<'_> {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.forgotten > 0 {
            return Some(Ok(Event::Forgotten { turns: std::mem::take(&mut self.forgotten) }));
        }
        self.generation.next()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let stats = self.generation.stats();
        // a question without any reply is no turn
        if self.discarded || stats.thought.is_empty() && stats.answer.is_empty() {
            return self.chat.go_back(std::mem::take(&mut self.before));
        }
        let thought = Some(stats.thought).filter(|t| !t.is_empty());
        self.chat.messages.push(Message { thought, ..Message::assistant(stats.answer) });
    }
}
