//! Many sequences over shared weights.

mod common;

use std::time::Instant;

use common::{QWEN_15B, real_model};
use pensive::backend::cpu::{CpuBackend, CpuOptions};
use pensive::backend::{KvType, Plan};
use pensive::checkpoint::Checkpoint;
use pensive::engine::{Engine, Feed, Sequence, Wants};
use pensive::model::{Decoder, Hyperparameters};

const SEQUENCES: usize = 8;

/// Tokens a second of some steps in which each of these sequences gets a token.
fn speed(engine: &mut Engine, sequences: &mut [Sequence]) -> f64 {
    const STEPS: usize = 8;
    let began = Instant::now();
    for step in 0..STEPS {
        let token = [100 + step as u32];
        let mut feeds: Vec<Feed<'_>> = sequences
            .iter_mut()
            .map(|sequence| Feed { sequence, tokens: &token, wants: Wants::Last })
            .collect();
        engine.step(&mut feeds).unwrap();
    }
    (STEPS * sequences.len()) as f64 / began.elapsed().as_secs_f64()
}

/// A ratio, both sides in turn in one run. How large it is depends on the machine: where memory feeds a single sequence
/// faster than the cores can multiply for eight (45 tokens/s and 2.5 times was seen), less is left to share.
#[test]
fn eight_sequences_share_the_reading_of_the_weights() {
    let Some(path) = real_model(QWEN_15B.1) else { return };
    let checkpoint = Checkpoint::open(path).unwrap();
    let hyperparameters = Hyperparameters::read(&checkpoint).unwrap();
    let mut backend = CpuBackend::new(CpuOptions::default()).unwrap();
    let decoder = Decoder::load(&checkpoint, &hyperparameters, &mut backend, &mut |_, _| {}).unwrap();
    let plan = Plan { rows: 64, logit_rows: 8, sequences: SEQUENCES, pages: 32, kv_type: KvType::F16 };
    let mut engine = Engine::new(Box::new(backend), decoder, plan).unwrap();

    let prefix: Vec<u32> = (0..50).collect();
    let mut first = Sequence::new();
    engine.step(&mut [Feed { sequence: &mut first, tokens: &prefix, wants: Wants::Nothing }]).unwrap();
    let mut all: Vec<Sequence> = (0..SEQUENCES).map(|_| first.fork(prefix.len())).collect();
    let (mut one, mut eight) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        one.push(speed(&mut engine, &mut all[..1]));
        eight.push(speed(&mut engine, &mut all));
        all.iter_mut().for_each(|sequence| sequence.truncate(prefix.len()));
    }
    let best = |speeds: Vec<f64>| speeds.into_iter().fold(0.0, f64::max);
    let (one, eight) = (best(one), best(eight));
    let ratio = eight / one;
    println!("one sequence {one:.1} tokens/s, eight together {eight:.1}: {ratio:.2}x");
    assert!(ratio > 1.5, "eight sequences together have only {ratio:.2} times the speed of one");
}
