//! The devices that candle can compute on.

use candle_core::Device as CandleDevice;

use super::limits;
use crate::backend::{Device, Limits};
use crate::{Error, Result};

/// What sort of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Candle's own CPU device.
    Candle,
    /// An NVIDIA GPU.
    Cuda,
    /// An Apple GPU.
    Metal,
}

impl Kind {
    /// What `--device` calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Candle => "candle",
            Kind::Cuda => "cuda",
            Kind::Metal => "metal",
        }
    }
}

/// A device that is ready to compute.
#[derive(Clone, Debug)]
pub struct Accelerator {
    pub(super) device: CandleDevice,
    /// What sort.
    pub kind: Kind,
    /// Its number among those of its kind.
    pub index: usize,
    /// "NVIDIA H200".
    pub name: String,
    /// Bytes of memory that are free, and of all.
    pub memory: (u64, u64),
}

impl Accelerator {
    /// Candle's CPU device.
    pub fn candle() -> Self {
        Accelerator {
            device: CandleDevice::Cpu,
            kind: Kind::Candle,
            index: 0,
            name: "candle's CPU device".into(),
            memory: crate::backend::available_and_total_bytes(),
        }
    }

    /// An NVIDIA GPU.
    ///
    /// # Errors
    /// A build without CUDA; no such GPU; a driver that is too old for this build.
    #[cfg(feature = "cuda")]
    pub fn cuda(index: usize) -> Result<Self> {
        cuda::open(index).map_err(|error| self::error(&label(Kind::Cuda, index), &error))
    }

    /// An NVIDIA GPU.
    ///
    /// # Errors
    /// A build without CUDA; no such GPU; a driver that is too old for this build.
    #[cfg(not(feature = "cuda"))]
    pub fn cuda(_index: usize) -> Result<Self> {
        Err(without("cuda", "CUDA"))
    }

    /// An Apple GPU.
    ///
    /// # Errors
    /// A build without Metal; no such GPU.
    #[cfg(feature = "metal")]
    pub fn metal() -> Result<Self> {
        let device = CandleDevice::new_metal(0).map_err(|error| self::error("metal", &error))?;
        // memory is the machine's; the system keeps a quarter of it from GPUs
        let (free, total) = crate::backend::available_and_total_bytes();
        let memory = (free / 4 * 3, total / 4 * 3);
        Ok(Accelerator { device, kind: Kind::Metal, index: 0, name: "Apple GPU".into(), memory })
    }

    /// An Apple GPU.
    ///
    /// # Errors
    /// A build without Metal; no such GPU.
    #[cfg(not(feature = "metal"))]
    pub fn metal() -> Result<Self> {
        Err(without("metal", "Metal"))
    }

    /// "cuda:0"
    pub fn label(&self) -> String {
        label(self.kind, self.index)
    }

    /// What it can do at most.
    ///
    /// # Errors
    /// What the device says.
    pub(crate) fn limits(&self) -> Result<Limits> {
        limits::measure(&self.device).map_err(|e| self.error(&e))
    }

    /// Candle's handle of an NVIDIA GPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn cuda_device(&self) -> candle_core::Result<&candle_core::CudaDevice> {
        self.device.as_cuda_device()
    }

    pub(crate) fn describe(&self) -> Device {
        let threads = if self.kind == Kind::Candle { candle_core::utils::get_num_threads() } else { 0 };
        Device { kind: self.kind.name().into(), name: self.name.clone(), threads }
    }

    pub(crate) fn error(&self, error: &candle_core::Error) -> Error {
        self::error(&self.label(), error)
    }
}

fn label(kind: Kind, index: usize) -> String {
    match kind {
        Kind::Cuda => format!("cuda:{index}"),
        _ => kind.name().into(),
    }
}

/// The build lacks it.
#[cfg(not(all(feature = "cuda", feature = "metal")))]
fn without(feature: &str, name: &str) -> Error {
    Error::Usage(format!(
        "--device {feature}: this pensive was built without {name}: build one with `cargo build --release --features \
         {feature}`, or use --device cpu"
    ))
}

/// GPUs that this build can use; of the first that cannot be opened, why.
pub fn accelerators() -> (Vec<Accelerator>, Option<Error>) {
    #[cfg(feature = "cuda")]
    {
        let opened: Vec<_> = (0..cuda::count()).map(Accelerator::cuda).collect();
        let (good, bad): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
        let good: Vec<_> = good.into_iter().flatten().collect();
        if !good.is_empty() || !bad.is_empty() {
            return (good, bad.into_iter().find_map(Result::err));
        }
    }
    match Accelerator::metal() {
        Ok(gpu) => (vec![gpu], None),
        Err(Error::Usage(_)) => (Vec::new(), None),
        Err(error) => (Vec::new(), Some(error)),
    }
}

/// A device's word in one line, with the remedy where there is a usual one.
fn error(device: &str, error: &candle_core::Error) -> Error {
    const USUAL: [(&str, &str); 5] = [
        ("OUT_OF_MEMORY", "out of memory: use a smaller --context, or fewer --gpu-layers"),
        ("NO_DEVICE", "there is no NVIDIA GPU: use --device cpu"),
        ("INVALID_DEVICE", "there is no such GPU: `pensive doctor` lists them"),
        (
            "UNSUPPORTED_PTX_VERSION",
            "the driver is too old for this build: install one that knows its CUDA version (`pensive doctor`), or build \
             pensive with an older toolkit",
        ),
        (
            "NO_BINARY_FOR_GPU",
            "this build is for another GPU: build pensive on this machine, or with its CUDA_COMPUTE_CAP",
        ),
    ];
    let text = error.to_string();
    let known = USUAL.iter().find(|(code, _)| text.contains(code)).map(|(_, what)| (*what).to_owned());
    let first = || text.lines().next().unwrap_or_default().to_owned();
    Error::Device { device: device.into(), what: known.unwrap_or_else(first) }
}

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::Result;
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, sys};

    use super::{Accelerator, CandleDevice, Kind};

    /// GPUs that the driver shows; none without a driver.
    pub fn count() -> usize {
        CudaContext::device_count().map_or(0, |count| count as usize)
    }

    /// A GPU, with one stream for all threads: candle's default is a stream for each, and a model is loaded, run and saved
    /// by several.
    pub fn open(index: usize) -> Result<Accelerator> {
        let device = CandleDevice::new_cuda_with_stream(index)?;
        let cuda = device.as_cuda_device()?;
        let stream = cuda.cuda_stream();
        let context = stream.context();
        keep_freed_memory(context).w()?;
        // SAFETY: all of this device's tensors are used on its one stream, in whose order they are made and freed.
        unsafe { cuda.disable_event_tracking() };
        let (free, total) = context.mem_get_info().w()?;
        let name = context.name().w()?;
        Ok(Accelerator { kind: Kind::Cuda, index, name, memory: (free as u64, total as u64), device })
    }

    /// Keeps freed memory in the device's pool: by default the driver gives it back whenever the host waits, which is after
    /// each token.
    fn keep_freed_memory(context: &CudaContext) -> std::result::Result<(), DriverError> {
        if !context.has_async_alloc() {
            return Ok(());
        }
        let mut pool = std::ptr::null_mut();
        let mut all = u64::MAX;
        // SAFETY: the driver fills in the pool of a device that was opened, and reads a u64 for this attribute.
        unsafe {
            sys::cuDeviceGetDefaultMemPool(&mut pool, context.cu_device()).result()?;
            let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut all).cast()).result()
        }
    }
}
