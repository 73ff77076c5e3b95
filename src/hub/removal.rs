//! Removing a model from the cache.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::cache::{self, CachedRepo, files_below, last_used_notes, link_target, names_in};
use super::cached::{beginnings, find_model, partials};
use super::models::is_part;
use super::reference::HubReference;
use super::{Reference, Settings};
use crate::checkpoint::embedded;
use crate::{Error, Result};

/// What a removal will delete; nothing is deleted yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The names in the snapshot that go.
    pub files: Vec<PathBuf>,
    /// The blobs that go: those that no other snapshot uses; or the beginnings that a stopped download left.
    pub blobs: Vec<PathBuf>,
    /// Bytes that become free.
    pub freed_bytes: u64,
    /// Blobs that stay because another snapshot uses them.
    pub kept: Vec<PathBuf>,
    /// The repository's folder in the cache.
    repository: PathBuf,
}

/// What removing `reference` would delete.
pub(super) fn plan(settings: &Settings, reference: &Reference) -> Result<Removal> {
    let reference = match reference {
        Reference::Hub(reference) => reference,
        Reference::Path(path) if embedded::bytes(path).is_some() => {
            let name = embedded::NAME;
            return Err(Error::Hub(format!(
                "{name} is a part of pensive itself: there is no file to remove"
            )));
        }
        Reference::Path(path) => {
            return Err(Error::Hub(format!(
                "{} is a file of yours: pensive removes only what it pulled into {}",
                path.display(),
                settings.cache.value.display()
            )));
        }
    };
    let repo = CachedRepo::new(&settings.cache.value, &reference.repository, &reference.revision);
    match find_model(settings, reference)? {
        Some(found) => of_files(&repo, found.parts()),
        None => of_unfinished(&repo, reference),
    }
}

fn of_files(repo: &CachedRepo, files: Vec<PathBuf>) -> Result<Removal> {
    let going: HashSet<&PathBuf> = files.iter().collect();
    let mut used = HashSet::new();
    for commit in repo.commits()? {
        let pointers = files_below(&repo.snapshots().join(&commit))?.into_iter();
        let others = pointers.map(|path| repo.pointer(&commit, &path)).filter(|path| !going.contains(path));
        used.extend(others.filter_map(|path| link_target(&path)));
    }
    let mut removal = Removal {
        files: Vec::new(),
        blobs: Vec::new(),
        freed_bytes: 0,
        kept: Vec::new(),
        repository: repo.folder(),
    };
    for file in &files {
        match link_target(file) {
            // The file itself is in the snapshot, where links cannot be made.
            None => removal.freed_bytes += own_size(file),
            Some(blob) if used.contains(&blob) => removal.kept.push(blob),
            // A link that leads out of the cache: only the link goes.
            Some(target) if target.parent() != Some(&repo.blobs()) => {}
            Some(blob) => {
                removal.freed_bytes += own_size(&blob);
                removal.blobs.push(blob);
            }
        }
    }
    removal.files = files;
    Ok(removal)
}

/// What stopped downloads of a model left, or of the whole repository where it alone is named, if no other process is
/// at them.
fn of_unfinished(repo: &CachedRepo, reference: &HubReference) -> Result<Removal> {
    let lock = |blob: &PathBuf| {
        let name = blob.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        repo.lock(name.split('.').next().unwrap_or_default())
    };
    let is_free = |blob: &PathBuf| {
        let lock = fs::File::open(lock(blob));
        !lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)))
    };
    let (mut blobs, taken): (Vec<PathBuf>, Vec<PathBuf>) = partials(repo)?.into_iter().partition(is_free);
    blobs.retain(|blob| is_part(&fs::read_to_string(lock(blob)).unwrap_or_default(), reference));
    // whoever is at a file needs those that came before it
    let files = if taken.is_empty() { beginnings(repo, reference)? } else { Vec::new() };
    let mut removal = of_files(repo, files)?;
    if blobs.is_empty() && removal.files.is_empty() {
        return Err(Error::Hub(format!("{reference} is not in the cache; `pensive list` shows what is")));
    }
    removal.freed_bytes += blobs.iter().map(|blob| own_size(blob)).sum::<u64>();
    removal.blobs.extend(blobs);
    Ok(removal)
}

