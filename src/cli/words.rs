//! Which words after `pensive run` are options and which belong to the prompt.
//!
//! A word that is an option of `run` is one wherever it stands; any other word belongs to the prompt, also with a
//! hyphen in front, unless it stands right after the model and looks like an option; after `--` every word does. clap
//! has no such rule, so the words are sorted before it sees them: options first, then `--`, then the model and the prompt.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Arg, Command};

/// How far a word is from an option's name to be taken for a slip of the keyboard.
fn is_slip(word: &str, name: &str) -> bool {
    let distance = strsim::damerau_levenshtein(word, name);
    distance <= if name.len() < 6 { 1 } else { 2 }
}

/// Whether a word looks like an option: `--format`, `--format=json`, `-f`.
fn is_like_option(word: &str) -> bool {
    let name = word.split('=').next().unwrap_or_default();
    let mut letters = match name.strip_prefix("--") {
        Some(long) => long.chars(),
        None => name.strip_prefix('-').filter(|short| short.chars().count() == 1).unwrap_or_default().chars(),
    };
    letters.next().is_some_and(|c| c.is_ascii_lowercase())
        && letters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_')
}

/// Sorts the arguments of `cli`'s `run`, and checks the text of `tokenize`; those of other commands stay as they are.
///
/// # Errors
/// A word that is nearly an option, or stands where one would and looks like it: more likely a slip than a word.
pub(super) fn arrange(mut cli: Command, args: Vec<OsString>) -> Result<Vec<OsString>, clap::Error> {
    let first = args.iter().skip(1).position(|arg| !arg.to_string_lossy().starts_with('-'));
    let Some(at) = first.map(|i| i + 1) else { return Ok(args) };
    cli.build();
    match args[at].to_str() {
        Some("run") => arrange_run(cli.find_subcommand("run").expect("run is a command"), args, at),
        Some("tokenize") => {
            let tokenize = cli.find_subcommand("tokenize").expect("tokenize is a command");
            let words =
                args[at + 1..].iter().take_while(|word| *word != "--").filter_map(|word| word.to_str());
            let texts = words.filter(|word| matches!(kind(tokenize, word), Kind::Word));
            texts.skip(1).try_for_each(|word| check_unknown(tokenize, word))?;
            Ok(args)
        }
        _ => Ok(args),
    }
}

fn arrange_run(run: &Command, args: Vec<OsString>, at: usize) -> Result<Vec<OsString>, clap::Error> {
    let mut sorted = args[..=at].to_vec();
    let mut plain = Vec::new();
    let mut rest = args[at + 1..].iter();
    while let Some(word) = rest.next() {
        if word == "--" {
            plain.extend(rest.cloned());
            break;
        }
        match word.to_str().map_or(Kind::Word, |text| kind(run, text)) {
            Kind::Flag => sorted.push(word.clone()),
            Kind::TakesNext => match rest.next() {
                Some(value) => sorted.push([word.clone(), "=".into(), value.clone()].into_iter().collect()),
                // Nothing follows: clap names the missing value.
                None => return Ok([sorted, vec![word.clone()]].concat()),
            },
            // Before the model an unknown option is clap's to report.
            Kind::Word if plain.is_empty() && word.to_string_lossy().starts_with('-') => {
                sorted.push(word.clone())
            }
            Kind::Word => {
                check_slip(run, &word.to_string_lossy())?;
                if plain.len() == 1 {
                    check_unknown(run, &word.to_string_lossy())?;
                }
                plain.push(word.clone());
            }
        }
    }
    sorted.push("--".into());
    sorted.extend(plain);
    Ok(sorted)
}

/// What a word is to `run`.
enum Kind {
    /// An option that is complete in itself: `--json`, `--seed=1`, `-n64`.
    Flag,
    /// An option whose value is the next word.
    TakesNext,
    /// No option.
    Word,
}

fn kind(run: &Command, text: &str) -> Kind {
    if let Some(long) = text.strip_prefix("--") {
        let (name, value) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
        return match find_long(run, name) {
            Some(arg) if value.is_none() && takes_value(arg) => Kind::TakesNext,
            Some(_) => Kind::Flag,
            None => Kind::Word,
        };
    }
    let Some(cluster) = text.strip_prefix('-').filter(|c| !c.is_empty()) else { return Kind::Word };
    for (i, letter) in cluster.char_indices() {
        let Some(arg) = run.get_arguments().find(|arg| arg.get_short() == Some(letter)) else {
            return Kind::Word;
        };
        if takes_value(arg) {
            // Short options take numbers, so that `-not` is a word and `-n64` is not.
            return match cluster[i + letter.len_utf8()..].trim_start_matches('=').chars().next() {
                None => Kind::TakesNext,
                Some(c) if c.is_ascii_digit() => Kind::Flag,
                Some(_) => Kind::Word,
            };
        }
    }
    Kind::Flag
}

fn find_long<'a>(run: &'a Command, name: &str) -> Option<&'a Arg> {
    run.get_arguments().find(|arg| long_names(arg).any(|n| n == name))
}

fn long_names(arg: &Arg) -> impl Iterator<Item = &str> {
    arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default())
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values()
}

fn check_slip(run: &Command, word: &str) -> Result<(), clap::Error> {
    let Some(long) = word.strip_prefix("--").filter(|w| !w.contains(char::is_whitespace)) else {
        return Ok(());
    };
    let name = long.split('=').next().unwrap_or_default();
    let Some(near) = run.get_arguments().flat_map(long_names).find(|n| is_slip(name, n)) else {
        return Ok(());
    };
    Err(unexpected(run, word, &format!("did you mean '--{near}'?")))
}

/// Refuses what looks like an option and is none, where options stand.
fn check_unknown(command: &Command, word: &str) -> Result<(), clap::Error> {
    check_slip(command, word)?;
    if !is_like_option(word) {
        return Ok(());
    }
    Err(unexpected(command, word, &format!("{} has no such option.", command.get_name())))
}

fn unexpected(command: &Command, word: &str, why: &str) -> clap::Error {
    let text = if command.get_name() == "run" { "the prompt" } else { "the text" };
    let message =
        format!("unexpected option '{word}': {why} Where it belongs to {text}, put `--` after MODEL");
    command.clone().error(ErrorKind::UnknownArgument, message)
}

#[cfg(test)]
mod tests;
