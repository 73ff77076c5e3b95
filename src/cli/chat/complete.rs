//! Completion of commands and their arguments, and the hints behind the cursor.

use std::cell::OnceCell;
use std::path::Path;

use reedline::{Completer, CompletionResult, Hinter, History, SearchQuery, Span, Suggestion};

use super::commands::{COMMANDS, THINK, THOUGHT};
use super::set::SETTINGS;
use super::store::{Store, expand_home};
use crate::catalog;
use crate::checkpoint::embedded;
use crate::cli::pull;
use crate::cli::render::{DIM, RESET};

/// Shown behind the prompt while nothing is typed.
const PLACEHOLDER: &str = "Ask something (/? for help)";

/// What Tab offers.
pub(super) struct ChatCompleter {
    store: Store,
    pulled: OnceCell<Vec<Offer>>,
}

impl ChatCompleter {
    pub(super) fn new(store: Store) -> Self {
        ChatCompleter { store, pulled: OnceCell::new() }
    }

    /// The models of the cache, read once: each is opened for it. Those with a short name are the catalog's to offer.
    fn pulled(&self) -> &[Offer] {
        self.pulled.get_or_init(|| {
            let mut models = pull::hub(true).and_then(|hub| hub.list()).unwrap_or_default();
            models.retain(|model| model.runnable.is_ok() && catalog::find(&model.name).is_none());
            models.into_iter().map(|model| Offer::new(model.name, "pulled", false)).collect()
        })
    }

    /// What may stand from a byte of `line` on.
    fn offers(&self, line: &str) -> (usize, Vec<Offer>) {
        let Some((command, rest)) = line.split_once(' ').filter(|_| line.starts_with('/')) else {
            let names = COMMANDS.iter().filter(|_| line.starts_with('/'));
            return (
                0,
                starting_with(line, names.map(|c| Offer::new(c.name, c.help, !c.argument.is_empty()))),
            );
        };
        let argument = rest.trim_start();
        let at = line.len() - argument.len();
        let chats = || self.store.names().into_iter().map(|name| Offer::new(name, "saved chat", false));
        let offers = match command {
            "/thought" => starting_with(argument, THOUGHT.map(|(word, _)| Offer::new(word, "", false))),
            "/think" => starting_with(argument, THINK.map(|(word, _)| Offer::new(word, "", false))),
            "/budget" => starting_with(argument, [Offer::new("off", "no bound", false)]),
            "/set" => {
                starting_with(argument, SETTINGS.iter().map(|(_, name, help)| Offer::new(*name, *help, true)))
            }
            "/model" => {
                let inside =
                    embedded::path(embedded::NAME).map(|_| Offer::new(embedded::NAME, "inside", false));
                let known = catalog::entries().iter().map(|e| Offer::new(&e.name, &e.licence, false));
                starting_with(argument, inside.into_iter().chain(known).chain(self.pulled().iter().cloned()))
            }
            "/read" => files(argument),
            "/load" | "/save" | "/rm" if argument.contains(std::path::is_separator) => files(argument),
            "/load" | "/save" | "/rm" => starting_with(argument, chats()),
            _ => Vec::new(),
        };
        (at, offers)
    }
}

