//! What a model needs of memory, and what there is.

pub use crate::backend::available_and_total_bytes;
use crate::backend::cpu::attention_scratch_bytes;
use crate::backend::{KvType, PAGE_LEN};
use crate::model::Hyperparameters;
use crate::{Error, Result, catalog};

/// Smallest context that a model is loaded with when memory is short, tokens.
const SMALLEST_CONTEXT: usize = 2048;

/// Rows of a prefill chunk: enough to use each weight many times, few enough to stay in the caches.
pub(super) const CHUNK: usize = 512;

/// Rows whose logits one step can give.
const LOGIT_ROWS: usize = 16;

/// What a model is made ready for.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Most rows of a step.
    pub chunk: usize,
    /// Most rows of a step that want logits.
    pub logit_rows: usize,
    /// Sequences of a full context.
    pub sequences: usize,
    /// How keys and values are stored.
    pub kv_type: KvType,
}

impl Default for Sizes {
    fn default() -> Self {
        Sizes { chunk: CHUNK, logit_rows: LOGIT_ROWS, sequences: 1, kv_type: KvType::default() }
    }
}

/// What loading takes.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// The matrices, bytes: all that are multiplied. Not an embedding of which rows are looked up in the file.
    pub weights: u64,
    /// Of these, what may stay in the file and be read as it is needed: experts, of which a token goes to a few.
    pub experts: u64,
    /// Buffers for activations, bytes.
    pub buffers: u64,
    /// A KV page, and what attention needs for it, bytes.
    pub page: u64,
}

impl Needs {
    /// Of a model of these shapes with so many bytes of matrices, `experts` of them in a file.
    pub fn new(h: &Hyperparameters, weights: u64, experts: u64, sizes: Sizes) -> Needs {
        let Sizes { chunk, logit_rows, sequences, kv_type } = sizes;
        let kv = h.kv_shape();
        let page = h.layers * kv.page_bytes(kv_type) + attention_scratch_bytes(kv, kv_type, h.heads);
        let logit_rows = logit_rows.max(sequences);
        let buffers = 4 * (chunk * h.activation_width() + logit_rows * h.logits_row_width());
        Needs { weights, experts, buffers: buffers as u64, page: (page * sequences) as u64 }
    }

    /// Bytes in all, with a context of so many tokens.
    pub fn total(&self, context: usize) -> u64 {
        (self.weights + self.buffers).saturating_add((pages(context) as u64).saturating_mul(self.page))
    }

    /// The context to load with: the wanted one, else the model's own, lowered to what fits.
    ///
    /// # Errors
    /// [`Error::Memory`] where that does not fit, unless `force`.
    pub fn context(&self, wanted: Option<usize>, own: usize, available: u64, force: bool) -> Result<usize> {
        let context = wanted.unwrap_or(own);
        if force || self.total(context) - self.experts <= available {
            return Ok(context);
        }
        let fits = self.fits(available);
        match wanted {
            None if fits >= SMALLEST_CONTEXT.min(own) => Ok(fits.min(own)),
            _ => Err(Error::Memory(self.refusal(wanted.unwrap_or(SMALLEST_CONTEXT.min(own)), available))),
        }
    }

    /// Bytes of weights that may be held in memory of their own, beside a context of so many tokens: all if everything
    /// fits. If not, what is left with an eighth of memory kept free; other weights stay in the mapped file, whose pages
    /// the system takes and gives.
    pub fn weights_in_memory(&self, context: usize, available: u64) -> u64 {
        if self.total(context) <= available {
            return u64::MAX;
        }
        (available - available / 8).saturating_sub(self.total(context) - self.weights)
    }

    /// Bytes of memory that are left for experts beside all else.
    pub fn room_for_experts(&self, context: usize, available: u64) -> u64 {
        available.saturating_sub(self.total(context) - self.experts)
    }

    /// Tokens of context that fit beside the weights.
    fn fits(&self, available: u64) -> usize {
        let room = available.saturating_sub(self.weights - self.experts + self.buffers);
        (room / self.page.max(1)) as usize * PAGE_LEN
    }

    fn refusal(&self, context: usize, available: u64) -> String {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let advice = match (self.fits(available), catalog::largest_that_fits(available, context)) {
            (fits, _) if fits >= SMALLEST_CONTEXT.min(context) => format!("--context {fits} fits"),
            (_, Some(entry)) => format!("the largest model of the catalog that fits is {}", entry.name),
            _ => "no model of the catalog fits".to_owned(),
        };
        let all = self.total(context) - self.experts; // which may stay in the file
        format!(
            "needs {:.1} GiB (weights {:.1}, context of {context} tokens {:.1}), and {:.1} GiB of memory are available: \
             {advice}; --force loads it all the same",
            gib(all),
            gib(self.weights - self.experts),
            gib(all - (self.weights - self.experts)),
            gib(available),
        )
    }
}

