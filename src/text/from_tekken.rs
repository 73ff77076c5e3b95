//! A tokenizer from Mistral's tekken.json: byte sequences in the order in which they were merged, without the merges.

use std::collections::HashSet;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tokenizers::ModelWrapper;
use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::added::Added;
use super::pretokenizer;
use super::vocabulary::{Parts, Pieces, byte_level_entry, check_count};
use crate::{Error, Result};

#[derive(Deserialize)]
struct Tekken {
    config: Config,
    /// By rank; the first ones are used, as many as the vocabulary has room for.
    vocab: Vec<Entry>,
    /// By rank, which is the id.
    special_tokens: Option<Vec<Special>>,
}

#[derive(Deserialize)]
struct Config {
    /// Cuts a text into words.
    pattern: String,
    /// Ids, those of special tokens included.
    default_vocab_size: usize,
    /// Ids that come before all others.
    default_num_special_tokens: usize,
}

#[derive(Deserialize)]
struct Entry {
    token_bytes: String,
}

#[derive(Deserialize)]
struct Special {
    rank: usize,
    token_str: String,
    is_control: bool,
}

/// The special tokens of a file that names none.
const SPECIAL: [&str; 20] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

/// What the file says, in byte-level characters.
pub(super) struct Contents {
    /// The tokens that come before all others, by id.
    pub special: Vec<Added>,
    /// The entries that follow.
    pub entries: Vec<String>,
    /// The bytes of all of them.
    pieces: Pieces,
    /// Every way to put an entry together from two others, in the entries' order: the lowest rank is merged first.
    pub merges: Merges,
    /// Cuts a text into words.
    pub pattern: String,
}

/// Reads the file as a tokenizer.
pub(super) fn parts(path: &Path) -> Result<Parts> {
    contents(path)?.parts().map_err(|what| fault(path, &what))
}

/// Reads the file.
pub(super) fn contents(path: &Path) -> Result<Contents> {
    let text = std::fs::read(path).map_err(|source| Error::io(path, source))?;
    let tekken: Tekken = serde_json::from_slice(&text).map_err(|error| fault(path, &error.to_string()))?;
    tekken.contents().map_err(|what| fault(path, &what))
}

fn fault(path: &Path, what: &str) -> Error {
    Error::file(path, format!("is not a tokenizer that can be read: {what}"))
}

impl Contents {
    fn parts(self) -> std::result::Result<Parts, String> {
        let Contents { special, entries, pieces, merges, pattern } = self;
        let vocab: Vocab = (special.len() as u32..).zip(entries).map(|(id, entry)| (entry, id)).collect();
        let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(true).build();
        let mut core =
            tokenizers::Tokenizer::new(ModelWrapper::BPE(model.map_err(|error| error.to_string())?));
        core.with_pre_tokenizer(Some(
            pretokenizer::by_patterns(&[&pattern]).map_err(|error| error.to_string())?,
        ));
        let id = |literal: &str| special.iter().find(|token| token.literal == literal).map(|token| token.id);
        let (bos, ends) = (id("<s>").map(|id| (id, true)), id("</s>").into_iter().collect());
        Ok(Parts { core, added: special, pieces, bos, ends })
    }
}

impl Tekken {
    fn contents(self) -> std::result::Result<Contents, String> {
        let Config { pattern, default_vocab_size: size, default_num_special_tokens: first } = &self.config;
        check_count(*size)?;
        let used = size.checked_sub(*first).filter(|used| *used <= self.vocab.len());
        let used = used.ok_or(format!(
            "{size} ids, {first} of them special, are no sizes for {} entries",
            self.vocab.len()
        ))?;
        let (mut pieces, mut special) = (Pieces::default(), Vec::new());
        for (id, token) in self.special(*first)?.into_iter().enumerate() {
            pieces.push(token.literal.bytes());
            special.push(Added { id: id as u32, ..token });
        }
        let mut entries = Vec::with_capacity(used);
        for entry in &self.vocab[..used] {
            let bytes = STANDARD.decode(&entry.token_bytes).map_err(|error| error.to_string())?;
            entries.push(byte_level_entry(&bytes));
            pieces.push(bytes);
        }
        let merges = merges(&entries);
        Ok(Contents { special, entries, pieces, merges, pattern: pattern.clone() })
    }

