//! Every operation through the trait, against plain f64 arithmetic, and bit for bit over threads and instruction sets.

mod attention;
mod operations;

use super::kernels::Isa;
use super::{CpuBackend, CpuOptions};
use crate::backend::{Backend, Buffer, KvType, Matrix, PAGE_LEN, Plan, Rope, RopeStyle, Row, Step};
use crate::checkpoint::Tensor;
use crate::quant::BlockType;

/// Thread counts that every test of sameness runs through.
const THREADS: [usize; 4] = [1, 2, 3, 8];

fn backend(threads: usize, isa: Isa) -> CpuBackend {
    let options = CpuOptions { threads: Some(threads), isa: Some(isa), ..Default::default() };
    CpuBackend::new(options).expect("the processor has it")
}

/// The machine's best instruction set.
fn best() -> Isa {
    Isa::available().last().unwrap_or(Isa::Scalar)
}

/// Numbers around zero of about this size, the same for a seed.
fn noise(seed: u64, len: usize, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len).map(|_| (next() + next() + next()) * 2.0 * size).collect()
}

/// An f32 matrix [rows, columns].
fn matrix(name: &str, values: &[f32], columns: usize) -> Tensor {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Tensor::from_bytes(name, BlockType::F32, &[values.len() / columns, columns], bytes)
}

fn no_rope() -> Rope {
    Rope { inverse_frequencies: Vec::new(), magnitude: 1.0, style: RopeStyle::Halves }
}

fn plan(rows: usize, pages: usize) -> Plan {
    Plan { rows, logit_rows: rows, sequences: 8, pages, kv_type: KvType::F32 }
}

/// One sequence's rows at positions 0.., with tokens 0.. .
fn rows(count: usize) -> Vec<Row> {
    (0..count).map(|i| Row { sequence: 0, position: i, token: i as u32, wants_logits: true }).collect()
}

/// Starts a step of one sequence at position 0 on pages 0.. .
fn begin(backend: &mut CpuBackend, rows: &[Row]) {
    let pages: Vec<u32> = (0..rows.len().div_ceil(PAGE_LEN).max(1) as u32).collect();
    backend.begin(&Step { rows, tables: &[&pages] });
}

/// Puts row i of `values` [rows, width] into row i of a new buffer.
struct Input {
    table: Matrix,
    buffer: Buffer,
}

impl Input {
    fn new(backend: &mut CpuBackend, values: &[f32], width: usize) -> Self {
        let table = backend.add_embedding(&matrix("input", values, width)).expect("a matrix");
        Input { table, buffer: backend.add_buffer(width) }
    }

    fn load(&self, backend: &mut CpuBackend) {
        backend.embed(self.table, self.buffer);
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[track_caller]
fn assert_close(values: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(values.len(), expected.len());
    for (i, (&value, &expected)) in values.iter().zip(expected).enumerate() {
        let off = (f64::from(value) - expected).abs();
        assert!(off <= tolerance * (1.0 + expected.abs()), "value {i}: {value}, expected {expected}");
    }
}

/// The result of `run` for each instruction set and thread count must be the same to the bit; returns it.
fn everywhere(run: impl Fn(CpuBackend) -> Vec<f32>) -> Vec<f32> {
    let expected = run(backend(1, Isa::Scalar));
    for isa in Isa::available() {
        for threads in THREADS {
            let values = run(backend(threads, isa));
            assert_eq!(bits(&values), bits(&expected), "{isa}, {threads} threads");
        }
    }
    expected
}
