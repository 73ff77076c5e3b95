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
pub const ROOM: usize = 8192;

impl Quantize {
    /// What a model is loaded with. `fits` says whether memory has room for so many bytes of weights.
    pub fn conversion(
        self,
        checkpoint: &Checkpoint,
        h: &Hyperparameters,
        fits: impl Fn(u64) -> bool,
    ) -> Option<Conversion> {
        let to = |mix| Conversion::new(mix, checkpoint, h);
        match self {
            Quantize::Never => None,
            Quantize::To(mix) => {
                let stored = loaded_bytes(checkpoint, None);
                Some(to(mix)).filter(|to| loaded_bytes(checkpoint, Some(to)) < stored) // else nothing changes
            }
            Quantize::Auto if !fits(0) => None, // it is the context that memory has no room for
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
            name => {
                // there is no text to calibrate by
                let mix = Mix::parse(name).filter(|mix| !mix.wants_importance());
                mix.map(Quantize::To).ok_or_else(|| {
                    let names = Mix::all().filter(|mix| !mix.wants_importance()).map(|mix| mix.name);
                    format!("there are auto, none, {}", names.collect::<Vec<_>>().join(", "))
                })
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// F32 and 8-bit floats.
    fn plain() -> (Checkpoint, Hyperparameters) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/arch/deepseek-v3-fp8");
        let checkpoint = Checkpoint::open(path).unwrap();
        let h = Hyperparameters::read(&checkpoint).unwrap();
        (checkpoint, h)
    }

    #[test]
    fn what_fits_is_left_as_it_is_and_what_does_not_is_quantized_no_further_than_it_has_to() {
        let (checkpoint, h) = plain();
        let chosen = |room: u64| Quantize::Auto.conversion(&checkpoint, &h, |bytes| bytes <= room);
        let stored = loaded_bytes(&checkpoint, None);
        assert!(stored > checkpoint.total_bytes(), "8-bit floats take more once they are decoded");
        assert!(chosen(stored).is_none());
        assert_eq!(chosen(stored - 1).unwrap().mix.name, "Q8_0");
        let q8_0 = loaded_bytes(&checkpoint, chosen(stored - 1).as_ref());
        assert_eq!(chosen(q8_0).unwrap().mix.name, "Q8_0");
        let smaller = chosen(q8_0 - 1).unwrap();
        assert!(smaller.mix.name != "Q8_0" && loaded_bytes(&checkpoint, Some(&smaller)) < q8_0);
        assert_eq!(chosen(0).unwrap().mix.name, "Q3_K_M", "the last is taken even if it does not fit");
    }

    #[test]
    fn a_context_that_memory_has_no_room_for_is_no_reason_to_quantize() {
        let (checkpoint, h) = plain();
        assert!(Quantize::Auto.conversion(&checkpoint, &h, |_| false).is_none());
    }

    #[test]
    fn only_what_is_asked_for_is_done_to_what_is_quantized_already() {
        let (plain, _) = plain();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("q8_0.gguf");
        let mix = Mix::parse("Q8_0").unwrap();
        super::super::quantize(&plain, mix, &path, &crate::CancelHandle::new(), |_, _| ()).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let h = Hyperparameters::read(&checkpoint).unwrap();
        assert!(Quantize::Auto.conversion(&checkpoint, &h, |_| false).is_none());
        assert!(Quantize::Never.conversion(&checkpoint, &h, |_| false).is_none());
        let more: Quantize = "F16".parse().unwrap();
        assert!(more.conversion(&checkpoint, &h, |_| true).is_none(), "nothing gets more bits than it has");
        let asked: Quantize = "Q4_0".parse().unwrap();
        assert_eq!(asked.conversion(&checkpoint, &h, |_| true).unwrap().mix.name, "Q4_0");
    }

    #[test]
    fn the_words_of_the_command_line_are_understood_in_any_case() {
        for (text, name) in [("auto", "auto"), ("None", "none"), ("q4_k", "Q4_K_M"), ("Q8_0", "Q8_0")] {
            assert_eq!(text.parse::<Quantize>().unwrap().to_string(), name);
        }
        assert!("q9".parse::<Quantize>().unwrap_err().starts_with("there are auto, none, F32"));
    }
}
