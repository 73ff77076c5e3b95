//! The checkpoint inside the binary: the pocket reasoner of models/pocket.
//!
//! It has a path of its own, so that whatever takes the path of a model takes it too.

use std::path::Path;

/// The name by which users call it.
pub const NAME: &str = "pocket";

/// The path that [`Checkpoint::open`](super::Checkpoint::open) knows it by.
pub const PATH: &str = "pensive://pocket";

#[cfg(feature = "pocket")]
static POCKET: &[u8] = include_bytes!("../../models/pocket/pocket.gguf");

/// The bytes of the embedded file of this path.
pub fn bytes(path: &Path) -> Option<&'static [u8]> {
    #[cfg(feature = "pocket")]
    if path == Path::new(PATH) {
        return Some(POCKET);
    }
    let _ = path;
    None
}

/// The path of the embedded model of this name.
pub fn path(name: &str) -> Option<&'static Path> {
    let path = Path::new(PATH);
    (name.eq_ignore_ascii_case(NAME) && bytes(path).is_some()).then_some(path)
}
