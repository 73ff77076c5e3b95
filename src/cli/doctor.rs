//! `pensive doctor`: what this build and this machine can do.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde::Serialize;

use super::args::DoctorArgs;
use super::pull;
use super::render::{gib, harmless, print};
use super::settings::{Flags, Paths, Settings};
use crate::backend::cpu::kernels::Isa;
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::devices::{nvidia_driver, usable};
use crate::backend::{Backend, Limits, available_and_total_bytes};
use crate::{Error, Result};

/// All that is printed; `--json` prints it as it stands here.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    target: String,
    features: Vec<&'static str>,
    cpu: Cpu,
    gpus: Vec<Gpu>,
    /// Of NVIDIA, where one is loaded.
    nvidia_driver: Option<String>,
    /// Something about a GPU that is not used.
    notice: Option<String>,
    /// What is wrong with config.toml or a PENSIVE_* variable.
    settings_problem: Option<String>,
    paths: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
struct Cpu {
    isa: String,
    /// Those that this processor has.
    isas: Vec<&'static str>,
    threads: usize,
    logical_processors: usize,
    memory_bytes: u64,
    available_bytes: u64,
    #[serde(flatten)]
    limits: Speeds,
}

#[derive(Serialize)]
struct Gpu {
    device: String,
    name: String,
    memory_bytes: u64,
    available_bytes: u64,
    #[serde(flatten)]
    limits: Speeds,
}

/// As measured.
#[derive(Default, Serialize)]
struct Speeds {
    read_bytes_per_second: Option<f64>,
    /// Multiply-adds: int8 on a CPU, f16 on a GPU.
    products_per_second: Option<f64>,
    /// Why they were not measured.
    not_measured: Option<String>,
}

impl From<Result<Limits>> for Speeds {
    fn from(limits: Result<Limits>) -> Self {
        match limits {
            Ok(Limits { read_bandwidth, int8_rate }) => Speeds {
                read_bytes_per_second: Some(read_bandwidth),
                products_per_second: Some(int8_rate),
                not_measured: None,
            },
            Err(error) => Speeds { not_measured: Some(error.to_string()), ..Speeds::default() },
        }
    }
}

impl Speeds {
    fn line(&self, what: &str) -> String {
        match (self.read_bytes_per_second, self.products_per_second) {
            (Some(bytes), Some(products)) => {
                format!("{:.1} GB/s, {:.0} G {what} multiply-adds/s", bytes / 1e9, products / 1e9)
            }
            _ => format!(
                "speed not measured: {}",
                self.not_measured.as_deref().unwrap_or("no reason is known")
            ),
        }
    }
}

pub(super) fn run(args: DoctorArgs) -> Result<ExitCode> {
    let report = Report::new()?;
    let text = match args.json {
        true => serde_json::to_string_pretty(&report).map_err(|e| Error::Text(e.to_string()))? + "\n",
        false => report.lines(),
    };
    print(text)?;
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn new() -> Result<Report> {
        let cpu = CpuBackend::new(CpuOptions::default())?;
        let device = cpu.device();
        let (available_bytes, memory_bytes) = available_and_total_bytes();
        let (gpus, notice) = usable();
        let gpu = |gpu: crate::backend::devices::Gpu| Gpu {
            limits: gpu.backend.limits().into(),
            device: gpu.label,
            name: gpu.name,
            memory_bytes: gpu.total_bytes,
            available_bytes: gpu.free_bytes,
        };
        let (paths, hub) = (Paths::from_env()?, pull::hub(true)?);
        Ok(Report {
            version: env!("CARGO_PKG_VERSION"),
            target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            features: features(),
            cpu: Cpu {
                isa: device.name,
                isas: Isa::available().map(Isa::name).collect(),
                threads: device.threads,
                logical_processors: std::thread::available_parallelism().map_or(1, usize::from),
                memory_bytes,
                available_bytes,
                limits: cpu.limits().into(),
            },
            gpus: gpus.into_iter().map(gpu).collect(),
            nvidia_driver: nvidia_driver(),
            notice,
            settings_problem: Settings::from_env(Flags::default()).err().map(|error| error.to_string()),
            paths: BTreeMap::from([
                ("config", paths.config.display().to_string()),
                ("data", paths.data.display().to_string()),
                ("state", paths.state.display().to_string()),
                ("cache", hub.settings().cache.value.display().to_string()),
            ]),
        })
    }

    fn lines(&self) -> String {
        let memory = |available, total| format!("{} of {} GiB free", gib(available), gib(total));
        let cpu = &self.cpu;
        let mut lines = vec![
            format!("pensive   {} ({}), {}", self.version, self.target, self.features.join(", ")),
            format!(
                "cpu       {} (has {}), {} of {} processors compute, {}, {}",
                cpu.isa,
                cpu.isas.join(", "),
                cpu.threads,
                cpu.logical_processors,
                memory(cpu.available_bytes, cpu.memory_bytes),
                cpu.limits.line("int8"),
            ),
        ];
        for gpu in &self.gpus {
            let memory = memory(gpu.available_bytes, gpu.memory_bytes);
            lines.push(format!("{:<9} {}, {memory}, {}", gpu.device, gpu.name, gpu.limits.line("f16")));
        }
        if self.gpus.is_empty() {
            lines.push("gpu       none that this build can use".to_owned());
        }
        lines.extend(self.nvidia_driver.iter().map(|version| format!("driver    NVIDIA {version}")));
        lines.extend(self.notice.iter().map(|notice| format!("          {notice}")));
        lines.extend(self.paths.iter().map(|(name, path)| format!("{name:<9} {path}")));
        lines.extend(self.settings_problem.iter().map(|what| format!("problem   {what}")));
        harmless(&(lines.join("\n") + "\n")).into_owned()
    }
}

/// Features of this build.
fn features() -> Vec<&'static str> {
    let all = [
        ("pocket", cfg!(feature = "pocket")),
        ("candle", cfg!(feature = "candle")),
        ("cuda", cfg!(feature = "cuda")),
        ("metal", cfg!(feature = "metal")),
    ];
    all.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect()
}
