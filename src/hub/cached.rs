//! What is in the cache.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::cache::{self, CachedRepo, files_below, link_target, names_in};
use super::group::Group;
use super::models::{Choice, choose, models};
use super::plan::{safetensors_message, several_message};
use super::reference::{HubReference, MAIN, Select};
use super::{Located, Settings};
use crate::catalog::{self, Entry};
use crate::checkpoint::safetensors::{INDEX, Index};
use crate::checkpoint::{Checkpoint, Metadata};
use crate::{Error, Result};

/// A model of the cache: one quantization, or the safetensors, of one revision. A repository without a model is one too,
/// so that a listing can say why it cannot be run.
#[derive(Clone, Debug, PartialEq)]
pub struct Cached {
    /// How to name it: the catalog's short name, else `owner/repo:QUANT`, else `owner/repo/file.gguf`; safetensors are
    /// `owner/repo`.
    pub name: String,
    /// `owner/name`.
    pub repository: String,
    /// The branch or tag that points here (`main` before others), or the commit where there is none.
    pub revision: String,
    /// The commit; empty if no file of the repository is complete.
    pub commit: String,
    /// The files in the order of their parts; of safetensors the folder that they are in.
    pub files: Vec<PathBuf>,
    /// Quantization by the file's name.
    pub quantization: Option<String>,
    /// Architecture by the file's metadata or config.json: `qwen2`.
    pub architecture: Option<String>,
    /// Size on disk, bytes.
    pub bytes: u64,
    /// Licence: the catalog's words, else the file's metadata.
    pub licence: Option<String>,
    /// When pensive last loaded it, by [`Hub::touch`](super::Hub::touch)'s note; when its first file was written, if
    /// that is later or there is no note. Other programs' use is not noted: the system's time of the last access is
    /// changed by listing too.
    pub last_used: Option<SystemTime>,
    /// Whether pensive runs it, or why not.
    pub runnable: Result<(), String>,
}

/// A model at a commit of the cache.
pub(super) struct Found {
    repo: CachedRepo,
    commit: String,
    group: Group,
}

impl Found {
    /// Its files, one by one.
    pub fn parts(&self) -> Vec<PathBuf> {
        parts(&self.repo, &self.commit, &self.group)
    }
}

/// The files of a model, one by one.
fn parts(repo: &CachedRepo, commit: &str, group: &Group) -> Vec<PathBuf> {
    group.parts.iter().map(|path| repo.pointer(commit, path)).collect()
}

/// What a model's files are named by: each of GGUF, the folder of safetensors.
fn files(repo: &CachedRepo, commit: &str, group: &Group) -> Vec<PathBuf> {
    if group.is_folder { vec![repo.snapshot(commit)] } else { parts(repo, commit, group) }
}

/// The files of `reference` in the cache, if all are there.
pub(super) fn find(settings: &Settings, reference: &HubReference) -> Result<Option<Located>> {
    let located = |Found { repo, commit, group }| Located {
        files: files(&repo, &commit, &group),
        entry: group.entry(&repo.repository, reference.entry),
        repository: Some(repo.repository),
        quantization: group.label,
        commit: Some(commit),
    };
    Ok(find_model(settings, reference)?.map(located))
}

/// The model that `reference` means, if all its files are in the cache.
pub(super) fn find_model(settings: &Settings, reference: &HubReference) -> Result<Option<Found>> {
    let repo = CachedRepo::new(&settings.cache.value, &reference.repository, &reference.revision);
    let Some(commit) = repo.commit() else { return Ok(None) };
    let groups = complete_groups(&repo, &commit)?;
    let group = match choose(&groups, reference) {
        Choice::One(group) => group.clone(),
        // the hub may have GGUF files beside the safetensors that are here
        Choice::None if settings.offline.value && reference.select != Select::Default => {
            match groups.iter().any(|group| group.is_folder) {
                true => return Err(Error::Hub(safetensors_message(reference))),
                false => return Ok(None),
            }
        }
        Choice::None => return Ok(None),
        Choice::Several(several) => return Err(Error::Hub(several_message(&reference.repository, &several))),
    };
    Ok(Some(Found { repo, commit, group }))
}

/// The files of `reference` that a download left which was stopped: those of a model of which others are not here.
pub(super) fn beginnings(repo: &CachedRepo, reference: &HubReference) -> Result<Vec<PathBuf>> {
    let commits = match repo.commit() {
        Some(commit) => vec![commit],
        // a branch is noted when all is here
        None => {
            let named: HashSet<String> = repo.refs()?.into_iter().map(|(_, commit)| commit).collect();
            repo.commits()?.into_iter().filter(|commit| !named.contains(commit)).collect()
        }
    };
    let mut found = Vec::new();
    for commit in commits {
        let mut groups = groups_here(repo, &commit)?;
        groups.retain(|group| !group.complete());
        if let Choice::One(group) = choose(&groups, reference) {
            found.extend(parts(repo, &commit, group));
        }
    }
    Ok(found)
}

