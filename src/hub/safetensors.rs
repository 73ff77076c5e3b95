//! Which of a repository's files are a checkpoint of safetensors.

use std::collections::BTreeSet;

use super::group::Group;
use crate::Result;
use crate::checkpoint::safetensors::{CONFIG, INDEX, Index, SINGLE};

/// Vocabularies; one is enough.
const TOKENIZERS: [&str; 2] = ["tokenizer.json", "tekken.json"];
/// What else is read beside the weights, where it is there.
const BESIDE: [&str; 5] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "SYSTEM_PROMPT.txt",
];

/// The checkpoint in the root of a repository with these files; none where there is no config.json. `index` reads the
/// index of the shards and is asked only where it counts: exactly the files that it names are the weights.
///
/// # Errors
/// Those of `index`.
pub(super) fn group(paths: &[&str], index: impl FnOnce() -> Result<Index>) -> Result<Option<Group>> {
    let is_there = |path: &&str| paths.contains(path);
    if !is_there(&CONFIG) {
        return Ok(None);
    }
    let mut wanted = vec![CONFIG];
    wanted.extend(BESIDE.into_iter().filter(is_there));
    match TOKENIZERS.iter().any(&is_there) {
        true => wanted.extend(TOKENIZERS.into_iter().filter(is_there)),
        false => wanted.push(TOKENIZERS[0]),
    }
    let shards: BTreeSet<String>;
    if !is_there(&SINGLE) && is_there(&INDEX) {
        shards = index()?.weight_map.into_values().collect();
        wanted.push(INDEX);
        wanted.extend(shards.iter().map(String::as_str));
    } else {
        wanted.push(SINGLE);
    }
    let parts: Vec<String> =
        wanted.iter().filter(|path| is_there(path)).map(|path| path.to_string()).collect();
    let missing = wanted.iter().find(|path| !is_there(path)).map(|path| path.to_string());
    let expected = wanted.len();
    Ok(Some(Group { stem: String::new(), label: None, parts, expected, missing, is_folder: true }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(paths: &[&str], index: &str) -> Group {
        group(paths, || Ok(Index::parse(index.as_bytes()).unwrap())).unwrap().unwrap()
    }

    #[test]
    fn of_a_repository_only_what_is_read_is_taken_and_the_weights_last() {
        let paths = [
            "README.md",
            "SYSTEM_PROMPT.txt",
            "chat_template.jinja",
            "config.json",
            "consolidated.safetensors",
            "model.safetensors",
            "original/config.json",
            "original/consolidated.00.pth",
            "pytorch_model.bin",
            "tekken.json",
            "tokenizer.json",
        ];
        let group = found(&paths, "");
        let parts = [
            "config.json",
            "chat_template.jinja",
            "SYSTEM_PROMPT.txt",
            "tokenizer.json",
            "tekken.json",
            "model.safetensors",
        ];
        assert_eq!(group.parts, parts);
        assert!(group.complete());
    }

    #[test]
    fn of_shards_exactly_those_are_taken_that_the_index_names() {
        let index =
            r#"{"weight_map": {"a": "s2.safetensors", "b": "s1.safetensors", "c": "s2.safetensors"}}"#;
        let paths = [CONFIG, "tokenizer.json", INDEX, "s1.safetensors", "s2.safetensors", "s3.safetensors"];
        assert_eq!(found(&paths, index).parts, paths[..5]);
        assert_eq!(found(&paths[..4], index).missing.as_deref(), Some("s2.safetensors"));
    }

    #[test]
    fn a_checkpoint_is_whole_only_with_a_vocabulary_and_weights() {
        assert_eq!(found(&[CONFIG, "model.safetensors"], "").missing.as_deref(), Some("tokenizer.json"));
        assert_eq!(
            found(&[CONFIG, "tekken.json", "pytorch_model.bin"], "").missing.as_deref(),
            Some("model.safetensors")
        );
        let no_index = || panic!("nothing is split");
        assert_eq!(group(&["model.safetensors", "sub/config.json"], no_index).unwrap(), None);
    }
}
