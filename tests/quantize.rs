//! Any checkpoint becomes a GGUF file: of the same values, or of others that are near.

mod common;

use std::path::{Path, PathBuf};

use base64::Engine as _;
use common::{Reference, SMOLLM2, fixture, kl, real_model};
use pensive::api::{Quantized, quantize};
use pensive::backend::cpu::{CpuBackend, CpuOptions};
use pensive::backend::{KvType, Plan};
use pensive::checkpoint::{Checkpoint, Metadata};
use pensive::engine::{Engine, Feed, Sequence, Wants};
use pensive::model::{Decoder, Hyperparameters};
use pensive::quant::Mix;
use pensive::text::{Special, Tokenizer};
use pensive::{CancelHandle, Model, Options, Prompt};
use serde_json::json;

const ROWS: usize = 48;

/// The fixtures whose tensors all have a place in GGUF as they are.
const ARCHITECTURES: [&str; 14] = [
    "deepseek-v3",
    "deepseek-v3-noqlora",
    "deepseek-v3-yarn",
    "glm4",
    "gpt-oss",
    "llama-tied",
    "llama3-rope",
    "mistral",
    "phi3",
    "qwen2",
    "qwen2-tied",
    "qwen3",
    "qwen3-moe",
    "qwen3-yarn",
];

fn write(from: &Path, to: &Path, mix: &str) -> Quantized {
    let checkpoint = Checkpoint::open(from).unwrap();
    quantize(&checkpoint, Mix::parse(mix).unwrap(), to, &CancelHandle::new(), |_, _| ()).unwrap()
}

fn logits(path: &Path, ids: &[u32]) -> Vec<f32> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let hyperparameters = Hyperparameters::read(&checkpoint).unwrap();
    let mut backend = CpuBackend::new(CpuOptions::default()).unwrap();
    let decoder = Decoder::load(&checkpoint, &hyperparameters, &mut backend, &mut |_, _| {}).unwrap();
    let plan = Plan { rows: ROWS, logit_rows: ROWS, sequences: 1, pages: 2, kv_type: KvType::F32 };
    let mut engine = Engine::new(Box::new(backend), decoder, plan).unwrap();
    let mut sequence = Sequence::new();
    let feed = Feed { sequence: &mut sequence, tokens: ids, wants: Wants::All };
    engine.step(&mut [feed]).unwrap().to_vec()
}

