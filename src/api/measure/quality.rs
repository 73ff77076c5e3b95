//! How well a model predicts a text, and how far it is from a reference.

use std::path::{Path, PathBuf};

use crate::api::Model;
use crate::engine::sampling::argmax;
use crate::text::Special;
use crate::{Error, Result};

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

/// Perplexity of a text as llama-perplexity computes it: the text's tokens (special tokens read as text, the last line end
/// left out) are cut into windows of `window`, each read by itself, the rest at the end is left out; of each window
/// the tokens of the second half but its first count. If the model wants a BOS, it takes the place of each window's
/// first token. `progress` is told (windows done, windows in all, perplexity so far).
///
/// # Errors
/// A text shorter than one window, or a window that the context does not hold.
pub fn perplexity(
    model: &Model,
    text: &str,
    window: usize,
    mut progress: impl FnMut(usize, usize, f64),
) -> Result<Quality> {
    let (tokens, bos) = windowed_tokens(model, text)?;
    if window < 4 || tokens.len() < window {
        return Err(Error::Usage(format!(
            "the text has {} tokens and a window {window}: it takes at least one window, of 4 or more",
            tokens.len()
        )));
    }
    let windows = tokens.len() / window;
    let (mut sum, mut positions) = (0.0, 0);
    for (done, window) in tokens.chunks_exact(window).enumerate() {
        let mut window = window.to_vec();
        window[0] = bos.unwrap_or(window[0]);
        let half = window.len() / 2;
        model.evaluate_from(&window, half, |position, logits| {
            // the last one predicts a token beyond the window
            if let Some(&next) = window.get(position + 1) {
                sum -= log_probability(logits, next);
                positions += 1;
            }
        })?;
        progress(done + 1, windows, (sum / positions as f64).exp());
    }
    Ok(Quality { perplexity: (sum / positions as f64).exp(), kl: None, top1: None, positions })
}

/// A text's tokens, and the BOS, if the model wants one; it then stands in front of them.
fn windowed_tokens(model: &Model, text: &str) -> Result<(Vec<u32>, Option<u32>)> {
    let tokenizer = model.tokenizer();
    let bos = tokenizer.bos().filter(|(_, wanted)| *wanted).map(|(id, _)| id);
    let tokens = tokenizer.encode(text.strip_suffix('\n').unwrap_or(text), Special::Text)?;
    Ok((bos.into_iter().chain(tokens).collect(), bos))
}

/// Divergence from a reference. KL is over K + 1 classes: the reference's K most likely tokens, and all the rest.
/// `progress` is told (positions done, positions in all).
///
/// # Errors
/// A reference of another vocabulary, or longer than the context.
pub fn divergence(
    model: &Model,
    reference: &Reference,
    mut progress: impl FnMut(usize, usize),
) -> Result<Quality> {
    let Reference { input_ids: ids, top, .. } = reference;
    reference.check(model.vocabulary())?;
    let (mut kl, mut agreed, mut surprise) = (0.0, 0, 0.0);
    model.evaluate(ids, |position, logits| {
        let top = &top[position];
        kl += kl_over_top(logits, top);
        agreed += usize::from(argmax(logits) == top[0].0);
        if let Some(&next) = ids.get(position + 1) {
            surprise -= log_probability(logits, next);
        }
        progress(position + 1, ids.len());
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
pub(super) fn log_sum(logits: &[f32]) -> f64 {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - best).exp()).sum();
    f64::from(best) + sum.ln()
}

fn log_probability(logits: &[f32], token: u32) -> f64 {
    f64::from(logits[token as usize]) - log_sum(logits)
}

/// KL divergence, nats, of the softmax of `logits` from a reference that is known at its most likely tokens, with their
/// log-probabilities, and as the sum of the rest.
fn kl_over_top(logits: &[f32], top: &[(u32, f32)]) -> f64 {
    let log_sum = log_sum(logits);
    let (mut kl, mut rest_p, mut rest_q) = (0.0, 1.0, 1.0);
    for &(id, log_p) in top {
        let (log_p, log_q) = (f64::from(log_p), f64::from(logits[id as usize]) - log_sum);
        kl += log_p.exp() * (log_p - log_q);
        rest_p -= log_p.exp();
        rest_q -= log_q.exp();
    }
    // what rounding leaves of nothing is not a class
    if rest_p > 1e-9 {
        kl += rest_p * (rest_p / rest_q.max(1e-12)).ln();
    }
    kl
}

/// Tokens, and what a reference implementation says about the token after each.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    path: PathBuf,
    /// [T], at least one.
    input_ids: Vec<u32>,
    /// [T][K]: the most likely next tokens, best first, with their log-probabilities.
    top: Vec<Vec<(u32, f32)>>,
}

