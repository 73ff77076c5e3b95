use super::*;

fn paths() -> Paths {
    Paths {
        config: "/etc/pensive.toml".into(),
        config_is_named: false,
        data: "/nowhere".into(),
        state: "/nowhere".into(),
    }
}

fn config(text: &str) -> Config {
    Config::parse(text, Path::new("/etc/pensive.toml")).unwrap()
}

fn error(text: &str) -> String {
    Config::parse(text, Path::new("/etc/pensive.toml")).unwrap_err().to_string()
}

fn resolve(flags: Flags, config: Config, variables: &[(&str, &str)]) -> Result<Settings> {
    let variable =
        |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value));
    Settings::resolve(flags, config, paths(), variable)
}

fn flags(line: &str) -> Flags {
    let args = std::iter::once("pensive").chain(["chat"]).chain(line.split_whitespace());
    match super::super::args::parse(args.map(OsString::from)).unwrap().command {
        Some(super::super::args::Command::Chat(chat)) => Flags::from(&chat),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_flag_goes_before_a_variable_and_that_before_the_config() {
    let text = "model = 'c'\ncontext = 1\nthreads = 1\nthought = 'hide'";
    let variables = [
        ("PENSIVE_MODEL", "v"),
        ("PENSIVE_CONTEXT", "2"),
        ("PENSIVE_THREADS", "2"),
        ("PENSIVE_THOUGHT", "show"),
    ];
    let all = resolve(flags("f -c 3 -t 3 --thought fold"), config(text), &variables).unwrap();
    assert_eq!(all.model, from(Origin::Flag, Some("f".into())));
    assert_eq!(all.context, from(Origin::Flag, Some(3)));
    assert_eq!(all.threads, from(Origin::Flag, Some(3)));
    assert_eq!(all.thought, from(Origin::Flag, Some(Thought::Fold)));
    let two = resolve(flags(""), config(text), &variables).unwrap();
    assert_eq!(two.model, from(Origin::Variable("PENSIVE_MODEL"), Some("v".into())));
    assert_eq!(two.context, from(Origin::Variable("PENSIVE_CONTEXT"), Some(2)));
    assert_eq!(two.thought, from(Origin::Variable("PENSIVE_THOUGHT"), Some(Thought::Show)));
    let one = resolve(flags(""), config(text), &[]).unwrap();
    assert_eq!(one.threads, from(Origin::Config, Some(1)));
    assert_eq!(one.thought, from(Origin::Config, Some(Thought::Hide)));
    let none = resolve(flags(""), config(""), &[]).unwrap();
    assert_eq!((none.model, none.context, none.threads), (None, None, None));
}

#[test]
fn an_empty_variable_is_not_set_and_a_wrong_one_is_named() {
    assert_eq!(resolve(flags(""), config(""), &[("PENSIVE_CONTEXT", "")]).unwrap().context, None);
    for (name, value) in [("PENSIVE_CONTEXT", "0"), ("PENSIVE_THREADS", "two"), ("PENSIVE_THOUGHT", "loud")] {
        let error = resolve(flags(""), config(""), &[(name, value)]).unwrap_err();
        assert!(matches!(error, Error::Usage(_)));
        assert!(error.to_string().starts_with(&format!("{name}={value}: it must be ")), "{error}");
    }
}

const PRESET: &str = "
model = 'coder'
[models.coder]
base = 'deepseek-r1:7b'
system = 'You write Rust.'
thinking = 'off'
sampling = { temperature = 0.2, top_k = 40 }
[models.'deepseek-r1:7b']
system = 'Be brief.'
";

#[test]
fn a_preset_brings_its_base_system_sampling_and_thinking() {
    let settings = resolve(flags(""), config(PRESET), &[]).unwrap();
    let preset = Origin::Preset("coder".into());
    assert_eq!(settings.model_name().unwrap(), "deepseek-r1:7b");
    assert_eq!(settings.system, from(preset.clone(), Some("You write Rust.".into())));
    assert_eq!(settings.think, from(preset, Some(Think::Off)));
    assert_eq!(settings.sampling().temperature, Some(0.2));
    assert_eq!(settings.options().think, Some(Think::Off));
}

#[test]
fn a_preset_without_base_is_for_the_model_of_that_name() {
    let settings = resolve(flags("deepseek-r1:7b"), config(PRESET), &[]).unwrap();
    assert_eq!(settings.model_name().unwrap(), "deepseek-r1:7b");
    assert_eq!(settings.system.unwrap().value, "Be brief.");
}

#[test]
fn a_flag_goes_before_a_preset() {
    let settings = resolve(flags("--system x --think on --temperature 1"), config(PRESET), &[]).unwrap();
    assert_eq!(settings.system, from(Origin::Flag, Some("x".into())));
    assert_eq!(settings.think, from(Origin::Flag, Some(Think::On)));
    assert_eq!((settings.sampling().temperature, settings.sampling().top_k), (Some(1.0), Some(40)));
    let silent = resolve(flags("--system= "), config(PRESET), &[]).unwrap();
    assert_eq!(silent.system, None, "an empty system message takes the preset's away");
}

#[test]
fn another_model_leaves_the_preset_behind() {
    let settings =
        resolve(flags("-t 2"), config(PRESET), &[]).unwrap().with_model("other", Origin::Flag).unwrap();
    assert_eq!(settings.model_name().unwrap(), "other");
    assert_eq!((&settings.system, settings.think), (&None, None));
    assert_eq!(settings.threads, from(Origin::Flag, Some(2)));
}

#[test]
fn without_any_model_the_error_says_what_to_do() {
    let error = resolve(flags(""), config(""), &[]).unwrap().model_name().unwrap_err();
    assert!(matches!(error, Error::Usage(_)));
    assert!(error.to_string().contains("pensive chat deepseek-r1"), "{error}");
    assert!(error.to_string().contains("/etc/pensive.toml"), "{error}");
}

#[test]
fn a_wrong_config_is_named_by_file_line_and_key() {
    let cases = [
        ("threads = 2\nmodle = 'x'", "/etc/pensive.toml: line 2 (`modle = 'x'`): unknown field `modle`"),
        ("context = 'big'", "line 1 (`context = 'big'`): invalid type: string"),
        ("context = -1", "line 1 (`context = -1`): invalid value: integer `-1`"),
        ("context = 0", "context: it must be 1 or more"),
        ("thought = 'loud'", "unknown variant `loud`"),
        ("[models.a]\nbase = 'b'\nsytem = ''", "line 3 (`sytem = ''`): unknown field `sytem`"),
        ("[models.a.sampling]\ntemprature = 1.0", "line 2 (`temprature = 1.0`): unknown field `temprature`"),
        ("[models.a.sampling]\ntop_p = 1.5", "models.a.sampling: top-p of 1.5: must be above 0"),
        ("[models.a]\nbase = 'b'\n[models.b]\nbase = 'c'", "models.a.base: `b` is a preset itself"),
        ("threads = ", "line 1"),
    ];
    for (text, expected) in cases {
        let error = error(text);
        assert!(error.starts_with("/etc/pensive.toml: ") && error.contains(expected), "{text:?}: {error}");
        assert!(!error.contains('\n'), "one line: {error}");
    }
}

#[test]
fn the_last_used_model_is_remembered_and_comes_last() {
    let folder = tempfile::tempdir().unwrap();
    let here = Paths { state: folder.path().join("state"), ..paths() };
    assert_eq!(here.last_model(), None);
    here.remember_model("deepseek-r1:7b");
    assert_eq!(here.last_model().as_deref(), Some("deepseek-r1:7b"));
    let settings = Settings::resolve(flags(""), config(""), here.clone(), |_| None).unwrap();
    assert_eq!(settings.model, from(Origin::LastUsed, Some("deepseek-r1:7b".into())));
    let settings = Settings::resolve(flags(""), config("model = 'c'"), here, |_| None).unwrap();
    assert_eq!(settings.model, from(Origin::Config, Some("c".into())));
}

#[test]
fn a_file_is_remembered_by_its_whole_path() {
    let folder = tempfile::tempdir().unwrap();
    let here = Paths { state: folder.path().into(), ..paths() };
    here.remember_model("Cargo.toml");
    assert_eq!(here.last_model(), Some(std::path::absolute("Cargo.toml").unwrap().display().to_string()));
}
