//! What is kept of a run while it goes on, for its receipt.

use sha2::{Digest, Sha256};

use crate::reasoning::control::{Act, ThoughtBounds};

/// What the text of a generation began as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Opening {
    /// Within a thought that the prompt opened.
    Thought,
    /// After an empty thought of the prompt.
    Answer,
    /// Either: the model opens a thought or does not.
    Open,
    /// A raw prompt: nothing is told apart, and no control acts.
    Raw,
}

/// What is kept of a generation for its receipt.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub(super) prompt: Vec<u32>,
    pub(super) opening: Opening,
    pub(super) sequence: u64,
    pub(super) bounds: ThoughtBounds,
    pub(super) loop_guard: bool,
    pub(super) limit: usize,
    pub(super) limit_is: Act,
    pub(super) stop: Vec<String>,
    pub(super) hooked: bool,
    /// Of each token's raw logits.
    pub(super) digests: Vec<u64>,
    /// Which control event had each token written, by index; none was drawn.
    pub(super) by: Vec<Option<usize>>,
}

/// [`digest`]s of rows of `width` logits, on all cores.
pub(super) fn digests(rows: &[f32], width: usize) -> Vec<u64> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let share = (rows.len() / width).div_ceil(cores).max(1);
    std::thread::scope(|scope| {
        let parts: Vec<_> = rows
            .chunks(share * width)
            .map(|part| scope.spawn(move || part.chunks(width).map(digest).collect::<Vec<_>>()))
            .collect();
        parts.into_iter().flat_map(|part| part.join().expect("hashing does not panic")).collect()
    })
}

/// 8 bytes that stand for a row of logits.
pub(super) fn digest(logits: &[f32]) -> u64 {
    const MANY: usize = 1024;
    let mut hash = Sha256::new();
    let mut bytes = [0; 4 * MANY];
    for values in logits.chunks(MANY) {
        for (to, value) in bytes.chunks_exact_mut(4).zip(values) {
            let bits = if value.is_nan() { 0x7fc0_0000 } else { value.to_bits() };
            to.copy_from_slice(&bits.to_le_bytes());
        }
        hash.update(&bytes[..4 * values.len()]);
    }
    let bytes: [u8; 8] = hash.finalize()[..8].try_into().expect("a SHA-256 is longer");
    u64::from_be_bytes(bytes)
}
