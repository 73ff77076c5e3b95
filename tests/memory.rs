//! The memory that `show` says is the memory that is taken.
#![cfg(target_os = "linux")]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{QWEN_05B, real_model};
use pensive::backend::KvType;
use pensive::backend::cpu::{CpuBackend, CpuOptions};
use pensive::checkpoint::Checkpoint;
use pensive::model::{Conversion, Decoder, Hyperparameters, Reads, Synthetic};
use pensive::quant::Mix;
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

/// At its peak, which is while weights are copied from the mapped file: pages of the file count too.
#[test]
fn a_run_takes_its_file_keys_and_values_and_100_mb_at_most() {
    let Some(path) = real_model(QWEN_05B.1) else { return };
    let context = 2048;
    let home = tempfile::tempdir().unwrap();
    let prompt = include_str!("../README.md");
    let mut run = Command::new(env!("CARGO_BIN_EXE_pensive"))
        .args(["run", path.to_str().unwrap(), "--temperature", "0", "--max-tokens", "24", "--threads", "2"])
        .args(["--context", &context.to_string(), &prompt[..prompt.floor_char_boundary(3800)]])
        .env("HOME", home.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut peak = 0;
    while run.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", run.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        peak = kilobytes.unwrap_or(0).max(peak);
        std::thread::sleep(Duration::from_millis(2));
    }
    let file = path.metadata().unwrap().len();
    let h = Hyperparameters::read(&Checkpoint::open(&path).unwrap()).unwrap();
    let keys_and_values = (context * h.layers * h.kv_shape().position_bytes(KvType::F16)) as u64;
    let more = (1024 * peak).saturating_sub(file + keys_and_values);
    println!(
        "{} MB beside the file and {} MB of keys and values",
        more / 1_000_000,
        keys_and_values / 1_000_000
    );
    assert!(1024 * peak > file, "the run read its weights");
    assert!(more < 100_000_000, "{more} bytes beside the file, keys and values");
}

/// Keys of latent attention that are stored together with values are made anew while loading.
#[test]
fn keys_that_are_cut_from_one_matrix_with_values_are_counted_once_and_no_coarser_than_q8_0() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/arch/deepseek-v3-fp8");
    let checkpoint = Checkpoint::open(folder).unwrap();
    let h = Hyperparameters::read(&checkpoint).unwrap();
    let made = |to: Option<&Conversion>| {
        let reads = Reads::of(&checkpoint, &h, to);
        let made = Decoder::made_bytes(&checkpoint, &h, to);
        let counted = reads.always.values().chain(reads.experts.values()).sum::<u64>();
        let mut backend = CpuBackend::new(CpuOptions::default()).unwrap();
        let decoder = Decoder::load_as(&checkpoint, &h, to, &mut backend, &mut |_, _| ()).unwrap();
        assert_eq!(
            counted.saturating_add_signed(made),
            decoder.work(1 << 10, 1).bytes,
            "all experts of so many rows"
        );
        made
    };
    let latent = h.latent.unwrap();
    let keys = (h.layers * h.heads * latent.rank * latent.plain_dims) as i64;
    assert_eq!(made(None), 0, "8-bit floats are F32 once they are decoded, and their keys stay so");
    let to = Conversion::new(Mix::parse("Q4_0").unwrap(), &checkpoint, &h);
    let q8_0 = if latent.plain_dims.is_multiple_of(32) { keys / 32 * 34 } else { keys * 2 };
    assert_eq!(made(Some(&to)), q8_0 - keys / 32 * 18, "Q4_0 is what the matrix is counted as");
}
