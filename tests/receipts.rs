//! Receipts replay, whatever the threads, the vector width, speculation and company; and what was changed is found.
#![cfg(all(feature = "pocket", feature = "cli"))]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::time::Duration;

use pensive::api::{Receipt, VoteEvent, VoteOptions};
use pensive::backend::cpu::kernels::Isa;
use pensive::{Event, Finish, Model, Options};

static POCKET: LazyLock<Model> = LazyLock::new(|| {
    Model::builder("pocket").sequences(4).logit_rows(128).load().expect("pocket is a part of pensive")
});

const QUESTION: &str = "What is 5834 - 962?";

fn warm() -> Options {
    Options::new().temperature(2.5).seed(4).record(true)
}

fn receipt(options: &Options) -> Receipt {
    let stats = POCKET.generate(QUESTION, options).unwrap().finish().unwrap();
    Receipt::new(&POCKET, &[stats], |_, _| ()).unwrap()
}

fn both_ways(receipt: &Receipt) -> [pensive::api::Verdict; 2] {
    [false, true].map(|decode| receipt.verify(&POCKET, decode, |_, _| ()).unwrap())
}

#[test]
fn a_run_is_identical_when_it_is_fed_and_when_it_is_generated_anew() {
    for options in [
        warm(),
        warm().temperature(0.0),
        warm().speculate(false),
        warm().think_budget(40),
        warm().think_budget(0),
        warm().min_think(150),
        warm().max_tokens(60),
        warm().loop_guard(false).stop("box"),
        warm().think_time(Duration::from_micros(300)),
    ] {
        let receipt = receipt(&options);
        for verdict in both_ways(&receipt) {
            assert!(verdict.is_identical(), "{verdict}");
            assert_eq!(verdict.tokens, receipt.sequences[0].tokens.len());
        }
    }
}

#[test]
fn a_raw_run_and_an_interrupted_one_are_identical() {
    let raw =
        POCKET.generate(pensive::Prompt::raw("1+2="), &warm().max_tokens(30)).unwrap().finish().unwrap();
    let mut generation = POCKET.generate(QUESTION, &warm()).unwrap();
    let cancel = generation.cancel_handle();
    let events = generation.by_ref().take_while(|e| !matches!(e, Ok(Event::Thought(_)))).count();
    cancel.cancel();
    let cut = generation.finish().unwrap();
    assert!(events > 0 && cut.finish == Finish::Interrupted);
    for stats in [raw, cut] {
        let receipt = Receipt::new(&POCKET, &[stats], |_, _| ()).unwrap();
        assert!(both_ways(&receipt).iter().all(|verdict| verdict.is_identical()));
    }
}

#[test]
fn a_run_is_identical_that_was_interrupted_where_its_control_was_about_to_act() {
    let options = warm().think_budget(40).speculate(false);
    let act = POCKET.generate(QUESTION, &options).unwrap().finish().unwrap().control[0].at;
    let mut bound = POCKET.generate(QUESTION, &options).unwrap();
    while bound.stats().tokens.len() < act {
        bound.next().expect("it goes on").unwrap();
    }
    let mut edited = POCKET.generate(QUESTION, &options).unwrap();
    while edited.thought().len() < 10 {
        edited.next().expect("it goes on").unwrap();
    }
    let kept = edited.thought()[..5].to_owned();
    assert!(edited.set_thought(&(kept + " hm")).unwrap());
    for generation in [bound, edited] {
        generation.cancel_handle().cancel();
        let receipt = Receipt::new(&POCKET, &[generation.finish().unwrap()], |_, _| ()).unwrap();
        for verdict in both_ways(&receipt) {
            assert!(verdict.is_identical(), "{verdict}");
            assert_eq!(verdict.tokens, receipt.sequences[0].tokens.len());
        }
    }
}

