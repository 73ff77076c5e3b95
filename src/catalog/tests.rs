use std::collections::HashSet;

use super::*;

#[test]
fn every_entry_is_complete() {
    assert!(entries().len() >= 15);
    for e in entries() {
        let name = &e.name;
        assert!(name.contains(':') && *name == name.to_lowercase(), "{name}");
        for repository in [&e.repository, &e.original] {
            let parts: Vec<&str> = repository.split('/').collect();
            assert!(parts.len() == 2 && parts.iter().all(|p| !p.is_empty()), "{name}: {repository}");
        }
        assert!(e.repository.ends_with("GGUF"), "{name}");
        assert!(e.weight_bytes(&e.quantization).is_some(), "{name}: {}", e.quantization);
        assert!(e.licence.starts_with("MIT") || e.licence.starts_with("Apache-2.0"), "{name}: {}", e.licence);
        assert!(!e.think_start.is_empty() && !e.think_end.is_empty(), "{name}");
        assert!(e.runnable().is_ok(), "{name}");
        assert!(e.sampling.temperature.is_some() && e.sampling.top_p.is_some(), "{name}");
        assert!(e.shape.context >= 32_768, "{name}");
    }
}

#[test]
fn the_parameters_of_every_entry_follow_from_its_shapes() {
    for e in entries() {
        let s = &e.shape;
        let attention = match s.latent {
            // queries over their latent, keys and values over theirs, output
            Some(l) => {
                let plain_dims = s.head_dim - l.rope_dims;
                l.query_rank * (s.width + s.heads * s.head_dim)
                    + s.width * (l.rank + l.rope_dims)
                    + l.rank * s.heads * (plain_dims + l.value_dim)
                    + s.heads * l.value_dim * s.width
            }
            None => s.width * s.head_dim * (2 * s.heads + 2 * s.kv_heads),
        };
        let dense = 3 * s.width * s.feed_forward;
        let feed_forwards = match s.experts {
            Some(x) => {
                x.dense_layers * dense + (s.layers - x.dense_layers) * x.count * 3 * s.width * x.feed_forward
            }
            None => s.layers * dense,
        };
        let embeddings = s.vocabulary * s.width * if s.tied { 1 } else { 2 };
        let billions = (s.layers * attention + feed_forwards + embeddings) as f64 / 1e9;
        assert!((billions / s.billions - 1.0).abs() < 0.002, "{}: {billions} against {}", e.name, s.billions);
    }
}

#[test]
fn the_licence_names_the_base_models_where_it_binds() {
    for e in entries().iter().filter(|e| e.original.contains("Llama")) {
        assert!(e.licence.contains("Llama 3."), "{}: {}", e.name, e.licence);
    }
}

#[test]
fn the_readme_states_the_catalogs_licences() {
    let rows = include_str!("../../README.md").lines().filter(|line| line.starts_with("| `"));
    let mut named = 0;
    for row in rows {
        let [names, _, licence] = row.trim_matches('|').split('|').collect::<Vec<_>>()[..] else { continue };
        for name in names.split('`').skip(1).step_by(2) {
            let name = if name.starts_with(':') { format!("deepseek-r1{name}") } else { name.to_owned() };
            assert_eq!(find(&name).unwrap_or_else(|| panic!("{name}")).licence, licence.trim(), "{name}");
            named += 1;
        }
    }
    assert!(named >= 9, "{named}");
}

#[test]
fn names_and_aliases_are_unique() {
    let mut seen = HashSet::new();
    for name in entries().iter().flat_map(Entry::names) {
        assert!(seen.insert(name), "{name} twice");
    }
    let repositories: HashSet<&str> = entries().iter().map(|e| e.repository.as_str()).collect();
    assert_eq!(repositories.len(), entries().len());
}

