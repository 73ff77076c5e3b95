//! A name becomes files on disk.
//!
//! [`Reference`] is what a name means, [`Hub`] looks it up: in the local cache ([`Hub::find`], never the
//! network) or at the hub ([`Hub::plan`], then [`Hub::pull`]). [`Hub::list`] and [`Hub::removal`] keep the cache in
//! order. The cache is the ordinary Hugging Face cache, shared with Python's tools.

mod cache;
mod cached;
mod client;
mod download;
mod group;
mod models;
mod plan;
mod reference;
mod removal;
mod safetensors;
mod settings;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub use cached::Cached;
pub use plan::{Phase, Plan, PlannedFile, Progress};
pub use reference::{HubReference, Reference, Select};
pub use removal::Removal;
pub use settings::{Setting, Settings};

use cache::CachedRepo;
use client::Client;
use download::Download;

use crate::Result;
use crate::catalog::{Entry, quantization};

/// Files of a model on this machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    /// The files in the order of their parts; one file unless the model is split, or the folder of a checkpoint.
    pub files: Vec<PathBuf>,
    /// Hub repository, `owner/name`; none for a path.
    pub repository: Option<String>,
    /// Commit of the repository.
    pub commit: Option<String>,
    /// Quantization by the file's name: `Q4_K_M`.
    pub quantization: Option<String>,
    /// The catalog's entry, if it was named by a short name or its repository is one of the catalog's.
    pub entry: Option<&'static Entry>,
}

/// The hub and its local cache.
#[derive(Clone, Debug)]
pub struct Hub {
    settings: Settings,
}

impl Hub {
    /// A hub by these settings.
    pub fn new(settings: Settings) -> Hub {
        Hub { settings }
    }

    /// A hub by the environment: HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HUB_OFFLINE.
    ///
    /// # Errors
    /// A variable that cannot be understood, or no home folder.
    pub fn from_env() -> Result<Hub> {
        Ok(Hub::new(Settings::from_env()?))
    }

    /// The settings it works by.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What `name` means: [`Reference::parse`] with this hub's endpoint.
    ///
    /// # Errors
    /// As [`Reference::parse`].
    pub fn reference(&self, name: &str) -> Result<Reference> {
        Reference::parse(name, &self.settings.endpoint.value)
    }

    /// The files of `reference` if they are here, complete; never touches the network.
    ///
    /// # Errors
    /// Several quantizations are here and the wanted one is not clear; a quantization of safetensors is wanted, offline;
    /// or a folder cannot be read.
    pub fn find(&self, reference: &Reference) -> Result<Option<Located>> {
        match reference {
            Reference::Hub(reference) => cached::find(&self.settings, reference),
            Reference::Path(path) => Ok(Some(Located {
                files: vec![path.clone()],
                repository: None,
                commit: None,
                quantization: quantization::of_path(&path.to_string_lossy()),
                entry: None,
            })),
        }
    }

    /// What of the repository of `reference` is here, complete, at its revision: quantizations (`Q4_K_M`), paths of
    /// files whose names have none, or `safetensors`. For an error that names them.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn choices(&self, reference: &HubReference) -> Result<Vec<String>> {
        cached::choices(&self.settings, reference)
    }

    /// Notes that a model is used now, for [`Cached::last_used`]. The note is an empty file in the repository's folder
    /// of the cache; where that may not be written, and for a path, nothing is noted.
    pub fn touch(&self, located: &Located) {
        if let (Some(repository), Some(first)) = (&located.repository, located.files.first()) {
            cached::touch(&self.settings, repository, first);
        }
    }

    /// Asks the hub what a download of `reference` would fetch. `wait` waits, as long as a hub asks that has had
    /// too many requests: up to a minute.
    ///
    /// # Errors
    /// Offline; no such repository, revision, file or quantization (lists what is there); gated; no network.
    pub fn plan(&self, reference: &HubReference, wait: &dyn Fn(Duration)) -> Result<Plan> {
        plan::make(&self.settings, reference, wait)
    }

    /// Downloads what the plan lacks. A download that was stopped goes on where it stopped; SHA-256 is compared
    /// before a file gets its final name. Setting `cancel` stops it and keeps what is there.
    ///
    /// # Errors
    /// No room on disk, a broken connection after several tries, wrong bytes, or `cancel`.
    pub fn pull(
        &self,
        plan: &Plan,
        progress: &mut dyn FnMut(&Progress),
        cancel: &AtomicBool,
    ) -> Result<Located> {
        let cache = &self.settings.cache.value;
        plan.check_room(cache)?;
        let repo = CachedRepo::new(cache, &plan.repository, &plan.revision);
        let client = Arc::new(Client::new(&self.settings)?);
        let mut download = Download { client, repo, plan, progress, cancel, before: 0 };
        let mut files = Vec::new();
        for file in &plan.files {
            files.push(download.fetch(file)?);
            download.finish(file);
        }
        download.repo.set_commit(&plan.commit)?;
        if plan.is_folder {
            files = vec![download.repo.snapshot(&plan.commit)];
        }
        Ok(Located {
            files,
            repository: Some(download.repo.repository.clone()),
            commit: Some(plan.commit.clone()),
            quantization: plan.quantization.clone(),
            entry: plan.entry,
        })
    }

    /// All models of the cache, the runnable first, then by name.
    ///
    /// # Errors
    /// The cache folder cannot be read. (No cache folder is an empty list.)
    pub fn list(&self) -> Result<Vec<Cached>> {
        cached::list(&self.settings)
    }

    /// What removing `reference` from the cache would delete.
    ///
    /// # Errors
    /// A path (files that were not pulled are not removed), or a model that is not here.
    pub fn removal(&self, reference: &Reference) -> Result<Removal> {
        removal::plan(&self.settings, reference)
    }

    /// Deletes what `removal` names; returns the freed bytes.
    ///
    /// # Errors
    /// A file that cannot be deleted. A beginning that another process goes on with by now: then nothing is deleted.
    pub fn remove(&self, removal: &Removal) -> Result<u64> {
        removal::execute(removal)
    }
}
