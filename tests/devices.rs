//! What a device beside the CPU does, on candle's CPU device; NVIDIA's kernels are run by tests/cuda.rs.

mod common;

use std::path::Path;
use std::sync::LazyLock;

use common::tiny::{self, Architecture, Written};
use common::{SMOLLM2, fixture, real_model};
use pensive::api::measure::{Agreement, Reference, Trial, agreement, divergence};
use pensive::api::{Receipt, VoteEvent, VoteOptions};
use pensive::backend::candle::{Accelerator, CandleBackend};
use pensive::backend::cpu::{CpuBackend, CpuOptions};
use pensive::backend::split::SplitBackend;
use pensive::backend::{Backend, KvType};
use pensive::engine::{Engine, Feed, Sequence, Wants};
use pensive::quant::BlockType;
use pensive::{DeviceChoice, Error, Finish, Model, Options};

static POCKET: LazyLock<Model> = LazyLock::new(|| {
    let builder = Model::builder("pocket").device(DeviceChoice::Candle).sequences(4);
    builder.load().expect("pocket is a part of pensive")
});

const QUESTION: &str = "What is 5834 - 962?";

fn candle() -> Box<dyn Backend> {
    Box::new(CandleBackend::new(Accelerator::candle()))
}

fn cpu() -> Box<dyn Backend> {
    Box::new(CpuBackend::new(CpuOptions::default()).unwrap())
}

/// Logits after all of some tokens.
fn logits(engine: &mut Engine, sequence: &mut Sequence, tokens: &[u32]) -> Vec<f32> {
    engine.step(&mut [Feed { sequence, tokens, wants: Wants::All }]).unwrap().to_vec()
}

#[track_caller]
fn near(got: &[f32], expected: &[f32], limit: f32) {
    assert_eq!(got.len(), expected.len());
    let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < limit, "logits differ by {worst}");
}

fn tokens(len: usize) -> Vec<u32> {
    (0..len).map(|i| (i * 31 % tiny::VOCABULARY) as u32).collect()
}

#[test]
fn pocket_answers_on_the_device_as_on_the_cpu() {
    let cpu = Model::builder("pocket").device(DeviceChoice::Cpu).load().unwrap();
    assert_eq!((POCKET.device().kind.as_str(), cpu.device().kind.as_str()), ("candle", "cpu"));
    let greedy = Options::new().temperature(0.0);
    let [here, there] =
        [&*POCKET, &cpu].map(|model| model.generate(QUESTION, &greedy).unwrap().finish().unwrap());
    assert!(here.answer.contains("4872") && here.answer == there.answer, "{} {}", here.answer, there.answer);
}

#[test]
fn thoughts_are_bounded_and_voted_on_the_device() {
    let bounded =
        POCKET.generate(QUESTION, &Options::new().seed(1).think_budget(20)).unwrap().finish().unwrap();
    assert!(bounded.thought_tokens <= 40 && !bounded.answer.is_empty() && bounded.finish == Finish::Stop);
    let warm = Options::new().seed(1).temperature(0.8);
    let votes = POCKET.vote(QUESTION, &warm, VoteOptions::new(4)).unwrap();
    let Some(Ok(VoteEvent::Done(outcome))) = votes.last() else { panic!("a vote ends") };
    assert_eq!(outcome.traces.len(), 4);
    assert!(outcome.traces.iter().any(|trace| trace.answer.contains("4872")));
}

#[test]
fn a_chat_goes_on_from_its_keys_and_values() {
    let mut chat = POCKET.chat();
    let first = chat.ask("What is 12 + 30?", &Options::new().temperature(0.0)).unwrap().finish().unwrap();
    let second = chat.ask("What is 5 + 6?", &Options::new().temperature(0.0)).unwrap().finish().unwrap();
    assert!(first.cached_tokens == 0 && second.cached_tokens > 0 && second.answer.contains("11"));
}

#[test]
fn a_receipt_of_the_device_is_replayed_there_token_by_token() {
    let stats = POCKET.generate(QUESTION, &Options::new().seed(3).record(true)).unwrap().finish().unwrap();
    let receipt = Receipt::new(&POCKET, &[stats], |_, _| ()).unwrap();
    assert!(receipt.is_of_gpu() && receipt.to_json().contains("\"kind\":\"candle\""));
    let verdict = receipt.verify(&POCKET, true, |_, _| ()).unwrap();
    assert!(verdict.is_identical(), "{verdict}");
    let cpu = Model::builder("pocket").device(DeviceChoice::Cpu).load().unwrap();
    for (model, decode, why) in [(&*POCKET, false, "--decode"), (&cpu, true, "whose bits")] {
        let Err(Error::Saved(what)) = receipt.verify(model, decode, |_, _| ()) else { panic!("{why}") };
        assert!(what.contains(why), "{what}");
    }
    let stats = cpu.generate(QUESTION, &Options::new().seed(3).record(true)).unwrap().finish().unwrap();
    let of_cpu = Receipt::new(&cpu, &[stats], |_, _| ()).unwrap();
    assert!(of_cpu.verify(&POCKET, true, |_, _| ()).is_err());
    assert!(of_cpu.verify(&cpu, false, |_, _| ()).unwrap().is_identical());
}

