//! Drafts for speculation without a second model: what followed when the text last went as it goes now (prompt lookup,
//! Saxena 2023). A draft is verified in one step of several rows; with draws by counter and logits that do not depend on
//! the batch the tokens are the same with and without it.
//!
//! How long a draft is follows from two things that are learned on the way: how often the next token is right after a
//! match of some length, which the text shows whether or not it was drafted; and what a step of several rows takes beside
//! one of one row. The draft is as long as tokens per second are expected to grow with it.

use std::ops::Range;

/// Longest draft, tokens.
const LONGEST: usize = 15;
/// Tokens of a match beyond which it is not followed back.
const LONGEST_MATCH: usize = 16;
/// Occurrences of the last two tokens that are looked at, latest first.
const CANDIDATES: usize = 32;
/// Slots of a table of occurrences; a power of two.
const SLOTS: usize = 1 << 16;
/// What a draft must gain at least, as a factor.
const LEAST_GAIN: f64 = 1.02;
/// Shortest match of each class, and how often the next token is right at first. Measured on code, prose and arithmetic by a
/// model of 1.5B: 0.26, 0.53, 0.61, 0.69, 0.68, 0.83, 0.93, 0.97, 0.98.
const CLASSES: [(usize, f64); 9] =
    [(1, 0.2), (2, 0.3), (3, 0.5), (4, 0.6), (5, 0.65), (6, 0.7), (8, 0.8), (12, 0.9), (16, 0.9)];
/// Weight of the latest token in what is known of its class.
const RECENT_TOKEN: f64 = 0.05;

/// Finds drafts in the history of one sequence.
#[derive(Clone, Debug, Default)]
pub struct Lookup {
    occurrences: Occurrences,
    odds: Odds,
    price: Price,
    /// What was expected when the history was so long.
    guess: Option<Guess>,
}

/// What may come next.
#[derive(Clone, Copy, Debug)]
struct Guess {
    /// Length of the history.
    known: usize,
    /// Where in it the tokens stand that may come again.
    at: usize,
    /// Tokens before there that are the last ones of the history.
    matched: usize,
}

impl Lookup {
    /// Where in `history` a draft of at most `most` tokens stands; empty if none is worth it. Called once a step.
    pub fn draft(&mut self, history: &[u32], most: usize) -> Range<usize> {
        if let Some(guess) = self.guess.take() {
            self.odds.learn(history, guess);
        }
        let Some((at, matched)) = self.occurrences.longest_match(history) else { return 0..0 };
        self.guess = Some(Guess { known: history.len(), at, matched });
        at..at + self.best_length(matched, most.min(LONGEST).min(history.len() - at))
    }

    /// A step of so many rows took so many seconds.
    pub fn took(&mut self, rows: usize, seconds: f64) {
        self.price.learn(rows, seconds);
    }

    /// Up to how many tokens the expected tokens per second grow.
    fn best_length(&self, matched: usize, most: usize) -> usize {
        let (mut best, mut best_rate) = (0, LEAST_GAIN);
        let (mut tokens, mut all_right) = (1.0, 1.0); // one more than the draft has right is chosen
        for length in 1..=most {
            all_right *= self.odds.of_match(matched + length - 1);
            tokens += all_right;
            let rate = tokens / self.price.of(length + 1);
            if rate > best_rate {
                (best, best_rate) = (length, rate);
            }
        }
        best
    }
}

/// How often the token after a match comes again, by the match's length.
#[derive(Clone, Debug)]
struct Odds([f64; CLASSES.len()]);

impl Default for Odds {
    fn default() -> Self {
        Odds(CLASSES.map(|(_, odds)| odds))
    }
}

impl Odds {
    fn class(matched: usize) -> usize {
        CLASSES.iter().rposition(|&(shortest, _)| shortest <= matched).unwrap_or(0)
    }

    fn of_match(&self, matched: usize) -> f64 {
        self.0[Self::class(matched)]
    }

    /// Compares what was expected with what came: up to the first difference each token made the match one longer.
    fn learn(&mut self, history: &[u32], guess: Guess) {
        let came = &history[guess.known.min(history.len())..];
        for (i, (expected, came)) in history[guess.at..guess.known].iter().zip(came).enumerate() {
            let odds = &mut self.0[Self::class(guess.matched + i)];
            let right = expected == came;
            *odds += RECENT_TOKEN * (f64::from(u8::from(right)) - *odds);
            if !right {
                break;
            }
        }
    }
}