#[test]
fn an_entry_is_found_by_name_and_alias_in_any_case() {
    assert_eq!(find("deepseek-r1").unwrap().name, "deepseek-r1:1.5b");
    assert_eq!(find("DeepSeek-R1:8B").unwrap().original, "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B");
    assert_eq!(find("deepseek-r1:8b-llama").unwrap().architecture, "llama");
    assert_eq!(find("deepseek-r1:9b"), None);
    for size in ["1.5b", "7b", "8b", "14b", "32b", "70b", "671b"] {
        assert!(find(&format!("deepseek-r1:{size}")).is_some(), "{size}");
    }
}

#[test]
fn a_short_name_may_end_in_a_quantization() {
    let found = |name: &str| find_quantized(name).map(|(e, q)| (e.name.as_str(), q));
    assert_eq!(found("deepseek-r1:7b-q8_0"), Some(("deepseek-r1:7b", Some("Q8_0".into()))));
    assert_eq!(found("deepseek-r1-Q4_K_M"), Some(("deepseek-r1:1.5b", Some("Q4_K_M".into()))));
    assert_eq!(found("deepseek-r1:8b-llama-q6_k"), Some(("deepseek-r1:8b-llama", Some("Q6_K".into()))));
    assert_eq!(found("qwen3:4b-thinking-2507"), Some(("qwen3:4b-thinking-2507", None)));
    assert_eq!(found("qwen3:4b-ud-q4_k_xl"), Some(("qwen3:4b", Some("UD-Q4_K_XL".into()))));
    assert_eq!(found("deepseek-r1:7b-fast"), None);
}

#[test]
fn a_mistyped_name_suggests_the_nearest() {
    assert_eq!(nearest("depseek-r1")[0], "deepseek-r1");
    assert_eq!(nearest("DeepSeek-R1:7")[0], "deepseek-r1:7b");
    assert!(nearest("qwen3:9b").contains(&"qwen3:8b"));
    assert!(nearest("zzzz").is_empty());
}

#[test]
fn weight_estimates_agree_with_published_files() {
    // Sizes of the files in the entries' repositories, bytes.
    for (name, quantization, published) in [
        ("deepseek-r1:1.5b", "Q4_K_M", 1_117_321_312u64),
        ("deepseek-r1:1.5b", "Q8_0", 1_894_532_416),
        ("deepseek-r1:7b", "Q4_K_M", 4_683_073_248),
        ("deepseek-r1:7b", "Q8_0", 8_098_524_896),
        ("deepseek-r1:8b-llama", "Q4_K_M", 4_920_737_216),
        ("deepseek-r1:8b-llama", "Q8_0", 8_540_773_088),
        ("deepseek-r1:14b", "Q4_K_M", 8_988_109_984),
        ("qwen3:8b", "Q4_K_M", 5_027_783_488),
        ("qwen3:4b", "Q4_K_M", 2_497_281_120),
        ("deepseek-r1:671b", "Q4_K_M", 404_940_000_000),
        ("qwen3:30b-a3b", "Q4_K_M", 18_554_000_000),
        ("qwen3:235b-a22b", "Q4_K_M", 142_150_000_000),
        ("gpt-oss:20b", "MXFP4", 12_101_000_000),
        ("gpt-oss:120b", "MXFP4", 63_372_000_000),
        ("phi-4-reasoning:14b", "Q4_K_M", 9_052_000_000),
        ("magistral:24b", "Q4_K_M", 14_324_000_000),
    ] {
        let ratio = find(name).unwrap().weight_bytes(quantization).unwrap() as f64 / published as f64;
        assert!((ratio - 1.0).abs() < 0.03, "{name} {quantization}: {ratio}");
    }
    assert_eq!(find("qwen3:8b").unwrap().weight_bytes("IQ4_XS"), None);
}

