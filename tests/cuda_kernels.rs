//! The text of the CUDA kernels, compiled as C++ with fibers for threads (tests/cuda), against the Rust text of the same
//! operations: so their arithmetic is known to be right before a GPU is at hand.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use candle_core::{Device, Tensor};
use half::f16;
use pensive::backend::candle::ops::{AddRmsNorm, Append, PagedAttention, RotateHeads, SwiGlu};
use pensive::backend::{KvShape, PAGE_LEN};

/// The kernels as a program, or none (with a printed reason) where there is no C++ compiler.
static KERNELS: LazyLock<Option<(tempfile::TempDir, PathBuf)>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("kernels");
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O1", "-I"])
        .arg(root.join("tests/cuda"))
        .arg("-I")
        .arg(root.join("src/backend/candle/kernels"))
        .arg("-o")
        .arg(&program)
        .arg(root.join("tests/cuda/main.cpp"))
        .output();
    match output {
        Ok(output) if output.status.success() => Some((folder, program)),
        Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
        Err(e) => {
            eprintln!("skipped: {}: {e}", compiler.display());
            None
        }
    }
});

/// One launch of a kernel.
struct Launch {
    bytes: Vec<u8>,
    result_len: usize,
}

impl Launch {
    /// Memories as bytes, scalars as their bits; memory `result` comes back.
    fn new(
        name: &str,
        grid: [usize; 3],
        threads: usize,
        memories: &[Vec<u8>],
        scalars: &[u32],
        result: usize,
    ) -> Launch {
        let mut bytes = Vec::new();
        let mut put = |n: usize| bytes.extend_from_slice(&(n as u32).to_le_bytes());
        put(name.len());
        bytes.extend_from_slice(name.as_bytes());
        let mut put = |n: usize| bytes.extend_from_slice(&(n as u32).to_le_bytes());
        grid.into_iter().chain([threads, memories.len()]).for_each(&mut put);
        for memory in memories {
            bytes.extend_from_slice(&(memory.len() as u32).to_le_bytes());
            bytes.extend_from_slice(memory);
        }
        bytes.extend_from_slice(&(scalars.len() as u32).to_le_bytes());
        scalars.iter().for_each(|scalar| bytes.extend_from_slice(&scalar.to_le_bytes()));
        bytes.extend_from_slice(&(result as u32).to_le_bytes());
        Launch { bytes, result_len: memories[result].len() }
    }

