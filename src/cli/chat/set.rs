//! What /set shows and changes: all that takes effect without loading the model again.

use std::fmt::Display;
use std::str::FromStr;

use super::commands::nearest;
use crate::cli::args::check_sampling;
use crate::{Options, Sampling};

/// Names that /set knows, with what they mean.
pub(super) const SETTINGS: &[(&str, &str)] = &[
    ("temperature", "0 is greedy"),
    ("top-k", "keep the k most likely tokens; 0 keeps all"),
    ("top-p", "keep the most likely tokens that hold this probability; 1 keeps all"),
    ("min-p", "keep tokens at least this likely beside the best; 0 keeps all"),
    ("repeat-penalty", "1 is off"),
    ("presence-penalty", "0 is off"),
    ("frequency-penalty", "0 is off"),
    ("repeat-last-n", "tokens that the penalties look back at"),
    ("seed", "of the draws; default: random for each answer"),
    ("max-tokens", "of thought and answer together; default: what the context holds"),
];

/// Other names for habits' sake.
const ALIASES: &[(&str, &str)] = &[("temp", "temperature"), ("n-predict", "max-tokens")];

/// Sets one value; `default` goes back to the model's own. Gives the name in full.
///
/// # Errors
/// A sentence for the user: no such setting (with the nearest one), or no such value.
pub(super) fn set(options: &mut Options, name: &str, value: &str) -> Result<&'static str, String> {
    let name = resolve(name)?;
    let mut changed = options.clone();
    let s = &mut changed.sampling;
    let wrong = |why: &str| format!("{name} {value}: {why}");
    let parsed = match name {
        "temperature" => assign(&mut s.temperature, value),
        "top-k" => assign(&mut s.top_k, value),
        "top-p" => assign(&mut s.top_p, value),
        "min-p" => assign(&mut s.min_p, value),
        "repeat-penalty" => assign(&mut s.repeat_penalty, value),
        "presence-penalty" => assign(&mut s.presence_penalty, value),
        "frequency-penalty" => assign(&mut s.frequency_penalty, value),
        "repeat-last-n" => assign(&mut s.repeat_last_n, value),
        "seed" => assign(&mut changed.seed, value),
        _ => assign(&mut changed.max_tokens, value),
    };
    let kind = if matches!(name, "top-k" | "repeat-last-n" | "seed" | "max-tokens") {
        "a whole number"
    } else {
        "a number"
    };
    parsed.ok_or_else(|| wrong(&format!("it must be {kind}, or `default`")))?;
    check_sampling(&changed.sampling).map_err(|(_, why)| wrong(&why))?;
    if changed.max_tokens == Some(0) {
        return Err(wrong("it must be 1 or more"));
    }
    *options = changed;
    Ok(name)
}

/// Reads a value; none for `default`.
fn assign<T: FromStr>(to: &mut Option<T>, value: &str) -> Option<()> {
    *to = if value.eq_ignore_ascii_case("default") { None } else { Some(value.parse().ok()?) };
    Some(())
}

/// A setting as text, with where it comes from.
///
/// # Errors
/// No such setting (with the nearest one).
pub(super) fn get(options: &Options, model: &Sampling, name: &str) -> Result<String, String> {
    let name = resolve(name)?;
    let s = &options.sampling;
    Ok(match name {
        "temperature" => value(s.temperature, model.temperature),
        "top-k" => value(s.top_k, model.top_k),
        "top-p" => value(s.top_p, model.top_p),
        "min-p" => value(s.min_p, model.min_p),
        "repeat-penalty" => value(s.repeat_penalty, model.repeat_penalty),
        "presence-penalty" => value(s.presence_penalty, model.presence_penalty),
        "frequency-penalty" => value(s.frequency_penalty, model.frequency_penalty),
        "repeat-last-n" => value(s.repeat_last_n, model.repeat_last_n),
        "seed" => value(options.seed, "random"),
        _ => value(options.max_tokens, "what the context holds"),
    })
}