/// What a step of n rows takes, as a multiple of one of one row: `sqrt((1 + (k n)²) / (1 + k²))`. Reading the weights takes
/// the same for any number of rows, arithmetic grows with it, and each hides part of the other.
#[derive(Clone, Debug)]
struct Price {
    /// The arithmetic of a row, as a part of what reading takes.
    k: f64,
    /// Steps of several rows that were measured.
    measured: u32,
    /// Seconds of a step of one row, 0 while none was measured.
    one_row: f64,
}

impl Default for Price {
    fn default() -> Self {
        Price { k: Self::USUAL, measured: 0, one_row: 0.0 }
    }
}

impl Price {
    /// What steps of 2 to 16 rows take on two cores with AVX-512 fits 0.2 to 0.35.
    const USUAL: f64 = 0.25;
    /// Where arithmetic is all there is, n rows take n times as long.
    const MOST: f64 = 4.0;
    /// Weight of the latest measurement, when there were some.
    const RECENT: f64 = 0.1;
    /// How much of what was learned a step of one row forgets: drafts that were not worth it are tried again some day.
    const FORGOTTEN: f64 = 0.0003;

    fn of(&self, rows: usize) -> f64 {
        let arithmetic = self.k * rows as f64;
        ((1.0 + arithmetic * arithmetic) / (1.0 + self.k * self.k)).sqrt()
    }

    fn learn(&mut self, rows: usize, seconds: f64) {
        if rows == 1 && self.one_row == 0.0 {
            self.one_row = seconds;
        } else if rows == 1 {
            self.one_row += Self::RECENT * (seconds - self.one_row);
            self.k += Self::FORGOTTEN * (Self::USUAL - self.k);
        } else if self.one_row > 0.0 {
            // the formula, solved for k
            let times = (seconds / self.one_row).powi(2);
            let below = (rows * rows) as f64 - times;
            let k = if below > 0.0 { ((times - 1.0).max(0.0) / below).sqrt() } else { Self::MOST };
            self.measured += 1;
            let weight = Self::RECENT.max(1.0 / f64::from(self.measured + 1));
            self.k += weight * (k.min(Self::MOST) - self.k);
        }
    }
}

/// Where tokens stood before. Positions are those after the tokens; 0 is none.
#[derive(Clone, Debug)]
struct Occurrences {
    /// Hash of a token -> after its latest occurrence.
    single: Box<[u32]>,
    /// Hash of two tokens -> after their latest occurrence.
    pairs: Box<[u32]>,
    /// Position after two tokens -> after the occurrence before.
    earlier: Vec<u32>,
}

impl Default for Occurrences {
    fn default() -> Self {
        let table = || vec![0; SLOTS].into_boxed_slice();
        Occurrences { single: table(), pairs: table(), earlier: Vec::new() }
    }
}

impl Occurrences {
    /// After the latest of the longest matches with the end of the history, and how long it is.
    fn longest_match(&mut self, history: &[u32]) -> Option<(usize, usize)> {
        // the last tokens are looked up before they are entered
        for end in self.earlier.len()..history.len() {
            self.enter(&history[..end]);
        }
        let (last, before) = history.split_last()?;
        let mut best = None;
        let mut at = before.last().map_or(0, |&first| self.pairs[slot(&[first, *last])] as usize);
        for _ in 0..CANDIDATES {
            let matched = common_end(&history[..at], history);
            if matched > best.map_or(0, |(_, longest)| longest) {
                best = Some((at, matched));
            }
            if at == 0 || matched == LONGEST_MATCH {
                break;
            }
            at = self.earlier[at] as usize;
        }
        best.or_else(|| {
            let at = self.single[slot(&[*last])] as usize;
            (at > 0 && history[at - 1] == *last).then_some((at, 1))
        })
    }

    /// Enters the last tokens of `history`.
    fn enter(&mut self, history: &[u32]) {
        let end = history.len() as u32;
        let mut before = 0;
        if let [.., last] = history {
            self.single[slot(&[*last])] = end;
        }
        if let [.., first, last] = history {
            before = std::mem::replace(&mut self.pairs[slot(&[*first, *last])], end);
        }
        self.earlier.push(before);
    }
}

/// Tokens at the ends of both that are the same.
fn common_end(a: &[u32], b: &[u32]) -> usize {
    a.iter().rev().zip(b.iter().rev()).take(LONGEST_MATCH).take_while(|(a, b)| a == b).count()
}