/// KV pages for a context of so many tokens.
pub(super) fn pages(context: usize) -> usize {
    context.div_ceil(PAGE_LEN)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::model::{Conversion, Reads};
    use crate::quant::Mix;

    const MIB: u64 = 1 << 20;
    const NEEDS: Needs = Needs { weights: 1000 * MIB, experts: 0, buffers: 100 * MIB, page: MIB };

    #[test]
    fn a_context_that_fits_is_taken() {
        assert_eq!(NEEDS.context(None, 32768, 2000 * MIB, false).unwrap(), 32768);
        assert_eq!(NEEDS.context(Some(100), 32768, 2000 * MIB, false).unwrap(), 100);
    }

    #[test]
    fn the_models_own_context_is_lowered_to_what_fits() {
        assert_eq!(NEEDS.context(None, 32768, 1200 * MIB, false).unwrap(), 100 * PAGE_LEN);
    }

    #[test]
    fn weights_are_held_in_memory_as_far_as_it_goes() {
        let context = 10 * PAGE_LEN; // needs 1110 MiB in all
        assert_eq!(NEEDS.weights_in_memory(context, 1110 * MIB), u64::MAX);
        assert_eq!(NEEDS.weights_in_memory(context, 800 * MIB), 590 * MIB);
        assert_eq!(NEEDS.weights_in_memory(context, 100 * MIB), 0);
    }

    #[test]
    fn experts_may_stay_in_the_file() {
        let needs = Needs { experts: 800 * MIB, ..NEEDS };
        assert_eq!(needs.context(None, 100 * PAGE_LEN, 400 * MIB, false).unwrap(), 100 * PAGE_LEN);
        assert_eq!(needs.context(None, 32768, 350 * MIB, false).unwrap(), 50 * PAGE_LEN);
        assert!(needs.context(None, 32768, 310 * MIB, false).is_err());
        assert_eq!(needs.weights_in_memory(100 * PAGE_LEN, 400 * MIB), 150 * MIB);
        assert_eq!(needs.room_for_experts(50 * PAGE_LEN, 400 * MIB), 50 * MIB);
        assert_eq!(needs.room_for_experts(50 * PAGE_LEN, 100 * MIB), 0);
    }

    #[test]
    fn only_experts_that_lie_in_the_file_as_they_are_multiplied_may_stay_there() {
        let open = |path: &Path| {
            let checkpoint = Checkpoint::open(path).unwrap();
            let h = Hyperparameters::read(&checkpoint).unwrap();
            (checkpoint, h)
        };
        let folder = tempfile::tempdir().unwrap();
        for name in ["gpt-oss-mxfp4", "deepseek-v3-fp8"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/arch").join(name);
            let (checkpoint, h) = open(&path);
            let decoded = Reads::of(&checkpoint, &h, None);
            assert!(decoded.all_experts > 0 && decoded.experts_in_file == 0, "{name}: {decoded:?}");
            let [file, q4_0] = ["mxfp4_moe", "q4_0"].map(|mix| Mix::parse(mix).unwrap());
            let gguf = folder.path().join(name);
            crate::api::quantize(&checkpoint, file, &gguf, &crate::CancelHandle::new(), |_, _| ()).unwrap();
            let (checkpoint, h) = open(&gguf);
            let mapped = Reads::of(&checkpoint, &h, None);
            assert!(mapped.all_experts > 0 && mapped.experts_in_file == mapped.all_experts, "{name}");
            let to = Conversion::new(q4_0, &checkpoint, &h);
            assert_eq!(Reads::of(&checkpoint, &h, Some(&to)).experts_in_file, 0, "{name}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let error = NEEDS.context(None, 32768, 1110 * MIB, false).unwrap_err().to_string();
        assert!(error.contains("weights 1.0") && error.contains("1.1 GiB of memory"), "{error}");
        let error = NEEDS.context(Some(32768), 32768, 1200 * MIB, false).unwrap_err().to_string();
        assert!(error.contains("--context 6400 fits"), "{error}");
        assert_eq!(NEEDS.context(Some(32768), 32768, 1200 * MIB, true).unwrap(), 32768);
    }
}
