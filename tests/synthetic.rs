//! Models that are made instead of loaded.

mod common;

use pensive::checkpoint::Checkpoint;
use pensive::model::{Hyperparameters, Synthetic};
use pensive::{Error, Model};

/// Qwen2.5-Coder-1.5B has the shapes of DeepSeek-R1-Distill-Qwen-1.5B.
#[test]
fn names_shapes_and_types_are_those_of_a_real_file() {
    let Some(path) = common::real_model(common::QWEN_15B.1) else { return };
    let real = Checkpoint::open(path).unwrap();
    let made = Synthetic::new("deepseek-r1:1.5b-q4_k_m", None).unwrap().checkpoint();
    // Which layers have a part in the finer type depends on the order that a file was converted in; how many, does not.
    let varies = |name: &str| name.ends_with("attn_v.weight") || name.ends_with("ffn_down.weight");
    let list = |checkpoint: &Checkpoint| -> Vec<_> {
        let tensors = checkpoint.tensors.values();
        tensors
            .map(|t| (t.name.clone(), t.shape.clone(), Some(t.kind).filter(|_| !varies(&t.name))))
            .collect()
    };
    let (made_list, real_list) = (list(&made), list(&real));
    for (made, real) in made_list.iter().zip(&real_list) {
        assert_eq!(made, real);
    }
    assert_eq!(made_list.len(), real_list.len());
    for part in ["attn_v.weight", "ffn_down.weight"] {
        let kinds = |checkpoint: &Checkpoint| {
            let tensors = checkpoint.tensors.values().filter(|t| t.name.ends_with(part));
            let mut kinds: Vec<_> = tensors.map(|t| t.kind).collect();
            kinds.sort();
            kinds
        };
        assert_eq!(kinds(&made), kinds(&real), "{part}");
    }
    let [made, real] = [&made, &real].map(|checkpoint| Hyperparameters::read(checkpoint).unwrap());
    assert_eq!(made.kv_shape(), real.kv_shape());
    assert_eq!(
        (made.layers, made.vocabulary, made.feed_forward),
        (real.layers, real.vocabulary, real.feed_forward)
    );
}

/// A layer or two of each kind: dense, of experts, latent, with sinks, fused; in formats of 32 and 256 values.
#[test]
fn logits_are_finite_and_differ_in_every_architecture() {
    let names = ["qwen3:0.6b-q4_0", "phi-4-mini-reasoning-iq4_xs", "glm-z1:9b-q2_k", "qwen3:30b-a3b-q3_k_s"];
    for name in names {
        let model = Model::builder(name).synthetic(Some(2)).context(64).threads(2).load().unwrap();
        let mut logits = Vec::new();
        model.evaluate(&[1, 2000, 3, 44], |_, row| logits.push(row.to_vec())).unwrap();
        let spread = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>() / row.len() as f32;
        assert!(logits.iter().flatten().all(|v| v.is_finite()), "{name}");
        assert!(logits.iter().all(|row| spread(row) > 1e-4), "{name}: {:?}", spread(&logits[3]));
        assert!(logits[2] != logits[3], "{name}");
    }
}

#[test]
fn a_synthetic_model_has_no_files_and_takes_the_catalogs_markers() {
    let model = Model::builder("deepseek-r1:1.5b").synthetic(Some(1)).context(64).threads(1).load().unwrap();
    assert!(model.files().is_empty());
    assert_eq!((model.architecture(), model.markers().start.as_str()), ("qwen2", "<think>"));
}

#[test]
fn what_memory_does_not_hold_is_refused_before_it_is_made() {
    let error = Model::builder("deepseek-r1:671b-q8_0").synthetic(None).context(64).load().err().unwrap();
    assert!(matches!(&error, Error::Memory(what) if what.contains("weights 6")), "{error}");
}

/// What is written to a file loads as what is made in memory does, to the bit.
#[test]
fn a_written_model_is_the_one_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("synthetic.gguf");
    Synthetic::new("qwen3:0.6b-q4_0", Some(1)).unwrap().write(&path).unwrap();
    let logits = |model: Model| {
        let mut all = Vec::new();
        model.evaluate(&[5, 6, 7], |_, row| all.extend(row.iter().map(|v| v.to_bits()))).unwrap();
        all
    };
    let written = Model::builder(path.to_str().unwrap()).context(64).threads(2).load().unwrap();
    let made = Model::builder("qwen3:0.6b-q4_0").synthetic(Some(1)).context(64).threads(1).load().unwrap();
    assert!(logits(written) == logits(made));
}
