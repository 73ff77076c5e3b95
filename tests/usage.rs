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
