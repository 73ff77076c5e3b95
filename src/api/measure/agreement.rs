//! Whether a device computes what the CPU does: the logits of one checkpoint on both, and on a reference if there is one.

use std::path::Path;

use super::quality::log_sum;
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::devices::DeviceChoice;
use crate::backend::split::SplitBackend;
use crate::backend::{Backend, KvType, PAGE_LEN, Plan};
use crate::checkpoint::Checkpoint;
use crate::engine::sampling::argmax;
use crate::engine::{Engine, Feed, Sequence, Wants};
use crate::model::{Conversion, Decoder, Hyperparameters, Synthetic};
use crate::quant::Mix;
use crate::{Error, Result};

/// Tokens of a checkpoint that has no reference beside it.
const TOKENS: usize = 192;

/// How steps are cut: the last tokens one by one, as in decoding, those before in one step.
const DECODED: usize = 8;

/// How near two most likely tokens are whose order may change, logits.
const NEAR_TIE: f32 = 0.05;

/// A device beside the CPU, and beside the reference.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Agreement {
    /// Name of the device.
    pub device: String,
    /// Mean KL divergence of the device's predictions from the reference's, nats.
    pub kl_to_reference: Option<f64>,
    /// The same of the CPU's.
    pub cpu_kl_to_reference: Option<f64>,
    /// Mean KL divergence of the device's predictions from the CPU's, nats.
    pub kl_to_cpu: f64,
    /// Positions at which the most likely token is the CPU's.
    pub same_best: usize,
    /// Positions at which it is not, and the CPU's two best are nearly equal.
    pub near_ties: usize,
    /// Positions.
    pub positions: usize,
    /// Whether weights are in blocks.
    pub is_quantized: bool,
    /// Whether it is a model that was trained, not one of random weights.
    pub is_trained: bool,
    /// Whether the same steps gave the same bits.
    pub repeats: bool,
}

impl Agreement {
    /// Whether the device's predictions are as good as the CPU's. Of plain floats only rounding may differ (activations are
    /// f16 where a GPU multiplies many rows), and tokens at near ties. Of quantized weights activations are rounded otherwise, to 8 bits in larger blocks. The small random models
    /// that are tried feel it much more (up to 0.1 nats, 81% of the tokens: routers choose others) than trained ones do
    /// (0.003 nats): a fault is far beyond.
    pub fn is_good(&self) -> bool {
        let (limit, share) = match (self.is_quantized, self.is_trained) {
            (false, _) => (1e-4, 1.0),
            (true, false) => (0.2, 0.75),
            (true, true) => (0.01, 0.95),
        };
        let same = (self.same_best + self.near_ties) as f64;
        self.kl_to_cpu <= limit && self.repeats && same >= share * self.positions as f64
    }
}

/// What is compared.
#[derive(Clone, Debug, Default)]
pub struct Trial {
    /// The device.
    pub device: DeviceChoice,
    /// What the weights are quantized to; none: they are as they are stored.
    pub mix: Option<Mix>,
    /// Layers that go to the device, the last ones; none: all.
    pub gpu_layers: Option<usize>,
    /// How keys and values are stored.
    pub kv_type: KvType,
}

/// Compares a checkpoint (a folder, perhaps with a `reference.safetensors` of `input_ids` and `logits`, or a GGUF file).
///
/// # Errors
/// A checkpoint that cannot be loaded; a device that is not there.
pub fn agreement(path: &Path, trial: &Trial) -> Result<Agreement> {
    let checkpoint = Checkpoint::open(path)?;
    let width = Hyperparameters::read(&checkpoint)?.vocabulary;
    let reference = Logits::read(&path.join("reference.safetensors"), width)?;
    compare(&checkpoint, reference, !path.is_dir(), trial)
}

/// Compares the first layers of a model of the catalog, with random weights in its types.
///
/// # Errors
/// A name that the catalog does not know; as [`agreement`].
pub fn synthetic_agreement(name: &str, layers: usize, trial: &Trial) -> Result<Agreement> {
    compare(&Synthetic::new(name, Some(layers))?.checkpoint(), None, false, trial)
}

fn compare(
    checkpoint: &Checkpoint,
    reference: Option<Logits>,
    is_trained: bool,
    trial: &Trial,
) -> Result<Agreement> {
    let h = Hyperparameters::read(checkpoint)?;
    let ids = reference.as_ref().map_or_else(|| some_tokens(h.vocabulary), |reference| reference.ids.clone());

    let cpu: Box<dyn Backend> = Box::new(CpuBackend::new(CpuOptions::default())?);
    let mut cpu = engine(checkpoint, &h, trial, cpu, ids.len())?;
    let mut device = engine(checkpoint, &h, trial, on_device(trial, h.layers)?, ids.len())?;
    let (ours, theirs) = (logits(&mut cpu, &ids)?, logits(&mut device, &ids)?);
    let repeats = logits(&mut device, &ids)? == theirs;

    let width = h.vocabulary;
    let kl_to_reference = |found: &[f32]| reference.as_ref().map(|r| mean_kl(&r.logits, found, width));
    let rows = || ours.chunks_exact(width).zip(theirs.chunks_exact(width));
    Ok(Agreement {
        device: device.device().to_string(),
        kl_to_reference: kl_to_reference(&theirs),
        cpu_kl_to_reference: kl_to_reference(&ours),
        kl_to_cpu: mean_kl(&ours, &theirs, width),
        same_best: rows().filter(|(a, b)| argmax(a) == argmax(b)).count(),
        near_ties: rows()
            .filter(|(a, b)| {
                let (ours, theirs) = (argmax(a) as usize, argmax(b) as usize);
                ours != theirs && a[ours] - a[theirs] < NEAR_TIE
            })
            .count(),
        positions: ids.len(),
        is_quantized: trial.mix.is_some() || checkpoint.tensors.values().any(|t| t.kind.block_len() > 1),
        is_trained,
        repeats,
    })
}

