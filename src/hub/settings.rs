//! Where the cache is, where the hub is, and who asks.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::{Error, Result};

/// The public hub.
pub(super) const PUBLIC_HUB: &str = "https://huggingface.co";
/// The variable that names the user's folder.
const HOME: &str = if cfg!(windows) { "USERPROFILE" } else { "HOME" };
/// Where a setting comes from that nobody set.
const DEFAULT: &str = "default";

/// A setting and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    /// Its value.
    pub value: T,
    /// The variable or file that set it, or `default`.
    pub origin: &'static str,
}

/// The settings of the hub and its cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The cache folder, `…/huggingface/hub`.
    pub cache: Setting<PathBuf>,
    /// The hub's address without a slash at the end: `https://huggingface.co`.
    pub endpoint: Setting<String>,
    /// The user's token. It is sent to the endpoint alone.
    pub token: Setting<Option<String>>,
    /// No network at all.
    pub offline: Setting<bool>,
}

impl Settings {
    /// The settings of this process's environment. Services and containers often lack HOME: the system's word counts
    /// then.
    ///
    /// # Errors
    /// As [`Settings::from_variables`].
    pub fn from_env() -> Result<Settings> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Self::from_variables(|name| match set(name) {
            None if name == HOME => std::env::home_dir().map(OsString::from),
            value => value,
        })
    }

    /// The settings by these variables; names, order and defaults are those of Python's huggingface_hub.
    ///
    /// - cache: HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME/huggingface/hub,
    ///   ~/.cache/huggingface/hub;
    /// - endpoint: HF_ENDPOINT;
    /// - token: HF_TOKEN, HUGGING_FACE_HUB_TOKEN, the file HF_TOKEN_PATH, the file HF_HOME/token;
    /// - offline: HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE (1, on, yes, true).
    ///
    /// An empty variable is one that is not set. In folders and files `~`, `$NAME` and `${NAME}` are replaced.
    ///
    /// # Errors
    /// No cache folder is set and there is no home folder; an endpoint that is no http address.
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Settings> {
        let set = |name: &'static str| {
            let value = variable(name).filter(|value| !value.is_empty())?;
            Some(Setting { value, origin: name })
        };
        let path = |name| set(name).map(|s| Setting { value: expand(s.value, &variable), origin: s.origin });
        let home = hf_home(&path);
        let folder = |s: Setting<OsString>| Setting { value: PathBuf::from(s.value), origin: s.origin };
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).map(folder);
        let cache = cache.or_else(|| {
            home.as_ref().map(|home| Setting { value: home.value.join("hub"), origin: home.origin })
        });
        let Some(cache) = cache else {
            return Err(Error::Hub("no home folder for the model cache: set HF_HOME to a folder".into()));
        };
        Ok(Settings {
            cache,
            endpoint: endpoint(set("HF_ENDPOINT"))?,
            token: token(&set, path("HF_TOKEN_PATH"), home.as_ref().map(|home| home.value.join("token"))),
            offline: offline(set("HF_HUB_OFFLINE").or_else(|| set("TRANSFORMERS_OFFLINE"))),
        })
    }

    /// Settings for a cache folder of its own: the public hub, no token.
    pub fn at(cache: impl Into<PathBuf>) -> Settings {
        Settings {
            cache: Setting { value: cache.into(), origin: "given" },
            endpoint: Setting { value: PUBLIC_HUB.into(), origin: DEFAULT },
            token: Setting { value: None, origin: DEFAULT },
            offline: Setting { value: false, origin: DEFAULT },
        }
    }

    /// With this hub instead.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Settings {
        let endpoint: String = endpoint.into();
        self.endpoint = Setting { value: endpoint.trim_end_matches('/').into(), origin: "given" };
        self
    }

    /// With this token.
    pub fn token(mut self, token: impl Into<String>) -> Settings {
        self.token = Setting { value: Some(token.into()), origin: "given" };
        self
    }

    /// With or without the network (`--offline`).
    pub fn offline(mut self, offline: bool) -> Settings {
        self.offline = Setting { value: offline, origin: "given" };
        self
    }
}

