//! Files become hyperparameters and tensors: GGUF and safetensors, memory-mapped, checked, never trusted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::quant::BlockType;
use crate::{Error, Result};

/// A metadata value of a GGUF file. Integers of every width are widened.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// u8, u16, u32, u64
    Unsigned(u64),
    /// i8, i16, i32, i64
    Signed(i64),
    /// f32, f64
    Float(f64),
    /// bool
    Bool(bool),
    /// UTF-8 text
    String(String),
    /// An array of integers (also of booleans, as 0 and 1).
    Integers(Vec<i64>),
    /// An array of floats.
    Floats(Vec<f64>),
    /// An array of strings.
    Strings(Vec<String>),
}

/// What stands beside the tensors.
#[derive(Clone, Debug)]
pub enum Metadata {
    /// The key-value pairs of a GGUF file.
    Gguf(BTreeMap<String, Value>),
    /// The files of a Hugging Face repository.
    HuggingFace {
        /// config.json
        config: serde_json::Value,
        /// The folder, with tokenizer.json, generation_config.json and so on.
        folder: PathBuf,
    },
}

/// A tensor of a checkpoint: a view of a mapped file, row-major.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The name as the file has it.
    pub name: String,
    /// How its values are stored.
    pub kind: BlockType,
    /// Dimensions, slowest first: [rows, columns] for a matrix, [columns] for a vector.
    pub shape: Vec<usize>,
    data: Arc<memmap2::Mmap>,
    range: std::ops::Range<usize>,
}

impl Tensor {
    /// The stored bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.data[self.range.clone()]
    }

    /// Length of a row: the fastest dimension.
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of rows: the product of the other dimensions.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }

    /// All values, as f32.
    pub fn values(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows() * self.columns()];
        crate::quant::dequantize(self.kind, self.bytes(), &mut out);
        out
    }
}

/// An opened checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The files, in order of their parts.
    pub files: Vec<PathBuf>,
    /// What stands beside the tensors.
    pub metadata: Metadata,
    /// The tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    /// Opens a GGUF file (of a split one any part: the others are found beside it), a safetensors file, or a
    /// folder laid out as a Hugging Face repository.
    ///
    /// # Errors
    /// A file that is missing, truncated or inconsistent; the error names the file and the field.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Err(Error::file(path, "W1"))
    }
}
