use proptest::prelude::*;

use super::*;

fn parse(name: &str) -> Result<HubReference> {
    match Reference::parse(name, PUBLIC_HUB)? {
        Reference::Hub(hub) => Ok(hub),
        Reference::Path(path) => panic!("{name} is the path {}", path.display()),
    }
}

#[test]
fn names_mean_what_the_table_says() {
    let r1 = "unsloth/DeepSeek-R1-Distill-Qwen-1.5B-GGUF";
    let file = |path: &str| Select::File(path.into());
    let quantization = |label: &str| Select::Quantization(label.into());
    for (name, repository, revision, select) in [
        ("deepseek-r1", r1, "main", Select::Default),
        ("DeepSeek-R1:1.5B", r1, "main", Select::Default),
        ("deepseek-r1:1.5b-q8_0", r1, "main", quantization("Q8_0")),
        ("o/r", "o/r", "main", Select::Default),
        ("o/r/", "o/r", "main", Select::Default),
        ("o/r:q4_k_m", "o/r", "main", quantization("Q4_K_M")),
        ("o/r:UD-Q4_K_XL", "o/r", "main", quantization("UD-Q4_K_XL")),
        ("o/r@v1.0", "o/r", "v1.0", Select::Default),
        ("o/r@v1.0:q8_0", "o/r", "v1.0", quantization("Q8_0")),
        ("o/r@refs/pr/3:q8_0", "o/r", "refs/pr/3", quantization("Q8_0")),
        ("o/r@refs/pr/3/a/b.gguf", "o/r", "refs/pr/3", file("a/b.gguf")),
        ("o/r/x-Q4_K_M.gguf", "o/r", "main", file("x-Q4_K_M.gguf")),
        ("o/r@0a1b/sub/x.GGUF", "o/r", "0a1b", file("sub/x.GGUF")),
        ("o/r/Q4_K_M", "o/r", "main", quantization("Q4_K_M")),
        ("hf.co/o/r:Q8_0", "o/r", "main", quantization("Q8_0")),
        ("huggingface.co/o/r", "o/r", "main", Select::Default),
        ("https://huggingface.co/o/r", "o/r", "main", Select::Default),
        ("https://huggingface.co/o/r/tree/main", "o/r", "main", Select::Default),
        ("https://huggingface.co/o/r/tree/v2/BF16", "o/r", "v2", quantization("BF16")),
        ("https://huggingface.co/o/r/blob/main/x.gguf", "o/r", "main", file("x.gguf")),
        ("https://hf.co/o/r/resolve/main/a%20b.gguf?download=true", "o/r", "main", file("a b.gguf")),
        ("https://huggingface.co/o/r/resolve/refs%2Fpr%2F1/x.gguf#f", "o/r", "refs/pr/1", file("x.gguf")),
    ] {
        let found = parse(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(
            (found.repository.as_str(), found.revision.as_str(), &found.select),
            (repository, revision, &select),
            "{name}"
        );
    }
}

#[test]
fn a_mirror_of_the_hub_is_known_by_its_endpoint() {
    let found =
        Reference::parse("https://mirror.example/hub/o/r/resolve/main/x.gguf", "https://mirror.example/hub");
    let Ok(Reference::Hub(found)) = found else { panic!("{found:?}") };
    assert_eq!(found.to_string(), "o/r/x.gguf");
}

#[test]
fn a_repository_of_the_catalog_has_its_entry() {
    let found = parse("Unsloth/deepseek-r1-distill-qwen-7b-gguf:q8_0").unwrap();
    assert_eq!(found.entry.unwrap().name, "deepseek-r1:7b");
    assert_eq!(found.to_string(), "unsloth/DeepSeek-R1-Distill-Qwen-7B-GGUF:Q8_0");
    assert_eq!(parse("o/r").unwrap().entry, None);
}

#[test]
fn an_existing_path_wins() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.gguf");
    std::fs::write(&file, "").unwrap();
    let found = Reference::parse(file.to_str().unwrap(), PUBLIC_HUB).unwrap();
    assert_eq!(found, Reference::Path(file));
    assert!(matches!(Reference::parse("src/hub", PUBLIC_HUB).unwrap(), Reference::Path(_)));
}

