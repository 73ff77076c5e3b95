//! /save, /load and /rm.

use std::io::Write;
use std::time::SystemTime;

use super::super::set;
use super::super::store::{Over, Saved, cache_path, is_cache};
use super::super::turn::count;
use super::{Repl, Talk, first_line};
use crate::cli::list::{date, timestamp};
use crate::cli::render::{bytes, harmless, table};
use crate::cli::settings::lasting_name;
use crate::{Options, Role};

impl<T: Talk, O: Write, E: Write> Repl<T, O, E> {
    /// Saves the conversation; with its keys and values, or over another chat, only if asked.
    pub(super) fn save(
        &mut self,
        name: Option<String>,
        with_cache: bool,
        force: bool,
    ) -> Result<String, String> {
        let name = name.or_else(|| self.names.last().cloned()).ok_or("/save NAME: give the chat a name")?;
        let saved = Saved {
            model: lasting_name(self.talk.name()),
            settings: Some(set::changed(&self.options)),
            messages: self.talk.messages().to_vec(),
        };
        let over = if force || self.names.contains(&name) { Over::AChat } else { Over::Nothing };
        let path = self.store.save(&name, &saved, with_cache, over).map_err(|e| e.to_string())?;
        self.names.retain(|other| *other != name);
        self.names.push(name);
        let mut text = format!("saved to {}\n", path.display());
        let cache = cache_path(&path);
        let (tokens, size) = if with_cache { self.talk.cached(&self.options) } else { (0, 0) };
        if tokens > 0 {
            let what = format!("keys and values of {}, {}\n", count(tokens, "token"), bytes(size));
            self.screen.say(&what).map_err(|e| e.to_string())?;
            self.talk.save_cache(&self.options, &cache).map_err(|e| e.to_string())?;
            text.push_str(&format!("and to {}\n", cache.display()));
            return Ok(text);
        }
        if with_cache {
            text.push_str("no keys and values belong to these messages yet\n");
        }
        // one of an earlier save is not this conversation's
        if is_cache(&cache) && std::fs::remove_file(&cache).is_ok() {
            text.push_str(&format!("removed the older {}: --kv saves a new one\n", cache.display()));
        }
        Ok(text)
    }

    /// The saved conversations.
    pub(super) fn list(&self) -> Result<String, String> {
        let chats = self.store.list();
        if chats.is_empty() {
            return Err("no chat is saved yet: /save NAME saves this one".into());
        }
        let line = |(name, time, chat): (String, Option<SystemTime>, _)| {
            let date = time.and_then(timestamp).map_or_else(|| "-".into(), date);
            match chat {
                Ok(Saved { model, messages, .. }) => {
                    vec![format!("  {name}"), date, count(messages.len(), "message"), model]
                }
                Err(_) => vec![format!("  {name}"), date, "damaged".into()],
            }
        };
        let lines: Vec<_> = chats.into_iter().map(line).collect();
        Ok(harmless(&table(&lines)).into_owned())
    }

    /// Deletes a saved conversation.
    pub(super) fn remove(&self, name: &str) -> Result<String, String> {
        let path = self.store.remove(name).map_err(|e| e.to_string())?;
        Ok(format!("deleted {}\n", path.display()))
    }

    /// Goes on with a saved conversation and its settings; those given in `first` go before them.
    pub(super) fn load(&mut self, name: String, first: &Options) -> Result<String, String> {
        let (path, saved) = self.store.load(&name).map_err(|e| e.to_string())?;
        let said = saved.messages.iter().rfind(|m| m.role == Role::User).map(|m| first_line(&m.content));
        let mut text = format!("loaded {name}: {}", count(saved.messages.len(), "message"));
        if let Some(said) = said {
            text.push_str(&format!(", you last said: {said}"));
        }
        text.push('\n');
        let now = lasting_name(self.talk.name());
        if saved.model != now {
            let then = &saved.model;
            text.push_str(&format!("it was held with {then}; this is {now}, whose settings stay\n"));
        } else if let Some(settings) = &saved.settings
            && let Err(why) = set::restore(&mut self.options, settings, first)
        {
            text.push_str(&format!("{why}: the settings stay as they are\n"));
        }
        self.talk.set_messages(saved.messages);
        let cache = cache_path(&path);
        if cache.exists() {
            text.push_str(&match self.talk.load_cache(&cache) {
                Ok(()) => format!(
                    "with the keys and values of {}\n",
                    count(self.talk.cached(&self.options).0, "token")
                ),
                Err(error) => format!("{error}: keys and values are computed anew\n"),
            });
        }
        self.attached.clear();
        self.names = vec![name];
        self.last = None;
        Ok(harmless(&text).into_owned())
    }
}
