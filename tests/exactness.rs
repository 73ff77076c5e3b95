//! The same input gives the same bits: whatever the threads, the vector width, the chunks of the prompt, the other
//! sequences of a batch, whoever shares a prefix, and whether it was saved and restored. On real models, at depth.

mod common;

use std::path::Path;

use common::{QWEN_05B, SMOLLM2, real_model};
use pensive::backend::cpu::kernels::Isa;
use pensive::backend::cpu::{CpuBackend, CpuOptions};
use pensive::backend::{KvType, PAGE_LEN, Plan};
use pensive::checkpoint::Checkpoint;
use pensive::engine::{Engine, Feed, Sequence, Wants};
use pensive::model::{Decoder, Hyperparameters};

const ROWS: usize = 512;
/// Positions at the end whose logits are compared.
const TAIL: usize = 5;

fn engine(path: &Path, threads: usize, isa: Isa, kv_type: KvType) -> Engine {
    let checkpoint = Checkpoint::open(path).unwrap();
    let hyperparameters = Hyperparameters::read(&checkpoint).unwrap();
    let options = CpuOptions { threads: Some(threads), isa: Some(isa), ..CpuOptions::default() };
    let mut backend = CpuBackend::new(options).unwrap();
    let decoder = Decoder::load(&checkpoint, &hyperparameters, &mut backend, &mut |_, _| {}).unwrap();
    let plan = Plan { rows: ROWS, logit_rows: 16, sequences: 3, pages: 3 * 2048 / PAGE_LEN, kv_type };
    Engine::new(Box::new(backend), decoder, plan).unwrap()
}

/// Some tokens, other ones for another seed.
fn text(seed: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729 + i * i) % 30_000) as u32).collect()
}

/// Feeds `tokens` in chunks; the bits of the logits of the last TAIL positions.
fn feed(engine: &mut Engine, sequence: &mut Sequence, tokens: &[u32], chunk: usize) -> Vec<u32> {
    let (body, tail) = tokens.split_at(tokens.len() - TAIL);
    for tokens in body.chunks(chunk) {
        engine.step(&mut [Feed { sequence, tokens, wants: Wants::Nothing }]).unwrap();
    }
    let mut bits = Vec::new();
    for tokens in tail.chunks(chunk) {
        let logits = engine.step(&mut [Feed { sequence, tokens, wants: Wants::All }]).unwrap();
        bits.extend(logits.iter().map(|l| l.to_bits()));
    }
    bits
}

fn best() -> Isa {
    Isa::available().last().expect("scalar code is always there")
}

/// Checks one model with one kind of cache; `deep` tokens where code is fast, `shallow` where it is slow: more than two
/// chunks of attention.
///
/// Each of the other ways changes several things at once: if none of them changes a bit, no single one does.
fn gives_the_same_bits(file: &str, kv_type: KvType, deep: usize, shallow: usize) {
    let Some(path) = real_model(file) else { return };
    let tokens = text(1, deep);
    let mut reference = engine(&path, 2, best(), kv_type);
    let mut whole = Sequence::new();
    let expected = feed(&mut reference, &mut whole, &tokens, ROWS);
    assert!(expected.iter().any(|&b| f32::from_bits(b) != 0.0));
    shares_its_prefix(&mut reference, &whole, &tokens, &expected);

    let few = &tokens[..shallow];
    let expected_few = feed(&mut reference, &mut Sequence::new(), few, 1);
    drop(reference);
    for isa in Isa::available() {
        // threads and chunks of the whole text, of which the fastest code takes all
        let ways = match isa {
            Isa::Scalar => &[][..],
            isa if isa == best() => &[(3, 7), (8, 64), (2, 1)],
            _ => &[(1, 129)],
        };
        let of_few = (if isa == best() { 1 } else { 3 }, ROWS);
        for &(threads, chunk) in [of_few].iter().chain(ways) {
            let mut other = engine(&path, threads, isa, kv_type);
            let whole = (threads, chunk) != of_few;
            let (tokens, expected) = if whole { (&tokens[..], &expected) } else { (few, &expected_few) };
            let got = feed(&mut other, &mut Sequence::new(), tokens, chunk);
            let len = tokens.len();
            assert!(
                got == *expected,
                "{file}: {isa} with {threads} threads and chunks of {chunk} changes the logits of {len} tokens"
            );
        }
    }
}

