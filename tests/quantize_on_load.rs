//! Plain floats are quantized while they are loaded: what the model says stays near, and what depends on the weights knows.

mod common;

use std::path::{Path, PathBuf};

use common::{QWEN_05B, Reference, SMOLLM2, fixture, kl, real_model, repository};
use pensive::api::{Importance, Quantize, quantize, quantize_by};
use pensive::backend::cpu::{CpuBackend, CpuOptions};
use pensive::backend::{KvType, Plan};
use pensive::checkpoint::{Checkpoint, Metadata};
use pensive::engine::{Engine, Feed, Sequence, Wants};
use pensive::model::{Conversion, Decoder, Hyperparameters};
use pensive::quant::Mix;
use pensive::text::Special;
use pensive::{CancelHandle, Model, Options, Prompt};

const ROWS: usize = 48;

fn engine(checkpoint: &Checkpoint, mix: Option<&str>) -> Engine {
    let h = Hyperparameters::read(checkpoint).unwrap();
    let mut backend = CpuBackend::new(CpuOptions::default()).unwrap();
    let conversion = mix.map(|mix| Conversion::new(Mix::parse(mix).unwrap(), checkpoint, &h));
    let decoder =
        Decoder::load_as(checkpoint, &h, conversion.as_ref(), &mut backend, &mut |_, _| {}).unwrap();
    let plan = Plan { rows: ROWS, logit_rows: ROWS, sequences: 1, pages: 2, kv_type: KvType::F32 };
    Engine::new(Box::new(backend), decoder, plan).unwrap()
}

fn logits(engine: &mut Engine, ids: &[u32]) -> Vec<f32> {
    let mut sequence = Sequence::new();
    engine.step(&mut [Feed { sequence: &mut sequence, tokens: ids, wants: Wants::All }]).unwrap().to_vec()
}

/// The median over positions: where a router nearly hesitates, another expert changes all logits of one.
fn median_kl(reference: &[f32], logits: &[f32], width: usize) -> f64 {
    let rows = reference.chunks(width).zip(logits.chunks(width));
    let mut kls: Vec<f64> = rows.map(|(p, q)| kl(p, q)).collect();
    kls.sort_by(f64::total_cmp);
    kls[kls.len() / 2]
}

#[test]
fn every_architecture_stays_near_when_it_is_quantized_to_q8_0_while_it_is_loaded() {
    let own = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/arch").join(name);
    let shared = ["qwen2-tied", "llama3-rope", "phi3", "glm4", "qwen3-moe", "deepseek-v3", "gpt-oss"];
    let mut folders: Vec<PathBuf> =
        shared.iter().filter_map(|name| fixture(&format!("arch/{name}"))).collect();
    folders.extend(["deepseek-v3-fp8", "gpt-oss-mxfp4"].map(own));
    for folder in folders {
        let reference = Reference::open(&folder.join("reference.safetensors"));
        let (ids, expected) = (reference.ids("input_ids"), reference.floats("logits"));
        let ids = &ids[..ids.len().min(ROWS)];
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let mut engine = engine(&checkpoint, Some("Q8_0"));
        let got = logits(&mut engine, ids);
        let kl = median_kl(&expected, &got, got.len() / ids.len());
        let (name, work) = (folder.file_name().unwrap().display(), engine.decoder().work(1, 1));
        println!("{name}: KL {kl:.1e}");
        assert!(kl < 1e-2, "{name}: KL {kl}");
        let plain = self::engine(&checkpoint, None).decoder().work(1, 1);
        assert!(work.bytes < plain.bytes, "{name}: {} bytes, {} as stored", work.bytes, plain.bytes);
    }
}

