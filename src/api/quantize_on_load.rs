//! Weights that are quantized while a model is loaded: whether, and to what.

use std::fmt;
use std::str::FromStr;

use crate::checkpoint::{Checkpoint, Tensor};
use crate::model::{Conversion, Hyperparameters, loaded_bytes};
use crate::quant::Mix;

/// What becomes of weights while a model is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantize {
    /// Plain floats (F32, F16, BF16, 8-bit floats) are quantized if they would take more than three quarters of the memory
    /// that is available, no further than they have to. What is quantized already stays as it is.
    #[default]
    Auto,
    /// They stay as they are stored.
    Never,
    /// Matrices get the types of a mix; those that are stored in as few bits already stay as they are.
    To(Mix),
}

/// What [`Quantize::Auto`] tries, finest first. The last is taken even if it does not fit.
const TRIED: [&str; 5] = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M"];

/// Context that must fit beside the weights, tokens, if none is asked for and the model's own is longer.
pub(crate) const ROOM: usize = 8192;

impl Quantize {
    /// What a model is loaded with. `fits` says whether memory has room for so many bytes of weights.
    pub(crate) fn conversion(
        self,
        checkpoint: &Checkpoint,
        h: &Hyperparameters,
        fits: impl Fn(u64) -> bool,
    ) -> Option<Conversion> {
        let to = |mix| Conversion::new(mix, checkpoint, h);
        match self {
            Quantize::Never => None,
            Quantize::To(mix) => Some(to(mix)),
            Quantize::Auto if !is_plain(checkpoint) || fits(loaded_bytes(checkpoint, None)) => None,
            Quantize::Auto => {
                let tried = || TRIED.iter().filter_map(|name| Mix::parse(name)).map(to);
                tried().find(|tried| fits(loaded_bytes(checkpoint, Some(tried)))).or(tried().next_back())
            }
        }
    }
}

/// Whether most of the weights are plain floats.
fn is_plain(checkpoint: &Checkpoint) -> bool {
    let values = |tensor: &Tensor| tensor.rows() as u64 * tensor.columns() as u64;
    let all: u64 = checkpoint.tensors.values().map(values).sum();
    let plain = checkpoint.tensors.values().filter(|tensor| tensor.kind.block_len() == 1);
    plain.map(values).sum::<u64>() > all / 2
}

impl FromStr for Quantize {
    type Err = String;

    /// `auto`, `none`, or a mix: `q4_k_m`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Quantize::Auto),
            "none" => Ok(Quantize::Never),
            name => Mix::parse(name).map(Quantize::To).ok_or_else(|| {
                format!("there are auto, none, {}", Mix::names().collect::<Vec<_>>().join(", "))
            }),
        }
    }
}

impl fmt::Display for Quantize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Quantize::Auto => "auto",
            Quantize::Never => "none",
            Quantize::To(mix) => mix.name,
        })
    }
}