#[test]
fn kv_grows_with_the_context_also_beyond_the_models_own() {
    let r1 = find("deepseek-r1").unwrap();
    assert_eq!(r1.kv_bytes(4096), 2 * 28 * 4096 * 2 * 2 * 128);
    assert_eq!(r1.kv_bytes(2_000_000), 2 * 28 * 2_000_000 * 2 * 2 * 128);
    assert_eq!(r1.kv_bytes(usize::MAX), u64::MAX);
    assert_eq!(find("deepseek-r1:671b").unwrap().kv_bytes(1), 2 * 61 * (512 + 64));
}

#[test]
fn the_largest_model_that_fits_is_one_the_decoder_runs() {
    let name = |gib: u64| largest_that_fits(gib << 30, 4096).map(|e| e.name.as_str());
    assert_eq!(name(0), None);
    assert_eq!(name(2), Some("deepseek-r1:1.5b"));
    assert_eq!(name(5), Some("deepseek-r1:7b"));
    assert_eq!(name(6), Some("glm-z1:9b"));
    assert_eq!(name(16), Some("magistral:24b"));
    assert_eq!(name(100), Some("gpt-oss:120b"));
    assert_eq!(name(1000), Some("deepseek-r1:671b"));
    assert_eq!(largest_that_fits(1000 << 30, usize::MAX).unwrap().name, "deepseek-r1:671b");
}

#[test]
fn an_architecture_is_known_by_ggufs_name_and_by_config_jsons() {
    for name in ["deepseek2", "deepseek_v3", "gpt-oss", "gpt_oss", "qwen3moe", "mistral", "phi3", "glm4"] {
        assert_eq!(runnable_architecture(name), Ok(()), "{name}");
    }
    let error = runnable_architecture("rwkv7").unwrap_err();
    assert!(error.contains("rwkv7") && error.contains("llama, qwen2, qwen3, qwen3moe"), "{error}");
}

#[test]
fn a_model_loaded_by_path_is_known_by_its_metadata() {
    let name = |architecture, names: &[&str]| for_metadata(architecture, names).map(|e| e.name.as_str());
    assert_eq!(name("qwen2", &["DeepSeek R1 Distill Qwen 7B"]), Some("deepseek-r1:7b"));
    assert_eq!(
        name("qwen2", &["Model", "DeepSeek-R1-Distill-Qwen-1.5B-Q8_0.gguf"]),
        Some("deepseek-r1:1.5b")
    );
    assert_eq!(name("qwen3", &["Deepseek-R1-0528-Qwen3-8B"]), Some("deepseek-r1:8b"));
    assert_eq!(name("qwen3", &["Qwen3-8B-UD-Q4_K_XL.gguf"]), Some("qwen3:8b"));
    assert_eq!(name("gpt-oss", &["Gpt Oss 20b"]), Some("gpt-oss:20b"));
    assert_eq!(name("phi3", &["Phi 4 Mini Reasoning"]), Some("phi-4-mini-reasoning:3.8b"));
    assert_eq!(name("qwen3moe", &["Qwen3-30B-A3B-Thinking-2507"]), Some("qwen3:30b-a3b-thinking-2507"));
    assert_eq!(name("qwen2", &["agentica-org_DeepScaleR-1.5B-Preview-f16.gguf"]), Some("deepscaler:1.5b"));
    // Another model that merely has such a name in its own, and another architecture.
    assert_eq!(name("qwen3", &["Qwen3-4B-Instruct-2507"]), None);
    assert_eq!(name("qwen2", &["Qwen2.5 Coder 1.5B Instruct"]), None);
    assert_eq!(name("llama", &["DeepSeek R1 Distill Qwen 7B"]), None);
    assert_eq!(name("qwen2", &["", "-", "Q4_K_M.gguf"]), None);
}

proptest::proptest! {
    #[test]
    fn no_name_makes_a_look_up_panic(name in "(\\PC|UD-|Q4_K|-|gguf|[.]){0,12}") {
        let _ = (quantization::of_path(&name), find_quantized(&name), nearest(&name), for_metadata("qwen2", &[&name]));
    }
}
