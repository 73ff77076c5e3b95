//! The memory of the KV pages.
//!
//! A page holds [`PAGE_LEN`] positions of all layers. In it each layer has a block for each kv head: the keys
//! [key_dim, PAGE_LEN], a position a lane, then the values [PAGE_LEN, value_dim rounded up to 16], a dimension a lane.
//! So attention reads one contiguous run per head and adds up without crossing lanes.

use half::f16;

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
    /// Bytes of a kv head's block.
    head_bytes: usize,
}

fn element_bytes(kind: KvType) -> usize {
    match kind {
        KvType::F32 => size_of::<f32>(),
        KvType::F16 => size_of::<f16>(),
    }
}

/// The layers' places, and the bytes of a page.
fn layout(shapes: &[KvShape], kind: KvType) -> (Vec<Layer>, usize) {
    let mut offset = 0;
    let layers = shapes
        .iter()
        .map(|&shape| {
            let value_stride = shape.value_dim.next_multiple_of(16);
            let head_bytes = (shape.key_dim + value_stride) * PAGE_LEN * element_bytes(kind);
            let layer = Layer { shape, value_stride, offset, head_bytes };
            offset += shape.heads * head_bytes;
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
        let memory = Memory::new(pages * page_bytes, "the KV cache")?;
        memory.prefer_huge_pages();
        Ok(KvCache { memory, kind, layers, page_bytes, pages })
    }

    /// Keys and values of a kv head in a page. Who writes through it is the only one at those positions.
    pub fn chunk(&self, layer: usize, page: u32, head: usize) -> Chunk {
        let Layer { shape, value_stride, offset, head_bytes } = self.layers[layer];
        assert!((page as usize) < self.pages && head < shape.heads, "KV page {page}, head {head}");
        let at = page as usize * self.page_bytes + offset + head * head_bytes;
        let key_bytes = shape.key_dim * PAGE_LEN * element_bytes(self.kind);
        let start = self.memory.shared();
        // SAFETY: checked above; the values follow the keys in the head's block.
        let (keys, values) = unsafe { (start.at(at), start.at(at + key_bytes)) };
        Chunk { keys, values, key_dim: shape.key_dim, value_stride, next: keys }
    }

    /// Copies a page, all layers of it.
    pub fn copy_page(&mut self, from: u32, to: u32) {
        assert!((from as usize) < self.pages && (to as usize) < self.pages, "KV pages {from}, {to}");
        let (start, bytes) = (self.memory.shared::<u8>(), self.page_bytes);
        // SAFETY: both pages lie in the memory; `copy` allows them to be the same.
        unsafe { std::ptr::copy(start.at(from as usize * bytes), start.at(to as usize * bytes), bytes) };
    }
}