#[test]
fn a_run_that_filled_a_context_by_which_positions_are_encoded_is_replayed_in_that_one() {
    let receipt = receipt(&warm().max_tokens(20));
    let tokens = receipt.prompt_tokens.len() + receipt.sequences[0].tokens.len();
    assert_eq!(receipt.context(), tokens + 1);
    let filled = Receipt { rope_context: Some(tokens), ..receipt };
    assert_eq!(filled.context(), tokens);
    let error = filled.verify(&POCKET, false, |_, _| ()).unwrap_err().to_string();
    assert!(error.contains(&format!("--context {tokens}")), "{error}");
}

#[test]
fn each_trace_of_a_vote_is_identical_alone() {
    let votes = POCKET.vote(QUESTION, &warm(), VoteOptions::new(4)).unwrap();
    let Some(Ok(VoteEvent::Done(outcome))) = votes.last() else { panic!("a vote ends") };
    let receipt = Receipt::new(&POCKET, &outcome.traces, |_, _| ()).unwrap();
    assert_eq!(receipt.sequences.len(), 4);
    assert!(both_ways(&receipt).iter().all(|verdict| verdict.is_identical()));
}

#[test]
fn a_receipt_survives_being_written_and_read() {
    let receipt = receipt(&warm());
    assert_eq!(Receipt::parse(&receipt.to_json()).unwrap(), receipt);
    assert!(Receipt::parse("{}").is_err());
    let other = receipt.to_json().replace("pensive receipt 1", "pensive receipt 9");
    assert!(Receipt::parse(&other).unwrap_err().to_string().contains("this pensive reads"));
}

#[test]
fn what_was_changed_is_found_and_its_place_is_named() {
    let good = receipt(&warm());
    let check = |change: &dyn Fn(&mut Receipt)| {
        let mut bad = good.clone();
        change(&mut bad);
        let verdict = bad.verify(&POCKET, false, |_, _| ()).unwrap();
        assert!(verdict.is_altered && !verdict.is_identical());
        verdict.differs.map(|d| (d.logits, d.token.map(|token| token.0), d.control))
    };
    let id = good.sequences[0].tokens[7].0;
    assert_eq!(check(&|r| r.sequences[0].tokens[7].0 = id ^ 1), Some((None, Some(7), false)));
    assert_eq!(
        check(&|r| r.sequences[0].tokens[5].1 = "0123456789abcdef".into()),
        Some((Some(5), None, false))
    );
    assert_eq!(check(&|r| r.sequences[0].tokens[7].0 = 950), Some((None, Some(7), false)), "no token at all");
    assert!(matches!(check(&|r| r.seed += 1), Some((_, Some(_), _))));
    assert!(matches!(check(&|r| r.sampling.temperature = 30.0), Some((_, Some(_), _))));
    assert_eq!(check(&|r| r.prompt_tokens[3] ^= 1).map(|d| d.0), Some(Some(0)));
    assert_eq!(check(&|r| r.model.name = "another".into()), None);
}

#[test]
fn a_receipt_of_another_vocabulary_or_with_an_unknown_key_is_told() {
    let mut other = receipt(&warm());
    let json = other.to_json().replacen("\"budget\"", "\"xudget\"", 1);
    assert!(Receipt::parse(&json).unwrap_err().to_string().contains("xudget"));
    other.prompt_tokens[3] = 456;
    let error = other.verify(&POCKET, false, |_, _| ()).unwrap_err().to_string();
    assert!(error.contains("token 3 of the prompt is 456"), "{error}");
}

#[test]
fn a_hook_makes_a_run_that_cannot_be_replayed() {
    let receipt = receipt(&warm().logits_hook(|_, logits| logits[10] += 0.1));
    assert!(!receipt.replayable);
    assert!(receipt.verify(&POCKET, false, |_, _| ()).is_err());
}

#[test]
fn what_was_not_recorded_has_no_receipt() {
    let stats = POCKET.generate(QUESTION, &warm().record(false)).unwrap().finish().unwrap();
    assert!(Receipt::new(&POCKET, &[stats], |_, _| ()).is_err());
}

