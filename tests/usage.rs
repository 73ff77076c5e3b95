//! What is told of wrong, useless or hostile input.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;

use common::command::{Answer, Home};
use common::server::Server;
use pensive::checkpoint::{Value, write::GgufWriter};

mod common;

/// A GGUF file of these texts, without tensors.
fn gguf(pairs: &[(&str, &str)]) -> Vec<u8> {
    let pair = |(key, text): &(&str, &str)| ((*key).to_owned(), Value::String((*text).into()));
    let metadata: BTreeMap<String, Value> = pairs.iter().map(pair).collect();
    GgufWriter::new(Vec::new(), &metadata, &[]).and_then(|writer| writer.finish()).expect("a GGUF file")
}

/// A command that may use the network, whose hub is `hub`.
fn online(home: &Home, hub: &Server, args: &[&str]) -> Answer {
    let mut command: Command = home.command(args);
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", hub.endpoint());
    Answer::of(command.output().expect("pensive runs"))
}

#[test]
fn escape_codes_of_a_file_or_a_repository_do_not_reach_the_terminal() {
    let evil = "\x1b[31mEVIL\x07";
    let file = gguf(&[("general.architecture", evil), ("general.license", evil), ("general.name", evil)]);
    let (home, hub) = (Home::new(), Server::new(&[("r-Q4_K_M.gguf", file)]));
    *hub.state.licence.lock().unwrap() = Some(evil.into());
    let pulled = online(&home, &hub, &["pull", "o/r"]);
    assert!(pulled.code == Some(0) && pulled.stderr.contains("EVIL"), "{pulled:?}");
    let path = pulled.stdout.trim_end();
    for args in [&["show", "o/r"][..], &["show", path], &["list", "--all"], &["run", "o/r", "hi"]] {
        let answer = home.run(args);
        let text = [answer.stdout, answer.stderr].concat();
        assert!(text.contains("EVIL") && !text.contains(['\x1b', '\x07']), "{args:?}: {text:?}");
    }
}

#[test]
fn a_file_without_weights_is_not_quantized() {
    let home = Home::new();
    let file = home.path().join("m.gguf");
    std::fs::write(&file, gguf(&[("general.architecture", "qwen2")])).unwrap();
    let (from, to) = (file.to_str().unwrap(), home.path().join("q.gguf"));
    let command = ["quantize", from, to.to_str().unwrap(), "--type", "q4_0"];
    home.run(&command).fails(1, &["m.gguf: holds no tensors, only metadata"]);
    assert!(!to.exists());
}

#[test]
fn a_doctor_sees_what_is_wrong_with_the_settings() {
    let home = Home::new();
    let config = home.file("broken.toml", "contxt = 4096\n");
    let doctor = |args: &[&str]| {
        let mut command = home.command(&[&["doctor"], args].concat());
        Answer::of(command.env("PENSIVE_CONFIG", &config).output().unwrap())
    };
    let text = doctor(&[]);
    assert!(
        text.succeeds().contains("problem   ") && text.stdout.contains("unknown field `contxt`"),
        "{text:?}"
    );
    let problem = doctor(&["--json"]).json()["settings_problem"].clone();
    assert!(problem.as_str().is_some_and(|what| what.contains("broken.toml")), "{problem}");
    assert_eq!(home.run(&["doctor", "--json"]).json()["settings_problem"], serde_json::Value::Null);
}

#[cfg(feature = "pocket")]
#[test]
fn the_model_inside_cannot_be_removed_and_is_named() {
    Home::new().run(&["rm", "pocket"]).fails(1, &["pocket is a part of pensive itself"]);
}

#[cfg(feature = "pocket")]
#[test]
fn an_error_says_what_to_type() {
    let home = Home::new();
    home.run(&["run", "pocket", "hi", "-n", "10"])
        .fails(2, &["max-tokens of 10", "--max-tokens", "--no-think"]);
    let equal = ["run", "pocket", "hi", "--votes", "3", "--temperature", "0"];
    home.run(&equal).fails(2, &["--votes 3 at temperature 0", "add --temperature 0.6"]);
    let number = home.run(&["bench", "pocket", "-p", "8,x"]);
    assert!(
        number.stderr.contains("'x'") && number.stderr.contains("it must be a whole number"),
        "{number:?}"
    );
}

#[cfg(feature = "pocket")]
#[test]
fn an_option_that_does_nothing_is_told() {
    let home = Home::new();
    let run = ["run", "pocket", "hi", "--template-var"];
    let misspelled = home.run(&[&run[..], &["enable_thinkng=false"]].concat());
    assert_eq!(misspelled.code, Some(0), "{misspelled:?}");
    assert!(misspelled.stderr.contains("--template-var enable_thinkng does nothing"), "{misspelled:?}");
    let bound = home.run(&["run", "pocket", "hi", "--think-budget", "50"]);
    assert!(bound.code == Some(0) && !bound.stderr.contains("does nothing"), "{bound:?}");
}

#[test]
fn a_bound_on_the_thoughts_of_a_model_that_has_none_is_told() {
    let Some(model) = common::real_model(common::SMOLLM2.1) else { return };
    let args = ["run", model.to_str().unwrap(), "hi", "-n", "1", "--think-budget", "9", "--think-time", "1m"];
    let answer = Home::new().run(&args);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    for option in ["--think-budget", "--think-time"] {
        assert!(answer.stderr.contains(&format!("{option} does nothing")), "{answer:?}");
    }
}

