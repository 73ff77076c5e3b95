//! Which columns of a model's matrices matter, by what they are multiplied with in a text: quantizing keeps those finer.

use std::collections::BTreeMap;

use super::memory;
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::recorder::Recorder;
use crate::backend::{KvType, Plan};
use crate::checkpoint::Checkpoint;
use crate::engine::{Engine, Feed, Sequence, Wants};
use crate::model::{Decoder, Hyperparameters};
use crate::text::{Special, Tokenizer};
use crate::{Error, Result};

/// Tokens that are read together, and of them those of a step.
const WINDOW: usize = 512;
const ROWS: usize = 64;

/// The mean squares of what matrices are multiplied with, by the name of the checkpoint's tensor, and which of its matrices it
/// is where experts have one tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importance(BTreeMap<(String, usize), Vec<f32>>);

impl Importance {
    /// Runs a model over a text, in windows of 512 tokens. `progress` is told (tokens done, tokens in all).
    ///
    /// # Errors
    /// A checkpoint that cannot be run, or has no tokenizer; an empty text; too little memory.
    pub fn measure(
        checkpoint: &Checkpoint,
        text: &str,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Importance> {
        let h = Hyperparameters::read(checkpoint)?;
        let tokenizer = Tokenizer::from_metadata(&checkpoint.metadata)?;
        let tokens = tokenizer.encode(text, Special::Text)?;
        let bos = tokenizer.bos().filter(|(_, wanted)| *wanted).map(|(id, _)| id);
        if tokens.is_empty() {
            return Err(Error::Usage("the text to calibrate by is empty".into()));
        }
        let backend = CpuBackend::new(CpuOptions { interleaved_bytes: u64::MAX, ..CpuOptions::default() })?;
        let (mut backend, record) = Recorder::new(backend);
        let decoder = Decoder::load(checkpoint, &h, &mut backend, &mut |_, _| ())?;
        let plan = Plan {
            rows: ROWS,
            logit_rows: ROWS,
            sequences: 1,
            pages: memory::pages(WINDOW + 1),
            kv_type: KvType::F16,
        };
        let mut engine = Engine::new(Box::new(backend), decoder, plan)?;
        for (done, window) in tokens.chunks(WINDOW).enumerate() {
            let window: Vec<u32> = bos.into_iter().chain(window.iter().copied()).collect();
            let mut sequence = Sequence::new();
            for tokens in window.chunks(ROWS) {
                // rows that want no logits stop before the last matrices
                engine.step(&mut [Feed { sequence: &mut sequence, tokens, wants: Wants::All }])?;
            }
            progress(((done + 1) * WINDOW).min(tokens.len()), tokens.len());
        }
        drop(engine);
        let record = std::mem::take(&mut *record.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        let mean = |sum: f64, rows: u64| (sum / rows.max(1) as f64) as f32;
        let means = record
            .into_iter()
            .map(|(name, seen)| (name, seen.sums.iter().map(|&sum| mean(sum, seen.rows)).collect()));
        Ok(Importance(means.collect()))
    }

    /// Of the columns of a tensor's matrix (0: the only one), where they are known and of use: finite, and not all zero.
    pub fn of(&self, tensor: &str, matrix: usize, columns: usize) -> Option<&[f32]> {
        let row = self.0.get(&(tensor.to_owned(), matrix)).filter(|row| row.len() == columns)?;
        let usable = row.iter().all(|x| x.is_finite()) && row.iter().any(|&x| x > 0.0);
        usable.then_some(row)
    }

    /// Number of matrices that something is known of.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
