//! The GGUF container, versions 2 and 3, little-endian
//! ([specification](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)).
//!
//! | part    | content                                                                               |
//! |---------|---------------------------------------------------------------------------------------|
//! | header  | magic `GGUF`, u32 version, u64 number of tensors, u64 number of pairs                 |
//! | pairs   | string key, u32 value type, value                                                     |
//! | tensors | string name, u32 number of dimensions, u64 each (fastest first), u32 type, u64 offset |
//! | data    | from the next multiple of `general.alignment`; a tensor's offset counts from there    |
//!
//! A string is a u64 length and that many bytes of UTF-8. An array is a u32 element type, a u64 length, and
//! the elements. Every count is compared with the bytes that are left before anything is allocated for it.

use std::collections::BTreeMap;
use std::fmt::Arguments;
use std::ops::Range;
use std::path::Path;

use super::Value;
use crate::quant::BlockType;
use crate::{Error, Result};

/// The first four bytes of a GGUF file.
pub const MAGIC: &[u8; 4] = b"GGUF";

/// Where a file's tensors begin unless `general.alignment` says otherwise, in bytes.
pub const DEFAULT_ALIGNMENT: usize = 32;

/// ggml's limit, and so the format's.
pub(super) const MAX_DIMENSIONS: u32 = 4;

/// What a GGUF file says about itself, checked against its bytes.
#[derive(Clone, Debug)]
pub struct Contents {
    /// 2 or 3.
    pub version: u32,
    /// The key-value pairs.
    pub metadata: BTreeMap<String, Value>,
    /// The tensors, in the file's order.
    pub tensors: Vec<TensorInfo>,
}

/// A tensor's entry.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// The name.
    pub name: String,
    /// How its values are stored.
    pub kind: BlockType,
    /// Dimensions, slowest first.
    pub shape: Vec<usize>,
    /// Its bytes within the file.
    pub range: Range<usize>,
}

/// Reads the head of a GGUF file whose bytes are `bytes`; `path` is for messages.
///
/// # Errors
/// Anything that is not as the format has it; the error names the file and the field.
pub fn parse(bytes: &[u8], path: &Path) -> Result<Contents> {
    let mut reader = Reader { bytes, at: 0, path };
    if reader.take(4, format_args!("magic"))? != MAGIC {
        return Err(reader.error(format_args!("magic"), "is not GGUF"));
    }
    let version = reader.u32(format_args!("version"))?;
    check_version(version).map_err(|what| reader.error(format_args!("version"), what))?;
    // An entry of a tensor has at least a length, a count, a type and an offset; a pair a length, a type, a byte.
    let tensor_count = reader.count(24, format_args!("tensor count"))?;
    let pair_count = reader.count(13, format_args!("metadata count"))?;
    let mut metadata = BTreeMap::new();
    for i in 0..pair_count {
        let key = reader.string(format_args!("key of metadata pair {i}"))?;
        let value = reader.value(&key)?;
        if metadata.contains_key(&key) {
            return Err(reader.error(format_args!("metadata {key}"), "occurs twice"));
        }
        metadata.insert(key, value);
    }
    let alignment = alignment(&metadata)
        .map_err(|what| reader.error(format_args!("metadata general.alignment"), what))?;
    let entries = (0..tensor_count).map(|i| reader.tensor(i)).collect::<Result<Vec<_>>>()?;
    let data = reader.at.next_multiple_of(alignment);
    let tensors = entries
        .into_iter()
        .map(|entry| place(entry, data, alignment, &reader))
        .collect::<Result<Vec<_>>>()?;
    check_distinct(&tensors, &reader)?;
    Ok(Contents { version, metadata, tensors })
}

fn check_version(version: u32) -> Result<(), String> {
    match version {
        2 | 3 => Ok(()),
        1 => Err("is 1, which pensive does not read (2 and 3): convert the model again".into()),
        _ if matches!(version.swap_bytes(), 1..=3) => {
            Err("is big-endian, which pensive does not read: get the little-endian file".into())
        }
        _ => Err(format!("is {version}, which pensive does not read (2 and 3)")),
    }
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<usize, String> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 30 => Ok(*n as usize),
        Some(other) => Err(format!("is {}, not a power of two of at most 2^30", other.describe())),
    }
}

/// An entry of a tensor before its place in the file is known.
struct Entry {
    name: String,
    kind: BlockType,
    shape: Vec<usize>,
    offset: u64,
}

