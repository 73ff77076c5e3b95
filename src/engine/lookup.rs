//! Drafts for speculation without a second model: what followed the last tokens when they stood before (prompt
//! lookup, Saxena 2023). A draft is verified in one step of several rows; with draws by counter and logits that do
//! not depend on the batch the tokens are the same with and without it.

/// Tokens that must match.
const NGRAM: usize = 3;
/// Slots of the table of n-grams; a power of two.
const SLOTS: usize = 1 << 16;
/// Longest draft, tokens.
const LONGEST: usize = 15;
/// Draft length after a success that follows failures.
const SHORTEST: usize = 2;
/// Most tokens to wait after failures.
const LONGEST_WAIT: usize = 64;

/// Finds drafts in the history of one sequence.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// Hash of an n-gram -> position after its latest occurrence; 0 is none.
    slots: Box<[u32]>,
    /// How much of the history is in the table: n-grams that end before this position.
    indexed: usize,
    /// Length of the next draft.
    length: usize,
    /// Tokens to wait before the next draft, and how many after the next failure.
    wait: usize,
    next_wait: usize,
}

impl Default for Lookup {
    fn default() -> Self {
        Lookup {
            slots: vec![0; SLOTS].into_boxed_slice(),
            indexed: NGRAM,
            length: 2 * SHORTEST,
            wait: 0,
            next_wait: 1,
        }
    }
}

impl Lookup {
    /// Where in `history` a draft of at most `most` tokens stands; empty if there is none. Called once a step.
    pub fn draft(&mut self, history: &[u32], most: usize) -> std::ops::Range<usize> {
        // the last n-gram is looked up before it is entered
        for end in self.indexed..history.len() {
            self.slots[slot(&history[end - NGRAM..end])] = end as u32;
        }
        self.indexed = self.indexed.max(history.len());
        if self.wait > 0 {
            self.wait -= 1;
            return 0..0;
        }
        let Some(last) = history.len().checked_sub(NGRAM).map(|at| &history[at..]) else { return 0..0 };
        let at = self.slots[slot(last)] as usize;
        if at == 0 || &history[at - NGRAM..at] != last {
            return 0..0;
        }
        at..history.len().min(at + self.length.min(most))
    }

    /// How the last draft went: of so many tokens so many were right.
    pub fn report(&mut self, drafted: usize, right: usize) {
        if drafted == 0 {
            return;
        }
        if right == drafted {
            self.length = (2 * self.length).min(LONGEST);
            self.next_wait = 1;
        } else if 2 * right >= drafted {
            self.length = right.max(SHORTEST);
            self.next_wait = 1;
        } else {
            self.length = SHORTEST;
            self.wait = self.next_wait;
            self.next_wait = (2 * self.next_wait).min(LONGEST_WAIT);
        }
    }
}

fn slot(ngram: &[u32]) -> usize {
    let mix = |hash: u64, &token: &u32| {
        (hash ^ u64::from(token)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23)
    };
    ngram.iter().fold(0, mix) as usize % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_is_what_followed_the_last_three_tokens() {
        let history = [1, 2, 3, 4, 5, 6, 9, 2, 3, 4];
        assert_eq!(Lookup::default().draft(&history, 2), 4..6);
    }

    #[test]
    fn the_latest_occurrence_counts() {
        let history = [1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3];
        let range = Lookup::default().draft(&history, 1);
        assert_eq!(history[range], [8]);
    }

    #[test]
    fn without_a_match_there_is_no_draft() {
        assert_eq!(Lookup::default().draft(&[1, 2, 3, 4, 5], 4), 0..0);
        assert_eq!(Lookup::default().draft(&[1, 2], 4), 0..0);
    }

    #[test]
    fn drafts_grow_while_they_are_right_and_pause_while_they_are_wrong() {
        let mut lookup = Lookup::default();
        let history: Vec<u32> = (0..200).map(|i| i % 50).collect();
        assert_eq!(lookup.draft(&history, 100).len(), 4);
        lookup.report(4, 4);
        assert_eq!(lookup.draft(&history, 100).len(), 8);
        lookup.report(8, 0);
        assert_eq!(lookup.draft(&history, 100).len(), 0);
        assert_eq!(lookup.draft(&history, 100).len(), SHORTEST);
        lookup.report(2, 0);
        let pauses = (0..).take_while(|_| lookup.draft(&history, 100).is_empty()).count();
        assert_eq!(pauses, 2);
    }
}
