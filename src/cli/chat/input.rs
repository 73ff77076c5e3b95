//! Where turns come from: the line editor of a terminal, or plain lines.

use std::borrow::Cow;
use std::fs::OpenOptions;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::process::Command;

use reedline::{
    ColumnarMenu, EditCommand, Emacs, FileBackedHistory, Highlighter, KeyCode, KeyModifiers, Keybindings,
    MenuBuilder, Prompt, PromptEditMode, PromptHistorySearch, Reedline, ReedlineEvent, ReedlineMenu, Signal,
    StyledText, ValidationResult, Validator, default_emacs_keybindings,
};

use super::commands::is_open;
use super::complete::{ChatCompleter, ChatHinter};
use super::store::{Store, open_private, write_private};
use crate::cli::text::read_file;
use crate::{Error, Result};

const PROMPT: &str = ">>> ";
const PROMPT_MORE: &str = "... ";
/// Lines that the history keeps.
const HISTORY_LINES: usize = 1000;
const MENU: &str = "completion";
const EDIT: &str = "edit";
const SUSPEND: &str = "suspend";

/// What was typed.
#[derive(Debug, PartialEq)]
pub(super) enum Line {
    /// A message or command, perhaps of several lines.
    Text(String),
    /// Ctrl-C: what was typed is gone.
    Cleared,
    /// Something went wrong that the user should read; the chat goes on.
    Trouble(String),
    /// There is nothing more.
    End,
}

/// Where turns come from.
pub(super) enum Input {
    /// A terminal.
    Editor(Box<Editor>),
    /// Lines, with a prompt on standard error where someone types them.
    Lines { reader: Box<dyn BufRead>, prompt: bool },
}

impl Input {
    /// The next text.
    ///
    /// # Errors
    /// Where the terminal or standard input cannot be read.
    pub(super) fn next(&mut self) -> Result<Line> {
        match self {
            Input::Editor(editor) => editor.next(),
            Input::Lines { reader, prompt } => {
                lines(reader, *prompt).map_err(|e| Error::io("standard input", e))
            }
        }
    }
}

fn lines(reader: &mut dyn BufRead, prompt: bool) -> io::Result<Line> {
    let ask = |text: &str| -> io::Result<()> {
        if prompt {
            let mut stderr = io::stderr().lock();
            write!(stderr, "{text}")?;
            stderr.flush()?;
        }
        Ok(())
    };
    ask(PROMPT)?;
    let mut text = String::new();
    while reader.read_line(&mut text)? > 0 {
        if !is_open(&text) {
            return Ok(Line::Text(text));
        }
        ask(PROMPT_MORE)?;
    }
    // Ctrl-D leaves the prompt's line open.
    ask("\n")?;
    Ok(if text.is_empty() { Line::End } else { Line::Text(text) })
}

/// The line editor.
pub(super) struct Editor {
    reedline: Reedline,
    /// Holds the message while $EDITOR has it.
    draft: PathBuf,
}

impl Editor {
    /// An editor whose history and draft live in `folder`. What hinders the history is told, not fatal.
    pub(super) fn new(folder: PathBuf, store: Store, color: bool) -> (Self, Option<String>) {
        let menu =
            ColumnarMenu::default().with_name(MENU).with_columns(4).with_column_padding(2).with_marker("");
        let mut reedline = Reedline::create()
            .with_ansi_colors(color)
            .with_edit_mode(Box::new(Emacs::new(keys())))
            .with_completer(Box::new(ChatCompleter::new(store)))
            .with_menu(ReedlineMenu::EngineCompleter(Box::new(menu)))
            .with_quick_completions(true)
            .with_partial_completions(true)
            .with_validator(Box::new(Blocks))
            .with_highlighter(Box::new(Plain))
            .use_bracketed_paste(true);
        if color {
            // A hint that is not dimmed would look like typed text.
            reedline = reedline.with_hinter(Box::<ChatHinter>::default());
        }
        let mut trouble = None;
        match history(folder.join("chat-history")) {
            Ok(history) => reedline = reedline.with_history(Box::new(history)),
            Err(error) => trouble = Some(format!("the history is not kept: {error}")),
        }
        (Editor { reedline, draft: folder.join("draft.md") }, trouble)
    }

    fn next(&mut self) -> Result<Line> {
        loop {
            let signal = self
                .reedline
                .read_line(&ChatPrompt)
                .map_err(|e| Error::io("the terminal", io::Error::other(e.to_string())))?;
            match signal {
                Signal::Success(text) => {
                    // At once, so that a chat that is killed leaves its history.
                    let _ = self.reedline.sync_history();
                    return Ok(Line::Text(text));
                }
                Signal::CtrlD => return Ok(Line::End),
                Signal::HostCommand(command) if command == SUSPEND => suspend(),
                Signal::HostCommand(_) => {
                    if let Err(error) = self.edit() {
                        return Ok(Line::Trouble(error.to_string()));
                    }
                }
                _ => return Ok(Line::Cleared),
            }
        }
    }

    /// Lets $EDITOR have the message.
    fn edit(&mut self) -> Result<()> {
        write_private(&self.draft, self.reedline.current_buffer_contents().as_bytes())?;
        let edited = run_editor(&self.draft).and_then(|()| read_file(&self.draft));
        let _ = std::fs::remove_file(&self.draft);
        let text = edited?.trim_end().to_owned();
        self.reedline.run_edit_commands(&[EditCommand::Clear, EditCommand::InsertString(text)]);
        Ok(())
    }
}

