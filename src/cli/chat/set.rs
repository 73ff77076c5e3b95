//! What /set shows and changes: all that takes effect without loading the model again.

use std::fmt::Display;
use std::str::FromStr;

use super::commands::nearest;
use crate::cli::args::{check_sampling, parse_time};
use crate::{Options, Sampling};

/// What can be set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Setting {
    Temperature,
    TopK,
    TopP,
    MinP,
    RepeatPenalty,
    PresencePenalty,
    FrequencyPenalty,
    RepeatLastN,
    Seed,
    MaxTokens,
    ThinkBudget,
    MinThink,
    ThinkTime,
}

/// All settings: name and meaning.
pub(super) const SETTINGS: &[(Setting, &str, &str)] = &[
    (Setting::Temperature, "temperature", "0 is greedy"),
    (Setting::TopK, "top-k", "keep the k most likely tokens; 0: all"),
    (Setting::TopP, "top-p", "keep what holds this much probability"),
    (Setting::MinP, "min-p", "least share of the best probability"),
    (Setting::RepeatPenalty, "repeat-penalty", "1 is off"),
    (Setting::PresencePenalty, "presence-penalty", "0 is off"),
    (Setting::FrequencyPenalty, "frequency-penalty", "0 is off"),
    (Setting::RepeatLastN, "repeat-last-n", "tokens that the penalties look back at"),
    (Setting::Seed, "seed", "of the draws"),
    (Setting::MaxTokens, "max-tokens", "thought and answer together"),
    (Setting::ThinkBudget, "think-budget", "most tokens of the thought; 0: no thought"),
    (Setting::MinThink, "min-think", "least tokens of the thought"),
    (Setting::ThinkTime, "think-time", "longest time of the thought, as in 30s or 2m"),
];

/// Other names for habits' sake.
const ALIASES: &[(&str, Setting)] =
    &[("temp", Setting::Temperature), ("n-predict", Setting::MaxTokens), ("budget", Setting::ThinkBudget)];

impl Setting {
    /// The setting of this name.
    ///
    /// # Errors
    /// A sentence for the user, with the nearest name.
    pub(super) fn find(name: &str) -> Result<Setting, String> {
        let given = name.to_ascii_lowercase().replace('_', "-");
        let names = SETTINGS.iter().map(|(setting, known, _)| (*known, *setting));
        if let Some((_, setting)) = names.chain(ALIASES.iter().copied()).find(|(known, _)| *known == given) {
            return Ok(setting);
        }
        if matches!(given.as_str(), "context" | "threads" | "kv-type") {
            return Err(format!("{given} is fixed once a model is loaded: start anew with --{given}"));
        }
        Err(match nearest(&given, SETTINGS.iter().map(|(_, known, _)| *known)) {
            Some(near) => format!("no setting is called {name}: did you mean {near}? (/set lists all)"),
            None => format!("no setting is called {name}: /set lists all"),
        })
    }

    /// Its name.
    pub(super) fn name(self) -> &'static str {
        SETTINGS.iter().find(|(setting, ..)| *setting == self).map_or("", |(_, name, _)| name)
    }

    /// Sets it; `default` goes back to the model's own.
    ///
    /// # Errors
    /// A sentence for the user: no such value.
    pub(super) fn set(self, options: &mut Options, value: &str) -> Result<(), String> {
        let wrong = |why: &str| format!("{} {value}: {why}", self.name());
        let mut changed = options.clone();
        self.assign(&mut changed, value).ok_or_else(|| wrong(self.kind()))?;
        check_sampling(&changed.sampling)?;
        if changed.max_tokens == Some(0) {
            return Err(wrong("it must be 1 or more"));
        }
        *options = changed;
        Ok(())
    }

    fn assign(self, options: &mut Options, value: &str) -> Option<()> {
        let s = &mut options.sampling;
        match self {
            Setting::Temperature => assign(&mut s.temperature, value),
            Setting::TopK => assign(&mut s.top_k, value),
            Setting::TopP => assign(&mut s.top_p, value),
            Setting::MinP => assign(&mut s.min_p, value),
            Setting::RepeatPenalty => assign(&mut s.repeat_penalty, value),
            Setting::PresencePenalty => assign(&mut s.presence_penalty, value),
            Setting::FrequencyPenalty => assign(&mut s.frequency_penalty, value),
            Setting::RepeatLastN => assign(&mut s.repeat_last_n, value),
            Setting::Seed => assign(&mut options.seed, value),
            Setting::MaxTokens => assign(&mut options.max_tokens, bound(value)),
            Setting::ThinkBudget => assign(&mut options.thought.budget, bound(value)),
            Setting::MinThink => assign(&mut options.thought.min, bound(value)),
            Setting::ThinkTime => assign_by(&mut options.thought.time, bound(value), |v| parse_time(v).ok()),
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Setting::Temperature
            | Setting::TopP
            | Setting::MinP
            | Setting::RepeatPenalty
            | Setting::PresencePenalty
            | Setting::FrequencyPenalty => "it must be a number, or `default`",
            Setting::MaxTokens | Setting::ThinkBudget | Setting::MinThink => {
                "it must be a whole number, or `off`"
            }
            Setting::ThinkTime => "it must be a time, such as 30s or 2m, or `off`",
            _ => "it must be a whole number, or `default`",
        }
    }

    /// Its value as text; one that is not set is the model's.
    pub(super) fn get(self, options: &Options, model: &Sampling) -> String {
        let s = &options.sampling;
        match self {
            Setting::Temperature => value(s.temperature, model.temperature),
            Setting::TopK => value(s.top_k, model.top_k),
            Setting::TopP => value(s.top_p, model.top_p),
            Setting::MinP => value(s.min_p, model.min_p),
            Setting::RepeatPenalty => value(s.repeat_penalty, model.repeat_penalty),
            Setting::PresencePenalty => value(s.presence_penalty, model.presence_penalty),
            Setting::FrequencyPenalty => value(s.frequency_penalty, model.frequency_penalty),
            Setting::RepeatLastN => value(s.repeat_last_n, model.repeat_last_n),
            Setting::Seed => value(options.seed, "random"),
            Setting::MaxTokens => value(options.max_tokens, "no bound"),
            Setting::ThinkBudget => value(options.thought.budget, "no bound"),
            Setting::MinThink => value(options.thought.min, "no bound"),
            Setting::ThinkTime => {
                let seconds = options.thought.time.map(|time| format!("{} s", time.as_secs_f64()));
                value(seconds, "no bound")
            }
        }
    }
}

