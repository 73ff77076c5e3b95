//! With feature `cuda`: compiles pensive's own kernels, by the toolkit that candle needs too. Else does nothing.

use std::path::PathBuf;
use std::process::Command;

const KERNELS: &str = "src/backend/cuda/kernels";

fn main() {
    println!("cargo::rerun-if-changed={KERNELS}");
    for variable in ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR", "CUDA_COMPUTE_CAP"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some()
        && let Err(what) = compile()
    {
        println!("cargo::error={what}");
    }
}

fn compile() -> Result<(), String> {
    let capability = compute_capability();
    println!("cargo::rustc-env=PENSIVE_CUDA_CAPABILITY={capability}");
    let code = format!("arch=compute_{capability},code=[sm_{capability},compute_{capability}]");
    let source = format!("{KERNELS}/kernels.cu");
    let to = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?).join("kernels.fatbin");
    let nvcc = compiler();
    let output = Command::new(&nvcc)
        .args(["-fatbin", "-gencode", &code, "-O3", "-o"])
        .args([to, source.into()])
        .output()
        .map_err(|e| format!("{}: {e}; feature cuda needs the CUDA toolkit (CUDA_HOME)", nvcc.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(format!("nvcc does not compile {KERNELS}: {}", text.lines().collect::<Vec<_>>().join("; ")))
}

/// The toolkit's compiler: of the folder that a variable names, else of PATH.
fn compiler() -> PathBuf {
    let folders = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"];
    let named =
        folders.iter().filter_map(std::env::var_os).map(|folder| PathBuf::from(folder).join("bin/nvcc"));
    named.into_iter().find(|nvcc| nvcc.exists()).unwrap_or_else(|| "nvcc".into())
}

/// "90": as asked for, else that of the GPU here, else one that all GPUs since 2020 have.
fn compute_capability() -> String {
    let found = || {
        let query = ["--query-gpu=compute_cap", "--format=csv,noheader"];
        let output = Command::new("nvidia-smi").args(query).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let lowest = text.lines().filter_map(|line| line.trim().replace('.', "").parse::<u32>().ok()).min();
        lowest.map(|capability| capability.to_string())
    };
    let asked = std::env::var("CUDA_COMPUTE_CAP").ok().map(|cap| cap.replace('.', ""));
    asked.filter(|cap| !cap.is_empty()).or_else(found).unwrap_or_else(|| "80".into())
}
