//! `pensive remove MODEL`.

use std::process::ExitCode;

use super::args::RemoveArgs;
use super::pull;
use super::render::{Console, bytes, error_line, print};
use super::settings::model_name;
use crate::{Error, Result};

pub(super) fn run(args: &RemoveArgs, console: &Console) -> Result<ExitCode> {
    let hub = pull::hub(true)?;
    let removal = hub.removal(&hub.reference(&model_name(&args.model)?)?)?;
    for blob in &removal.kept {
        console.note(format!("kept, another snapshot uses it: {}", blob.display()));
    }
    let freed = bytes(removal.freed_bytes);
    if !args.yes {
        if !console.can_ask() {
            let what =
                format!("{} was not removed ({freed}): add --yes where nobody can be asked", args.model);
            return Err(Error::Hub(what));
        }
        for file in &removal.files {
            error_line(file.display().to_string());
        }
        if !console.confirm(&format!("Remove, and free {freed}?"))? {
            return Err(Error::Hub("nothing was removed".into()));
        }
    }
    let freed = hub.remove(&removal)?;
    for file in &removal.files {
        print(format!("{}\n", file.display()))?;
    }
    console.note(format!("removed {}, freed {}", args.model, bytes(freed)));
    Ok(ExitCode::SUCCESS)
}
