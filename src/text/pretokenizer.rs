//! How a text is cut into words before byte-pair encoding: the schemes that `tokenizer.ggml.pre` names.

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

/// Words of letters, numbers of up to three digits: cl100k's pattern, which Llama 3, Phi-4 and GLM-4 have as well.
const CL100K: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|",
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// A pre-tokenizer by its name in GGUF metadata. The patterns are those of the models' own tokenizer.json.
#[derive(Debug)]
pub(super) struct Scheme {
    names: &'static [&'static str],
    /// Applied one after the other, each to the pieces that the one before left.
    patterns: &'static [&'static str],
    /// A word that is a vocabulary entry as a whole is taken as it is, even where no merges lead to it.
    pub whole_words: bool,
    /// Whether a prompt begins with BOS where the metadata says nothing (as llama.cpp has it).
    pub add_bos: bool,
}

/// How GPT-2 cuts words.
pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const SCHEMES: &[Scheme] = &[
    Scheme {
        names: &["qwen2", "deepseek-r1-qwen"],
        patterns: &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|",
            r"\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        whole_words: false,
        add_bos: false,
    },
    Scheme {
        names: &["llama-bpe", "llama3", "llama-v3"],
        patterns: &[CL100K],
        whole_words: true,
        add_bos: true,
    },
    Scheme {
        // GLM-4 and GLM-Z1; Phi-4's files say dbrx
        names: &["dbrx", "glm4", "chatglm-bpe"],
        patterns: &[CL100K],
        whole_words: false,
        add_bos: false,
    },
    Scheme {
        // o200k's, of gpt-oss and Phi-4-mini: capitals begin a word, and what follows an apostrophe ends one
        names: &["gpt-4o"],
        patterns: &[concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
            r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        whole_words: false,
        add_bos: false,
    },
    Scheme {
        // Magistral
        names: &["tekken"],
        patterns: &[concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
            r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        whole_words: true,
        add_bos: true,
    },
    Scheme {
        names: &["deepseek-v3"],
        patterns: &[
            r"\p{N}{1,3}",
            r"[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+",
            concat!(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"##,
                r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
        ],
        whole_words: false,
        add_bos: false,
    },
    Scheme {
        names: &["deepseek-llm"],
        patterns: &[
            r"[\r\n]",
            // Letters with case, as of the Unicode version the model was trained with.
            concat!(
                r"\s?[A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}",
                r"\u{295}-\u{2AF}\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}",
                r"\u{38C}\u{38E}-\u{3A1}\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}",
                r"\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}",
                r"\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}",
                r"\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}",
                r"\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}",
                r"\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}",
                r"\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\u{2126}",
                r"\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}",
                r"\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}",
                r"\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}\u{A771}-\u{A787}\u{A78B}-\u{A78E}",
                r"\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}",
                r"\u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}",
                r"\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}]+"
            ),
            r"\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+",
            r"\s+$",
            r"[\u{4E00}-\u{9FA5}\u{0800}-\u{4E00}\u{AC00}-\u{D7FF}]+",
            r"\p{N}+",
        ],
        whole_words: false,
        add_bos: false,
    },
    Scheme { names: &["smollm"], patterns: &[r"\p{N}", GPT2], whole_words: false, add_bos: false },
];

/// The scheme called `name`.
pub(super) fn scheme(name: &str) -> Option<&'static Scheme> {
    SCHEMES.iter().find(|scheme| scheme.names.contains(&name))
}

/// The name of the scheme with these patterns: of several the one that takes whole words as asked, and of its names the
/// architecture's own.
pub(super) fn name_of(patterns: &[String], whole_words: bool, architecture: &str) -> Option<&'static str> {
    let literal = |patterns: &[&str]| patterns.iter().map(|pattern| unescaped(pattern)).collect::<Vec<_>>();
    let wanted = literal(&patterns.iter().map(String::as_str).collect::<Vec<_>>());
    let same = SCHEMES.iter().filter(|scheme| literal(scheme.patterns) == wanted);
    let scheme = same.max_by_key(|scheme| scheme.whole_words == whole_words)?;
    scheme.names.iter().find(|name| **name == architecture).or(scheme.names.first()).copied()
}

/// A pattern with the characters that `\r`, `\n` and `\u{4E00}` stand for: files write them either way.
fn unescaped(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some((before, escaped)) = rest.split_once('\\') {
        out.push_str(before);
        let code_point = || {
            let (digits, after) = escaped.strip_prefix("u{")?.split_once('}')?;
            Some((char::from_u32(u32::from_str_radix(digits, 16).ok()?)?, after))
        };
        let mut chars = escaped.chars();
        rest = match (chars.next(), code_point()) {
            (_, Some((c, after))) => {
                out.push(c);
                after
            }
            (Some('r'), _) => {
                out.push('\r');
                chars.as_str()
            }
            (Some('n'), _) => {
                out.push('\n');
                chars.as_str()
            }
            (other, _) => {
                out.push('\\');
                out.extend(other);
                chars.as_str()
            }
        };
    }
    out + rest
}

/// All names that are known.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    SCHEMES.iter().flat_map(|scheme| scheme.names).copied()
}