#[test]
fn a_folder_that_is_named_like_an_owner_hides_no_repository() {
    assert!(std::path::Path::new("src").is_dir());
    assert_eq!(parse("src/repo").unwrap().repository, "src/repo");
    assert_eq!(parse("src/repo/x/m.gguf").unwrap().select, Select::File("x/m.gguf".into()));
}

#[test]
fn what_looks_like_a_path_is_said_not_to_exist() {
    for name in ["./x", "../x/y", "/x/y/z", "~/x", "x.gguf", "src/x.GGUF", "C:\\m\\x.gguf", "./src/no/x.gguf"]
    {
        let error = parse(name).unwrap_err();
        assert!(error.to_string().ends_with("there is no such file"), "{name}: {error}");
    }
}

#[test]
fn a_file_that_is_missing_in_a_folder_of_this_machine_is_not_looked_for_at_the_hub() {
    let error = parse("src/hub/x.gguf").unwrap_err().to_string();
    assert!(error.contains("there is no such file") && error.contains("hf.co/src/hub/x.gguf"), "{error}");
    assert_eq!(parse("hf.co/src/hub/x.gguf").unwrap().select, Select::File("x.gguf".into()));
}

#[test]
fn a_path_that_cannot_be_looked_up_says_why() {
    // A file is no folder; as root, nothing is forbidden that a test could ask for.
    let below = std::fs::metadata("./Cargo.toml/x.gguf").unwrap_err();
    let error = parse("./Cargo.toml/x.gguf").unwrap_err().to_string();
    assert!(error.ends_with(&below.to_string()) || cfg!(windows), "{error}");
}

#[test]
fn an_unknown_short_name_suggests_the_nearest() {
    let error = parse("deepsek-r1:7b").unwrap_err().to_string();
    assert!(error.contains("deepseek-r1:7b"), "{error}");
    let error = parse("deepseek-r1:7b-q9").unwrap_err().to_string();
    assert!(error.contains("did you mean deepseek-r1:7b"), "{error}");
    let error = parse("xyzzy").unwrap_err().to_string();
    assert!(error.contains("owner/repo"), "{error}");
}

#[test]
fn wrong_names_say_what_is_wrong() {
    for (name, part) in [
        ("", "empty"),
        ("https://example.com/o/r", "huggingface.co only"),
        ("https://huggingface.co/datasets/o/r", "no model repository"),
        ("https://huggingface.co/o", "owner/repo"),
        ("o/r:fast", "no quantization"),
        ("o/r:Q9", "no quantization"),
        ("o/r/config.json", "no GGUF file"),
        ("o/r@a/../../x.gguf", "no path within a repository"),
        ("o/r@", "revision"),
        ("o/..", "owner/repo"),
        ("o/r%2f", "owner/repo"),
        ("o//x.gguf/y", "owner/repo"),
    ] {
        let error = parse(name).unwrap_err().to_string();
        assert!(error.contains(part), "{name}: {error}");
    }
}

proptest! {
    #[test]
    fn parsing_never_panics(name in "\\PC{0,60}") {
        let _ = Reference::parse(&name, PUBLIC_HUB);
    }

    #[test]
    fn parsing_near_names_never_panics(name in "(https?://|hf.co/|huggingface.co/)?[a-z./@:%#?-]{0,40}(resolve/|tree/)?[q0-9_KM.guf]{0,12}") {
        let _ = Reference::parse(&name, PUBLIC_HUB);
    }

    #[test]
    fn a_reference_is_written_as_it_is_read(
        owner in "[a-z][a-z0-9]{0,8}", repo in "[A-Z][a-zA-Z0-9.-]{0,8}[a-z]",
        revision in "(main|v[0-9]|refs/pr/[0-9])", tail in "(|:Q8_0|/a b/x[.]gguf|/y-Q4_K_M[.]gguf)",
    ) {
        prop_assume!(is_id(&repo));
        let written = if revision == MAIN { format!("{owner}/{repo}{tail}") } else { format!("{owner}/{repo}@{revision}{tail}") };
        prop_assert_eq!(parse(&written).unwrap().to_string(), written);
    }
}
