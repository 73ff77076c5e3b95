//! The binary as a user meets it: what it prints where, and with which exit code.

use std::path::Path;
use std::process::{Command, Stdio};

use common::command::{Answer, Home, setting};
use common::server::Server;
use pensive::checkpoint::{Value, write::GgufWriter};

mod common;
#[path = "hub/tiny.rs"]
mod tiny;

#[test]
fn options_without_a_command_are_told_where_they_belong() {
    let answer = Home::new().run(&["-c", "4096"]);
    assert_eq!(answer.code, Some(2));
    assert!(answer.stderr.ends_with("pensive chat -c 4096\n"), "{answer:?}");
}

#[test]
fn what_is_not_on_this_machine_is_advised_to_be_pulled() {
    let home = Home::new();
    assert!(home.run(&["show", "deepseek-r1:7b"]).succeeds().contains("pensive pull"));
}

#[test]
fn a_system_file_that_is_no_text_is_named() {
    let home = Home::new();
    let file = home.path().join("latin1.txt");
    std::fs::write(&file, b"caf\xe9").expect("a temporary file");
    let answer = home.run(&["run", "m", "hi", "--system-file", file.to_str().expect("a UTF-8 path")]);
    answer.fails(1, &["latin1.txt", "is not UTF-8 text", "convert it first"]);
}

#[test]
fn help_names_every_command_and_shows_examples() {
    let home = Home::new();
    let help = home.run(&["--help"]);
    for word in [
        "chat",
        "run",
        "pull",
        "list",
        "show",
        "remove",
        "tokenize",
        "bench",
        "perplexity",
        "quantize",
        "config",
        "Examples:",
    ] {
        assert!(help.succeeds().contains(word), "{word}");
    }
    let help = home.run(&["run", "--help"]);
    let text = help.succeeds().split_whitespace().collect::<Vec<_>>().join(" ");
    for word in ["--threads", "-t", "--json-stream", "--thought", "After `--`", "Examples:", "130"] {
        assert!(text.contains(word), "{word}");
    }
    for command in [
        "chat",
        "pull",
        "ls",
        "show",
        "rm",
        "tokenize",
        "bench",
        "perplexity",
        "quantize",
        "config",
        "completions",
    ] {
        home.run(&[command, "--help"]).succeeds();
        assert!(home.run(&["help", command]).succeeds().contains("Usage: pensive"), "{command}");
    }
    assert!(home.run(&["help"]).succeeds().contains("Examples:"));
}