type Variable<'a> = &'a dyn Fn(&'static str) -> Option<Setting<OsString>>;

/// Replaces `~` at the front, `$NAME` and `${NAME}`, as Python does it: what is not set stays as it is written. No shell
/// has done it where a variable comes from a service's or a container's file.
fn expand(value: OsString, variable: &dyn Fn(&str) -> Option<OsString>) -> OsString {
    let Some(text) = value.to_str() else { return value };
    let mut expanded = OsString::new();
    let below_home =
        text.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with(std::path::is_separator));
    let text = match (below_home, variable(HOME).filter(|home| !home.is_empty())) {
        (Some(rest), Some(home)) => {
            expanded.push(home);
            rest
        }
        _ => text,
    };
    let mut parts = text.split('$');
    expanded.push(parts.next().unwrap_or_default());
    for part in parts {
        let end = || part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len());
        let braced = part.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let (name, rest) = braced.unwrap_or_else(|| part.split_at(end()));
        match variable(name) {
            Some(value) => {
                expanded.push(value);
                expanded.push(rest);
            }
            None => expanded.push(format!("${part}")),
        }
    }
    expanded
}

/// Hugging Face's own folder.
fn hf_home(set: Variable) -> Option<Setting<PathBuf>> {
    if let Some(home) = set("HF_HOME") {
        return Some(Setting { value: home.value.into(), origin: home.origin });
    }
    if let Some(cache) = set("XDG_CACHE_HOME") {
        return Some(Setting { value: PathBuf::from(cache.value).join("huggingface"), origin: cache.origin });
    }
    let home = set(HOME)?;
    Some(Setting { value: PathBuf::from(home.value).join(".cache").join("huggingface"), origin: DEFAULT })
}

fn endpoint(set: Option<Setting<OsString>>) -> Result<Setting<String>> {
    let Some(set) = set else {
        return Ok(Setting { value: PUBLIC_HUB.into(), origin: DEFAULT });
    };
    let value = set.value.to_string_lossy().trim_end_matches('/').to_owned();
    if !value.starts_with("http://") && !value.starts_with("https://") {
        return Err(Error::Hub(format!("HF_ENDPOINT is {value:?}: it must begin with https:// or http://")));
    }
    Ok(Setting { value, origin: set.origin })
}

/// The token of the environment, else of the file that `hf auth login` writes.
fn token(
    set: Variable,
    file: Option<Setting<OsString>>,
    default_file: Option<PathBuf>,
) -> Setting<Option<String>> {
    let clean = |text: &str| Some(text.trim().to_owned()).filter(|token| !token.is_empty());
    if let Some(given) = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN")) {
        return Setting { value: clean(&given.value.to_string_lossy()), origin: given.origin };
    }
    let file = file.map(|s| (PathBuf::from(s.value), s.origin));
    let file = file.or_else(|| default_file.map(|file| (file, "the token file")));
    let read = file.and_then(|(file, origin)| Some((clean(&std::fs::read_to_string(file).ok()?)?, origin)));
    match read {
        Some((token, origin)) => Setting { value: Some(token), origin },
        None => Setting { value: None, origin: DEFAULT },
    }
}