#[test]
fn a_receipt_of_a_split_run_says_where_the_layers_were_and_is_replayed_there() {
    let split =
        |layers| Model::builder("pocket").device(DeviceChoice::Candle).gpu_layers(layers).load().unwrap();
    let model = split(2);
    let stats = model.generate(QUESTION, &Options::new().seed(3).record(true)).unwrap().finish().unwrap();
    let receipt = Receipt::new(&model, &[stats], |_, _| ()).unwrap();
    assert_eq!(receipt.placement().unwrap(), Some((DeviceChoice::Candle, Some(2))));
    let read = Receipt::parse(&receipt.to_json()).unwrap();
    assert!(read.verify(&split(2), true, |_, _| ()).unwrap().is_identical());
    let Err(Error::Saved(what)) = read.verify(&split(1), true, |_, _| ()) else { panic!("other layers") };
    assert!(what.contains("2 on candle") && what.contains("--gpu-layers"), "{what}");
}

#[test]
fn a_thought_edited_on_the_device_makes_a_run_that_cannot_be_replayed() {
    let mut generation = POCKET.generate(QUESTION, &Options::new().seed(3).record(true)).unwrap();
    while generation.thought().len() < 10 {
        generation.next().expect("it goes on").unwrap();
    }
    let kept = generation.thought()[..5].to_owned();
    assert!(generation.set_thought(&(kept + " hm")).unwrap());
    let receipt = Receipt::new(&POCKET, &[generation.finish().unwrap()], |_, _| ()).unwrap();
    assert!(!receipt.replayable);
    let Err(Error::Saved(what)) = receipt.verify(&POCKET, true, |_, _| ()) else { panic!("it is refused") };
    assert!(what.contains("edited"), "{what}");
}

#[test]
fn a_receipt_without_layers_is_still_read_and_a_vote_on_the_device_is_not_replayable() {
    let recorded = Options::new().seed(1).temperature(0.8).record(true);
    let votes = POCKET.vote(QUESTION, &recorded, VoteOptions::new(2)).unwrap();
    let Some(Ok(VoteEvent::Done(outcome))) = votes.last() else { panic!("a vote ends") };
    let receipt = Receipt::new(&POCKET, &outcome.traces, |_, _| ()).unwrap();
    assert!(!receipt.replayable);
    assert!(receipt.verify(&POCKET, true, |_, _| ()).is_err());

    let stats = POCKET.generate(QUESTION, &Options::new().seed(3).record(true)).unwrap().finish().unwrap();
    let mut old = Receipt::new(&POCKET, &[stats], |_, _| ()).unwrap();
    old.device.as_mut().unwrap().layers.clear();
    assert!(!old.to_json().contains("layers"), "as it was written before");
    let read = Receipt::parse(&old.to_json()).unwrap();
    assert_eq!(read.placement().unwrap(), Some((DeviceChoice::Candle, None)));
    assert!(read.verify(&POCKET, true, |_, _| ()).unwrap().differs.is_none());
}

#[test]
fn layers_are_split_between_the_cpu_and_the_device() {
    let split = Model::builder("pocket").device(DeviceChoice::Candle).gpu_layers(2).load().unwrap();
    assert_eq!(split.device().kind, "cpu+candle");
    let greedy = Options::new().temperature(0.0);
    let [both, one] =
        [&split, &*POCKET].map(|model| model.generate(QUESTION, &greedy).unwrap().finish().unwrap());
    assert!(both.answer == one.answer && both.answer.contains("4872"));
    let none = Model::builder("pocket").device(DeviceChoice::Candle).gpu_layers(0).load().unwrap();
    assert_eq!(none.device().kind, "cpu");
}

#[test]
fn keys_and_values_in_q8_0_are_for_the_cpu() {
    let builder = Model::builder("pocket").device(DeviceChoice::Candle).kv_type(KvType::Q8_0);
    let Err(Error::Usage(what)) = builder.load() else { panic!("q8_0 is refused") };
    assert!(what.contains("q8_0"), "{what}");
}

/// Every block type, those that candle does not know too, and experts; against the CPU's kernels, which are near the
/// reference. The device quantizes activations to 8 bits more coarsely.
#[test]
fn every_block_type_is_near_the_cpus_logits() {
    // of experts one type of each kind: those that candle multiplies and those that become Q8_0
    const OF_EXPERTS: [BlockType; 5] =
        [BlockType::F32, BlockType::BF16, BlockType::Q4_0, BlockType::Q4_K, BlockType::MXFP4];
    for kind in BlockType::ALL {
        for architecture in [Architecture::Llama, Architecture::Deepseek2] {
            if architecture == Architecture::Deepseek2 && !OF_EXPERTS.contains(&kind) {
                continue;
            }
            let model = tiny::model_of(architecture, kind, 1);
            let [mut device, mut cpu] =
                [candle(), cpu()].map(|backend| tiny::engine_on(&model, backend, KvType::F32));
            let mut kl = 0.0;
            for (tokens, chunk) in [(tokens(70), 70), (tokens(20), 3)] {
                let (mut here, mut there) = (Sequence::new(), Sequence::new());
                for tokens in tokens.chunks(chunk) {
                    let got = logits(&mut device, &mut here, tokens);
                    let expected = logits(&mut cpu, &mut there, tokens);
                    kl += tiny::divergence(&got, &expected) * tokens.len() as f64 / 90.0;
                }
            }
            let limit = if kind.block_len() == 1 { 1e-4 } else { 0.02 };
            assert!(kl < limit, "{kind}, {architecture:?}: KL {kl}");
        }
    }
}