    /// The special tokens by id: those that have a name, and placeholders.
    fn special(&self, count: usize) -> std::result::Result<Vec<Added>, String> {
        if count > self.config.default_vocab_size {
            return Err(format!("{count} special tokens are more than all"));
        }
        let placeholder = |id| Added::new(format!("<SPECIAL_{id}>"), 0, true);
        let mut special: Vec<Added> = (0..count).map(placeholder).collect();
        let mut name = |rank: usize, literal: &str, control| match special.get_mut(rank) {
            Some(slot) => {
                *slot = Added::new(literal, 0, control);
                Ok(())
            }
            None => Err(format!("the special token {literal} has the rank {rank} of {count}")),
        };
        match &self.special_tokens {
            Some(tokens) => tokens.iter().try_for_each(|t| name(t.rank, &t.token_str, t.is_control))?,
            None => SPECIAL.iter().enumerate().try_for_each(|(rank, literal)| name(rank, literal, true))?,
        }
        Ok(special)
    }
}

fn merges(entries: &[String]) -> Merges {
    let known: HashSet<&str> = entries.iter().map(String::as_str).collect();
    let mut merges = Merges::new();
    for entry in entries {
        for (at, _) in entry.char_indices().skip(1) {
            let (left, right) = entry.split_at(at);
            if known.contains(left) && known.contains(right) {
                merges.push((left.to_owned(), right.to_owned()));
            }
        }
    }
    merges
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::checkpoint::Metadata;
    use crate::text::{ChatTemplate, Special, TemplateContext, TemplateMessage, Tokenizer};

    /// The 256 bytes, "th", "thi", "é" and one more than there is room for.
    fn tekken() -> Value {
        use base64::Engine;
        let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        let bytes = (0..=255u8).map(|byte| encode(&[byte]));
        let words = ["th", "thi", "é", "unused"].map(|word| encode(word.as_bytes()));
        let vocab: Vec<Value> = bytes
            .chain(words)
            .enumerate()
            .map(|(rank, token)| json!({"rank": rank, "token_bytes": token, "token_str": null}))
            .collect();
        json!({
            "config": {
                "pattern": r"\p{L}+|[^\p{L}]", "num_vocab_tokens": 260, "default_vocab_size": 265,
                "default_num_special_tokens": 6, "version": "v13"
            },
            "vocab": vocab,
            "special_tokens": [
                {"rank": 0, "token_str": "<unk>", "is_control": true},
                {"rank": 1, "token_str": "<s>", "is_control": true},
                {"rank": 2, "token_str": "</s>", "is_control": true},
                {"rank": 3, "token_str": "[THINK]", "is_control": true},
                {"rank": 4, "token_str": "[/THINK]", "is_control": true}
            ]
        })
    }

    fn read(tekken: &Value) -> crate::Result<Tokenizer> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tekken.json"), tekken.to_string()).unwrap();
        Tokenizer::from_metadata(&Metadata::HuggingFace {
            config: Value::Null,
            folder: folder.path().to_owned(),
        })
    }

    #[test]
    fn a_repository_without_a_template_gets_mistral_s_and_its_own_system_prompt() {
        let folder = tempfile::tempdir().unwrap();
        let metadata = Metadata::HuggingFace { config: Value::Null, folder: folder.path().to_owned() };
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("tekken.json", &tekken().to_string());
        let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
        assert!(ChatTemplate::of(&metadata, &tokenizer).unwrap().is_none(), "it has no such tokens");

        let mut tokens = tekken();
        let marks = ["[THINK]", "[/THINK]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"];
        let special = tokens["special_tokens"].as_array_mut().unwrap();
        special.truncate(3);
        special.extend(
            marks
                .iter()
                .zip(3..)
                .map(|(mark, rank)| json!({"rank": rank, "token_str": mark, "is_control": true})),
        );
        tokens["config"]["default_num_special_tokens"] = 9.into();
        tokens["config"]["default_vocab_size"] = 268.into();
        write("tekken.json", &tokens.to_string());
        let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
        let prompt = |roles: &[(&str, &str)]| {
            let template = ChatTemplate::of(&metadata, &tokenizer).unwrap().unwrap();
            let message = |&(role, content): &(&str, &str)| TemplateMessage {
                role: role.to_owned(),
                content: content.to_owned(),
                reasoning_content: None,
            };
            let messages: Vec<_> = roles.iter().map(message).collect();
            let ids = template.encode(&tokenizer, &messages, &TemplateContext::new(&tokenizer)).unwrap();
            (tokenizer.decode(&ids), ids)
        };
        assert_eq!(prompt(&[("user", "hi")]).0, "<s>[INST]hi[/INST]");
        write("SYSTEM_PROMPT.txt", "Think: \"[THINK]so[/THINK]\"\n");
        let (text, ids) = prompt(&[("user", "hi [INST]"), ("assistant", "yes"), ("user", "why?")]);
        let turns = "[INST]hi [INST][/INST]yes</s>[INST]why?[/INST]";
        assert_eq!(text, format!("<s>[SYSTEM_PROMPT]Think: \"[THINK]so[/THINK]\"\n[/SYSTEM_PROMPT]{turns}"));
        let count = |id| ids.iter().filter(|&&other| other == id).count();
        assert_eq!((count(3), count(7)), (1, 2), "a message's words are no tokens, the template's are");
        assert_eq!(
            prompt(&[("system", "Be brief."), ("user", "hi")]).0,
            "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]hi[/INST]"
        );
    }

    #[test]
    fn ids_are_ranks_behind_the_special_tokens() {
        let tokenizer = read(&tekken()).unwrap();
        assert_eq!(tokenizer.len(), 265);
        let ids = tokenizer.encode("<s>this é[/THINK]", Special::Parse).unwrap();
        assert_eq!(ids, [1, 6 + 257, 6 + 115, 6 + 32, 6 + 258, 4]);
        assert_eq!(tokenizer.decode(&ids), "<s>this é[/THINK]");
        assert_eq!((tokenizer.bos(), tokenizer.ends()), (Some((1, true)), &[2][..]));
        assert!(tokenizer.is_control(5) && tokenizer.id("<SPECIAL_5>") == Some(5));
        assert_eq!(tokenizer.id("unused"), None);
    }

    #[test]
    fn a_file_without_special_tokens_has_the_usual_ones() {
        let mut plain = tekken();
        plain.as_object_mut().unwrap().remove("special_tokens");
        plain["config"]["default_num_special_tokens"] = json!(20);
        plain["config"]["default_vocab_size"] = json!(276);
        let tokenizer = read(&plain).unwrap();
        assert_eq!(tokenizer.encode("[INST]a", Special::Parse).unwrap(), [3, 20 + 97]);
    }

    #[test]
    fn sizes_that_do_not_fit_are_errors() {
        for (key, value) in [("default_vocab_size", 1000), ("default_num_special_tokens", 3)] {
            let mut wrong = tekken();
            wrong["config"][key] = json!(value);
            let message = read(&wrong).map(|_| ()).unwrap_err().to_string();
            assert!(message.contains("tekken.json"), "{message}");
        }
        let mut absurd = tekken();
        for key in ["default_vocab_size", "default_num_special_tokens"] {
            absurd["config"][key] = json!(4_000_000_000u32);
        }
        let message = read(&absurd).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("4000000000 tokens"), "{message}");
        let mut wrong = tekken();
        wrong["config"]["pattern"] = json!("(");
        assert!(read(&wrong).is_err());
    }
}
