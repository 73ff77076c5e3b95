//! What can be typed at the prompt: a message, or a command that begins with a slash.

use crate::Think;
use crate::cli::args::Thought;

/// Delimiter of a message of several lines.
const BLOCK: &str = "\"\"\"";

/// What became of a typed text.
#[derive(Debug, PartialEq)]
pub(super) enum Entry {
    /// Only white space.
    Nothing,
    /// Something to say to the model.
    Message(String),
    /// Something for the chat itself.
    Command(Command),
}

/// A command with its argument.
#[derive(Debug, PartialEq)]
pub(super) enum Command {
    Help,
    Clear,
    Regenerate,
    Undo,
    /// None shows it, an empty text removes it.
    System(Option<String>),
    /// None lists the settings; a name without a value shows that one.
    Set(Option<(String, Option<String>)>),
    Read(String),
    /// None shows the last thought again.
    Thought(Option<Thought>),
    /// None says what is set.
    Think(Option<Think>),
    /// Without a name under the one used last; with keys and values; over another chat.
    Save {
        name: Option<String>,
        with_cache: bool,
        force: bool,
    },
    /// None ends it.
    Receipt(Option<String>),
    /// None lists the saved chats.
    Load(Option<String>),
    Remove(String),
    Copy,
    Stats,
    /// None describes the present model.
    Model(Option<String>),
    Quit,
}

/// A line of /help.
pub(super) struct Spec {
    pub(super) name: &'static str,
    pub(super) aliases: &'static [&'static str],
    pub(super) argument: &'static str,
    pub(super) help: &'static str,
}

const fn spec(name: &'static str, argument: &'static str, help: &'static str) -> Spec {
    Spec { name, aliases: &[], argument, help }
}

/// The argument of /save, which alone has options.
const SAVED: &str = "[NAME] [--kv] [--force]";
const KV: &str = "--kv";
const FORCE: &str = "--force";

/// All commands, in the order of /help.
pub(super) const COMMANDS: &[Spec] = &[
    Spec { aliases: &["/?"], ..spec("/help", "", "show this list") },
    spec("/clear", "", "forget the conversation, keep the system message"),
    spec("/regen", "", "answer the last message anew"),
    spec("/undo", "", "take back what /read gave, else the last message"),
    spec("/system", "[TEXT]", "show or set the system message; \"\" removes it"),
    spec("/set", "[NAME [VALUE]]", "show or change sampling, seed, bounds; `default` resets"),
    spec("/read", "FILE", "put a text file before the next message"),
    spec("/thought", "[show|fold|hide]", "how thoughts look; alone: show the last one again"),
    spec("/think", "[on|off|auto]", "whether the model thinks before it answers"),
    spec("/budget", "[N|off]", "most tokens of a thought; 0: no thought"),
    spec("/save", SAVED, "save the conversation; --kv: and its keys and values"),
    spec("/load", "[NAME]", "load a saved conversation; alone: list them"),
    spec("/rm", "NAME", "delete a saved conversation"),
    spec("/receipt", "[FILE]", "keep the last answer's receipt there; alone: no more"),
    spec("/copy", "", "copy the last answer to the clipboard"),
    spec("/stats", "", "speed and context use of the last answer"),
    spec("/model", "[NAME]", "switch to another model; alone: describe this one"),
    Spec { aliases: &["/bye", "/exit"], ..spec("/quit", "", "leave (so does Ctrl-D)") },
];

/// The keys that /help tells of.
const KEYS: &[(&str, &str)] = &[
    ("\"\"\"", "begins and ends a message of several lines"),
    ("Alt-Enter", "a new line in the message"),
    ("Ctrl-O", "edit the message in $EDITOR"),
    ("Tab", "complete a command, its argument or a file name"),
    ("Ctrl-R", "search in the history"),
    ("Ctrl-C", "pause a thought, stop the answer, or clear the line"),
    ("Ctrl-Z", "suspend the chat"),
    ("Ctrl-D", "leave"),
];

/// The text of /help.
pub(super) fn help() -> String {
    let commands = COMMANDS.iter().map(|c| {
        let names = std::iter::once(&c.name).chain(c.aliases).copied().collect::<Vec<_>>().join(", ");
        (format!("{names} {}", c.argument), c.help)
    });
    let keys = KEYS.iter().map(|(key, help)| (key.to_string(), *help));
    let mut text = String::new();
    for (what, help) in commands.chain(keys) {
        text.push_str(&format!("  {what:<29} {help}\n"));
    }
    text
}