#[test]
fn words_in_place_of_a_command_are_told_where_they_belong() {
    let home = Home::new();
    let told = |args: &[&str]| {
        let answer = home.run(args);
        assert_eq!((answer.code, answer.stdout.as_str()), (Some(2), ""), "{answer:?}");
        answer.stderr.lines().last().unwrap().to_owned()
    };
    let ask = "To ask a model: pensive run MODEL \"why is the sky blue\"";
    assert_eq!(told(&["why is the sky blue"]), ask);
    assert_eq!(told(&["why", "is", "the", "sky", "blue"]), ask);
    assert_eq!(told(&["owner/repo:q8_0"]), "To chat with a model: pensive chat owner/repo:q8_0");
    let file = home.file("m.gguf", "");
    assert_eq!(told(&["-q", &file]), format!("To chat with a model: pensive chat {file}"));
    for args in [&["help", "--help"][..], &["help", "nope"], &["nope"], &["pul", "deepseek-r1"]] {
        assert_eq!(told(args), "For more information, try '--help'.", "{args:?}");
    }
}

#[cfg(unix)]
#[test]
fn an_argument_that_is_no_text_is_named() {
    use std::os::unix::ffi::OsStrExt;
    let home = Home::new();
    for args in [&["run"][..], &["show"], &["tokenize"]] {
        let mut command = home.command(args);
        command.arg(std::ffi::OsStr::from_bytes(b"./caf\xe9.gguf"));
        Answer::of(command.output().unwrap()).fails(2, &["./caf\\xE9.gguf", "not UTF-8"]);
    }
}

#[cfg(feature = "pocket")]
#[test]
fn a_text_is_read_from_standard_input_where_it_is_a_hyphen() {
    let home = Home::new();
    let args = ["perplexity", "pocket", "--text", "-", "-c", "32", "--json"];
    let text = "What is 12 + 30? ".repeat(20);
    let answer = home.run_with_stdin(&args, text.as_bytes());
    assert!(answer.json()["perplexity"].as_f64().is_some_and(|perplexity| perplexity > 1.0), "{answer:?}");
}

#[test]
fn a_hyphen_is_no_file_to_write() {
    let home = Home::new();
    for args in
        [&["quantize", "pocket", "-", "--type", "q8_0"][..], &["run", "pocket", "hi", "--receipt", "-"]]
    {
        let answer = home.command(args).current_dir(home.path()).output().unwrap();
        let answer = Answer::of(answer);
        assert!(answer.code == Some(2) && answer.stderr.contains("it must be a file"), "{answer:?}");
        assert!(!home.path().join("-").exists());
    }
}

#[test]
fn a_repository_that_is_not_downloaded_is_shown_as_the_hub_lists_it() {
    let file = gguf(&[("general.architecture", "qwen2")]);
    let size = file.len();
    let hub = Server::new(&[("r-Q4_K_M.gguf", file.clone()), ("r-Q8_0.gguf", file)]);
    let home = Home::new();
    let facts = online(&home, &hub, &["show", "o/r", "--json"]).json();
    assert_eq!((&facts["downloaded"], &facts["licence"]), (&false.into(), &"mit".into()));
    assert_eq!((&facts["quantization"], &facts["bytes"]), (&"Q4_K_M".into(), &size.into()));
    assert_eq!(facts["files"], serde_json::json!(["r-Q4_K_M.gguf"]));
    assert_eq!(facts["choices"], serde_json::json!(["Q4_K_M", "Q8_0"]));
    let text = online(&home, &hub, &["show", "o/r:q8_0"]);
    assert!(text.succeeds().contains("not downloaded: `pensive pull o/r:q8_0`"), "{text:?}");
    online(&home, &hub, &["show", "o/r", "--offline"]).fails(1, &["o/r is not on this machine"]);
}

#[test]
fn a_hub_that_has_had_too_many_requests_is_waited_for() {
    let hub = Server::new(&[("r-Q4_K_M.gguf", gguf(&[("general.architecture", "qwen2")]))]);
    let home = Home::new();
    *hub.state.retry_after.lock().unwrap() = Some(1);
    hub.state.busy.store(1, SeqCst);
    let pulled = online(&home, &hub, &["pull", "o/r"]);
    assert!(pulled.code == Some(0) && pulled.stderr.contains("the hub asks to wait 1 s"), "{pulled:?}");
    *hub.state.retry_after.lock().unwrap() = Some(100);
    hub.state.busy.store(9, SeqCst);
    online(&home, &hub, &["show", "o/r:q8_0"]).fails(1, &["try again in 100 s", "HF_TOKEN"]);
}

#[test]
fn a_pull_that_verifies_mends_a_damaged_file_and_says_so() {
    let file = gguf(&[("general.architecture", "qwen2")]);
    let hub = Server::new(&[("r-Q4_K_M.gguf", file.clone())]);
    let home = Home::new();
    let path = online(&home, &hub, &["pull", "o/r"]).succeeds().trim_end().to_owned();
    std::fs::write(&path, vec![0; file.len()]).unwrap();
    let mended = online(&home, &hub, &["pull", "o/r", "--verify"]);
    assert_eq!(mended.succeeds().trim_end(), path);
    assert!(mended.stderr.contains("r-Q4_K_M.gguf is not what the hub has"), "{mended:?}");
    assert_eq!(std::fs::read(&path).unwrap(), file);
}