/// The models of a repository that are here, complete, at the revision of `reference`: quantizations, else paths.
pub(super) fn choices(settings: &Settings, reference: &HubReference) -> Result<Vec<String>> {
    let repo = CachedRepo::new(&settings.cache.value, &reference.repository, &reference.revision);
    let Some(commit) = repo.commit() else { return Ok(Vec::new()) };
    let mut shown: Vec<String> =
        complete_groups(&repo, &commit)?.iter().map(|group| group.shown().to_owned()).collect();
    shown.sort();
    shown.dedup();
    Ok(shown)
}

/// Notes that a model of the cache is used now, if the cache can be written to.
pub(super) fn touch(settings: &Settings, repository: &str, first: &Path) {
    let note = CachedRepo::new(&settings.cache.value, repository, MAIN).last_used(first);
    let written = || {
        fs::create_dir_all(note.parent().unwrap_or(&note))?;
        fs::File::create(&note)?.set_modified(SystemTime::now())
    };
    // A cache that may only be read is used all the same.
    written().ok();
}

/// The models of a snapshot of which every part is there.
fn complete_groups(repo: &CachedRepo, commit: &str) -> Result<Vec<Group>> {
    Ok(groups_here(repo, commit)?.into_iter().filter(Group::complete).collect())
}

/// The models of a snapshot of which a part is there.
fn groups_here(repo: &CachedRepo, commit: &str) -> Result<Vec<Group>> {
    let mut paths = files_below(&repo.snapshot(commit))?;
    paths.retain(|path| repo.pointer(commit, path).exists());
    groups(repo, commit, &paths)
}

/// The models among the files of a snapshot.
fn groups(repo: &CachedRepo, commit: &str, paths: &[String]) -> Result<Vec<Group>> {
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    models(&paths, || Index::read(&repo.pointer(commit, INDEX)))
}

/// Everything in the cache: what can be run first, then by name.
pub(super) fn list(settings: &Settings) -> Result<Vec<Cached>> {
    let mut found = Vec::new();
    for repository in cache::repositories(&settings.cache.value)? {
        found.extend(list_repository(&settings.cache.value, &repository)?);
    }
    found.sort_by(|a, b| (a.runnable.is_err(), &a.name).cmp(&(b.runnable.is_err(), &b.name)));
    Ok(found)
}