/// The table of /set.
pub(super) fn table(options: &Options, model: &Sampling) -> String {
    let mut text = String::new();
    for (name, help) in SETTINGS {
        let value = get(options, model, name).unwrap_or_default();
        text.push_str(&format!("  {name:<18} {value:<24} {help}\n"));
    }
    text
}

fn resolve(name: &str) -> Result<&'static str, String> {
    let given = name.to_ascii_lowercase().replace('_', "-");
    if let Some((_, full)) = ALIASES.iter().find(|(alias, _)| *alias == given) {
        return Ok(full);
    }
    if let Some((known, _)) = SETTINGS.iter().find(|(known, _)| *known == given) {
        return Ok(known);
    }
    Err(match given.as_str() {
        "context" | "threads" | "kv-type" => {
            format!("{given} is fixed once a model is loaded: start anew with --{given}")
        }
        "system" | "think" | "thought" | "model" => {
            format!("/set {given}: that is the command /{given}")
        }
        _ => match nearest(&given, SETTINGS.iter().map(|(known, _)| *known)) {
            Some(near) => format!("/set {name}: no such setting; did you mean {near}? (/set lists all)"),
            None => format!("/set {name}: no such setting; /set lists all"),
        },
    })
}

fn value<T: Display>(set: Option<T>, default: impl Display) -> String {
    match set {
        Some(value) => value.to_string(),
        None => format!("{default} (default)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_can_be_set_shown_and_reset() {
        let mut options = Options::new();
        let model = Sampling::default();
        for (name, _) in SETTINGS {
            assert!(get(&options, &model, name).unwrap().ends_with(" (default)"));
            assert_eq!(set(&mut options, name, "1"), Ok(*name));
            assert_eq!(get(&options, &model, name).unwrap(), "1");
            set(&mut options, name, "default").unwrap();
            assert!(get(&options, &model, name).unwrap().ends_with(" (default)"));
        }
    }

    #[test]
    fn underscores_capitals_and_short_names_are_understood() {
        let mut options = Options::new();
        set(&mut options, "Top_P", "0.9").unwrap();
        set(&mut options, "temp", "0").unwrap();
        set(&mut options, "n_predict", "64").unwrap();
        assert_eq!(options.sampling.top_p, Some(0.9));
        assert_eq!(options.sampling.temperature, Some(0.0));
        assert_eq!(options.max_tokens, Some(64));
    }

    #[test]
    fn a_value_out_of_bounds_changes_nothing_and_says_what_is_allowed() {
        let mut options = Options::new();
        for (name, value, says) in [
            ("temperature", "-1", "it must be 0 or more"),
            ("temperature", "NaN", "it must be 0 or more"),
            ("temperature", "warm", "it must be a number, or `default`"),
            ("top-p", "0", "it must be above 0 and at most 1"),
            ("top-k", "1.5", "it must be a whole number, or `default`"),
            ("max-tokens", "0", "it must be 1 or more"),
        ] {
            let error = set(&mut options, name, value).unwrap_err();
            assert!(error.starts_with(&format!("{name} {value}: ")) && error.ends_with(says), "{error}");
        }
        assert_eq!((options.sampling, options.max_tokens), Default::default());
    }

    #[test]
    fn an_unknown_setting_suggests_the_nearest_or_the_way() {
        let mut options = Options::new();
        assert!(set(&mut options, "temprature", "1").unwrap_err().contains("did you mean temperature?"));
        assert!(set(&mut options, "context", "1").unwrap_err().contains("start anew with --context"));
        assert!(set(&mut options, "thought", "hide").unwrap_err().contains("/thought"));
    }

    #[test]
    fn the_table_has_a_line_for_each_setting() {
        let table = table(&Options::new().seed(7), &Sampling::default());
        assert_eq!(table.lines().count(), SETTINGS.len());
        assert!(table.contains("seed               7 "));
        assert!(table.contains("temperature        0.7 (default)"));
    }
}
