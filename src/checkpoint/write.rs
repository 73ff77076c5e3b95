//! Writes GGUF files, version 3.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Error, ErrorKind, Result, Write};
use std::path::Path;

use super::Value;
use super::gguf::{DEFAULT_ALIGNMENT, MAGIC};
use crate::quant::BlockType;

/// A tensor to be written: all but its bytes.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    /// The name.
    pub name: String,
    /// How its values are stored.
    pub kind: BlockType,
    /// Dimensions, slowest first: `[rows, columns]`.
    pub shape: Vec<usize>,
}

/// Writes a GGUF file from front to back: the head at once, then each tensor's bytes, so that no more than one
/// tensor need be in memory.
pub struct GgufWriter<W: Write> {
    out: W,
    /// Bytes of each tensor, last first.
    pending: Vec<(String, usize)>,
    alignment: usize,
}

impl<W: Write> GgufWriter<W> {
    /// Writes metadata and the tensors' entries.
    ///
    /// Integers are written as u32 or i32 where they fit and 64 bits wide otherwise (`split.no` and
    /// `split.count` as u16), floats as f32: the types that published files have. `general.alignment` is
    /// honoured, else it is 32.
    ///
    /// # Errors
    /// What `out` says; `InvalidInput` for a name given twice, a row that is no whole number of blocks, more
    /// than four dimensions, or an alignment that is no power of two.
    pub fn new(mut out: W, metadata: &BTreeMap<String, Value>, tensors: &[TensorSpec]) -> Result<Self> {
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 30 => *n as usize,
            Some(other) => return Err(invalid(format!("general.alignment is {}", other.describe()))),
        };
        let mut head = Vec::new();
        head.extend(MAGIC);
        head.extend(3u32.to_le_bytes());
        head.extend((tensors.len() as u64).to_le_bytes());
        head.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            put_string(&mut head, key);
            put_value(&mut head, key, value);
        }
        let mut pending = put_tensors(&mut head, tensors, alignment)?;
        pending.reverse();
        out.write_all(&head)?;
        let mut writer = GgufWriter { out, pending, alignment };
        if !tensors.is_empty() {
            writer.pad(head.len())?;
        }
        Ok(writer)
    }

    /// Writes the bytes of the next tensor, in the order given to [`new`](Self::new).
    ///
    /// # Errors
    /// What the output says; `InvalidInput` if no tensor is due, or it has another number of bytes.
    pub fn tensor(&mut self, bytes: &[u8]) -> Result<()> {
        let Some((name, len)) = self.pending.pop() else {
            return Err(invalid("more tensors than were announced"));
        };
        if bytes.len() != len {
            return Err(invalid(format!("tensor {name} has {} bytes, not {len}", bytes.len())));
        }
        self.out.write_all(bytes)?;
        self.pad(len)
    }

    /// Ends the file and returns the output, flushed.
    ///
    /// # Errors
    /// What the output says; `InvalidInput` if tensors are still due.
    pub fn finish(mut self) -> Result<W> {
        if let Some((name, _)) = self.pending.last() {
            return Err(invalid(format!("tensor {name} was announced but not written")));
        }
        self.out.flush()?;
        Ok(self.out)
    }

    /// Zeros up to the next aligned place, after `len` bytes.
    fn pad(&mut self, len: usize) -> Result<()> {
        self.out.write_all(&vec![0; len.next_multiple_of(self.alignment) - len])
    }
}

/// Writes a whole GGUF file; a tensor is its description and its bytes.
///
/// # Errors
/// As [`GgufWriter::new`] and [`GgufWriter::tensor`], with the file's name.
pub fn write_gguf<B: AsRef<[u8]>>(
    path: impl AsRef<Path>,
    metadata: &BTreeMap<String, Value>,
    tensors: &[(TensorSpec, B)],
) -> crate::Result<()> {
    let write = || {
        let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
        let mut writer = GgufWriter::new(BufWriter::new(File::create(&path)?), metadata, &specs)?;
        tensors.iter().try_for_each(|(_, bytes)| writer.tensor(bytes.as_ref()))?;
        writer.finish().map(drop)
    };
    write().map_err(|e| crate::Error::io(&path, e))
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, what.into())
}

/// The tensors' entries; returns name and bytes of each.
fn put_tensors(head: &mut Vec<u8>, tensors: &[TensorSpec], alignment: usize) -> Result<Vec<(String, usize)>> {
    let mut names = BTreeSet::new();
    let mut offset = 0;
    let mut lens = Vec::with_capacity(tensors.len());
    for TensorSpec { name, kind, shape } in tensors {
        let len = super::byte_len(*kind, shape).map_err(|what| invalid(format!("tensor {name} {what}")))?;
        if !names.insert(name) {
            return Err(invalid(format!("tensor {name} is given twice")));
        }
        if shape.len() > super::gguf::MAX_DIMENSIONS as usize || shape.contains(&0) {
            return Err(invalid(format!("tensor {name} has the shape {shape:?}")));
        }
        put_string(head, name);
        head.extend((shape.len() as u32).to_le_bytes());
        for &n in shape.iter().rev() {
            head.extend((n as u64).to_le_bytes());
        }
        head.extend((*kind as u32).to_le_bytes());
        head.extend((offset as u64).to_le_bytes());
        offset += len.next_multiple_of(alignment);
        lens.push((name.clone(), len));
    }
    Ok(lens)
}

fn put_string(head: &mut Vec<u8>, text: &str) {
    head.extend((text.len() as u64).to_le_bytes());
    head.extend(text.as_bytes());
}

/// The type and the value of a pair.
fn put_value(head: &mut Vec<u8>, key: &str, value: &Value) {
    match value {
        Value::Unsigned(n) => match (u16::try_from(*n), u32::try_from(*n)) {
            (Ok(n), _) if matches!(key, "split.no" | "split.count") => put(head, 2, &n.to_le_bytes()),
            (_, Ok(n)) => put(head, 4, &n.to_le_bytes()),
            _ => put(head, 10, &n.to_le_bytes()),
        },
        Value::Signed(n) => match i32::try_from(*n) {
            Ok(n) => put(head, 5, &n.to_le_bytes()),
            Err(_) => put(head, 11, &n.to_le_bytes()),
        },
        Value::Float(x) => put(head, 6, &(*x as f32).to_le_bytes()),
        Value::Bool(b) => put(head, 7, &[u8::from(*b)]),
        Value::String(text) => {
            put(head, 8, &[]);
            put_string(head, text);
        }
        Value::Integers(values) if values.iter().all(|n| i32::try_from(*n).is_ok()) => {
            put_array(head, 5, values, |head, n| head.extend((*n as i32).to_le_bytes()));
        }
        Value::Integers(values) => put_array(head, 11, values, |head, n| head.extend(n.to_le_bytes())),
        Value::Floats(values) => put_array(head, 6, values, |head, x| head.extend((*x as f32).to_le_bytes())),
        Value::Strings(values) => put_array(head, 8, values, |head, text| put_string(head, text)),
    }
}

/// A value's type and its bytes.
fn put(head: &mut Vec<u8>, kind: u32, bytes: &[u8]) {
    head.extend(kind.to_le_bytes());
    head.extend(bytes);
}

fn put_array<T>(head: &mut Vec<u8>, element: u32, values: &[T], put_element: impl Fn(&mut Vec<u8>, &T)) {
    put(head, 9, &element.to_le_bytes());
    head.extend((values.len() as u64).to_le_bytes());
    values.iter().for_each(|value| put_element(head, value));
}
