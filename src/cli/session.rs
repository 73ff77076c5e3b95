//! From a name or settings to a model's files, and to the loaded model.

use super::keyboard;
use super::pull;
use super::render::{Console, Unit};
use super::settings::{Settings, model_name};
use crate::api::{ModelBuilder, Progress};
use crate::checkpoint::embedded;
use crate::hub::{Located, Reference};
use crate::{Error, Model, Result};

/// Loads the model of the settings; one that is missing is pulled first.
///
/// # Errors
/// No model is named, it cannot be pulled or must not be without `--yes`, or it cannot be loaded.
pub fn load(settings: &Settings, console: &Console) -> Result<Model> {
    let model = load_once(settings, console)?;
    // The embedded model is there where no other is; it must not stand before one that is pulled later.
    if let Some(called) = settings.model.as_ref().filter(|called| embedded::path(&called.value).is_none()) {
        settings.paths.remember_model(&called.value);
    }
    tell_useless(settings, &model, console);
    Ok(model)
}

/// Says which options do nothing with this model.
fn tell_useless(settings: &Settings, model: &Model, console: &Console) {
    let (generate, name) = (&settings.flags.generate, model.name());
    // too short a thought cannot be made longer where none ends: that is an error, not useless
    let bounds = generate.bounds().into_iter().filter(|&bound| bound != "--min-think" && !model.thinks());
    for bound in bounds {
        console.note(format!("{bound} does nothing: {name} is not known to think"));
    }
    for (variable, _) in generate.template_var.iter().filter(|(variable, _)| !model.reads_variable(variable))
    {
        let what =
            format!("--template-var {variable} does nothing: the chat template of {name} does not read it");
        console.note(what);
    }
}

/// [`load`], but the model is not remembered as the one that was used last: for measuring.
///
/// # Errors
/// As [`load`].
pub fn load_once(settings: &Settings, console: &Console) -> Result<Model> {
    ensure(settings, console)?;
    build(settings.builder()?, console)
}

/// Sees to it that the files of the settings' model are here.
///
/// # Errors
/// No model is named, or it cannot be pulled or must not be without `--yes`.
pub fn ensure(settings: &Settings, console: &Console) -> Result<()> {
    pull::ensure(settings.model_name()?, &settings.flags.load, console)
}

/// Loads what a builder says, with a bar.
///
/// # Errors
/// As [`ModelBuilder::load`].
pub fn build(builder: ModelBuilder, console: &Console) -> Result<Model> {
    let _quiet = console.stdout_terminal.then(keyboard::quiet);
    let mut bar = console.slow_bar("loading", Unit::Bytes);
    let on_progress = {
        let console = *console;
        move |progress| {
            if let Progress::Load { done, total } = progress {
                bar.update(done, total);
            } else if let Progress::Notice(text) = progress {
                bar.note(&console, text);
            }
        }
    };
    let model = builder.progress(on_progress).load()?;
    console.detail(format!(
        "{}: {} on {}, {} tokens of context, loaded in {:.1} s",
        model.name(),
        model.architecture(),
        model.device(),
        model.context(),
        model.load_seconds()
    ));
    for file in model.files() {
        console.detail(format!("file {}", file.display()));
    }
    Ok(model)
}

/// A named model and its files, if they are on this machine. Never touches the network.
pub struct Named {
    /// The name behind a preset.
    pub name: String,
    /// What it means.
    pub reference: Reference,
    /// Where its files are.
    pub located: Option<Located>,
}

impl Named {
    /// Looks up a name or preset.
    ///
    /// # Errors
    /// A name that means nothing, or a cache that cannot be read.
    pub fn find(model: &str) -> Result<Named> {
        let name = model_name(model)?;
        let hub = pull::hub(true)?;
        let reference = hub.reference(&name)?;
        let located = hub.find(&reference)?;
        Ok(Named { name, reference, located })
    }
}

/// The model is not here, and this command does not pull it.
pub fn missing(name: &str) -> Error {
    Error::Hub(format!("{name} is not on this machine: run `pensive pull {name}` first"))
}
