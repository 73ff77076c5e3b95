use super::*;
use crate::cli::args::{self, Command};

fn plan(line: &str) -> Result<Plan> {
    let words = ["pensive", "bench", "m"].into_iter().chain(line.split_whitespace());
    match args::parse(words.map(Into::into)).unwrap_or_else(|e| panic!("{e}")).command {
        Some(Command::Bench(args)) => Plan::new(&args),
        other => panic!("{other:?}"),
    }
}

fn names(plan: &Plan) -> Vec<String> {
    plan.tests.iter().map(SpeedTest::to_string).collect()
}

#[test]
fn without_flags_a_prompt_and_a_generation_are_measured_five_times() {
    let plan = plan("").unwrap();
    assert_eq!(names(&plan), ["pp512", "tg128"]);
    assert_eq!((plan.repetitions, plan.threads, plan.context), (vec![5], vec![None], 512));
}

#[test]
fn every_combination_of_the_lists_is_measured_and_depths_ascend() {
    let plan = plan("-p 8,16 -n 4 -d 64,0 -t 1,2 -r 3").unwrap();
    assert_eq!(names(&plan), ["pp8", "pp16", "tg4", "pp8@d64", "pp16@d64", "tg4@d64"]);
    assert_eq!((plan.threads, plan.context), (vec![Some(1), Some(2)], 80));
}

#[test]
fn generations_are_measured_with_each_number_of_sequences() {
    let plan = plan("-p 8 -n 4 --sequences 1,8").unwrap();
    assert_eq!(names(&plan), ["pp8", "tg4", "tg4x8"]);
    assert_eq!((plan.sequences, plan.context), (8, 8));
}

#[test]
fn zero_skips_a_test() {
    assert_eq!(names(&plan("-p 0 -d 32").unwrap()), ["tg128@d32"]);
    assert_eq!(names(&plan("-n 0").unwrap()), ["pp512"]);
    assert!(plan("-p 0 -n 0").unwrap_err().to_string().contains("nothing is left"));
}

#[test]
fn a_context_that_does_not_hold_a_test_is_refused() {
    let message = plan("-d 4096 -c 4300").unwrap_err().to_string();
    assert!(message.contains("--context 4300") && message.contains("pp512@d4096 takes 4608"), "{message}");
    assert_eq!(plan("-c 8192").unwrap().context, 8192);
    assert!(plan(&format!("-d {}", usize::MAX)).is_ok(), "no overflow; memory says no later");
}

fn row() -> Row {
    let limits = RowLimits {
        tokens_per_second: Some(20.0),
        read_bytes_per_second: Some(2e10),
        int8_products_per_second: Some(5e11),
    };
    Row {
        test: "tg128@d4096".into(),
        model: "a, \"model\"".into(),
        model_sha256: Some("00".into()),
        size: 1 << 30,
        parameters: 1_780_000_000,
        backend: "cpu".into(),
        isa: "avx2".into(),
        threads: 2,
        kv_type: "f16".into(),
        version: "0.1.0",
        n_prompt: 0,
        n_gen: 128,
        n_depth: 4096,
        n_sequences: 1,
        tokens_per_second: Summary::of(vec![9.0, 11.0, 10.0]),
        share_of_limit: Some(0.5),
        limits,
    }
}

#[test]
fn the_table_has_the_columns_of_llama_bench_then_median_and_share() {
    let small = Row { parameters: 134_520_000, share_of_limit: None, test: "pp8".into(), ..row() };
    let table = markdown(&[row(), small]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(
        lines,
        [
            "| model      |     size |   params | backend  | threads |          test |          t/s | median | of the limit |",
            "| ---------- | -------: | -------: | -------- | ------: | ------------: | -----------: | -----: | -----------: |",
            "| a, \"model\" | 1.00 GiB |   1.78 B | cpu avx2 |       2 | tg128 @ d4096 | 10.00 ± 1.00 |  10.00 |          50% |",
            "| a, \"model\" | 1.00 GiB | 134.52 M | cpu avx2 |       2 |           pp8 | 10.00 ± 1.00 |  10.00 |      unknown |",
        ]
    );
}

#[test]
fn the_table_tells_the_type_of_the_cache_where_it_is_not_the_default() {
    let table = markdown(&[row(), Row { kv_type: "q8_0".into(), ..row() }]);
    let cells = table.lines().map(|line| line.split('|').nth(6).unwrap().trim());
    assert_eq!(cells.collect::<Vec<_>>(), ["type_kv", "------:", "f16", "q8_0"]);
}

#[test]
fn an_object_has_the_test_its_conditions_and_all_samples() {
    let object: Value = serde_json::from_str(&json_line(&row()).unwrap()).unwrap();
    assert_eq!((&object["test"], &object["n_depth"]), (&"tg128@d4096".into(), &4096.into()));
    assert_eq!((&object["n_prompt"], &object["n_gen"]), (&0.into(), &128.into()));
    let speed = &object["tokens_per_second"];
    for (key, value) in [("median", 10.0), ("min", 9.0), ("max", 11.0), ("mean", 10.0), ("stddev", 1.0)] {
        assert_eq!(speed[key], value, "{key}");
    }
    assert_eq!(speed["samples"], serde_json::json!([9.0, 11.0, 10.0]));
    let array: Value = serde_json::from_str(&pretty_json(&[row(), row()]).unwrap()).unwrap();
    assert_eq!(array, serde_json::json!([object, object]));
}

#[test]
fn lines_of_values_have_names_above_and_quotes_where_needed() {
    let text = csv(&[row(), row()]).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[0].starts_with("test,model,model_sha256,size,"), "{text}");
    assert!(lines[0].contains("tokens_per_second_median"), "{text}");
    assert!(lines[1].starts_with("tg128@d4096,\"a, \"\"model\"\"\",00,1073741824,"), "{text}");
    assert!(lines[1].contains(",9.0 11.0 10.0,0.5,20.0,"), "{text}");
}

#[test]
fn a_path_is_called_by_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qwen2.5-q4_k_m.gguf");
    std::fs::write(&path, "").unwrap();
    assert_eq!(short_name(path.to_str().unwrap()), "qwen2.5-q4_k_m");
    assert_eq!(short_name("deepseek-r1:1.5b"), "deepseek-r1:1.5b");
}
