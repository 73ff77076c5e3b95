//! A conversation: a thin history over [`Model::generate`].

use super::{CancelHandle, Event, Message, Model, Options};
use crate::Result;

/// A conversation. Keeps the messages, and the KV cache of what turns have in common.
pub struct Chat {}

impl Chat {
    /// The model it talks to.
    pub fn model(&self) -> &Model {
        unimplemented!("W8")
    }

    /// The messages so far, the system message first if there is one.
    pub fn messages(&self) -> &[Message] {
        unimplemented!("W8")
    }

    /// Replaces the messages (a loaded conversation).
    pub fn set_messages(&mut self, messages: Vec<Message>) {
        let _ = messages;
        unimplemented!("W8")
    }

    /// Sets or removes the system message.
    pub fn set_system(&mut self, system: Option<String>) {
        let _ = system;
        unimplemented!("W8")
    }

    /// Moves the conversation to another model.
    pub fn set_model(&mut self, model: Model) {
        let _ = model;
        unimplemented!("W8")
    }

    /// Forgets all but the system message.
    pub fn clear(&mut self) {
        unimplemented!("W8")
    }

    /// Takes the last turn (user and assistant) back; gives the user's text.
    pub fn undo(&mut self) -> Option<String> {
        unimplemented!("W8")
    }

    /// Says `text` and streams the reply; what of it was generated enters the history, also when the turn is dropped early.
    pub fn ask(&mut self, text: impl Into<String>, options: &Options) -> Result<Turn<'_>> {
        let _ = (text.into(), options);
        unimplemented!("W8")
    }

    /// Replies to the last user's message anew.
    ///
    /// # Errors
    /// [`Error::Usage`](crate::Error::Usage) where there is none.
    pub fn regenerate(&mut self, options: &Options) -> Result<Turn<'_>> {
        let _ = options;
        unimplemented!("W8")
    }
}

/// A reply in the making.
pub struct Turn<'a> {
    #[allow(dead_code)]
    chat: &'a mut Chat,
}

impl Turn<'_> {
    /// A handle that cancels this reply.
    pub fn cancel_handle(&self) -> CancelHandle {
        unimplemented!("W8")
    }
}

impl Iterator for Turn<'_> {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        unimplemented!("W8")
    }
}
