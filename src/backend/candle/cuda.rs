//! Launches of the kernels in kernels/kernels.cu. Operands were checked by candle: contiguous, on this device.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaView, DeviceRepr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::{CudaDevice, CudaStorage, Layout, Result, Storage, Tensor as Values};
use half::f16;

use super::ops::{PagedAttention, RotateHeads};

/// Compiled by build.rs.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// Positions of a split of the attention kernels.
const SPLIT: usize = 128;

/// Threads of a block of the attention kernels.
const ATTEND_THREADS: usize = 128;

type Operand<'a> = (&'a CudaStorage, &'a Layout);

/// The name under which candle keeps what was loaded of [`PTX`].
const MODULE: &str = "pensive";

fn view<'a, T: CudaDType + DeviceRepr>((storage, layout): Operand<'a>) -> Result<CudaView<'a, T>> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(storage.as_cuda_slice::<T>()?.slice(from..to)),
        None => candle_core::bail!("an operand is not contiguous"),
    }
}

/// Calls `with` with a tensor's values.
fn with_values<T: CudaDType + DeviceRepr, R>(
    tensor: &Values,
    with: impl FnOnce(&CudaView<'_, T>) -> Result<R>,
) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => with(&view((storage, layout))?),
        _ => candle_core::bail!("an operand is not on the GPU"),
    }
}

/// Memory for f32 values that a kernel writes.
fn output(device: &CudaDevice, len: usize) -> Result<CudaSlice<f32>> {
    // SAFETY: the kernel that gets it writes all that is read of it.
    unsafe { device.alloc::<f32>(len) }
}

fn grid(blocks: (usize, usize, usize), threads: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (blocks.0 as u32, blocks.1 as u32, blocks.2 as u32),
        block_dim: (threads as u32, 1, 1),
        shared_mem_bytes: 0,
    }
}

/// Threads for a row of so many values: whole warps, 1024 at most.
fn threads(width: usize) -> usize {
    width.next_multiple_of(32).min(1024)
}

pub fn add_rms_norm(
    sum: Operand,
    y: Operand,
    weight: Operand,
    (rows, width): (usize, usize),
    epsilon: f32,
) -> Result<CudaStorage> {
    let device = sum.0.device().clone();
    let (sum, y, weight) = (view::<f32>(sum)?, view::<f32>(y)?, view::<f32>(weight)?);
    let to = output(&device, 2 * rows * width)?;
    let function = device.get_or_load_custom_func("add_rms_norm", MODULE, PTX)?;
    let (n, w) = (rows as i32, width as i32);
    let mut launch = function.builder();
    launch.arg(&sum).arg(&y).arg(&weight).arg(&to).arg(&n).arg(&w).arg(&epsilon);
    // SAFETY: the arguments are those of the kernel, a block per row.
    unsafe { launch.launch(grid((rows, 1, 1), threads(width))) }.w()?;
    Ok(CudaStorage::wrap_cuda_slice(to, device))
}

pub fn swiglu(gate: Operand, up: Operand) -> Result<CudaStorage> {
    let device = gate.0.device().clone();
    let len = gate.1.shape().elem_count();
    let (gate, up) = (view::<f32>(gate)?, view::<f32>(up)?);
    let to = output(&device, len)?;
    let function = device.get_or_load_custom_func("swiglu", MODULE, PTX)?;
    let n = len as i32;
    let mut launch = function.builder();
    launch.arg(&gate).arg(&up).arg(&to).arg(&n);
    // SAFETY: the arguments are those of the kernel, a thread per value at least.
    unsafe { launch.launch(grid((len.div_ceil(256), 1, 1), 256)) }.w()?;
    Ok(CudaStorage::wrap_cuda_slice(to, device))
}

pub fn rotate_heads(op: &RotateHeads<'_>, x: Operand, cos: Operand, sin: Operand) -> Result<CudaStorage> {
    let device = x.0.device().clone();
    let (rows, width, pairs) = (x.1.dims()[0], x.1.dims()[1], cos.1.dims()[2]);
    let (x, cos, sin) = (view::<f32>(x)?, view::<f32>(cos)?, view::<f32>(sin)?);
    let to = output(&device, rows * width)?;
    let function = device.get_or_load_custom_func("rotate_heads", MODULE, PTX)?;
    let (dim, from, pairs) = (op.dim as i32, op.from as i32, pairs as i32);
    let (interleaved, centered) = (i32::from(op.interleaved), i32::from(op.center.is_some()));
    let (normed, epsilon) =
        op.norm.map_or((0, 0.0), |(weight, epsilon)| (weight.elem_count() as i32, epsilon));
    let config = grid((width / op.dim, rows, 1), threads(op.dim).min(256));
    let run = |norm: &CudaView<'_, f32>, center: &CudaView<'_, f32>| {
        let mut launch = function.builder();
        launch.arg(&x).arg(&cos).arg(&sin).arg(norm).arg(center).arg(&to);
        launch.arg(&dim).arg(&normed).arg(&epsilon).arg(&from).arg(&pairs).arg(&interleaved).arg(&centered);
        // SAFETY: the arguments are those of the kernel, a block per head and row; `normed` and `centered` say whether the
        // norm and the center, for which x stands in, are read.
        unsafe { launch.launch(config) }.w()
    };
    let with_center = |norm: &CudaView<'_, f32>| match op.center {
        Some(center) => with_values(center, |center| run(norm, center)),
        None => run(norm, &x),
    };
    match op.norm {
        Some((weight, _)) => with_values(weight, with_center)?,
        None => with_center(&x)?,
    };
    Ok(CudaStorage::wrap_cuda_slice(to, device))
}

