use clap::CommandFactory;

use super::super::args::{Cli, Command as Cmd, RunArgs, parse};
use super::*;

fn run(words: &[&str]) -> Result<RunArgs, clap::Error> {
    let all = ["pensive", "run"].iter().chain(words).map(OsString::from);
    match parse(all)?.command {
        Some(Cmd::Run(args)) => Ok(args),
        other => panic!("{other:?}"),
    }
}

fn prompt(words: &[&str]) -> String {
    run(words).unwrap_or_else(|e| panic!("{e}")).prompt.join(" ")
}

#[test]
fn words_may_begin_with_a_hyphen() {
    assert_eq!(prompt(&["m", "-5 + 3?"]), "-5 + 3?");
    assert_eq!(prompt(&["m", "-5", "+", "3?"]), "-5 + 3?");
    assert_eq!(
        prompt(&["m", "what", "does", "git", "commit", "--amend", "do"]),
        "what does git commit --amend do"
    );
    assert_eq!(prompt(&["m", "-not", "-", "so", "-x"]), "-not - so -x");
    assert_eq!(prompt(&["m", "--json is what?"]), "--json is what?");
}

#[test]
fn options_stand_before_or_after_the_model_or_the_prompt() {
    for words in [
        &["--json", "-n", "64", "m", "why"][..],
        &["m", "--json", "-n64", "why"],
        &["m", "why", "--json", "--max-tokens=64"],
        &["-n=64", "m", "why", "--json"],
        &["m", "--json", "--n-predict", "64", "--", "why"],
    ] {
        let args = run(words).unwrap();
        assert_eq!(
            (args.model.as_str(), args.prompt.as_slice()),
            ("m", &["why".to_owned()][..]),
            "{words:?}"
        );
        assert!(args.json, "{words:?}");
        assert_eq!(args.generate.max_tokens, Some(64), "{words:?}");
    }
}

#[test]
fn after_two_hyphens_every_word_belongs_to_the_prompt() {
    assert_eq!(prompt(&["m", "--", "what", "does", "--json", "-n", "--", "do"]), "what does --json -n -- do");
    assert_eq!(prompt(&["--", "m", "--raw"]), "--raw");
}

#[test]
fn a_value_may_begin_with_a_hyphen() {
    let args = run(&["m", "--stop", "--", "--stop", "-x", "--presence-penalty", "-1", "why"]).unwrap();
    assert_eq!(args.generate.stop, ["--", "-x"]);
    assert_eq!(args.generate.sampling.presence_penalty, Some(-1.0));
    assert_eq!(args.prompt, ["why"]);
}

#[test]
fn what_is_nearly_an_option_is_reported_as_a_slip() {
    let error = run(&["m", "--temprature", "0", "why"]).unwrap_err().to_string();
    assert!(error.contains("did you mean '--temperature'?"), "{error}");
    let error = run(&["m", "why", "--jsn"]).unwrap_err().to_string();
    assert!(error.contains("did you mean '--json'?") && error.contains("put `--` after MODEL"), "{error}");
    assert_eq!(prompt(&["m", "--", "why", "--jsn"]), "why --jsn");
    assert!(run(&["--jsn", "m", "why"]).is_err(), "before the model clap reports it");
}

#[test]
fn right_after_the_model_what_looks_like_an_option_is_none_of_the_prompt() {
    for words in [
        &["m", "--format", "json", "hi"][..],
        &["m", "--format=json", "hi"],
        &["m", "-f", "prompt.txt"],
        &["m", "--no-mmap", "hi"],
        &["m", "--json", "--version"],
    ] {
        let error = run(words).unwrap_err().to_string();
        assert!(
            error.contains("run has no such option. Where it") && error.contains("after MODEL"),
            "{error}"
        );
    }
    assert_eq!(prompt(&["m", "--", "--format", "json"]), "--format json");
    assert_eq!(prompt(&["m", "why", "--format", "-f"]), "why --format -f");
    for word in ["-", "--", "---", "-5", "-X", "-é", "--Format", "-not", "--json is what?", ""] {
        assert!(!is_like_option(word), "{word}");
    }
}

#[test]
fn a_misspelt_option_of_tokenize_is_no_text() {
    let tokenize = |words: &[&str]| parse(["pensive", "tokenize"].iter().chain(words).map(OsString::from));
    for words in [&["m", "--no-specal"][..], &["m", "--no-specal", "text"], &["--json", "m", "-x"]] {
        let error = tokenize(words).unwrap_err().to_string();
        assert!(error.contains("unexpected option") && error.contains("put `--` after MODEL"), "{error}");
    }
    for words in [&["m", "--", "--no-specal"][..], &["m", "--no-special", "--", "--no-specal"]] {
        let Some(Cmd::Tokenize(args)) = tokenize(words).unwrap().command else { panic!("{words:?}") };
        assert_eq!(args.text.as_deref(), Some("--no-specal"), "{words:?}");
    }
}

#[test]
fn a_missing_value_is_named() {
    for words in [&["m", "why", "--stop"][..], &["m", "why", "-n"]] {
        let error = run(words).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidValue, "{error}");
    }
}

#[test]
fn the_words_of_other_commands_are_left_alone() {
    let words = ["pensive", "-q", "tokenize", "m", "-5", "--json"].map(OsString::from).to_vec();
    assert_eq!(arrange(Cli::command(), words.clone()).unwrap(), words);
}

#[test]
fn options_for_every_command_may_stand_before_run() {
    let cli = parse(["pensive", "-q", "run", "m", "-5"].map(OsString::from)).unwrap();
    assert!(cli.global.quiet);
    assert!(matches!(cli.command, Some(Cmd::Run(args)) if args.prompt == ["-5"]));
    let cli = parse(["pensive", "run", "m", "why", "-v"].map(OsString::from)).unwrap();
    assert!(cli.global.verbose);
}