/// Deletes it: files, blobs, then folders that are empty and branches that lead nowhere.
pub(super) fn execute(removal: &Removal) -> Result<u64> {
    let repository = &removal.repository;
    let _locks = lock_partials(repository, &removal.blobs)?;
    // of a file by its blob, of safetensors by their folder
    let used =
        removal.blobs.iter().map(PathBuf::as_path).chain(removal.files.iter().filter_map(|f| f.parent()));
    let notes = used.filter_map(|path| Some(last_used_notes(repository).join(path.file_name()?)));
    for file in removal.files.iter().chain(&removal.blobs).cloned().chain(notes) {
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io(&file, error)),
            _ => {}
        }
    }
    let snapshots = repository.join("snapshots");
    for commit in names_in(&snapshots)? {
        remove_empty(&snapshots.join(commit))?;
    }
    let commits = names_in(&snapshots)?;
    let refs = repository.join("refs");
    for name in files_below(&refs)? {
        let commit = fs::read_to_string(refs.join(&name)).unwrap_or_default();
        if !commits.iter().any(|known| known == commit.trim()) {
            fs::remove_file(refs.join(&name)).map_err(|error| Error::io(refs.join(&name), error))?;
        }
    }
    if commits.is_empty() {
        // `.no_exist`: the Python library's notes of files that a commit does not have.
        for notes in [repository.join(".no_exist"), last_used_notes(repository)] {
            match fs::remove_dir_all(&notes) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io(&notes, error));
                }
                _ => {}
            }
        }
        remove_empty(repository)?;
    }
    Ok(removal.freed_bytes)
}

/// Takes the locks of the beginnings among `blobs`: a download may have gone on with one since the plan, and none may
/// while they are deleted.
fn lock_partials(repository: &Path, blobs: &[PathBuf]) -> Result<Vec<fs::File>> {
    let mut locks = Vec::new();
    for blob in blobs.iter().filter(|blob| blob.extension().is_some_and(|end| end == "incomplete")) {
        let name = blob.file_name().unwrap_or_default().to_string_lossy();
        let path = cache::lock(repository, name.split('.').next().unwrap_or_default());
        // Where there is no folder of locks, nobody downloads.
        let Ok(lock) = fs::OpenOptions::new().create(true).append(true).open(path) else { continue };
        if matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)) {
            return Err(Error::Hub(format!(
                "{}: another process downloads it now; nothing was removed: wait or stop it, then remove again",
                blob.display()
            )));
        }
        locks.push(lock);
    }
    Ok(locks)
}

/// Removes the folders below `folder` that hold no file, and `folder` itself if it is one of them.
fn remove_empty(folder: &Path) -> Result<()> {
    for name in names_in(folder)? {
        let below = folder.join(name);
        if fs::symlink_metadata(&below).is_ok_and(|meta| meta.is_dir()) {
            remove_empty(&below)?;
        }
    }
    if names_in(folder)?.is_empty() && folder.exists() {
        fs::remove_dir(folder).map_err(|error| Error::io(folder, error))?;
    }
    Ok(())
}

/// Bytes that deleting this very file frees: none for a link.
fn own_size(file: &Path) -> u64 {
    fs::symlink_metadata(file).map_or(0, |meta| if meta.is_file() { meta.len() } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_that_a_download_took_up_after_the_plan_stays() {
        let cache = tempfile::tempdir().unwrap();
        let settings = Settings::at(cache.path());
        let repo = CachedRepo::new(cache.path(), "o/r", "main");
        for folder in [repo.blobs(), repo.lock("abc").parent().unwrap().to_owned()] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(repo.partial("abc"), "beginning").unwrap();
        let removal = plan(&settings, &Reference::parse("o/r", "https://hub").unwrap()).unwrap();

        let download = fs::File::create(repo.lock("abc")).unwrap();
        download.lock().unwrap();
        let error = execute(&removal).unwrap_err().to_string();
        assert!(error.contains("abc.incomplete") && error.contains("remove again"), "{error}");
        assert!(repo.partial("abc").exists());

        drop(download);
        assert_eq!(execute(&removal).unwrap(), 9);
        assert!(!repo.folder().exists());
    }
}
