//! The rows of the present step, and the tables made for them.

use super::memory::{Memory, Shared};
use super::pool::Pool;
use crate::Result;
use crate::backend::{PAGE_LEN, Plan, Rope, RopeStyle, Row, Step};

/// A copy of the step that [`begin`](crate::backend::Backend::begin) was given.
#[derive(Default)]
pub struct StepRows {
    /// The rows.
    pub rows: Vec<Row>,
    /// The block tables, one after the other.
    pages: Vec<u32>,
    /// Where each sequence's table begins in `pages`, and the end of the last.
    starts: Vec<usize>,
}

impl StepRows {
    /// With room for the plan's steps.
    pub fn new(plan: &Plan) -> Self {
        StepRows {
            rows: Vec::with_capacity(plan.rows),
            pages: Vec::with_capacity(plan.sequences * plan.pages),
            starts: Vec::with_capacity(plan.sequences + 1),
        }
    }

    /// Copies a step.
    ///
    /// # Panics
    /// If a row's position has no page, or rows are out of order: faults of the caller.
    pub fn set(&mut self, step: &Step<'_>) {
        self.rows.clear();
        self.pages.clear();
        self.starts.clear();
        self.rows.extend_from_slice(step.rows);
        self.starts.push(0);
        for table in step.tables {
            self.pages.extend_from_slice(table);
            self.starts.push(self.pages.len());
        }
        for row in step.rows {
            let pages = step.tables[row.sequence].len();
            assert!(row.position < pages * PAGE_LEN, "position {} with {pages} KV pages", row.position);
        }
        let ordered = |a: &Row, b: &Row| (a.sequence, a.position) < (b.sequence, b.position);
        assert!(step.rows.is_sorted_by(ordered), "rows of a step ascend by sequence and position");
    }

    /// The page that holds a chunk of a sequence.
    pub fn page(&self, sequence: usize, chunk: usize) -> u32 {
        self.pages[self.starts[sequence]..self.starts[sequence + 1]][chunk]
    }
}

/// Sines and cosines of the step's positions.
pub struct RopeTable {
    rope: Rope,
    /// [rows, 2, pairs]: cosines, then sines, times the magnitude
    table: Memory,
}

impl RopeTable {
    /// With room for `rows` rows.
    ///
    /// # Errors
    /// The system refuses the memory.
    pub fn new(rope: &Rope, rows: usize) -> Result<Self> {
        let table = Memory::floats(rows * 2 * rope.inverse_frequencies.len(), "the rope table")?;
        Ok(RopeTable { rope: rope.clone(), table })
    }

    /// Computes the table for these rows: in f64, by the libm crate, so that each platform gets the same bits.
    pub fn fill(&mut self, rows: &[Row], pool: &Pool) {
        let pairs = self.rope.inverse_frequencies.len();
        let (rope, table) = (&self.rope, self.table.shared::<f32>());
        pool.for_each(rows.len(), 4, |row| {
            for (i, frequency) in rope.inverse_frequencies.iter().enumerate() {
                let (sin, cos) = libm::sincos(rows[row].position as f64 * frequency);
                // SAFETY: the table has room for the plan's rows; a row belongs to one task.
                unsafe {
                    *table.at((row * 2) * pairs + i) = (cos * rope.magnitude) as f32;
                    *table.at((row * 2 + 1) * pairs + i) = (sin * rope.magnitude) as f32;
                }
            }
        });
    }

    /// Rotates the heads of `rows` rows of `width` values each in place.
    pub fn rotate(&self, x: Shared<f32>, rows: usize, width: usize, head_dim: usize, pool: &Pool) {
        let pairs = self.rope.inverse_frequencies.len();
        if pairs == 0 {
            return;
        }
        let table = self.table.as_floats(rows * 2 * pairs);
        let least = (SERIAL / width.max(1)).max(1);
        pool.for_each(rows, least, |row| {
            // SAFETY: the row lies in the buffer; a row belongs to one task.
            let x = unsafe { std::slice::from_raw_parts_mut(x.at(row * width), width) };
            let (cos, sin) = table[row * 2 * pairs..][..2 * pairs].split_at(pairs);
            for head in x.chunks_exact_mut(head_dim) {
                rotate_head(self.rope.style, &mut head[..2 * pairs], cos, sin);
            }
        });
    }
}

/// Values that are quicker done by one thread than shared out.
pub const SERIAL: usize = 16_384;

fn rotate_head(style: RopeStyle, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let pairs = cos.len();
    match style {
        RopeStyle::Halves => {
            let (first, second) = head.split_at_mut(pairs);
            for i in 0..pairs {
                (first[i], second[i]) = rotate(first[i], second[i], cos[i], sin[i]);
            }
        }
        RopeStyle::Interleaved => {
            for (i, pair) in head.chunks_exact_mut(2).enumerate() {
                (pair[0], pair[1]) = rotate(pair[0], pair[1], cos[i], sin[i]);
            }
        }
    }
}

#[inline(always)]
fn rotate(a: f32, b: f32, cos: f32, sin: f32) -> (f32, f32) {
    (a * cos - b * sin, b * cos + a * sin)
}