/// Where the tensor lies in the file, whose data begins at `data`.
fn place(entry: Entry, data: usize, alignment: usize, reader: &Reader) -> Result<TensorInfo> {
    let Entry { name, kind, shape, offset } = entry;
    let error = |what: String| reader.error(format_args!("tensor {name}"), what);
    let len = super::byte_len(kind, &shape).map_err(error)?;
    if !offset.is_multiple_of(alignment as u64) {
        return Err(error(format!(
            "has the offset {offset}, which is no multiple of the alignment {alignment}"
        )));
    }
    let start = usize::try_from(offset).ok().and_then(|offset| data.checked_add(offset));
    let range = start.and_then(|start| Some(start..start.checked_add(len)?));
    match range {
        Some(range) if range.end <= reader.bytes.len() => Ok(TensorInfo { name, kind, shape, range }),
        _ => Err(error(format!(
            "has {len} bytes at offset {offset} of the data, which begins at byte {data}, but the file has {} bytes: \
             it is cut off, download it again",
            reader.bytes.len()
        ))),
    }
}

/// No two tensors of one name, none that overlap.
fn check_distinct(tensors: &[TensorInfo], reader: &Reader) -> Result<()> {
    let mut sorted: Vec<&TensorInfo> = tensors.iter().collect();
    sorted.sort_by_key(|t| &t.name);
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(reader.error(format_args!("tensor {}", pair[0].name), "occurs twice"));
    }
    sorted.sort_by_key(|t| t.range.start);
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0].range.end > pair[1].range.start) {
        return Err(reader
            .error(format_args!("tensor {}", pair[1].name), format!("overlaps tensor {}", pair[0].name)));
    }
    Ok(())
}

/// A place in the file. The methods take the name of the field that they read, for messages; names are only
/// formatted when needed.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    path: &'a Path,
}

impl<'a> Reader<'a> {
    fn error(&self, field: Arguments, what: impl std::fmt::Display) -> Error {
        Error::file(self.path, format!("{field} {what}"))
    }

    fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, len: usize, field: Arguments) -> Result<&'a [u8]> {
        let Some((taken, _)) = self.bytes[self.at..].split_at_checked(len) else {
            return Err(self.error(
                field,
                format!(
                    "needs {len} bytes at byte {}, but the file has {} bytes: it is cut off or corrupt, download it again",
                    self.at,
                    self.bytes.len()
                ),
            ));
        };
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: Arguments) -> Result<[u8; N]> {
        let taken = self.take(N, field)?;
        Ok(*taken.first_chunk().expect("N bytes were taken"))
    }

    fn u32(&mut self, field: Arguments) -> Result<u32> {
        self.array(field).map(u32::from_le_bytes)
    }

    fn u64(&mut self, field: Arguments) -> Result<u64> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// A number of items that take at least `item_bytes` each.
    fn count(&mut self, item_bytes: usize, field: Arguments) -> Result<usize> {
        let count = self.u64(field)?;
        match usize::try_from(count) {
            Ok(n) if n <= self.remaining() / item_bytes => Ok(n),
            _ => Err(self.error(
                field,
                format!(
                    "is {count}, but only {} bytes follow: the file is cut off or corrupt, download it again",
                    self.remaining()
                ),
            )),
        }
    }

    fn string(&mut self, field: Arguments) -> Result<String> {
        let len = self.count(1, format_args!("length of {field}"))?;
        let bytes = self.take(len, field)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(e) => Err(self.error(field, format!("is not UTF-8 ({e})"))),
        }
    }

    /// The type and the value of a pair.
    fn value(&mut self, key: &str) -> Result<Value> {
        let field = format_args!("metadata {key}");
        let id = self.u32(format_args!("type of metadata {key}"))?;
        match Kind::from_id(id) {
            Some(Kind::String) => self.string(field).map(Value::String),
            Some(Kind::Array) => self.values(key),
            Some(Kind::Number(number)) => {
                let bytes = self.take(number.bytes(), field)?;
                number.read(bytes).ok_or_else(|| self.error(field, format!("is {}, not a boolean", bytes[0])))
            }
            None => Err(self.error(field, format!("has the unknown value type {id}"))),
        }
    }

    /// The elements of an array.
    fn values(&mut self, key: &str) -> Result<Value> {
        let field = format_args!("metadata {key}");
        let id = self.u32(format_args!("element type of metadata {key}"))?;
        match Kind::from_id(id) {
            Some(Kind::String) => {
                let len = self.count(8, format_args!("length of metadata {key}"))?;
                let strings = (0..len).map(|i| self.string(format_args!("metadata {key}[{i}]")));
                strings.collect::<Result<_>>().map(Value::Strings)
            }
            Some(Kind::Number(number)) => {
                let len = self.count(number.bytes(), format_args!("length of metadata {key}"))?;
                let bytes = self.take(len * number.bytes(), field)?;
                number
                    .read_all(bytes)
                    .map_err(|(i, what)| self.error(format_args!("metadata {key}[{i}]"), what))
            }
            Some(Kind::Array) => Err(self.error(field, "is an array of arrays, which pensive does not read")),
            None => Err(self.error(field, format!("has the unknown element type {id}"))),
        }
    }

    fn tensor(&mut self, index: usize) -> Result<Entry> {
        let name = self.string(format_args!("name of tensor {index}"))?;
        let dimensions = self.u32(format_args!("number of dimensions of tensor {name}"))?;
        if dimensions > MAX_DIMENSIONS {
            return Err(self.error(
                format_args!("number of dimensions of tensor {name}"),
                format!("is {dimensions}, more than {MAX_DIMENSIONS}"),
            ));
        }
        let mut shape = Vec::with_capacity(dimensions as usize);
        for d in 0..dimensions {
            let n = self.u64(format_args!("dimension {d} of tensor {name}"))?;
            let checked = usize::try_from(n).ok().filter(|&n| n > 0);
            let error = || self.error(format_args!("dimension {d} of tensor {name}"), format!("is {n}"));
            shape.push(checked.ok_or_else(error)?);
        }
        shape.reverse();
        let id = self.u32(format_args!("type of tensor {name}"))?;
        let kind = BlockType::from_id(id).ok_or_else(|| {
            self.error(
                format_args!("tensor {name}"),
                format!("has the type {}, which is not supported yet", type_name(id)),
            )
        })?;
        let offset = self.u64(format_args!("offset of tensor {name}"))?;
        Ok(Entry { name, kind, shape, offset })
    }
}

