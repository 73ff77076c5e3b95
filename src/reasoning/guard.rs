//! Notices a text that repeats itself.
//!
//! At the end of each token the last 40 bytes are looked up among those at the ends of all tokens before. If of the last
//! 200 tokens two thirds end such a stretch for the third time or more, the text is a loop: exact cycles are found, and
//! paragraphs that come again with a word changed here and there. Tables, lists and calculations share shorter stretches,
//! with other words and numbers between. Code may repeat itself for longer: between fences three times as many tokens
//! must be so.
//!
//! It sees bytes, so that it does the same whether tokens are words or letters.

/// Bytes that are compared.
const STRETCH: usize = 40;
/// Tokens that are judged together.
const WINDOW: usize = 200;
/// How many of them must be repetitions.
const MOST: usize = WINDOW * 2 / 3;
/// Windows that must be so between fences.
const CODE_WINDOWS: usize = 3;
/// How often a stretch stood before, to count.
const TIMES: u8 = 2;
/// Slots of the table of stretches; a power of two. A stretch that falls on another's slot takes its place.
const SLOTS: usize = 1 << 16;
const FENCE: &[u8] = b"```";

/// Watches one text, token by token.
#[derive(Clone, Debug)]
pub struct LoopGuard {
    /// The last bytes.
    tail: Vec<u8>,
    /// Hash of a stretch (its upper 56 bits) and how often it stood (the lower 8).
    slots: Box<[u64]>,
    /// Whether each of the last tokens was a repetition: a ring.
    window: [bool; WINDOW],
    at: usize,
    /// How many of them were.
    repeated: usize,
    /// Tokens in a row at which the window was full of repetitions.
    full: usize,
    /// Bytes of a fence that have come, and whether one is open.
    fence: usize,
    in_code: bool,
}

impl Default for LoopGuard {
    fn default() -> Self {
        LoopGuard {
            tail: Vec::with_capacity(4 * STRETCH),
            slots: vec![0; SLOTS].into_boxed_slice(),
            window: [false; WINDOW],
            at: 0,
            repeated: 0,
            full: 0,
            fence: 0,
            in_code: false,
        }
    }
}

impl LoopGuard {
    /// Takes a token's bytes; true if the text is a loop by now. The window is then empty again.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        self.look_for_fence(bytes);
        self.tail.extend_from_slice(bytes);
        let start = self.tail.len().saturating_sub(STRETCH);
        let is_repeated = start > 0 && self.stood_before(hash(&self.tail[start..]));
        if self.tail.len() >= 3 * STRETCH {
            self.tail.drain(..start);
        }
        self.repeated += usize::from(is_repeated);
        self.repeated -= usize::from(std::mem::replace(&mut self.window[self.at], is_repeated));
        self.at = (self.at + 1) % WINDOW;
        self.full = if self.repeated >= MOST { self.full + 1 } else { 0 };
        let enough = if self.in_code { (CODE_WINDOWS - 1) * WINDOW } else { 1 };
        let is_loop = self.full >= enough;
        if is_loop {
            (self.window, self.repeated, self.full) = ([false; WINDOW], 0, 0);
        }
        is_loop
    }

    /// Counts a stretch; whether it stood [`TIMES`] before.
    fn stood_before(&mut self, hash: u64) -> bool {
        let slot = &mut self.slots[hash as usize >> 8 & (SLOTS - 1)];
        let times = if *slot >> 8 == hash >> 8 { *slot as u8 } else { 0 };
        *slot = hash >> 8 << 8 | u64::from(times.saturating_add(1));
        times >= TIMES
    }

    fn look_for_fence(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.fence = if byte == FENCE[0] { self.fence + 1 } else { 0 };
            if self.fence == FENCE.len() {
                self.in_code = !self.in_code;
                self.fence = 0;
            }
        }
    }
}

/// FNV-1a, 64 bits, with its upper half mixed into the lower (Fowler, Noll, Vo).
fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, step);
    hash ^ hash >> 32
}

#[cfg(test)]
mod tests;
