//! `pensive bench` and `pensive perplexity`, as a user meets them.

use common::command::{Answer, Home, setting};

mod common;

/// `bench` of a small real model, briefly; none (with a printed reason) where the model is absent.
fn bench_real(home: &Home, args: &[&str]) -> Option<Answer> {
    let model = common::real_model(common::SMOLLM2.1)?;
    let model = model.to_str().expect("a UTF-8 path");
    let brief = ["bench", model, "-p", "8,0", "-n", "2", "-d", "0,70", "-t", "1", "-r", "2", "-o"];
    Some(home.run(&[&brief, args].concat()))
}

#[test]
fn bench_gives_an_object_for_every_combination() {
    let home = Home::new();
    let Some(answer) = bench_real(&home, &["json"]) else { return };
    let rows = answer.json();
    let rows = rows.as_array().expect("an array");
    let names: Vec<_> = rows.iter().map(|row| row["test"].as_str().expect("a name")).collect();
    assert_eq!(names, ["pp8", "tg2", "pp8@d70", "tg2@d70"]);
    for row in rows {
        let speed = &row["tokens_per_second"];
        let number = |key: &str| speed[key].as_f64().expect("a number");
        assert!(
            0.0 < number("min") && number("min") <= number("median") && number("median") <= number("max")
        );
        assert!(number("stddev") >= 0.0 && speed["samples"].as_array().map(Vec::len) == Some(2), "{row}");
        assert!(row["share_of_limit"].as_f64().is_some_and(|share| share > 0.0), "{row}");
        assert!(row["limits"]["read_bytes_per_second"].as_f64().is_some_and(|n| n > 1e6), "{row}");
        assert_eq!((&row["threads"], &row["version"]), (&1.into(), &env!("CARGO_PKG_VERSION").into()));
        assert_eq!((&row["model"], &row["kv_type"]), (&"SmolLM2-135M-Instruct.Q4_1".into(), &"f16".into()));
        assert_eq!(row["model_sha256"].as_str().map(str::len), Some(64));
        assert!(row["size"].as_u64() > Some(80_000_000) && row["isa"].is_string(), "{row}");
    }
    assert!(answer.stderr.contains("tg2@d70"), "progress is on stderr: {answer:?}");
    let remembered = home.run(&["config", "--json"]).json();
    assert_eq!(setting(&remembered, "model").0, serde_json::Value::Null, "a bench is no use of a model");
}

#[test]
fn bench_prints_a_table_lines_of_json_or_lines_of_values() {
    let home = Home::new();
    let Some(table) = bench_real(&home, &["md", "-q"]) else { return };
    let lines: Vec<_> = table.succeeds().lines().collect();
    assert!(lines[0].starts_with("| model ") && lines[1].starts_with("| ---"), "{table:?}");
    assert!(lines[5].contains(" tg2 @ d70 ") && lines[5].contains(" ± "), "{table:?}");
    assert!(lines.last().is_some_and(|line| line.contains("GB/s")), "{table:?}");
    assert_eq!(table.stderr, "", "-q is quiet");
    let Some(jsonl) = bench_real(&home, &["jsonl"]) else { return };
    let tests = jsonl.succeeds().lines().map(|line| {
        let row: serde_json::Value = serde_json::from_str(line).expect("JSON on every line");
        row["test"].as_str().expect("a name").to_owned()
    });
    assert_eq!(tests.collect::<Vec<_>>(), ["pp8", "tg2", "pp8@d70", "tg2@d70"]);
    let Some(csv) = bench_real(&home, &["csv"]) else { return };
    let columns: Vec<_> = csv.succeeds().lines().map(|line| line.split(',').count()).collect();
    assert!(columns.len() == 5 && columns.iter().all(|&n| n == columns[0]), "{csv:?}");
}

#[test]
fn bench_measures_a_model_that_is_not_there() {
    let home = Home::new();
    let synthetic = [
        "bench",
        "--synthetic",
        "qwen3:0.6b",
        "--layers",
        "2",
        "-p",
        "4",
        "-n",
        "2",
        "-r",
        "1",
        "-o",
        "json",
    ];
    let answer = home.run(&synthetic);
    let rows = answer.json();
    assert_eq!(rows.as_array().map(Vec::len), Some(2));
    assert_eq!(rows[1]["model"], "synthetic qwen3:0.6b");
    assert_eq!((&rows[1]["model_sha256"], &rows[1]["test"]), (&serde_json::Value::Null, &"tg2".into()));
    assert!(rows[1]["tokens_per_second"]["median"].as_f64().is_some_and(|speed| speed > 0.0), "{answer:?}");
}

#[test]
fn bench_prints_what_it_measured_before_something_failed() {
    let home = Home::new();
    let broken = home.file("broken.gguf", "these are notes, not weights\n");
    for format in ["md", "json", "jsonl", "csv"] {
        let answer = home.run(&["bench", "pocket", &broken, "-p", "0", "-n", "2", "-r", "1", "-o", format]);
        assert_eq!(answer.code, Some(1), "{answer:?}");
        assert!(answer.stdout.contains("pocket") && answer.stdout.contains("tg2"), "{format}: {answer:?}");
        assert!(answer.stderr.lines().last().is_some_and(|line| line.contains("broken.gguf")), "{answer:?}");
    }
}

