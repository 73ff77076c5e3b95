//! What /set shows and changes: all that takes effect without loading the model again.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use super::commands::{THINK, choice, nearest, word};
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

    /// Its value as [`set`](Self::set) reads it, where it is not the model's.
    fn own(self, options: &Options) -> Option<String> {
        fn text(value: Option<impl Display>) -> Option<String> {
            value.map(|value| value.to_string())
        }
        let s = &options.sampling;
        match self {
            Setting::Temperature => text(s.temperature),
            Setting::TopK => text(s.top_k),
            Setting::TopP => text(s.top_p),
            Setting::MinP => text(s.min_p),
            Setting::RepeatPenalty => text(s.repeat_penalty),
            Setting::PresencePenalty => text(s.presence_penalty),
            Setting::FrequencyPenalty => text(s.frequency_penalty),
            Setting::RepeatLastN => text(s.repeat_last_n),
            Setting::Seed => text(options.seed),
            Setting::MaxTokens => text(options.max_tokens),
            Setting::ThinkBudget => text(options.thought.budget),
            Setting::MinThink => text(options.thought.min),
            Setting::ThinkTime => options.thought.time.map(|time| format!("{time:?}")),
        }
    }

    /// Its value as text; one that is not set is the model's.
    pub(super) fn get(self, options: &Options, model: &Sampling) -> String {
        self.own(options).unwrap_or_else(|| {
            let default = match self {
                Setting::Temperature => model.temperature.to_string(),
                Setting::TopK => model.top_k.to_string(),
                Setting::TopP => model.top_p.to_string(),
                Setting::MinP => model.min_p.to_string(),
                Setting::RepeatPenalty => model.repeat_penalty.to_string(),
                Setting::PresencePenalty => model.presence_penalty.to_string(),
                Setting::FrequencyPenalty => model.frequency_penalty.to_string(),
                Setting::RepeatLastN => model.repeat_last_n.to_string(),
                Setting::Seed => "random".into(),
                Setting::MaxTokens | Setting::ThinkBudget | Setting::MinThink | Setting::ThinkTime => {
                    "no bound".into()
                }
            };
            default + " (default)"
        })
    }
}

/// What is not the model's own, by the names of /set: as it is saved with a chat.
pub(super) type Changed = BTreeMap<String, String>;

/// What of `options` is not the model's own.
pub(super) fn changed(options: &Options) -> Changed {
    let set = SETTINGS.iter().filter_map(|(setting, name, _)| Some((*name, setting.own(options)?)));
    let think = options.think.map(|think| (THINKING, word(&THINK, think).to_owned()));
    set.chain(think).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Sets what was saved, and all else to the model's own; what is given in `first` goes before it.
///
/// # Errors
/// A sentence for the user: no such value. Nothing is changed then.
pub(super) fn restore(options: &mut Options, saved: &Changed, first: &Options) -> Result<(), String> {
    let mut values = saved.clone();
    values.extend(changed(first));
    let mut all = options.clone();
    for (setting, name, _) in SETTINGS {
        setting.set(&mut all, values.get(*name).map_or("default", String::as_str))?;
    }
    all.think = choice(THINKING, values.remove(THINKING), &THINK)?;
    *options = all;
    Ok(())
}

/// What /think sets.
const THINKING: &str = "think";

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Think;

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
            let unit = if *setting == Setting::ThinkTime { "s" } else { "" };
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
        assert_eq!(Setting::ThinkTime.get(&options, &Sampling::default()), "90s");
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
    fn what_is_saved_is_restored_but_for_what_goes_before_it() {
        let mut options = Options::new().think(Think::Off);
        for (i, (setting, ..)) in SETTINGS.iter().enumerate() {
            setting.set(&mut options, if i % 2 == 0 { "1" } else { "default" }).unwrap();
        }
        set(&mut options, "think-time", "1m30s500ms").unwrap();
        let saved = changed(&options);
        let mut other = Options::new().seed(3);
        set(&mut other, "top-k", "9").unwrap();
        restore(&mut other, &saved, &Options::new()).unwrap();
        assert_eq!((changed(&other), other.think), (saved.clone(), Some(Think::Off)));
        assert_eq!(other.thought.time, Some(std::time::Duration::from_millis(90_500)));

        let first = Options::new().temperature(0.25).think(Think::On);
        restore(&mut other, &saved, &first).unwrap();
        assert_eq!((other.sampling.temperature, other.think), (Some(0.25), Some(Think::On)));
        assert_eq!(other.sampling.top_p, Some(1.0));

        restore(&mut other, &Changed::new(), &Options::new()).unwrap();
        assert_eq!(changed(&other), Changed::new());
    }

    #[test]
    fn saved_values_that_are_none_change_nothing() {
        for (name, value) in [("temperature", "-1"), ("think", "maybe"), ("seed", "x")] {
            let mut options = Options::new().seed(3);
            let saved = [("top-k", "5"), (name, value)].map(|(name, value)| (name.into(), value.into()));
            let error = restore(&mut options, &saved.into(), &Options::new()).unwrap_err();
            assert!(error.starts_with(name) && error.contains(value), "{error}");
            assert_eq!((options.seed, options.sampling), (Some(3), Default::default()));
        }
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