/// Reads what was typed.
///
/// # Errors
/// A sentence for the user: an unknown command (with the nearest one), or a wrong argument.
pub(super) fn parse(text: &str) -> Result<Entry, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(Entry::Nothing);
    }
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    // A second slash makes it a path or a comment, which is something to say.
    if !word.starts_with('/') || word[1..].contains('/') {
        return Ok(Entry::Message(unblock(text).to_owned()));
    }
    let rest = rest.trim();
    let argument = (!rest.is_empty()).then(|| unblock(rest).to_owned());
    let Some(spec) = find(word) else { return Err(unknown(word)) };
    if spec.argument.is_empty() && argument.is_some() {
        return Err(format!("{} takes no argument", spec.name));
    }
    if let Some(option) = argument.as_deref().and_then(|text| unknown_option(spec, text)) {
        return Err(format!(
            "{} {option}: there is no such option, only {} {}",
            spec.name, spec.name, spec.argument
        ));
    }
    command(spec.name, argument).map(Entry::Command)
}

/// An option in the argument of a command that takes a name or a file.
fn unknown_option<'a>(spec: &Spec, argument: &'a str) -> Option<&'a str> {
    let takes_name = ["[NAME]", "NAME", "FILE", "[FILE]", SAVED].contains(&spec.argument);
    let known: &[&str] = if spec.argument == SAVED { &[KV, FORCE] } else { &[] };
    let is_option = |(i, word): &(usize, &str)| {
        let dashes = if *i == 0 { "-" } else { "--" };
        word.strip_prefix(dashes).is_some_and(|rest| !rest.is_empty()) && !known.contains(word)
    };
    let words = argument.split_whitespace().enumerate();
    words.filter(|_| takes_name).find(is_option).map(|(_, word)| word)
}

fn find(word: &str) -> Option<&'static Spec> {
    let is = |name: &str| name.eq_ignore_ascii_case(word);
    COMMANDS.iter().find(|c| is(c.name) || c.aliases.iter().any(|a| is(a)))
}

fn command(name: &str, argument: Option<String>) -> Result<Command, String> {
    Ok(match name {
        "/help" => Command::Help,
        "/clear" => Command::Clear,
        "/regen" => Command::Regenerate,
        "/undo" => Command::Undo,
        "/system" => Command::System(argument.map(|text| if text == "\"\"" { String::new() } else { text })),
        "/set" => {
            match argument.as_deref().map(|text| text.split_once(char::is_whitespace).unwrap_or((text, ""))) {
                None => Command::Set(None),
                Some((name, value)) => {
                    let value = Some(unblock(value.trim()).to_owned()).filter(|value| !value.is_empty());
                    match name {
                        "system" | "think" | "thought" => return command(&format!("/{name}"), value),
                        _ => Command::Set(Some((name.to_owned(), value))),
                    }
                }
            }
        }
        "/read" => Command::Read(argument.ok_or("/read FILE: name a text file")?),
        "/thought" => Command::Thought(choice(name, argument, &THOUGHT)?),
        "/think" => Command::Think(choice(name, argument, &THINK)?),
        "/budget" => Command::Set(Some(("think-budget".into(), argument))),
        "/save" => {
            let words = argument.unwrap_or_default();
            let words: Vec<&str> = words.split_whitespace().collect();
            let has = |option| words.contains(&option);
            let (with_cache, force) = (has(KV), has(FORCE));
            let name: Vec<&str> = words.into_iter().filter(|word| ![KV, FORCE].contains(word)).collect();
            Command::Save { name: Some(name.join(" ")).filter(|name| !name.is_empty()), with_cache, force }
        }
        "/load" => Command::Load(argument),
        "/rm" => Command::Remove(argument.ok_or("/rm NAME: name a saved chat")?),
        "/receipt" => Command::Receipt(argument),
        "/copy" => Command::Copy,
        "/stats" => Command::Stats,
        "/model" => Command::Model(argument),
        _ => Command::Quit,
    })
}