impl Completer for ChatCompleter {
    fn complete(&mut self, line: &str, pos: usize) -> CompletionResult {
        let (start, offers) = self.offers(&line[..pos]);
        let suggestions: Vec<_> = offers
            .into_iter()
            .map(|offer| Suggestion {
                value: offer.value,
                description: Some(offer.help).filter(|help| !help.is_empty()),
                span: Span::new(start, pos),
                append_whitespace: offer.goes_on,
                ..Suggestion::default()
            })
            .collect();
        CompletionResult::fresh(suggestions)
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Offer {
    value: String,
    help: String,
    /// More is to follow: a space is put behind it.
    goes_on: bool,
}

impl Offer {
    fn new(value: impl Into<String>, help: impl Into<String>, goes_on: bool) -> Self {
        Offer { value: value.into(), help: help.into(), goes_on }
    }
}

fn starting_with(prefix: &str, offers: impl IntoIterator<Item = Offer>) -> Vec<Offer> {
    offers.into_iter().filter(|offer| offer.value.starts_with(prefix)).collect()
}

/// Files and folders whose path begins with `typed`; hidden ones only if asked for.
fn files(typed: &str) -> Vec<Offer> {
    let split = typed.rfind(std::path::is_separator).map_or(0, |at| at + 1);
    let (folder, prefix) = typed.split_at(split);
    let place = if folder.is_empty() { Path::new(".").to_owned() } else { expand_home(folder) };
    let mut found: Vec<_> = std::fs::read_dir(place)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let wanted = name.starts_with(prefix) && (prefix.starts_with('.') || !name.starts_with('.'));
            let slash = if entry.path().is_dir() { std::path::MAIN_SEPARATOR_STR } else { "" };
            wanted.then(|| Offer::new(format!("{folder}{name}{slash}"), "", false))
        })
        .collect();
    found.sort_by(|a, b| a.value.cmp(&b.value));
    found
}

/// Hints: what to do on an empty line, the rest of a command, else the rest of the last line that began like this.
/// What is hinted is dimmed, or it would look like typed text: without colour there are no hints.
#[derive(Default)]
pub(super) struct ChatHinter {
    /// What the right arrow accepts.
    rest: String,
}

impl Hinter for ChatHinter {
    fn handle(&mut self, line: &str, _pos: usize, history: &dyn History, _color: bool, _cwd: &str) -> String {
        self.rest = match line {
            "" => String::new(),
            _ => command_hint(line).map_or_else(|| history_hint(line, history), str::to_owned),
        };
        let shown = if line.is_empty() { PLACEHOLDER } else { &self.rest };
        if shown.is_empty() { String::new() } else { format!("{DIM}{shown}{RESET}") }
    }

    fn complete_hint(&self) -> String {
        self.rest.clone()
    }

    fn next_hint_token(&self) -> String {
        let word = self.rest.len() - self.rest.trim_start().len();
        let end = self.rest[word..].find(char::is_whitespace).map_or(self.rest.len(), |at| word + at);
        self.rest[..end].to_owned()
    }
}

/// The rest of the first command that begins like `line`.
fn command_hint(line: &str) -> Option<&'static str> {
    if line.len() < 2 {
        return None;
    }
    COMMANDS.iter().find_map(|c| c.name.strip_prefix(line))
}

