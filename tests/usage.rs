//! What is told of wrong, useless or hostile input.

use std::collections::BTreeMap;
use std::process::Command;

use common::command::{Answer, Home};
use pensive::checkpoint::{Value, write::GgufWriter};
use server::Server;

mod common;
#[allow(dead_code)]
#[path = "hub/server.rs"]
mod server;

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
        let text = [answer.stdout, answer.stderr, pulled.stderr.clone()].concat();
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