fn keys() -> Keybindings {
    let mut keys = default_emacs_keybindings();
    let menu = ReedlineEvent::UntilFound(vec![ReedlineEvent::Menu(MENU.into()), ReedlineEvent::MenuNext]);
    keys.add_binding(KeyModifiers::NONE, KeyCode::Tab, menu);
    keys.add_binding(KeyModifiers::SHIFT, KeyCode::BackTab, ReedlineEvent::MenuPrevious);
    // reedline's own way to $EDITOR leaves the draft behind, and a missing program ends the prompt.
    let edit = ReedlineEvent::ExecuteHostCommand(EDIT.into());
    keys.add_binding(KeyModifiers::CONTROL, KeyCode::Char('o'), edit);
    // reedline takes back there what was typed
    if cfg!(unix) {
        let suspend = ReedlineEvent::ExecuteHostCommand(SUSPEND.into());
        keys.add_binding(KeyModifiers::CONTROL, KeyCode::Char('z'), suspend);
    }
    keys
}

/// Stops the process, and those it is piped to, until the shell lets them go on, as Ctrl-Z does elsewhere.
fn suspend() {
    #[cfg(unix)]
    let _ = rustix::process::kill_current_process_group(rustix::process::Signal::TSTP);
}

/// Lets $VISUAL or $EDITOR have a file.
pub(super) fn run_editor(draft: &std::path::Path) -> Result<()> {
    let set = |name| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
    let default = if cfg!(windows) { "notepad" } else { "vi" };
    let editor = set("VISUAL").or_else(|| set("EDITOR")).unwrap_or_else(|| default.into());
    let mut words = editor.split_whitespace();
    let program = words.next().unwrap_or(default);
    let status = Command::new(program).args(words).arg(draft).status().map_err(|e| {
        Error::Usage(format!("cannot start the editor {program}: {e}; set EDITOR to another"))
    })?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::Usage(format!("the editor {program} failed ({status}); the text is as it was")))
    }
}

fn history(path: PathBuf) -> Result<FileBackedHistory> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    }
    open_private(OpenOptions::new().append(true), &path).map_err(|e| Error::io(&path, e))?;
    FileBackedHistory::with_file(HISTORY_LINES, path.clone()).map_err(|e| Error::file(&path, e.to_string()))
}

/// A begun block takes further lines.
struct Blocks;

impl Validator for Blocks {
    fn validate(&self, text: &str) -> ValidationResult {
        if is_open(text) { ValidationResult::Incomplete } else { ValidationResult::Complete }
    }
}

/// Typed text in the terminal's own colour: reedline's white is lost on white.
struct Plain;

impl Highlighter for Plain {
    fn highlight(&self, text: &str, _cursor: usize) -> StyledText {
        let mut styled = StyledText::new();
        styled.push((Default::default(), text.to_owned()));
        styled
    }
}

struct ChatPrompt;

impl Prompt for ChatPrompt {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        PROMPT.into()
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_indicator(&self, _mode: PromptEditMode) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        PROMPT_MORE.into()
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        format!("(history: {}) ", search.term).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &'static str) -> Vec<Line> {
        let mut input = Input::Lines { reader: Box::new(text.as_bytes()), prompt: false };
        let mut all = Vec::new();
        loop {
            match input.next().unwrap() {
                Line::End => return all,
                line => all.push(line),
            }
        }
    }

    #[test]
    fn each_line_is_a_turn_and_the_last_needs_no_line_feed() {
        assert_eq!(read_all("one\ntwo"), [Line::Text("one\n".into()), Line::Text("two".into())]);
        assert_eq!(read_all(""), []);
    }

    #[test]
    fn a_block_of_lines_is_one_turn() {
        assert_eq!(
            read_all("\"\"\"one\n\ntwo\"\"\"\nthree\n"),
            [Line::Text("\"\"\"one\n\ntwo\"\"\"\n".into()), Line::Text("three\n".into())]
        );
        assert_eq!(read_all("\"\"\"never ended\n"), [Line::Text("\"\"\"never ended\n".into())]);
    }

    #[test]
    fn lines_that_are_no_text_are_an_error() {
        let mut input = Input::Lines { reader: Box::new(&b"\xff\n"[..]), prompt: false };
        assert!(input.next().unwrap_err().to_string().starts_with("standard input: "));
    }

    #[test]
    fn the_editor_waits_for_the_end_of_a_block() {
        assert!(matches!(Blocks.validate("\"\"\"one\ntwo"), ValidationResult::Incomplete));
        assert!(matches!(Blocks.validate("\"\"\"one\ntwo\"\"\""), ValidationResult::Complete));
    }

    #[cfg(unix)]
    #[test]
    fn ctrl_z_suspends_as_everywhere() {
        let suspend = ReedlineEvent::ExecuteHostCommand(SUSPEND.into());
        assert_eq!(keys().find_binding(KeyModifiers::CONTROL, KeyCode::Char('z')), Some(suspend));
    }

    #[cfg(unix)]
    #[test]
    fn the_history_is_its_owners_alone_and_survives() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/history");
        use reedline::{History, HistoryItem};
        {
            let mut lines = history(path.clone()).unwrap();
            lines.save(HistoryItem::from_command_line("one\ntwo")).unwrap();
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let lines = history(path.clone()).unwrap();
        assert_eq!(lines.load(reedline::HistoryItemId::new(0)).unwrap().command_line, "one\ntwo");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
