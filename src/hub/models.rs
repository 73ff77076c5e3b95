//! Which of a repository's files are a model, and which model is meant.

use std::collections::BTreeMap;

use super::group::Group;
use super::reference::{HubReference, Select};
use super::safetensors;
use crate::Result;
use crate::catalog::quantization;
use crate::checkpoint::safetensors::Index;

/// Which model a reference means.
#[derive(Debug, PartialEq)]
pub(super) enum Choice<'a> {
    /// This one.
    One(&'a Group),
    /// None of them.
    None,
    /// One of these; the reference does not say which.
    Several(Vec<&'a Group>),
}

/// The models among a repository's files: the GGUF ones, and only where there are none the checkpoint of safetensors,
/// whose `index` is read where it is split.
///
/// # Errors
/// Those of `index`.
pub(super) fn models(paths: &[&str], index: impl FnOnce() -> Result<Index>) -> Result<Vec<Group>> {
    let found = groups(paths.iter().copied());
    if !found.is_empty() {
        return Ok(found);
    }
    Ok(safetensors::group(paths, index)?.into_iter().collect())
}

/// The GGUF models among a repository's files, by path. Projectors of vision models (`mmproj`) and importance matrices
/// are GGUF files, but no models.
fn groups<'a>(paths: impl IntoIterator<Item = &'a str>) -> Vec<Group> {
    let mut groups: BTreeMap<(&str, usize), BTreeMap<usize, &str>> = BTreeMap::new();
    for path in paths {
        let lower = path.to_ascii_lowercase();
        let file = lower.rsplit('/').next().unwrap_or(&lower);
        if !file.ends_with(".gguf") || file.contains("mmproj") || file.contains("imatrix") {
            continue;
        }
        let stem = &path[..path.len() - ".gguf".len()];
        let (stem, part, of) = split_part(stem).unwrap_or((stem, 1, 1));
        groups.entry((stem, of)).or_default().insert(part, path);
    }
    let missing = |stem: &str, part: usize, of: usize| format!("{stem}-{part:05}-of-{of:05}.gguf");
    let group = |((stem, of), parts): ((&str, usize), BTreeMap<usize, &str>)| Group {
        stem: stem.to_owned(),
        label: quantization::of_path(stem),
        expected: of,
        missing: (1..=of).find(|n| !parts.contains_key(n)).map(|n| missing(stem, n, of)),
        parts: parts.into_values().map(str::to_owned).collect(),
        is_folder: false,
    };
    groups.into_iter().map(group).collect()
}

/// `x-00002-of-00003` is part 2 of 3 of `x`.
fn split_part(stem: &str) -> Option<(&str, usize, usize)> {
    let (rest, of) = stem.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let number = |text: &str| (text.len() == 5).then(|| text.parse::<usize>().ok()).flatten();
    let (part, of) = (number(part)?, number(of)?);
    (1..=of).contains(&part).then_some((stem, part, of))
}

/// The model that `reference` means.
///
/// A quantization that is only there as Unsloth's dynamic mix is that one (`Q4_K_XL` is `UD-Q4_K_XL`). Of a whole file
/// and a split one of the same name the one with fewer parts is taken.
pub(super) fn choose<'a>(groups: &'a [Group], reference: &HubReference) -> Choice<'a> {
    if let Select::File(path) = &reference.select {
        let found = groups.iter().find(|group| group.parts.contains(path));
        return found.map_or(Choice::None, Choice::One);
    }
    let wanted = reference.wanted();
    let dynamic = format!("UD-{wanted}");
    let labelled = |label: &str| -> Vec<&Group> {
        groups.iter().filter(|g| g.label.as_deref().is_some_and(|l| l.eq_ignore_ascii_case(label))).collect()
    };
    let mut found = labelled(wanted);
    if found.is_empty() {
        found = labelled(&dynamic);
    }
    let any = reference.select == Select::Default && reference.entry.is_none();
    if found.is_empty() && any && groups.len() == 1 {
        return Choice::One(&groups[0]);
    }
    found.sort_by_key(|group| (group.parts.len(), group.stem.len()));
    match found.first() {
        None => Choice::None,
        Some(first) if found.iter().all(|g| g.file_stem() == first.file_stem()) => Choice::One(first),
        Some(_) => Choice::Several(found),
    }
}

