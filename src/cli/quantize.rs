//! `pensive quantize MODEL FILE --type TYPE`.

use std::path::Path;
use std::process::ExitCode;

use super::args::{LoadArgs, QuantizeArgs};
use super::interrupt::{self, Second};
use super::pull;
use super::render::{Console, Unit, bytes, print};
use super::settings::model_name;
use super::text::read_file;
use crate::api::{self, Importance};
use crate::checkpoint::Checkpoint;
use crate::{CancelHandle, Error, Result};

pub(super) fn run(args: &QuantizeArgs, console: &Console) -> Result<ExitCode> {
    if !args.force && args.file.exists() {
        return Err(Error::file(
            &args.file,
            "is there already: add --force to replace it, or name another file",
        ));
    }
    let load = LoadArgs { yes: args.yes, offline: args.offline, ..LoadArgs::default() };
    let name = model_name(&args.model)?;
    pull::ensure(&name, &load, console)?;
    let hub = pull::hub(true)?;
    let located = hub.find(&hub.reference(&name)?)?;
    let path = located.and_then(|located| located.files.first().cloned());
    let path = path.ok_or_else(|| Error::Hub(format!("{name} is not on this machine")))?;
    let checkpoint = Checkpoint::open(&path)?;
    let importance = args.calibrate.as_ref().map(|text| measure(&checkpoint, text, console)).transpose()?;

    let stop = CancelHandle::new();
    let armed = interrupt::arm(Second::Ends, {
        let stop = stop.clone();
        move || stop.cancel()
    });
    let mut bar = console.slow_bar("quantizing", Unit::Bytes);
    let report = |done, total| bar.update(done, total);
    let written = api::quantize_by(&checkpoint, args.mix, importance.as_ref(), &args.file, &stop, report);
    bar.finish();
    drop(armed);
    let written = written?;
    if !written.has_vocabulary {
        console.note(format!(
            "{} has no vocabulary, as {} has none: it cannot be given text; put tokenizer.json or tekken.json beside the weights",
            args.file.display(),
            path.display()
        ));
    }
    print(if args.json {
        serde_json::to_string(&written).map_err(|e| Error::Text(e.to_string()))? + "\n"
    } else {
        let types: Vec<String> =
            written.types.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        format!(
            "{}: {}, {:.2} bits per weight (from {}); {} tensors: {}\n",
            args.file.display(),
            bytes(written.bytes),
            written.bits_per_weight,
            bytes(written.from_bytes),
            written.tensors,
            types.join(", ")
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What matters of the model in a text.
fn measure(checkpoint: &Checkpoint, text: &Path, console: &Console) -> Result<Importance> {
    let text = read_file(text)?;
    let mut bar = console.slow_bar("calibrating", Unit::Tokens);
    Importance::measure(checkpoint, &text, |done, total| bar.update(done as u64, total as u64))
}
