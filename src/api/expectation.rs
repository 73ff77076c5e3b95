//! What speed to expect of a model before it is run: from the bytes that a token reads, and what memory, kernels and disk
//! are good for, measured in a fraction of a second.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::Result;
use crate::backend::cpu::kernels::{ActivationKind, Isa, Layout};
use crate::backend::cpu::limits::{product_rate, read_bandwidth_of};
use crate::backend::cpu::pool::Pool;
use crate::model::Reads;
use crate::quant::BlockType;

/// Bytes that are read to measure memory: more than caches hold.
const BUFFER: usize = 256 << 20;

/// How long memory is measured, and each kernel.
const PATIENCE: [Duration; 2] = [Duration::from_millis(15), Duration::from_millis(4)];

/// The share of memory's and kernels' limits that decoding reaches, 0.76 to 0.9 where it was measured; the rest goes into
/// attention, norms, and waiting for one another. (The disk is waited for meanwhile.)
const SHARE: f64 = 0.8;

/// What the expectation is made for.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// Threads; None: as many as a model is loaded with.
    pub threads: Option<usize>,
    /// Bytes of memory that are left for experts beside all else.
    pub room: u64,
    /// The file they are read from where that does not suffice.
    pub file: Option<&'a Path>,
}

/// Tokens per second of generating with little in the cache, or none where it cannot be told: experts would be read from a
/// disk whose speed is not known.
///
/// What memory does not hold of a token's experts is read from the disk while the others are multiplied; which ones it
/// holds is as if by chance.
///
/// # Errors
/// Too little memory to measure, or threads that the system refuses.
pub fn tokens_per_second(reads: &Reads, setting: Setting<'_>) -> Result<Option<f64>> {
    let pool = Pool::new(setting.threads)?;
    let isa = Isa::detect()?;
    let bandwidth = read_bandwidth_of(&pool, isa, BUFFER, PATIENCE[0])?;
    let rate = |kind, layout| Ok(product_rate(&pool, isa, kind, layout, PATIENCE[1])?.min(bandwidth));
    by_rates(reads, setting, rate, disk_bandwidth)
}

/// The same by given rates: bytes per second at which matrices of a type and layout are multiplied, and at which the disk
/// under a file is read.
fn by_rates(
    reads: &Reads,
    setting: Setting<'_>,
    rate: impl Fn(BlockType, Layout) -> Result<f64>,
    disk: impl Fn(&Path) -> Option<f64>,
) -> Result<Option<f64>> {
    let seconds = |bytes: &BTreeMap<BlockType, u64>, layout| {
        let of_type = |(&kind, &bytes): (&BlockType, &u64)| {
            let layout = match ActivationKind::of(kind) {
                ActivationKind::F32 => Layout::AsInFile,
                _ => layout,
            };
            Ok(bytes as f64 / rate(kind, layout)?)
        };
        bytes.iter().map(of_type).sum::<Result<f64>>()
    };
    let always = seconds(&reads.always, Layout::Interleaved)?;
    let experts = if setting.room >= reads.all_experts {
        seconds(&reads.experts, Layout::Interleaved)?
    } else {
        let Some(disk) = setting.file.and_then(disk) else { return Ok(None) };
        let missing = 1.0 - setting.room as f64 / reads.all_experts as f64;
        let read = reads.experts.values().sum::<u64>() as f64 * missing / disk;
        seconds(&reads.experts, Layout::AsInFile)?.max(SHARE * read)
    };
    Ok(Some(SHARE / (always + experts)))
}

/// Bytes per second that the disk under a file gives to some readers of a MiB each, past the system's cache.
#[cfg(target_os = "linux")]
fn disk_bandwidth(file: &Path) -> Option<f64> {
    use std::os::unix::fs::{FileExt, OpenOptionsExt};
    use std::time::Instant;
    const PIECE: usize = 1 << 20;
    const PAGE: usize = 4096;
    const READERS: u64 = 4;
    const PATIENCE: Duration = Duration::from_millis(120);
    let file = std::fs::File::options().read(true).custom_flags(libc::O_DIRECT).open(file).ok()?;
    let pieces = file.metadata().ok()?.len() / PIECE as u64;
    let began = Instant::now();
    let reader = |first: u64| {
        let mut memory = vec![0; PIECE + PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        let (mut bytes, mut at) = (0, first * 7919);
        while began.elapsed() < PATIENCE {
            at = (at * 6_364_136_223 + 1_442_695) % pieces.max(1); // scattered, as experts are
            bytes += file.read_at(&mut memory[start..start + PIECE], at * PIECE as u64).ok()?;
        }
        Some(bytes)
    };
    let bytes = std::thread::scope(|scope| {
        let reader = &reader;
        let readers: Vec<_> = (0..READERS).map(|first| scope.spawn(move || reader(first))).collect();
        readers.into_iter().map(|reader| reader.join().ok().flatten()).sum::<Option<usize>>()
    })?;
    Some(bytes as f64 / began.elapsed().as_secs_f64()).filter(|&speed| speed > 0.0)
}

/// Not known here: what the system has in its cache would be read from there.
#[cfg(not(target_os = "linux"))]
fn disk_bandwidth(_file: &Path) -> Option<f64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Synthetic;

    #[test]
    fn a_token_takes_what_its_bytes_take_at_the_rates_of_their_types() {
        let always = BTreeMap::from([(BlockType::Q8_0, 3_000_000_000), (BlockType::F32, 1_000_000_000)]);
        let reads = Reads { always, experts: BTreeMap::new(), all_experts: 0, experts_in_file: 0 };
        let setting = Setting { threads: Some(1), room: u64::MAX, file: None };
        let rate = |kind, layout| match (kind, layout) {
            (BlockType::Q8_0, Layout::Interleaved) => Ok(30e9),
            (BlockType::F32, Layout::AsInFile) => Ok(10e9),
            other => panic!("{other:?} is not asked for"),
        };
        let speed = by_rates(&reads, setting, rate, |_| None).unwrap().unwrap();
        assert!((speed - 0.8 / 0.2).abs() < 1e-9, "{speed}");
    }

    #[test]
    fn experts_take_what_the_disk_takes_for_the_missing_ones_or_their_products_if_that_is_more() {
        let always = BTreeMap::from([(BlockType::Q8_0, 900_000_000)]);
        let experts = BTreeMap::from([(BlockType::IQ1_S, 2_000_000_000)]);
        let reads = Reads { always, experts, all_experts: 20_000_000_000, experts_in_file: 20_000_000_000 };
        // a quarter of the experts is missing
        let setting = Setting { threads: Some(1), room: 15_000_000_000, file: Some(Path::new("file")) };
        let speed = |disk: f64| {
            by_rates(&reads, setting, |_, _| Ok(10e9), |_| Some(disk)).expect("a speed").expect("a disk")
        };
        assert!(
            (speed(1e9) - 1.0 / (0.09 / 0.8 + 0.5)).abs() < 1e-9,
            "the disk is not slowed by what products wait for"
        );
        assert!((speed(10e9) - 0.8 / (0.09 + 0.2)).abs() < 1e-9);
    }

    #[test]
    fn experts_that_memory_does_not_hold_need_a_disk_of_known_speed() {
        let reads = Reads::of_synthetic(&Synthetic::new("qwen3:30b-a3b", Some(2)).unwrap());
        let none = Setting { threads: Some(1), room: 0, file: None };
        assert_eq!(tokens_per_second(&reads, none).unwrap(), None);
        assert!(tokens_per_second(&reads, Setting { room: u64::MAX, ..none }).unwrap().is_some());
    }
}
