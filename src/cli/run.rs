//! `pensive run MODEL [PROMPT…]`: one answer.

use std::io::{self, Write};
use std::process::ExitCode;

use super::args::{ChatArgs, GenerateArgs, RunArgs, Thought};
use super::interrupt::{self, EXIT_INTERRUPTED, Second};
use super::keyboard;
use super::output::{Report, Screen, StreamedEvent};
use super::render::{Bar, Console, Unit, error_line, stdout_error};
use super::replay;
use super::session;
use super::settings::{Flags, Settings};
use super::text::{LARGEST_PROMPT, read_stdin};
use super::votes::{self, VoteReport};
use crate::api::{Outcome, VoteOptions};
use crate::{CancelHandle, Error, Event, Finish, Generation, Message, Model, Prompt, Result, Stats};

pub(super) fn run(args: &RunArgs, console: &Console) -> Result<ExitCode> {
    if args.prompt.is_empty() && console.stdin_terminal {
        return chat(args, console);
    }
    args.receipt.as_deref().map_or(Ok(()), replay::check_place)?;
    let settings = Settings::from_env(Flags::from(args))?;
    let thought = thought(args, &settings)?;
    let how = votes::options(&args.vote)?;
    let piped = if console.stdin_terminal { None } else { Some(read_stdin(LARGEST_PROMPT)?) };
    let prompt = prompt(&args.prompt, piped, args.raw)?;

    let model = session::load(&settings, console)?;
    let cancel = CancelHandle::new();
    let options = settings.options().cancel(&cancel).record(args.receipt.is_some());
    let stopped = cancel.clone();
    let _armed = interrupt::arm(Second::Ends, move || cancel.cancel());
    // Beside a pager the terminal is not this process's to change.
    let _quiet = console.stdout_terminal.then(keyboard::quiet);
    let prompt = if args.raw {
        Prompt::raw(prompt)
    } else {
        let system = settings.system.iter().map(|system| Message::system(&system.value));
        system.chain([Message::user(prompt)]).collect::<Vec<_>>().into()
    };
    if let Some(how) = how {
        votes::check(how, options.sampling.over(model.sampling()))?;
        let votes = model.vote(prompt, &options, how)?;
        if how.boxed && !args.json {
            console.note(format!("asked as well: {}", crate::api::BOXED.trim()));
        }
        let outcome = votes::run(votes, console)?;
        let is_stopped = stopped.is_cancelled();
        show_vote(&outcome, &model, how, args, thought, is_stopped, console)?;
        write_receipt(args, &model, &outcome.traces, console)?;
        return Ok(exit_code(is_stopped));
    }
    let generation = model.generate(prompt, &options)?;
    let stats = write(generation, &model, args, thought, console)?;
    write_receipt(args, &model, std::slice::from_ref(&stats), console)?;
    remark(&stats, args, console);
    Ok(exit_code(stats.finish == Finish::Interrupted))
}

fn exit_code(is_stopped: bool) -> ExitCode {
    if is_stopped { ExitCode::from(EXIT_INTERRUPTED) } else { ExitCode::SUCCESS }
}

fn write_receipt(args: &RunArgs, model: &Model, traces: &[Stats], console: &Console) -> Result<()> {
    args.receipt.as_ref().map_or(Ok(()), |path| replay::write(path, model, traces, console))
}

/// What a vote came to: an answer for people, or JSON.
fn show_vote(
    outcome: &Outcome,
    model: &Model,
    how: VoteOptions,
    args: &RunArgs,
    thought: Thought,
    is_stopped: bool,
    console: &Console,
) -> Result<()> {
    if args.json {
        write_line(&VoteReport::new(outcome, model, how))?;
    } else {
        let mut screen = Screen::new(Box::new(io::stdout()), Box::new(io::stderr()), thought, false, console);
        votes::show(outcome, is_stopped, &mut screen, console)?;
        say_why_unfinished(&outcome.traces[outcome.shown], args, console);
    }
    if args.stats {
        votes::speed(outcome);
    }
    Ok(())
}