/// Folder, token ids and reference logits of each architecture.
fn each_architecture(mut test: impl FnMut(&str, &Path, &[u32], &[f32])) {
    for name in ARCHITECTURES {
        let Some(folder) = fixture(&format!("arch/{name}")) else { return };
        let reference = Reference::open(&folder.join("reference.safetensors"));
        test(name, &folder, &reference.ids("input_ids"), &reference.floats("logits"));
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn an_f32_repository_as_gguf_has_the_same_logits() {
    let folder = tempfile::tempdir().unwrap();
    let (once, twice) = (folder.path().join("once.gguf"), folder.path().join("twice.gguf"));
    each_architecture(|name, repository, ids, expected| {
        write(repository, &once, "F32");
        write(&once, &twice, "F32");
        let got = logits(&once, ids);
        assert_eq!(bits(&got), bits(&logits(&twice, ids)), "{name}: from GGUF to GGUF");
        if name.starts_with("llama") || name == "mistral" {
            // dimensions of queries and keys stand in another order, so their products are summed in another
            let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-3, "{name}: {worst}");
        } else {
            assert_eq!(bits(&got), bits(&logits(repository, ids)), "{name}: from safetensors to GGUF");
        }
    });
}

/// Where a router nearly hesitates, another expert changes all logits of a position: of some models with experts the rounded
/// weights alone, computed with in f32, are further away than that. Then the kernels may not add to it.
#[test]
fn q8_0_stays_near_or_as_near_as_its_weights_in_f32() {
    let folder = tempfile::tempdir().unwrap();
    let [file, plain] = ["q8_0.gguf", "plain.gguf"].map(|name| folder.path().join(name));
    each_architecture(|name, repository, ids, expected| {
        write(repository, &file, "Q8_0");
        write(&file, &plain, "F32");
        let width = expected.len() / ids.len();
        let [rounded, by_weights] = [&file, &plain].map(|file| {
            let got = logits(file, ids);
            let rows = expected.chunks(width).zip(got.chunks(width));
            rows.map(|(p, q)| kl(p, q)).sum::<f64>() / ids.len() as f64
        });
        println!("{name}: KL {rounded:.1e}, of the weights alone {by_weights:.1e}");
        assert!(rounded < 1e-2 || rounded < 1.25 * by_weights, "{name}: KL {rounded}, {by_weights}");
        let has_experts = name.starts_with("deepseek") || name.contains("moe") || name == "gpt-oss";
        assert!(has_experts || rounded < 1e-2, "{name}: KL {rounded}");
    });
}

#[test]
fn a_real_model_answers_alike_in_other_types() {
    let Some(path) = real_model(SMOLLM2.1) else { return };
    let folder = tempfile::tempdir().unwrap();
    let answer = |path: &Path| {
        let model = Model::builder(path.to_str().unwrap()).context(256).load().unwrap();
        let options = Options::new().temperature(0.0).max_tokens(16);
        let prompt = model.tokenizer().encode("The capital of France is", Special::Text).unwrap();
        model.generate(Prompt::Tokens(prompt), &options).unwrap().finish().unwrap().answer
    };
    for mix in ["Q8_0", "Q5_K_M"] {
        let file: PathBuf = folder.path().join(format!("{mix}.gguf"));
        let written = write(&path, &file, mix);
        assert!(written.bits_per_weight < 9.0, "{written:?}");
        let answer = answer(&file);
        assert!(answer.contains("Paris"), "{mix}: {answer}");
    }
}

/// A fixture with a tokenizer beside it; the file's name is kept.
fn with_tokenizer(fixture: &Path, tokenizer: &str, text: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture.join(name), folder.path().join(name)).unwrap();
    }
    std::fs::write(folder.path().join(tokenizer), text).unwrap();
    folder
}

fn tokenizer(path: &Path) -> Tokenizer {
    Tokenizer::from_metadata(&Checkpoint::open(path).unwrap().metadata).unwrap()
}

#[test]
fn published_tokenizers_cut_words_alike_from_gguf() {
    let text = "I'LL pay 12345 €!\r\n\n  深度求索カタカナ Ωmega fn main() { x[0] += 1; }  \tend";
    for (repository, file, pre) in [
        ("deepseek-v3", "deepseek-v3.tokenizer.json", "deepseek-v3"),
        ("llama3-rope", "llama3.tokenizer.json", "llama-bpe"),
    ] {
        let (Some(fixture), Some(file)) = (fixture(&format!("arch/{repository}")), real_model(file)) else {
            return;
        };
        let folder = with_tokenizer(&fixture, "tokenizer.json", &std::fs::read(file).unwrap());
        let gguf = folder.path().join("model.gguf");
        assert!(write(folder.path(), &gguf, "Q8_0").has_vocabulary);
        let Metadata::Gguf(metadata) = Checkpoint::open(&gguf).unwrap().metadata else {
            panic!("it is GGUF")
        };
        assert_eq!(metadata.require::<&str>("tokenizer.ggml.pre").unwrap(), pre);
        let ids = [folder.path(), &gguf].map(|path| tokenizer(path).encode(text, Special::Parse).unwrap());
        assert_eq!(ids[0], ids[1], "{repository}");
    }
}

