//! Measuring a model: tokens per second, perplexity, divergence from a reference.

use std::path::Path;
use std::time::Instant;

use super::Model;
use super::generation::lock;
use crate::engine::{Feed, Sequence, Wants};
use crate::{Error, Result};

/// What is timed: a prompt of so many tokens, or the generation of so many, after so many in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpeedTest {
    /// Tokens of the prompt; 0 for a test of generation.
    pub prompt: usize,
    /// Tokens generated, one at a time; 0 for a test of a prompt.
    pub generate: usize,
    /// Tokens in the cache before.
    pub depth: usize,
}

impl std::fmt::Display for SpeedTest {
    /// `pp512`, `tg128`, `tg128@d4096`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.prompt {
            0 => write!(f, "tg{}", self.generate)?,
            n => write!(f, "pp{n}")?,
        }
        match self.depth {
            0 => Ok(()),
            depth => write!(f, "@d{depth}"),
        }
    }
}

/// Times a model. The cache of a depth is filled once and used by all tests at that depth.
pub struct Stopwatch {
    model: Model,
    filled: Sequence,
}

impl Stopwatch {
    /// A stopwatch for this model.
    pub fn new(model: &Model) -> Self {
        Stopwatch { model: model.clone(), filled: Sequence::new() }
    }

    /// Runs a test once; gives tokens per second.
    ///
    /// # Errors
    /// A test that the context does not hold.
    pub fn run(&mut self, test: SpeedTest) -> Result<f64> {
        let tokens = test.prompt + test.generate;
        if test.depth + tokens > self.model.context() {
            return Err(Error::Context { prompt: test.depth + tokens, context: self.model.context() });
        }
        self.fill(test.depth)?;
        let mut sequence = self.filled.fork(test.depth);
        let began = Instant::now();
        self.read(&mut sequence, test.prompt)?;
        for _ in 0..test.generate {
            self.read(&mut sequence, 1)?;
        }
        Ok(tokens as f64 / began.elapsed().as_secs_f64())
    }

    fn fill(&mut self, depth: usize) -> Result<()> {
        let mut filled = std::mem::take(&mut self.filled);
        filled.truncate(depth);
        let missing = depth - filled.len();
        self.read(&mut filled, missing)?;
        self.filled = filled;
        Ok(())
    }

    /// Feeds so many tokens to a sequence; the logits of the last are computed, as in a generation.
    fn read(&self, sequence: &mut Sequence, tokens: usize) -> Result<()> {
        let mut engine = lock(&self.model.inner.engine);
        let vocabulary = engine.decoder().hyperparameters().vocabulary;
        // any tokens do: the work does not depend on which
        let some: Vec<u32> =
            (0..tokens).map(|i| ((sequence.len() + i) * 7919 % vocabulary.min(30_000)) as u32).collect();
        for chunk in some.chunks(engine.max_rows()) {
            engine.step(&mut [Feed { sequence, tokens: chunk, wants: Wants::Last }])?;
        }
        Ok(())
    }
}

/// How far a model is from a text, or from a reference.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Quality {
    /// exp of the mean negative log-likelihood of the tokens that count.
    pub perplexity: f64,
    /// Mean KL divergence from the reference, nats.
    pub kl: Option<f64>,
    /// Share of positions at which the most likely token is the reference's.
    pub top1: Option<f64>,
    /// Positions that count.
    pub positions: usize,
}

/// Perplexity of a text in windows of `window` tokens, of which the second half counts (as llama-perplexity does it).
/// `progress` is told (windows done, windows in all, perplexity so far).
///
/// # Errors
/// A text shorter than one window, or a window that the context does not hold.
pub fn perplexity(
    model: &Model,
    tokens: &[u32],
    window: usize,
    mut progress: impl FnMut(usize, usize, f64),
) -> Result<Quality> {
    let windows = tokens.len() / window;
    if windows == 0 || window < 4 {
        return Err(Error::Usage(format!(
            "a text of {} tokens is less than one window of {window}",
            tokens.len()
        )));
    }
    let bos = model.tokenizer().bos().filter(|(_, wanted)| *wanted).map(|(id, _)| id);
    let (mut sum, mut positions) = (0.0, 0);
    for (done, text) in tokens.chunks_exact(window).enumerate() {
        let mut text = text.to_vec();
        if let Some(bos) = bos {
            text[0] = bos;
        }
        // the first half is context; the last position predicts a token beyond the window
        let counted = window / 2..window - 1;
        model.evaluate(&text, |position, logits| {
            if counted.contains(&position) {
                sum -= log_probability(logits, text[position + 1]);
            }
        })?;
        positions += counted.len();
        progress(done + 1, windows, (sum / positions as f64).exp());
    }
    Ok(Quality { perplexity: (sum / positions as f64).exp(), kl: None, top1: None, positions })
}

