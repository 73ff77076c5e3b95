//! `pensive chat`: a conversation in the terminal.

mod commands;
mod complete;
mod input;
mod live;
mod repl;
mod set;
mod steer;
mod store;
mod turn;

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use input::{Editor, Input};
use live::Size;
use repl::{Repl, Talk};
use steer::Reply;
use store::{Store, write_whole};
use turn::Screen;

use super::args::Thought;
use super::interrupt;
use super::render::{Console, knows_escape_codes, stdout_error};
use super::replay;
use super::session;
use super::settings::{Origin, Settings};
use crate::api::Chat;
use crate::{Error, Message, Options, Result, Sampling, Stats, Think};

/// Goes on with a saved chat, and with its model where none is named.
///
/// # Errors
/// There is no such chat; as [`run`].
pub fn resume(settings: &Settings, name: &str, console: &Console) -> Result<ExitCode> {
    let (_, saved) = store(settings).load(name)?;
    let settings = match settings.flags.model {
        Some(_) => settings.clone(),
        None => settings.with_model(&saved.model, Origin::SavedChat)?,
    };
    run(&settings, Some(name), console)
}

fn store(settings: &Settings) -> Store {
    Store::new(settings.paths.data.join("chats"))
}

/// Chats until the user leaves or the input ends; goes on with a saved chat, if one is named.
///
/// # Errors
/// The model cannot be loaded, the input read, or the output written.
pub fn run(settings: &Settings, saved: Option<&str>, console: &Console) -> Result<ExitCode> {
    let model = session::load(settings, console).map_err(|error| whose(error, settings))?;
    let store = store(settings);
    let mut chat = model.chat();
    chat.set_system(settings.system.as_ref().map(|s| s.value.clone()));
    let mut screen = Screen {
        rich: console.stdin_terminal && console.stdout_terminal && knows_escape_codes(),
        console: *console,
        out: io::stdout(),
        err: io::stderr(),
        size: Size::of_terminal,
    };
    if console.stdin_terminal {
        let welcome = format!(
            "{}, context {} tokens: /? lists the commands, Ctrl-D leaves",
            model.name(),
            model.context()
        );
        screen.note(&welcome).map_err(stdout_error)?;
    }
    let input = if screen.rich && console.stderr_terminal {
        let (editor, trouble) = Editor::new(settings.paths.state.clone(), store.clone(), console.color);
        if let Some(trouble) = trouble {
            screen.note(&trouble).map_err(stdout_error)?;
        }
        Input::Editor(Box::new(editor))
    } else {
        Input::Lines { reader: Box::new(BufReader::new(io::stdin())), prompt: console.stdin_terminal }
    };
    let thought = match settings.thought.as_ref().map(|t| t.value) {
        Some(Thought::Show | Thought::Stdout) => Thought::Show,
        Some(Thought::Hide) => Thought::Hide,
        Some(Thought::Fold) | None => Thought::Fold,
    };
    let talk = ModelChat { chat, settings: settings.clone(), console: *console };
    let draft = settings.paths.state.join("thought.md");
    let mut repl = Repl::new(talk, screen, input, settings.options(), thought, store, draft);
    if let Some(name) = saved {
        repl.resume(name, &settings.flag_options())?;
    }
    repl.run()
}

/// Says where the name of a model that does not load comes from, if it was not typed.
fn whose(error: Error, settings: &Settings) -> Error {
    if interrupt::caught() {
        return error;
    }
    let from = match settings.model.as_ref().map(|model| &model.origin) {
        Some(Origin::SavedChat) => "the model of the saved chat".to_owned(),
        Some(Origin::LastUsed) => "the model used last".to_owned(),
        Some(Origin::Variable(name)) => format!("the model of {name}"),
        Some(Origin::Config) => format!("the model of {}", settings.paths.config.display()),
        _ => return error,
    };
    let is_saved = settings.model.as_ref().is_some_and(|model| model.origin == Origin::SavedChat);
    let load = if is_saved { " --load NAME" } else { "" };
    let hint = format!(" ({from}; name another: `pensive chat MODEL{load}`)");
    match error {
        Error::Usage(what) => Error::Usage(what + &hint),
        Error::File { path, what } => Error::File { path, what: what + &hint },
        Error::Io { path, source } => Error::File { path, what: source.to_string() + &hint },
        Error::Hub(what) => Error::Hub(what + &hint),
        Error::Unsupported(what) => Error::Unsupported(what + &hint),
        Error::Memory(what) => Error::Memory(what + &hint),
        other => other,
    }
}

/// A conversation with a loaded model.
struct ModelChat {
    chat: Chat,
    settings: Settings,
    console: Console,
}

impl Talk for ModelChat {
    fn messages(&self) -> &[Message] {
        self.chat.messages()
    }

    fn set_messages(&mut self, messages: Vec<Message>) {
        self.chat.set_messages(messages);
    }

    fn set_system(&mut self, system: Option<String>) {
        self.chat.set_system(system);
    }

    fn clear(&mut self) {
        self.chat.clear();
    }

    fn undo(&mut self) -> Option<String> {
        self.chat.undo()
    }

    fn ask(&mut self, text: String, options: &Options) -> Result<impl Reply> {
        self.chat.ask(text, options)
    }

    fn regenerate(&mut self, options: &Options) -> Result<impl Reply> {
        self.chat.regenerate(options)
    }

    fn switch(&mut self, name: &str, options: &mut Options) -> Result<()> {
        let settings = self.settings.with_model(name, Origin::Flag)?;
        self.chat.set_model(session::load(&settings, &self.console)?);
        if let Some(system) = &settings.system {
            self.chat.set_system(Some(system.value.clone()));
        }
        // Sampling and thinking go with a model; bounds and seed are the user's.
        options.sampling = settings.sampling();
        options.think = settings.think.as_ref().map(|t| t.value);
        self.settings = settings;
        Ok(())
    }

    fn cached(&self, options: &Options) -> (usize, u64) {
        self.chat.cached(options)
    }

    fn save_cache(&self, options: &Options, path: &Path) -> Result<()> {
        write_whole(path, |file| {
            let mut file = BufWriter::new(file);
            self.chat.save_cache(options, &mut file)?;
            file.flush()
        })
    }

    fn load_cache(&mut self, path: &Path) -> Result<()> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        self.chat.load_cache(BufReader::new(file)).map_err(|e| Error::file(path, e.to_string()))
    }

    fn write_receipt(&self, path: &Path, stats: &Stats) -> Result<()> {
        replay::write(path, self.chat.model(), std::slice::from_ref(stats), &self.console)
    }

    fn name(&self) -> &str {
        self.chat.model().name()
    }

    fn describe(&self) -> String {
        let model = self.chat.model();
        let mut text = format!(
            "  model         {}\n  architecture  {}\n  device        {}\n  context       {} tokens\n",
            model.name(),
            model.architecture(),
            model.device(),
            model.context()
        );
        for file in model.files() {
            text.push_str(&format!("  file          {}\n", file.display()));
        }
        text
    }

    fn sampling(&self) -> Sampling {
        self.chat.model().sampling()
    }

    fn think(&self) -> Think {
        self.chat.model().think()
    }
}