#[test]
fn a_repository_with_tekken_json_alone_gets_its_vocabulary_and_one_with_nothing_says_so() {
    let Some(fixture) = fixture("arch/mistral") else { return };
    let vocab: Vec<_> = (0..=255u8)
        .map(|byte| vec![byte])
        .chain(["th", "thi"].map(|word| word.as_bytes().to_vec()))
        .map(|bytes| json!({ "token_bytes": base64::engine::general_purpose::STANDARD.encode(bytes) }))
        .collect();
    let tekken = |pattern: &str| {
        json!({
            "config": { "pattern": pattern, "default_vocab_size": 278, "default_num_special_tokens": 20 },
            "vocab": vocab,
        })
        .to_string()
    };
    let pattern = concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
        r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    let folder = with_tokenizer(&fixture, "tekken.json", tekken(pattern).as_bytes());
    let gguf = folder.path().join("model.gguf");
    assert!(write(folder.path(), &gguf, "Q8_0").has_vocabulary);
    let [own, written] = [folder.path(), &gguf].map(tokenizer);
    let ids = written.encode("[INST]thi this é\n</s>", Special::Parse).unwrap();
    assert_eq!(ids, own.encode("[INST]thi this é\n</s>", Special::Parse).unwrap());
    assert_eq!((ids[1], written.bos(), written.ends()), (20 + 257, own.bos(), own.ends()));

    assert!(!write(&fixture, &gguf, "Q8_0").has_vocabulary);
    let other = with_tokenizer(&fixture, "tekken.json", tekken(r"\p{L}+|[^\p{L}]").as_bytes());
    let checkpoint = Checkpoint::open(other.path()).unwrap();
    let refused = quantize(&checkpoint, Mix::parse("F16").unwrap(), &gguf, &CancelHandle::new(), |_, _| ());
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("tekken.json") && message.contains("no name"), "{message}");
}

#[test]
fn what_is_not_whole_does_not_appear() {
    let Some(repository) = fixture("arch/qwen2") else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    let checkpoint = Checkpoint::open(&repository).unwrap();
    let stopped = CancelHandle::new();
    stopped.cancel();
    let stopped = quantize(&checkpoint, Mix::parse("Q8_0").unwrap(), &file, &stopped, |_, _| ());
    assert!(stopped.unwrap_err().to_string().contains("model.gguf"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
}

#[test]
fn a_repository_with_a_tensor_that_has_no_place_in_gguf_is_refused_with_its_name() {
    let Some(repository) = fixture("arch/qwen2") else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(repository.join("config.json"), folder.path().join("config.json")).unwrap();
    let bytes = std::fs::read(repository.join("model.safetensors")).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = stored.tensors();
    let extra = tensors[0].1.clone();
    tensors.push(("model.layers.0.self_attn.rotary.weight".into(), extra));
    safetensors::serialize_to_file(tensors, None, &folder.path().join("model.safetensors")).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let to = folder.path().join("model.gguf");
    let refused = quantize(&checkpoint, Mix::parse("F16").unwrap(), &to, &CancelHandle::new(), |_, _| ());
    assert!(refused.unwrap_err().to_string().contains("model.layers.0.self_attn.rotary.weight"));
    assert!(!to.exists());
}

#[test]
fn experts_in_mxfp4_stay_as_they_are_where_the_mix_says_so() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/arch/gpt-oss-mxfp4");
    let reference = Reference::open(&repository.join("reference.safetensors"));
    let ids = reference.ids("input_ids");
    let folder = tempfile::tempdir().unwrap();
    let (file, plain) = (folder.path().join("mxfp4.gguf"), folder.path().join("f32.gguf"));
    let written = write(&repository, &file, "mxfp4_moe");
    write(&repository, &plain, "f32");
    let layers = Hyperparameters::read(&Checkpoint::open(&repository).unwrap()).unwrap().layers;
    assert!(written.types.contains(&("MXFP4".to_owned(), 3 * layers)), "{:?}", written.types);
    let [quantized, plain] = [&file, &plain].map(|file| Checkpoint::open(file).unwrap());
    let experts: Vec<_> =
        plain.tensors.values().filter(|tensor| tensor.name.ends_with("_exps.weight")).collect();
    assert_eq!(experts.len(), 3 * layers);
    for tensor in experts {
        let got = quantized.tensor(&tensor.name).unwrap().values();
        assert_eq!(bits(&got), bits(&tensor.values()), "{}", tensor.name);
    }
    // all else is Q8_0
    let width = reference.floats("logits").len() / ids.len();
    let (got, stored) = (logits(&file, &ids), logits(&repository, &ids));
    let mut kls: Vec<f64> = stored.chunks(width).zip(got.chunks(width)).map(|(p, q)| kl(p, q)).collect();
    kls.sort_by(f64::total_cmp);
    println!("KL, median {:.1e}", kls[kls.len() / 2]);
    assert!(kls[kls.len() / 2] < 1e-2, "{kls:?}");
}
