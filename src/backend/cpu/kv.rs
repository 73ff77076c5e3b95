//! The memory of the KV pages.
//!
//! A page holds [`PAGE_LEN`] positions of all layers. In it each layer has a block for each kv head: the keys
//! [key_dim, PAGE_LEN], a position a lane, then the values [PAGE_LEN, value_dim rounded up to 16], a dimension a lane.
//! So attention reads one contiguous run per head and adds up without crossing lanes. Where the value is a part of the key,
//! the keys' block holds only what is not in the value; attention puts them together (`attention::whole_keys`).
//!
//! q8_0 has blocks of 32 dimensions, each [PAGE_LEN] f16 scales and then int8: of keys [8, PAGE_LEN] lanes of 4
//! dimensions, of values [PAGE_LEN, 32]. Dimensions that fill a last block up are zero.

use super::kernels::attention::Chunk;
use super::memory::Memory;
use crate::Result;
use crate::backend::{KvShape, KvType, PAGE_LEN};

/// KV pages and their layout.
pub struct KvCache {
    memory: Memory,
    /// How keys and values are stored.
    pub kind: KvType,
    /// By layer.
    pub layers: Vec<Layer>,
    page_bytes: usize,
    pages: usize,
}

/// Where one layer lies in a page.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    /// As declared.
    pub shape: KvShape,
    /// Elements from one position's value to the next.
    pub value_stride: usize,
    /// Bytes from the page's start.
    offset: usize,
    /// Bytes of a kv head's keys, and of its values.
    key_bytes: usize,
    value_bytes: usize,
}

/// The layers' places, and the bytes of a page.
fn layout(shapes: &[KvShape], kind: KvType) -> (Vec<Layer>, usize) {
    let mut offset = 0;
    let layers = shapes
        .iter()
        .map(|&shape| {
            let (key, value) = shape.head_bytes(kind);
            let (key_bytes, value_bytes) = (key * PAGE_LEN, value * PAGE_LEN);
            let layer =
                Layer { shape, value_stride: shape.value_stride(kind), offset, key_bytes, value_bytes };
            offset += shape.page_bytes(kind);
            layer
        })
        .collect();
    (layers, offset)
}

impl KvCache {
    /// `pages` pages over layers of these shapes.
    ///
    /// # Errors
    /// The system refuses the memory.
    pub fn new(shapes: &[KvShape], pages: usize, kind: KvType) -> Result<Self> {
        let (layers, page_bytes) = layout(shapes, kind);
        let memory =
            Memory::new(pages.saturating_mul(page_bytes), "the KV cache (a smaller --context needs less)")?;
        memory.prefer_huge_pages();
        Ok(KvCache { memory, kind, layers, page_bytes, pages })
    }

    /// Keys and values of a kv head in a page. Who writes through it is the only one at those positions.
    pub fn chunk(&self, layer: usize, page: u32, head: usize) -> Chunk {
        let Layer { shape, value_stride, offset, key_bytes, value_bytes } = self.layers[layer];
        assert!((page as usize) < self.pages && head < shape.heads, "KV page {page}, head {head}");
        let at = page as usize * self.page_bytes + offset + head * (key_bytes + value_bytes);
        let start = self.memory.shared();
        // SAFETY: checked above; the values follow the keys in the head's block.
        let (keys, values) = unsafe { (start.at(at), start.at(at + key_bytes)) };
        let key_dim = shape.cached_key_dim();
        Chunk { keys, values, key_dim, value_stride, next_keys: keys, next_values: values }
    }

    /// Copies a page, all layers of it.
    pub fn copy_page(&mut self, from: u32, to: u32) {
        assert!((from as usize) < self.pages && (to as usize) < self.pages, "KV pages {from}, {to}");
        let (start, bytes) = (self.memory.shared::<u8>(), self.page_bytes);
        // SAFETY: both pages lie in the memory; `copy` allows them to be the same.
        unsafe { std::ptr::copy(start.at(from as usize * bytes), start.at(to as usize * bytes), bytes) };
    }
    /// Appends what the first `positions` positions of a page hold.
    pub fn read_page(&self, page: u32, positions: usize, to: &mut Vec<u8>) {
        // SAFETY: the part lies in the memory, which nobody writes meanwhile.
        self.for_parts(page, positions, |part, len| {
            to.extend_from_slice(unsafe { std::slice::from_raw_parts(part, len) });
        });
    }

    /// Puts back what `read_page` gave.
    pub fn write_page(&mut self, page: u32, positions: usize, from: &[u8]) {
        assert_eq!(from.len(), self.page_bytes / PAGE_LEN * positions, "bytes of {positions} positions");
        let mut rest = from;
        self.for_parts(page, positions, |part, len| {
            let (present, after) = rest.split_at(len);
            rest = after;
            // SAFETY: the part lies in the memory, which is borrowed for writing.
            unsafe { std::ptr::copy_nonoverlapping(present.as_ptr(), part, len) };
        });
    }

    /// Calls `part(start, bytes)` for what belongs to the first `positions` positions of a page, in order.
    fn for_parts(&self, page: u32, positions: usize, mut part: impl FnMut(*mut u8, usize)) {
        assert!(
            (page as usize) < self.pages && positions <= PAGE_LEN,
            "KV page {page}, {positions} positions"
        );
        let mut at = page as usize * self.page_bytes;
        for layer in &self.layers {
            let runs = runs(self.kind, layer);
            for bytes in std::iter::repeat_n(&runs, layer.shape.heads).flatten() {
                // SAFETY: the layers' runs make up the page.
                part(unsafe { self.memory.shared().at(at) }, positions * bytes);
                at += PAGE_LEN * bytes;
            }
        }
    }
}

/// A kv head's block as runs of PAGE_LEN elements, a position each: the bytes of an element of each run.
fn runs(kind: KvType, layer: &Layer) -> Vec<usize> {
    let floats = |bytes: usize| {
        let mut runs = vec![bytes; layer.shape.cached_key_dim()];
        runs.push(bytes * layer.value_stride);
        runs
    };
    match kind {
        KvType::F32 => floats(4),
        KvType::F16 => floats(2),
        KvType::Q8_0 => {
            let keys = [2, 4, 4, 4, 4, 4, 4, 4, 4].repeat(layer.shape.cached_key_dim().div_ceil(32));
            [keys, [2, 32].repeat(layer.value_stride / 32)].concat()
        }
    }
}
