//! A tiny random model in each block format: the same logits to the bit on every instruction set, in both layouts, by any
//! number of threads, in any chunks, with each kind of KV cache, alone or beside another sequence.
//!
//! Rows that are no multiple of the 16 that a tile has: of the key, value and output matrices.

mod common;

use common::tiny::{Architecture, VOCABULARY, engine, engine_of_pages, engine_on, feed, model_of};
use pensive::Error;
use pensive::backend::KvType;
use pensive::backend::cpu::kernels::Isa;
use pensive::backend::cpu::{CpuBackend, CpuOptions};
use pensive::backend::recorder::Recorder;
use pensive::checkpoint::Checkpoint;
use pensive::engine::{Engine, Feed, Sequence, Wants};
use pensive::quant::BlockType;

const TOKENS: [u32; 11] = [3, 74, 0, 31, 31, 8, 55, 2, 1, 70, 12];

#[test]
fn each_block_format_gives_the_same_bits_whatever_the_way() {
    for (i, kind) in BlockType::ALL.into_iter().enumerate() {
        all_ways_agree(Architecture::Llama, kind, 1000 * i as u64);
    }
}

#[test]
fn latent_attention_and_experts_give_the_same_bits_whatever_the_way() {
    for (i, kind) in [
        BlockType::F32,
        BlockType::F16,
        BlockType::Q8_0,
        BlockType::Q4_1,
        BlockType::MXFP4,
        BlockType::Q4_K,
        BlockType::IQ1_S,
    ]
    .into_iter()
    .enumerate()
    {
        all_ways_agree(Architecture::Deepseek2, kind, 77 + 1000 * i as u64);
    }
}

#[test]
fn weights_that_are_no_numbers_are_an_error_on_every_instruction_set() {
    use Architecture::{Deepseek2, Llama};
    let models = [
        (Llama, BlockType::Q8_0),
        (Llama, BlockType::Q4_K),
        (Llama, BlockType::F16),
        (Deepseek2, BlockType::F32),
    ];
    for (architecture, kind) in models {
        let model = model_of(architecture, kind, 5);
        let mut bytes = std::fs::read(model.path()).unwrap();
        let checkpoint = Checkpoint::open(std::path::Path::new(model.path())).unwrap();
        let norm = checkpoint.tensor("blk.0.attn_norm.weight").unwrap().bytes().to_vec();
        drop(checkpoint);
        let at = bytes.windows(norm.len()).position(|window| window == norm).unwrap();
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        std::fs::write(model.path(), bytes).unwrap();
        for isa in Isa::available() {
            let options = CpuOptions { isa: Some(isa), ..Default::default() };
            let mut sequence = Sequence::new();
            let feed = Feed { sequence: &mut sequence, tokens: &TOKENS, wants: Wants::Last };
            let mut engine = engine(&model, options, KvType::F16);
            let error = engine.step(&mut [feed]).map(|_| ()).unwrap_err();
            assert!(matches!(error, Error::Numbers) && sequence.is_empty(), "{kind}, {isa}: {error}");
        }
    }
}