    /// What the kernel left in the result's memory; none where the kernels could not be compiled.
    fn run(self) -> Option<Vec<u8>> {
        let (_, program) = KERNELS.as_ref()?;
        let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let bytes = self.bytes;
        let writer = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
        let mut result = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut result).unwrap();
        writer.join().unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(result.len(), self.result_len);
        Some(result)
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn u32_bytes(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Values between -1 and 1, the same for a seed.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn close(got: &[f32], expected: &Tensor, what: &str) {
    let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(got.len(), expected.len(), "{what}");
    let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let most = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    assert!(most > 0.1 && worst < 2e-5 * most.max(1.0), "{what}: differs by {worst}, values up to {most}");
    assert!(got.iter().all(|x| x.is_finite()), "{what}");
}

#[test]
fn the_sum_and_its_norm() {
    for (rows, width, threads) in [(1, 96, 96), (3, 100, 128), (2, 2560, 1024)] {
        let (sum, y, weight) = (noise(1, rows * width), noise(2, rows * width), noise(3, width));
        let memories = [&sum, &y, &weight, &vec![0.0; 2 * rows * width]].map(|v| f32_bytes(v));
        let scalars = [rows as u32, width as u32, 1e-5f32.to_bits()];
        let launch = Launch::new("add_rms_norm", [rows, 1, 1], threads, &memories, &scalars, 3);
        let Some(got) = launch.run() else { return };
        let shape = [rows, width];
        let op = AddRmsNorm { epsilon: 1e-5 };
        let expected =
            tensor(&sum, &shape).apply_op3_no_bwd(&tensor(&y, &shape), &tensor(&weight, &[width]), &op);
        close(&floats(&got), &expected.unwrap(), &format!("{rows} rows of {width}"));
    }
}

#[test]
fn the_gated_activation() {
    let len = 1000;
    let (gate, up) = (noise(1, len).iter().map(|x| 9.0 * x).collect::<Vec<_>>(), noise(2, len));
    let memories = [&gate, &up, &vec![0.0; len]].map(|v| f32_bytes(v));
    let Some(got) = Launch::new("swiglu", [4, 1, 1], 256, &memories, &[len as u32], 2).run() else { return };
    let expected = tensor(&gate, &[1, len]).apply_op2_no_bwd(&tensor(&up, &[1, len]), &SwiGlu).unwrap();
    close(&floats(&got), &expected, "swiglu");
}

#[test]
fn rotated_heads_with_and_without_norm_and_center() {
    // dim, normed, from, pairs, interleaved, centered
    let cases = [
        (64, 0, 0, 32, false, false),
        (64, 64, 0, 32, false, true),
        (96, 0, 0, 24, true, false),
        (576, 512, 512, 32, true, false),
        (80, 0, 48, 16, false, true),
    ];
    let (rows, heads) = (3, 5);
    for (dim, normed, from, pairs, interleaved, centered) in cases {
        let x = noise(1, rows * heads * dim);
        let (cos, sin) = (noise(2, rows * pairs), noise(3, rows * pairs));
        let (weight, center) = (noise(4, normed.max(1)), noise(5, heads * dim));
        let memories = [&x, &cos, &sin, &weight, &center, &vec![0.0; x.len()]].map(|v| f32_bytes(v));
        let scalars = [
            dim as u32,
            normed as u32,
            1e-6f32.to_bits(),
            from as u32,
            pairs as u32,
            interleaved.into(),
            centered.into(),
        ];
        let grid = [heads, rows, 1];
        let threads = usize::next_multiple_of(dim, 32).min(256);
        let launch = Launch::new("rotate_heads", grid, threads, &memories, &scalars, 5);
        let Some(got) = launch.run() else { return };
        let (weight, center) = (tensor(&weight, &[weight.len()]), tensor(&center, &[heads * dim]));
        let op = RotateHeads {
            dim,
            norm: (normed > 0).then_some((&weight, 1e-6)),
            from,
            interleaved,
            center: centered.then_some(&center),
        };
        let angles = [&cos, &sin].map(|values| tensor(values, &[rows, 1, pairs]));
        let expected = tensor(&x, &[rows, heads * dim]).apply_op3_no_bwd(&angles[0], &angles[1], &op);
        close(&floats(&got), &expected.unwrap(), &format!("heads of {dim}"));
    }
}

/// Numbers that f16 holds exactly or not, and those at its ends.
#[test]
fn keys_and_values_go_to_their_slots_as_f16() {
    let (slots, width, stride) = (20, 24, 40);
    let mut x = noise(1, 3 * stride);
    x[..8].copy_from_slice(&[65504.0, 65519.0, 65520.0, -1e9, 6e-8, 3e-8, -5.97e-5, 1.0 + 1.0 / 2048.0]);
    let places = [7u32, 0, 19];
    let memories = [vec![0; 2 * slots * width], f32_bytes(&x), u32_bytes(&places)];
    let launch = Launch::new("append", [3, 1, 1], 32, &memories, &[stride as u32, width as u32], 0);
    let Some(got) = launch.run() else { return };
    let cache = Tensor::zeros((slots, width), candle_core::DType::F16, &Device::Cpu).unwrap();
    let places = Tensor::new(&places[..], &Device::Cpu).unwrap();
    cache.inplace_op3(&tensor(&x, &[3, stride]), &places, &Append).unwrap();
    let expected: Vec<f16> = cache.flatten_all().unwrap().to_vec1().unwrap();
    let expected: Vec<u8> = expected.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert!(got == expected, "f16 values differ");
}

/// What the attention kernels are tried with.
#[derive(Clone, Copy, Debug)]
struct Case {
    kernel: &'static str,
    /// Query heads that one block takes.
    tile: usize,
    heads: usize,
    kv: KvShape,
    window: usize,
    sinks: bool,
}

#[test]
fn attention_over_pages_in_splits() {
    let kv = KvShape::grouped;
    let plain = |kernel, tile, heads, kv| Case { kernel, tile, heads, kv, window: 0, sinks: false };
    let cases = [
        plain("attend_1_64", 1, 3, kv(3, 64, 64)),
        plain("attend_4_64", 4, 6, kv(2, 48, 64)),
        plain("attend_8_64", 8, 14, kv(2, 64, 64)),
        plain("attend_1_128", 1, 2, kv(2, 128, 96)),
        plain("attend_4_128", 4, 4, kv(1, 80, 128)),
        Case { window: 100, ..plain("attend_8_128", 8, 12, kv(2, 128, 128)) },
        Case { sinks: true, ..plain("attend_8_64", 8, 16, kv(2, 64, 64)) },
        Case { sinks: true, window: 130, ..plain("attend_8_64", 8, 10, kv(1, 64, 64)) },
        plain("attend_2_576", 2, 5, kv(1, 576, 512)),
        plain("attend_2_576", 2, 5, KvShape::latent(512, 64)),
    ];
    for case in cases {
        let Some(()) = check_attention(case) else { return };
    }
}

fn check_attention(case: Case) -> Option<()> {
    let Case { kernel, tile, heads, kv, window, sinks: has_sinks } = case;
    let pages = 9;
    // three rows: two of a long sequence whose pages are not in order, one that is at its beginning
    let tables = [4u32, 1, 7, 0, 8, 3];
    let rows = [0u32, 290, 0, 291, 5, 0];
    let (n, splits, slots) = (3, 291 / 128 + 1, pages * PAGE_LEN);
    let query: Vec<f32> = noise(1, n * heads * kv.key_dim).iter().map(|q| 3.0 * q).collect();
    let half = |seed, len| noise(seed, len).into_iter().map(f16::from_f32).collect::<Vec<_>>();
    let keys = half(2, slots * kv.heads * kv.key_dim);
    let value_width = if kv.value_in_key { kv.key_dim } else { kv.value_dim };
    let values = if kv.value_in_key { keys.clone() } else { half(3, slots * kv.heads * kv.value_dim) };
    let sinks = noise(4, heads);
    let scale = 1.0 / (kv.key_dim as f32).sqrt();
    let half_bytes = |values: &[f16]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();

    let [h, kv_heads, key_dim, value_dim, value_width_, window_, s] =
        [heads, kv.heads, kv.key_dim, kv.value_dim, value_width, window, splits].map(|n| n as u32);
    let memories = [
        f32_bytes(&query),
        half_bytes(&keys),
        half_bytes(&values),
        u32_bytes(&rows),
        u32_bytes(&tables),
        // what a split leaves untouched must not be read
        f32_bytes(&vec![f32::NAN; n * heads * splits * (2 + kv.value_dim)]),
    ];
    let blocks = [splits, kv.heads * (heads / kv.heads).div_ceil(tile), n];
    let scalars = [h, kv_heads, key_dim, value_dim, value_width_, window_, s, scale.to_bits()];
    let partial = Launch::new(kernel, blocks, 128, &memories, &scalars, 5).run()?;
    let memories =
        [partial, u32_bytes(&rows), f32_bytes(&sinks), f32_bytes(&vec![0.0; n * heads * kv.value_dim])];
    let scalars = [h, value_dim, window_, s, has_sinks.into()];
    let got = Launch::new("merge_splits", [heads, n, 1], 128, &memories, &scalars, 3).run()?;

    let cached = |values: &[f16], width: usize| {
        Tensor::from_slice(values, (slots, kv.heads * width), &Device::Cpu).unwrap()
    };
    let sinks = tensor(&sinks, &[heads]);
    let op = PagedAttention {
        kv,
        heads,
        scale,
        window,
        sinks: has_sinks.then_some(&sinks),
        rows: &Tensor::from_slice(&rows, (n, 2), &Device::Cpu).unwrap(),
        tables: &Tensor::new(&tables[..], &Device::Cpu).unwrap(),
        last_position: 291,
    };
    let (keys, values) = (cached(&keys, kv.key_dim), cached(&values, value_width));
    let expected = tensor(&query, &[n, heads * kv.key_dim]).apply_op3_no_bwd(&keys, &values, &op).unwrap();
    close(&floats(&got), &expected, &format!("{case:?}"));
    Some(())
}