#[test]
fn the_version_is_the_packages() {
    assert_eq!(
        Home::new().run(&["--version"]).succeeds(),
        concat!("pensive ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn wrong_usage_exits_with_2() {
    let home = Home::new();
    for args in [
        &["run"][..],
        &["run", "m", "hi", "-n", "none"],
        &["run", "m", "hi", "--think", "perhaps"],
        &["run", "m", "hi", "--temprature", "0"],
        &["run", "--jsn", "m", "hi"],
        &["run", "m", "hi", "--top-p", "2"],
        &["run", "m", "hi", "--json", "--thought", "stdout"],
        &["pull"],
        &["completions", "cobol"],
        &["bench"],
        &["bench", "--synthetic", "no-such:1b"],
        &["bench", "m", "--layers", "2"],
        &["bench", "m", "-r", "0"],
        &["bench", "m", "-t", "2,0"],
        &["bench", "m", "-p", "512,-1"],
        &["bench", "m", "-o", "xml"],
        &["bench", "m", "-p", "0", "-n", "0"],
        &["bench", "m", "-d", "4096", "-c", "2048"],
        &["perplexity", "m"],
        &["quantize", "m"],
        &["quantize", "m", "f.gguf"],
        &["quantize", "m", "f.gguf", "--type", "q9"],
        &["run", "m", "hi", "--quantize", "q9"],
        &["perplexity", "m", "--text", "a", "--reference", "b"],
        &["run", "m", "--format", "json", "hi"],
        &["tokenize", "m", "--no-specal"],
        &["run", "m", "hi", "--votes", "2", "--until-agree", "3"],
        &["run", "m", "hi", "--min-think", "100", "--think-budget", "10"],
        &["run", "m", "hi", "--min-think", "100", "--no-think"],
        &["run", "m", "hi", "--think-budget", "20", "--no-think"],
        &["run", "m", "hi", "--receipt", "-"],
        &["quantize", "m", "-", "--type", "q8_0"],
        &["--nonsense"],
    ] {
        let answer = home.run(args);
        assert_eq!((answer.code, answer.stdout.as_str()), (Some(2), ""), "{args:?}: {answer:?}");
    }
}

#[test]
fn a_context_that_no_machine_holds_is_wrong_usage() {
    for context in ["18446744073709551615", "1073741825"] {
        let command = ["run", "pocket", "hi", "--force", "--context", context];
        Home::new().run(&command).fails(2, &["context", context]);
    }
}

#[test]
fn layers_for_a_gpu_that_is_not_there_are_told_once() {
    let home = Home::new();
    for device in ["auto", "cpu"] {
        let command = ["run", "pocket", "hi", "-n", "2", "--think", "off", "-ngl", "99", "--device", device];
        let answer = home.run(&command);
        answer.succeeds();
        assert_eq!(answer.stderr.matches("--gpu-layers 99").count(), 1, "{answer:?}");
    }
    let none = home.run(&["run", "pocket", "hi", "-n", "2", "--think", "off", "-ngl", "0"]);
    assert!(none.code == Some(0) && !none.stderr.contains("gpu-layers"), "{none:?}");
}

#[test]
fn a_model_in_place_of_a_command_is_told_how_to_chat() {
    let answer = Home::new().run(&["deepseek-r1:7b"]);
    assert_eq!(answer.code, Some(2));
    assert!(answer.stderr.contains("pensive chat deepseek-r1:7b"), "{answer:?}");
}

#[test]
fn an_empty_prompt_exits_with_2() {
    let home = Home::new();
    home.run(&["run", "deepseek-r1", ""]).fails(2, &["the prompt is empty"]);
    home.run(&["run", "deepseek-r1"]).fails(2, &["the prompt is empty"]);
    home.run_with_stdin(&["run", "deepseek-r1", " "], b" \n").fails(2, &["the prompt is empty"]);
    home.run_with_stdin(&["run", "deepseek-r1", "--raw"], b"").fails(2, &["the prompt is empty"]);
}

#[test]
fn piped_bytes_that_are_no_text_are_refused() {
    let answer = Home::new().run_with_stdin(&["run", "deepseek-r1", "hi"], b"ab\xff");
    answer.fails(1, &["standard input", "not UTF-8", "byte 2"]);
}

#[test]
fn a_path_that_does_not_exist_is_named() {
    for command in [
        &["run", "./no/such.gguf", "hi"][..],
        &["show", "./no/such.gguf"],
        &["tokenize", "./no/such.gguf", "a"],
        &["bench", "./no/such.gguf"],
        &["perplexity", "m", "--text", "./no/such.gguf"],
        &["perplexity", "m", "--reference", "./no/such.gguf"],
    ] {
        Home::new().run(command).fails(1, &["no/such.gguf"]);
    }
}

#[test]
fn a_file_that_is_no_gguf_is_named() {
    let home = Home::new();
    let file = home.file("notes.gguf", "these are notes, not weights\n");
    for command in [&["run", &file, "hi"][..], &["show", &file], &["tokenize", &file, "a"]] {
        home.run(command).fails(1, &["notes.gguf", "GGUF"]);
    }
}

#[test]
fn a_receipt_never_replaces_another_file() {
    let home = Home::new();
    let file = home.file("m.gguf", "GGUF");
    home.run(&["run", &file, "hi", "--receipt", &file]).fails(1, &["m.gguf", "no receipt", "another file"]);
    assert_eq!(std::fs::read_to_string(&file).expect("it is still there"), "GGUF");
}

#[cfg(feature = "pocket")]
#[test]
fn a_receipt_is_written_over_an_older_one_and_touches_no_other_file() {
    let home = Home::new();
    let beside = home.file("r.json.partial", "mine");
    let file = home.path().join("r.json");
    let receipt = || {
        let args = ["run", "pocket", "1+1?", "-s", "1", "--receipt", file.to_str().expect("a UTF-8 path")];
        home.run(&args).succeeds();
        std::fs::read_to_string(&file).expect("a receipt")
    };
    assert_eq!(receipt(), receipt());
    assert_eq!(std::fs::read_to_string(beside).expect("it is still there"), "mine");
}

#[test]
fn a_text_without_text_is_named_before_the_model_is_loaded() {
    let home = Home::new();
    let file = home.file("empty.txt", "\n");
    home.run(&["perplexity", "m", "--text", &file]).fails(1, &["empty.txt: holds no text"]);
}

#[test]
fn a_chat_whose_model_is_gone_says_who_named_it() {
    let home = Home::new();
    let gone = |command: &mut Command| Answer::of(command.output().expect("pensive runs"));
    let answer = gone(home.command(&["chat"]).env("PENSIVE_MODEL", "./no/such.gguf"));
    answer.fails(1, &["no/such.gguf", "the model of PENSIVE_MODEL", "`pensive chat MODEL`"]);
    let typed = gone(&mut home.command(&["chat", "./no/such.gguf"]));
    assert!(typed.code == Some(1) && !typed.stderr.contains("pensive chat MODEL"), "{typed:?}");
}

#[test]
fn presets_name_models_for_every_command() {
    let home = Home::new();
    let config = home.file("presets.toml", "[models.mine]\nbase = './no/such.gguf'\n");
    for args in [&["quantize", "mine", "out.gguf", "--type", "q8_0"][..], &["remove", "mine", "--yes"]] {
        let answer = home.command(args).env("PENSIVE_CONFIG", &config).output().expect("pensive runs");
        Answer::of(answer).fails(1, &["no/such.gguf"]);
    }
}

#[test]
fn an_unknown_model_name_is_answered_with_the_nearest() {
    for command in
        [&["run", "deepseek-r1:7", "hi"][..], &["show", "deepseek-r1:7"], &["pull", "deepseek-r1:7"]]
    {
        Home::new().run(command).fails(1, &["deepseek-r1:7", "deepseek-r1:7b"]);
    }
}

#[test]
fn a_missing_model_is_not_pulled_unasked_and_the_error_has_the_command() {
    let home = Home::new();
    let mut command = home.command(&["run", "deepseek-r1:7b", "hi"]);
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", "http://127.0.0.1:9");
    let answer = Answer::of(command.output().expect("pensive runs"));
    answer.fails(1, &["`pensive pull deepseek-r1:7b`", "--yes"]);
    home.run(&["run", "deepseek-r1:7b", "hi", "--yes"])
        .fails(1, &["`pensive pull deepseek-r1:7b`", "the network is off"]);
    home.run(&["chat", "deepseek-r1:7b", "--offline"]).fails(1, &["deepseek-r1:7b"]);
    home.run(&["tokenize", "deepseek-r1:7b", "a"]).fails(1, &["`pensive pull deepseek-r1:7b`"]);
}

#[cfg(not(feature = "pocket"))]
#[test]
fn without_any_model_pensive_alone_says_what_to_do() {
    Home::new().run(&[]).fails(2, &["pensive chat deepseek-r1", "config.toml"]);
}

#[test]
fn an_empty_cache_is_an_empty_list() {
    let home = Home::new();
    let answer = home.run(&["list"]);
    assert_eq!(answer.succeeds(), "");
    assert!(answer.stderr.contains("pensive pull"), "{answer:?}");
    assert_eq!(home.run(&["ls", "--json", "--all"]).json(), serde_json::json!([]));
    assert_eq!(home.run(&["-q", "list"]).stderr, "");
}

#[test]
fn show_knows_a_catalog_model_before_it_is_pulled() {
    let home = Home::new();
    let text = home.run(&["show", "deepseek-r1:7b"]);
    for word in ["qwen2", "Q4_K_M", "MIT", "<think>", "temperature 0.6", "pensive pull deepseek-r1:7b", "GiB"]
    {
        assert!(text.succeeds().contains(word), "{word}: {text:?}");
    }
    let shown = |context| home.run(&["show", "deepseek-r1:7b-q8_0", "--json", "-c", context]).json();
    let (json, long) = (shown("4096"), shown("32768"));
    assert_eq!((&json["quantization"], &json["downloaded"]), (&"Q8_0".into(), &false.into()));
    assert_eq!(json["memory"][0]["context"], 4096);
    // the embedding stays in the file; 28,672 tokens more take 56 KiB each of keys and values
    let bytes = |json: &serde_json::Value| json["memory"][0]["bytes"].as_u64().unwrap();
    assert!(bytes(&json) < json["bytes"].as_u64().unwrap(), "{json}");
    assert!((56 << 10..60 << 10).contains(&((bytes(&long) - bytes(&json)) / 28672)), "{long}");
    home.run(&["show", "someone/unheard-of"]).fails(1, &["`pensive pull someone/unheard-of`"]);
}

#[test]
fn removing_what_is_not_there_or_was_not_pulled_fails() {
    let home = Home::new();
    home.run(&["remove", "deepseek-r1:7b", "--yes"]).fails(1, &["DeepSeek-R1-Distill-Qwen-7B"]);
    let file = home.file("mine.gguf", "mine");
    home.run(&["rm", &file, "--yes"]).fails(1, &["mine.gguf"]);
    assert!(Path::new(&file).exists());
}

#[test]
fn completions_are_written_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(Home::new().run(&["completions", shell]).succeeds().contains("tokenize"), "{shell}");
    }
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let home = Home::new();
    for args in [&["completions", "bash"][..], &["config"], &["--help"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let answer = Answer::of(home.command(args).stdout(writer).output().expect("pensive runs"));
        assert_eq!((answer.code, answer.stderr.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn config_prints_every_value_with_its_origin_and_all_paths() {
    let home = Home::new();
    let file = home.file(
        "my.toml",
        "model = 'coder'\ncontext = 1024\nthreads = 1\n[models.coder]\nbase = 'deepseek-r1:7b'\n\
         sampling = { top_k = 40 }\n",
    );
    let mut command = home.command(&["config", "--json", "-t", "3", "--temp", "0.1"]);
    command.env("PENSIVE_CONFIG", &file).env("PENSIVE_CONTEXT", "2048");
    let config = Answer::of(command.output().expect("pensive runs")).json();
    let expected = [
        ("model", "coder".into(), "config"),
        ("base", "deepseek-r1:7b".into(), "config [models.\"coder\"]"),
        ("context", 2048.into(), "PENSIVE_CONTEXT"),
        ("threads", 3.into(), "flag"),
        ("temperature", 0.1.into(), "flag"),
        ("top-k", 40.into(), "config [models.\"coder\"]"),
        ("top-p", 0.95.into(), "catalog"),
        ("min-p", 0.0.into(), "default"),
        ("think", "on".into(), "catalog"),
        ("seed", serde_json::Value::Null, "default"),
        ("offline", true.into(), "HF_HUB_OFFLINE"),
    ];
    for (name, value, origin) in expected {
        assert_eq!(setting(&config, name), (value, origin.to_owned()), "{name}");
    }
    assert_eq!(config["paths"]["config"], serde_json::json!({"value": file, "origin": "PENSIVE_CONFIG"}));
    assert_eq!(config["paths"]["cache"]["origin"], "HF_HOME");
    assert!(config["paths"]["state"]["value"].is_string());
    let text = home.run(&["config"]);
    for word in ["SETTING", "thought", "one per fast core", "config.toml", "hf"] {
        assert!(text.succeeds().contains(word), "{word}: {text:?}");
    }
}

#[test]
fn a_token_is_never_printed() {
    let home = Home::new();
    let mut command = home.command(&["config"]);
    let answer = Answer::of(command.env("HF_TOKEN", "hf_secret").output().expect("pensive runs"));
    assert!(!answer.succeeds().contains("hf_secret") && answer.stdout.contains("HF_TOKEN"), "{answer:?}");
}

#[test]
fn a_wrong_config_is_named_by_file_and_key() {
    let home = Home::new();
    let config = |text: &str| {
        let file = home.file("wrong.toml", text);
        let mut command = home.command(&["config"]);
        Answer::of(command.env("PENSIVE_CONFIG", file).output().expect("pensive runs"))
    };
    config("modle = 'x'").fails(1, &["wrong.toml", "line 1", "unknown field `modle`"]);
    config("[models.a]\nsytem = 'x'").fails(1, &["wrong.toml", "line 2", "unknown field `sytem`"]);
    config("context = 0").fails(1, &["wrong.toml", "context"]);
    let mut command = home.command(&["config"]);
    let missing = home.path().join("missing.toml");
    let answer = Answer::of(command.env("PENSIVE_CONFIG", missing).output().expect("pensive runs"));
    answer.fails(1, &["missing.toml"]);
}

#[test]
fn a_wrong_variable_is_named() {
    let home = Home::new();
    let mut command = home.command(&["config"]);
    let answer = Answer::of(command.env("PENSIVE_THREADS", "many").output().expect("pensive runs"));
    answer.fails(2, &["PENSIVE_THREADS=many", "whole number"]);
}

/// `run` of a small real model, greedy and short; none (with a printed reason) where the model is absent.
fn run_real(home: &Home, stdin: &str, args: &[&str]) -> Option<Answer> {
    let model = common::real_model(common::SMOLLM2.1)?;
    let model = model.to_str().expect("a UTF-8 path");
    let all = [&["run", model, "--temperature", "0", "-n", "24", "-c", "512"], args].concat();
    Some(home.run_with_stdin(&all, stdin.as_bytes()))
}

#[test]
fn an_answer_is_printed_on_stdout_and_ends_in_one_newline() {
    let home = Home::new();
    let Some(answer) = run_real(&home, "", &["What", "colour", "is", "grass?"]) else { return };
    let text = answer.succeeds();
    assert!(text.trim().len() > 2 && text.ends_with('\n') && !text.ends_with("\n\n"), "{answer:?}");
    let remembered = home.run(&["config", "--json"]).json();
    assert_eq!(setting(&remembered, "model").1, "last used");
}

#[test]
fn piped_text_is_part_of_the_prompt() {
    let home = Home::new();
    let Some(words) = run_real(&home, "", &["--json", "summarise"]) else { return };
    let Some(both) = run_real(&home, "grass is green\n", &["--json", "summarise"]) else { return };
    let prompt = |answer: &Answer| answer.json()["prompt_tokens"].as_u64().expect("a count");
    assert!(prompt(&both) > prompt(&words));
}

#[test]
fn json_has_the_text_that_is_printed_and_the_streamed_events_end_with_it() {
    let home = Home::new();
    let prompt = "-5 + 3?";
    let Some(text) = run_real(&home, "", &[prompt]) else { return };
    let Some(json) = run_real(&home, "", &[prompt, "--json"]) else { return };
    let Some(stream) = run_real(&home, "", &["--json-stream", prompt]) else { return };
    let object = json.json();
    assert_eq!(format!("{}\n", object["answer"].as_str().expect("a text")), text.succeeds());
    assert_eq!(object["architecture"], "llama");
    assert_eq!(object["context"], 512);
    let lines: Vec<serde_json::Value> = stream
        .succeeds()
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON on every line"))
        .collect();
    let (last, events) = lines.split_last().expect("at least one line");
    assert_eq!((&last["tokens"], &last["answer"]), (&object["tokens"], &object["answer"]));
    let answer: String =
        events.iter().filter(|e| e["event"] == "answer").filter_map(|e| e["text"].as_str()).collect();
    assert_eq!(answer.trim(), object["answer"]);
}

#[test]
fn a_raw_prompt_is_continued_without_a_template() {
    let home = Home::new();
    let Some(answer) = run_real(&home, "One, two, three,", &["--raw", "--json", "-n", "4"]) else { return };
    let object = answer.json();
    assert!(object["answer"].as_str().expect("a text").starts_with(" four"), "{object}");
    assert_eq!((&object["finish"], object["tokens"].as_array().map(Vec::len)), (&"length".into(), Some(4)));
}

#[test]
fn a_stop_string_ends_the_answer_and_is_not_printed() {
    let home = Home::new();
    let args = ["--raw", "-n", "40", "--stop", "six"];
    let Some(answer) = run_real(&home, "One, two, three,", &args) else { return };
    assert_eq!(answer.succeeds(), " four, five, \n");
}

#[test]
fn a_prompt_that_leaves_no_room_exits_with_1_and_both_numbers() {
    let home = Home::new();
    let Some(answer) = run_real(&home, &"word ".repeat(2000), &[]) else { return };
    answer.fails(1, &["tokens", "512"]);
}

#[test]
fn a_reader_that_leaves_ends_a_generation_quietly() {
    let Some(model) = common::real_model(common::SMOLLM2.1) else { return };
    let home = Home::new();
    let mut command = home.command(&["run", model.to_str().expect("a UTF-8 path"), "-n", "400", "-q", "hi"]);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let answer = Answer::of(command.stdout(writer).output().expect("pensive runs"));
    assert_eq!((answer.code, answer.stderr.as_str()), (Some(0), ""));
}

#[cfg(unix)]
#[test]
fn ctrl_c_prints_the_partial_result_and_exits_with_130() {
    use std::io::{BufRead, BufReader, Read};
    let Some(model) = common::real_model(common::SMOLLM2.1) else { return };
    let home = Home::new();
    let model = model.to_str().expect("a UTF-8 path");
    let mut command =
        home.command(&["run", model, "--raw", "--json-stream", "Once upon a time", "-c", "8192"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("pensive runs");
    let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let mut line = String::new();
    while !line.contains("answer") {
        line.clear();
        assert!(stdout.read_line(&mut line).expect("a line") > 0, "it ended before it answered");
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("UTF-8 on stdout");
    let last: serde_json::Value =
        serde_json::from_str(rest.lines().last().expect("a last line")).expect("JSON");
    assert_eq!(last["finish"], "interrupted");
    assert_eq!(child.wait().expect("pensive ends").code(), Some(130));
}

/// A hub on 127.0.0.1 whose repository `o/r` has one file, without weights and `padding` bytes long.
fn hub(padding: usize) -> Server {
    let metadata = [("general.architecture", "qwen2"), ("general.license", "apache-2.0")]
        .map(|(key, text)| (key.to_owned(), Value::String(text.into())));
    let mut metadata = std::collections::BTreeMap::from(metadata);
    metadata.insert("general.description".into(), Value::String("x".repeat(padding)));
    let file = GgufWriter::new(Vec::new(), &metadata, &[]).and_then(|w| w.finish()).expect("a GGUF file");
    Server::new(&[("r-Q4_K_M.gguf", file)])
}

/// A command that may use the network, whose hub is `hub`.
fn online(home: &Home, hub: &Server, args: &[&str]) -> Command {
    let mut command = home.command(args);
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", hub.endpoint());
    command
}

fn pull(home: &Home, hub: &Server) -> Answer {
    Answer::of(online(home, hub, &["pull", "o/r"]).output().expect("pensive runs"))
}

#[test]
fn pull_says_what_comes_and_prints_where_it_is() {
    let (home, hub) = (Home::new(), hub(1000));
    let answer = pull(&home, &hub);
    let path = Path::new(answer.succeeds().trim_end());
    assert!(path.starts_with(home.path()) && path.ends_with("r-Q4_K_M.gguf") && path.exists(), "{answer:?}");
    for word in ["o/r Q4_K_M", "licence", "size     1 kB", "free on disk", "needs about"] {
        assert!(answer.stderr.contains(word), "{word}: {answer:?}");
    }
    let mut quiet = online(&home, &hub, &["pull", "-q", "o/r"]);
    assert_eq!(Answer::of(quiet.output().expect("pensive runs")).stderr, "");
}

#[test]
fn a_pulled_model_is_listed_shown_and_removed() {
    let (home, hub) = (Home::new(), hub(1000));
    let path = pull(&home, &hub).succeeds().trim_end().to_owned();
    let list = home.run(&["list", "--all", "--json"]).json();
    assert_eq!((&list[0]["quantization"], &list[0]["files"][0]), (&"Q4_K_M".into(), &path.as_str().into()));
    let shown = home.run(&["show", "o/r", "--json"]).json();
    assert_eq!((&shown["downloaded"], &shown["repository"]), (&true.into(), &"o/r".into()));
    home.run(&["remove", "o/r"]).fails(1, &["o/r was not removed", "add --yes where nobody can be asked"]);
    assert!(Path::new(&path).exists());
    assert_eq!(home.run(&["remove", "o/r", "--yes"]).succeeds().trim_end(), path);
    assert!(!Path::new(&path).exists());
}

#[test]
fn a_pulled_repository_of_safetensors_is_listed_shown_run_quantized_and_removed_by_its_name() {
    let Some(files) = tiny::split() else { return };
    let (home, hub) = (Home::new(), Server::new(&files));
    let folder = pull(&home, &hub).succeeds().trim_end().to_owned();
    let list = home.run(&["list", "--json"]).json();
    assert_eq!((&list[0]["name"], &list[0]["files"][0]), (&"o/r".into(), &folder.as_str().into()));
    let (by_name, by_path) = (shown(&home, &["o/r"]), shown(&home, &[&folder]));
    assert_eq!((&by_name["bytes"], &by_name["files"]), (&by_path["bytes"], &by_path["files"]));
    assert_eq!(
        (&by_name["sampling"]["temperature"], &by_name["chat_template"]),
        (&0.25.into(), &true.into())
    );

    let receipt = home.path().join("r.json");
    let run = |model: &str| {
        let receipt = receipt.to_str().expect("a UTF-8 path");
        let mut args = vec!["run", "-q", model, "ab", "--json", "--seed", "1", "--max-tokens", "4"];
        args.extend(["-c", "64", "--receipt", receipt]);
        let answer = home.run(&args).json();
        let receipt: serde_json::Value =
            serde_json::from_slice(&std::fs::read(receipt).expect("a receipt")).expect("JSON");
        (answer["answer"].clone(), receipt["model"]["sha256"].clone())
    };
    assert_eq!(run("o/r"), run(&folder));
    home.run(&["run", "o/r:q8_0", "ab"]).fails(1, &["o/r holds safetensors", "--quantize q8_0"]);

    let file = home.path().join("small.gguf");
    let quantize =
        home.run(&["quantize", "o/r", file.to_str().expect("a UTF-8 path"), "--type", "q8_0", "--json"]);
    assert_eq!(quantize.code, Some(0), "{quantize:?}");
    assert_eq!(shown(&home, &[file.to_str().expect("a UTF-8 path")])["architecture"], "qwen2");

    let removed = home.run(&["remove", "o/r", "--yes"]);
    assert_eq!(removed.succeeds().lines().count(), files.len());
    assert!(!Path::new(&folder).exists());
}

#[test]
fn run_asks_nobody_on_the_network_before_it_may() {
    let (home, hub) = (Home::new(), hub(1000));
    let unasked = Answer::of(online(&home, &hub, &["run", "o/r", "hi"]).output().expect("pensive runs"));
    unasked.fails(1, &["`pensive pull o/r`"]);
    assert!(hub.state.seen.lock().expect("no test panicked with it").is_empty());
    let mut yes = online(&home, &hub, &["run", "-q", "o/r", "hi", "--yes"]);
    Answer::of(yes.output().expect("pensive runs")).fails(1, &["r-Q4_K_M.gguf", "embedding_length"]);
    assert!(hub.served() > 1000);
}

/// A slow download that is sent a signal on its way.
#[cfg(unix)]
fn signalled_download(home: &Home, hub: &Server, signal: &str) -> Answer {
    let mut first = online(home, hub, &["pull", "o/r"]);
    let child = first.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("pensive runs");
    while hub.served() < 1 << 20 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill runs");
    Answer::of(child.wait_with_output().expect("pensive ends"))
}

#[cfg(unix)]
#[test]
fn a_signal_to_end_exits_with_its_own_code() {
    for (signal, code) in [("-TERM", 143), ("-HUP", 129)] {
        let (home, hub) = (Home::new(), hub(4 << 20));
        hub.state.slow.store(50, std::sync::atomic::Ordering::SeqCst);
        let answer = signalled_download(&home, &hub, signal);
        assert_eq!(answer.code, Some(code), "{signal}: {answer:?}");
    }
}

#[cfg(unix)]
#[test]
fn without_home_the_cache_is_where_the_system_has_the_users_folder() {
    let home = Home::new();
    let mut command = home.command(&["config", "--json"]);
    command.env_remove("HOME").env_remove("HF_HOME");
    let config = Answer::of(command.output().expect("pensive runs"));
    assert!(config.succeeds().contains("/.cache/huggingface/hub"), "{config:?}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_a_download_which_a_second_pull_takes_up() {
    let (home, hub) = (Home::new(), hub(4 << 20));
    hub.state.slow.store(50, std::sync::atomic::Ordering::SeqCst);
    let answer = signalled_download(&home, &hub, "-INT");
    assert_eq!(answer.code, Some(130), "{answer:?}");
    assert!(answer.stderr.contains("`pensive pull o/r` goes on from there"), "{answer:?}");
    assert_eq!(answer.stderr.matches("stopped").count(), 1, "{answer:?}");
    hub.state.slow.store(0, std::sync::atomic::Ordering::SeqCst);
    pull(&home, &hub).succeeds();
    let files = hub.seen_files();
    assert!(files.last().is_some_and(|seen| seen.range.is_some()), "{files:?}");
}

#[cfg(feature = "pocket")]
#[test]
fn the_model_inside_the_binary_answers_with_nothing_downloaded() {
    let home = Home::new();
    let answer = home.run(&["run", "pocket", "--json", "What is 12 + 30?"]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    let report: serde_json::Value = serde_json::from_str(&answer.stdout).expect("JSON");
    assert!(report["answer"].as_str().is_some_and(|text| text.contains("\\boxed{42}")), "{report}");
    assert!(report["thought"].as_str().is_some_and(|text| !text.is_empty()), "{report}");
}

#[cfg(feature = "pocket")]
#[test]
fn without_speculation_the_answer_is_the_same() {
    let home = Home::new();
    let question = ["run", "pocket", "--seed", "1", "What is 12 + 30?"];
    let plain = home.run(&[&question[..], &["--no-speculation"]].concat());
    assert_eq!(plain.succeeds(), home.run(&question).succeeds());
}

#[cfg(feature = "pocket")]
#[test]
fn a_chat_opens_with_pocket_where_no_model_was_pulled_and_says_how_to_get_a_real_one() {
    let home = Home::new();
    let answer = home.run_with_stdin(&[], b"What is 12 + 30?\n");
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(answer.stdout.contains("42"), "{answer:?}");
    assert_eq!(answer.stderr.matches("pensive chat deepseek-r1").count(), 1, "{answer:?}");
    let config = home.run(&["config"]);
    assert!(!config.stdout.contains("last used"), "it is not remembered: {config:?}");
}

#[cfg(feature = "pocket")]
#[test]
fn a_saved_chat_is_gone_on_with_in_its_own_model_from_the_command_line() {
    let home = Home::new();
    home.run_with_stdin(&["chat", "pocket"], b"/set temperature 0.125\n12 + 30?\n/save sums\n").succeeds();
    let mut command = home.command(&["chat", "--load", "sums", "--seed", "5"]);
    command.env("PENSIVE_MODEL", "./no/such.gguf");
    let lines = home.file("lines", "/set temperature\n/set seed\n/thought\n/undo\n");
    command.stdin(std::fs::File::open(lines).expect("the lines"));
    let answer = Answer::of(command.output().expect("pensive runs"));
    assert_eq!(answer.succeeds(), "");
    let said: Vec<&str> = answer.stderr.lines().collect();
    assert_eq!(
        said[..3],
        ["loaded sums: 2 messages, you last said: 12 + 30?", "temperature 0.125", "seed 5"]
    );
    assert!(said[3..].contains(&"12+30") && said.ends_with(&["taken back: 12 + 30?"]), "{said:?}");
}

#[test]
fn a_saved_chat_that_is_not_there_or_whose_model_is_gone_says_so() {
    let home = Home::new();
    home.run(&["chat", "--load", "none"]).fails(1, &["none.json: there is no such chat"]);
    let both = home.run(&["chat", "--load", "none", "--system", "Be brief."]);
    assert_eq!(both.code, Some(2), "{both:?}");
    let file = home.file("old.json", r#"{"model":"./no/such.gguf","messages":[]}"#);
    let gone = home.run(&["chat", "--load", &file]);
    gone.fails(1, &["no/such.gguf", "the model of the saved chat", "`pensive chat MODEL --load NAME`"]);
}

#[cfg(feature = "pocket")]
#[test]
fn pocket_is_shown_and_hashed_like_any_model() {
    let home = Home::new();
    let shown = home.run(&["show", "pocket", "--json"]);
    let facts: serde_json::Value = serde_json::from_str(&shown.stdout).expect("JSON");
    assert_eq!((facts["architecture"].as_str(), facts["runnable"].as_bool()), (Some("qwen2"), Some(true)));
    assert_eq!(facts["licence"].as_str().map(str::to_lowercase).as_deref(), Some("mit"));
    let tokens = home.run(&["tokenize", "pocket", "9.11", "--json"]);
    assert_eq!(tokens.json().as_array().map(Vec::len), Some(4), "a token a character");
}

/// The file of a command that writes one, and what `pensive show` says of it.
fn shown(home: &Home, args: &[&str]) -> serde_json::Value {
    let answer = home.run(&[&["show", "--json"], args].concat());
    assert_eq!(answer.code, Some(0), "{answer:?}");
    serde_json::from_str(&answer.stdout).expect("JSON")
}

#[test]
fn quantize_writes_a_file_once_and_says_what_is_in_it() {
    let home = Home::new();
    let file = home.path().join("pocket.gguf");
    let file = file.to_str().unwrap();
    let command = ["quantize", "pocket", file, "--type", "q4_0", "--json"];
    let answer = home.run(&command);
    assert_eq!((answer.code, answer.stderr.as_str()), (Some(0), ""), "{answer:?}");
    let written: serde_json::Value = serde_json::from_str(&answer.stdout).expect("JSON");
    assert!(written["bits_per_weight"].as_f64().unwrap() < 8.0, "{written}");
    home.run(&command).fails(1, &["pocket.gguf", "is there already", "--force"]);
    let forced = home.run(&[&command[..], &["--force"]].concat());
    assert_eq!((forced.code, &forced.stdout), (Some(0), &answer.stdout));
    assert_eq!(shown(&home, &[file])["quantization"], "Q4_0");
    let entries = std::fs::read_dir(home.path()).unwrap();
    let left: Vec<_> = entries.map(|e| e.unwrap().file_name()).filter(|n| n != "pocket.gguf").collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".gguf")), "{left:?}");
}

#[test]
fn show_tells_what_weights_are_quantized_to_while_they_are_loaded_and_the_memory_that_takes() {
    let home = Home::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/arch/phi3-longrope");
    let folder = folder.to_str().unwrap();
    let (stored, quantized) =
        (shown(&home, &[folder, "-c", "64"]), shown(&home, &[folder, "-c", "64", "--quantize", "q8_0"]));
    assert_eq!((&stored["loaded_as"], &quantized["loaded_as"]), (&serde_json::Value::Null, &"Q8_0".into()));
    let bytes = |facts: &serde_json::Value| facts["memory"][0]["bytes"].as_u64().unwrap();
    assert!(bytes(&quantized) < bytes(&stored), "{quantized}");
}