pub fn append(cache: (&mut CudaStorage, &Layout), x: Operand, slots: Operand) -> Result<()> {
    let device = x.0.device().clone();
    let (rows, stride) = (x.1.dims()[0] as i32, x.1.dims()[1] as i32);
    let (x, slots) = (view::<f32>(x)?, view::<u32>(slots)?);
    let width = cache.1.dims()[1];
    let Some((from, to)) = cache.1.contiguous_offsets() else { candle_core::bail!("a cache is contiguous") };
    let mut cache = cache.0.as_cuda_slice_mut::<f16>()?.slice_mut(from..to);
    let function = device.get_or_load_custom_func("append", MODULE, PTX)?;
    let w = width as i32;
    let mut launch = function.builder();
    launch.arg(&mut cache).arg(&x).arg(&slots).arg(&stride).arg(&w);
    // SAFETY: the arguments are those of the kernel, a block per row; slots lie in the cache.
    unsafe { launch.launch(grid((rows as usize, 1, 1), threads(width))) }.w()?;
    Ok(())
}

/// The kernel for a group of query heads and these widths, and how many heads a block of it takes.
fn attend_kernel(group: usize, key_dim: usize, value_dim: usize) -> (&'static str, usize) {
    match (key_dim.max(value_dim), group) {
        (129.., _) => ("attend_2_576", 2),
        (65.., 1) => ("attend_1_128", 1),
        (65.., 2..=4) => ("attend_4_128", 4),
        (65.., _) => ("attend_8_128", 8),
        (_, 1) => ("attend_1_64", 1),
        (_, 2..=4) => ("attend_4_64", 4),
        _ => ("attend_8_64", 8),
    }
}

pub fn attention(
    op: &PagedAttention<'_>,
    rows: usize,
    query: Operand,
    keys: Operand,
    values: Operand,
) -> Result<CudaStorage> {
    let device = query.0.device().clone();
    let (query, keys, values) = (view::<f32>(query)?, view::<f16>(keys)?, view::<f16>(values)?);
    let (heads, kv) = (op.heads, op.kv);
    let splits = op.last_position / SPLIT + 1;
    let partial = output(&device, rows * heads * splits * (2 + kv.value_dim))?;
    let to = output(&device, rows * heads * kv.value_dim)?;
    let group = heads / kv.heads;
    let (name, tile) = attend_kernel(group, kv.key_dim, kv.value_dim);
    let (attend, merge) = (
        device.get_or_load_custom_func(name, MODULE, PTX)?,
        device.get_or_load_custom_func("merge_splits", MODULE, PTX)?,
    );
    let [h, kv_heads, key_dim, value_dim, value_width, window, n] =
        [heads, kv.heads, kv.key_dim, kv.value_dim, op.value_width(), op.window, splits].map(|n| n as i32);
    with_values::<u32, _>(op.rows, |row_list| {
        with_values::<u32, _>(op.tables, |tables| {
            let mut launch = attend.builder();
            launch.arg(&query).arg(&keys).arg(&values).arg(row_list).arg(tables).arg(&partial);
            launch.arg(&h).arg(&kv_heads).arg(&key_dim).arg(&value_dim).arg(&value_width);
            launch.arg(&window).arg(&n).arg(&op.scale);
            let blocks = (splits, kv.heads * group.div_ceil(tile), rows);
            // SAFETY: the arguments are those of the kernel; widths are those it was made for (`has_kernel`).
            unsafe { launch.launch(grid(blocks, ATTEND_THREADS)) }.w()
        })?;
        let has_sinks = i32::from(op.sinks.is_some());
        let run = |sinks: &CudaView<'_, f32>| {
            let mut launch = merge.builder();
            launch.arg(&partial).arg(row_list).arg(sinks).arg(&to);
            launch.arg(&h).arg(&value_dim).arg(&window).arg(&n).arg(&has_sinks);
            // SAFETY: the arguments are those of the kernel, a block per head and row; `has_sinks` says whether the sinks, for
            // which the query stands in, are read.
            unsafe { launch.launch(grid((heads, rows, 1), ATTEND_THREADS)) }.w()
        };
        match op.sinks {
            Some(sinks) => with_values(sinks, run),
            None => run(&query),
        }
    })?;
    Ok(CudaStorage::wrap_cuda_slice(to, device))
}