/// The rest of the last line of the history that begins like `line`.
fn history_hint(line: &str, history: &dyn History) -> String {
    let query = SearchQuery::last_with_prefix(line.to_owned(), history.session());
    let found = history.search(query).unwrap_or_default();
    found.first().and_then(|item| item.command_line.strip_prefix(line)).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::store::{Over, Saved};
    use super::*;

    fn offered(line: &str) -> (usize, Vec<String>) {
        offered_with(line, "nowhere")
    }

    fn offered_with(line: &str, folder: impl AsRef<Path>) -> (usize, Vec<String>) {
        let (at, offers) = ChatCompleter::new(Store::new(folder.as_ref().to_owned())).offers(line);
        (at, offers.into_iter().map(|offer| offer.value).collect())
    }

    #[test]
    fn commands_are_offered_by_their_beginning_and_only_behind_a_slash() {
        assert_eq!(offered("/th"), (0, vec!["/thought".into(), "/think".into()]));
        assert_eq!(offered("/").1.len(), COMMANDS.len());
        assert_eq!(offered("").1, Vec::<String>::new());
        assert_eq!(offered("th").1, Vec::<String>::new());
        assert_eq!(offered("say /th").1, Vec::<String>::new());
    }

    #[test]
    fn values_are_offered_behind_their_command() {
        assert_eq!(offered("/thought "), (9, vec!["show".into(), "fold".into(), "hide".into()]));
        assert_eq!(offered("/think o"), (7, vec!["on".into(), "off".into()]));
        assert_eq!(offered("/set  pres"), (6, vec!["presence-penalty".into()]));
        assert_eq!(offered("/clear ").1, Vec::<String>::new());
    }

    #[test]
    fn models_are_offered_by_their_short_names_and_those_of_the_cache_by_their_repositories() {
        let mut completer = ChatCompleter::new(Store::new("nowhere".into()));
        completer.pulled = OnceCell::from(vec![Offer::new("qwen/Qwen3-8B", "pulled", false)]);
        let offered = |line: &str| {
            completer.offers(line).1.into_iter().map(|offer| offer.value).collect::<Vec<String>>()
        };
        assert_eq!(offered("/model qwen/"), ["qwen/Qwen3-8B"]);
        assert_eq!(offered("/model qwen3:8"), ["qwen3:8b"]);
        #[cfg(feature = "pocket")]
        assert_eq!(offered("/model po"), ["pocket"]);
    }

    #[test]
    fn file_names_are_offered_with_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["notes.txt", "new file.md", ".hidden"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::fs::create_dir(folder.path().join("nested")).unwrap();
        let slash = std::path::MAIN_SEPARATOR;
        let base = format!("{}{slash}", folder.path().display());
        let (at, found) = offered(&format!("/read {base}n"));
        assert_eq!(at, 6);
        assert_eq!(
            found,
            [format!("{base}nested{slash}"), format!("{base}new file.md"), format!("{base}notes.txt")]
        );
        assert_eq!(offered(&format!("/read {base}.")).1, [format!("{base}.hidden")]);
        assert_eq!(offered(&format!("/load {base}note")).1, [format!("{base}notes.txt")]);
    }

    #[test]
    fn saved_chats_are_offered_to_load_save_and_remove() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned());
        for name in ["sums", "songs", "other"] {
            store
                .save(
                    name,
                    &Saved { model: "m".into(), settings: None, messages: vec![] },
                    false,
                    Over::Nothing,
                )
                .unwrap();
        }
        assert_eq!(offered_with("/load s", folder.path()), (6, vec!["songs".into(), "sums".into()]));
        assert_eq!(offered_with("/save o", folder.path()), (6, vec!["other".into()]));
        assert_eq!(offered_with("/rm o", folder.path()), (4, vec!["other".into()]));
    }

    #[test]
    fn completing_in_the_middle_of_a_line_looks_only_at_what_stands_before() {
        let mut completer = ChatCompleter::new(Store::new("nowhere".into()));
        let result = completer.complete("/thxyz", 4);
        assert!(result.suggestions().is_empty());
        let result = completer.complete("/think on", 3);
        assert_eq!(result.suggestions().len(), 2);
        assert_eq!(result.suggestions()[0].span, Span::new(0, 3));
    }

    #[test]
    fn the_hint_ends_a_begun_command_or_repeats_the_history() {
        let mut history = reedline::FileBackedHistory::default();
        history.save(reedline::HistoryItem::from_command_line("why is the sky blue")).unwrap();
        let mut hinter = ChatHinter::default();
        let mut hint = |line: &str| {
            let shown = hinter.handle(line, line.len(), &history, true, "");
            (shown.replace(DIM, "").replace(RESET, ""), hinter.complete_hint(), hinter.next_hint_token())
        };
        assert_eq!(hint("/reg"), ("en".into(), "en".into(), "en".into()));
        assert_eq!(hint("/quit"), (String::new(), String::new(), String::new()));
        assert_eq!(hint("why is"), (" the sky blue".into(), " the sky blue".into(), " the".into()));
        assert_eq!(hint(""), (PLACEHOLDER.into(), String::new(), String::new()));
        assert_eq!(hint("something new"), (String::new(), String::new(), String::new()));
    }
}