fn on_device(trial: &Trial, layers: usize) -> Result<Box<dyn Backend>> {
    let mut gpus = trial.device.open()?.gpus;
    if gpus.is_empty() {
        return Err(Error::Usage("there is nothing to compare the CPU with: name a --device".into()));
    }
    let on_gpus = trial.gpu_layers.unwrap_or(layers).min(layers);
    let count = gpus.len().min(on_gpus.max(1));
    let mut parts: Vec<(Box<dyn Backend>, usize)> = Vec::new();
    if on_gpus < layers {
        parts.push((Box::new(CpuBackend::new(CpuOptions::default())?), layers - on_gpus));
    }
    for (i, gpu) in gpus.drain(..count).enumerate() {
        parts.push((gpu.backend, on_gpus * (i + 1) / count - on_gpus * i / count));
    }
    Ok(if parts.len() == 1 { parts.remove(0).0 } else { Box::new(SplitBackend::new(parts)) })
}

fn engine(
    checkpoint: &Checkpoint,
    h: &Hyperparameters,
    trial: &Trial,
    mut backend: Box<dyn Backend>,
    tokens: usize,
) -> Result<Engine> {
    let conversion = trial.mix.map(|mix| Conversion::new(mix, checkpoint, h));
    let decoder = Decoder::load_as(checkpoint, h, conversion.as_ref(), &mut *backend, &mut |_, _| ())?;
    let plan = Plan {
        rows: tokens,
        logit_rows: tokens,
        sequences: 1,
        pages: tokens.div_ceil(PAGE_LEN),
        kv_type: trial.kv_type,
    };
    Engine::new(backend, decoder, plan)
}

/// Logits after each token, [tokens, vocabulary]: of most in one step, of the last ones one by one.
fn logits(engine: &mut Engine, ids: &[u32]) -> Result<Vec<f32>> {
    let mut sequence = Sequence::new();
    let mut all = Vec::new();
    let (first, last) = ids.split_at(ids.len().saturating_sub(DECODED).max(1).min(ids.len()));
    for tokens in [first].into_iter().chain(last.chunks(1)) {
        let feed = Feed { sequence: &mut sequence, tokens, wants: Wants::All };
        all.extend_from_slice(engine.step(&mut [feed])?);
    }
    Ok(all)
}

/// Tokens without a meaning, the same on every machine.
fn some_tokens(vocabulary: usize) -> Vec<u32> {
    (1..=TOKENS as u64).map(|i| (i * 2_654_435_761 % vocabulary as u64) as u32).collect()
}

/// Mean KL divergence of rows of logits, nats.
fn mean_kl(reference: &[f32], found: &[f32], width: usize) -> f64 {
    let rows = reference.chunks_exact(width).zip(found.chunks_exact(width));
    let kl = |(p, q): (&[f32], &[f32])| {
        let (p_sum, q_sum) = (log_sum(p), log_sum(q));
        let term = |(&p, &q): (&f32, &f32)| {
            let (p, q) = (f64::from(p) - p_sum, f64::from(q) - q_sum);
            p.exp() * (p - q)
        };
        p.iter().zip(q).map(term).sum::<f64>()
    };
    rows.map(kl).sum::<f64>() / (reference.len() / width) as f64
}

/// A reference's tokens and logits.
struct Logits {
    ids: Vec<u32>,
    /// [ids, vocabulary]
    logits: Vec<f32>,
}

impl Logits {
    /// None where there is no such file.
    fn read(path: &Path, vocabulary: usize) -> Result<Option<Logits>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(_) => return Ok(None), // a single file has no neighbours
        };
        let wrong = |what: String| Error::file(path, what);
        let file = safetensors::SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
        let tensor = |name: &str| file.tensor(name).map_err(|e| wrong(format!("{name}: {e}")));
        let (ids, logits) = (tensor("input_ids")?, tensor("logits")?);
        let ids: Vec<u32> =
            ids.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
        let logits: Vec<f32> =
            logits.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        if ids.is_empty() || logits.len() != ids.len() * vocabulary {
            return Err(wrong(format!("{} logits for {} tokens of {vocabulary}", logits.len(), ids.len())));
        }
        Ok(Some(Logits { ids, logits }))
    }
}
