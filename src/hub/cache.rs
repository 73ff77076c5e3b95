//! The layout of the Hugging Face cache, by hf-hub, and what hf-hub does not know of it.
//!
//! ```text
//! models--owner--name/blobs/<hash>                     the bytes
//! models--owner--name/snapshots/<commit>/<path>        a relative link to them
//! models--owner--name/refs/<branch>                    the commit of a branch
//! models--owner--name/.last_used/<hash or commit>      empty, pensive's own: its time is the last use
//! .locks/models--owner--name/<hash>.lock               held while a blob is downloaded
//! ```
//!
//! The hub does not tell `Owner/Name` from `owner/name`: a repository that is here is found by either.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use crate::{Error, Result};

/// One repository of the cache, seen from one revision.
pub(super) struct CachedRepo {
    /// `owner/name` as its folder spells it.
    pub repository: String,
    cache: PathBuf,
    folder_name: String,
    revision: String,
    layout: CacheRepo,
}

impl CachedRepo {
    pub fn new(cache: &Path, repository: &str, revision: &str) -> CachedRepo {
        let repository = spelling(cache, repository);
        let repo = Repo::with_revision(repository.clone(), RepoType::Model, revision.into());
        CachedRepo {
            repository,
            cache: cache.to_owned(),
            folder_name: repo.folder_name(),
            revision: revision.into(),
            layout: Cache::new(cache.to_owned()).repo(repo),
        }
    }

    /// `models--owner--name`.
    pub fn folder(&self) -> PathBuf {
        self.cache.join(&self.folder_name)
    }

    pub fn snapshots(&self) -> PathBuf {
        self.folder().join("snapshots")
    }

    /// The folder of a commit's files.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.snapshots().join(commit)
    }

    /// The commit of the revision, if the cache knows it: by a branch or tag, or the revision is a commit, or the
    /// beginning of only one.
    pub fn commit(&self) -> Option<String> {
        let named = fs::read_to_string(self.folder().join("refs").join(&self.revision)).ok();
        let commit = named.map_or_else(|| self.revision.clone(), |text| text.trim().to_owned());
        let plain = !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric());
        if plain && self.snapshot(&commit).is_dir() {
            return Some(commit);
        }
        if commit.len() < SHORT_COMMIT || !commit.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut longer = self.commits().ok()?;
        longer.retain(|known| known.starts_with(&commit.to_ascii_lowercase()));
        longer.pop().filter(|_| longer.is_empty())
    }

    /// Where a file of a commit is found.
    pub fn pointer(&self, commit: &str, path: &str) -> PathBuf {
        self.layout.pointer_path(commit).join(path)
    }

    pub fn blobs(&self) -> PathBuf {
        self.folder().join("blobs")
    }

    /// Where the bytes with this hash are.
    pub fn blob(&self, hash: &str) -> PathBuf {
        self.layout.blob_path(hash)
    }

    /// The note of the last use of a snapshot's file, or of the snapshot itself.
    pub fn last_used(&self, file: &Path) -> PathBuf {
        let blob = link_target(file);
        last_used_notes(&self.folder()).join(blob.as_deref().unwrap_or(file).file_name().unwrap_or_default())
    }

    /// What a download of this hash has so far.
    pub fn partial(&self, hash: &str) -> PathBuf {
        self.blob(&format!("{hash}.incomplete"))
    }

    /// The file that is locked while this hash is downloaded; the Python library locks the same.
    pub fn lock(&self, hash: &str) -> PathBuf {
        lock(&self.folder(), hash)
    }

    /// Notes that the revision stands for `commit`.
    pub fn set_commit(&self, commit: &str) -> Result<()> {
        if self.revision == commit {
            return Ok(());
        }
        self.layout.create_ref(commit).map_err(|error| Error::io(self.folder().join("refs"), error))
    }

    /// Makes a blob be found at a commit's path.
    pub fn point(&self, hash: &str, commit: &str, path: &str) -> Result<PathBuf> {
        let pointer = self.pointer(commit, path);
        if let Some(folder) = pointer.parent() {
            fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
        }
        place(&self.blob(hash), &pointer, relative_link).map_err(|error| Error::io(&pointer, error))?;
        Ok(pointer)
    }

    /// Branches and tags, and the commits they stand for.
    pub fn refs(&self) -> Result<Vec<(String, String)>> {
        let folder = self.folder().join("refs");
        let names = files_below(&folder)?.into_iter();
        let read = |name: String| {
            let commit = fs::read_to_string(folder.join(&name)).ok()?.trim().to_owned();
            Some((name, commit))
        };
        Ok(names.filter_map(read).collect())
    }

    /// The commits that have a snapshot.
    pub fn commits(&self) -> Result<Vec<String>> {
        names_in(&self.snapshots())
    }
}