fn pensive(isa: Isa, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pensive"));
    command.args(args).env("PENSIVE_ISA", isa.name()).stdin(std::process::Stdio::null());
    command.output().expect("pensive runs")
}

/// Runs `model` in several ways, and replays each receipt in several others.
fn replays_everywhere(model: &str, question: &str, tokens: &str, threads: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("receipt.json");
    let file = file.to_str().unwrap();
    let isas: Vec<Isa> = Isa::available().collect();
    let mut digests = Vec::new();
    for (i, &isa) in isas.iter().enumerate() {
        let made = [
            "run",
            model,
            "-q",
            question,
            "--thought",
            "hide",
            "--receipt",
            file,
            "--seed",
            "3",
            "-n",
            tokens,
        ];
        let made =
            pensive(isa, &[&made[..], &["--temperature", "0.8", "-t", threads[i % threads.len()]]].concat());
        assert!(made.status.success(), "{made:?}");
        digests.push(Receipt::parse(&std::fs::read_to_string(file).unwrap()).unwrap().sha256);
        for (j, &other) in isas.iter().enumerate() {
            let threads = threads[(i + j + 1) % threads.len()];
            let replayed = pensive(other, &["replay", file, "-t", threads]);
            assert!(replayed.status.success(), "{isa} to {other}: {replayed:?}");
        }
        let decoded = pensive(isas[isas.len() - 1], &["replay", file, "--decode"]);
        assert_eq!(String::from_utf8_lossy(&decoded.stdout).split(':').next(), Some("identical"));
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "the receipts themselves are equal");
}

#[test]
fn receipts_are_equal_and_replay_over_threads_and_vector_widths() {
    replays_everywhere("pocket", "How many s's are in assessments?", "200", &["1", "2", "4"]);
}

#[test]
fn receipts_of_a_real_model_replay_over_threads_and_vector_widths() {
    let Some(path) = common::real_model(common::SMOLLM2.1) else { return };
    replays_everywhere(path.to_str().unwrap(), "Name three rivers.", "12", &["2", "1", "4"]);
}

/// What a replay says of pocket's file with a change in it; it must fail.
fn replayed_on_another_file(change: impl FnOnce(&mut Vec<u8>)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (file, model) = (folder.path().join("receipt.json"), folder.path().join("changed.gguf"));
    let made = pensive(Isa::detect().unwrap(), &["run", "pocket", "-q", QUESTION, "--receipt", path(&file)]);
    assert!(made.status.success(), "{made:?}");
    let mut bytes = include_bytes!("../models/pocket/pocket.gguf").to_vec();
    change(&mut bytes);
    std::fs::write(&model, bytes).unwrap();
    let replayed = pensive(Isa::detect().unwrap(), &["replay", path(&file), "--model", path(&model)]);
    assert_eq!(replayed.status.code(), Some(1), "{replayed:?}");
    String::from_utf8_lossy(&replayed.stdout).into_owned()
}

#[test]
fn other_weights_are_named() {
    let said = replayed_on_another_file(|bytes| {
        let at = bytes.len() - 100_001;
        bytes[at] ^= 0x10;
    });
    assert!(said.contains("logits of token") && said.contains("weights are others"), "{said}");
}

#[test]
fn another_file_is_told_even_if_it_says_the_same() {
    let said = replayed_on_another_file(|bytes| {
        let author = b"the authors of pensive";
        let at = bytes.windows(author.len()).position(|window| window == author).unwrap();
        bytes[at] = b'T';
    });
    assert!(said.contains("though tokens and logits are the same"), "{said}");
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_receipt_that_cannot_be_written_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere: PathBuf = folder.path().join("no").join("receipt.json");
    let made = pensive(Isa::detect().unwrap(), &["run", "pocket", QUESTION, "--receipt", path(&nowhere)]);
    assert_eq!(made.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&made.stderr).contains("receipt.json"));
}