#[test]
fn a_row_that_is_no_number_is_an_error_beside_others_that_are() {
    let model = model_of(Architecture::Llama, BlockType::F16, 5);
    let mut bytes = std::fs::read(model.path()).unwrap();
    let checkpoint = Checkpoint::open(std::path::Path::new(model.path())).unwrap();
    let table = checkpoint.tensor("token_embd.weight").unwrap();
    let (all, row) = (table.bytes().to_vec(), TOKENS[1] as usize * table.kind.row_bytes(table.columns()));
    drop(checkpoint);
    let at = bytes.windows(all.len()).position(|window| window == all).unwrap() + row;
    bytes[at..at + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
    std::fs::write(model.path(), bytes).unwrap();
    let mut engine = engine(&model, CpuOptions::default(), KvType::F16);
    let (mut good, mut bad) = (Sequence::new(), Sequence::new());
    let mut step = |tokens: [&[u32]; 2]| {
        let [first, second] = tokens;
        let wants = Wants::Last;
        let feeds = &mut [
            Feed { sequence: &mut good, tokens: first, wants },
            Feed { sequence: &mut bad, tokens: second, wants },
        ];
        engine.step(feeds).map(|_| ())
    };
    step([&TOKENS[..1], &TOKENS[..1]]).unwrap();
    assert!(matches!(step([&TOKENS[2..3], &TOKENS[1..2]]), Err(Error::Numbers)));
    assert_eq!((good.len(), bad.len()), (1, 1), "both are as before");
}

#[test]
fn what_calibration_sees_of_experts_are_the_rows_that_go_to_each_and_it_changes_nothing() {
    let model = model_of(Architecture::Deepseek2, BlockType::F32, 9);
    let (recorder, record) = Recorder::new(CpuBackend::new(CpuOptions::default()).unwrap());
    let seen =
        feed(&mut engine_on(&model, Box::new(recorder), KvType::F16), &mut Sequence::new(), &TOKENS, 4);
    let mut alone = engine(&model, CpuOptions::default(), KvType::F16);
    assert_eq!(seen, feed(&mut alone, &mut Sequence::new(), &TOKENS, 4));
    let record = record.lock().unwrap();
    let checkpoint = Checkpoint::open(std::path::Path::new(model.path())).unwrap();
    let rows = |part: &str, expert: usize| {
        let name = format!("blk.1.ffn_{part}_exps.weight");
        let columns = checkpoint.tensor(&name).unwrap().columns();
        record.get(&(name, expert)).map_or(0, |squares| {
            assert!(squares.sums.len() == columns && squares.sums.iter().all(|&sum| sum > 0.0));
            squares.rows
        })
    };
    let of_down: Vec<u64> = (0..8).map(|expert| rows("down", expert)).collect();
    assert_eq!(of_down.iter().sum::<u64>(), 3 * TOKENS.len() as u64, "each token goes to three of the eight");
    assert!(
        (0..8).all(|expert| rows("gate", expert) == of_down[expert] && rows("up", expert) == of_down[expert])
    );
    assert_eq!(record[&("blk.1.attn_output.weight".to_owned(), 0)].rows, TOKENS.len() as u64);
}

/// More than a page of the KV cache, and a part of one.
const LEN: usize = 75;
/// Where another sequence forks off: inside a page.
const SHARED: usize = 41;

fn all_ways_agree(architecture: Architecture, kind: BlockType, seed: u64) {
    let model = model_of(architecture, kind, seed);
    let tokens = text(architecture, kind);
    for kv_type in [KvType::F16, KvType::Q8_0] {
        let scalar = CpuOptions { threads: Some(1), isa: Some(Isa::Scalar), ..Default::default() };
        let mut reference = engine(&model, scalar, kv_type);
        let expected = feed(&mut reference, &mut Sequence::new(), &tokens, LEN);
        let values: Vec<f32> = expected.iter().map(|&b| f32::from_bits(b)).collect();
        assert!(values.iter().all(|v| v.is_finite() && v.abs() < 100.0), "{kind}");
        assert!(values.iter().any(|v| v.abs() > 0.1), "{kind}");
        common::same_on_other_processors(&format!("{architecture:?}-{kind}-{kv_type}"), || expected.clone());

        // no matrix interleaved, the first of them, all
        for (layout, interleaved_bytes) in [0, 60_000, u64::MAX].into_iter().enumerate() {
            let ways = [(1, 1), (2, 7), (3, 64), (8, LEN)]; // threads and chunks
            let of_isa = |isa| match isa {
                Isa::Avx512 => &ways[..],
                Isa::Scalar if layout != 1 => &[], // slow
                _ => &ways[layout..=layout],
            };
            let all = Isa::available().flat_map(|isa| of_isa(isa).iter().map(move |&way| (isa, way)));
            for (isa, (threads, chunk)) in all {
                let options = CpuOptions { threads: Some(threads), isa: Some(isa), interleaved_bytes };
                let backend = CpuBackend::new(options).unwrap();
                let mut engine = engine_of_pages(&model, Box::new(backend), kv_type, 5);
                let way = format!(
                    "{architecture:?}, {kind}, {kv_type} cache, {isa}, {threads} threads, chunks of {chunk}, \
                     {interleaved_bytes} bytes interleaved"
                );
                let mut sequence = Sequence::new();
                let got = feed(&mut engine, &mut sequence, &tokens, chunk);
                assert!(got == expected, "{way}");
                let got = in_company(&mut engine, &sequence, &tokens, chunk);
                assert!(got == expected[SHARED * VOCABULARY..], "{way}, with a shared prefix, in a batch");
            }
        }
    }
}

/// Tokens of the vocabulary, other ones for each model.
fn text(architecture: Architecture, kind: BlockType) -> Vec<u32> {
    let seed = 13 * kind as usize + 7 * architecture as usize;
    (0..LEN).map(|i| ((i * i * 31 + i * 7 + seed) % VOCABULARY) as u32).collect()
}

/// Feeds what follows the shared tokens in chunks to a sequence that took these over from `whole`, in steps that another sequence
/// takes part in; the bits of its logits.
fn in_company(engine: &mut Engine, whole: &Sequence, tokens: &[u32], chunk: usize) -> Vec<u32> {
    let (mut sequence, mut other) = (whole.fork(SHARED), Sequence::new());
    let mut bits = Vec::new();
    for tokens in tokens[SHARED..].chunks(chunk) {
        let first = Feed { sequence: &mut other, tokens: &tokens[..1], wants: Wants::Nothing };
        let feed = Feed { sequence: &mut sequence, tokens, wants: Wants::All };
        let logits = engine.step(&mut [first, feed]).unwrap();
        bits.extend(logits.iter().map(|l| l.to_bits()));
    }
    bits
}
