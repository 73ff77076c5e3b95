//! Text from files and from standard input.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::{Error, Result};

/// More bytes than any context holds; a larger text was named by mistake.
pub(super) const LARGEST_PROMPT: u64 = 16 << 20;
/// More bytes than anybody waits for; a larger text is a mistake, or has no end.
pub(super) const LARGEST_TEXT: u64 = 1 << 30;

/// A file's text that is to fit into a context.
///
/// # Errors
/// Where it cannot be read, is larger than any context, or is not UTF-8.
pub(super) fn read_file(path: &Path) -> Result<String> {
    read_file_up_to(path, LARGEST_PROMPT)
}

/// A file's text of at most so many bytes.
///
/// # Errors
/// Where it cannot be read, is larger, or is not UTF-8.
pub(super) fn read_file_up_to(path: &Path, largest: u64) -> Result<String> {
    let io = |e| Error::io(path, e);
    let bytes = read(File::open(path).map_err(io)?, largest).map_err(io)?;
    text(bytes, largest).map_err(|why| Error::file(path, why))
}

/// All of standard input, as text of at most so many bytes.
///
/// # Errors
/// Where it cannot be read, is larger, or is not UTF-8.
pub(super) fn read_stdin(largest: u64) -> Result<String> {
    let bytes = read(io::stdin().lock(), largest).map_err(|e| Error::io("standard input", e))?;
    text(bytes, largest).map_err(|why| Error::Text(format!("standard input: {why}")))
}

/// One byte more than there may be tells that there are too many.
fn read(from: impl Read, largest: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(largest + 1).read_to_end(&mut bytes).map(|_| bytes)
}

fn text(bytes: Vec<u8>, largest: u64) -> Result<String, String> {
    if bytes.len() as u64 <= largest {
        return utf8(bytes);
    }
    let why = if largest == LARGEST_PROMPT { ", more than any context holds" } else { ": take a part of it" };
    Err(format!("is larger than {} MiB{why}", largest >> 20))
}

fn utf8(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        format!("it is not UTF-8 text (byte {at}): convert it first")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_without_end_is_refused_once_it_is_too_large() {
        let of = |largest| text(read(io::repeat(b'a'), largest).unwrap(), largest).unwrap_err();
        assert_eq!(of(LARGEST_PROMPT), "is larger than 16 MiB, more than any context holds");
        assert_eq!(of(1 << 20), "is larger than 1 MiB: take a part of it");
        assert_eq!(text(read(&b"abc"[..], 3).unwrap(), 3).unwrap(), "abc");
    }
}
