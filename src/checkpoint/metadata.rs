//! What stands beside the tensors, and typed access to it.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};

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

impl Value {
    /// The value, or its type where it may be long, for messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Value::Unsigned(n) => n.to_string(),
            Value::Signed(n) => n.to_string(),
            Value::Float(x) => x.to_string(),
            Value::Bool(b) => b.to_string(),
            Value::String(_) => "a string".to_owned(),
            Value::Integers(_) => "an array of integers".to_owned(),
            Value::Floats(_) => "an array of floats".to_owned(),
            Value::Strings(_) => "an array of strings".to_owned(),
        }
    }
}

/// What stands beside the tensors.
#[derive(Clone, Debug)]
pub enum Metadata {
    /// The key-value pairs of a GGUF file.
    Gguf(GgufMetadata),
    /// The files of a Hugging Face repository.
    HuggingFace {
        /// config.json
        config: serde_json::Value,
        /// The folder, with tokenizer.json, generation_config.json and so on.
        folder: PathBuf,
    },
}

/// The key-value pairs of a GGUF file, and the file's name for messages. A map otherwise.
#[derive(Clone, Debug)]
pub struct GgufMetadata {
    file: PathBuf,
    values: BTreeMap<String, Value>,
}

impl GgufMetadata {
    /// Pairs that come from `file`.
    pub fn new(file: impl Into<PathBuf>, values: BTreeMap<String, Value>) -> Self {
        GgufMetadata { file: file.into(), values }
    }

    /// The file, of a split one the first part.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The value of `key` as a `T`, if the file has the key.
    ///
    /// # Errors
    /// A value of another type, or out of range; the error names the file and the key.
    pub fn find<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>> {
        self.typed(key).map_err(|what| Error::file(&self.file, what))
    }

    /// [`find`](Self::find), for callers that name the file themselves.
    pub(crate) fn typed<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, String> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let fault = || format!("metadata {key} is {}, not {}", value.describe(), T::EXPECTED);
        T::from_value(value).map(Some).ok_or_else(fault)
    }

    /// The value of `key` as a `T`.
    ///
    /// # Errors
    /// As [`find`](Self::find), and if the file has no such key.
    pub fn require<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T> {
        self.find(key)?.ok_or_else(|| {
            Error::file(&self.file, format!("metadata {key} is missing: the file is incomplete, get another"))
        })
    }
}

impl Deref for GgufMetadata {
    type Target = BTreeMap<String, Value>;

    fn deref(&self) -> &Self::Target {
        &self.values
    }
}

impl From<BTreeMap<String, Value>> for GgufMetadata {
    fn from(values: BTreeMap<String, Value>) -> Self {
        GgufMetadata::new("GGUF metadata", values)
    }
}

/// A type that metadata can be read as.
pub trait FromValue<'a>: Sized {
    /// What is expected, for messages.
    const EXPECTED: &'static str;

    /// The value, if it is of this type and in its range.
    fn from_value(value: &'a Value) -> Option<Self>;
}

macro_rules! from_value {
    ($lifetime:lifetime, $type:ty, $expected:literal, $($pattern:pat => $result:expr),+) => {
        impl<$lifetime> FromValue<$lifetime> for $type {
            const EXPECTED: &'static str = $expected;

            fn from_value(value: &$lifetime Value) -> Option<Self> {
                match value {
                    $($pattern => $result,)+
                    _ => None,
                }
            }
        }
    };
}

from_value!('a, u64, "a non-negative integer", Value::Unsigned(n) => Some(*n), Value::Signed(n) => (*n).try_into().ok());
from_value!('a, u32, "a 32-bit non-negative integer",
    Value::Unsigned(n) => (*n).try_into().ok(), Value::Signed(n) => (*n).try_into().ok());
from_value!('a, usize, "a non-negative integer",
    Value::Unsigned(n) => (*n).try_into().ok(), Value::Signed(n) => (*n).try_into().ok());
from_value!('a, f64, "a number",
    Value::Float(x) => Some(*x), Value::Unsigned(n) => Some(*n as f64), Value::Signed(n) => Some(*n as f64));
from_value!('a, f32, "a number",
    Value::Float(x) => Some(*x as f32), Value::Unsigned(n) => Some(*n as f32), Value::Signed(n) => Some(*n as f32));
from_value!('a, bool, "a boolean", Value::Bool(b) => Some(*b));
from_value!('a, &'a str, "a string", Value::String(s) => Some(s));
from_value!('a, &'a [i64], "an array of integers", Value::Integers(v) => Some(v));
from_value!('a, &'a [f64], "an array of floats", Value::Floats(v) => Some(v));
from_value!('a, &'a [String], "an array of strings", Value::Strings(v) => Some(v));
