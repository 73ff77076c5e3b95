//! Tokens that stand outside of the vocabulary's merges: control tokens and tokens added by hand. They are found
//! in a text before anything else looks at it.

use std::collections::HashMap;
use std::ops::Range;

/// A control token or a token added by hand.
#[derive(Clone, Debug)]
pub(super) struct Added {
    /// What it is written as.
    pub literal: String,
    pub id: u32,
    /// Never part of visible text.
    pub control: bool,
    /// Takes the whitespace on its left (tokenizer.json: `lstrip`).
    pub takes_left: bool,
    /// Takes the whitespace on its right (tokenizer.json: `rstrip`).
    pub takes_right: bool,
    /// Is found only where no letter or digit touches it (tokenizer.json: `single_word`).
    pub whole_word: bool,
}

impl Added {
    pub fn new(literal: impl Into<String>, id: u32, control: bool) -> Self {
        let literal = literal.into();
        Added { literal, id, control, takes_left: false, takes_right: false, whole_word: false }
    }

    /// Whether it marks something. The alternative is a run of whitespace that a vocabulary adds by hand to
    /// shorten code: that is ordinary text, also where markers are not parsed.
    pub fn is_marker(&self) -> bool {
        self.control || !self.literal.chars().all(|c| c.is_whitespace() || c == '▁')
    }

    fn fits(&self, text: &str, found: &Range<usize>) -> bool {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        !self.whole_word || (!text[..found.start].ends_with(word) && !text[found.end..].starts_with(word))
    }
}

/// An added token found in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Bytes of the text, the whitespace that it takes included.
    pub range: Range<usize>,
    pub id: u32,
}

/// All added tokens of a vocabulary.
#[derive(Debug)]
pub(super) struct AddedTokens {
    tokens: Vec<Added>,
    by_literal: HashMap<String, usize>,
    /// For each first byte, the lengths of the literals that begin with it: bytes, longest first.
    lengths: Vec<Vec<usize>>,
    /// The first characters of markers.
    marker_starts: Vec<char>,
}

impl AddedTokens {
    pub fn new(mut tokens: Vec<Added>) -> Self {
        tokens.retain(|token| !token.literal.is_empty());
        let by_literal = tokens.iter().enumerate().map(|(i, token)| (token.literal.clone(), i)).collect();
        let mut lengths = vec![Vec::new(); 256];
        for token in &tokens {
            lengths[usize::from(token.literal.as_bytes()[0])].push(token.literal.len());
        }
        for of_byte in &mut lengths {
            of_byte.sort_unstable_by(|a, b| b.cmp(a));
            of_byte.dedup();
        }
        let markers = tokens.iter().filter(|token| token.is_marker());
        let mut marker_starts: Vec<char> = markers.filter_map(|token| token.literal.chars().next()).collect();
        marker_starts.sort_unstable();
        marker_starts.dedup();
        AddedTokens { tokens, by_literal, lengths, marker_starts }
    }

    pub fn get(&self, literal: &str) -> Option<&Added> {
        self.by_literal.get(literal).map(|&i| &self.tokens[i])
    }

    /// Whether some marker begins with this character.
    pub fn begins_marker(&self, c: char) -> bool {
        self.marker_starts.contains(&c)
    }

    /// The longest marker that `text` begins with.
    pub fn marker_at_start(&self, text: &str) -> Option<&Added> {
        self.longest_at(text, 0, &|token, _| token.is_marker())
    }

    /// Where added tokens stand in a text: from left to right the longest that `accept` takes.
    pub fn find(&self, text: &str, accept: impl Fn(&Added, &Range<usize>) -> bool) -> Vec<Found> {
        let bytes = text.as_bytes();
        let mut found = Vec::new();
        let (mut at, mut free) = (0, 0); // `free`: end of the last one found
        while at < bytes.len() {
            let Some(token) = self.longest_at(text, at, &accept) else {
                at += 1;
                continue;
            };
            let (mut start, mut end) = (at, at + token.literal.len());
            if token.takes_left {
                start = free + text[free..start].trim_end().len();
            }
            if token.takes_right {
                end = text.len() - text[end..].trim_start().len();
            }
            found.push(Found { range: start..end, id: token.id });
            (at, free) = (end, end);
        }
        found
    }

    fn longest_at(
        &self,
        text: &str,
        at: usize,
        accept: &impl Fn(&Added, &Range<usize>) -> bool,
    ) -> Option<&Added> {
        let lengths = &self.lengths[usize::from(*text.as_bytes().get(at)?)];
        lengths.iter().find_map(|length| {
            let range = at..at + length;
            let token = self.get(text.get(range.clone())?)?;
            (token.fits(text, &range) && accept(token, &range)).then_some(token)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(literals: &[&str]) -> AddedTokens {
        let added = |(i, literal): (usize, &&str)| Added::new(*literal, i as u32, false);
        AddedTokens::new(literals.iter().enumerate().map(added).collect())
    }

    fn ids(tokens: &AddedTokens, text: &str) -> Vec<(u32, String)> {
        let found = tokens.find(text, |_, _| true);
        found.into_iter().map(|found| (found.id, text[found.range].to_owned())).collect()
    }

    #[test]
    fn the_leftmost_and_there_the_longest_is_found() {
        let tokens = tokens(&["<a>", "<a><b>", "<b>c"]);
        assert_eq!(ids(&tokens, "é<a><b>c<a>"), [(1, "<a><b>".into()), (0, "<a>".into())]);
    }

    #[test]
    fn a_token_may_take_the_whitespace_beside_it() {
        let mut added = Added::new("<m>", 7, true);
        (added.takes_left, added.takes_right) = (true, true);
        assert_eq!(ids(&AddedTokens::new(vec![added]), "a \n<m>  b"), [(7, " \n<m>  ".into())]);
    }

    #[test]
    fn a_whole_word_is_not_found_inside_another() {
        let mut added = Added::new("ab", 7, false);
        added.whole_word = true;
        assert_eq!(ids(&AddedTokens::new(vec![added]), "cab ab abc"), [(7, "ab".into())]);
    }

    #[test]
    fn whitespace_added_by_hand_marks_nothing() {
        assert!(!Added::new("\n\n ▁", 0, false).is_marker());
        assert!(Added::new("<think>", 0, false).is_marker());
    }
}
