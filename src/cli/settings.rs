//! Every setting, its value and where it comes from: flag, PENSIVE_* variable, config.toml, catalog.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use serde::Deserialize;

use super::args::{ChatArgs, ConfigArgs, GenerateArgs, LoadArgs, RunArgs, Thought, check_sampling};
use super::text::read_file;
use crate::backend::devices::DeviceChoice;
use crate::checkpoint::embedded;
use crate::{Error, KvType, Model, ModelBuilder, Options, Result, SamplingOverrides, Think};

/// What config.toml may say.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Model that `pensive` alone opens.
    pub model: Option<String>,
    /// Context in tokens.
    pub context: Option<usize>,
    /// Threads to compute with.
    pub threads: Option<usize>,
    /// What to run on, as `--device` has it.
    pub device: Option<String>,
    /// Layers that go to the GPU.
    pub gpu_layers: Option<usize>,
    /// What to do with thoughts.
    pub thought: Option<Thought>,
    /// Presets by name, and settings for models by the name they are called with.
    #[serde(default)]
    pub models: BTreeMap<String, Preset>,
}

/// `[models.NAME]`: settings that go with a name.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preset {
    /// The model behind the name; without it NAME itself is the model.
    pub base: Option<String>,
    /// System message.
    pub system: Option<String>,
    /// Sampling.
    #[serde(default)]
    pub sampling: SamplingOverrides,
    /// Whether to think.
    pub thinking: Option<Think>,
}

/// Where pensive's own files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// config.toml.
    pub config: PathBuf,
    /// PENSIVE_CONFIG named it, so it must exist.
    pub config_is_named: bool,
    /// Folder of saved chats.
    pub data: PathBuf,
    /// Folder of what pensive remembers: the last model, the chat's history.
    pub state: PathBuf,
}

impl Paths {
    /// The platform's places; PENSIVE_CONFIG overrides that of config.toml.
    ///
    /// # Errors
    /// No home folder is known.
    pub fn from_env() -> Result<Paths> {
        let dirs = etcetera::choose_base_strategy()
            .map_err(|_| Error::Usage("no home folder is known: set HOME (on Windows USERPROFILE)".into()))?;
        let named = std::env::var_os("PENSIVE_CONFIG").filter(|v| !v.is_empty()).map(PathBuf::from);
        Ok(Paths {
            config_is_named: named.is_some(),
            config: named.unwrap_or_else(|| dirs.config_dir().join("pensive").join("config.toml")),
            data: dirs.data_dir().join("pensive"),
            state: dirs.state_dir().unwrap_or_else(|| dirs.cache_dir()).join("pensive"),
        })
    }

    /// The model that was loaded last.
    pub fn last_model(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.state.join(LAST_MODEL)).ok()?;
        Some(text.trim_end().to_owned()).filter(|name| !name.is_empty())
    }

    /// Remembers the model that was loaded last. It is a convenience: failing to is no error.
    pub fn remember_model(&self, name: &str) {
        let _ = std::fs::create_dir_all(&self.state)
            .and_then(|()| std::fs::write(self.state.join(LAST_MODEL), lasting_name(name) + "\n"));
    }
}

/// A model's name that means the same in every folder.
pub fn lasting_name(name: &str) -> String {
    let path = std::path::absolute(name).ok().filter(|path| embedded::path(name).is_none() && path.exists());
    path.map_or_else(|| name.to_owned(), |path| path.display().to_string())
}

/// Rows with logits of a step that checks a receipt.
const CHECKED_ROWS: usize = 128;

const LAST_MODEL: &str = "last-model";

impl Config {
    /// Reads config.toml; one that is not there is empty, unless PENSIVE_CONFIG names it.
    ///
    /// # Errors
    /// The file cannot be read, or holds an unknown key or a wrong value; the error names file, line and key.
    pub fn read(paths: &Paths) -> Result<Config> {
        match std::fs::read_to_string(&paths.config) {
            Ok(text) => Self::parse(&text, &paths.config),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !paths.config_is_named => {
                Ok(Config::default())
            }
            Err(e) => Err(Error::io(&paths.config, e)),
        }
    }