/// Whether the file `path` of a repository is a part of the model that `reference` means; the repository alone means
/// all of them.
pub(super) fn is_part(path: &str, reference: &HubReference) -> bool {
    let named = match &reference.select {
        Select::Default => return true,
        Select::Quantization(_) => path,
        Select::File(named) => named,
    };
    match choose(&groups([path, named]), reference) {
        Choice::One(group) => group.parts.iter().any(|part| part == path),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(name: &str) -> HubReference {
        match super::super::Reference::parse(name, "https://huggingface.co").unwrap() {
            super::super::Reference::Hub(reference) => reference,
            path => panic!("{path:?}"),
        }
    }

    /// The parts that `name` chooses among `paths`, or how many it cannot choose between.
    fn chosen(name: &str, paths: &[&str]) -> Result<Vec<String>, usize> {
        match choose(&groups(paths.iter().copied()), &reference(name)) {
            Choice::One(group) => Ok(group.parts.clone()),
            Choice::None => Err(0),
            Choice::Several(groups) => Err(groups.len()),
        }
    }

    const REPOSITORY: [&str; 8] = [
        "README.md",
        "m-Q4_K_M.gguf",
        "m-UD-Q4_K_XL.gguf",
        "m-q8_0-00002-of-00002.gguf",
        "m-q8_0-00001-of-00002.gguf",
        "BF16/m-BF16-00001-of-00003.gguf",
        "mmproj-F16.gguf",
        "imatrix_unsloth.gguf",
    ];

    #[test]
    fn a_model_is_chosen_by_its_quantization() {
        assert_eq!(chosen("o/r", &REPOSITORY), Ok(vec!["m-Q4_K_M.gguf".into()]));
        assert_eq!(chosen("o/r:q4_k_xl", &REPOSITORY), Ok(vec!["m-UD-Q4_K_XL.gguf".into()]));
        assert_eq!(chosen("o/r:f16", &REPOSITORY), Err(0));
    }

    #[test]
    fn a_split_model_is_chosen_with_all_its_parts_in_order() {
        let parts = Ok(vec!["m-q8_0-00001-of-00002.gguf".into(), "m-q8_0-00002-of-00002.gguf".into()]);
        assert_eq!(chosen("o/r:q8_0", &REPOSITORY), parts);
        assert_eq!(chosen("o/r/m-q8_0-00002-of-00002.gguf", &REPOSITORY), parts);
        let groups = groups(REPOSITORY);
        let incomplete: Vec<&str> = groups.iter().filter(|g| !g.complete()).map(Group::shown).collect();
        assert_eq!(incomplete, ["BF16"]);
    }

    #[test]
    fn a_file_is_a_part_of_the_model_that_is_named() {
        for (path, name, is) in [
            ("m-Q8_0.gguf", "o/r:q8_0", true),
            ("m-Q8_0.gguf", "o/r:q4_k_m", false),
            ("m-Q8_0.gguf", "o/r", true),
            ("m-Q8_0-00002-of-00002.gguf", "o/r/m-Q8_0-00001-of-00002.gguf", true),
            ("n-Q8_0-00002-of-00002.gguf", "o/r/m-Q8_0-00001-of-00002.gguf", false),
            ("model.safetensors", "o/r:q8_0", false),
            ("", "o/r:q8_0", false),
        ] {
            assert_eq!(is_part(path, &reference(name)), is, "{path} {name}");
        }
    }

    #[test]
    fn projectors_and_importance_matrices_are_no_models() {
        let labels: Vec<_> = groups(REPOSITORY).into_iter().filter_map(|g| g.label).collect();
        assert_eq!(labels, ["BF16", "Q4_K_M", "UD-Q4_K_XL", "Q8_0"]);
    }

    #[test]
    fn the_only_model_of_a_repository_is_the_default() {
        assert_eq!(chosen("o/r", &["model.gguf", "x.json"]), Ok(vec!["model.gguf".into()]));
        assert_eq!(chosen("o/r", &["a-Q8_0.gguf", "a-Q6_K.gguf"]), Err(0));
        // The catalog promises its quantization: another one is not taken silently.
        assert_eq!(chosen("deepseek-r1", &["a-Q8_0.gguf"]), Err(0));
    }

    #[test]
    fn a_whole_file_goes_before_the_same_in_parts() {
        let paths = ["m-Q4_K_M-00001-of-00002.gguf", "m-Q4_K_M-00002-of-00002.gguf", "m-Q4_K_M.gguf"];
        assert_eq!(chosen("o/r", &paths), Ok(vec!["m-Q4_K_M.gguf".into()]));
    }

    #[test]
    fn two_different_models_of_one_quantization_are_not_guessed_between() {
        assert_eq!(chosen("o/r", &["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"]), Err(2));
    }
}