fn slot(tokens: &[u32]) -> usize {
    let mix = |hash: u64, &token: &u32| {
        (hash ^ u64::from(token)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23)
    };
    tokens.iter().fold(0, mix) as usize % SLOTS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds a text token by token, as if each step took what `price` says of its rows; returns the drafts' lengths.
    fn drafts(lookup: &mut Lookup, text: &[u32], known: usize, price: impl Fn(usize) -> f64) -> Vec<usize> {
        let mut lengths = Vec::new();
        let mut at = known;
        while at < text.len() {
            let draft = lookup.draft(&text[..at], usize::MAX);
            let right = text[at..].iter().zip(&text[draft.clone()]).take_while(|(a, b)| a == b).count();
            lookup.took(1 + draft.len(), price(1 + draft.len()));
            lengths.push(draft.len());
            at += right + 1;
        }
        lengths
    }

    fn period(length: u32, tokens: usize) -> Vec<u32> {
        (0..length).cycle().take(tokens).collect()
    }

    /// Tokens of which 20 go on as they did, each time for four tokens.
    fn phrases(tokens: usize) -> Vec<u32> {
        let phrase = |i: u32| (0..5).map(move |k| 5 * (i.wrapping_mul(2_654_435_761) >> 8) % 100 + k);
        (0..).flat_map(phrase).take(tokens).collect()
    }

    #[test]
    fn a_draft_is_what_followed_the_longest_match() {
        let history = [9, 1, 2, 3, 7, 8, 2, 3, 5, 6, 9, 1, 2, 3];
        let found = Lookup::default().draft(&history, 2);
        assert_eq!(history[found], [7, 8]);
    }

    #[test]
    fn of_matches_of_one_length_the_latest_counts() {
        let history = [1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3];
        assert_eq!(history[Lookup::default().draft(&history, 1)], [8]);
    }

    #[test]
    fn without_a_match_there_is_no_draft() {
        assert_eq!(Lookup::default().draft(&[1, 2, 3, 4, 5], 4), 0..0);
        assert_eq!(Lookup::default().draft(&[], 4), 0..0);
    }

    #[test]
    fn drafts_grow_while_they_are_right() {
        let lengths = drafts(&mut Lookup::default(), &period(50, 600), 60, |_| 1.0);
        assert_eq!(lengths.last(), Some(&LONGEST), "{lengths:?}");
        assert!(lengths.len() < 70, "{lengths:?}");
    }

    #[test]
    fn where_rows_cost_as_much_as_steps_drafts_lose_nothing_to_speak_of() {
        let (text, known) = (phrases(2000), 100);
        let lengths = drafts(&mut Lookup::default(), &text, known, |rows| rows as f64);
        let rows: usize = lengths.iter().map(|draft| 1 + draft).sum();
        assert!(rows as f64 <= 1.02 * (text.len() - known) as f64, "{rows} rows");
    }

    #[test]
    fn rows_that_cost_nothing_are_drafted_at_small_odds() {
        let mut lookup = Lookup::default();
        let lengths = drafts(&mut lookup, &phrases(2000), 100, |_| 1.0);
        assert!(lengths.len() < 1000, "{} steps", lengths.len());
        assert!(lengths[lengths.len() / 2..].iter().all(|&n| n > 0), "{lengths:?}");
    }

    #[test]
    fn the_price_that_is_measured_is_learned() {
        let mut price = Price::default();
        let measured = Price { k: 0.6, ..Price::default() };
        for step in 0..100 {
            price.learn(1, 0.02);
            price.learn(2 + step % 14, 0.02 * measured.of(2 + step % 14));
        }
        assert!((price.of(8) / measured.of(8) - 1.0).abs() < 0.05, "{} for {}", price.of(8), measured.of(8));
    }

    proptest! {
        #[test]
        fn what_is_drafted_followed_the_same_tokens_before(
            text in proptest::collection::vec(0u32..4, 0..200),
            most in 0usize..20,
        ) {
            let mut lookup = Lookup::default();
            for known in 0..=text.len() {
                let history = &text[..known];
                let draft = lookup.draft(history, most);
                prop_assert!(draft.len() <= most.min(LONGEST) && draft.end <= known);
                if !draft.is_empty() {
                    let longest = (1..known).map(|at| common_end(&history[..at], history)).max();
                    let matched = common_end(&history[..draft.start], history);
                    prop_assert!(matched > 0);
                    if known <= CANDIDATES {
                        prop_assert_eq!(Some(matched), longest);
                    }
                }
            }
        }
    }
}
