//! SentencePiece-style byte-pair encoding (`tokenizer.ggml.model` = `llama`): a vocabulary with scores instead of
//! merges.

use std::collections::HashMap;

use tokenizers::normalizers::{Prepend, Replace, Sequence};
use tokenizers::{NormalizerWrapper, Result};

/// Entries of more bytes are not made by merges: published ones have some dozens, and the time to find an entry's
/// pairs grows with the square of its length.
const LONGEST_ENTRY: usize = 1024;

/// The merges that scores stand for: two neighbours merge if together they are an entry, the highest score
/// first. The tokenizers crate wants each pair that makes an entry, in this order; the pairs of one entry come in
/// the order of their lengths, as in Hugging Face's conversion.
///
/// `entries`: the text and score of every token that merges may lead to or start from.
pub(super) fn merges<'a>(entries: &[(&'a str, f64)]) -> Vec<(&'a str, &'a str)> {
    let known: HashMap<&str, f64> = entries.iter().copied().collect();
    let mut merges: Vec<(f64, &str, &str)> = Vec::new();
    for &(entry, score) in entries.iter().filter(|(entry, _)| entry.len() <= LONGEST_ENTRY) {
        let cuts = entry.char_indices().skip(1).map(|(at, _)| entry.split_at(at));
        let pairs = cuts.filter(|(left, right)| known.contains_key(left) && known.contains_key(right));
        merges.extend(pairs.map(|(left, right)| (score, left, right)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0)); // stable: entries and lengths keep their order
    merges.into_iter().map(|(_, left, right)| (left, right)).collect()
}

/// Writes spaces as `▁` and, if the vocabulary wants it, one before each stretch of text.
pub(super) fn normalizer(add_space_prefix: bool) -> Result<NormalizerWrapper> {
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if add_space_prefix {
        steps.push(Prepend::new("▁".to_owned()).into());
    }
    steps.push(Replace::new(" ", "▁")?.into());
    Ok(Sequence::new(steps).into())
}

#[cfg(test)]
mod tests {
    use super::merges;

    #[test]
    fn merges_come_by_score_and_only_from_entries() {
        let entries = [("a", -9.0), ("b", -9.0), ("ab", -2.0), ("ba", -1.0), ("aba", -3.0), ("xyz", 0.0)];
        assert_eq!(merges(&entries), [("b", "a"), ("a", "b"), ("a", "ba"), ("ab", "a")]);
    }
}
