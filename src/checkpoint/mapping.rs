//! A file as read-only memory.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

use super::embedded;
use crate::{Error, Result};

/// Bytes of a piece of advice: Linux reads no more than a disk's largest request for each, and leaves out the rest.
#[cfg(unix)]
const READ_AHEAD: usize = 512 << 10;

/// Where the bytes of tensors lie.
pub(super) enum Storage {
    /// A mapped file.
    File(Mmap),
    /// Memory of our own.
    Memory(Vec<u8>),
    /// A part of the binary.
    Embedded(&'static [u8]),
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self {
            Storage::File(_) => "file",
            Storage::Memory(_) => "memory",
            Storage::Embedded(_) => "the binary",
        };
        write!(f, "{} bytes of {place}", self.bytes().len())
    }
}

impl Storage {
    /// Maps a file, read only; or finds what is embedded under this path.
    pub(super) fn map(path: &Path) -> Result<Self> {
        if let Some(bytes) = embedded::bytes(path) {
            return Ok(Storage::Embedded(bytes));
        }
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        // SAFETY: assumes that nobody truncates or rewrites the file while it is mapped, as with every mapping;
        // model files are replaced as a whole (a new file under the old name), which leaves the mapping intact.
        let map = unsafe { Mmap::map(&file) };
        map.map(Storage::File).map_err(|e| Error::io(path, e))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Storage::File(map) => map,
            Storage::Memory(bytes) => bytes,
            Storage::Embedded(bytes) => bytes,
        }
    }

    /// Drops the pages of `range` from memory. What the system answers does not matter: it is advice.
    #[cfg(unix)]
    pub(super) fn drop_pages(&self, range: Range<usize>) {
        if let Storage::File(map) = self {
            // SAFETY: the mapping is of a file, shared and read only, so a dropped page is read again with the
            // same bytes.
            let _ = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
        }
    }

    /// Brings the pages of `range` into memory and, on Linux, into the page table: in large pieces, that is cheaper than
    /// a fault for each of some pages.
    #[cfg(unix)]
    pub(super) fn populate(&self, range: Range<usize>) {
        if let Storage::File(map) = self {
            #[cfg(target_os = "linux")]
            if map.advise_range(memmap2::Advice::PopulateRead, range.start, range.len()).is_ok() {
                return;
            }
            let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
    }

    /// Has the pages of `range` read while the caller goes on.
    #[cfg(unix)]
    pub(super) fn read_ahead(&self, range: Range<usize>) {
        if let Storage::File(map) = self {
            for start in range.clone().step_by(READ_AHEAD) {
                let len = READ_AHEAD.min(range.end - start);
                let _ = map.advise_range(memmap2::Advice::WillNeed, start, len);
            }
        }
    }

    /// No such advice here.
    #[cfg(not(unix))]
    pub(super) fn read_ahead(&self, _range: Range<usize>) {}

    /// No such advice here.
    #[cfg(not(unix))]
    pub(super) fn drop_pages(&self, _range: Range<usize>) {}

    /// No such advice here.
    #[cfg(not(unix))]
    pub(super) fn populate(&self, _range: Range<usize>) {}
}
