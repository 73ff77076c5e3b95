//! Files become hyperparameters and tensors: GGUF and safetensors, memory-mapped, checked, never trusted.

pub mod embedded;
mod encoded;
pub mod gguf;
mod mapping;
mod metadata;
pub(crate) mod safetensors;
mod split;
mod whole;
pub mod write;

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use encoded::Encoding;
pub use metadata::{FromValue, GgufMetadata, Metadata, Value};
pub use whole::WholeFile;

use crate::quant::BlockType;
use crate::{Error, Result};
use mapping::Storage;

/// A tensor of a checkpoint: a view of a mapped file, row-major. A clone shares the mapping.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The name as the file has it.
    pub name: String,
    /// How its values are stored.
    pub kind: BlockType,
    /// Dimensions, slowest first: `[rows, columns]` for a matrix, `[columns]` for a vector.
    pub shape: Vec<usize>,
    data: Arc<Storage>,
    range: Range<usize>,
    encoding: Encoding,
}

impl Tensor {
    /// A tensor in memory instead of a file.
    ///
    /// # Panics
    /// If `bytes` are not those of a tensor of this type and shape, or a row is no whole number of blocks.
    pub fn from_bytes(name: &str, kind: BlockType, shape: &[usize], bytes: Vec<u8>) -> Self {
        let expected = byte_len(kind, shape).expect("a row is whole blocks");
        assert_eq!(bytes.len(), expected, "bytes of tensor {name}");
        let range = 0..bytes.len();
        let data = Arc::new(Storage::Memory(bytes));
        let (name, shape) = (name.to_owned(), shape.to_owned());
        Tensor { name, kind, shape, data, range, encoding: Encoding::Blocks }
    }

    /// The stored bytes. They need not be aligned. Of a tensor that is stored otherwise than its type says they are of no
    /// use before it is [`decoded`](Self::decoded).
    pub fn bytes(&self) -> &[u8] {
        &self.data.bytes()[self.range.clone()]
    }

    /// Length of a row: the fastest dimension.
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of rows: the product of the other dimensions.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }

    /// Some of the rows, as a tensor of its own; it shares the mapping.
    ///
    /// # Panics
    /// If the rows do not exist.
    pub fn slice(&self, name: &str, rows: Range<usize>) -> Tensor {
        assert!(rows.end <= self.rows() && matches!(self.encoding, Encoding::Blocks), "rows of {name}");
        let row_bytes = self.kind.row_bytes(self.columns());
        let start = self.range.start;
        Tensor {
            name: name.to_owned(),
            kind: self.kind,
            shape: vec![rows.len(), self.columns()],
            data: Arc::clone(&self.data),
            range: start + rows.start * row_bytes..start + rows.end * row_bytes,
            encoding: Encoding::Blocks,
        }
    }

    /// All values, as f32.
    pub fn values(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows() * self.columns()];
        crate::quant::dequantize(self.kind, self.decoded().bytes(), &mut out);
        out
    }

    /// Whether it lies in memory of its own, which is given back when its last clone is gone.
    pub fn is_in_memory(&self) -> bool {
        matches!(*self.data, Storage::Memory(_))
    }

    /// Gives the memory of the tensor's pages back to the system; the next access reads them from the file
    /// again. The pages at both ends may hold bytes of neighbours, which are read again as well. Does nothing
    /// where the system knows no such advice, or the tensor lies in memory.
    pub fn drop_pages(&self) {
        self.data.drop_pages(self.range.clone());
    }

    /// [`drop_pages`](Self::drop_pages) for some rows.
    ///
    /// # Panics
    /// If the rows do not exist.
    pub fn drop_rows(&self, rows: Range<usize>) {
        assert!(rows.end <= self.rows());
        let (row_bytes, start) = (self.kind.row_bytes(self.columns()), self.range.start);
        self.data.drop_pages(start + rows.start * row_bytes..start + rows.end * row_bytes);
    }

    /// Whether it lies in a mapped file, so that its pages come and go.
    pub fn is_mapped(&self) -> bool {
        matches!(*self.data, Storage::File(_))
    }

    /// Whether what is multiplied with may stay in a mapped file: it lies there as blocks of its type.
    pub fn is_ready_in_file(&self) -> bool {
        self.is_mapped() && matches!(self.encoding, Encoding::Blocks)
    }

    /// Has the tensor's pages read from the file while the caller goes on, so that its use need not wait for all of them.
    /// Does nothing where the system knows no such advice.
    pub fn read_ahead(&self) {
        self.data.read_ahead(self.range.clone());
    }

    /// Brings the tensor's pages into memory, so that its first use need not wait for the file. Does nothing where the
    /// system knows no such advice.
    pub fn populate(&self) {
        self.data.populate(self.range.clone());
    }
}

