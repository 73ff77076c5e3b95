//! What a device can do at most, measured by candle's own operations.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};

use crate::backend::Limits;

/// Repetitions, of which the fastest counts.
const RUNS: usize = 5;

/// The bandwidth of a copy (read and written), and the rate of a product of f16 matrices: the units that quantized
/// products run on do at least that.
pub fn measure(device: &Device) -> Result<Limits> {
    let (bytes, side) = if device.is_cpu() { (256 << 20, 512) } else { (1 << 30, 8192) };
    let many = Tensor::zeros(bytes / 4, DType::F32, device)?;
    let copy = fastest(device, || many.copy())?;
    let dtype = if device.is_cpu() { DType::F32 } else { DType::F16 };
    let square = Tensor::ones((side, side), dtype, device)?;
    let product = fastest(device, || square.matmul(&square))?;
    Ok(Limits { read_bandwidth: 2.0 * bytes as f64 / copy, int8_rate: (side as f64).powi(3) / product })
}

/// Seconds of the fastest run.
fn fastest(device: &Device, what: impl Fn() -> Result<Tensor>) -> Result<f64> {
    drop(what()?); // loads the kernel
    device.synchronize()?;
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        let began = Instant::now();
        let made = what()?;
        device.synchronize()?;
        best = best.min(began.elapsed().as_secs_f64());
        drop(made);
    }
    Ok(best)
}
