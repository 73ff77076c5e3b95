//! What this machine can do at most: the two numbers that speed is held against.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::kernels::{Isa, Simd, entry_points};
use super::kernels::{Layout, TILE, WeightMatrix};
use super::linear::{self, Input, Made, Product};
use super::memory::{Memory, Shared};
use super::pool::Pool;
use crate::Result;
use crate::backend::Limits;
use crate::checkpoint::Tensor;
use crate::quant::BlockType;

/// Bytes that are read in a pass: many times the caches of common machines.
const BUFFER: usize = 512 << 20;

/// How long each of the two is measured; the best pass counts.
const PATIENCE: Duration = Duration::from_millis(150);

/// Bytes of a matrix that a thread multiplies when a kernel is measured: they fit into its caches.
const SAMPLE: usize = 512 << 10;

/// Independent sums: enough to hide the latency of a dot product, few enough for 16 registers.
const SUMS: usize = 12;

/// Rounds of dot products in a pass: a few milliseconds with the fastest instructions.
const ROUNDS: usize = 100_000;

entry_points! {
    /// [`sum`] on an ISA.
    fn sum_on(from: *const u32, len: usize, ask: bool) -> u32 = sum;
    /// [`dot_products`] on an ISA.
    fn dot_products_on(x: &Operands, rounds: usize) -> u32 = dot_products;
    /// [`lanes`] on an ISA.
    fn lanes_on() -> usize = lanes;
}

/// Measures on all threads of a pool, which should have nothing else to do.
///
/// # Errors
/// No memory for a buffer of 512 MiB.
pub fn measure(pool: &Pool, isa: Isa) -> Result<Limits> {
    Ok(Limits { read_bandwidth: read_bandwidth(pool, isa)?, int8_rate: int8_rate(pool, isa) })
}

/// Bytes per second that the threads together read from memory, each its own part of a large buffer.
///
/// # Errors
/// No memory for the buffer.
///
/// # Panics
/// Like all of these, if the CPU has not this ISA.
pub fn read_bandwidth(pool: &Pool, isa: Isa) -> Result<f64> {
    read_bandwidth_of(pool, isa, BUFFER, PATIENCE)
}

/// [`read_bandwidth`] of a buffer of so many bytes, measured for about so long.
///
/// # Errors
/// As [`read_bandwidth`].
pub fn read_bandwidth_of(pool: &Pool, isa: Isa, bytes: usize, patience: Duration) -> Result<f64> {
    assert!(isa.is_available(), "{isa:?}");
    let memory = Memory::new(bytes, "measuring the memory's speed")?;
    memory.prefer_huge_pages();
    let (values, threads) = (memory.shared::<u32>(), pool.threads());
    let len = bytes / size_of::<u32>() / threads;
    // Written once: pages that never were are all the same one.
    // SAFETY: each part has its own `len` values of the buffer.
    pool.for_each(threads, 1, |part| unsafe {
        std::slice::from_raw_parts_mut(values.at(part * len), len).fill(1);
    });
    // some processors read faster what they are asked for, some what they are not
    let passes = [false, true].map(|ask| {
        best_rate(patience / 2, || {
            // SAFETY: as above, and the CPU has the ISA.
            pool.for_each(threads, 1, |part| unsafe {
                black_box(sum_on(isa, values.at(part * len), len, ask));
            });
        })
    });
    let passes = f64::max(passes[0], passes[1]);
    Ok(passes * (len * size_of::<u32>() * threads) as f64)
}

/// int8 multiply-adds per second of the threads together, by the dot product of the kernels.
pub fn int8_rate(pool: &Pool, isa: Isa) -> f64 {
    assert!(isa.is_available(), "{isa:?}");
    let operands = Operands([0x0102_0304; SUMS * 4 * 16]);
    let passes = best_rate(PATIENCE, || {
        // SAFETY: the CPU has the ISA.
        pool.for_each(pool.threads(), 1, |_| {
            black_box(unsafe { dot_products_on(isa, &operands, ROUNDS) });
        });
    });
    // SAFETY: as above.
    let dot_product = 4 * unsafe { lanes_on(isa) };
    passes * (ROUNDS * SUMS * 4 * dot_product * pool.threads()) as f64
}

/// Bytes per second of a type's matrices, held in this layout, that decoding multiplies when they are in the caches already:
/// what the kernel is good for.
///
/// # Errors
/// No memory for a sample of a few MB.
pub fn product_rate(
    pool: &Pool,
    isa: Isa,
    kind: BlockType,
    layout: Layout,
    patience: Duration,
) -> Result<f64> {
    const COLUMNS: usize = 4096;
    let threads = pool.threads();
    let rows = (threads * SAMPLE / kind.row_bytes(COLUMNS)).next_multiple_of(TILE);
    // any bits are blocks, and these look up what blocks of weights would
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    let bytes = words.flat_map(u64::to_le_bytes).take(rows * kind.row_bytes(COLUMNS)).collect();
    let mut matrix = WeightMatrix::new(&Tensor::from_bytes("sample", kind, &[rows, COLUMNS], bytes), layout)?;
    matrix.settle(isa, pool);
    let mut workspace = linear::Workspace::new(1, std::iter::once(&matrix), threads);
    let (mut x, mut y) = (vec![1.0; COLUMNS], vec![0.0; rows]);
    let (x, y) = (Shared::of(&mut x), Shared::of(&mut y));
    let passes = best_rate(patience, || {
        let input = Input { values: x, rows: 1, width: COLUMNS, made: Made::Already };
        workspace.multiply(isa, pool, input, 1, |_| Product {
            matrix: &matrix,
            bias: None,
            to: y,
            sum: None,
            gated: None,
        });
    });
    Ok(passes * (rows * kind.row_bytes(COLUMNS)) as f64)
}

