//! How many threads are worth starting: one for each fast physical core that this process may use.
//!
//! A second thread on a core shares its vector units, and steps are handed out in equal tasks, so that efficiency cores
//! would hold up the others.

use std::collections::BTreeSet;
use std::fs::read_to_string;
use std::path::Path;

/// Threads that may run at the same time: affinity and cgroup limits count.
pub fn available() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// Threads to start where nobody says how many: the fast physical cores among the processors that this process may
/// use, where the system tells, and no more than may run at the same time.
pub fn count() -> usize {
    let cores = linux(Path::new("/")).or_else(elsewhere);
    cores.map_or(available(), |cores| cores.min(available()))
}

/// By the files under /proc and /sys; None where they are not there.
fn linux(root: &Path) -> Option<usize> {
    let status = read_to_string(root.join("proc/self/status")).ok()?;
    let mut allowed = parse_list(status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?)?;
    // processors that could be plugged in are among them
    if let Ok(online) = read_to_string(root.join("sys/devices/system/cpu/online")) {
        let online = parse_list(&online)?;
        allowed.retain(|cpu| online.contains(cpu));
    }
    let of_cpu = |cpu: usize, file: &str| {
        read_to_string(root.join(format!("sys/devices/system/cpu/cpu{cpu}/{file}"))).ok()
    };

    // Intel lists its performance cores; where cores have capacities (Arm), the slow ones have under half of the best.
    let listed =
        read_to_string(root.join("sys/devices/cpu_core/cpus")).ok().and_then(|list| parse_list(&list));
    let capacity = |cpu: usize| of_cpu(cpu, "cpu_capacity")?.trim().parse::<u64>().ok();
    let best = allowed.iter().filter_map(|&cpu| capacity(cpu)).max();
    let is_fast = |cpu: usize| match (&listed, capacity(cpu), best) {
        (Some(listed), ..) => listed.contains(&cpu),
        (None, Some(capacity), Some(best)) => 2 * capacity >= best,
        _ => true,
    };
    let fast: Vec<usize> = allowed.iter().copied().filter(|&cpu| is_fast(cpu)).collect();
    let used = if fast.is_empty() { allowed.into_iter().collect() } else { fast };

    // Processors of one core have the same siblings.
    let siblings = used.iter().map(|&cpu| of_cpu(cpu, "topology/thread_siblings_list"));
    let cores: BTreeSet<String> = siblings.collect::<Option<_>>()?;
    (!cores.is_empty()).then_some(cores.len())
}

/// `0-3,8`
fn parse_list(list: &str) -> Option<BTreeSet<usize>> {
    let mut numbers = BTreeSet::new();
    for part in list.trim().split(',').filter(|part| !part.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        numbers.extend(from.trim().parse::<usize>().ok()?..=to.trim().parse().ok()?);
    }
    Some(numbers)
}

/// The performance cores; on machines with one kind of core, all.
#[cfg(target_os = "macos")]
fn elsewhere() -> Option<usize> {
    [c"hw.perflevel0.physicalcpu", c"hw.physicalcpu"].into_iter().find_map(|name| {
        let (mut cores, mut size) = (0i32, size_of::<i32>());
        // SAFETY: the name ends with a zero, and `size` says how much room `cores` has.
        let failed = unsafe {
            libc::sysctlbyname(name.as_ptr(), (&raw mut cores).cast(), &mut size, std::ptr::null_mut(), 0)
        };
        usize::try_from(cores).ok().filter(|&cores| failed == 0 && cores > 0)
    })
}

/// All cores.
#[cfg(windows)]
fn elsewhere() -> Option<usize> {
    Some(num_cpus::get_physical())
}

#[cfg(not(any(target_os = "macos", windows)))]
fn elsewhere() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A tree in which the process may use `allowed`, and these processors have siblings and perhaps capacities.
    fn tree(allowed: &str, cpus: &[(usize, &str, Option<u64>)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "proc/self/status", &format!("Name:\tx\nCpus_allowed_list:\t{allowed}\n"));
        for (cpu, siblings, capacity) in cpus {
            let folder = format!("sys/devices/system/cpu/cpu{cpu}");
            write(root.path(), &format!("{folder}/topology/thread_siblings_list"), siblings);
            if let Some(capacity) = capacity {
                write(root.path(), &format!("{folder}/cpu_capacity"), &capacity.to_string());
            }
        }
        root
    }

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    const PAIRS: [(usize, &str, Option<u64>); 4] =
        [(0, "0,2", None), (1, "1,3", None), (2, "0,2", None), (3, "1,3", None)];

    #[test]
    fn processors_that_are_not_online_do_not_count() {
        let root = tree("0-31", &PAIRS);
        write(root.path(), "sys/devices/system/cpu/online", "0-3");
        assert_eq!(linux(root.path()), Some(2));
    }

    #[test]
    fn two_threads_of_a_core_are_one_core() {
        assert_eq!(linux(tree("0-3", &PAIRS).path()), Some(2));
    }

    #[test]
    fn only_processors_that_the_process_may_use_count() {
        assert_eq!(linux(tree("0,2", &PAIRS).path()), Some(1));
        assert_eq!(linux(tree("0-1", &PAIRS).path()), Some(2));
    }

    #[test]
    fn of_an_intel_hybrid_the_performance_cores_count() {
        let root = tree("0-3", &[(0, "0-1", None), (1, "0-1", None), (2, "2", None), (3, "3", None)]);
        write(root.path(), "sys/devices/cpu_core/cpus", "0-1");
        assert_eq!(linux(root.path()), Some(1));
    }

    #[test]
    fn a_process_that_may_use_slow_cores_only_uses_them() {
        let root = tree("2-3", &[(2, "2", None), (3, "3", None)]);
        write(root.path(), "sys/devices/cpu_core/cpus", "0-1");
        assert_eq!(linux(root.path()), Some(2));
    }

    #[test]
    fn cores_of_less_than_half_the_best_capacity_do_not_count() {
        let cpus = [(0, "0", Some(250)), (1, "1", Some(250)), (2, "2", Some(871)), (3, "3", Some(1024))];
        assert_eq!(linux(tree("0-3", &cpus).path()), Some(2));
    }

    #[test]
    fn a_system_that_does_not_tell_gives_no_number() {
        assert_eq!(linux(tree("0-3", &PAIRS[..2]).path()), None);
        assert_eq!(linux(Path::new("/nowhere")), None);
    }
}
