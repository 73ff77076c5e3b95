//! The command line: one file a command; rendering apart from doing.

pub mod args;
mod bench;
mod chat;
mod completions;
mod config;
mod doctor;
mod interrupt;
mod keyboard;
mod list;
mod memory;
mod output;
mod perplexity;
mod pull;
mod quantize;
mod remove;
pub mod render;
mod replay;
mod run;
mod selftest;
mod session;
pub mod settings;
mod show;
mod text;
mod tokenize;
mod votes;
mod words;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use args::{ChatArgs, Cli, Command};
use render::{Console, RESET, error_line, is_closed_pipe};
use settings::{Flags, Origin, Settings};

use crate::checkpoint::embedded;
use crate::{Error, Result};

/// Exit code of wrong usage.
const EXIT_USAGE: u8 = 2;
/// Exit code of any other failure.
const EXIT_FAILURE: u8 = 1;

/// Runs the command line; the exit code is 0 for success, 2 for wrong usage, 130 after Ctrl-C, 143 and 129 after
/// SIGTERM and SIGHUP, 1 for anything else.
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let cli = match args::parse(args.clone()) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &args),
    };
    let console = Console::detect(cli.global);
    interrupt::install(console.dims_stderr());
    match std::panic::catch_unwind(|| dispatch(cli, &console)) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => failure(&error),
        Err(_) => {
            let _ = crossterm::terminal::disable_raw_mode();
            let reset = if console.dims_stderr() { RESET } else { "" };
            error_line(format!(
                "{reset}pensive: this is a bug in pensive; please report it with the lines above"
            ));
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn dispatch(cli: Cli, console: &Console) -> Result<ExitCode> {
    match cli.command {
        None => open_chat(&ChatArgs::default(), console),
        Some(Command::Chat(args)) => open_chat(&args, console),
        Some(Command::Run(args)) => run::run(&args, console),
        Some(Command::Pull(args)) => pull::run(&args, console),
        Some(Command::List(args)) => list::run(&args, console),
        Some(Command::Show(args)) => show::run(&args, console),
        Some(Command::Remove(args)) => remove::run(&args, console),
        Some(Command::Tokenize(args)) => tokenize::run(&args, console),
        Some(Command::Bench(args)) => bench::run(&args, console),
        Some(Command::Perplexity(args)) => perplexity::run(&args, console),
        Some(Command::Quantize(args)) => quantize::run(&args, console),
        Some(Command::Replay(args)) => replay::run(&args, console),
        Some(Command::Config(args)) => config::run(&args),
        Some(Command::Doctor(args)) => doctor::run(args),
        Some(Command::Selftest(args)) => selftest::run(&args, console),
        Some(Command::Completions(args)) => completions::run(args),
    }
}

/// Opens a chat; also what `pensive run MODEL` without a prompt does on a terminal.
fn open_chat(args: &ChatArgs, console: &Console) -> Result<ExitCode> {
    let settings = Settings::from_env(Flags::from(args))?;
    if let Some(name) = &args.saved {
        return chat::resume(&settings, name, console);
    }
    if settings.model.is_some() || embedded::path(embedded::NAME).is_none() || has_models()? {
        return chat::run(&settings, None, console);
    }
    console.note(
        "no model was pulled yet: this is pocket, a small reasoner inside pensive that counts letters, compares and \
         calculates. A real one: `pensive chat deepseek-r1` (about 1.1 GB to download once)",
    );
    chat::run(&settings.with_model(embedded::NAME, Origin::BuiltIn)?, None, console)
}

/// Whether the cache holds a model that can be run.
fn has_models() -> Result<bool> {
    Ok(pull::hub(true)?.list()?.iter().any(|model| model.runnable.is_ok()))
}

/// Reports what went wrong. A reader that is gone (`| head`) is no failure: it has what it wanted.
fn failure(error: &Error) -> ExitCode {
    if is_closed_pipe(error) {
        return ExitCode::SUCCESS;
    }
    error_line(render::harmless(&format!("pensive: {error}{}", remedy(error)))); // it may quote a file
    ExitCode::from(match error {
        _ if interrupt::caught() => interrupt::EXIT_INTERRUPTED,
        Error::Usage(_) | Error::Room { .. } => EXIT_USAGE,
        _ => EXIT_FAILURE,
    })
}

/// The options that help, of an error that knows of none.
fn remedy(error: &Error) -> &'static str {
    match error {
        Error::Room { of_context: false, .. } => " (--max-tokens, --no-think)",
        Error::Room { of_context: true, .. } => " (--context, --no-think)",
        _ => "",
    }
}

/// Prints clap's help, version or error.
fn usage(error: &clap::Error, args: &[OsString]) -> ExitCode {
    if error.kind() == ErrorKind::InvalidUtf8 {
        error_line(not_utf8(args));
        return ExitCode::from(EXIT_USAGE);
    }
    let _ = error.print();
    if let Some(line) = meant_model(error, args).or_else(|| meant_chat(error, args)) {
        error_line(format!("\n{line}"));
    }
    ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 })
}

/// clap does not say which argument is no text.
fn not_utf8(args: &[OsString]) -> String {
    let names = args.iter().filter(|arg| arg.to_str().is_none()).map(|arg| format!("{arg:?}"));
    let names = names.collect::<Vec<_>>().join(", ");
    format!("pensive: {names}: it is not UTF-8: rename the file, or type the text anew")
}

/// The command line with `chat` in it, where its options stand without a command.
fn meant_chat(error: &clap::Error, args: &[OsString]) -> Option<String> {
    let (program, options) = args.split_first()?;
    let chat = || [program.clone(), "chat".into()].into_iter().chain(options.iter().cloned());
    let is_chat = error.kind() == ErrorKind::UnknownArgument && args::parse(chat()).is_ok();
    is_chat
        .then(|| format!("To chat with the configured or last used model: pensive chat {}", words(options)))
}

/// The command line that was meant where a model's name, or a question, stands in place of a command.
fn meant_model(error: &clap::Error, args: &[OsString]) -> Option<String> {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else { return None };
    let at = args.iter().skip(1).position(|arg| !arg.to_string_lossy().starts_with('-'))? + 1;
    let is_help = args[at] != **word; // `pensive help WORD`
    let is_slip = error.get(ContextKind::SuggestedSubcommand).is_some();
    if is_help {
        return None;
    } else if is_model(word) {
        return Some(format!("To chat with a model: pensive chat {word}"));
    }
    let question = words(&args[at..]);
    let is_question = !is_slip && question.contains(' ');
    is_question.then(|| format!("To ask a model: pensive run MODEL \"{question}\""))
}

/// Whether a word names a model, here or at the hub.
fn is_model(word: &str) -> bool {
    settings::model_name(word).and_then(|name| pull::hub(true)?.reference(&name)).is_ok()
}

fn words(args: &[OsString]) -> String {
    args.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