impl Scheme {
    /// The pre-tokenizer: words of the patterns, their bytes written as the printable characters of GPT-2's
    /// byte-level vocabularies.
    pub fn pre_tokenizer(&self) -> PreTokenizerWrapper {
        by_patterns(self.patterns).expect("the patterns above are valid")
    }
}

/// Words of these patterns, applied one after the other, their bytes written as byte-level vocabularies write them.
pub(super) fn by_patterns(patterns: &[&str]) -> tokenizers::Result<PreTokenizerWrapper> {
    let split = |pattern: &&str| {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        Ok(PreTokenizerWrapper::Split(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?))
    };
    let bytes = PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false));
    let splits: Vec<_> = patterns.iter().map(split).chain([Ok(bytes)]).collect::<tokenizers::Result<_>>()?;
    Ok(Sequence::new(splits).into())
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    /// The words of `text`, with the byte-level alphabet's space written as a space again.
    fn words(name: &str, text: &str) -> Vec<String> {
        let mut cut = PreTokenizedString::from(text);
        scheme(name).unwrap().pre_tokenizer().pre_tokenize(&mut cut).unwrap();
        let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(_, range, _)| text[range.0..range.1].to_owned()).collect()
    }

    #[test]
    fn every_scheme_is_a_valid_set_of_patterns_that_loses_no_text() {
        let text = "I'LL pay 12345 €!\n\n  深度求索 Ωmega ﬁ\u{212B} १२३ e\u{301}  \t";
        for name in names() {
            assert_eq!(words(name, text).concat(), text, "{name}");
        }
    }

    #[test]
    fn a_scheme_is_found_by_patterns_that_are_escaped_otherwise() {
        let literal = scheme("deepseek-v3").unwrap().patterns.iter().map(|pattern| unescaped(pattern));
        let literal: Vec<String> = literal.collect();
        assert!(
            literal[1].contains('\u{4E00}')
                && literal[2].contains(r"\[\\\]")
                && literal[2].contains("[^\r\n")
        );
        assert_eq!(name_of(&literal, false, "deepseek2"), Some("deepseek-v3"));
        assert_eq!(name_of(&[r"\p{N}{1,4}".to_owned()], false, "deepseek2"), None);
    }

    #[test]
    fn one_pattern_has_other_names_by_architecture_and_by_what_becomes_of_whole_words() {
        let names = [(true, "llama"), (true, "glm4"), (false, "glm4"), (false, "phi3"), (false, "llama")]
            .map(|(whole_words, architecture)| name_of(&[CL100K.to_owned()], whole_words, architecture));
        assert_eq!(names.map(Option::unwrap), ["llama-bpe", "llama-bpe", "glm4", "dbrx", "dbrx"]);
    }

    #[test]
    fn no_name_stands_for_two_schemes() {
        let distinct: std::collections::BTreeSet<&str> = names().collect();
        assert_eq!(distinct.len(), names().count());
    }

    #[test]
    fn digits_stand_alone_in_groups_of_three_or_together() {
        assert_eq!(words("qwen2", "1234"), ["1", "2", "3", "4"]);
        assert_eq!(words("smollm", "1234"), ["1", "2", "3", "4"]);
        assert_eq!(words("tekken", "1234"), ["1", "2", "3", "4"]);
        for name in ["llama-bpe", "dbrx", "glm4", "gpt-4o"] {
            assert_eq!(words(name, "1234"), ["123", "4"], "{name}");
        }
        assert_eq!(words("deepseek-v3", "1234"), ["123", "4"]);
        assert_eq!(words("deepseek-llm", "1234"), ["1234"]);
    }

    #[test]
    fn newer_schemes_begin_a_word_at_a_capital() {
        assert_eq!(words("dbrx", "parseHTMLPage it's"), ["parseHTMLPage", " it", "'s"]);
        assert_eq!(words("gpt-4o", "parseHTMLPage it's"), ["parse", "HTMLPage", " it's"]);
        assert_eq!(words("tekken", "parseHTMLPage it's"), ["parse", "HTMLPage", " it", "'s"]);
        assert_eq!(words("gpt-4o", "I'LL see\n\n//x/\n y"), ["I'LL", " see", "\n\n", "//", "x", "/\n", " y"]);
        assert_eq!(words("tekken", "e\u{301}tat हिन्दी"), ["e\u{301}tat", " हिन्दी"]);
    }

    #[test]
    fn deepseek_llm_cuts_at_letters_punctuation_and_line_ends() {
        assert_eq!(
            words("deepseek-llm", "Hi there, ab\n\n 求x"),
            ["Hi", " there", ",", " ab", "\n", "\n", " ", "求", "x"]
        );
    }
}
