//! The rows of the present step, and the tables made for them.

use super::kernels::Isa;
use super::kernels::elementwise::rotate;
use super::memory::Memory;
use super::pool::Pool;
use crate::Result;
use crate::backend::{PAGE_LEN, Plan, Rope, Row, Step};

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

    /// Rotates a row's heads of `dim` values in place, from value `from` of each.
    pub fn rotate(&self, isa: Isa, row: usize, x: &mut [f32], dim: usize, from: usize) {
        let pairs = self.rope.inverse_frequencies.len();
        let fits = from + 2 * pairs <= dim && x.len().is_multiple_of(dim);
        assert!(fits, "heads of {dim} in a row of {}", x.len());
        let table = &self.table.as_floats((row + 1) * 2 * pairs)[row * 2 * pairs..];
        let (cos, sin) = table.split_at(pairs);
        let heads = x.len() / dim;
        // SAFETY: the backend's ISA; lengths were checked.
        unsafe {
            rotate(isa, x.as_mut_ptr(), heads, dim, from, cos.as_ptr(), sin.as_ptr(), pairs, self.rope.style);
        }
    }
}

/// Values that are quicker done by one thread than shared out.
const SERIAL: usize = 16_384;

/// Rows of this width that one thread takes at least.
pub fn least_rows(width: usize) -> usize {
    (SERIAL / width.max(1)).max(1)
}

/// Most rows whose values have room in the caches beside a product's weights.
pub const FEW_ROWS: usize = 24;

/// Multiply-adds below which a job is not worth waking other threads for.
pub const SMALL: usize = 100_000;

/// Values that are quicker fetched by one core than left to those that made them.
pub const FETCHED: usize = 512;
