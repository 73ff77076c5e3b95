//! The hash that names a model's weights.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::checkpoint::embedded;
use crate::{Error, Result};

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// SHA-256, in hexadecimal, of the files one after the other. `progress` is told (bytes done, bytes in all).
///
/// # Errors
/// A file that cannot be read.
pub(super) fn sha256(files: &[PathBuf], mut progress: impl FnMut(u64, u64)) -> Result<String> {
    let mut total = 0;
    for path in files {
        total += match embedded::bytes(path) {
            Some(bytes) => bytes.len() as u64,
            None => path.metadata().map_err(|e| Error::io(path, e))?.len(),
        };
    }
    let (mut hash, mut piece, mut done) = (Sha256::new(), vec![0; PIECE], 0);
    for path in files {
        let mut file: Box<dyn Read> = match embedded::bytes(path) {
            Some(bytes) => Box::new(bytes),
            None => Box::new(File::open(path).map_err(|e| Error::io(path, e))?),
        };
        loop {
            let count = file.read(&mut piece).map_err(|e| Error::io(path, e))?;
            if count == 0 {
                break;
            }
            hash.update(&piece[..count]);
            done += count as u64;
            progress(done, total);
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    // FIPS 180-2, appendix B.1: the hash of "abc".
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn write(folder: &tempfile::TempDir, parts: &[&str]) -> Vec<PathBuf> {
        let paths = parts.iter().enumerate().map(|(i, part)| {
            let path = folder.path().join(i.to_string());
            std::fs::write(&path, part).unwrap();
            path
        });
        paths.collect()
    }

    #[test]
    fn parts_have_the_hash_of_the_whole() {
        let folder = tempfile::tempdir().unwrap();
        for parts in [&["abc"][..], &["a", "bc"], &["", "ab", "c"]] {
            let mut told = Vec::new();
            let hash = sha256(&write(&folder, parts), |done, total| told.push((done, total))).unwrap();
            assert_eq!((hash.as_str(), told.last()), (ABC, Some(&(3, 3))), "{parts:?}");
        }
    }

    #[test]
    fn a_file_that_is_gone_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("gone.gguf");
        assert!(sha256(&[missing], |_, _| ()).unwrap_err().to_string().contains("gone.gguf"));
    }
}
