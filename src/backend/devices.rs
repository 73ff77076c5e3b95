//! Which devices there are, and which a user asks for.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

#[cfg(feature = "candle")]
use super::candle::{self, Accelerator, CandleBackend};
use super::{Backend, KvShape, MOST_SCORES, PAGE_LEN};
use crate::Result;

/// Where a model is to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// GPUs that this build can use, else the CPU.
    #[default]
    Auto,
    /// The CPU, by pensive's own kernels.
    Cpu,
    /// The CPU, by candle's: what a GPU's results are compared with.
    Candle,
    /// NVIDIA GPUs, by number; several share the layers.
    Cuda(Vec<usize>),
    /// An Apple GPU.
    Metal,
}

impl FromStr for DeviceChoice {
    type Err = String;

    /// `auto`, `cpu`, `cuda`, `cuda:1`, `cuda:0,1`, `metal`, `candle`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "there are auto, cpu, cuda, cuda:N, cuda:0,1 and metal".to_owned();
        let text = text.to_ascii_lowercase();
        match text.as_str() {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "candle" => Ok(DeviceChoice::Candle),
            "metal" => Ok(DeviceChoice::Metal),
            "cuda" => Ok(DeviceChoice::Cuda(vec![0])),
            _ => {
                let list = text.strip_prefix("cuda:").ok_or_else(wrong)?;
                let list = list.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>();
                let list = list.map_err(|_| wrong())?;
                let twice = (1..list.len()).any(|i| list[..i].contains(&list[i]));
                if twice { Err("a GPU stands there twice".into()) } else { Ok(DeviceChoice::Cuda(list)) }
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Candle => f.write_str("candle"),
            DeviceChoice::Metal => f.write_str("metal"),
            DeviceChoice::Cuda(list) => {
                let list: Vec<String> = list.iter().map(usize::to_string).collect();
                write!(f, "cuda:{}", list.join(","))
            }
        }
    }
}

/// A GPU (or candle's CPU device), ready to take a model's layers.
pub struct Gpu {
    /// "cuda:0"
    pub label: String,
    /// "NVIDIA H200"
    pub name: String,
    /// Bytes of memory that are free.
    pub free_bytes: u64,
    /// Bytes of all its memory.
    pub total_bytes: u64,
    /// Rows of a prompt that it takes best at once.
    pub rows: usize,
    /// Without weights.
    pub backend: Box<dyn Backend>,
}

/// Bytes of a GPU that blocks of scores take: before and after they are scaled, and the softmax. pensive's kernels, which need none,
/// have their pieces of matrices there.
pub const SCORE_BYTES: u64 = 3 * 4 * MOST_SCORES as u64;

/// Bytes of a GPU that attention of many rows takes for each page of a sequence: keys and values of a layer as f32, and
/// once more while one of them is put together as f16.
pub const fn gathered_page_bytes(kv: KvShape) -> u64 {
    let widest = if kv.key_dim > kv.value_dim { kv.key_dim } else { kv.value_dim };
    (4 * PAGE_LEN * kv.heads * (kv.key_dim + kv.value_dim + widest)) as u64
}

/// What a choice comes to.
pub struct Chosen {
    /// None: the CPU.
    pub gpus: Vec<Gpu>,
    /// Something the user should know: a GPU that stays unused, and why.
    pub notice: Option<String>,
}

impl DeviceChoice {
    /// Opens the devices.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] for what this build has not; [`crate::Error::Device`] for what a GPU's driver says.
    pub fn open(&self) -> Result<Chosen> {
        let (gpus, notice) = match self {
            DeviceChoice::Cpu => (Vec::new(), None),
            DeviceChoice::Auto => usable(),
            other => (other.named()?, None),
        };
        Ok(Chosen { gpus, notice })
    }

    #[cfg(feature = "candle")]
    fn named(&self) -> Result<Vec<Gpu>> {
        let found = match self {
            DeviceChoice::Cuda(list) => list.iter().map(|&i| Accelerator::cuda(i)).collect::<Result<_>>()?,
            DeviceChoice::Metal => vec![Accelerator::metal()?],
            _ => vec![Accelerator::candle()],
        };
        found.into_iter().map(Gpu::new).collect()
    }

    #[cfg(not(feature = "candle"))]
    fn named(&self) -> Result<Vec<Gpu>> {
        Err(crate::Error::Usage(format!(
            "--device {self}: this pensive was built for the CPU alone: build one with `cargo build --release --features \
             cuda` (or metal), or use --device cpu"
        )))
    }
}