    /// Parses the text of config.toml; `path` is for the errors.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Config> {
        let config: Config = toml::from_str(text).map_err(|e| {
            let at = e.span().map_or(0, |span| span.start.min(text.len()));
            let number = text[..at].matches('\n').count() + 1;
            let line = text.lines().nth(number - 1).unwrap_or_default().trim();
            Error::file(path, format!("line {number} (`{line}`): {}", e.message()))
        })?;
        for (key, value) in [("context", config.context), ("threads", config.threads)] {
            if value == Some(0) {
                return Err(Error::file(path, format!("{key}: it must be 1 or more")));
            }
        }
        if let Some(Err(why)) = config.device.as_ref().map(|device| device.parse::<DeviceChoice>()) {
            return Err(Error::file(path, format!("device: {why}")));
        }
        for (name, preset) in &config.models {
            check_sampling(&preset.sampling)
                .map_err(|why| Error::file(path, format!("models.{name}.sampling: {why}")))?;
            let chained = |base: &&String| config.models.get(*base).is_some_and(|other| other.base.is_some());
            if let Some(base) = preset.base.as_ref().filter(chained) {
                let what =
                    format!("models.{name}.base: `{base}` is a preset itself; name the model behind it");
                return Err(Error::file(path, what));
            }
        }
        Ok(config)
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag,
    /// This environment variable.
    Variable(&'static str),
    /// config.toml.
    Config,
    /// `[models.NAME]` of config.toml.
    Preset(String),
    /// The saved chat that is gone on with.
    SavedChat,
    /// The model that was used last.
    LastUsed,
    /// The catalog's entry.
    Catalog,
    /// pensive's own.
    Default,
    /// The model inside the binary, where there is no other.
    BuiltIn,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag => f.write_str("flag"),
            Origin::Variable(name) => f.write_str(name),
            Origin::Config => f.write_str("config"),
            Origin::Preset(name) => write!(f, "config [models.{name:?}]"),
            Origin::SavedChat => f.write_str("saved chat"),
            Origin::LastUsed => f.write_str("last used"),
            Origin::Catalog => f.write_str("catalog"),
            Origin::Default => f.write_str("default"),
            Origin::BuiltIn => f.write_str("built in"),
        }
    }
}

/// A value and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Where it comes from.
    pub origin: Origin,
}

/// A value from `origin`, if there is one.
pub fn from<T>(origin: Origin, value: Option<T>) -> Option<Setting<T>> {
    value.map(|value| Setting { value, origin })
}

/// What the command line gave.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// MODEL.
    pub model: Option<String>,
    /// How to load it.
    pub load: LoadArgs,
    /// How to generate.
    pub generate: GenerateArgs,
    /// What to do with thoughts.
    pub thought: Option<Thought>,
    /// Sequences at once, if more than one.
    pub votes: Option<usize>,
    /// Whether receipts are checked: many rows want logits at once.
    pub checks: bool,
}

impl From<&RunArgs> for Flags {
    fn from(args: &RunArgs) -> Self {
        Flags {
            model: Some(args.model.clone()),
            load: args.load.clone(),
            generate: args.generate.clone(),
            thought: args.thought,
            votes: args.vote.votes,
            checks: false,
        }
    }
}

impl From<&ChatArgs> for Flags {
    fn from(args: &ChatArgs) -> Self {
        Flags {
            model: args.model.clone(),
            load: args.load.clone(),
            generate: args.generate.clone(),
            thought: args.thought,
            votes: None,
            checks: false,
        }
    }
}

impl From<&ConfigArgs> for Flags {
    fn from(args: &ConfigArgs) -> Self {
        Flags {
            model: args.model.clone(),
            load: args.load.clone(),
            generate: args.generate.clone(),
            thought: args.thought,
            votes: None,
            checks: false,
        }
    }
}

/// The settings of one command: flag before variable before config.toml. What none of them says is `None` and left
/// to the model.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The model by the name it is called with, perhaps a preset's.
    pub model: Option<Setting<String>>,
    /// Context in tokens.
    pub context: Option<Setting<usize>>,
    /// Threads to compute with.
    pub threads: Option<Setting<usize>>,
    /// What to run on.
    pub device: Option<Setting<DeviceChoice>>,
    /// Layers that go to the GPU.
    pub gpu_layers: Option<Setting<usize>>,
    /// How keys and values are stored.
    pub kv_type: Option<Setting<KvType>>,
    /// What to do with thoughts.
    pub thought: Option<Setting<Thought>>,
    /// System message.
    pub system: Option<Setting<String>>,
    /// Whether to think.
    pub think: Option<Setting<Think>>,
    /// Sampling of the flags.
    pub sampling_flags: SamplingOverrides,
    /// What the command line gave.
    pub flags: Flags,
    /// What config.toml says.
    pub config: Config,
    /// Where pensive's own files are.
    pub paths: Paths,
}

