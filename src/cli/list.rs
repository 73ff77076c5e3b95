//! `pensive list`: what is in the cache.

use std::process::ExitCode;
use std::time::SystemTime;

use serde::Serialize;

use super::args::ListArgs;
use super::pull;
use super::render::{Console, bytes, print, table};
use crate::hub::Cached;
use crate::{Error, Result};

pub(super) fn run(args: &ListArgs, console: &Console) -> Result<ExitCode> {
    let hub = pull::hub(true)?;
    let mut models = hub.list()?;
    let found = models.len();
    if !args.all {
        models.retain(|model| model.runnable.is_ok());
    }
    if args.json {
        let rows: Vec<Row> = models.iter().map(Row::from).collect();
        print(serde_json::to_string_pretty(&rows).map_err(|e| Error::Text(e.to_string()))? + "\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    if models.is_empty() {
        let cache = hub.settings().cache.value.display();
        console.note(format!("no model that pensive can run in {cache}: try `pensive pull deepseek-r1`"));
    } else {
        print(table(&lines(&models)))?;
    }
    if found > models.len() {
        console
            .note(format!("{} more that cannot be run: `pensive list --all` says why", found - models.len()));
    }
    Ok(ExitCode::SUCCESS)
}

/// A model for programs.
#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    repository: &'a str,
    revision: &'a str,
    commit: &'a str,
    architecture: Option<&'a str>,
    quantization: Option<&'a str>,
    bytes: u64,
    licence: Option<&'a str>,
    last_used: Option<String>,
    files: Vec<String>,
    runnable: bool,
    why_not: Option<&'a str>,
}

impl<'a> From<&'a Cached> for Row<'a> {
    fn from(model: &'a Cached) -> Self {
        Row {
            name: &model.name,
            repository: &model.repository,
            revision: &model.revision,
            commit: &model.commit,
            architecture: model.architecture.as_deref(),
            quantization: model.quantization.as_deref(),
            bytes: model.bytes,
            licence: model.licence.as_deref(),
            last_used: model.last_used.and_then(timestamp).map(|t| t.to_string()),
            files: model.files.iter().map(|f| f.display().to_string()).collect(),
            runnable: model.runnable.is_ok(),
            why_not: model.runnable.as_ref().err().map(String::as_str),
        }
    }
}

pub(super) fn timestamp(time: SystemTime) -> Option<jiff::Timestamp> {
    // Whole seconds: more says nothing about use.
    let time = jiff::Timestamp::try_from(time).ok()?;
    jiff::Timestamp::from_second(time.as_second()).ok()
}

/// The day that it is here.
pub(super) fn date(time: jiff::Timestamp) -> String {
    time.to_zoned(jiff::tz::TimeZone::system()).date().to_string()
}

fn lines(models: &[Cached]) -> Vec<Vec<String>> {
    let title = ["NAME", "QUANTIZATION", "SIZE", "LICENCE", "LAST USED", ""].map(String::from).to_vec();
    let unknown = || "-".to_owned();
    let line = |model: &Cached| {
        let used = model.last_used.and_then(timestamp);
        vec![
            model.name.clone(),
            model.quantization.clone().unwrap_or_else(unknown),
            bytes(model.bytes),
            model.licence.clone().unwrap_or_else(unknown),
            used.map_or_else(unknown, date),
            model.runnable.as_ref().err().map_or(String::new(), |why| format!("cannot be run: {why}")),
        ]
    };
    std::iter::once(title).chain(models.iter().map(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cached(name: &str, runnable: Result<(), String>) -> Cached {
        Cached {
            name: name.into(),
            repository: "o/r".into(),
            revision: "main".into(),
            commit: "c0ffee".into(),
            files: vec!["/cache/m.gguf".into()],
            quantization: Some("Q4_K_M".into()),
            architecture: Some("qwen2".into()),
            bytes: 1_117_320_736,
            licence: Some("MIT".into()),
            last_used: Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(86_400_500)),
            runnable,
        }
    }

    #[test]
    fn a_program_reads_name_size_time_and_why_a_model_cannot_be_run() {
        let json = serde_json::to_value(Row::from(&cached("a:1b", Err("architecture `x`".into())))).unwrap();
        assert_eq!(json["name"], "a:1b");
        assert_eq!(json["bytes"], 1_117_320_736u64);
        assert_eq!(json["last_used"], "1970-01-02T00:00:00Z");
        assert_eq!(
            (json["runnable"].as_bool(), json["why_not"].as_str()),
            (Some(false), Some("architecture `x`"))
        );
    }

    #[test]
    fn a_person_reads_the_reason_behind_the_line() {
        let lines = lines(&[cached("a:1b", Ok(())), cached("b", Err("split file is incomplete".into()))]);
        assert_eq!(lines[1][..4], ["a:1b", "Q4_K_M", "1.1 GB", "MIT"]);
        assert_eq!(lines[1][5], "");
        assert_eq!(lines[2][5], "cannot be run: split file is incomplete");
    }
}
