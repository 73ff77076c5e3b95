//! A sequence that was saved and restored goes on as if nothing had happened; what is not what was saved is refused.

mod common;

use common::tiny::{Architecture, VOCABULARY, engine, feed, model, model_of};
use pensive::backend::KvType;
use pensive::backend::cpu::CpuOptions;
use pensive::backend::cpu::kernels::Isa;
use pensive::engine::{Engine, Sequence};
use pensive::quant::BlockType;

const KIND: BlockType = BlockType::Q8_0;

/// More than a page, and a part of one.
fn tokens() -> Vec<u32> {
    (0..90).map(|i| i * 31 % VOCABULARY as u32).collect()
}

fn saved(engine: &Engine, sequence: &Sequence) -> Vec<u8> {
    let mut bytes = Vec::new();
    engine.save(sequence, &mut bytes).unwrap();
    bytes
}

/// Another instruction set, another number of threads, weights left in the file.
fn elsewhere() -> CpuOptions {
    CpuOptions { threads: Some(3), isa: Some(Isa::Scalar), interleaved_bytes: 0 }
}

#[track_caller]
fn refused(engine: &mut Engine, bytes: &[u8], why: &str) {
    let message = engine.restore(bytes).unwrap_err().to_string();
    assert!(message.contains("saved sequence") && message.contains(why), "{message}");
}

#[test]
fn a_restored_sequence_goes_on_with_the_same_bits() {
    let models = [Architecture::Llama, Architecture::Deepseek2].map(|of| model_of(of, KIND, 1));
    let more = [5, 6, 7, 8];
    for (model, kv_type) in models.iter().flat_map(|model| KvType::ALL.map(|kv_type| (model, kv_type))) {
        let mut first = engine(model, CpuOptions::default(), kv_type);
        let mut second = engine(model, elsewhere(), kv_type);
        // a page that was in use before: what stands in it behind the sequence's end must not matter
        feed(&mut second, &mut Sequence::new(), &[9; 60], 60);
        for len in [0, 1, 64, 90] {
            let mut sequence = Sequence::new();
            feed(&mut first, &mut sequence, &tokens()[..len], 50);
            let bytes = saved(&first, &sequence);
            let mut restored = second.restore(&bytes[..]).unwrap();
            assert_eq!(restored.tokens(), &tokens()[..len]);
            assert!(saved(&second, &restored) == bytes, "{kv_type}, {len} tokens: saved again");
            let expected = feed(&mut first, &mut sequence, &more, 4);
            let got = feed(&mut second, &mut restored, &more, 3);
            assert!(got == expected, "{kv_type}, {len} tokens: what follows");
        }
    }
}

#[test]
fn reading_stops_where_the_sequence_ends() {
    let model = model(KIND, 1);
    let mut engine = engine(&model, CpuOptions::default(), KvType::F16);
    let mut sequence = Sequence::new();
    feed(&mut engine, &mut sequence, &tokens(), 50);
    let mut bytes = saved(&engine, &sequence);
    bytes.extend(b"more");
    let mut rest = &bytes[..];
    engine.restore(&mut rest).unwrap();
    assert_eq!(rest, b"more");
}

#[test]
fn what_is_damaged_or_cut_off_is_refused_wherever_it_is() {
    let model = model(KIND, 1);
    let mut engine = engine(&model, CpuOptions::default(), KvType::F16);
    let mut sequence = Sequence::new();
    feed(&mut engine, &mut sequence, &tokens(), 50);
    let bytes = saved(&engine, &sequence);
    drop(sequence);
    for at in (0..300).chain((300..bytes.len()).step_by(97)).chain(bytes.len() - 40..bytes.len()) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        assert!(engine.restore(&damaged[..]).is_err(), "byte {at} was changed");
        refused(&mut engine, &bytes[..at], "is cut off");
    }
    let in_a_page = bytes.len() - 1000;
    let mut damaged = bytes.clone();
    damaged[in_a_page] ^= 1;
    refused(&mut engine, &damaged, "is damaged: its SHA-256 does not match");
    refused(&mut engine, b"{\"tokens\": [1, 2, 3, 4, 5]}", "is not one");
    // the refused have given their pages back
    assert_eq!(engine.restore(&bytes[..]).unwrap().len(), 90);
}

#[test]
fn a_sequence_of_another_model_or_kv_type_is_refused() {
    let first = model(KIND, 1);
    let mut f16 = engine(&first, CpuOptions::default(), KvType::F16);
    let mut sequence = Sequence::new();
    feed(&mut f16, &mut sequence, &tokens(), 50);
    let bytes = saved(&f16, &sequence);

    let mut q8 = engine(&first, CpuOptions::default(), KvType::Q8_0);
    refused(&mut q8, &bytes, "has KV type f16, the loaded model q8_0");
    for other in [model(KIND, 2), model(BlockType::Q4_0, 1), model(BlockType::F32, 1)] {
        let mut other = engine(&other, CpuOptions::default(), KvType::F16);
        refused(&mut other, &bytes, "belongs to another model");
    }
}

#[test]
fn a_sequence_takes_the_place_of_another_where_there_is_no_room_for_both() {
    let model = model(KIND, 1);
    let mut engine = engine(&model, CpuOptions::default(), KvType::F16);
    let mut old = Sequence::new();
    feed(&mut engine, &mut old, &tokens(), 50);
    let bytes = saved(&engine, &old);
    let more: Vec<u32> = tokens().into_iter().cycle().take(120).collect();
    feed(&mut engine, &mut old, &more, 50); // all of the 4 pages
    let len = old.len();
    assert!(engine.restore(&bytes[..]).is_err());

    // what can be told before costs nothing
    let mut other_model = bytes.clone();
    other_model[30] ^= 1;
    assert!(engine.restore_over(&mut old, &other_model[..]).is_err());
    assert!(engine.restore_over(&mut old, &b"{}"[..]).is_err());
    let shared = old.fork(len);
    assert!(engine.restore_over(&mut old, &bytes[..]).unwrap_err().to_string().contains("KV cache"));
    drop(shared);
    assert_eq!(old.len(), len);

    engine.restore_over(&mut old, &bytes[..]).unwrap();
    assert_eq!(old.tokens(), tokens());
    // where there is room for both, what is damaged further on costs nothing either
    let end = bytes.len() - 1;
    assert!(engine.restore_over(&mut old, &bytes[..end]).is_err());
    assert!(old.tokens() == tokens() && saved(&engine, &old) == bytes);
}

#[test]
fn what_is_no_saved_sequence_is_told_by_its_beginning() {
    for (bytes, is_saved) in [
        (&b"pensive sequence 2\n..."[..], true),
        (b"pensive sequence 1\n", true),
        (b"pensive", false),
        (b"", false),
        (b"{\"model\": \"m\"}", false),
    ] {
        assert_eq!(Engine::is_saved(bytes).unwrap(), is_saved, "{bytes:?}");
    }
}

#[test]
fn a_sequence_that_the_cache_has_no_room_for_is_refused() {
    let model = model(KIND, 1);
    let mut engine = engine(&model, CpuOptions::default(), KvType::F16);
    let mut sequence = Sequence::new();
    feed(&mut engine, &mut sequence, &tokens(), 50);
    let bytes = saved(&engine, &sequence);
    let second = engine.restore(&bytes[..]).unwrap();
    let message = engine.restore(&bytes[..]).unwrap_err().to_string(); // 4 pages, all taken
    assert!(message.contains("KV cache"), "{message}");
    drop(second);
    engine.restore(&bytes[..]).unwrap();
}