/// Digits that a commit is shortened to at most, as git does it.
const SHORT_COMMIT: usize = 7;

/// The folder of the notes of the last use. It is in the repository's folder, so that it goes with it; Python's tools
/// look only at `blobs`, `refs` and `snapshots` there.
pub(super) fn last_used_notes(repository: &Path) -> PathBuf {
    repository.join(".last_used")
}

/// [`CachedRepo::lock`] by the repository's folder.
pub(super) fn lock(repository: &Path, hash: &str) -> PathBuf {
    let cache = repository.parent().unwrap_or(Path::new(""));
    cache.join(".locks").join(repository.file_name().unwrap_or_default()).join(format!("{hash}.lock"))
}

/// `owner/name` as the cache spells it; as it is given if it is not there.
fn spelling(cache: &Path, repository: &str) -> String {
    // A cache that cannot be read has no spelling of its own; what is read there next says why.
    let known = repositories(cache).unwrap_or_default();
    let same = |name: &&String| name.eq_ignore_ascii_case(repository);
    let found = known.iter().find(|name| *name == repository).or_else(|| known.iter().find(same));
    found.map_or(repository, String::as_str).to_owned()
}

/// The model repositories of a cache: `owner/name`.
pub(super) fn repositories(cache: &Path) -> Result<Vec<String>> {
    let folders = names_in(cache)?.into_iter();
    Ok(folders.filter_map(|name| Some(name.strip_prefix("models--")?.replacen("--", "/", 1))).collect())
}

/// The names in a folder, sorted; none if there is no such folder.
pub(super) fn names_in(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(folder, error)),
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<io::Result<Vec<_>>>().map_err(|error| Error::io(folder, error))?;
    names.sort();
    Ok(names)
}

/// The files below a folder, links among them, as paths with `/`; links to folders are not followed.
pub(super) fn files_below(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for name in names_in(folder)? {
        let path = folder.join(&name);
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
            found.extend(files_below(&path)?.into_iter().map(|below| format!("{name}/{below}")));
        } else {
            found.push(name);
        }
    }
    Ok(found)
}

/// The blob that a snapshot's file links to, one step only: the blob may itself be a link into a shared store.
pub(super) fn link_target(pointer: &Path) -> Option<PathBuf> {
    let target = fs::read_link(pointer).ok()?;
    let mut path = pointer.parent()?.to_owned();
    for part in target.components() {
        match part {
            std::path::Component::ParentDir => drop(path.pop()),
            std::path::Component::CurDir => {}
            part => path.push(part),
        }
    }
    Some(path)
}

/// Links `pointer` to `blob`; where links cannot be made (Windows without the right to, some file systems) the file is
/// moved there, as the Python library does it.
fn place(blob: &Path, pointer: &Path, link: impl Fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
    let is_linked = || link_target(pointer).as_deref() == Some(blob);
    let was_moved = || !blob.exists() && pointer.exists();
    if is_linked() || was_moved() {
        return Ok(());
    }
    if fs::symlink_metadata(pointer).is_ok() {
        fs::remove_file(pointer)?;
    }
    match link(blob, pointer) {
        // Links can be made here: moving the blob would take it from the other snapshots.
        Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::StorageFull) => {
            if is_linked() || was_moved() {
                Ok(())
            } else {
                Err(error)
            }
        }
        Err(_) => fs::rename(blob, pointer),
        Ok(()) => Ok(()),
    }
}

