//! `pensive config`: every setting, its value and origin, and all paths.

use std::fmt::Display;
use std::process::ExitCode;

use serde_json::{Map, Value, json};

use super::args::ConfigArgs;
use super::render::{print, table};
use super::settings::{Flags, Origin, Setting, Settings};
use super::{pull, settings};
use crate::catalog::{self, Entry};
use crate::hub;
use crate::{Error, Result, Sampling, SamplingOverrides};

pub(super) fn run(args: &ConfigArgs) -> Result<ExitCode> {
    let settings = Settings::from_env(Flags::from(args))?;
    let hub = pull::hub(args.load.offline)?;
    let entry = settings.model_name().ok().and_then(catalog::find_quantized).map(|(entry, _)| entry);
    let mut rows = rows(&settings, entry);
    rows.extend(hub_rows(hub.settings(), args.load.offline));
    let paths = paths(&settings, hub.settings());
    if args.json {
        print(
            serde_json::to_string_pretty(&object(&rows, &paths)).map_err(|e| Error::Text(e.to_string()))?
                + "\n",
        )?;
    } else {
        print(lines(&rows, &paths))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A setting: name, value, origin. A null value is left to the model; `note` says what that comes to.
struct Row {
    name: &'static str,
    value: Value,
    note: &'static str,
    origin: String,
}

/// A setting that somebody gave, or what happens without.
fn row<T: serde::Serialize>(name: &'static str, setting: Option<&Setting<T>>, note: &'static str) -> Row {
    let value = setting.map_or(Value::Null, |s| json!(s.value));
    let origin = setting.map_or(Origin::Default, |s| s.origin.clone());
    Row { name, value, note, origin: origin.to_string() }
}

fn rows(settings: &Settings, entry: Option<&Entry>) -> Vec<Row> {
    let flags = &settings.flags;
    let given = |on: bool| settings::from(if on { Origin::Flag } else { Origin::Default }, Some(on));
    let think = settings.think.clone().or(settings::from(Origin::Catalog, entry.map(|e| e.think)));
    let base = settings
        .preset()
        .and_then(|(name, preset)| settings::from(Origin::Preset(name.to_owned()), preset.base.clone()));
    let device = settings.device.as_ref();
    let device = device.map(|d| Setting { value: d.value.to_string(), origin: d.origin.clone() });
    let mut rows = vec![
        row("model", settings.model.as_ref(), "none: name one"),
        row("base", base.as_ref(), "the model's name itself"),
        row("context", settings.context.as_ref(), "the model's own, as far as it fits"),
        row("threads", settings.threads.as_ref(), "one per fast core"),
        row("device", device.as_ref(), "a GPU that this build can use, else the CPU"),
        row("gpu-layers", settings.gpu_layers.as_ref(), "as many as fit"),
        row("thought", settings.thought.as_ref(), "fold in a chat, show elsewhere"),
        row("kv-type", settings.kv_type.as_ref(), "f16"),
        row("system", settings.system.as_ref(), "none"),
        row("think", think.as_ref(), "the model's own"),
        row("max-tokens", settings::from(Origin::Flag, flags.generate.max_tokens).as_ref(), "the context"),
        row("seed", settings::from(Origin::Flag, flags.generate.seed).as_ref(), "random"),
    ];
    let stop = Some(flags.generate.stop.clone()).filter(|stop| !stop.is_empty());
    rows.push(row("stop", settings::from(Origin::Flag, stop).as_ref(), "none"));
    rows.extend(sampling_rows(settings, entry));
    rows.push(row("force", given(flags.load.force).as_ref(), ""));
    let isa = std::env::var("PENSIVE_ISA").ok().filter(|isa| !isa.is_empty());
    let isa = settings::from(Origin::Variable("PENSIVE_ISA"), isa);
    rows.push(row("isa", isa.as_ref(), "the widest of this processor"));
    rows
}

/// Each sampling parameter by the first source that has it.
fn sampling_rows(settings: &Settings, entry: Option<&Entry>) -> Vec<Row> {
    let mut sources = vec![(Origin::Flag, settings.sampling_flags)];
    if let Some((name, preset)) = settings.preset() {
        sources.push((Origin::Preset(name.to_owned()), preset.sampling));
    }
    sources.extend(entry.map(|entry| (Origin::Catalog, entry.sampling)));
    fn pick<T>(
        sources: &[(Origin, SamplingOverrides)],
        of: impl Fn(&SamplingOverrides) -> Option<T>,
    ) -> Option<Setting<T>> {
        sources.iter().find_map(|(origin, sampling)| settings::from(origin.clone(), of(sampling)))
    }
    // f32 as it was written: 0.6, not 0.6000000238418579.
    let number = |x: f32| -> f64 { x.to_string().parse().expect("a number's own text is a number") };
    // Of a model without a catalog entry only the file knows what its authors recommend.
    let default = if entry.is_some() { Some(Sampling::default()) } else { None };
    let float = |name, of: fn(&SamplingOverrides) -> Option<f32>, own: fn(&Sampling) -> f32| {
        let setting = pick(&sources, |s| of(s).map(number));
        let setting = setting.or(settings::from(Origin::Default, default.as_ref().map(|d| number(own(d)))));
        row(name, setting.as_ref(), "the model's own")
    };
    let whole = |name, of: fn(&SamplingOverrides) -> Option<usize>, own: fn(&Sampling) -> usize| {
        let setting = pick(&sources, of).or(settings::from(Origin::Default, default.as_ref().map(own)));
        row(name, setting.as_ref(), "the model's own")
    };
    vec![
        float("temperature", |s| s.temperature, |d| d.temperature),
        whole("top-k", |s| s.top_k, |d| d.top_k),
        float("top-p", |s| s.top_p, |d| d.top_p),
        float("min-p", |s| s.min_p, |d| d.min_p),
        float("repeat-penalty", |s| s.repeat_penalty, |d| d.repeat_penalty),
        float("presence-penalty", |s| s.presence_penalty, |d| d.presence_penalty),
        float("frequency-penalty", |s| s.frequency_penalty, |d| d.frequency_penalty),
        whole("repeat-last-n", |s| s.repeat_last_n, |d| d.repeat_last_n),
    ]
}

fn hub_rows(hub: &hub::Settings, offline_flag: bool) -> Vec<Row> {
    let token = hub.token.value.as_ref().map_or(Value::Null, |_| json!("set"));
    let offline = if offline_flag { "flag" } else { hub.offline.origin };
    let row = |name, value, note, origin: &str| Row { name, value, note, origin: origin.to_owned() };
    vec![
        row("offline", json!(hub.offline.value), "", offline),
        row("endpoint", json!(hub.endpoint.value), "", hub.endpoint.origin),
        row("token", token, "none", hub.token.origin),
    ]
}

/// Paths: name, place, origin.
fn paths(settings: &Settings, hub: &hub::Settings) -> Vec<[String; 3]> {
    let config = if settings.paths.config_is_named { "PENSIVE_CONFIG" } else { "default" };
    let path = |name: &str, place: &dyn Display, origin: &str| {
        [name.to_owned(), place.to_string(), origin.to_owned()]
    };
    vec![
        path("config", &settings.paths.config.display(), config),
        path("data", &settings.paths.data.display(), "default"),
        path("state", &settings.paths.state.display(), "default"),
        path("cache", &hub.cache.value.display(), hub.cache.origin),
    ]
}

fn object(rows: &[Row], paths: &[[String; 3]]) -> Value {
    let settings: Map<String, Value> =
        rows.iter().map(|r| (r.name.into(), json!({"value": r.value, "origin": r.origin}))).collect();
    let paths: Map<String, Value> = paths
        .iter()
        .map(|[name, place, origin]| (name.clone(), json!({"value": place, "origin": origin})))
        .collect();
    json!({"settings": settings, "paths": paths})
}

fn lines(rows: &[Row], paths: &[[String; 3]]) -> String {
    let setting = |row: &Row| {
        let value = match &row.value {
            Value::Null => format!("({})", row.note),
            Value::String(text) if !text.contains('\n') => text.clone(),
            other => other.to_string(),
        };
        vec![row.name.to_owned(), value, row.origin.clone()]
    };
    let title = |words: [&str; 3]| words.map(String::from).to_vec();
    let mut all = vec![title(["SETTING", "VALUE", "ORIGIN"])];
    all.extend(rows.iter().map(setting));
    all.push(title(["", "", ""]));
    all.push(title(["PATH", "", ""]));
    all.extend(paths.iter().map(|row| row.to_vec()));
    table(&all)
}
