//! `pensive selftest`: whether a device computes what the CPU does. For scripts/gpu-check, where no tests can be compiled.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use super::args::SelftestArgs;
use super::render::{Console, print, table};
use crate::api::measure::{Agreement, Trial, agreement, synthetic_agreement};
use crate::backend::KvType;
use crate::checkpoint::embedded;
use crate::quant::Mix;
use crate::{Error, Result};

/// A line of the result.
#[derive(Serialize)]
struct Row {
    model: String,
    weights: String,
    kv_type: String,
    gpu_layers: Option<usize>,
    good: bool,
    #[serde(flatten)]
    agreement: Agreement,
}

/// Models in super-blocks, which the small checkpoints are too narrow for: dense ones, whose steps are programs, and experts.
const WIDE: [&str; 3] = ["deepseek-r1:1.5b", "deepseek-r1:8b", "qwen3:30b-a3b"];

impl Row {
    fn new(model: String, weights: String, trial: &Trial, agreement: Agreement) -> Row {
        let (good, kv_type) = (agreement.is_good(), trial.kv_type.to_string());
        Row { model, weights, kv_type, gpu_layers: trial.gpu_layers, good, agreement }
    }
}

pub(super) fn run(args: &SelftestArgs, console: &Console) -> Result<ExitCode> {
    let mut rows = Vec::new();
    for path in paths(args)? {
        // only what is stored as plain floats can be tried in several types
        let is_plain = path.is_dir();
        for (weights, trial) in trials(args, is_plain) {
            let model = path.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            let found = agreement(&path, &trial)?;
            console.detail(format!("{model} {weights}: {found:?}"));
            rows.push(Row::new(model, weights, &trial, found));
        }
    }
    for name in WIDE {
        let trial = Trial { device: args.device.clone(), ..Trial::default() };
        let found = synthetic_agreement(name, 1, &trial)?;
        rows.push(Row::new(format!("a layer of {name}"), "random".to_owned(), &trial, found));
    }
    let bad = rows.iter().filter(|row| !row.good).count();
    if args.json {
        print(serde_json::to_string(&rows).map_err(|e| Error::Text(e.to_string()))? + "\n")?;
    } else {
        let device = rows.first().map_or(String::new(), |row| row.agreement.device.clone());
        let verdict = if bad == 0 { "all good".to_owned() } else { format!("{bad} FAILED") };
        print(format!("{}\n{} trials on {device}: {verdict}\n", lines(&rows), rows.len()))?;
    }
    Ok(ExitCode::from(u8::from(bad > 0)))
}

/// The folders within the given ones that hold a checkpoint, files as they are, and the model inside.
fn paths(args: &SelftestArgs) -> Result<Vec<PathBuf>> {
    let is_checkpoint = |path: &Path| path.join("config.json").is_file();
    let mut all = Vec::new();
    for path in &args.paths {
        if path.is_file() || is_checkpoint(path) {
            all.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
        let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        found.retain(|path| is_checkpoint(path));
        found.sort();
        if found.is_empty() {
            return Err(Error::file(path, "holds no checkpoint: neither config.json nor folders with one"));
        }
        all.extend(found);
    }
    all.extend(embedded::path(embedded::NAME).map(Path::to_owned));
    Ok(all)
}

/// What a checkpoint is tried with.
fn trials(args: &SelftestArgs, is_plain: bool) -> Vec<(String, Trial)> {
    let trial = |mix: Option<&str>, kv_type, gpu_layers| {
        let weights = mix.unwrap_or("as stored").to_owned();
        (weights, Trial { device: args.device.clone(), mix: mix.and_then(Mix::parse), gpu_layers, kv_type })
    };
    let mut all = vec![trial(None, KvType::F16, None)];
    if is_plain {
        all.push(trial(None, KvType::F32, None));
        all.extend(["Q8_0", "Q4_0", "Q5_1"].map(|mix| trial(Some(mix), KvType::F16, None)));
    }
    all.push(trial(None, KvType::F16, Some(1)));
    all
}

fn lines(rows: &[Row]) -> String {
    let head =
        ["MODEL", "WEIGHTS", "KV", "LAYERS", "KL TO REFERENCE", "CPU'S", "KL TO CPU", "SAME TOKEN", ""];
    let kl = |kl: Option<f64>| kl.map_or("-".to_owned(), |kl| format!("{kl:.1e}"));
    let row = |row: &Row| {
        let a = &row.agreement;
        let same = match a.near_ties {
            0 => format!("{} of {}", a.same_best, a.positions),
            ties => format!("{} of {}, {ties} near ties", a.same_best, a.positions),
        };
        let verdict = match (row.good, a.repeats) {
            (true, _) => "ok",
            (false, true) => "FAILED",
            (false, false) => "FAILED: does not repeat itself",
        };
        vec![
            row.model.clone(),
            row.weights.clone(),
            row.kv_type.clone(),
            row.gpu_layers.map_or("all".to_owned(), |n| n.to_string()),
            kl(a.kl_to_reference),
            kl(a.cpu_kl_to_reference),
            kl(Some(a.kl_to_cpu)),
            same,
            verdict.to_owned(),
        ]
    };
    let mut all = vec![head.map(str::to_owned).to_vec()];
    all.extend(rows.iter().map(row));
    table(&all)
}