/// What stands before may be shared with other sequences, and they may be computed in the same steps.
fn shares_its_prefix(engine: &mut Engine, whole: &Sequence, tokens: &[u32], expected: &[u32]) {
    // a prefix that ends inside a page, taken over from another sequence and read on in odd chunks
    let shared = tokens.len() - 333;
    let got = feed(engine, &mut whole.fork(shared), &tokens[shared..], 129);
    assert!(got == expected, "a shared prefix changes the logits");

    // the same prefix, saved and restored
    let mut saved = Vec::new();
    engine.save(&whole.fork(shared), &mut saved).unwrap();
    let mut restored = engine.restore(&saved[..]).unwrap();
    let got = feed(engine, &mut restored, &tokens[shared..], 200);
    assert!(got == expected, "saving and restoring changes the logits");
    drop(restored);

    // in a batch with two others, one of which forked from it
    let (mut a, mut b, mut c) = (whole.fork(shared), Sequence::new(), whole.fork(shared - 50));
    let (others, more) = (text(2, 333), text(3, 333));
    let mut bits = Vec::new();
    for ((x, y), z) in tokens[shared..].chunks(37).zip(others.chunks(37)).zip(more.chunks(37)) {
        let last = x.len() < 37 || a.len() + 37 == tokens.len();
        let wants = if last { Wants::Last } else { Wants::Nothing };
        let feeds = &mut [
            Feed { sequence: &mut b, tokens: y, wants: Wants::Nothing },
            Feed { sequence: &mut a, tokens: x, wants },
            Feed { sequence: &mut c, tokens: z, wants: Wants::Nothing },
        ];
        bits = engine.step(feeds).unwrap().iter().map(|l| l.to_bits()).collect();
    }
    let vocabulary = expected.len() / TAIL;
    assert!(bits == expected[(TAIL - 1) * vocabulary..], "a batch changes the logits");
}

#[test]
fn smollm2_gives_the_same_bits_whatever_the_way() {
    gives_the_same_bits(SMOLLM2.1, KvType::F16, 1531, 150);
}

#[test]
fn smollm2_with_a_q8_0_cache_gives_the_same_bits_whatever_the_way() {
    gives_the_same_bits(SMOLLM2.1, KvType::Q8_0, 1531, 150);
}

#[test]
fn qwen_05b_gives_the_same_bits_whatever_the_way() {
    gives_the_same_bits(QWEN_05B.1, KvType::F16, 1531, 150);
}

#[test]
fn qwen_05b_with_a_q8_0_cache_gives_the_same_bits_whatever_the_way() {
    gives_the_same_bits(QWEN_05B.1, KvType::Q8_0, 1531, 150);
}

/// Compares with what another processor left, of the whole text: `scripts/check-arm` runs these on two.
fn gives_what_another_processor_gave(file: &str) {
    let Some(path) = real_model(file) else { return };
    for kv_type in KvType::ALL {
        common::same_on_other_processors(&format!("{file}-{kv_type}"), || {
            let mut engine = engine(&path, 2, best(), kv_type);
            feed(&mut engine, &mut Sequence::new(), &text(1, 1531), ROWS)
        });
    }
}

#[test]
fn smollm2_gives_what_another_processor_gave() {
    gives_what_another_processor_gave(SMOLLM2.1);
}

#[test]
fn qwen_05b_gives_what_another_processor_gave() {
    gives_what_another_processor_gave(QWEN_05B.1);
}
