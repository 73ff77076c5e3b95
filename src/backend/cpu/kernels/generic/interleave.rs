//! From rows as they stand in the file to tiles of 16 rows interleaved (see `formats`): a transposition of 32-bit words.

use super::super::Simd;
use super::formats::{Format, TILE, halves_and_words};

/// The rows of a tile as they stand in the file; beyond the matrix the last row again (nobody reads its sums).
#[derive(Clone, Copy)]
pub struct RowPointers([*const u8; TILE]);

impl RowPointers {
    /// The starts of the rows of a tile.
    ///
    /// # Safety
    /// `bytes` holds `rows` rows of `row_bytes`, and one of them is in the tile.
    #[inline(always)]
    pub unsafe fn new(bytes: *const u8, row_bytes: usize, rows: usize, tile: usize) -> Self {
        let mut pointers = [bytes; TILE];
        for (i, pointer) in pointers.iter_mut().enumerate() {
            // SAFETY: the row exists.
            *pointer = unsafe { bytes.add((tile * TILE + i).min(rows - 1) * row_bytes) };
        }
        Self(pointers)
    }
}

/// Interleaves a run of blocks of each row, the first `skip` bytes into the row.
///
/// # Safety
/// The CPU has the ISA; each row has these blocks of F; `out` has room for them.
#[inline(always)]
pub unsafe fn interleave<S: Simd, F: Format>(rows: &RowPointers, skip: usize, blocks: usize, out: *mut u8) {
    unsafe {
        for block in 0..blocks {
            let offset = block * F::KIND.block_bytes();
            interleave_block::<S, F>(rows, skip + offset, out.add(offset * TILE));
        }
    }
}

/// Interleaves the blocks that stand `offset` bytes into the rows: `out` takes 16 blocks.
#[inline(always)]
unsafe fn interleave_block<S: Simd, F: Format>(rows: &RowPointers, offset: usize, out: *mut u8) {
    let (halves, words) = halves_and_words::<F>(out);
    unsafe {
        let halves = out.add(halves).cast::<u16>();
        for (i, &half) in F::HALVES.iter().enumerate() {
            for (row, &block) in rows.0.iter().enumerate() {
                let half = block.add(offset + half).cast::<u16>().read_unaligned();
                halves.add(i * TILE + row).write_unaligned(half);
            }
        }
        let all_words = out.add(words).cast::<u32>();
        let mut words = all_words;
        for &(first, count) in F::WORDS {
            for i in (0..count).step_by(4) {
                let i = i.min(count - 4); // the last four may overlap the four before
                for part in (0..TILE).step_by(S::LANES) {
                    let four = S::i_load_transposed(rows.0.as_ptr().add(part), offset + first + 4 * i);
                    for (j, vector) in four.into_iter().enumerate() {
                        S::i_store(words.add((i + j) * TILE + part), vector);
                    }
                }
            }
            words = words.add(count * TILE);
        }
        for part in (0..TILE).step_by(S::LANES) {
            F::rearrange::<S>(all_words.add(part));
        }
        let bytes = out.add(TILE * (F::KIND.block_bytes() - F::BYTES.len()));
        for (i, &byte) in F::BYTES.iter().enumerate() {
            for (row, &block) in rows.0.iter().enumerate() {
                bytes.add(i * TILE + row).write(block.add(offset + byte).read());
            }
        }
    }
}
