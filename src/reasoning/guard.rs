//! Notices a text that repeats itself.
//!
//! At the end of each token the last 40 bytes are looked up among those at the ends of all tokens before. If of the last
//! 200 tokens two thirds end such a stretch for the third time or more, the text is a loop: exact cycles are found, and
//! paragraphs that come again with a word changed here and there. Tables, lists and calculations share shorter stretches,
//! with other words and numbers between. A loop comes round: two thirds must also stand about as far behind the stretch
//! that they repeat. What is made of few words without coming round (the moves of Hanoi's towers) may repeat itself for six
//! times as many tokens, code between fences for three times as many.
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
/// Windows that must be so where stretches come again after many different distances.
const UNSTEADY_WINDOWS: usize = 6;
/// Distances are the same if they fall into the same or neighbouring steps, of which there are so many to a doubling.
const STEPS: f32 = 8.0;
/// How often a stretch stood before, to count.
const TIMES: u8 = 2;
/// Slots of the table of stretches; a power of two. A stretch that falls on another's slot takes its place.
const SLOTS: usize = 1 << 16;
const FENCE: &[u8] = b"```";

/// A stretch that stood in the text.
#[derive(Clone, Copy, Debug, Default)]
struct Stretch {
    hash: u32,
    /// How often it stood.
    times: u8,
    /// Where it ended last, in bytes.
    end: u32,
}

/// Watches one text, token by token.
#[derive(Clone, Debug)]
pub struct LoopGuard {
    /// The last bytes.
    tail: Vec<u8>,
    /// Bytes so far.
    read: u32,
    slots: Box<[Stretch]>,
    /// Of each of the last tokens, if it was a repetition, the step of its distance: a ring.
    window: [Option<u8>; WINDOW],
    at: usize,
    /// How many of them were.
    repeated: usize,
    /// How many there are of each step.
    steps: [u8; 256],
    /// Tokens in a row at which the window was full of repetitions.
    full: usize,
    /// Bytes of a fence that have come, and whether one is open.
    fence: usize,
    in_code: bool,
    /// The window has been full since there was code in it.
    code_run: bool,
}

impl Default for LoopGuard {
    fn default() -> Self {
        LoopGuard {
            tail: Vec::with_capacity(4 * STRETCH),
            read: 0,
            slots: vec![Stretch::default(); SLOTS].into_boxed_slice(),
            window: [None; WINDOW],
            at: 0,
            repeated: 0,
            steps: [0; 256],
            full: 0,
            fence: 0,
            in_code: false,
            code_run: false,
        }
    }
}

impl LoopGuard {
    /// Takes a token's bytes; true if the text is a loop by now. The window is then empty again.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        self.look_for_fence(bytes);
        self.tail.extend_from_slice(bytes);
        self.read = self.read.wrapping_add(bytes.len() as u32);
        let start = self.tail.len().saturating_sub(STRETCH);
        let distance = if start > 0 { self.stood_before(hash(&self.tail[start..])) } else { None };
        if self.tail.len() >= 3 * STRETCH {
            self.tail.drain(..start);
        }
        self.count(distance.map(|bytes| ((bytes as f32).log2() * STEPS) as u8));
        self.full = if self.repeated >= MOST { self.full + 1 } else { 0 };
        // behind the closing fence the window is still full of the code
        self.code_run = self.full > 0 && (self.code_run || self.in_code);
        let windows = match self.code_run {
            _ if self.full == 0 => return false,
            _ if !self.is_steady() => UNSTEADY_WINDOWS,
            true => CODE_WINDOWS,
            false => 1,
        };
        let is_loop = self.full > (windows - 1) * WINDOW;
        if is_loop {
            (self.window, self.repeated, self.full) = ([None; WINDOW], 0, 0);
            self.steps = [0; 256];
        }
        is_loop
    }

    /// Puts a token into the window: the step of its distance, if it is a repetition.
    fn count(&mut self, step: Option<u8>) {
        if let Some(left) = std::mem::replace(&mut self.window[self.at], step) {
            self.repeated -= 1;
            self.steps[usize::from(left)] -= 1;
        }
        if let Some(step) = step {
            self.repeated += 1;
            self.steps[usize::from(step)] += 1;
        }
        self.at = (self.at + 1) % WINDOW;
    }

    /// Whether most of the window came again after the same distance.
    fn is_steady(&self) -> bool {
        self.steps.windows(2).any(|two| usize::from(two[0]) + usize::from(two[1]) >= MOST)
    }

    /// Counts a stretch; if it stood [`TIMES`] before, how many bytes ago it last did.
    fn stood_before(&mut self, hash: u64) -> Option<u32> {
        let slot = &mut self.slots[hash as usize & (SLOTS - 1)];
        let known = if slot.hash == (hash >> 32) as u32 { *slot } else { Stretch::default() };
        let times = known.times.saturating_add(1);
        *slot = Stretch { hash: (hash >> 32) as u32, times, end: self.read };
        (known.times >= TIMES).then(|| self.read.wrapping_sub(known.end).max(1))
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