#[test]
fn several_sequences_in_a_step_are_as_one_by_one() {
    let model = tiny::model(BlockType::F32, 3);
    let mut engine = tiny::engine_on(&model, candle(), KvType::F16);
    let tokens = tokens(75);
    let (mut first, mut second) = (Sequence::new(), Sequence::new());
    logits(&mut engine, &mut first, &tokens[..70]);
    logits(&mut engine, &mut second, &tokens[5..17]);
    let mut alone = logits(&mut engine, &mut first.fork(70), &tokens[70..73]);
    alone.extend(logits(&mut engine, &mut second.fork(12), &tokens[20..21]));
    let mut feeds = [
        Feed { sequence: &mut first, tokens: &tokens[70..73], wants: Wants::All },
        Feed { sequence: &mut second, tokens: &tokens[20..21], wants: Wants::Last },
    ];
    near(engine.step(&mut feeds).unwrap(), &alone, 1e-4);
}

/// From the device to the CPU and back; forks copy a shared page.
#[test]
fn a_saved_sequence_goes_on_anywhere() {
    let split = || -> Box<dyn Backend> { Box::new(SplitBackend::new(vec![(cpu(), 1), (candle(), 1)])) };
    let backends: [fn() -> Box<dyn Backend>; 3] = [candle, cpu, split];
    for (architecture, kv_type) in
        [(Architecture::Llama, KvType::F16), (Architecture::Deepseek2, KvType::F32)]
    {
        let model: Written = tiny::model_of(architecture, BlockType::F32, 2);
        let mut engines = backends.map(|backend| tiny::engine_on(&model, backend(), kv_type));
        let mut sequence = Sequence::new();
        logits(&mut engines[0], &mut sequence, &tokens(71));
        let mut bytes = Vec::new();
        engines[0].save(&sequence, &mut bytes).unwrap();
        let expected = logits(&mut engines[0], &mut sequence.fork(70), &[7, 8]);
        drop(sequence);
        for engine in &mut engines {
            let restored = engine.restore(&bytes[..]).unwrap();
            let mut again = Vec::new();
            engine.save(&restored, &mut again).unwrap();
            assert!(again == bytes, "{architecture:?}: saved again on {}", engine.device());
            near(&logits(engine, &mut restored.fork(70), &[7, 8]), &expected, 1e-4);
        }
    }
}

/// llama.cpp has 0.0024 with activations quantized in the same way.
#[test]
fn smollm2_stays_near_the_reference_on_the_device() {
    let Some(path) = fixture("real/smollm2-135m.safetensors") else { return };
    let Some(file) = real_model(SMOLLM2.1) else { return };
    let builder = Model::builder(file.to_str().unwrap()).device(DeviceChoice::Candle);
    let model = builder.context(512).logit_rows(128).load().unwrap();
    let quality = divergence(&model, &Reference::read(&path).unwrap(), |_, _| ()).unwrap();
    let (kl, top1) = (quality.kl.unwrap(), quality.top1.unwrap());
    println!(
        "{}: KL {kl:.5}, most likely token agrees at {} of {}",
        model.device(),
        top1 * 256.0,
        quality.positions
    );
    assert!(kl < 0.003, "KL {kl}");
}

#[test]
fn the_selftest_finds_agreement_and_tells_disagreement() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/arch/phi3-longrope");
    for gpu_layers in [None, Some(1)] {
        let trial = Trial { device: DeviceChoice::Candle, gpu_layers, kv_type: KvType::F16, mix: None };
        let found = agreement(&folder, &trial).unwrap();
        assert!(found.is_good() && found.kl_to_reference.unwrap() < 1e-4, "{found:?}");
        assert!(!Agreement { repeats: false, ..found.clone() }.is_good());
        assert!(!Agreement { kl_to_cpu: 0.3, ..found.clone() }.is_good());
        let trained =
            |kl_to_cpu| Agreement { kl_to_cpu, is_quantized: true, is_trained: true, ..found.clone() };
        assert!(trained(0.003).is_good() && !trained(0.05).is_good());
    }
    let trial = Trial { device: DeviceChoice::Cpu, ..Trial::default() };
    assert!(agreement(&folder, &trial).is_err(), "the CPU is not compared with itself");
}