/// Bytes of a tensor, or what is wrong with its type and shape.
fn byte_len(kind: BlockType, shape: &[usize]) -> Result<usize, String> {
    let columns = shape.last().copied().unwrap_or(1);
    if !columns.is_multiple_of(kind.block_len()) {
        return Err(format!(
            "has rows of {columns} values, which is no multiple of {kind}'s block of {}",
            kind.block_len()
        ));
    }
    shape[..shape.len().saturating_sub(1)]
        .iter()
        .try_fold((columns / kind.block_len()).checked_mul(kind.block_bytes()), |bytes, &n| {
            Some(bytes?.checked_mul(n))
        })
        .flatten()
        .ok_or_else(|| format!("has the shape {shape:?}, whose size overflows"))
}

/// An opened checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The files that hold tensors, in order of their parts.
    pub files: Vec<PathBuf>,
    /// What stands beside the tensors.
    pub metadata: Metadata,
    /// The tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    /// Opens a GGUF file (of a split one any part: the others are found beside it), a safetensors file or its
    /// index (config.json lies beside it), a folder laid out as a Hugging Face repository, or what is [`embedded`].
    ///
    /// # Errors
    /// A file that is missing, truncated or inconsistent; the error names the file and the field.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if embedded::bytes(path).is_some() {
            return split::open(path);
        }
        let kind = path.metadata().map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::file(path, "there is no such file or folder"),
            _ => Error::io(path, e),
        })?;
        if kind.is_dir() {
            return safetensors::open_folder(path);
        }
        if !kind.is_file() {
            return Err(Error::file(path, "is neither a file nor a folder"));
        }
        let start = first_bytes(path)?;
        if start.starts_with(gguf::MAGIC) {
            split::open(path)
        } else if safetensors::is_index(path) || safetensors::begins(&start) {
            safetensors::open_file(path)
        } else {
            Err(Error::file(
                path,
                format!(
                    "is not a GGUF or safetensors file ({}); pensive runs GGUF files and Hugging Face folders",
                    if start.is_empty() {
                        "it is empty".into()
                    } else {
                        format!("starts with \"{}\"", start.escape_ascii())
                    }
                ),
            ))
        }
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// If the checkpoint has none; the error names the file and the tensor.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| {
            let file = self.files.first().map_or(Path::new("checkpoint"), PathBuf::as_path);
            Error::file(file, format!("has no tensor '{name}' ({} others)", self.tensors.len()))
        })
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.range.len() as u64).sum()
    }

    /// What it may be known by ([`catalog::for_metadata`](crate::catalog::for_metadata)): `general.name`, `general.basename` alone and
    /// joined to `general.size_label` by a hyphen, or the folder of config.json; and the file's name.
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        match &self.metadata {
            Metadata::Gguf(values) => {
                let text = |key: &str| values.find::<&str>(key).ok().flatten();
                names.extend(text("general.name").map(String::from));
                if let Some(base) = text("general.basename") {
                    names.push(base.to_owned());
                    names.extend(text("general.size_label").map(|size| format!("{base}-{size}")));
                }
            }
            Metadata::HuggingFace { folder, .. } => {
                names.extend(folder.file_name().map(|name| name.to_string_lossy().into_owned()));
            }
        }
        names.extend(
            self.files.first().and_then(|file| Some(file.file_name()?.to_string_lossy().into_owned())),
        );
        names
    }

    /// What the checkpoint calls itself: `general.name`, or `_name_or_path` of config.json.
    pub fn name(&self) -> Option<&str> {
        match &self.metadata {
            Metadata::Gguf(values) => values.find("general.name").ok().flatten(),
            Metadata::HuggingFace { config, .. } => {
                config.get("_name_or_path")?.as_str().filter(|s| !s.is_empty())
            }
        }
    }
}

/// The first bytes of a file, at most 9: enough to tell the formats apart.
fn first_bytes(path: &Path) -> Result<Vec<u8>> {
    let mut start = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(9).read_to_end(&mut start))
        .map_err(|e| Error::io(path, e))?;
    Ok(start)
}

#[cfg(test)]
mod tests;