/// Divergence from a reference: a safetensors file with `input_ids` [T], `top_ids` [T, K] and `top_logprobs` [T, K],
/// the reference's K most likely next tokens at each position. KL is over K + 1 classes: those, and all the rest.
///
/// # Errors
/// A file that is not such a reference.
pub fn divergence(model: &Model, path: &Path) -> Result<Quality> {
    let reference = Reference::read(path)?;
    let ids = &reference.input_ids;
    let (mut kl, mut agreed, mut surprise) = (0.0, 0, 0.0);
    model.evaluate(ids, |position, logits| {
        let of = position * reference.top..(position + 1) * reference.top;
        let top = reference.top_ids[of.clone()].iter().zip(&reference.top_logprobs[of]);
        kl += kl_over_top(logits, top);
        agreed += usize::from(
            crate::engine::sampling::argmax(logits) == reference.top_ids[position * reference.top],
        );
        if let Some(&next) = ids.get(position + 1) {
            surprise -= log_probability(logits, next);
        }
    })?;
    let positions = ids.len();
    Ok(Quality {
        perplexity: (surprise / (positions - 1).max(1) as f64).exp(),
        kl: Some(kl / positions as f64),
        top1: Some(agreed as f64 / positions as f64),
        positions,
    })
}

/// ln of the sum of exp, and the logits' maximum.
fn log_sum(logits: &[f32]) -> f64 {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - best).exp()).sum();
    f64::from(best) + sum.ln()
}

fn log_probability(logits: &[f32], token: u32) -> f64 {
    f64::from(logits[token as usize]) - log_sum(logits)
}

fn kl_over_top<'a>(logits: &[f32], top: impl Iterator<Item = (&'a u32, &'a f32)>) -> f64 {
    let log_sum = log_sum(logits);
    let (mut kl, mut rest_p, mut rest_q) = (0.0, 1.0, 1.0);
    for (&id, &log_p) in top {
        let (log_p, log_q) = (f64::from(log_p), f64::from(logits[id as usize]) - log_sum);
        kl += log_p.exp() * (log_p - log_q);
        rest_p -= log_p.exp();
        rest_q -= log_q.exp();
    }
    if rest_p > 1e-9 {
        kl += rest_p * (rest_p / rest_q.max(1e-12)).ln();
    }
    kl
}

struct Reference {
    input_ids: Vec<u32>,
    top_ids: Vec<u32>,
    top_logprobs: Vec<f32>,
    top: usize, // K
}

impl Reference {
    fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let fault = |what: String| Error::file(path, what);
        let file = safetensors::SafeTensors::deserialize(&bytes)
            .map_err(|e| fault(format!("is not a safetensors file: {e}")))?;
        let tensor = |name: &str, kind: safetensors::Dtype| {
            let tensor = file.tensor(name).map_err(|_| fault(format!("has no tensor {name}")))?;
            if tensor.dtype() != kind {
                return Err(fault(format!("tensor {name} is {:?}, not {kind:?}", tensor.dtype())));
            }
            Ok(tensor)
        };
        let ids = |name: &str| -> Result<Vec<u32>> {
            let tensor = tensor(name, safetensors::Dtype::I64)?;
            let (words, _) = tensor.data().as_chunks::<8>();
            words
                .iter()
                .map(|w| u32::try_from(i64::from_le_bytes(*w)))
                .collect::<Result<_, _>>()
                .map_err(|_| fault(format!("tensor {name} holds an id that is none")))
        };
        let (input_ids, top_ids) = (ids("input_ids")?, ids("top_ids")?);
        let (words, _) = tensor("top_logprobs", safetensors::Dtype::F32)?.data().as_chunks::<4>();
        let top_logprobs: Vec<f32> = words.iter().map(|w| f32::from_le_bytes(*w)).collect();
        let top = top_ids.len().checked_div(input_ids.len()).unwrap_or(0);
        if top == 0 || top * input_ids.len() != top_ids.len() || top_logprobs.len() != top_ids.len() {
            return Err(fault(
                "input_ids [T], top_ids [T, K] and top_logprobs [T, K] do not fit together".into(),
            ));
        }
        Ok(Reference { input_ids, top_ids, top_logprobs, top })
    }
}
