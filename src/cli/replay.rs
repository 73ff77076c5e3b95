//! `pensive replay FILE`: whether a run can be repeated, bit for bit. And how `run --receipt FILE` writes one.

use std::fs::{File, Metadata};
use std::io::{BufReader, Write};
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::args::{LoadArgs, ReplayArgs};
use super::render::{Console, Unit, print};
use super::session;
use super::settings::{Flags, Settings};
use crate::api::{Quantize, Receipt};
use crate::backend::devices::DeviceChoice;
use crate::checkpoint::WholeFile;
use crate::{Error, KvType, Model, Result, Stats};

pub(super) fn run(args: &ReplayArgs, console: &Console) -> Result<ExitCode> {
    let json = std::fs::read_to_string(&args.file).map_err(|e| Error::io(&args.file, e))?;
    let receipt = Receipt::parse(&json).map_err(|e| Error::file(&args.file, e.to_string()))?;
    let model = load(&receipt, args, console)?;
    let mut bar = console.slow_bar("replaying", Unit::Tokens);
    let verdict = receipt.verify(&model, args.decode, |done, total| bar.update(done as u64, total as u64))?;
    bar.finish();
    if args.json {
        let report = Report {
            identical: verdict.is_identical(),
            tokens: verdict.tokens,
            text: verdict.to_string(),
            altered: verdict.is_altered,
            other_weights: verdict.other_weights,
            sequence: verdict.differs.as_ref().map(|d| d.sequence),
            first_logits: verdict.differs.as_ref().and_then(|d| d.logits),
            first_token: verdict.differs.as_ref().and_then(|d| d.token).map(|token| token.0),
        };
        print(serde_json::to_string(&report).map_err(|e| Error::Text(e.to_string()))? + "\n")?;
    } else {
        print(format!("{verdict}\n"))?;
        if !verdict.is_identical() && !verdict.other_weights && receipt.pensive != env!("CARGO_PKG_VERSION") {
            let what = format!(
                "the receipt is by pensive {}, this is {}",
                receipt.pensive,
                env!("CARGO_PKG_VERSION")
            );
            console.note(what);
        }
    }
    Ok(ExitCode::from(u8::from(!verdict.is_identical())))
}

/// The answer of `--json`.
#[derive(Serialize)]
struct Report {
    identical: bool,
    tokens: usize,
    text: String,
    altered: bool,
    other_weights: bool,
    sequence: Option<u64>,
    first_logits: Option<usize>,
    first_token: Option<usize>,
}

/// The receipt's model, or the named one, with what the receipt needs.
fn load(receipt: &Receipt, args: &ReplayArgs, console: &Console) -> Result<Model> {
    let kv_type = KvType::ALL.into_iter().find(|kv_type| kv_type.to_string() == receipt.kv_type);
    let Some(kv_type) = kv_type else {
        return Err(Error::file(&args.file, format!("kv_type: there is no `{}`", receipt.kv_type)));
    };
    // what memory had room for then may be another now
    let quantized = receipt.model.quantized.as_deref();
    let quantize = quantized.map_or(Ok(Quantize::Never), |mix| {
        mix.parse().map_err(|what| Error::file(&args.file, format!("quantized: {what}")))
    })?;
    let (device, gpu_layers) = match (&args.device, receipt.placement()) {
        (Some(device), recorded) => (device.clone(), recorded.ok().flatten().and_then(|(_, layers)| layers)),
        (None, recorded) => {
            let recorded = recorded.map_err(|e| Error::file(&args.file, e.to_string()))?;
            recorded.unwrap_or((DeviceChoice::Cpu, None))
        }
    };
    let load = LoadArgs {
        device: Some(device),
        gpu_layers: args.gpu_layers.or(gpu_layers),
        quantize: Some(quantize),
        context: Some(receipt.context()),
        kv_type: Some(kv_type),
        threads: args.threads,
        offline: true,
        ..LoadArgs::default()
    };
    let name = args.model.as_ref().unwrap_or(&receipt.model.name);
    // on a GPU steps have to be those of the run
    let checks = !receipt.is_of_gpu();
    let flags = Flags { model: Some(name.clone()), load, checks, ..Flags::default() };
    session::load_once(&Settings::from_env(flags)?, console)
}

/// Writes the receipt of a run or a vote; nothing is left under its name if that fails.
///
/// # Errors
/// The model's files or `path` cannot be read or written.
pub(super) fn write(path: &Path, model: &Model, traces: &[Stats], console: &Console) -> Result<()> {
    let mut bar = console.slow_bar("hashing the weights", Unit::Bytes);
    let receipt = Receipt::new(model, traces, |done, total| bar.update(done, total))?;
    bar.finish();
    // a link stays one; what is no file, such as a pipe, is written to as it is
    let to = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if to.metadata().is_ok_and(|there| !there.is_file()) {
        return std::fs::write(&to, receipt.to_json()).map_err(|e| Error::io(path, e));
    }
    let text = receipt.to_json();
    let written = WholeFile::create(&to, text.len() as u64).and_then(|whole| {
        whole.file().write_all(text.as_bytes())?;
        whole.keep()
    });
    written.map_err(|e| Error::io(path, e))
}

/// Whether a receipt can be written there, over nothing else: asked before a run that would be lost.
///
/// # Errors
/// There is no folder, nothing may be written in it, or the file holds something else than a receipt.
pub(super) fn check_place(path: &Path) -> Result<()> {
    let there = path.metadata().ok();
    if there.as_ref().is_some_and(Metadata::is_dir) {
        return Err(Error::file(path, "is a folder: name a file"));
    }
    match there {
        Some(there) if !there.is_file() => return Ok(()), // such as a pipe
        Some(there) if there.len() > 0 && !is_receipt(path) => {
            let what = "is there already and is no receipt: name another file";
            return Err(Error::file(path, what));
        }
        _ => {}
    }
    let to = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let what = format!("there is no folder {}: make it, or name another file", folder.display());
        return Err(Error::file(path, what));
    }
    tempfile::tempfile_in(folder).map(drop).map_err(|e| Error::io(path, e))
}

/// Whether a file is a receipt, of whatever version. Other files are not read to their end.
fn is_receipt(path: &Path) -> bool {
    #[derive(serde::Deserialize)]
    struct Kind {
        schema: String,
    }
    let kind = File::open(path).map(|file| serde_json::from_reader::<_, Kind>(BufReader::new(file)));
    matches!(kind, Ok(Ok(kind)) if kind.schema.starts_with("pensive receipt "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_replaces_nothing_but_a_receipt() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        for good in
            [file("empty", ""), file("r.json", r#"{"schema":"pensive receipt 0"}"#), "new.json".into()]
        {
            check_place(&good).unwrap();
        }
        for (name, text) in [("m.gguf", "GGUF"), ("package.json", "{}"), ("x.json", r#"{"schema":"x"}"#)] {
            let error = check_place(&file(name, text)).unwrap_err().to_string();
            assert!(error.contains(name) && error.ends_with("no receipt: name another file"), "{error}");
        }
        let error = check_place(&folder.path().join("none/r.json")).unwrap_err().to_string();
        assert!(error.contains("r.json: there is no folder"), "{error}");
        assert!(check_place(folder.path()).unwrap_err().to_string().ends_with("is a folder: name a file"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 5, "nothing is left of the check");
    }
}
