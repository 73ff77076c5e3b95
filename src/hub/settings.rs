//! Where the cache is, where the hub is, and who asks.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::Result;

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
    /// The settings of this process's environment.
    ///
    /// # Errors
    /// As [`Settings::from_variables`].
    pub fn from_env() -> Result<Settings> {
        Self::from_variables(|name| std::env::var_os(name))
    }

    /// The settings by these variables; the order is that of Python's huggingface_hub.
    ///
    /// # Errors
    /// No cache folder is set and there is no home folder.
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Settings> {
        let _ = variable;
        unimplemented!()
    }

    /// Settings for a cache folder of its own: the public hub, no token.
    pub fn at(cache: impl Into<PathBuf>) -> Settings {
        Settings {
            cache: Setting { value: cache.into(), origin: "given" },
            endpoint: Setting { value: "https://huggingface.co".into(), origin: "default" },
            token: Setting { value: None, origin: "default" },
            offline: Setting { value: false, origin: "default" },
        }
    }

    /// With this hub instead.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Settings {
        self.endpoint = Setting { value: endpoint.into(), origin: "given" };
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