/// A link to `blob` that survives moving the whole cache.
fn relative_link(blob: &Path, pointer: &Path) -> io::Result<()> {
    let repository = blob.parent().and_then(Path::parent).unwrap_or(Path::new(""));
    let inside = |path: &Path| path.strip_prefix(repository).map(Path::to_owned).map_err(io::Error::other);
    let up = inside(pointer)?.components().count() - 1;
    let target = PathBuf::from_iter(std::iter::repeat_n("..", up)).join(inside(blob)?);
    #[cfg(unix)]
    return std::os::unix::fs::symlink(target, pointer);
    #[cfg(windows)]
    return std::os::windows::fs::symlink_file(target, pointer);
    #[cfg(not(any(unix, windows)))]
    return Err(io::Error::from(io::ErrorKind::Unsupported));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repo_with_blob() -> (tempfile::TempDir, CachedRepo) {
        let cache = tempfile::tempdir().unwrap();
        let repo = CachedRepo::new(cache.path(), "o/r", "main");
        fs::create_dir_all(repo.blobs()).unwrap();
        fs::write(repo.blob("abc"), "bytes").unwrap();
        (cache, repo)
    }

    #[cfg(unix)]
    #[test]
    fn a_file_of_a_snapshot_is_a_relative_link_to_its_blob() {
        let (_cache, repo) = repo_with_blob();
        let pointer = repo.point("abc", "c0", "sub/x.gguf").unwrap();
        assert_eq!(fs::read_link(&pointer).unwrap(), Path::new("../../../blobs/abc"));
        assert_eq!(fs::read(&pointer).unwrap(), b"bytes");
        assert_eq!(link_target(&pointer), Some(repo.blob("abc")));
        assert_eq!(repo.point("abc", "c0", "sub/x.gguf").unwrap(), pointer);
    }

    #[test]
    fn without_links_the_file_itself_is_in_the_snapshot() {
        let (_cache, repo) = repo_with_blob();
        let pointer = repo.pointer("c0", "x.gguf");
        fs::create_dir_all(pointer.parent().unwrap()).unwrap();
        let refused = |_: &Path, _: &Path| Err(io::Error::from(io::ErrorKind::PermissionDenied));
        for _ in 0..2 {
            place(&repo.blob("abc"), &pointer, refused).unwrap();
            assert_eq!(fs::read(&pointer).unwrap(), b"bytes");
            assert!(!repo.blob("abc").exists());
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_that_another_process_made_meanwhile_leaves_the_blob_where_it_is() {
        let (_cache, repo) = repo_with_blob();
        let pointer = repo.pointer("c0", "x.gguf");
        fs::create_dir_all(pointer.parent().unwrap()).unwrap();
        for (other, same) in [("abc", true), ("def", false)] {
            let late = |_: &Path, pointer: &Path| {
                relative_link(&repo.blob(other), pointer)?;
                relative_link(&repo.blob("abc"), pointer)
            };
            assert_eq!(place(&repo.blob("abc"), &pointer, late).is_ok(), same);
            assert_eq!(link_target(&pointer), Some(repo.blob(other)));
            assert_eq!(fs::read(repo.blob("abc")).unwrap(), b"bytes");
            fs::remove_file(&pointer).unwrap();
        }
    }

    #[test]
    fn a_revision_is_a_branch_or_a_commit_that_has_a_snapshot() {
        let (cache, repo) = repo_with_blob();
        assert_eq!(repo.commit(), None);
        repo.set_commit("c0ffee").unwrap();
        assert_eq!(repo.commit(), None);
        repo.point("abc", "c0ffee", "x.gguf").unwrap();
        assert_eq!(repo.commit().as_deref(), Some("c0ffee"));
        assert_eq!(CachedRepo::new(cache.path(), "o/r", "c0ffee").commit().as_deref(), Some("c0ffee"));
        assert_eq!(CachedRepo::new(cache.path(), "o/r", "v2").commit(), None);
    }

    #[test]
    fn a_commit_may_be_shortened_to_seven_digits_that_only_one_begins_with() {
        let (cache, repo) = repo_with_blob();
        let commits = ["aaaabbb1".repeat(5), "aaaabbb2".repeat(5), "c0ffee00".repeat(5)];
        for commit in &commits {
            repo.point("abc", commit, "x.gguf").unwrap();
        }
        let commit = |revision: &str| CachedRepo::new(cache.path(), "o/r", revision).commit();
        assert_eq!(commit("c0ffee0").as_ref(), Some(&commits[2]));
        assert_eq!(commit("C0FFEE0").as_ref(), Some(&commits[2]));
        assert_eq!(commit("aaaabbb2").as_ref(), Some(&commits[1]));
        for none in ["c0ffee", "aaaabbb", "c0ffee1", "coffee00"] {
            assert_eq!(commit(none), None, "{none}");
        }
    }

    #[test]
    fn a_repository_is_found_in_any_case_and_as_it_is_spelled_first() {
        let (cache, repo) = repo_with_blob();
        let found = |name: &str| CachedRepo::new(cache.path(), name, "main").folder();
        assert_eq!(found("O/R"), repo.folder());
        assert_eq!(found("O/S"), cache.path().join("models--O--S"));
        fs::create_dir_all(cache.path().join("models--O--R")).unwrap();
        assert_eq!(found("o/r"), repo.folder());
    }

    #[test]
    fn a_branch_file_that_points_outside_is_no_revision() {
        let (_cache, repo) = repo_with_blob();
        repo.set_commit("../blobs").unwrap();
        fs::create_dir_all(repo.snapshots()).unwrap();
        assert_eq!(repo.commit(), None);
    }
}