/// Values of /thought.
pub(super) const THOUGHT: [(&str, Thought); 3] =
    [("show", Thought::Show), ("fold", Thought::Fold), ("hide", Thought::Hide)];
/// Values of /think.
pub(super) const THINK: [(&str, Think); 3] = [("on", Think::On), ("off", Think::Off), ("auto", Think::Auto)];

/// The word for a value of [`THOUGHT`] or [`THINK`].
pub(super) fn word<T: Copy + PartialEq>(values: &[(&'static str, T)], value: T) -> &'static str {
    values.iter().find(|(_, v)| *v == value).map_or("", |(word, _)| word)
}

/// The value that a word stands for, if there is a word.
pub(super) fn choice<T: Copy>(
    name: &str,
    argument: Option<String>,
    values: &[(&'static str, T)],
) -> Result<Option<T>, String> {
    let Some(given) = argument else { return Ok(None) };
    match values.iter().find(|(word, _)| word.eq_ignore_ascii_case(&given)) {
        Some((_, value)) => Ok(Some(*value)),
        None => {
            let words: Vec<_> = values.iter().map(|(word, _)| *word).collect();
            Err(format!("{name} {given}: it is one of {}", words.join(", ")))
        }
    }
}

fn unknown(word: &str) -> String {
    let names = COMMANDS.iter().flat_map(|c| std::iter::once(&c.name).chain(c.aliases)).copied();
    match nearest(&word.to_ascii_lowercase(), names) {
        Some(name) => format!("unknown command {word}: did you mean {name}? (/? lists all)"),
        None => format!("unknown command {word}: /? lists all"),
    }
}

/// The name most like `word`, if one is like it at all.
pub(super) fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|name| (strsim::jaro_winkler(word, name), name))
        .filter(|(likeness, _)| *likeness >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// Whether more lines belong to `text`: a block was begun and not ended.
pub(super) fn is_open(text: &str) -> bool {
    let text = text.trim_start();
    let body = match text.split_once(char::is_whitespace) {
        Some((word, rest)) if find(word).is_some() => rest.trim_start(),
        _ => text,
    };
    body.strip_prefix(BLOCK).is_some_and(|rest| !rest.trim_end().ends_with(BLOCK))
}

/// The text within a block's delimiters; text that is no block as it is.
fn unblock(text: &str) -> &str {
    let Some(body) = text.strip_prefix(BLOCK) else { return text };
    let body = body.strip_suffix(BLOCK).unwrap_or(body);
    let body = body.strip_prefix("\r\n").or_else(|| body.strip_prefix('\n')).unwrap_or(body);
    body.strip_suffix('\n').map_or(body, |body| body.strip_suffix('\r').unwrap_or(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Result<Entry, String> {
        Ok(Entry::Message(text.into()))
    }

    fn run(command: Command) -> Result<Entry, String> {
        Ok(Entry::Command(command))
    }

    #[test]
    fn every_listed_command_and_alias_is_known() {
        for spec in COMMANDS {
            for name in std::iter::once(&spec.name).chain(spec.aliases) {
                let argument = match spec.argument.trim_matches(['[', ']']) {
                    "" => "",
                    choices if choices.contains('|') => choices.split('|').next().unwrap(),
                    _ => "something",
                };
                let parsed = parse(&format!("{name} {argument}"));
                assert!(matches!(parsed, Ok(Entry::Command(_))), "{name}: {parsed:?}");
            }
        }
        assert_eq!(parse("/bye"), run(Command::Quit));
        assert_eq!(parse("/exit"), run(Command::Quit));
        assert_eq!(parse("/?"), run(Command::Help));
    }

    #[test]
    fn help_lists_every_command_once_and_fits_eighty_columns() {
        let text = help();
        for spec in COMMANDS {
            assert_eq!(text.matches(&format!("  {}", spec.name)).count(), 1, "{}", spec.name);
        }
        let longest = text.lines().map(|l| l.chars().count()).max().unwrap();
        assert!(longest <= 88, "{longest} columns");
    }

    #[test]
    fn an_unknown_command_suggests_the_nearest() {
        assert!(parse("/claer").unwrap_err().contains("did you mean /clear?"));
        assert!(parse("/regenerate").unwrap_err().contains("did you mean /regen?"));
        assert!(parse("/modle x").unwrap_err().contains("did you mean /model?"));
        assert_eq!(parse("/zzz").unwrap_err(), "unknown command /zzz: /? lists all");
    }

    #[test]
    fn arguments_keep_their_inner_spaces() {
        assert_eq!(parse("/read my notes.txt "), run(Command::Read("my notes.txt".into())));
        assert_eq!(parse("/system  You are  terse."), run(Command::System(Some("You are  terse.".into()))));
        assert_eq!(
            parse("/set  temperature   0.5"),
            run(Command::Set(Some(("temperature".into(), Some("0.5".into())))))
        );
        assert_eq!(parse("/set seed"), run(Command::Set(Some(("seed".into(), None)))));
        assert_eq!(parse("/set"), run(Command::Set(None)));
    }

    #[test]
    fn a_wrong_argument_is_named_with_what_is_allowed() {
        assert_eq!(parse("/think maybe").unwrap_err(), "/think maybe: it is one of on, off, auto");
        assert_eq!(parse("/thought FOLD"), run(Command::Thought(Some(Thought::Fold))));
        assert_eq!(parse("/read").unwrap_err(), "/read FILE: name a text file");
        assert_eq!(parse("/undo 2").unwrap_err(), "/undo takes no argument");
    }

    #[test]
    fn an_unknown_option_is_no_name() {
        let says = "/save --KV: there is no such option, only /save [NAME] [--kv] [--force]";
        assert_eq!(parse("/save --KV z").unwrap_err(), says);
        assert_eq!(parse("/save z --KV").unwrap_err(), says);
        for text in ["/load z --kv", "/read --all x", "/receipt -v", "/model --cpu", "/save -kv", "/rm -r x"]
        {
            assert!(parse(text).unwrap_err().contains("there is no such option"), "{text}");
        }
        let save = |name: Option<&str>, with_cache, force| {
            run(Command::Save { name: name.map(str::to_owned), with_cache, force })
        };
        assert_eq!(parse("/save a - b --kv"), save(Some("a - b"), true, false));
        assert_eq!(parse("/save --force a b"), save(Some("a b"), false, true));
        assert_eq!(parse("/save"), save(None, false, false));
        assert_eq!(parse("/read a -b.txt"), run(Command::Read("a -b.txt".into())));
        assert_eq!(parse("/system --be brief"), run(Command::System(Some("--be brief".into()))));
    }

    #[test]
    fn what_has_a_command_of_its_own_can_be_set_too() {
        assert_eq!(parse("/set system Be brief."), run(Command::System(Some("Be brief.".into()))));
        assert_eq!(parse("/set think off"), run(Command::Think(Some(Think::Off))));
        assert_eq!(parse("/set thought"), run(Command::Thought(None)));
    }

    #[test]
    fn a_path_or_a_comment_is_a_message() {
        assert_eq!(parse("/etc/hosts is what?"), message("/etc/hosts is what?"));
        assert_eq!(parse("// what does this do"), message("// what does this do"));
        assert_eq!(parse("   \n "), Ok(Entry::Nothing));
    }

    #[test]
    fn a_block_is_open_until_its_delimiter_ends_a_line() {
        assert!(is_open("\"\"\""));
        assert!(is_open("  \"\"\"one\ntwo"));
        assert!(is_open("\"\"\"a \"\"\" b"));
        assert!(!is_open("\"\"\"one\ntwo\"\"\""));
        assert!(!is_open("\"\"\"one\ntwo\n\"\"\" "));
        assert!(!is_open("say \"\"\""));
        assert!(is_open("/system \"\"\"one"));
        assert!(!is_open("/system \"\"\"one\"\"\""));
    }

    #[test]
    fn a_block_is_the_text_between_its_delimiters() {
        assert_eq!(parse("\"\"\"\none\n  two\n\"\"\""), message("one\n  two"));
        assert_eq!(parse("\"\"\"one\"\"\""), message("one"));
        assert_eq!(parse("\"\"\"/clear\"\"\""), message("/clear"));
        assert_eq!(parse("\"\"\"cut off by the end"), message("cut off by the end"));
        assert_eq!(
            parse("/system \"\"\"\nBe brief.\nBe kind.\n\"\"\""),
            run(Command::System(Some("Be brief.\nBe kind.".into())))
        );
        assert_eq!(parse("/system \"\""), run(Command::System(Some(String::new()))));
    }
}
