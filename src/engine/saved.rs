//! Sequences that outlive the process: tokens, keys and values, exact to the bit, under a SHA-256.
//!
//! Little-endian: [`MAGIC`]; the model's fingerprint, 32 bytes; u32 each the KV type (GGUF's number), layers, KV heads,
//! width of a key and of a value; u64 the number of tokens n, n u32 tokens; the pages in order, of each what
//! [`Backend::read_page`](crate::backend::Backend::read_page) gives of its filled positions; the SHA-256 of all this.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

use super::{Engine, Sequence};
use crate::backend::{KvType, PAGE_LEN};
use crate::{Error, Result};

/// What a saved sequence begins with; the digit is the version.
const MAGIC: &[u8; 19] = b"pensive sequence 2\n";
/// What those of all versions begin with.
const MAGIC_OF_ALL: &[u8] = MAGIC.first_chunk::<17>().expect("it is longer");

impl Engine {
    /// Whether it begins as a saved sequence does, of this or another version.
    ///
    /// # Errors
    /// What `from` says.
    pub fn is_saved(from: impl Read) -> io::Result<bool> {
        let mut begin = Vec::new();
        from.take(MAGIC_OF_ALL.len() as u64).read_to_end(&mut begin)?;
        Ok(begin == MAGIC_OF_ALL)
    }

    /// Writes a sequence of this engine. [`restore`](Self::restore) takes it back in another process or on another
    /// processor: what is computed from it is equal to the bit.
    ///
    /// # Errors
    /// What `to` says.
    pub fn save(&self, sequence: &Sequence, to: impl Write) -> io::Result<()> {
        if !self.has(sequence) {
            return Err(io::Error::other("the sequence's keys and values are another engine's"));
        }
        let mut to = Hashing { inner: to, hash: Sha256::new() };
        to.write_all(MAGIC)?;
        to.write_all(&self.decoder.fingerprint())?;
        for number in self.shape() {
            to.write_all(&number.to_le_bytes())?;
        }
        to.write_all(&(sequence.len() as u64).to_le_bytes())?;
        for token in &sequence.tokens {
            to.write_all(&token.to_le_bytes())?;
        }
        let mut bytes = Vec::new();
        for (page, positions) in sequence.pages.iter().zip(filled(sequence.len())) {
            bytes.clear();
            self.backend.read_page(page.id(), positions, &mut bytes).map_err(io::Error::other)?;
            to.write_all(&bytes)?;
        }
        let Hashing { mut inner, hash } = to;
        inner.write_all(&hash.finalize())?;
        inner.flush()
    }

    /// Reads a sequence that [`save`](Self::save) wrote, and no byte more.
    ///
    /// # Errors
    /// [`Error::Saved`] for what is no saved sequence, is damaged or cut off, or comes from another model or KV type;
    /// [`Error::Memory`] where the KV cache has no room for it.
    pub fn restore(&mut self, from: impl Read) -> Result<Sequence> {
        let mut sequence = Sequence::new();
        self.restore_over(&mut sequence, from)?;
        Ok(sequence)
    }

    /// As [`restore`](Self::restore), in the place of `old`. Where both have room `old` is kept until all is read; where
    /// they have not it gives its pages away as soon as the model, the KV type and the room are found to be right.
    ///
    /// # Errors
    /// As [`restore`](Self::restore); `old` is then as it was, or empty where its pages were given away.
    pub fn restore_over(&mut self, old: &mut Sequence, from: impl Read) -> Result<()> {
        let mut from = Hashing { inner: from, hash: Sha256::new() };
        if from.take::<{ MAGIC.len() }>()? != *MAGIC {
            return Err(fault("is not one, or was written by another version of pensive"));
        }
        if from.take()? != self.decoder.fingerprint() {
            return Err(fault("belongs to another model: load the one it was saved with"));
        }
        for (name, expected) in SHAPE.into_iter().zip(self.shape()) {
            let found = u32::from_le_bytes(from.take()?);
            if found != expected {
                let (found, expected) = if name == KV_TYPE {
                    (kv_name(found), kv_name(expected))
                } else {
                    (found.to_string(), expected.to_string())
                };
                return Err(fault(format!("has {name} {found}, the loaded model {expected}")));
            }
        }
        let sequence = self.restore_pages(old, &mut from)?;
        let expected = from.hash.clone().finalize();
        if from.take::<32>()? != *expected {
            return Err(fault("is damaged: its SHA-256 does not match"));
        }
        *old = sequence;
        Ok(())
    }

