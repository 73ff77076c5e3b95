//! Attention over the pages of the cache: few rows read them for themselves, many are taken in tiles.

use super::CudaBackend;
use super::driver::Launch;
use super::params::{Address, Attend, Flash};
use crate::backend::{Attention, Buffer, KvShape, KvType, PAGE_LEN};
use crate::{Error, Result};

/// Rows up to which each reads the cache for itself, and up to which steps are recorded.
pub const FEW_ROWS: usize = 64;

/// Rows of a tile of the kernels for many.
pub const FLASH_ROWS: usize = 128;

/// Bytes of shared memory of the kernels on tensor cores for few rows: DECODE_WARPS * DECODE_BUFFERS of decode.cuh.
pub const DECODE_SHARED: usize = 8 * 12288;

/// Parts that a row's positions are cut into, at most (MOST_SPLITS of attention.cuh).
const MOST_SPLITS: usize = 256;

/// Positions that a step up to this one is planned for: a power of two, so that steps are alike for a while.
pub fn reach(last: usize) -> usize {
    (last + 1).next_power_of_two().max(256)
}

/// Values of a key's head that the kernels have room for, and of a value's.
const MOST_KEY: usize = 576;
const MOST_VALUE: usize = 512;

/// Whether there are kernels for heads of these widths.
pub fn check(kv: KvShape) -> Result<()> {
    let fits = |dim: usize, most: usize| dim <= most && dim.is_multiple_of(2);
    if fits(kv.key_dim, MOST_KEY) && fits(kv.value_dim, MOST_VALUE) {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "heads of {} and {} numbers: the CUDA kernels take even numbers, of keys up to {MOST_KEY} and of values up to {MOST_VALUE}; \
         --device cpu takes any",
        kv.key_dim, kv.value_dim
    )))
}

/// A kernel for few rows.
struct Few {
    kernel: &'static str,
    /// Query heads that a block takes.
    tile: usize,
    threads: usize,
    shared: usize,
    /// Blocks that a multiprocessor runs at once.
    blocks: usize,
    /// Fewest positions of a split, of which its length is a multiple, and fewest that are split at all.
    step: usize,
    least: usize,
}

/// The kernel for few rows: with tensor cores where heads are of usual widths.
fn few_kernel(kv: KvShape, kv_type: KvType, group: usize) -> Few {
    let wide = kv.key_dim.max(kv.value_dim);
    if kv_type == KvType::F16 && wide <= 128 && fits_tensor_cores(kv) {
        let (kernel, tile, blocks) = match (wide, group) {
            (..=64, ..=8) => ("decode_64_8", 8, 2),
            (..=64, _) => ("decode_64_16", 16, 2),
            (_, ..=8) => ("decode_128_8", 8, 2),
            _ => ("decode_128_16", 16, 1),
        };
        return Few { kernel, tile, threads: 256, shared: DECODE_SHARED, blocks, step: 128, least: 256 };
    }
    let (kernel, tile) = match (kv_type, wide, group) {
        (KvType::F32, 129.., _) => ("attend_f32_2_576", 2),
        (KvType::F32, _, 1) => ("attend_f32_1_128", 1),
        (KvType::F32, ..) => ("attend_f32_4_128", 4),
        (_, 129.., _) => ("attend_f16_2_576", 2),
        (_, _, 1) => ("attend_f16_1_128", 1),
        _ => ("attend_f16_4_128", 4),
    };
    Few { kernel, tile, threads: 128, shared: 0, blocks: 4, step: PAGE_LEN, least: PAGE_LEN }
}

/// Rows of heads begin at multiples of 16 bytes.
fn fits_tensor_cores(kv: KvShape) -> bool {
    kv.key_dim.is_multiple_of(8) && kv.value_dim.is_multiple_of(8) && !kv.value_in_key
}

/// The kernel for many rows, if there is one, and its shared memory.
fn flash_kernel(kv: KvShape, kv_type: KvType) -> Option<(&'static str, usize)> {
    let wide = kv.key_dim.max(kv.value_dim);
    let (kernel, width) = if wide <= 64 { ("flash_64", 64) } else { ("flash_128", 128) };
    let shared = (FLASH_ROWS + 4 * PAGE_LEN) * width * 2;
    (fits_tensor_cores(kv) && wide <= 128 && kv_type == KvType::F16).then_some((kernel, shared))
}

