//! What words mean.

use clap::CommandFactory;
use clap::error::ErrorKind;

use super::*;

fn run(line: &str) -> Result<RunArgs, clap::Error> {
    let words = ["pensive", "run"].into_iter().chain(line.split_whitespace());
    match parse(words.map(OsString::from))?.command {
        Some(Command::Run(args)) => Ok(args),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_arguments_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_that_generates_has_the_same_short_flags() {
    for command in ["run m", "chat m", "config m"] {
        let words = format!("pensive {command} -t 2 -c 4096 -n 64 -s 7");
        parse(words.split_whitespace().map(OsString::from)).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn habits_of_other_programs_are_understood_but_not_advertised() {
    let args = run("m --ctx-size 9 --n-predict 8 --temp 0.5 --repetition-penalty 1.1 hi").unwrap();
    assert_eq!((args.load.context, args.generate.max_tokens), (Some(9), Some(8)));
    assert_eq!(run("m -ngl 20 hi").unwrap().load.gpu_layers, Some(20));
    let sampling = args.generate.sampling.overrides().unwrap();
    assert_eq!((sampling.temperature, sampling.repeat_penalty), (Some(0.5), Some(1.1)));
    let help = run("--help").unwrap_err().to_string();
    assert!(help.contains("--context") && !help.contains("--ctx-size") && !help.contains("--temp "));
}

#[test]
fn of_an_option_given_twice_the_last_counts_and_stop_strings_add_up() {
    let args = run("m hi -n 1 -n 2 --stop a --json --json --stop b").unwrap();
    assert_eq!(args.generate.max_tokens, Some(2));
    assert_eq!(args.generate.stop, ["a", "b"]);
}

#[test]
fn a_variable_of_the_template_is_json_or_a_string() {
    let variables = run("m hi --template-var reasoning_effort=high --template-var n=2").unwrap();
    let expected = [("reasoning_effort".to_owned(), "high".into()), ("n".to_owned(), 2.into())];
    assert_eq!(variables.generate.template_var, expected);
    assert!(run("m hi --template-var effort").is_err() && run("m hi --template-var =1").is_err());
}

#[test]
fn no_think_is_think_off() {
    assert_eq!(run("m hi --no-think").unwrap().generate.think(), Some(Think::Off));
    assert_eq!(run("m hi --think auto").unwrap().generate.think(), Some(Think::Auto));
    assert_eq!(run("m hi").unwrap().generate.think(), None);
}

#[test]
fn contradictions_are_wrong_usage() {
    for line in [
        "m hi --think on --no-think",
        "m hi --json --json-stream",
        "m hi --raw --system x",
        "m hi --raw --no-think",
        "m hi --system x --system-file y",
        "m hi -q -v",
    ] {
        assert_eq!(run(line).unwrap_err().kind(), ErrorKind::ArgumentConflict, "{line}");
    }
}

#[test]
fn a_thought_is_asked_to_be_no_longer_than_it_may_be() {
    let check = |line: &str| run(line).unwrap().generate.check().map_err(|e| e.to_string());
    for line in
        ["m hi --min-think 9 --think-budget 9", "m hi --min-think 0 --think off", "m hi --think-budget 1"]
    {
        check(line).unwrap();
    }
    assert!(check("m hi --min-think 100 --think-budget 10").unwrap_err().contains("--think-budget 10"));
    for bound in ["--min-think 100", "--think-budget 20", "--think-time 5s"] {
        for none in ["--think off", "--no-think"] {
            let error = check(&format!("m hi {bound} {none}")).unwrap_err();
            let option = bound.split(' ').next().unwrap();
            assert!(error.contains(option) && error.contains(none), "{bound} {none}: {error}");
        }
    }
    check("m hi --no-think --think-budget 0").unwrap();
    assert!(check("m hi --think on --think-budget 0").unwrap_err().contains("--think-budget 0"));
}

#[test]
fn what_is_no_number_is_refused_with_what_is_allowed() {
    for (line, allowed) in [
        ("m hi --temperature abc", "'--temperature <X>': it must be a number, such as 0.6"),
        ("m hi --top-k -3", "'--top-k <N>': it must be a whole number from 0 up"),
        ("m hi --seed x", "'--seed <N>': it must be a whole number from 0 up"),
    ] {
        let error = run(line).unwrap_err().to_string();
        assert!(error.contains(allowed), "{error}");
    }
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    for line in ["m hi -n 0", "m hi -t none", "m hi --think perhaps", "m hi --thought fold", "m hi --stop="] {
        let error = run(line).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue),
            "{line}: {error}"
        );
    }
    for (line, flag) in [
        ("m hi --temperature=-1", "--temperature"),
        ("m hi --temperature nan", "--temperature"),
        ("m hi --top-p 0", "--top-p"),
        ("m hi --min-p 2", "--min-p"),
        ("m hi --repeat-penalty 0", "--repeat-penalty"),
        ("m hi --presence-penalty inf", "--presence-penalty"),
    ] {
        let error = run(line).unwrap().generate.sampling.overrides().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{flag} of ")), "{error}");
    }
}
