//! Text from files and from standard input.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::{Error, Result};

/// More than any context holds; a larger file was named by mistake.
const LARGEST: u64 = 16 << 20;

/// A file's text.
///
/// # Errors
/// Where it cannot be read, is larger than any context, or is not UTF-8.
pub(super) fn read_file(path: &Path) -> Result<String> {
    let io = |e| Error::io(path, e);
    let file = File::open(path).map_err(io)?;
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > LARGEST {
        return Err(Error::file(path, "is larger than 16 MiB, more than any context holds"));
    }
    utf8(bytes).map_err(|why| Error::file(path, why))
}

/// All of standard input, as text.
///
/// # Errors
/// Where it cannot be read or is not UTF-8.
pub(super) fn read_stdin() -> Result<String> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).map_err(|e| Error::io("standard input", e))?;
    utf8(bytes).map_err(|why| Error::Text(format!("standard input: {why}")))
}

fn utf8(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        format!("it is not UTF-8 text (byte {at}): convert it first")
    })
}
