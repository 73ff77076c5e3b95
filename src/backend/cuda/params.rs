//! The kernels' parameters, as kernels/*.cuh declares them: addresses are of the device's memory, 0 where there is nothing.

use std::mem::MaybeUninit;

/// An address in a device's memory.
pub type Address = u64;

/// What a kernel takes: plain numbers and addresses in C's layout.
///
/// # Safety
/// The type is `repr(C)` and has the members of the kernel's structure.
pub unsafe trait Params: Copy {
    /// Its bytes, padding included.
    fn bytes(&self) -> &[MaybeUninit<u8>] {
        // SAFETY: any memory may be looked at as bytes that may be uninitialized.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }
}

/// Declares structures of parameters.
macro_rules! params {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default)]
            #[repr(C)]
            #[allow(missing_docs)] // as in the kernels' text
            pub struct $name { $(pub $field: $type),* }

            // SAFETY: plain numbers in C's layout; tests compare the sizes.
            unsafe impl Params for $name {}
        )*
    };
}

params! {
    /// A quantized matrix, or several of one shape.
    Blocks { planes: [Address; 4], blocks: u64, format: i32, rows: i32, columns: i32, matrices: i32 }
    /// What stands between gate and up: 0 nothing, 1 SwiGLU, 2 gpt-oss's.
    Activation { kind: i32, alpha: f32, limit: f32 }
    /// What is multiplied.
    Source {
        x: Address, weight: Address, up: Address, made: Address, epsilon: f32, activation: Activation, columns: i32,
        share: i32,
    }
    /// A matrix, and where its product goes.
    Target {
        matrix: Blocks, bias: Address, to: Address, sum: Address, first: i32, share: i32, more: i32, pad: i32,
    }
    /// `activate`
    Activate { x: Address, up: Address, activation: Activation, len: i32 }
    /// `row_product`
    RowProduct { source: Source, targets: [Target; 3], ids: Address, count: i32, pair: Activation }
    /// `prepare_rows`
    Prepare { source: Source, to: Address, scales: Address }
    /// `many_product_*`
    ManyProduct {
        x: Address, scales: Address, targets: [Target; 3], order: Address, offsets: Address, rows: i32, columns: i32,
        count: i32, share: i32,
    }
    /// `dequantize`
    Dequantize { matrix: Blocks, to: Address, first: i32, rows: i32 }
    /// `finish_product`
    Finish { y: Address, scales: Address, bias: Address, to: Address, sum: Address, columns: i32, stride: i32 }
    /// `dense_product`
    DenseProduct {
        source: Source, matrix: Address, bias: Address, to: Address, sum: Address, ids: Address, kind: i32, rows: i32,
        count: i32, tile: i32, staged: i32,
    }
    /// Heads of `rotate`.
    Heads {
        x: Address, norm: Address, center: Address, cache: Address, count: i32, dim: i32, normed: i32, from: i32,
        epsilon: f32, pad: i32,
    }
    /// What `rotate` copies to the cache.
    Copied { x: Address, cache: Address, stride: i32, width: i32 }
    /// The rows of a step.
    Rows { places: Address, slots: Address, tables: Address, angles: Address }
    /// `rotate`
    Rotate { heads: [Heads; 2], copied: [Copied; 2], rows: Rows, pairs: i32, interleaved: i32, f32_cache: i32, pad: i32 }
    /// `add_norm`
    AddNorm { x: Address, sum: Address, weight: Address, epsilon: f32, width: i32 }
    /// `gather`
    Gather { from: Address, to: Address, wanted: Address, width: i32, pad: i32 }
    /// `by_head`
    ByHead {
        from: Address, matrices: Address, to: Address, f32: i32, heads: i32, height: i32, columns: i32, from_dim: i32,
        rows: i32,
    }
    /// `route`
    Route {
        scores: Address, correction: Address, ids: Address, weights: Address, experts: i32, used: i32, gate: i32,
        groups: i32, groups_used: i32, normalize: i32, scale: f32,
    }
    /// `group_results`
    GroupResults { ids: Address, offsets: Address, order: Address, results: i32 }
    /// `combine`
    Combine { y: Address, weights: Address, sum: Address, used: i32, width: i32 }
    /// `attend_*`
    Attend {
        query: Address, keys: Address, values: Address, rows: Rows, sinks: Address, partial: Address, to: Address,
        arrived: Address, heads: i32, kv_heads: i32, key_dim: i32, value_dim: i32, value_width: i32, window: i32,
        splits: i32, split_len: i32, first_row: i32, scale: f32,
    }
    /// `flash_*`
    Flash {
        query: Address, keys: Address, values: Address, places: Address, tables: Address, tiles: Address,
        sinks: Address, to: Address, heads: i32, kv_heads: i32, key_dim: i32, value_dim: i32, window: i32, scale: f32,
    }
    /// `run_program`
    Program { instructions: Address, arrived: Address, count: u32, before: u32 }
    /// `split_plane`
    SplitPlane { from: Address, to: Address, block_bytes: i32, offset: i32, len: i32, pad: i32, bytes: u64 }
}
