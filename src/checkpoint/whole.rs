//! Files that are there as a whole or not at all, whatever happens while they are written.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

/// A file that gets its name when it is [kept](Self::keep). Where the system can, it has none before (Linux: `O_TMPFILE`), so
/// that nothing is left of it even if the process is killed; elsewhere it has another one, and is removed unless it is kept.
pub struct WholeFile {
    path: PathBuf,
    inner: Inner,
}

enum Inner {
    #[cfg(target_os = "linux")]
    Nameless(File),
    Named(tempfile::NamedTempFile),
}

impl WholeFile {
    /// A file that is to be `path`, with room for so many bytes at least, where the file system can reserve it.
    ///
    /// # Errors
    /// A folder that is not there or cannot be written to; a disk that has no room; something at `path` that is no ordinary file,
    /// such as a folder or a device.
    pub fn create(path: &Path, bytes: u64) -> Result<WholeFile> {
        if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
            return Err(Error::new(ErrorKind::InvalidInput, "is there, and is not an ordinary file"));
        }
        let folder = folder(path);
        if !folder.is_dir() {
            return Err(Error::new(ErrorKind::NotFound, "its folder is not there: make it first"));
        }
        #[cfg(target_os = "linux")]
        if let Some(file) = nameless(folder) {
            reserve(&file, bytes)?;
            return Ok(WholeFile { path: path.to_owned(), inner: Inner::Nameless(file) });
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".pensive-").suffix(".part");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666)); // less the user's mask
        }
        let file = builder.tempfile_in(folder)?;
        #[cfg(target_os = "linux")]
        reserve(file.as_file(), bytes)?;
        let _ = bytes;
        Ok(WholeFile { path: path.to_owned(), inner: Inner::Named(file) })
    }

    /// What is to be written to.
    pub fn file(&self) -> &File {
        match &self.inner {
            #[cfg(target_os = "linux")]
            Inner::Nameless(file) => file,
            Inner::Named(file) => file.as_file(),
        }
    }

    /// Gives the file its name, once it is on the disk; one that has it is replaced.
    ///
    /// # Errors
    /// What the system says.
    pub fn keep(self) -> Result<()> {
        self.file().sync_all()?;
        match self.inner {
            #[cfg(target_os = "linux")]
            Inner::Nameless(file) => match name(&file, &self.path) {
                // a name cannot be taken over but by renaming
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    let named = tempfile::Builder::new()
                        .prefix(".pensive-")
                        .make_in(folder(&self.path), |path| name(&file, path))?;
                    named.into_temp_path().persist(&self.path).map_err(|error| error.error)
                }
                named => named,
            },
            Inner::Named(file) => file.persist(&self.path).map(drop).map_err(|error| error.error),
        }
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file without a name, if the file system has such.
#[cfg(target_os = "linux")]
fn nameless(folder: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let is_nameable = Path::new("/proc/self/fd").is_dir();
    let mut options = std::fs::OpenOptions::new();
    options.write(true).mode(0o666).custom_flags(libc::O_TMPFILE);
    is_nameable.then(|| options.open(folder).ok()).flatten()
}

/// Links a nameless file to a name that is not taken.
#[cfg(target_os = "linux")]
fn name(file: &File, path: &Path) -> Result<()> {
    use std::os::fd::AsRawFd;

    use rustix::fs::{AtFlags, CWD, linkat};
    let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, nameless, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

/// Room on the disk, so that it does not run out halfway. A file system that cannot reserve it is no fault.
#[cfg(target_os = "linux")]
fn reserve(file: &File, bytes: u64) -> Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    match fallocate(file, FallocateFlags::empty(), 0, bytes.max(1)) {
        Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_there_when_it_is_kept_and_nothing_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = WholeFile::create(&path, 3).unwrap();
        file.file().write_all(b"one").unwrap();
        assert!(!path.exists());
        #[cfg(target_os = "linux")]
        assert_eq!(names(folder.path()), [""; 0]);
        file.keep().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one");

        let second = WholeFile::create(&path, 3).unwrap();
        second.file().write_all(b"two").unwrap();
        second.keep().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two", "what is there is replaced");
        drop(WholeFile::create(&path, 3).unwrap());
        assert_eq!(names(folder.path()), ["file"], "what is not kept leaves nothing");
    }

    #[test]
    fn what_is_no_ordinary_file_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let refused = WholeFile::create(folder.path(), 1).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_disk_without_room_is_known_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let refused = WholeFile::create(&folder.path().join("file"), 1 << 55);
        assert!(refused.is_err());
    }
}
