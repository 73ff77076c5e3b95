//! The loop: read, do what was said, show.

mod saving;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crossterm::clipboard::CopyToClipboard;

use super::commands::{self, Command, Entry, THINK, THOUGHT, help, word};
use super::input::{Input, Line};
use super::set::{self, Setting};
use super::steer::{self, Ask, Pause, Reply};
use super::store::{Store, expand_home};
use super::turn::{Screen, count, duration, show};
use crate::api::Stats;
use crate::cli::args::Thought;
use crate::cli::interrupt::{EXIT_INTERRUPTED, Second};
use crate::cli::keyboard;
use crate::cli::render::{harmless, stdout_error};
use crate::cli::replay::check_place;
use crate::cli::text::read_file;
use crate::{CancelHandle, Error, Message, Options, Result, Role, Sampling, Think};

/// What the loop talks to: a chat with a model, or a script in tests.
pub(super) trait Talk {
    fn messages(&self) -> &[Message];
    fn set_messages(&mut self, messages: Vec<Message>);
    fn set_system(&mut self, system: Option<String>);
    fn clear(&mut self);
    fn undo(&mut self) -> Option<String>;
    fn ask(&mut self, text: String, options: &Options) -> Result<impl Reply>;
    fn regenerate(&mut self, options: &Options) -> Result<impl Reply>;
    /// Goes on with another model, whose sampling and thinking replace those of `options`.
    fn switch(&mut self, name: &str, options: &mut Options) -> Result<()>;
    /// Tokens of the messages that are in the KV cache, and their bytes.
    fn cached(&self, options: &Options) -> (usize, u64);
    fn save_cache(&self, options: &Options, path: &Path) -> Result<()>;
    fn load_cache(&mut self, path: &Path) -> Result<()>;
    fn write_receipt(&self, path: &Path, stats: &Stats) -> Result<()>;
    fn name(&self) -> &str;
    /// The model in some lines.
    fn describe(&self) -> String;
    fn sampling(&self) -> Sampling;
    fn think(&self) -> Think;
}

/// A conversation at the prompt.
pub(super) struct Repl<T, O, E> {
    talk: T,
    screen: Screen<O, E>,
    input: Input,
    options: Options,
    thought: Thought,
    store: Store,
    /// Files that go with the next message.
    attached: String,
    /// Names under which the chat was loaded or saved, the last one at the end.
    names: Vec<String>,
    last: Option<Stats>,
    /// Where the last answer's receipt goes.
    receipt: Option<PathBuf>,
    /// Holds a thought while $EDITOR has it.
    draft: PathBuf,
    /// A turn or a command failed.
    failed: bool,
}

impl<T: Talk, O: Write, E: Write> Repl<T, O, E> {
    pub(super) fn new(
        talk: T,
        screen: Screen<O, E>,
        input: Input,
        options: Options,
        thought: Thought,
        store: Store,
        draft: PathBuf,
    ) -> Self {
        Repl {
            talk,
            screen,
            input,
            options,
            thought,
            store,
            attached: String::new(),
            names: Vec::new(),
            last: None,
            receipt: None,
            draft,
            failed: false,
        }
    }

    /// Goes on with a saved chat; what of its settings is given in `first` stays so.
    ///
    /// # Errors
    /// There is no such chat, or the output cannot be written.
    pub(super) fn resume(&mut self, name: &str, first: &Options) -> Result<()> {
        let text = self.load(name.to_owned(), first).map_err(Error::Usage)?;
        self.screen.note(text.trim_end()).map_err(stdout_error)
    }