/// Runs per second, by the fastest of those that `patience` allows.
fn best_rate(patience: Duration, mut run: impl FnMut()) -> f64 {
    let (began, mut best) = (Instant::now(), f64::INFINITY);
    while began.elapsed() < patience {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    1.0 / best
}

/// The sum of `len` values, a multiple of 16 (others at the end are left out). `ask`: memory is asked for them ahead, as by
/// decoding ([`Fetch::Twice`](super::kernels::Fetch)), for each line where one is used.
///
/// # Safety
/// The CPU has the ISA; the values are there.
#[inline(always)]
unsafe fn sum<S: Simd>(from: *const u32, len: usize, ask: bool) -> u32 {
    /// Vectors of a cache line, at most.
    const VECTORS: usize = 4;
    /// Values of a cache line.
    const LINE: usize = 64 / size_of::<u32>();
    /// Bytes from which lines are asked for into the second and into the first cache level.
    const AHEAD: (usize, usize) = (8192, 6144);
    unsafe {
        let mut sums = [S::i_splat(0); VECTORS];
        for line in 0..len / LINE {
            let at = from.add(line * LINE);
            if ask {
                S::prefetch_far(at.cast::<u8>().wrapping_add(AHEAD.0));
                S::prefetch(at.cast::<u8>().wrapping_add(AHEAD.1));
            }
            for (j, sum) in sums.iter_mut().take(LINE / S::LANES).enumerate() {
                *sum = S::i_add(*sum, S::i_load(at.add(j * S::LANES)));
            }
        }
        fold::<S, VECTORS>(sums)
    }
}

/// Activations for [`dot_products`]: too many for the registers, few enough for the first-level cache, and all
/// different to the compiler, so that no product is computed once for several sums.
#[repr(align(64))]
struct Operands([u32; SUMS * 4 * 16]);

/// `rounds` times [`SUMS`] times four dot products of a vector each.
///
/// # Safety
/// The CPU has the ISA.
#[inline(always)]
unsafe fn dot_products<S: Simd>(x: &Operands, rounds: usize) -> u32 {
    unsafe {
        let w = S::i_splat(black_box(0x0304_0506));
        let mut sums = [S::i_splat(0); SUMS];
        for _ in 0..rounds {
            let mut x = black_box(x.0.as_ptr()); // or the compiler would load once
            for sum in &mut sums {
                let mut four = [w; 4];
                for x_i in &mut four {
                    *x_i = S::i_load(x);
                    x = x.add(S::LANES);
                }
                *sum = S::dot4::<4>(*sum, [w; 4], four);
            }
        }
        fold::<S, SUMS>(sums)
    }
}

/// Lanes of a vector.
///
/// # Safety
/// None needed; entry points are unsafe.
#[inline(always)]
unsafe fn lanes<S: Simd>() -> usize {
    S::LANES
}

/// The sum of all lanes, so that no vector is computed for nothing.
///
/// # Safety
/// The CPU has the ISA.
#[inline(always)]
unsafe fn fold<S: Simd, const N: usize>(vectors: [S::I; N]) -> u32 {
    let mut lanes = [0u32; 16];
    let mut sum = 0u32;
    for v in vectors {
        unsafe { S::i_store(lanes.as_mut_ptr(), v) };
        sum = lanes[..S::LANES].iter().fold(sum, |sum, &lane| sum.wrapping_add(lane));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_reads_all_of_the_memory() {
        let values: Vec<u32> = (0..4096).collect();
        for isa in Isa::available() {
            for ask in [false, true] {
                // SAFETY: the processor has it, and so many values are there.
                let sum = unsafe { sum_on(isa, values.as_ptr(), values.len(), ask) };
                assert_eq!(sum, values.iter().sum::<u32>(), "{isa}");
            }
        }
    }

    #[test]
    fn every_instruction_set_does_all_of_the_dot_products() {
        let operands = Operands([0x0102_0304; SUMS * 4 * 16]);
        let each = 3 + 4 * 2 + 5 * 3 + 6 * 4;
        for isa in Isa::available() {
            // SAFETY: the processor has it.
            let (sum, lanes) = unsafe { (dot_products_on(isa, &operands, 7), lanes_on(isa)) };
            assert_eq!(sum as usize, 7 * SUMS * 4 * lanes * each, "{isa}");
        }
    }

    #[test]
    fn the_limits_of_a_machine_are_positive_numbers() {
        let pool = Pool::new(Some(1)).unwrap();
        let limits = measure(&pool, Isa::Scalar).unwrap();
        assert!(limits.read_bandwidth > 1e6 && limits.read_bandwidth.is_finite(), "{limits:?}");
        assert!(limits.int8_rate > 1e6 && limits.int8_rate.is_finite(), "{limits:?}");
    }
}
