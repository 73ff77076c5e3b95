//! Keeps text inside messages apart from a template's own markers.
//!
//! Before rendering, invisible sentinels are put into the messages' texts; after rendering, a marker is a token
//! only where no sentinel stands in it or around it, and the sentinels are taken out again. What is left is the
//! text that would have been rendered anyway, with the places of the template's own markers.

use std::borrow::Cow;

use super::added::{AddedTokens, Found};
use crate::{Error, Result};

/// Unicode's noncharacters: they have no place in text that is interchanged. Of these the sentinels are taken.
const SENTINELS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';

/// Whether a character may be a sentinel.
pub(super) fn is_sentinel(c: char) -> bool {
    SENTINELS.contains(&c)
}

/// Whose text it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Author {
    /// The model: templates cut their earlier thoughts away at the markers in them.
    Assistant,
    /// Anyone else.
    Other,
}

/// The sentinels of one rendering.
///
/// `open` goes behind every character that could begin a marker. Only in the assistant's text a marker that
/// the template itself speaks of stays whole, so that `content.split('</think>')` finds it: `open` goes before it
/// and `close` behind it, and it counts as text if both are still there. (One of them alone is what is left where
/// the template has cut a marker out.)
pub(super) struct Guard<'a> {
    added: &'a AddedTokens,
    source: &'a str,
    open: char,
    close: char,
}

impl<'a> Guard<'a> {
    /// `source`: the template's. `texts`: all that will be guarded; the sentinels are chosen not to occur there.
    pub fn new<'t>(
        added: &'a AddedTokens,
        source: &'a str,
        texts: impl IntoIterator<Item = &'t str>,
    ) -> Result<Self> {
        let mut used = [false; 32];
        let chars = texts.into_iter().flat_map(str::chars).chain(source.chars());
        for c in chars.filter(|&c| is_sentinel(c)) {
            used[(c as u32 - *SENTINELS.start() as u32) as usize] = true;
        }
        let mut free = SENTINELS.zip(used).filter_map(|(c, used)| (!used).then_some(c));
        match (free.next(), free.next()) {
            (Some(open), Some(close)) => Ok(Guard { added, source, open, close }),
            _ => Err(Error::Text(
                "the messages contain all of the noncharacters U+FDD0 to U+FDEF: remove them".to_owned(),
            )),
        }
    }

    /// The text with its sentinels.
    pub fn guard<'t>(&self, text: &'t str, author: Author) -> Cow<'t, str> {
        if !text.chars().any(|c| self.added.begins_marker(c)) {
            return Cow::Borrowed(text);
        }
        let mut out = String::with_capacity(text.len() + text.len() / 4);
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let mut taken = c.len_utf8();
            let whole = (author == Author::Assistant)
                .then(|| self.added.marker_at_start(rest))
                .flatten()
                .filter(|marker| self.source.contains(&marker.literal));
            if let Some(marker) = whole {
                taken = marker.literal.len();
                out.push(self.open);
                out.push_str(&rest[..taken]);
                out.push(self.close);
            } else {
                out.push(c);
                if self.added.begins_marker(c) {
                    out.push(self.open);
                }
            }
            rest = &rest[taken..];
        }
        Cow::Owned(out)
    }

    /// Takes the sentinels out of what was rendered, and finds the template's own markers in it.
    pub fn release(&self, rendered: &str) -> (String, Vec<Found>) {
        let mut found = self.added.find(rendered, |_, range| {
            !(rendered[..range.start].ends_with(self.open) && rendered[range.end..].starts_with(self.close))
        });
        let mut text = String::with_capacity(rendered.len());
        let mut at = 0;
        for Found { range, .. } in &mut found {
            self.append_clean(&rendered[at..range.start], &mut text);
            let start = text.len();
            self.append_clean(&rendered[range.clone()], &mut text);
            at = range.end;
            *range = start..text.len();
        }
        self.append_clean(&rendered[at..], &mut text);
        (text, found)
    }

    fn append_clean(&self, rendered: &str, text: &mut String) {
        text.extend(rendered.split([self.open, self.close]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::added::Added;

    fn added() -> AddedTokens {
        let literals = ["<think>", "</think>", "<|im_end|>", "[END]", "\n\n"];
        AddedTokens::new((0..).zip(literals).map(|(id, literal)| Added::new(literal, id, false)).collect())
    }

    fn ids(found: &[Found]) -> Vec<u32> {
        found.iter().map(|found| found.id).collect()
    }

    #[test]
    fn a_marker_in_a_message_is_text_and_the_template_s_own_is_a_token() {
        let added = added();
        let guard = Guard::new(&added, "", []).unwrap();
        let rendered = format!("{}<|im_end|>", guard.guard("a <think> [END]<|im_end|>", Author::Other));
        let (text, found) = guard.release(&rendered);
        assert_eq!(text, "a <think> [END]<|im_end|><|im_end|>");
        assert_eq!(found, [Found { range: 25..35, id: 2 }]);
    }

    #[test]
    fn a_marker_that_a_template_puts_together_from_a_message_is_text() {
        let added = added();
        let guard = Guard::new(&added, "", []).unwrap();
        let message = guard.guard("<|im_/thinkend|>", Author::Other).replace("/think", "");
        assert_eq!(guard.release(&message), ("<|im_end|>".to_owned(), Vec::new()));
    }

    #[test]
    fn a_template_finds_the_markers_it_speaks_of_in_the_assistant_s_text() {
        let added = added();
        let guard = Guard::new(&added, "content.split('</think>')", []).unwrap();
        let content = guard.guard("<think>a</think>b</think>c", Author::Assistant);
        let kept = content.split("</think>").last().unwrap();
        assert_eq!(guard.release(kept).0, "c");
        // What it does not cut away is text, its own marker beside it is none.
        let (head, tail) = content.split_once("</think>").unwrap();
        let (text, found) = guard.release(&format!("{head}</think>{tail}<|im_end|>"));
        assert_eq!(text, "<think>a</think>b</think>c<|im_end|>");
        assert_eq!(ids(&found), [2]);
        let (_, found) = guard.release(&format!("{head}</think>\n{tail}"));
        assert_eq!(ids(&found), [1]);
    }

    #[test]
    fn other_authors_get_no_whole_marker() {
        let added = added();
        let guard = Guard::new(&added, "</think>", []).unwrap();
        assert!(!guard.guard("</think>", Author::Other).contains("</think>"));
        assert!(!guard.guard("<|im_end|>", Author::Assistant).contains("<|im_end|>"));
    }

    #[test]
    fn text_without_the_beginning_of_a_marker_is_left_alone() {
        let added = added();
        let guard = Guard::new(&added, "", []).unwrap();
        assert!(matches!(guard.guard("plain\n\ntext > here", Author::Other), Cow::Borrowed(_)));
        assert_eq!(ids(&guard.release("plain\n\ntext").1), [4]);
    }

    #[test]
    fn noncharacters_of_the_text_itself_are_kept() {
        let added = added();
        let text = "\u{FDD0}<think>\u{FDD1}";
        let guard = Guard::new(&added, "", [text]).unwrap();
        assert_eq!(guard.release(&guard.guard(text, Author::Other)), (text.to_owned(), Vec::new()));
        let all: String = SENTINELS.collect();
        assert!(Guard::new(&added, "", [&*all]).is_err());
    }
}
