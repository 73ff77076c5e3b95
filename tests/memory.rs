//! The memory that `show` says is the memory that is taken.
#![cfg(target_os = "linux")]

use std::process::Command;

use pensive::model::Synthetic;
use pensive::{Model, Options, Prompt};

const CONTEXT: usize = 512;

/// Bytes of this process that are in memory and in no file.
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// An embedding and an output matrix of its own: the one is only looked up.
#[test]
fn a_model_takes_the_memory_that_show_says_within_a_tenth() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("synthetic.gguf");
    Synthetic::new("deepseek-r1:1.5b-q8_0", Some(2)).unwrap().write(&path).unwrap();
    let (file, context) = (path.to_str().unwrap(), CONTEXT.to_string());
    let show = Command::new(env!("CARGO_BIN_EXE_pensive"))
        .args(["show", file, "--context", &context, "--json"])
        .env("HOME", folder.path())
        .output()
        .unwrap();
    let facts: serde_json::Value = serde_json::from_slice(&show.stdout).unwrap();
    let said = facts["memory"][0]["bytes"].as_u64().unwrap();

    let before = anonymous_bytes();
    let model = Model::builder(file).context(CONTEXT).threads(2).load().unwrap();
    // a prompt that fills the context, and the steps after it, which copy the weights
    let prompt = (0..CONTEXT as u32 - 16).map(|i| i % 200).collect();
    let options = Options::new().max_tokens(14).speculate(false);
    let events = model.generate(Prompt::Tokens(prompt), &options).unwrap();
    events.for_each(|event| drop(event.unwrap()));
    let taken = anonymous_bytes() - before;
    println!("said {:.0} MiB, taken {:.0} MiB", said as f64 / 1048576.0, taken as f64 / 1048576.0);
    assert!(taken.abs_diff(said) * 10 <= said, "said {said}, taken {taken}");
}