/// Reads a value; none for `default`.
fn assign<T: FromStr>(to: &mut Option<T>, value: &str) -> Option<()> {
    assign_by(to, value, |value| value.parse().ok())
}

fn assign_by<T>(to: &mut Option<T>, value: &str, read: impl Fn(&str) -> Option<T>) -> Option<()> {
    *to = if value.eq_ignore_ascii_case("default") { None } else { Some(read(value)?) };
    Some(())
}

/// The value of a bound, which is off by default.
fn bound(value: &str) -> &str {
    if ["off", "none"].iter().any(|word| value.eq_ignore_ascii_case(word)) { "default" } else { value }
}

/// The table of /set.
pub(super) fn table(options: &Options, model: &Sampling) -> String {
    let row = |(setting, name, help): &(Setting, &str, &str)| {
        format!("  {name:<18} {:<20} {help}\n", setting.get(options, model))
    };
    SETTINGS.iter().map(row).collect()
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

    fn set(options: &mut Options, name: &str, value: &str) -> Result<(), String> {
        Setting::find(name)?.set(options, value)
    }

    #[test]
    fn every_setting_can_be_set_shown_and_reset() {
        let mut options = Options::new();
        let model = Sampling::default();
        for (setting, name, _) in SETTINGS {
            assert_eq!(Setting::find(name), Ok(*setting));
            assert!(setting.get(&options, &model).ends_with(" (default)"));
            setting.set(&mut options, "1").unwrap();
            let unit = if *setting == Setting::ThinkTime { " s" } else { "" };
            assert_eq!(setting.get(&options, &model), format!("1{unit}"));
            setting.set(&mut options, "default").unwrap();
            assert!(setting.get(&options, &model).ends_with(" (default)"));
        }
    }

    #[test]
    fn a_bound_can_be_lifted_by_saying_so() {
        let mut options = Options::new();
        for (name, on) in [("budget", "64"), ("min-think", "9"), ("think-time", "1m30s"), ("max-tokens", "9")]
        {
            for off in ["off", "None", "default"] {
                set(&mut options, name, on).unwrap();
                set(&mut options, name, off).unwrap();
            }
        }
        assert_eq!((options.thought, options.max_tokens), Default::default());
        set(&mut options, "think-time", "1m30s").unwrap();
        assert_eq!(Setting::ThinkTime.get(&options, &Sampling::default()), "90 s");
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
            ("temperature", "-1", "must be from 0 to 100"),
            ("temperature", "NaN", "must be from 0 to 100"),
            ("temperature", "warm", "it must be a number, or `default`"),
            ("top-p", "0", "must be above 0 and at most 1"),
            ("top-k", "1.5", "it must be a whole number, or `default`"),
            ("max-tokens", "0", "it must be 1 or more"),
            ("think-budget", "few", "it must be a whole number, or `off`"),
            ("think-time", "0", "it must be a time, such as 30s or 2m, or `off`"),
            ("temperature", "off", "it must be a number, or `default`"),
        ] {
            let error = set(&mut options, name, value).unwrap_err();
            assert!(error.starts_with(name) && error.contains(value) && error.ends_with(says), "{error}");
        }
        assert_eq!((options.sampling, options.max_tokens), Default::default());
    }

    #[test]
    fn an_unknown_setting_suggests_the_nearest_or_the_way() {
        assert!(Setting::find("temprature").unwrap_err().contains("did you mean temperature?"));
        assert!(Setting::find("context").unwrap_err().contains("start anew with --context"));
        assert_eq!(Setting::find("xyz").unwrap_err(), "no setting is called xyz: /set lists all");
    }

    #[test]
    fn the_table_has_a_line_for_each_setting() {
        let table = table(&Options::new().seed(7), &Sampling::default());
        assert_eq!(table.lines().count(), SETTINGS.len());
        assert!(table.contains("seed               7 "));
        assert!(table.contains("temperature        0.7 (default)"));
    }
}