#[test]
fn a_sequence_belongs_to_the_quantization_that_it_was_saved_with() {
    let Some(folder) = fixture("arch/qwen2") else { return };
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let mut saved = Vec::new();
    let mut first = engine(&checkpoint, Some("Q8_0"));
    let mut sequence = Sequence::new();
    first.step(&mut [Feed { sequence: &mut sequence, tokens: &[1, 2, 3], wants: Wants::Last }]).unwrap();
    first.save(&sequence, &mut saved).unwrap();
    assert_eq!(engine(&checkpoint, Some("Q8_0")).restore(&saved[..]).unwrap().tokens(), [1, 2, 3]);
    for other in [None, Some("Q4_0")] {
        let refused = engine(&checkpoint, other).restore(&saved[..]).unwrap_err().to_string();
        assert!(refused.contains("another model"), "{refused}");
    }
}

fn load(path: &Path, to: Quantize) -> Model {
    Model::builder(path.to_str().unwrap()).context(256).quantize(to).load().unwrap()
}

#[test]
#[cfg(feature = "pocket")]
fn a_receipt_says_what_the_weights_were_quantized_to_and_a_replay_wants_the_same() {
    let load = |to: Quantize| Model::builder("pocket").logit_rows(64).quantize(to).load().unwrap();
    let to: Quantize = "q4_0".parse().unwrap();
    let model = load(to);
    assert_eq!(model.quantized().unwrap().name, "Q4_0");
    let options = Options::new().seed(1).max_tokens(40).record(true);
    let stats = model.generate(Prompt::raw("1+2="), &options).unwrap().finish().unwrap();
    let receipt = pensive::api::Receipt::new(&model, &[stats], |_, _| ()).unwrap();
    let receipt = pensive::api::Receipt::parse(&receipt.to_json()).unwrap();
    assert_eq!(receipt.model.quantized.as_deref(), Some("Q4_0"));
    let verdict = receipt.verify(&load(to), false, |_, _| ()).unwrap();
    assert!(verdict.is_identical(), "{verdict}");
    let refused = receipt.verify(&load(Quantize::Auto), false, |_, _| ()).unwrap_err().to_string();
    assert!(refused.contains("weights were quantized to Q4_0"), "{refused}");
}

#[test]
fn a_repository_of_smollm2_answers_alike_quantized_and_as_gguf() {
    answers_alike(SMOLLM2.1);
}

#[test]
fn a_repository_of_qwen_answers_alike_quantized_and_as_gguf() {
    answers_alike(QWEN_05B.1);
}