fn list_repository(cache: &Path, repository: &str) -> Result<Vec<Cached>> {
    let repo = CachedRepo::new(cache, repository, MAIN);
    let refs = repo.refs()?;
    // `main` first, so that of the same bytes at two revisions the one with the plainer name is listed.
    let rank = |commit: &String| match refs.iter().filter(|(_, c)| c == commit).map(|(name, _)| name).min() {
        Some(_) if refs.iter().any(|(name, c)| name == MAIN && c == commit) => (0, MAIN.to_owned()),
        Some(name) => (1, name.clone()),
        None => (2, commit.clone()),
    };
    let mut commits: Vec<(usize, String, String)> =
        repo.commits()?.into_iter().map(|c| (rank(&c).0, rank(&c).1, c)).collect();
    commits.sort();
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    for (_, revision, commit) in commits {
        let paths = files_below(&repo.snapshot(&commit))?;
        let (groups, fault) = match groups(&repo, &commit, &paths) {
            Ok(groups) => (groups, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        let bytes = |group: &Group| -> Vec<PathBuf> {
            let pointers = parts(&repo, &commit, group).into_iter();
            pointers.map(|pointer| link_target(&pointer).unwrap_or(pointer)).collect()
        };
        let at = Snapshot { repo: &repo, repository, revision: &revision, commit: &commit, groups: &groups };
        found.extend(groups.iter().filter(|group| seen.insert(bytes(group))).map(|group| at.cached(group)));
        if groups.is_empty() {
            found.push(at.without_model(&paths, fault));
        }
    }
    if found.is_empty() {
        found.extend(unfinished(&repo, repository)?);
    }
    Ok(found)
}

/// A commit of the cache and what is known of it.
struct Snapshot<'a> {
    repo: &'a CachedRepo,
    repository: &'a str,
    revision: &'a str,
    commit: &'a str,
    groups: &'a [Group],
}

impl Snapshot<'_> {
    fn cached(&self, group: &Group) -> Cached {
        let entry = catalog::for_repository(self.repository);
        let parts = parts(self.repo, self.commit, group);
        let files = files(self.repo, self.commit, group);
        let head = self.head(group, &parts, &files[0]);
        let (architecture, licence) = head.as_ref().map_or((None, None), Clone::clone);
        let runnable = head.and_then(|(architecture, _)| match architecture {
            Some(name) => catalog::runnable_architecture(&name),
            None => Err("the file names no architecture".into()),
        });
        Cached {
            name: self.name(group, entry),
            quantization: group.label.clone(),
            architecture,
            licence: group.entry(self.repository, entry).map(|entry| entry.licence.clone()).or(licence),
            runnable,
            last_used: last_used(self.repo, &files[0]),
            files,
            ..self.bare(parts)
        }
    }

    /// Architecture and licence by the metadata of `path`, or why it cannot be read.
    fn head(
        &self,
        group: &Group,
        parts: &[PathBuf],
        path: &Path,
    ) -> Result<(Option<String>, Option<String>), String> {
        let here = parts.iter().filter(|part| part.exists()).count();
        let expected = group.expected;
        if here < expected {
            return Err(format!("{here} of {expected} files are here; `pensive pull` fetches the rest"));
        }
        let checkpoint = Checkpoint::open(path).map_err(|error| match error {
            Error::File { what, .. } => what, // the list names the model itself
            other => other.to_string(),
        })?;
        match checkpoint.metadata {
            Metadata::Gguf(metadata) => {
                let text = |key: &str| metadata.find::<&str>(key).ok().flatten().map(str::to_owned);
                Ok((text("general.architecture"), text("general.license")))
            }
            Metadata::HuggingFace { config, .. } => {
                Ok((config["model_type"].as_str().map(str::to_owned), None))
            }
        }
    }

    /// The shortest name that finds this model.
    fn name(&self, group: &Group, entry: Option<&'static Entry>) -> String {
        if let (Some(entry), Some(label), MAIN) = (entry, &group.label, self.revision) {
            return if *label == entry.quantization {
                entry.name.clone()
            } else {
                format!("{}-{}", entry.name, label.to_lowercase())
            };
        }
        let at = if self.revision == MAIN { String::new() } else { format!("@{}", self.revision) };
        match &group.label {
            _ if group.is_folder => format!("{}{at}", self.repository),
            Some(label) if self.groups.iter().filter(|other| other.label == group.label).count() == 1 => {
                format!("{}{at}:{label}", self.repository)
            }
            _ => format!("{}{at}/{}", self.repository, group.parts[0]),
        }
    }

    /// A commit without a model; `fault` is what is wrong with its files.
    fn without_model(&self, paths: &[String], fault: Option<String>) -> Cached {
        let files = paths.iter().map(|path| self.repo.pointer(self.commit, path)).collect();
        let bare = self.bare(files);
        Cached { files: Vec::new(), runnable: fault.map_or(bare.runnable.clone(), Err), ..bare }
    }

    /// What is known of files without opening them.
    fn bare(&self, files: Vec<PathBuf>) -> Cached {
        Cached {
            name: self.repository.to_owned(),
            repository: self.repository.to_owned(),
            revision: self.revision.to_owned(),
            commit: self.commit.to_owned(),
            quantization: None,
            architecture: None,
            bytes: files.iter().filter_map(|file| fs::metadata(file).ok()).map(|meta| meta.len()).sum(),
            licence: None,
            last_used: files.first().and_then(|file| last_used(self.repo, file)),
            runnable: Err("it has no GGUF file, and no config.json with safetensors".into()),
            files,
        }
    }
}

/// A repository of which only beginnings are here.
fn unfinished(repo: &CachedRepo, repository: &str) -> Result<Option<Cached>> {
    let partial = partials(repo)?;
    let nothing = Snapshot { repo, repository, revision: MAIN, commit: "", groups: &[] };
    Ok((!partial.is_empty()).then(|| Cached {
        runnable: Err("the download is not finished; `pensive pull` goes on with it".into()),
        files: Vec::new(),
        ..nothing.bare(partial)
    }))
}

/// The downloads of a repository that were stopped.
pub(super) fn partials(repo: &CachedRepo) -> Result<Vec<PathBuf>> {
    let names = names_in(&repo.blobs())?.into_iter();
    Ok(names.filter(|name| name.ends_with(".incomplete")).map(|name| repo.blobs().join(name)).collect())
}

fn last_used(repo: &CachedRepo, file: &Path) -> Option<SystemTime> {
    let written = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    written(&repo.last_used(file)).max(written(file))
}
