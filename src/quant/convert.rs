//! Rows of one type as rows of another, on all cores.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::{BlockType, dequantize, quantize_by};

/// Values that a thread converts at a time, about.
const PIECE: usize = 1 << 18;

/// Rows of `columns` values as they are stored.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Their type.
    pub kind: BlockType,
    /// Values of a row: whole blocks of both types.
    pub columns: usize,
    /// One row after the other.
    pub bytes: &'a [u8],
    /// How important each column is, where that is known ([`quantize_by`]).
    pub importance: Option<&'a [f32]>,
}

impl Rows<'_> {
    /// Writes the same values, as near as `kind` comes, to `to`: by whole rows, so that the result does not depend on the
    /// number of cores. What is written once `stop` is set is of no use.
    ///
    /// # Panics
    /// If `to` is not as long as the rows of `kind` are.
    pub fn convert(&self, kind: BlockType, to: &mut [u8], stop: &AtomicBool) {
        let (from_bytes, to_bytes) = (self.kind.row_bytes(self.columns), kind.row_bytes(self.columns));
        let rows = self.bytes.len() / from_bytes.max(1);
        assert_eq!(to.len(), rows * to_bytes, "bytes of {rows} rows of {kind}");
        if self.kind == kind {
            return to.copy_from_slice(self.bytes);
        }
        let piece = (PIECE / self.columns.max(1)).max(1);
        let pieces = Mutex::new(self.bytes.chunks(piece * from_bytes).zip(to.chunks_mut(piece * to_bytes)));
        let next = || pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            let mut values = Vec::new();
            while let Some((from, to)) = next() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                values.resize(from.len() / from_bytes * self.columns, 0.0);
                dequantize(self.kind, from, &mut values);
                quantize_by(kind, &values, self.importance, to);
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from).min(rows.div_ceil(piece));
        std::thread::scope(|scope| {
            (1..cores).for_each(|_| drop(scope.spawn(work)));
            work();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::quantize;
    use super::*;

    #[test]
    fn rows_become_what_each_becomes_by_itself() {
        let (rows, columns) = (700, 512);
        let values: Vec<f32> =
            (0..rows * columns).map(|i| ((i * 7919) % 1013) as f32 / 1013.0 - 0.4).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let from = Rows { kind: BlockType::F32, columns, bytes: &bytes, importance: None };
        for kind in [BlockType::Q8_0, BlockType::Q6_K, BlockType::BF16, BlockType::F32] {
            let row_bytes = kind.row_bytes(columns);
            let (mut together, mut alone) = (vec![0; rows * row_bytes], vec![0; rows * row_bytes]);
            from.convert(kind, &mut together, &AtomicBool::new(false));
            for (values, bytes) in values.chunks(columns).zip(alone.chunks_mut(row_bytes)) {
                quantize(kind, values, bytes);
            }
            assert!(together == alone, "{kind}");
        }
    }
}