fn offline(set: Option<Setting<OsString>>) -> Setting<bool> {
    let Some(set) = set else {
        return Setting { value: false, origin: DEFAULT };
    };
    let yes = ["1", "on", "yes", "true"].iter().any(|yes| set.value.eq_ignore_ascii_case(yes));
    Setting { value: yes, origin: set.origin }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
        Settings::from_variables(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_cache_is_where_python_would_have_it() {
        for (variables, cache, origin) in [
            (&[(HOME, "/h")][..], "/h/.cache/huggingface/hub", "default"),
            (&[(HOME, "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub", "XDG_CACHE_HOME"),
            (&[(HOME, "/h"), ("HF_HOME", "/f"), ("XDG_CACHE_HOME", "/x")], "/f/hub", "HF_HOME"),
            (&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/f")], "/c", "HF_HUB_CACHE"),
            (&[("HF_HUB_CACHE", ""), ("HF_HOME", "/f")], "/f/hub", "HF_HOME"),
        ] {
            let found = settings(variables).unwrap().cache;
            assert_eq!(found, Setting { value: cache.into(), origin });
        }
    }

    #[test]
    fn home_and_variables_in_a_folders_name_are_replaced_as_python_does_it() {
        for (name, value, cache) in [
            ("HF_HUB_CACHE", "~/c", "/h/c"),
            ("HF_HUB_CACHE", "~", "/h"),
            ("HF_HUB_CACHE", "~other/c", "~other/c"),
            ("HF_HUB_CACHE", "/x/~", "/x/~"),
            ("HF_HUB_CACHE", "$DISK/c", "/d/c"),
            ("HF_HUB_CACHE", "/m${DISK}s/$NONE/${NONE}/${DISK/$", "/m/ds/$NONE/${NONE}/${DISK/$"),
            ("HF_HOME", "~/f", "/h/f/hub"),
            ("XDG_CACHE_HOME", "$DISK", "/d/huggingface/hub"),
        ] {
            let found = settings(&[(HOME, "/h"), ("DISK", "/d"), (name, value)]).unwrap().cache;
            assert_eq!(found, Setting { value: cache.into(), origin: name });
        }
        assert_eq!(settings(&[("HF_HOME", "~/f")]).unwrap().cache.value, PathBuf::from("~/f/hub"));
    }

    #[test]
    fn without_any_folder_there_is_an_error_that_says_what_to_set() {
        assert!(settings(&[]).unwrap_err().to_string().contains("HF_HOME"));
    }

    #[test]
    fn endpoint_token_and_offline_come_from_their_variables() {
        let found = settings(&[
            ("HF_HOME", "/nowhere"),
            ("HF_ENDPOINT", "https://mirror.example/"),
            ("HF_TOKEN", " hf_x\n"),
            ("HF_HUB_OFFLINE", "TRUE"),
        ])
        .unwrap();
        assert_eq!(found.endpoint.value, "https://mirror.example");
        assert_eq!(found.token, Setting { value: Some("hf_x".into()), origin: "HF_TOKEN" });
        assert_eq!(found.offline, Setting { value: true, origin: "HF_HUB_OFFLINE" });

        let bare = settings(&[("HF_HOME", "/nowhere"), ("HF_HUB_OFFLINE", "0")]).unwrap();
        assert_eq!(bare.endpoint.value, "https://huggingface.co");
        assert_eq!((bare.token.value, bare.offline.value), (None, false));
        assert!(settings(&[("HF_HOME", "/f"), ("HF_ENDPOINT", "mirror.example")]).is_err());
    }

    #[test]
    fn the_token_is_read_from_its_file() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let home = home.path().to_str().unwrap();
        assert_eq!(settings(&[("HF_HOME", home)]).unwrap().token.value.as_deref(), Some("hf_file"));
        for elsewhere in [&format!("{home}/token"), "~/token"] {
            let found =
                settings(&[(HOME, home), ("HF_HOME", "/nowhere"), ("HF_TOKEN_PATH", elsewhere)]).unwrap();
            assert_eq!(found.token, Setting { value: Some("hf_file".into()), origin: "HF_TOKEN_PATH" });
        }
        let literal = settings(&[(HOME, "/h"), ("HF_HOME", "/nowhere"), ("HF_TOKEN", "~$HOME")]).unwrap();
        assert_eq!(literal.token.value.as_deref(), Some("~$HOME"));
    }
}