impl Settings {
    /// The settings of this process.
    ///
    /// # Errors
    /// As [`Settings::resolve`] and [`Config::read`].
    pub fn from_env(flags: Flags) -> Result<Settings> {
        let paths = Paths::from_env()?;
        Self::resolve(flags, Config::read(&paths)?, paths, |name| std::env::var_os(name))
    }

    /// The settings by these sources.
    ///
    /// # Errors
    /// A flag or variable out of its range, flags that contradict each other, or a system file that cannot be read.
    pub fn resolve(
        flags: Flags,
        config: Config,
        paths: Paths,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Settings> {
        let read = |name: &'static str| read_variable(name, &variable);
        let model = from(Origin::Flag, flags.model.clone())
            .or(from(Origin::Variable("PENSIVE_MODEL"), read("PENSIVE_MODEL")?))
            .or(from(Origin::Config, config.model.clone()))
            .or_else(|| from(Origin::LastUsed, paths.last_model()));
        let context = from(Origin::Flag, flags.load.context)
            .or(parse_variable("PENSIVE_CONTEXT", read("PENSIVE_CONTEXT")?, whole)?)
            .or(from(Origin::Config, config.context));
        let threads = from(Origin::Flag, flags.load.threads)
            .or(parse_variable("PENSIVE_THREADS", read("PENSIVE_THREADS")?, whole)?)
            .or(from(Origin::Config, config.threads));
        let device =
            |text: &str| text.parse::<DeviceChoice>().map_err(|_| "auto, cpu, cuda, cuda:N or metal");
        let device = from(Origin::Flag, flags.load.device.clone())
            .or(parse_variable("PENSIVE_DEVICE", read("PENSIVE_DEVICE")?, device)?)
            .or(from(Origin::Config, config.device.as_ref().and_then(|text| text.parse().ok())));
        let gpu_layers = from(Origin::Flag, flags.load.gpu_layers)
            .or(parse_variable("PENSIVE_GPU_LAYERS", read("PENSIVE_GPU_LAYERS")?, any_whole)?)
            .or(from(Origin::Config, config.gpu_layers));
        let thought = from(Origin::Flag, flags.thought)
            .or(parse_variable("PENSIVE_THOUGHT", read("PENSIVE_THOUGHT")?, thought)?)
            .or(from(Origin::Config, config.thought));
        let sampling_flags = flags.generate.sampling.overrides()?;
        flags.generate.check()?;
        let mut settings = Settings {
            model: None,
            context,
            threads,
            device,
            gpu_layers,
            kv_type: from(Origin::Flag, flags.load.kv_type),
            thought,
            system: None,
            think: None,
            sampling_flags,
            flags,
            config,
            paths,
        };
        settings.name_model(model)?;
        Ok(settings)
    }

    /// The same settings with another model: its preset's system message, sampling and thinking come with it.
    ///
    /// # Errors
    /// A system file that cannot be read.
    pub fn with_model(&self, name: &str, origin: Origin) -> Result<Settings> {
        let mut settings = self.clone();
        settings.name_model(from(origin, Some(name.to_owned())))?;
        Ok(settings)
    }

    fn name_model(&mut self, model: Option<Setting<String>>) -> Result<()> {
        self.model = model;
        let preset = self.preset().map(|(name, preset)| (Origin::Preset(name.to_owned()), preset.clone()));
        let (origin, preset) = preset.unwrap_or((Origin::Default, Preset::default()));
        let system = from(Origin::Flag, system_flag(&self.flags.generate)?);
        self.system = system.or(from(origin.clone(), preset.system)).filter(|s| !s.value.is_empty());
        self.think = from(Origin::Flag, self.flags.generate.think()).or(from(origin, preset.thinking));
        Ok(())
    }

    /// The preset of the model's name, and that name.
    pub fn preset(&self) -> Option<(&str, &Preset)> {
        let name = &self.model.as_ref()?.value;
        self.config.models.get_key_value(name).map(|(name, preset)| (name.as_str(), preset))
    }

    /// What the model is called behind a preset: a short name, hub id or path.
    ///
    /// # Errors
    /// [`Error::Usage`] where no model is named anywhere; it says what to do.
    pub fn model_name(&self) -> Result<&str> {
        let base = self.preset().and_then(|(_, preset)| preset.base.as_deref());
        base.or(self.model.as_ref().map(|m| m.value.as_str())).ok_or_else(|| {
            let what = "no model is named, configured or was used before: try `pensive chat deepseek-r1` (about 1.1 GB \
                        to download once), or set `model` in ";
            Error::Usage(format!("{what}{}", self.paths.config.display()))
        })
    }

    /// Sampling by flag and preset.
    pub fn sampling(&self) -> SamplingOverrides {
        let preset = self.preset().map(|(_, preset)| preset.sampling).unwrap_or_default();
        self.sampling_flags.or(preset)
    }

    /// How to generate by these settings. What they do not say is the model's.
    pub fn options(&self) -> Options {
        let mut options = self.flag_options().sampling(self.sampling());
        options.think = self.think.as_ref().map(|t| t.value);
        options
    }

    /// How to generate by the flags alone.
    pub fn flag_options(&self) -> Options {
        let mut options = Options::new().sampling(self.sampling_flags);
        options.thought = self.flags.generate.thought();
        options.loop_guard = !self.flags.generate.no_loop_guard;
        options.speculate = !self.flags.generate.no_speculation;
        options.max_tokens = self.flags.generate.max_tokens;
        options.seed = self.flags.generate.seed;
        options.think = self.flags.generate.think();
        options.template = self.flags.generate.template_var.iter().cloned().collect();
        options.stop = self.flags.generate.stop.clone();
        options
    }

    /// How to load the model of these settings.
    ///
    /// # Errors
    /// As [`Settings::model_name`].
    pub fn builder(&self) -> Result<ModelBuilder> {
        let mut builder = Model::builder(self.model_name()?).force(self.flags.load.force);
        if self.flags.checks {
            builder = builder.logit_rows(CHECKED_ROWS);
        }
        if let Some(sequences) = self.flags.votes {
            builder = builder.sequences(sequences);
        }
        if let Some(context) = &self.context {
            builder = builder.context(context.value);
        }
        if let Some(threads) = &self.threads {
            builder = builder.threads(threads.value);
        }
        if let Some(device) = &self.device {
            builder = builder.device(device.value.clone());
        }
        if let Some(layers) = &self.gpu_layers {
            builder = builder.gpu_layers(layers.value);
        }
        if let Some(kv_type) = &self.kv_type {
            builder = builder.kv_type(kv_type.value);
        }
        if let Some(quantize) = self.flags.load.quantize {
            builder = builder.quantize(quantize);
        }
        Ok(builder)
    }
}

/// What `model` is called behind a preset of config.toml.
///
/// # Errors
/// config.toml cannot be read.
pub(super) fn model_name(model: &str) -> Result<String> {
    let settings = Settings::from_env(Flags { model: Some(model.to_owned()), ..Flags::default() })?;
    settings.model_name().map(str::to_owned)
}

fn system_flag(generate: &GenerateArgs) -> Result<Option<String>> {
    match &generate.system_file {
        Some(path) => read_file(path).map(Some),
        None => Ok(generate.system.clone()),
    }
}

/// The variable's text; an empty one counts as not set.
fn read_variable(name: &str, variable: impl Fn(&str) -> Option<OsString>) -> Result<Option<String>> {
    match variable(name).filter(|v| !v.is_empty()) {
        None => Ok(None),
        Some(value) => match value.into_string() {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(Error::Usage(format!("{name}: it is not UTF-8 text"))),
        },
    }
}

fn parse_variable<T>(
    name: &'static str,
    text: Option<String>,
    parse: impl Fn(&str) -> Result<T, &'static str>,
) -> Result<Option<Setting<T>>> {
    let Some(text) = text else { return Ok(None) };
    let value = parse(&text).map_err(|why| Error::Usage(format!("{name}={text}: it must be {why}")))?;
    Ok(from(Origin::Variable(name), Some(value)))
}

fn whole(text: &str) -> Result<usize, &'static str> {
    text.parse().ok().filter(|&n| n > 0).ok_or("a whole number from 1 up")
}

fn any_whole(text: &str) -> Result<usize, &'static str> {
    text.parse().map_err(|_| "a whole number")
}

fn thought(text: &str) -> Result<Thought, &'static str> {
    serde_json::from_value(text.into()).map_err(|_| "show, fold, hide or stdout")
}

#[cfg(test)]
mod tests;