/// Without a prompt, on a terminal: a chat.
fn chat(args: &RunArgs, console: &Console) -> Result<ExitCode> {
    let of_a_run = [
        (args.json, "--json"),
        (args.json_stream, "--json-stream"),
        (args.raw, "--raw"),
        (args.stats, "--stats"),
        (args.receipt.is_some(), "--receipt"),
        (args.vote.votes.is_some(), "--votes"),
    ];
    if let Some((_, option)) = of_a_run.iter().find(|(given, _)| *given) {
        return Err(Error::Usage(format!("{option} needs a prompt: name it or pipe it in")));
    }
    let chat = ChatArgs {
        model: Some(args.model.clone()),
        load: args.load.clone(),
        generate: args.generate.clone(),
        thought: args.thought,
        saved: None,
    };
    super::open_chat(&chat, console)
}

/// Where the thought goes. JSON carries it, so that beside JSON it is shown only if asked for.
fn thought(args: &RunArgs, settings: &Settings) -> Result<Thought> {
    if args.json || args.json_stream {
        return match args.thought {
            Some(Thought::Stdout) => {
                Err(Error::Usage("--thought stdout: the JSON on stdout has the thought already".into()))
            }
            given => Ok(given.unwrap_or(Thought::Hide)),
        };
    }
    Ok(settings.thought.as_ref().map_or(Thought::Show, |t| t.value))
}

/// Piped text, a blank line, the words. Raw: nothing is stripped; else a byte order mark in front of piped text and
/// the line ends after it go.
fn prompt(words: &[String], piped: Option<String>, raw: bool) -> Result<String> {
    let words = words.join(" ");
    let piped = piped.unwrap_or_default();
    let piped =
        if raw { &piped } else { piped.trim_start_matches('\u{FEFF}').trim_end_matches(['\n', '\r']) };
    let is_empty = |text: &str| if raw { text.is_empty() } else { text.trim().is_empty() };
    match (is_empty(piped), is_empty(&words)) {
        (true, true) => Err(Error::Usage("the prompt is empty".into())),
        (false, true) => Ok(piped.to_owned()),
        (true, false) => Ok(words),
        (false, false) => {
            let blank_line = if piped.ends_with('\n') { "\n" } else { "\n\n" };
            Ok([piped, blank_line, &words].concat())
        }
    }
}

/// Writes the events as they come; gives the last one.
fn write(
    generation: Generation,
    model: &Model,
    args: &RunArgs,
    thought: Thought,
    console: &Console,
) -> Result<Stats> {
    let json = args.json || args.json_stream;
    let answer: Box<dyn Write> = if json { Box::new(io::sink()) } else { Box::new(io::stdout()) };
    let mut screen = Screen::new(answer, Box::new(io::stderr()), thought, args.raw, console);
    let mut bar = console.slow_bar("reading the prompt", Unit::Tokens);
    for event in generation {
        let event = event.inspect_err(|_| screen.abandon())?;
        show_prefill(&mut bar, &event);
        if let Event::Done(stats) = event {
            screen.finish()?;
            if json {
                write_line(&Report::new(&stats, model))?;
            }
            return Ok(*stats);
        }
        if let Some(line) = StreamedEvent::new(&event).filter(|_| args.json_stream) {
            write_line(&line)?;
        }
        screen.show(&event)?;
    }
    Err(Error::Unsupported("the generation ended without its last event".into()))
}

fn show_prefill(bar: &mut Bar, event: &Event) {
    match event {
        Event::Prefill { done, total } => bar.update(*done as u64, *total as u64),
        _ => bar.finish(),
    }
}

/// One JSON object on a line of its own, written at once.
fn write_line(value: &impl serde::Serialize) -> Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, value).map_err(|e| stdout_error(e.into()))?;
    stdout.write_all(b"\n").and_then(|()| stdout.flush()).map_err(stdout_error)
}

/// What is left to say on standard error.
fn remark(stats: &Stats, args: &RunArgs, console: &Console) {
    if !(args.json || args.json_stream) {
        say_why_unfinished(stats, args, console);
    }
    if args.stats {
        error_line(super::output::speed(stats));
    }
}