    fn restore_pages(&mut self, old: &mut Sequence, from: &mut Hashing<impl Read>) -> Result<Sequence> {
        let len = u64::from_le_bytes(from.take()?);
        let room = self.plan.pages * PAGE_LEN;
        let Some(len) = usize::try_from(len).ok().filter(|&len| len <= room) else {
            return Err(Error::Memory(format!(
                "a saved sequence of {len} tokens, and the KV cache holds {room}: load the model with a larger context"
            )));
        };
        let vocabulary = self.decoder.hyperparameters().vocabulary;
        let mut sequence = Sequence::new();
        for _ in 0..len {
            let token = u32::from_le_bytes(from.take()?);
            if token as usize >= vocabulary {
                return Err(fault("is damaged: a token is beyond the model's vocabulary"));
            }
            sequence.tokens.push(token);
        }
        let (needed, free) = (len.div_ceil(PAGE_LEN), self.pool.free());
        let given = old.pages.iter().filter(|page| !page.is_shared()).count();
        if free < needed && needed <= free + given {
            old.truncate(0);
        }
        let h = self.decoder.hyperparameters();
        let position_bytes = h.layers * h.kv_shape().position_bytes(self.plan.kv_type);
        let mut bytes = vec![0; position_bytes * PAGE_LEN];
        for positions in filled(len) {
            let bytes = &mut bytes[..positions * position_bytes];
            from.fill(bytes)?;
            let page = self.pool.take()?;
            self.backend.write_page(page.id(), positions, bytes);
            sequence.pages.push(page);
        }
        self.backend.end()?;
        Ok(sequence)
    }

    /// The numbers that [`SHAPE`] names.
    fn shape(&self) -> [u32; 5] {
        let h = self.decoder.hyperparameters();
        let kv = h.kv_shape();
        let [layers, heads, key_dim, value_dim] =
            [h.layers, kv.heads, kv.key_dim, kv.value_dim].map(|n| n as u32);
        [kv_id(self.plan.kv_type), layers, heads, key_dim, value_dim]
    }
}

const KV_TYPE: &str = "KV type";
const SHAPE: [&str; 5] = [KV_TYPE, "layers", "KV heads", "width of a key", "width of a value"];

/// GGUF's number of the type.
fn kv_id(kv_type: KvType) -> u32 {
    match kv_type {
        KvType::F32 => 0,
        KvType::F16 => 1,
        KvType::Q8_0 => 8,
    }
}

fn kv_name(id: u32) -> String {
    let known = KvType::ALL.into_iter().find(|&kv_type| kv_id(kv_type) == id);
    known.map_or_else(|| format!("number {id}"), |kv_type| kv_type.to_string())
}

/// Filled positions of each page of a sequence of so many tokens.
fn filled(len: usize) -> impl Iterator<Item = usize> {
    (0..len).step_by(PAGE_LEN).map(move |first| PAGE_LEN.min(len - first))
}

fn fault(what: impl std::fmt::Display) -> Error {
    Error::Saved(format!("the saved sequence {what}"))
}

/// Hashes what passes through.
struct Hashing<T> {
    inner: T,
    hash: Sha256,
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Hashing<T> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.inner.read_exact(bytes).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => fault("is cut off"),
            _ => fault(format!("cannot be read: {e}")),
        })?;
        self.hash.update(bytes);
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }
}