impl Reference {
    /// Reads a safetensors file with `input_ids` (T values) and `top_ids` (T × K), both I64, and `top_logprobs` (T × K), F32: the
    /// K most likely next tokens at each position, best first.
    ///
    /// # Errors
    /// A file that cannot be read, or is not such a reference; the error names the tensor.
    pub fn read(path: &Path) -> Result<Self> {
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
            let ids = words.iter().map(|w| u32::try_from(i64::from_le_bytes(*w)));
            ids.collect::<Result<_, _>>()
                .map_err(|_| fault(format!("tensor {name} holds an id that is none")))
        };
        let (input_ids, top_ids) = (ids("input_ids")?, ids("top_ids")?);
        let (words, _) = tensor("top_logprobs", safetensors::Dtype::F32)?.data().as_chunks::<4>();
        let log_probabilities: Vec<f32> = words.iter().map(|w| f32::from_le_bytes(*w)).collect();
        let k = top_ids.len().checked_div(input_ids.len()).unwrap_or(0);
        if k == 0 || k * input_ids.len() != top_ids.len() || log_probabilities.len() != top_ids.len() {
            return Err(fault(
                "input_ids [T], top_ids [T, K] and top_logprobs [T, K] do not fit together".into(),
            ));
        }
        if log_probabilities.iter().any(|p| !p.is_finite()) {
            return Err(fault("tensor top_logprobs holds what is no finite number".into()));
        }
        let pairs: Vec<(u32, f32)> = top_ids.into_iter().zip(log_probabilities).collect();
        let top = pairs.chunks(k).map(<[_]>::to_vec).collect();
        Ok(Reference { path: path.to_owned(), input_ids, top })
    }

    /// Its positions: the context that it takes.
    pub fn positions(&self) -> usize {
        self.input_ids.len()
    }

    /// Whether all its tokens are in a vocabulary of this size.
    fn check(&self, vocabulary: usize) -> Result<()> {
        let ids = self.input_ids.iter().chain(self.top.iter().flatten().map(|(id, _)| id));
        match ids.copied().find(|&id| id as usize >= vocabulary) {
            Some(id) => Err(Error::file(
                &self.path,
                format!(
                    "has token {id}, and the model's vocabulary {vocabulary}: it is another model's reference"
                ),
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{Dtype, TensorView};

    /// Logits of these probabilities, shifted: a softmax does not see that.
    fn logits(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln() + 3.0).collect()
    }

    #[test]
    fn the_log_probability_is_that_of_the_softmax() {
        let of = logits(&[0.5, 0.25, 0.125, 0.125]);
        assert!((log_probability(&of, 1) - 0.25f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn logits_that_overflow_exp_have_a_log_probability() {
        assert!((log_probability(&[1000.0, 1000.0], 0) - 0.5f64.ln()).abs() < 1e-9);
    }

    #[test]
    fn a_model_does_not_diverge_from_itself() {
        let top = [(0, 0.5f32.ln()), (1, 0.25f32.ln())];
        assert!(kl_over_top(&logits(&[0.5, 0.25, 0.125, 0.125]), &top).abs() < 1e-6);
    }

    #[test]
    fn divergence_counts_the_rest_as_one_class() {
        let top = [(0, 0.5f32.ln())];
        // 0.5 ln(0.5 / 0.8) + 0.5 ln(0.5 / 0.2), however the rest is divided
        let expected = 0.5 * (0.5f64 / 0.8).ln() + 0.5 * (0.5f64 / 0.2).ln();
        for rest in [[0.1, 0.1], [0.15, 0.05]] {
            let kl = kl_over_top(&logits(&[0.8, rest[0], rest[1]]), &top);
            assert!((kl - expected).abs() < 1e-6, "{kl} {expected}");
        }
    }

    /// A tensor of a file: name, type, shape, bytes.
    type Stored = (&'static str, Dtype, Vec<usize>, Vec<u8>);

    /// A file with these tensors, and what reading it says.
    fn read(tensors: &[Stored]) -> (tempfile::TempDir, Result<Reference>) {
        let folder = tempfile::tempdir().unwrap();
        let views = tensors
            .iter()
            .map(|(name, kind, shape, data)| (*name, TensorView::new(*kind, shape.clone(), data).unwrap()));
        let path = folder.path().join("reference.safetensors");
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        let reference = Reference::read(&path);
        (folder, reference)
    }

    fn ids(name: &'static str, shape: &[usize], ids: &[i64]) -> Stored {
        (name, Dtype::I64, shape.to_vec(), ids.iter().flat_map(|id| id.to_le_bytes()).collect())
    }

    fn log_probabilities(values: &[f32]) -> Stored {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        ("top_logprobs", Dtype::F32, vec![values.len()], bytes)
    }

    #[test]
    fn a_reference_is_read_by_position() {
        let (_folder, reference) = read(&[
            ids("input_ids", &[2], &[7, 8]),
            ids("top_ids", &[2, 2], &[8, 1, 2, 9]),
            log_probabilities(&[-0.5, -1.0, -0.25, -2.0]),
        ]);
        let reference = reference.unwrap();
        assert_eq!(reference.positions(), 2);
        assert_eq!(reference.top, [[(8, -0.5), (1, -1.0)], [(2, -0.25), (9, -2.0)]]);
        assert!(reference.check(10).is_ok());
        assert!(reference.check(9).unwrap_err().to_string().contains("token 9"));
    }

    #[test]
    fn a_file_that_is_no_reference_is_refused_by_tensor() {
        let (input, top) = (ids("input_ids", &[1], &[7]), ids("top_ids", &[1, 2], &[8, 1]));
        let cases = [
            (vec![input.clone(), top.clone()], "top_logprobs"),
            (vec![ids("input_ids", &[1], &[-7]), top.clone(), log_probabilities(&[-0.5, -1.0])], "input_ids"),
            (vec![input.clone(), top.clone(), log_probabilities(&[-0.5])], "do not fit"),
            (vec![input.clone(), top.clone(), log_probabilities(&[-0.5, f32::NAN])], "finite"),
            (
                vec![ids("input_ids", &[0], &[]), ids("top_ids", &[0], &[]), log_probabilities(&[])],
                "do not fit",
            ),
            (vec![input.clone(), input_as_floats(), log_probabilities(&[-0.5, -1.0])], "F32"),
        ];
        for (tensors, word) in cases {
            let message = read(&tensors).1.unwrap_err().to_string();
            assert!(message.contains("reference.safetensors") && message.contains(word), "{message}");
        }
    }

    fn input_as_floats() -> Stored {
        ("top_ids", Dtype::F32, vec![1, 2], vec![0; 8])
    }
}
