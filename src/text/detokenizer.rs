//! Bytes of tokens to text, as they come.

/// Longest proper prefix of a UTF-8 character, bytes.
const LONGEST_PREFIX: usize = 3;

/// Bytes in, whole UTF-8 characters out.
///
/// The pieces put together are what [`String::from_utf8_lossy`] makes of all the bytes, however they were cut;
/// at most three bytes are held back.
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    held: [u8; LONGEST_PREFIX],
    held_bytes: usize,
}

impl Detokenizer {
    /// Adds a token's bytes and gives what is complete; never half a character.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let mut text = String::with_capacity(self.held_bytes + bytes.len());
        if self.held_bytes == 0 {
            self.take(bytes, &mut text);
        } else {
            let joined = [&self.held[..self.held_bytes], bytes].concat();
            self.take(&joined, &mut text);
        }
        text
    }

    /// What is left at the end (broken bytes as U+FFFD).
    pub fn finish(&mut self) -> String {
        let left = String::from_utf8_lossy(&self.held[..self.held_bytes]).into_owned();
        self.held_bytes = 0;
        left
    }

    /// Appends what is complete in `bytes` to `text` and holds the rest.
    fn take(&mut self, mut bytes: &[u8], text: &mut String) {
        self.held_bytes = 0;
        for chunk in bytes.utf8_chunks() {
            text.push_str(chunk.valid());
            bytes = &bytes[chunk.valid().len()..];
            if chunk.invalid().is_empty() {
                break;
            }
            // Only the last chunk can be a character that further bytes may complete: there `error_len` is None.
            if std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none()) {
                self.held[..bytes.len()].copy_from_slice(bytes);
                self.held_bytes = bytes.len();
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            bytes = &bytes[chunk.invalid().len()..];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Detokenizer;

    #[test]
    fn a_character_split_over_tokens_comes_out_whole() {
        let mut detokenizer = Detokenizer::default();
        let bytes = "é🙂".as_bytes();
        assert_eq!(detokenizer.push(&bytes[..1]), "");
        assert_eq!(detokenizer.push(&bytes[1..5]), "é");
        assert_eq!(detokenizer.push(&bytes[5..]), "🙂");
        assert_eq!(detokenizer.finish(), "");
    }

    #[test]
    fn broken_bytes_are_replaced_as_soon_as_they_are_known_to_be_broken() {
        let mut detokenizer = Detokenizer::default();
        assert_eq!(detokenizer.push(b"a\xF0\x9F"), "a");
        assert_eq!(detokenizer.push(b"b\xFF"), "\u{FFFD}b\u{FFFD}");
        assert_eq!(detokenizer.push(b"\xE2\x82"), "");
        assert_eq!(detokenizer.finish(), "\u{FFFD}");
        assert_eq!(detokenizer.finish(), "");
    }

    /// Bytes of which many are parts of characters: plain random bytes hardly ever make a long one.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            any::<u8>().prop_map(|byte| vec![byte]),
            any::<char>().prop_map(|c| c.to_string().into_bytes()),
            any::<(char, u8)>().prop_map(|(c, keep)| {
                let whole = c.to_string().into_bytes();
                whole[..usize::from(keep) % (whole.len() + 1)].to_vec()
            }),
        ];
        prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_lossy_reading_of_the_whole(
            bytes in bytes(),
            cuts in prop::collection::vec(0usize..8, 1..20),
        ) {
            let whole = String::from_utf8_lossy(&bytes);
            let mut detokenizer = Detokenizer::default();
            let (mut text, mut rest) = (String::new(), &bytes[..]);
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                text.push_str(&detokenizer.push(now));
                rest = later;
                let certain = bytes.len() - later.len() - detokenizer.held_bytes;
                prop_assert_eq!(&text, &String::from_utf8_lossy(&bytes[..certain]));
            }
            text.push_str(&detokenizer.push(rest));
            text.push_str(&detokenizer.finish());
            prop_assert_eq!(text, whole);
        }
    }
}