#[cfg(unix)]
#[test]
fn bench_prints_what_it_measured_before_a_signal_ended_it() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    for (signal, code, format) in [("-INT", 130, "md"), ("-TERM", 143, "json")] {
        let home = Home::new();
        let args = ["bench", "pocket", "-p", "0", "-n", "2,900", "-r", "1", "-o", format];
        let mut bench = home.command(&args);
        let mut child = bench.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("pensive runs");
        let mut said = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        assert!(said.any(|line| line.expect("text").contains("tg2 ")), "the first test is done");
        Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill runs");
        let answer = Answer::of(child.wait_with_output().expect("pensive ends"));
        assert_eq!(answer.code, Some(code), "{answer:?}");
        assert!(answer.stdout.contains("tg2") && !answer.stdout.contains("tg900"), "{answer:?}");
    }
}

#[test]
fn bench_looks_for_all_models_before_it_measures_the_first() {
    let home = Home::new();
    home.run(&["bench", "pocket", "./no/such.gguf", "-n", "2", "-r", "1"]).fails(1, &["no/such.gguf"]);
    home.run(&["bench", "pocket", "deepseek-r1:7b", "-n", "2", "-r", "1"]).fails(1, &["deepseek-r1:7b"]);
    home.run(&["bench", "pocket", "--synthetic", "no-such:1b"]).fails(2, &["no-such:1b"]);
}

#[test]
fn perplexity_compares_with_a_reference() {
    let Some(model) = common::real_model(common::SMOLLM2.1) else { return };
    let Some(reference) = common::fixture("real/smollm2-135m.safetensors") else { return };
    let home = Home::new();
    let (model, reference) = (model.to_str().expect("UTF-8"), reference.to_str().expect("UTF-8"));
    let object = home.run(&["perplexity", model, "--reference", reference, "--json"]).json();
    assert!(object["kl"].as_f64().is_some_and(|kl| 0.0 < kl && kl < 0.0015), "{object}");
    assert!(object["top1"].as_f64().is_some_and(|share| share > 0.9), "{object}");
    assert_eq!(object["positions"], 256);
    home.run(&["perplexity", model, "--reference", reference, "-c", "100"]).fails(1, &["256", "100"]);
    home.run(&["perplexity", model, "--reference", model]).fails(1, &["SmolLM2", "not a safetensors file"]);
}

#[test]
fn perplexity_of_a_text_is_lower_where_it_repeats_itself() {
    let Some(model) = common::real_model(common::SMOLLM2.1) else { return };
    let model = model.to_str().expect("a UTF-8 path");
    let home = Home::new();
    let of = |name: &str, text: String| {
        let file = home.file(name, &text);
        home.run(&["perplexity", model, "--text", &file, "-c", "64", "--json"]).json()
    };
    let numbers = (0..120u64).map(|i| (i * i * 7919 % 9973).to_string() + " ").collect();
    let (words, random) = (of("words", "the cat sat on the mat. ".repeat(40)), of("random", numbers));
    let perplexity = |object: &serde_json::Value| object["perplexity"].as_f64().expect("a number");
    assert!(1.0 < perplexity(&words) && perplexity(&words) < 2.0, "{words}");
    assert!(perplexity(&random) > 4.0 * perplexity(&words), "{random}");
    // windows of 64 whose positions 32..=62 have a next token
    assert!(words["positions"].as_u64().is_some_and(|n| n > 0 && n % 31 == 0), "{words}");
    assert_eq!((&words["kl"], &words["top1"]), (&serde_json::Value::Null, &serde_json::Value::Null));
}

/// What llama.cpp computes for tests/fixtures/tides.txt, as llama-perplexity does it: `peers perplexity` on this file.
const OF_LLAMA_CPP: [(&str, f64); 3] =
    [(common::SMOLLM2.1, 29.2588), (common::QWEN_05B.1, 35.4322), (common::QWEN_15B.1, 18.4896)];

#[test]
fn perplexity_is_within_half_a_percent_of_what_llama_cpp_computes() {
    let home = Home::new();
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tides.txt");
    for (file, theirs) in OF_LLAMA_CPP {
        let Some(model) = common::real_model(file) else { continue };
        let object =
            home.run(&["perplexity", model.to_str().expect("UTF-8"), "--text", text, "--json"]).json();
        let ours = object["perplexity"].as_f64().expect("a number");
        assert!((ours / theirs - 1.0).abs() < 0.005, "{file}: {ours}, llama.cpp {theirs}");
    }
}

#[test]
fn a_text_without_one_window_is_refused() {
    let Some(model) = common::real_model(common::SMOLLM2.1) else { return };
    let home = Home::new();
    let file = home.file("short.txt", "a few words\n");
    home.run(&["perplexity", model.to_str().expect("UTF-8"), "--text", &file])
        .fails(2, &["3 tokens", "window 512"]);
}