    /// Chats until the user leaves or the input ends.
    ///
    /// The exit code tells a script that feeds lines whether all of them were answered.
    pub(super) fn run(mut self) -> Result<ExitCode> {
        let mut cleared = false;
        loop {
            let line = self.input.next()?;
            let again = std::mem::replace(&mut cleared, line == Line::Cleared);
            let next = match line {
                Line::Text(text) => self.enter(&text),
                Line::Cleared if again => {
                    self.screen.note("use Ctrl-D or /bye to leave").map(|()| Next::Line)
                }
                Line::Cleared => Ok(Next::Line),
                // It comes while the prompt's line is open.
                Line::Trouble(text) => self.screen.aside(&format!("\n{text}\n")).map(|()| Next::Line),
                Line::End => Ok(Next::End),
            };
            match next.map_err(stdout_error)? {
                Next::Line => {}
                Next::End => break,
                Next::Interrupted => return Ok(ExitCode::from(EXIT_INTERRUPTED)),
            }
        }
        let interactive = self.screen.console.stdin_terminal;
        Ok(if self.failed && !interactive { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn enter(&mut self, text: &str) -> io::Result<Next> {
        match commands::parse(text) {
            Ok(Entry::Nothing) => Ok(Next::Line),
            Ok(Entry::Message(text)) => self.ask(text),
            Ok(Entry::Command(Command::Quit)) => Ok(Next::End),
            Ok(Entry::Command(Command::Regenerate)) => self.turn(None),
            Ok(Entry::Command(command)) => match self.command(command) {
                Ok(text) => self.screen.say(&text).map(|()| Next::Line),
                Err(trouble) => self.trouble(&trouble).map(|()| Next::Line),
            },
            Err(trouble) => self.trouble(&trouble).map(|()| Next::Line),
        }
    }

    fn ask(&mut self, text: String) -> io::Result<Next> {
        let attached = std::mem::take(&mut self.attached);
        let before = self.talk.messages().len();
        let next = self.turn(Some([&attached, text.as_str()].concat()));
        // A turn that came to nothing is not in the conversation: the files go with the next message.
        if self.talk.messages().len() == before && !attached.is_empty() {
            self.attached = attached;
            let lines = lines_go(&self.attached, " still");
            self.screen.note(&format!("{lines} (/undo drops them)"))?;
        }
        next
    }

    /// A turn: about a new message, or about the last one again.
    fn turn(&mut self, message: Option<String>) -> io::Result<Next> {
        let cancel = CancelHandle::new();
        self.options.cancel = Some(cancel.clone());
        let interactive = self.screen.console.stdin_terminal;
        let second = if interactive { Second::Waits } else { Second::Ends };
        let ask = (interactive && self.screen.rich).then(|| Box::new(steer::ask) as Ask);
        let mut pause = Pause::new(cancel.clone(), second, ask, self.draft.clone());
        let _quiet = self.screen.rich.then(keyboard::quiet);
        let (view, most) = (self.thought, self.options.max_tokens);
        let shown = match message {
            Some(text) => self
                .talk
                .ask(text, &self.options)
                .map(|turn| show(turn, view, most, &mut pause, &mut self.screen)),
            None => self
                .talk
                .regenerate(&self.options)
                .map(|turn| show(turn, view, most, &mut pause, &mut self.screen)),
        };
        let result = match shown {
            Ok(shown) => shown?,
            Err(error) => Err(error),
        };
        match result {
            Ok(_) if pause.dropped => {}
            Ok(stats) => {
                let receipt = self.receipt.as_deref();
                let written = receipt.map_or(Ok(()), |path| self.talk.write_receipt(path, &stats));
                self.last = Some(stats);
                if let Err(error) = written {
                    self.trouble(&error.to_string())?;
                }
            }
            Err(error) => self.trouble(&error.to_string())?,
        }
        if interactive {
            self.screen.say("\n")?;
        } else if cancel.is_cancelled() {
            return Ok(Next::Interrupted);
        }
        Ok(Next::Line)
    }

    fn trouble(&mut self, text: &str) -> io::Result<()> {
        self.failed = true;
        self.screen.say(&format!("{}\n", harmless(text)))
    }

    /// Does what a command says; gives what there is to say about it.
    fn command(&mut self, command: Command) -> Result<String, String> {
        match command {
            Command::Help => Ok(help()),
            Command::Clear => Ok(self.clear()),
            Command::Undo => self.undo(),
            Command::System(text) => Ok(self.system(text)),
            Command::Set(what) => self.set(what),
            Command::Read(file) => self.read(&file),
            Command::Thought(view) => self.thought(view),
            Command::Think(think) => Ok(self.think(think)),
            Command::Save { name, with_cache, force } => self.save(name, with_cache, force),
            Command::Load(None) => self.list(),
            Command::Load(Some(name)) => self.load(name, &Options::new()),
            Command::Remove(name) => self.remove(&name),
            Command::Receipt(file) => self.receipt(file),
            Command::Copy => self.copy(),
            Command::Stats => self.last.as_ref().map(stats).ok_or("there was no answer yet".into()),
            Command::Model(None) => Ok(self.talk.describe()),
            Command::Model(Some(name)) => self.model(&name),
            Command::Regenerate | Command::Quit => Ok(String::new()),
        }
    }

    fn clear(&mut self) -> String {
        self.talk.clear();
        self.attached.clear();
        self.names.clear();
        self.last = None;
        "the conversation is forgotten\n".into()
    }

    /// Takes back what was said last: the files for the next message, else the last message.
    fn undo(&mut self) -> Result<String, String> {
        if !self.attached.is_empty() {
            self.attached.clear();
            return Ok("taken back: what /read put before the next message\n".into());
        }
        let text = self.talk.undo().ok_or("there is no message to take back")?;
        self.last = None;
        Ok(format!("taken back: {}\n", first_line(&text)))
    }

    fn system(&mut self, text: Option<String>) -> String {
        match text {
            None => match self.talk.messages().first().filter(|m| m.role == Role::System) {
                Some(message) => format!("{}\n", message.content),
                None => "there is no system message: /system TEXT sets one\n".into(),
            },
            Some(text) if text.is_empty() => {
                self.talk.set_system(None);
                "the system message is removed\n".into()
            }
            Some(text) => {
                self.talk.set_system(Some(text));
                "the system message is set\n".into()
            }
        }
    }

    fn set(&mut self, what: Option<(String, Option<String>)>) -> Result<String, String> {
        let model = self.talk.sampling();
        let Some((name, value)) = what else { return Ok(set::table(&self.options, &model)) };
        let setting = Setting::find(&name)?;
        if let Some(value) = value {
            setting.set(&mut self.options, &value)?;
        }
        Ok(format!("{} {}\n", setting.name(), setting.get(&self.options, &model)))
    }

    fn read(&mut self, file: &str) -> Result<String, String> {
        let file = file.strip_prefix('"').and_then(|f| f.strip_suffix('"')).unwrap_or(file);
        let text = read_file(&expand_home(file)).map_err(|e| e.to_string())?;
        let text = text.trim_end();
        if text.is_empty() {
            return Err(format!("{file}: is empty"));
        }
        self.attached.push_str(text);
        self.attached.push_str("\n\n");
        Ok(format!("{file}: {}\n", lines_go(text, "")))
    }

    fn thought(&mut self, view: Option<Thought>) -> Result<String, String> {
        match view {
            Some(view) => {
                self.thought = view;
                Ok(format!("thoughts: {}\n", word(&THOUGHT, view)))
            }
            None => match self.answer().and_then(|answer| answer.thought.as_deref()) {
                Some(thought) => Ok(format!("{}\n", harmless(thought))),
                None => Err(format!("there was no thought yet (thoughts: {})", word(&THOUGHT, self.thought))),
            },
        }
    }

    fn think(&mut self, think: Option<Think>) -> String {
        self.options.think = think.or(self.options.think);
        let think = self.options.think.unwrap_or(self.talk.think());
        format!("thinking: {}\n", word(&THINK, think))
    }

    fn receipt(&mut self, file: Option<String>) -> Result<String, String> {
        let path = file.map(|file| expand_home(&file));
        path.as_deref().map_or(Ok(()), check_place).map_err(|e| e.to_string())?;
        self.receipt = path;
        self.options.record = self.receipt.is_some();
        Ok(match &self.receipt {
            Some(path) => format!("{} holds the last answer's receipt from now on\n", path.display()),
            None => "no receipts are written\n".into(),
        })
    }

    /// The last answer.
    fn answer(&self) -> Option<&Message> {
        self.talk.messages().iter().rfind(|m| m.role == Role::Assistant)
    }

    fn copy(&mut self) -> Result<String, String> {
        let answer = self.answer().map(|m| m.content.clone()).filter(|text| !text.is_empty());
        let answer = answer.ok_or("there is no answer to copy yet")?;
        if !self.screen.rich {
            return Err("/copy needs a terminal".into());
        }
        crossterm::execute!(self.screen.out, CopyToClipboard::to_clipboard_from(&answer))
            .map_err(|e| format!("the terminal did not take it: {e}"))?;
        Ok("copied, if the terminal allows it (OSC 52)\n".into())
    }

    fn model(&mut self, name: &str) -> Result<String, String> {
        self.talk.switch(name, &mut self.options).map_err(|e| e.to_string())?;
        self.last = None;
        Ok(format!("this is {} now; sampling and thinking are its own\n", self.talk.name()))
    }
}

/// What comes after a line.
enum Next {
    Line,
    End,
    Interrupted,
}

/// "2 lines go with the next message".
fn lines_go(text: &str, still: &str) -> String {
    let lines = text.trim_end().lines().count();
    let go = if lines == 1 { "goes" } else { "go" };
    format!("{}{still} {go} with the next message", count(lines, "line"))
}

/// The start of a text, for a line that recalls it.
fn first_line(text: &str) -> String {
    const MOST: usize = 60;
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None if line.len() < text.len() => format!("{line} …"),
        None => line.to_owned(),
    }
}

/// The text of /stats.
fn stats(stats: &Stats) -> String {
    let used = stats.prompt_tokens + stats.tokens.len();
    let share = 100.0 * used as f64 / stats.context.max(1) as f64;
    format!(
        "  prompt   {} ({} still in the cache), {:.1} tokens/s\n  thought  {}\n  answer   {}\n  speed    {:.1} tokens/s, {}\n  context  {used} of {} tokens ({share:.0}%)\n  seed     {}\n",
        count(stats.prompt_tokens, "token"),
        stats.cached_tokens,
        stats.prefill_tokens_per_second(),
        count(stats.thought_tokens, "token"),
        count(stats.answer_tokens, "token"),
        stats.decode_tokens_per_second(),
        duration(stats.seconds.prefill + stats.seconds.decode),
        stats.context,
        stats.seed,
    )
}

#[cfg(test)]
mod tests;