/// The variable that has GPUs computed by candle's operations alone if it says "candle".
#[cfg(feature = "candle")]
const OPS: &str = "PENSIVE_GPU_OPS";

#[cfg(feature = "candle")]
impl Gpu {
    /// Ready for weights.
    fn new(accelerator: Accelerator) -> Result<Gpu> {
        Ok(Gpu {
            label: accelerator.label(),
            name: accelerator.name.clone(),
            free_bytes: accelerator.memory.0,
            total_bytes: accelerator.memory.1,
            rows: if is_own(&accelerator) { 2048 } else { 512 },
            backend: backend(accelerator)?,
        })
    }
}

/// Whether a GPU is run by pensive's own kernels.
#[cfg(feature = "candle")]
fn is_own(accelerator: &Accelerator) -> bool {
    accelerator.kind == candle::Kind::Cuda && std::env::var_os(OPS).is_none_or(|ops| ops != "candle")
}

/// pensive's own kernels on NVIDIA's GPUs, candle's operations on others.
#[cfg(feature = "candle")]
fn backend(accelerator: Accelerator) -> Result<Box<dyn Backend>> {
    #[cfg(feature = "cuda")]
    if is_own(&accelerator) {
        let driver = super::cuda::CudaDriver::new(accelerator)?;
        return Ok(Box::new(super::cuda::CudaBackend::new(Box::new(driver))));
    }
    Ok(Box::new(CandleBackend::new(accelerator)))
}

/// All GPUs that can be used, and why one cannot.
#[cfg(feature = "candle")]
pub fn usable() -> (Vec<Gpu>, Option<String>) {
    let (found, fault) = candle::accelerators();
    let opened: Vec<Result<Gpu>> = found.into_iter().map(Gpu::new).collect();
    let (gpus, bad): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
    let fault = fault.or_else(|| bad.into_iter().find_map(Result::err));
    let gpus: Vec<Gpu> = gpus.into_iter().flatten().collect();
    let unused = || if gpus.is_empty() { unused_nvidia() } else { None };
    let notice = fault.map(|error| format!("a GPU is not used: {error}")).or_else(unused);
    (gpus, notice)
}

/// All GPUs that can be used, and why one cannot.
#[cfg(not(feature = "candle"))]
pub fn usable() -> (Vec<Gpu>, Option<String>) {
    (Vec::new(), unused_nvidia())
}

/// Whether the system has an NVIDIA GPU's driver or device.
pub fn nvidia_is_visible() -> bool {
    ["/proc/driver/nvidia/version", "/dev/nvidia0"].iter().any(|path| Path::new(path).exists())
}

/// The version of NVIDIA's kernel driver, where the system tells it.
pub fn nvidia_driver() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    driver_version(&text).map(str::to_owned)
}

/// "580.65.06" of "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (…)".
fn driver_version(text: &str) -> Option<&str> {
    let words = text.lines().next()?.split_whitespace();
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    words.into_iter().find(is_version)
}

fn unused_nvidia() -> Option<String> {
    let advice = if cfg!(feature = "cuda") {
        "its driver shows no device to this process (`pensive doctor`)"
    } else {
        "this pensive was built without CUDA: `cargo build --release --features cuda` builds one that uses it"
    };
    nvidia_is_visible().then(|| format!("an NVIDIA GPU is here and is not used: {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_by_kind_and_numbers() {
        for name in ["auto", "cpu", "metal", "candle", "cuda:1", "cuda:0,2"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        assert_eq!("CUDA".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(vec![0]));
        for name in ["gpu", "cuda:", "cuda:x", "cuda:0,0", "cuda:-1", ""] {
            assert!(name.parse::<DeviceChoice>().is_err(), "{name}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_names_the_remedy() {
        let Err(crate::Error::Usage(text)) = DeviceChoice::Cuda(vec![0]).open() else {
            panic!("there is no CUDA in this build")
        };
        assert!(text.contains("--features cuda") && !text.contains('\n'), "{text}");
    }

    #[test]
    fn the_drivers_version_is_found_in_its_line() {
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root@x)\nGCC 12.3\n";
        assert_eq!(driver_version(open), Some("580.65.06"));
        let closed =
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n";
        assert_eq!(driver_version(closed), Some("535.183.01"));
        assert_eq!(driver_version(""), None);
    }
}