fn say_why_unfinished(stats: &Stats, args: &RunArgs, console: &Console) {
    if let Some(why) = unfinished(stats, &args.generate) {
        console.note(format!("pensive: {why}"));
    }
}

/// Why there is no whole answer, unless the user stopped it.
fn unfinished(stats: &Stats, asked: &GenerateArgs) -> Option<String> {
    let tokens = stats.tokens.len();
    match stats.finish {
        Finish::Length if asked.max_tokens.is_some_and(|most| tokens >= most) => {
            Some(format!("cut after {tokens} tokens by --max-tokens"))
        }
        Finish::Length => {
            Some(format!("cut after {tokens} tokens: the context of {} tokens is full", stats.context))
        }
        Finish::Loop => {
            Some("the answer repeated itself and was stopped; --no-loop-guard lets it go on".into())
        }
        Finish::Stop if stats.answer.trim().is_empty() && !asked.stop.is_empty() => {
            Some("a --stop text, or the model, ended the reply before an answer".into())
        }
        Finish::Stop if stats.answer.trim().is_empty() && !stats.thought.trim().is_empty() => {
            Some("the whole reply was a thought; --think off asks for an answer alone".into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::output::tests::stats;
    use super::*;

    #[test]
    fn what_is_no_whole_answer_has_its_reason() {
        let of = |finish, answer: &str, most| {
            let asked = GenerateArgs { max_tokens: most, ..GenerateArgs::default() };
            unfinished(&Stats { finish, answer: answer.into(), ..stats() }, &asked)
        };
        assert_eq!(of(Finish::Length, "4", Some(4)).unwrap(), "cut after 4 tokens by --max-tokens");
        for most in [None, Some(5)] {
            let full = "cut after 4 tokens: the context of 4096 tokens is full";
            assert_eq!(of(Finish::Length, "4", most).unwrap(), full);
        }
        assert!(of(Finish::Stop, " \n", None).unwrap().starts_with("the whole reply was a thought; "));
        assert_eq!(of(Finish::Stop, "4", None), None);
        assert_eq!(of(Finish::Interrupted, "", None), None);
    }

    fn words(text: &str) -> Vec<String> {
        text.split_terminator(' ').map(String::from).collect()
    }

    fn piped(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn words_are_joined_with_spaces() {
        assert_eq!(prompt(&words("why is the sky"), None, false).unwrap(), "why is the sky");
    }

    #[test]
    fn piped_text_comes_first_then_a_blank_line_then_the_words() {
        assert_eq!(prompt(&words("sum up"), piped("a\nb\n"), false).unwrap(), "a\nb\n\nsum up");
        assert_eq!(prompt(&words("sum up"), piped("a\nb"), false).unwrap(), "a\nb\n\nsum up");
        assert_eq!(prompt(&words("x"), piped("a\n"), true).unwrap(), "a\n\nx");
    }

    #[test]
    fn piped_text_alone_loses_its_last_line_end_but_not_its_indent() {
        assert_eq!(prompt(&[], piped("  if x:\r\n"), false).unwrap(), "  if x:");
        assert_eq!(prompt(&[], piped("\u{FEFF}a"), false).unwrap(), "a");
    }

    #[test]
    fn a_raw_prompt_is_taken_as_it_is() {
        for text in ["  a \n\n", "\n", "\u{FEFF}b\r\n"] {
            assert_eq!(prompt(&[], piped(text), true).unwrap(), text);
        }
        assert_eq!(prompt(&[" a ".into()], piped(""), true).unwrap(), " a ");
    }

    #[test]
    fn an_empty_prompt_is_wrong_usage() {
        for (words, piped, raw) in
            [(words(""), None, false), (words(""), piped(" \n"), false), (words(""), piped(""), true)]
        {
            assert!(matches!(prompt(&words, piped, raw), Err(Error::Usage(_))));
        }
        assert!(matches!(prompt(&["  ".into()], None, false), Err(Error::Usage(_))));
    }

    #[test]
    fn blank_piped_text_leaves_the_words_alone() {
        assert_eq!(prompt(&words("hi"), piped("\n"), false).unwrap(), "hi");
    }
}