/// The kind of a metadata value.
enum Kind {
    Number(Number),
    String,
    Array,
}

impl Kind {
    fn from_id(id: u32) -> Option<Self> {
        Some(Kind::Number(match id {
            0 => Number::U8,
            1 => Number::I8,
            2 => Number::U16,
            3 => Number::I16,
            4 => Number::U32,
            5 => Number::I32,
            6 => Number::F32,
            7 => Number::Bool,
            8 => return Some(Kind::String),
            9 => return Some(Kind::Array),
            10 => Number::U64,
            11 => Number::I64,
            12 => Number::F64,
            _ => return None,
        }))
    }
}

/// The kinds of a fixed size.
#[derive(Clone, Copy)]
enum Number {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

impl Number {
    fn bytes(self) -> usize {
        match self {
            Number::U8 | Number::I8 | Number::Bool => 1,
            Number::U16 | Number::I16 => 2,
            Number::U32 | Number::I32 | Number::F32 => 4,
            Number::U64 | Number::I64 | Number::F64 => 8,
        }
    }

    /// The value of `self.bytes()` bytes; `None` for a boolean that is neither 0 nor 1.
    fn read(self, bytes: &[u8]) -> Option<Value> {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let raw = u64::from_le_bytes(wide);
        Some(match self {
            Number::U8 | Number::U16 | Number::U32 | Number::U64 => Value::Unsigned(raw),
            Number::I8 => Value::Signed(i64::from(raw as i8)),
            Number::I16 => Value::Signed(i64::from(raw as i16)),
            Number::I32 => Value::Signed(i64::from(raw as i32)),
            Number::I64 => Value::Signed(raw as i64),
            Number::F32 => Value::Float(f64::from(f32::from_bits(raw as u32))),
            Number::F64 => Value::Float(f64::from_bits(raw)),
            Number::Bool => Value::Bool(match raw {
                0 => false,
                1 => true,
                _ => return None,
            }),
        })
    }

    /// The values of a whole array, or the index of a bad one and what is wrong with it.
    fn read_all(self, bytes: &[u8]) -> Result<Value, (usize, String)> {
        let len = bytes.len() / self.bytes();
        let is_float = matches!(self, Number::F32 | Number::F64);
        let mut floats = Vec::with_capacity(if is_float { len } else { 0 });
        let mut integers = Vec::with_capacity(if is_float { 0 } else { len });
        for (i, bytes) in bytes.chunks_exact(self.bytes()).enumerate() {
            match self.read(bytes) {
                Some(Value::Float(x)) => floats.push(x),
                Some(Value::Signed(n)) => integers.push(n),
                Some(Value::Bool(b)) => integers.push(i64::from(b)),
                Some(Value::Unsigned(n)) => {
                    integers.push(i64::try_from(n).map_err(|_| (i, format!("is {n}, more than 2^63 - 1")))?);
                }
                _ => return Err((i, format!("is {}, not a boolean", bytes[0]))),
            }
        }
        Ok(if is_float { Value::Floats(floats) } else { Value::Integers(integers) })
    }
}

/// ggml's name of a tensor type that pensive does not read.
fn type_name(id: u32) -> String {
    let name = match id {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        40 => "NVFP4",
        41 => "Q1_0",
        _ => return format!("number {id}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests;
