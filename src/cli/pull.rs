//! `pensive pull MODEL`, and the pull that `run` and `chat` do for a missing model.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::args::{LoadArgs, PullArgs};
use super::interrupt::{self, Second};
use super::memory;
use super::render::{Bar, Console, Unit, bytes, print};
use super::settings::model_name;
use crate::checkpoint::embedded;
use crate::hub::{Hub, HubReference, Located, Phase, Plan, Progress, Reference, Settings};
use crate::{Error, Result};

/// `run` and `chat` ask before a larger download.
const ASK_ABOVE_BYTES: u64 = 10_000_000_000;

/// Context that the memory before a download is estimated at, tokens.
const ESTIMATE_CONTEXT: usize = 8192;

pub(super) fn run(args: &PullArgs, console: &Console) -> Result<ExitCode> {
    let hub = hub(args.offline)?;
    let name = &model_name(&args.model)?;
    let reference = hub.reference(name)?;
    let located = if hub.settings().offline.value {
        hub.find(&reference)?.ok_or_else(|| missing_offline(&hub, &reference, name))?
    } else {
        let reference = match reference {
            Reference::Hub(reference) => reference,
            Reference::Path(path) if embedded::bytes(&path).is_some() => {
                return Err(Error::Hub(format!(
                    "{name} is a part of pensive itself: there is nothing to pull"
                )));
            }
            Reference::Path(path) => {
                return Err(Error::file(path, "it is on this machine already: there is nothing to pull"));
            }
        };
        let plan = Plan { verify: args.verify, ..plan(&hub, &reference, console)? };
        announce(&plan, console);
        download(&hub, &plan, name, console)?
    };
    for file in &located.files {
        print(format!("{}\n", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The hub by the environment; `--offline` goes before it.
pub(super) fn hub(offline: bool) -> Result<Hub> {
    let settings = Settings::from_env()?;
    Ok(Hub::new(if offline { settings.offline(true) } else { settings }))
}

/// What the hub says that a download would fetch.
pub(super) fn plan(hub: &Hub, reference: &HubReference, console: &Console) -> Result<Plan> {
    hub.plan(reference, &|wait| {
        console.note(asks_to_wait(wait));
        std::thread::sleep(wait);
    })
}

fn asks_to_wait(wait: Duration) -> String {
    format!("the hub asks to wait {} s", wait.as_secs())
}

/// Sees to it that the files of a model are here, for `run` and `chat`.
///
/// # Errors
/// They are not, and must not or cannot be pulled; the error has the command that pulls them.
pub(super) fn ensure(name: &str, args: &LoadArgs, console: &Console) -> Result<()> {
    let hub = hub(args.offline)?;
    let reference = hub.reference(name)?;
    if hub.find(&reference)?.is_some() {
        return Ok(());
    }
    if hub.settings().offline.value {
        return Err(missing_offline(&hub, &reference, name));
    }
    let Reference::Hub(reference) = reference else { return Ok(()) };
    if let Some(Err(why)) = reference.entry.map(|entry| entry.runnable()) {
        return Err(Error::Unsupported(format!("{name}: {why}")));
    }
    if !args.yes && !console.can_ask() {
        let what = "to download it now, add --yes, or run";
        return Err(Error::Hub(format!("{name} is not on this machine; {what} `pensive pull {name}`")));
    }
    fetch(&hub, &reference, name, args.yes, console)
}

fn fetch(hub: &Hub, reference: &HubReference, name: &str, yes: bool, console: &Console) -> Result<()> {
    let plan = plan(hub, reference, console)?;
    announce(&plan, console);
    let size = plan.missing_bytes();
    if !yes && size > ASK_ABOVE_BYTES && !console.confirm(&format!("Download {}?", bytes(size)))? {
        return Err(Error::Hub(format!("{name} was not downloaded; `pensive pull {name}` does it later")));
    }
    download(hub, &plan, name, console).map(drop)
}

fn missing_offline(hub: &Hub, reference: &Reference, name: &str) -> Error {
    let here = match reference {
        Reference::Hub(reference) => hub.choices(reference).unwrap_or_default(),
        Reference::Path(_) => Vec::new(),
    };
    let here = if here.is_empty() { String::new() } else { format!(" (of it there is {})", here.join(", ")) };
    Error::Hub(format!(
        "{name} is not on this machine{here}, and the network is off: run `pensive pull {name}` online"
    ))
}

/// Says what a download brings before it starts.
fn announce(plan: &Plan, console: &Console) {
    let revision = if plan.revision == "main" { String::new() } else { format!("@{}", plan.revision) };
    let quantization = plan.quantization.as_ref().map_or(String::new(), |q| format!(" {q}"));
    console.note(format!("{}{revision}{quantization}", plan.repository));
    console
        .note(format!("  licence  {}", plan.licence.as_deref().unwrap_or("none stated by the repository")));
    let free = plan.free_disk.map_or(String::new(), |free| format!(", {} free on disk", bytes(free)));
    let here = match plan.total_bytes() - plan.missing_bytes() {
        0 => String::new(),
        here => format!(", {} of it here", bytes(here)),
    };
    console.note(format!("  size     {}{here}{free}", bytes(plan.total_bytes())));
    console.note(format!("  memory   {}", needs(plan)));
    if let Some(Err(why)) = plan.entry.map(|entry| entry.runnable()) {
        console.note(format!("  it cannot be run: {why}"));
    }
}

/// "needs about X of your Y GiB".
fn needs(plan: &Plan) -> String {
    let Some(entry) = plan.entry else {
        return memory::needs(plan.total_bytes(), "without its context");
    };
    let context = entry.shape.context.min(ESTIMATE_CONTEXT);
    let bytes = plan.total_bytes() + entry.kv_bytes(context);
    memory::needs(bytes, &format!("at {context} tokens of context"))
}

fn download(hub: &Hub, plan: &Plan, name: &str, console: &Console) -> Result<Located> {
    let cancel = Arc::new(AtomicBool::new(false));
    let armed = interrupt::arm(Second::Ends, {
        let cancel = Arc::clone(&cancel);
        move || cancel.store(true, Ordering::Relaxed)
    });
    let mut bar = match plan.missing_bytes() {
        0 => console.slow_bar("checking", Unit::Bytes),
        missing => console.download_bar(missing),
    };
    let mut checks = false;
    let mut show = |progress: &Progress<'_>| {
        // What is read again is not the speed of what arrives.
        if std::mem::replace(&mut checks, progress.phase == Phase::Checking) != checks {
            bar.finish();
        }
        show(&mut bar, progress, console);
    };
    let result = hub.pull(plan, &mut show, &cancel);
    drop((bar, armed));
    result.map_err(|error| match cancel.load(Ordering::Relaxed) {
        true => Error::Hub(format!("stopped; `pensive pull {name}` goes on from there")),
        false => error,
    })
}

fn show(bar: &mut Bar, progress: &Progress<'_>, console: &Console) {
    bar.update(progress.done, progress.total);
    bar.message(match progress.phase {
        Phase::Waiting => "waiting for another download of this file".into(),
        Phase::Damaged => {
            bar.note(console, format!("{} is not what the hub has: it is fetched anew", progress.file));
            "fetching anew".into()
        }
        Phase::Checking => "checking what is here".into(),
        Phase::Retrying { wait: Some(wait), .. } => {
            bar.note(console, asks_to_wait(wait));
            "waiting".into()
        }
        Phase::Retrying { attempt, wait: None } => format!("the connection broke, try {}", attempt + 1),
        Phase::Downloading => progress.file.rsplit('/').next().unwrap_or_default().to_owned(),
    });
}