/// A real model, as it stands on the hub: in bf16, in two shards.
fn answers_alike(name: &str) {
    let Some(original) = real_model(name) else { return };
    let folder = tempfile::tempdir().unwrap();
    repository::write(&original, folder.path());
    let (gguf, stored) = (load(&original, Quantize::Auto), load(folder.path(), Quantize::Never));

    let text = "Hello 1234, I'LL <|im_start|> be\n\n  là: 深度求索!";
    let ids = |model: &Model, how| model.tokenizer().encode(text, how).unwrap();
    for how in [Special::Parse, Special::Text] {
        assert_eq!(ids(&gguf, how), ids(&stored, how), "{how:?}");
    }
    assert_eq!(gguf.template_source(), stored.template_source());
    assert_eq!(gguf.tokenizer().ends(), stored.tokenizer().ends());

    // two tokens: further on several words may be as likely as each other
    let answer = |model: &Model| {
        let prompt = model.tokenizer().encode("The capital of France is", Special::Text).unwrap();
        let options = Options::new().temperature(0.0).max_tokens(2);
        model.generate(Prompt::Tokens(prompt), &options).unwrap().finish().unwrap().answer
    };
    let expected = answer(&stored);
    assert!(expected.contains("Paris"), "{expected}");
    let quantized = load(folder.path(), Quantize::To(Mix::parse("q8_0").unwrap()));
    assert!(quantized.weight_bytes() < stored.weight_bytes() * 6 / 10);
    assert_eq!(answer(&quantized), expected, "quantized while it is loaded");
    let all_logits = |model: &Model| {
        let mut all = Vec::new();
        model.evaluate(&ids(model, Special::Text), |_, row| all.extend_from_slice(row)).unwrap();
        all
    };
    let mean_kl = |model: &Model| {
        let (expected, got, width) = (all_logits(&stored), all_logits(model), stored.vocabulary());
        let rows = expected.chunks(width).zip(got.chunks(width));
        rows.map(|(p, q)| kl(p, q)).sum::<f64>() / (got.len() / width) as f64
    };
    let divergence = mean_kl(&quantized);
    println!("{name}: KL {divergence:.1e}");
    assert!(divergence < 1e-2, "quantized while it is loaded: KL {divergence}");

    let file = folder.path().join("q8_0.gguf");
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    quantize(&checkpoint, Mix::parse("q8_0").unwrap(), &file, &CancelHandle::new(), |_, _| ()).unwrap();
    let written = load(&file, Quantize::Auto);
    assert_eq!(answer(&written), expected, "written as GGUF");
    let divergence = mean_kl(&written);
    assert!(divergence < 1e-2, "written as GGUF: KL {divergence}");
    for how in [Special::Parse, Special::Text] {
        assert_eq!(ids(&gguf, how), ids(&written, how), "{how:?}");
    }
    let same = |key: &str| {
        let values = [original.as_path(), &file].map(|path| match Checkpoint::open(path).unwrap().metadata {
            Metadata::Gguf(pairs) => pairs.get(key).cloned(),
            Metadata::HuggingFace { .. } => None,
        });
        assert!(values[0].is_some() && values[0] == values[1], "{key}");
    };
    for part in ["model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id"] {
        same(&format!("tokenizer.ggml.{part}"));
    }
    same("tokenizer.chat_template");
}

/// What is important in a text is kept finer: hardly more bits, a smaller divergence.
#[test]
fn calibrated_by_a_text_a_model_stays_nearer_to_what_it_was() {
    let Some(original) = real_model(SMOLLM2.1) else { return };
    let text = concat!(include_str!("../README.md"), include_str!("../ARCHITECTURE.md"));
    let checkpoint = Checkpoint::open(&original).unwrap();
    let (seen, unseen) = text.split_at(text.floor_char_boundary(8000));
    let importance = Importance::measure(&checkpoint, seen, |_, _| ()).unwrap();
    assert_eq!(importance.len(), 30 * 7 + 1, "all matrices, the output's too");
    let folder = tempfile::tempdir().unwrap();
    let (plain, by_text) = (folder.path().join("plain.gguf"), folder.path().join("by-text.gguf"));
    let (mix, go_on) = (Mix::parse("q4_0").unwrap(), CancelHandle::new());
    let first = quantize(&checkpoint, mix, &plain, &go_on, |_, _| ()).unwrap();
    let second = quantize_by(&checkpoint, mix, Some(&importance), &by_text, &go_on, |_, _| ()).unwrap();
    assert!(second.bytes < first.bytes / 100 * 101, "the first layers get a little more");

    let model = load(&original, Quantize::Auto);
    let ids = model.tokenizer().encode(unseen, Special::Text).unwrap();
    let ids = &ids[..256.min(ids.len())];
    let logits = |path: &Path| {
        let mut all = Vec::new();
        load(path, Quantize::Auto).evaluate(ids, |_, row| all.extend_from_slice(row)).unwrap();
        all
    };
    let expected = logits(&original);
    let width = model.vocabulary();
    let mean_kl = |path: &Path| {
        let got = logits(path);
        let rows = expected.chunks(width).zip(got.chunks(width));
        rows.map(|(p, q)| kl(p, q)).sum::<f64>() / ids.len() as f64
    };
    let (plain, by_text) = (mean_kl(&plain), mean_kl(&by_text));
    println!("KL {plain:.4}, by importance {by_text:.4}");
    assert!(by_text < 0.9 * plain, "KL {plain:.4}, by importance {by_text:.4}");
}