impl CudaBackend {
    pub(super) fn attend(
        &mut self,
        layer: usize,
        query: Buffer,
        attention: &Attention,
        to: Buffer,
    ) -> Result<()> {
        let kv_type = self.ready().plan.kv_type;
        let shape = self.ready().cache.layer(layer).shape;
        let (query, to) = (self.buffer(query), self.target(to)?);
        match flash_kernel(shape, kv_type).filter(|_| self.rows.len() > FEW_ROWS) {
            Some((kernel, shared)) => self.attend_many(layer, query, attention, to, (kernel, shared)),
            None => self.attend_few(layer, query, attention, to),
        }
    }

    /// Rows in tiles, each of which reads the cache once.
    fn attend_many(
        &mut self,
        layer: usize,
        query: Address,
        attention: &Attention,
        to: Address,
        (kernel, shared): (&'static str, usize),
    ) -> Result<()> {
        let layer = *self.ready().cache.layer(layer);
        let (tiles, count) = self.tiles;
        let p = Flash {
            query,
            keys: layer.keys,
            values: layer.values,
            places: self.on_device.places,
            tables: self.on_device.tables,
            tiles,
            sinks: self.optional(attention.sinks),
            to,
            heads: attention.heads as i32,
            kv_heads: layer.shape.heads as i32,
            key_dim: layer.shape.key_dim as i32,
            value_dim: layer.shape.value_dim as i32,
            window: attention.window.unwrap_or(0) as i32,
            scale: attention.scale,
        };
        let grid = [count, attention.heads, 1];
        self.launch(Launch { kernel, grid, threads: FLASH_THREADS, shared }, &p)
    }

    /// Each row reads the cache for itself.
    fn attend_few(&mut self, layer: usize, query: Address, attention: &Attention, to: Address) -> Result<()> {
        let layer = *self.ready().cache.layer(layer);
        let (kv, kv_type) = (layer.shape, self.ready().plan.kv_type);
        let group = attention.heads / kv.heads;
        let few = if self.is_program() {
            // eight heads at a time: sixteen need the registers of two blocks
            let few = few_kernel(kv, kv_type, group.min(8));
            Few { blocks: 1, ..few }
        } else {
            few_kernel(kv, kv_type, group)
        };
        let tiles = kv.heads * group.div_ceil(few.tile);
        let last = self.rows.iter().map(|row| row.position).max().unwrap_or(0);
        let rows_at_once = self.rows.len().min(FEW_ROWS);
        let (splits, split_len) = self.splits(&few, rows_at_once * tiles, reach(last));
        let partial = rows_at_once * attention.heads * splits * (2 + kv.value_dim);
        let partial = self.room(4 * partial, |this| &mut this.scratch.partial)?;
        let arrived = self.room(4 * rows_at_once * tiles, |this| &mut this.scratch.arrived)?;
        let mut p = Attend {
            query,
            keys: layer.keys,
            values: layer.values,
            rows: self.on_device,
            sinks: self.optional(attention.sinks),
            partial,
            to,
            arrived,
            heads: attention.heads as i32,
            kv_heads: kv.heads as i32,
            key_dim: kv.key_dim as i32,
            value_dim: kv.value_dim as i32,
            value_width: if kv.value_in_key { kv.key_dim } else { kv.value_dim } as i32,
            window: attention.window.unwrap_or(0) as i32,
            splits: splits as i32,
            split_len: split_len as i32,
            first_row: 0,
            scale: attention.scale,
        };
        for first in (0..self.rows.len()).step_by(FEW_ROWS) {
            p.first_row = first as i32;
            let rows = (self.rows.len() - first).min(FEW_ROWS);
            let grid = [splits, tiles, rows];
            self.launch(Launch { kernel: few.kernel, grid, threads: few.threads, shared: few.shared }, &p)?;
        }
        Ok(())
    }

    /// Into how many parts positions are cut, and how long these are: so that all multiprocessors are busy.
    fn splits(&self, few: &Few, blocks: usize, reach: usize) -> (usize, usize) {
        let most = MOST_SPLITS.min(reach.div_ceil(few.least));
        let wanted = (few.blocks * self.driver.multiprocessors() / blocks).clamp(1, most);
        let len = reach.div_ceil(wanted).next_multiple_of(few.step);
        (reach.div_ceil(len), len)
    }
}

/// Threads of a block of the kernels for many rows.
const FLASH_THREADS: usize = 128;
