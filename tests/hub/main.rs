//! The hub and its cache, against a hub on 127.0.0.1.
#![cfg(feature = "hub")]

#[path = "../common/mod.rs"]
mod common;
mod safetensors;
mod tiny;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use common::server::{COMMIT, Server};
use pensive::checkpoint::Value;
use pensive::checkpoint::write::GgufWriter;
use pensive::hub::{Hub, HubReference, Located, Phase, Plan, Progress, Reference, Settings};

/// Bytes that repeat nowhere near.
fn noise(length: usize) -> Vec<u8> {
    let mut x = 1u32;
    let step = |_| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 24) as u8
    };
    (0..length).map(step).collect()
}

/// A GGUF file without tensors.
fn gguf(architecture: &str) -> Vec<u8> {
    let text = |text: &str| Value::String(text.into());
    let metadata = BTreeMap::from([
        ("general.architecture".to_owned(), text(architecture)),
        ("general.license".to_owned(), text("apache-2.0")),
    ]);
    GgufWriter::new(Vec::new(), &metadata, &[]).unwrap().finish().unwrap()
}

struct Bench {
    server: Server,
    cache: tempfile::TempDir,
}

impl Bench {
    fn new(files: &[(&str, Vec<u8>)]) -> Bench {
        Bench { server: Server::new(files), cache: tempfile::tempdir().unwrap() }
    }

    fn settings(&self) -> Settings {
        Settings::at(self.cache.path()).endpoint(self.server.endpoint())
    }

    fn hub(&self) -> Hub {
        Hub::new(self.settings())
    }

    fn repository(&self) -> PathBuf {
        self.cache.path().join("models--o--r")
    }

    fn pull(&self, name: &str) -> pensive::Result<Located> {
        pull(&self.hub(), name, &mut |_| {})
    }

    fn find(&self, name: &str) -> Option<Located> {
        self.hub().find(&self.hub().reference(name).unwrap()).unwrap()
    }

    /// The files in the blobs folder.
    fn blobs(&self) -> Vec<String> {
        names(&self.repository().join("blobs"))
    }
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn on_hub(hub: &Hub, name: &str) -> HubReference {
    match hub.reference(name).unwrap() {
        Reference::Hub(reference) => reference,
        Reference::Path(path) => panic!("{}", path.display()),
    }
}

fn plan(hub: &Hub, name: &str) -> pensive::Result<Plan> {
    hub.plan(&on_hub(hub, name), &|_| ())
}

fn pull(hub: &Hub, name: &str, progress: &mut dyn FnMut(&Progress)) -> pensive::Result<Located> {
    hub.pull(&plan(hub, name)?, progress, &AtomicBool::new(false))
}

const FILE: &str = "m-Q4_K_M.gguf";
const SIZE: usize = 2_000_000;

#[test]
fn a_plan_says_what_a_pull_will_fetch_before_it_does() {
    let bench = Bench::new(&[(FILE, noise(SIZE)), ("README.md", vec![1])]);
    let plan = plan(&bench.hub(), "o/r").unwrap();
    assert_eq!((plan.commit.as_str(), plan.quantization.as_deref()), (COMMIT, Some("Q4_K_M")));
    assert_eq!(plan.licence.as_deref(), Some("mit"));
    assert_eq!((plan.total_bytes(), plan.missing_bytes()), (SIZE as u64, SIZE as u64));
    assert!(plan.free_disk.unwrap() > 0);
    assert_eq!(plan.files[0].sha256.as_ref().unwrap().len(), 64);
    assert_eq!(names(bench.cache.path()), [""; 0]);
}

#[test]
fn a_pull_brings_the_whole_file_and_its_progress_only_grows() {
    let bench = Bench::new(&[(FILE, noise(SIZE))]);
    let mut steps = Vec::new();
    let located = pull(&bench.hub(), "o/r", &mut |p| steps.push((p.done, p.total))).unwrap();
    assert_eq!(fs::read(&located.files[0]).unwrap(), noise(SIZE));
    assert!(steps.len() > 2 && steps.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    assert_eq!(*steps.last().unwrap(), (SIZE as u64, SIZE as u64));
    assert_eq!(bench.find("o/r"), Some(located));
}

#[test]
fn a_second_pull_downloads_nothing() {
    let bench = Bench::new(&[(FILE, noise(SIZE))]);
    let first = bench.pull("o/r").unwrap();
    assert_eq!(plan(&bench.hub(), "o/r").unwrap().missing_bytes(), 0);
    assert_eq!(bench.pull("o/r").unwrap(), first);
    assert_eq!(bench.server.served(), SIZE as u64);
}

/// Not a test of its own: the process that the next test kills.
#[test]
fn helper_that_pulls_until_it_is_killed() {
    let Ok(endpoint) = std::env::var("PENSIVE_TEST_ENDPOINT") else { return };
    let cache = std::env::var("PENSIVE_TEST_CACHE").unwrap();
    let hub = Hub::new(Settings::at(cache).endpoint(endpoint));
    pull(&hub, "o/r", &mut |_| {}).unwrap();
}

#[test]
fn a_pull_that_was_killed_at_ninety_percent_goes_on_without_a_byte_twice() {
    let bench = Bench::new(&[(FILE, noise(SIZE))]);
    let stop = SIZE * 9 / 10;
    bench.server.state.stall_after.store(stop as u64, SeqCst);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper_that_pulls_until_it_is_killed"])
        .env("PENSIVE_TEST_ENDPOINT", bench.server.endpoint())
        .env("PENSIVE_TEST_CACHE", bench.cache.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let written = || {
        let partial = bench.blobs().into_iter().find(|name| name.ends_with(".incomplete"));
        partial.map_or(0, |name| fs::metadata(bench.repository().join("blobs").join(name)).unwrap().len())
    };
    let patience = Instant::now() + Duration::from_secs(60);
    while written() < stop as u64 && Instant::now() < patience {
        thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(written(), stop as u64);
    assert_eq!(bench.find("o/r"), None);

    bench.server.state.stall_after.store(0, SeqCst);
    assert_eq!(plan(&bench.hub(), "o/r").unwrap().missing_bytes(), (SIZE - stop) as u64);
    let mut phases = Vec::new();
    let located = pull(&bench.hub(), "o/r", &mut |p| phases.push(p.phase)).unwrap();
    assert_eq!(fs::read(&located.files[0]).unwrap(), noise(SIZE));
    assert_eq!(bench.server.served(), SIZE as u64);
    assert!(phases.contains(&Phase::Checking) && phases.contains(&Phase::Downloading));
    assert_eq!(bench.server.seen_files()[1].range, Some(format!("bytes={stop}-")));
}

#[test]
fn a_cancelled_pull_keeps_what_has_come() {
    let bench = Bench::new(&[(FILE, noise(SIZE))]);
    let cancel = AtomicBool::new(false);
    let hub = bench.hub();
    let stop = &mut |p: &Progress| cancel.store(p.done > 500_000, SeqCst);
    let error = hub.pull(&plan(&hub, "o/r").unwrap(), stop, &cancel).unwrap_err();
    assert!(error.to_string().contains("goes on"), "{error}");
    let missing = plan(&hub, "o/r").unwrap().missing_bytes();
    assert!(missing > 0 && missing < SIZE as u64 - 500_000, "{missing}");
    assert_eq!(fs::read(&bench.pull("o/r").unwrap().files[0]).unwrap(), noise(SIZE));
}

#[test]
fn a_pull_that_waits_for_a_silent_hub_is_cancelled_at_once() {
    let bench = Bench::new(&[(FILE, noise(SIZE))]);
    bench.server.state.stall_after.store(500_000, SeqCst);
    let (hub, cancel) = (bench.hub(), AtomicBool::new(false));
    let plan = plan(&hub, "o/r").unwrap();
    thread::scope(|scope| {
        let pull = scope.spawn(|| hub.pull(&plan, &mut |_| {}, &cancel).unwrap_err());
        thread::sleep(Duration::from_secs(1));
        let pressed = Instant::now();
        cancel.store(true, SeqCst);
        pull.join().unwrap();
        assert!(pressed.elapsed() < Duration::from_secs(10), "{:?}", pressed.elapsed());
    });
}

#[test]
fn a_connection_that_breaks_is_taken_up_again() {
    let bench = Bench::new(&[(FILE, noise(SIZE))]);
    bench.server.state.cut_after.store(800_000, SeqCst);
    let mut retries = 0;
    let count = &mut |p: &Progress| retries += u32::from(matches!(p.phase, Phase::Retrying { .. }));
    let located = pull(&bench.hub(), "o/r", count).unwrap();
    assert_eq!(fs::read(&located.files[0]).unwrap(), noise(SIZE));
    assert_eq!((bench.server.served(), retries), (SIZE as u64, 2));
}

#[test]
fn a_server_that_is_busy_is_asked_again() {
    let bench = Bench::new(&[(FILE, noise(1000))]);
    bench.server.state.busy.store(1, SeqCst);
    assert!(bench.pull("o/r").is_ok());
    bench.server.state.busy.store(u64::MAX, SeqCst);
    let error = plan(&bench.hub(), "o/r").unwrap_err().to_string();
    assert!(error.contains("503"), "{error}");
}

#[test]
fn a_hub_that_asks_to_wait_is_given_the_time_up_to_a_minute() {
    let bench = Bench::new(&[(FILE, noise(1000))]);
    let state = &bench.server.state;
    let (hub, told) = (bench.hub(), std::cell::RefCell::new(Vec::new()));
    let ask = || hub.plan(&on_hub(&hub, "o/r"), &|wait| told.borrow_mut().push(wait.as_secs()));
    *state.retry_after.lock().unwrap() = Some(2);
    state.busy.store(1, SeqCst);
    let planned = ask().unwrap();
    assert_eq!(*told.borrow(), [2]);

    state.busy.store(1, SeqCst);
    let mut waits = Vec::new();
    let note = &mut |p: &Progress| {
        if let Phase::Retrying { wait, .. } = p.phase {
            waits.push(wait);
        }
    };
    hub.pull(&planned, note, &AtomicBool::new(false)).unwrap();
    assert_eq!(waits, [Some(Duration::from_secs(2))]);

    *state.retry_after.lock().unwrap() = Some(3600);
    state.busy.store(u64::MAX, SeqCst);
    let error = ask().unwrap_err().to_string();
    assert!(error.contains("in 3600 s, or set HF_TOKEN") && told.borrow().len() == 1, "{error}");
}

#[test]
fn a_server_without_ranges_starts_over() {
    let bench = Bench::new(&[(FILE, noise(SIZE))]);
    bench.server.state.cut_after.store(800_000, SeqCst);
    bench.server.state.no_ranges.store(true, SeqCst);
    let server = &bench.server.state;
    let mend = &mut |p: &Progress| {
        if matches!(p.phase, Phase::Retrying { .. }) {
            server.cut_after.store(0, SeqCst);
        }
    };
    let located = pull(&bench.hub(), "o/r", mend).unwrap();
    assert_eq!(fs::read(&located.files[0]).unwrap(), noise(SIZE));
}

#[test]
fn a_server_without_ranges_that_always_breaks_at_the_same_place_brings_no_progress() {
    let bench = Bench::new(&[(FILE, noise(SIZE))]);
    bench.server.state.cut_after.store(800_000, SeqCst);
    bench.server.state.no_ranges.store(true, SeqCst);
    let (hub, cancel) = (bench.hub(), AtomicBool::new(false));
    let mut attempts = Vec::new();
    let count = &mut |p: &Progress| {
        if let Phase::Retrying { attempt, .. } = p.phase {
            attempts.push(attempt);
            cancel.store(attempts.len() == 3, SeqCst); // the waits get long
        }
    };
    hub.pull(&plan(&hub, "o/r").unwrap(), count, &cancel).unwrap_err();
    assert_eq!(attempts, [1, 2, 3]);
}

#[test]
fn damaged_files_are_found_and_fetched_anew_where_that_is_asked_for() {
    let bench = Bench::new(&[(FILE, noise(SIZE))]);
    let file = bench.pull("o/r").unwrap().files[0].clone();
    let mut damaged = noise(SIZE);
    damaged[SIZE / 2] ^= 1;
    fs::write(&file, &damaged).unwrap();
    bench.pull("o/r").unwrap();
    assert_eq!((fs::read(&file).unwrap() == damaged, bench.server.served()), (true, SIZE as u64));

    let verify = || {
        let (plan, mut found) = (Plan { verify: true, ..plan(&bench.hub(), "o/r").unwrap() }, 0);
        let count = &mut |p: &Progress| found += u32::from(p.phase == Phase::Damaged);
        let located = bench.hub().pull(&plan, count, &AtomicBool::new(false)).unwrap();
        (located.files[0] == file, found)
    };
    assert_eq!(verify(), (true, 1));
    assert!(fs::read(&file).unwrap() == noise(SIZE));
    assert_eq!((verify(), bench.server.served()), ((true, 0), 2 * SIZE as u64));
}

#[test]
fn wrong_bytes_are_refused_and_leave_no_file() {
    for git in [false, true] {
        let bench = Bench::new(&[(FILE, noise(SIZE))]);
        bench.server.state.git.store(git, SeqCst);
        bench.server.state.wrong_bytes.store(true, SeqCst);
        let error = bench.pull("o/r").unwrap_err().to_string();
        assert!(error.contains("not the hub's") && error.contains(FILE), "{error}");
        assert_eq!(bench.blobs(), [""; 0]);
        assert_eq!(bench.find("o/r"), None);
        bench.server.state.wrong_bytes.store(false, SeqCst);
        assert!(bench.pull("o/r").is_ok());
    }
}

#[test]
fn a_spoiled_beginning_is_noticed_too() {
    let bench = Bench::new(&[(FILE, noise(SIZE))]);
    let hash = plan(&bench.hub(), "o/r").unwrap().files[0].sha256.clone().unwrap();
    fs::create_dir_all(bench.repository().join("blobs")).unwrap();
    fs::write(bench.repository().join(format!("blobs/{hash}.incomplete")), vec![0; 1000]).unwrap();
    assert!(bench.pull("o/r").unwrap_err().to_string().contains("SHA-256"));
    assert!(bench.pull("o/r").is_ok());
}

#[test]
fn two_pulls_of_one_file_download_it_once() {
    let bench = Bench::new(&[(FILE, noise(SIZE))]);
    bench.server.state.slow.store(20, SeqCst);
    let waited = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let note = &mut |p: &Progress| {
                    waited.fetch_or(p.phase == Phase::Waiting, SeqCst);
                };
                let located = pull(&bench.hub(), "o/r", note).unwrap();
                assert_eq!(fs::read(&located.files[0]).unwrap(), noise(SIZE));
            });
        }
    });
    assert_eq!(bench.server.served(), SIZE as u64);
    assert!(waited.load(SeqCst));
}

#[test]
fn a_split_model_comes_with_all_its_parts() {
    let parts = ["Q8_0/m-00001-of-00002.gguf", "Q8_0/m-00002-of-00002.gguf"];
    let bench = Bench::new(&[(parts[0], noise(1000)), (parts[1], noise(2000)), (FILE, noise(10))]);
    let mut last = 0;
    let located = pull(&bench.hub(), "o/r:q8_0", &mut |p| last = p.done).unwrap();
    assert_eq!(last, 3000);
    let sizes: Vec<u64> = located.files.iter().map(|file| fs::metadata(file).unwrap().len()).collect();
    assert_eq!(sizes, [1000, 2000]);
    assert_eq!(bench.find("o/r/Q8_0/m-00002-of-00002.gguf").unwrap().files, located.files);
    fs::remove_file(&located.files[1]).unwrap();
    assert_eq!(bench.find("o/r:q8_0"), None);
}

#[test]
fn a_quantization_that_is_not_there_is_answered_with_those_that_are() {
    let bench =
        Bench::new(&[("m-Q8_0.gguf", noise(9)), ("m-Q6_K.gguf", noise(9)), ("mmproj-F16.gguf", noise(9))]);
    for name in ["o/r", "o/r:q4_k_m"] {
        let error = plan(&bench.hub(), name).unwrap_err().to_string();
        assert!(error.contains("no Q4_K_M; it has Q6_K, Q8_0") && !error.contains("F16"), "{error}");
    }
    let error = plan(&bench.hub(), "o/r/m-Q2_K.gguf").unwrap_err().to_string();
    assert!(error.contains("no m-Q2_K.gguf"), "{error}");
    let bench = Bench::new(&[("model.safetensors", noise(9))]);
    assert!(plan(&bench.hub(), "o/r").unwrap_err().to_string().contains("no GGUF file"));
}

#[test]
fn what_the_hub_refuses_is_said_in_one_line_with_the_remedy() {
    let bench = Bench::new(&[(FILE, noise(9))]);
    let error = |name: &str| plan(&bench.hub(), name).unwrap_err().to_string();
    assert!(error("o/other").contains("no repository o/other"), "{}", error("o/other"));
    assert!(error("o/r@v9").contains("no revision \"v9\""), "{}", error("o/r@v9"));
    *bench.server.state.token.lock().unwrap() = Some("hf_right".into());
    let gated = error("o/r");
    assert!(gated.contains("gated") && gated.contains("/o/r") && gated.contains("HF_TOKEN"), "{gated}");
    assert!(!gated.contains('\n'));
    let nobody = Hub::new(bench.settings().endpoint("http://127.0.0.1:9"));
    let error = plan(&nobody, "o/r").unwrap_err().to_string();
    assert!(error.contains("cannot reach http://127.0.0.1:9: ") && !error.contains("io: "), "{error}");
}

#[test]
fn the_token_goes_to_the_hub_and_not_where_it_redirects_to() {
    let bench = Bench::new(&[(FILE, noise(1000))]);
    *bench.server.state.token.lock().unwrap() = Some("hf_secret".into());
    bench.server.state.redirect.store(true, SeqCst);
    pull(&Hub::new(bench.settings().token("hf_secret")), "o/r", &mut |_| {}).unwrap();
    let seen = bench.server.seen_files();
    let hosts: Vec<(bool, bool)> =
        seen.iter().map(|s| (s.host.starts_with("127.0.0.1"), s.authorization.is_some())).collect();
    assert_eq!(hosts, [(true, true), (false, false)]);
}

#[test]
fn offline_finds_what_is_here_and_asks_nobody() {
    let bench = Bench::new(&[(FILE, noise(1000))]);
    let located = bench.pull("o/r").unwrap();
    let before = bench.server.state.seen.lock().unwrap().len();
    let offline = Hub::new(bench.settings().offline(true));
    for name in ["o/r", "o/r:q4_k_m", &format!("o/r@{COMMIT}"), "o/r/m-Q4_K_M.gguf"] {
        assert_eq!(
            offline.find(&offline.reference(name).unwrap()).unwrap().as_ref(),
            Some(&located),
            "{name}"
        );
    }
    for name in ["o/r:q8_0", "o/r@v9", "a/b"] {
        assert_eq!(offline.find(&offline.reference(name).unwrap()).unwrap(), None, "{name}");
    }
    let error = plan(&offline, "a/b").unwrap_err().to_string();
    assert!(error.contains("a/b") && error.contains("offline"), "{error}");
    assert_eq!(bench.server.state.seen.lock().unwrap().len(), before);
}

#[test]
fn a_repository_is_the_same_in_any_case() {
    let bench = Bench::new(&[(FILE, noise(1000))]);
    let located = bench.pull("o/r").unwrap();
    assert_eq!(bench.find("O/R:q4_k_m").as_ref(), Some(&located));
    let hub = bench.hub();
    let again = Plan { repository: "O/R".into(), ..plan(&hub, "o/r").unwrap() };
    assert_eq!(hub.pull(&again, &mut |_| {}, &AtomicBool::new(false)).unwrap(), located);
    let folders = names(bench.cache.path());
    assert_eq!(folders.iter().filter(|name| name.starts_with("models--")).count(), 1, "{folders:?}");
    hub.remove(&hub.removal(&hub.reference("O/R").unwrap()).unwrap()).unwrap();
    assert!(!bench.repository().exists());
}

#[test]
fn what_is_here_of_a_repository_is_named_by_quantization() {
    let bench = Bench::new(&[(FILE, noise(1000)), ("m-Q8_0.gguf", noise(10)), ("m.gguf", noise(10))]);
    let choices = |name: &str| bench.hub().choices(&on_hub(&bench.hub(), name)).unwrap();
    assert_eq!(choices("o/r:q2_k"), [""; 0]);
    for name in ["o/r", "o/r/m.gguf"] {
        bench.pull(name).unwrap();
    }
    assert_eq!(choices("O/R:q2_k"), ["Q4_K_M", "m.gguf"]);
    assert_eq!(choices("o/r@v9"), [""; 0]);
}

#[test]
fn the_last_use_is_the_last_touch_and_listing_does_not_change_it() {
    let bench = Bench::new(&[(FILE, gguf("qwen2"))]);
    let located = bench.pull("o/r").unwrap();
    let file = fs::File::options().write(true).open(&located.files[0]).unwrap();
    let fetched = SystemTime::now() - Duration::from_secs(90_000);
    let times = fs::FileTimes::new().set_modified(fetched).set_accessed(fetched);
    file.set_times(times).unwrap();
    let hub = bench.hub();
    let last_used = || hub.list().unwrap()[0].last_used.unwrap();
    for _ in 0..2 {
        assert_eq!(last_used(), fetched);
    }
    let before = SystemTime::now() - Duration::from_secs(2); // file systems round
    hub.touch(&located);
    assert!(last_used() >= before);
    hub.remove(&hub.removal(&hub.reference("o/r").unwrap()).unwrap()).unwrap();
    assert!(!bench.repository().exists());
}

#[test]
fn a_disk_without_room_is_noticed_before_the_download() {
    let bench = Bench::new(&[(FILE, noise(SIZE))]);
    let full = Plan { free_disk: Some(1_000_000), ..plan(&bench.hub(), "o/r").unwrap() };
    let error = bench.hub().pull(&full, &mut |_| {}, &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(error.contains("2 MB") && error.contains("1 MB") && error.contains("HF_HUB_CACHE"), "{error}");
    assert_eq!(bench.server.served(), 0);
}

#[test]
fn a_list_says_what_runs_and_why_the_rest_does_not() {
    let bench = Bench::new(&[
        ("m-Q4_K_M.gguf", gguf("qwen2")),
        ("m-Q8_0.gguf", gguf("mamba")),
        ("m-Q6_K.gguf", noise(100)),
    ]);
    assert_eq!(bench.hub().list().unwrap(), []);
    for name in ["o/r", "o/r:q8_0", "o/r:q6_k"] {
        bench.pull(name).unwrap();
    }
    let other = bench.cache.path().join("models--x--y/snapshots/c0");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("model.safetensors"), "x").unwrap();
    fs::create_dir_all(bench.cache.path().join("models--x--z/blobs")).unwrap();
    fs::write(bench.cache.path().join("models--x--z/blobs/ab.incomplete"), "xyz").unwrap();

    let list = bench.hub().list().unwrap();
    let names: Vec<&str> = list.iter().map(|cached| cached.name.as_str()).collect();
    assert_eq!(names, ["o/r:Q4_K_M", "o/r:Q6_K", "o/r:Q8_0", "x/y", "x/z"]);
    let good = &list[0];
    assert_eq!((good.runnable.clone(), good.architecture.as_deref()), (Ok(()), Some("qwen2")));
    assert_eq!((good.licence.as_deref(), good.revision.as_str()), (Some("apache-2.0"), "main"));
    assert_eq!(good.bytes, gguf("qwen2").len() as u64);
    assert!(good.last_used.is_some());
    let why: Vec<&String> = list[1..].iter().map(|cached| cached.runnable.as_ref().unwrap_err()).collect();
    assert!(why[0].contains("not a GGUF"), "{}", why[0]);
    assert!(why[1].contains("mamba"), "{}", why[1]);
    assert!(why[2].contains("no GGUF file"), "{}", why[2]);
    assert!(why[3].contains("not finished"), "{}", why[3]);
    for cached in &list[..3] {
        assert_eq!(bench.find(&cached.name).unwrap().files, cached.files);
    }
}

#[test]
fn remove_frees_a_model_and_leaves_nothing_behind() {
    let bench = Bench::new(&[(FILE, noise(1000)), ("m-Q8_0.gguf", noise(2000))]);
    for name in ["o/r", "o/r:q8_0"] {
        bench.pull(name).unwrap();
    }
    let hub = bench.hub();
    let removal = hub.removal(&hub.reference("o/r:q8_0").unwrap()).unwrap();
    assert_eq!((removal.files.len(), removal.blobs.len(), removal.freed_bytes), (1, 1, 2000));
    assert_eq!(hub.remove(&removal).unwrap(), 2000);
    assert_eq!(bench.find("o/r:q8_0"), None);
    assert!(bench.find("o/r").is_some());
    assert!(hub.removal(&hub.reference("o/r:q8_0").unwrap()).is_err());
    hub.remove(&hub.removal(&hub.reference("o/r").unwrap()).unwrap()).unwrap();
    assert!(!bench.repository().exists());
}

#[cfg(unix)]
#[test]
fn remove_never_touches_what_is_used_elsewhere_or_is_not_its_own() {
    let bench = Bench::new(&[(FILE, noise(1000))]);
    let located = bench.pull("o/r").unwrap();
    // The same blob at another commit, a note of the user's, and a link that leads out of the cache.
    let other = bench.repository().join("snapshots/c0ffee");
    fs::create_dir_all(&other).unwrap();
    std::os::unix::fs::symlink(fs::read_link(&located.files[0]).unwrap(), other.join(FILE)).unwrap();
    let mine = bench.cache.path().join("mine.gguf");
    fs::write(&mine, "mine").unwrap();
    std::os::unix::fs::symlink(&mine, located.files[0].with_file_name("mine-Q2_K.gguf")).unwrap();

    let hub = bench.hub();
    let removal = hub.removal(&hub.reference("o/r").unwrap()).unwrap();
    assert_eq!((removal.blobs.len(), removal.kept.len(), removal.freed_bytes), (0, 1, 0));
    hub.remove(&removal).unwrap();
    assert_eq!(fs::read(other.join(FILE)).unwrap(), noise(1000));

    hub.remove(&hub.removal(&hub.reference("o/r:q2_k").unwrap()).unwrap()).unwrap();
    assert_eq!(fs::read(&mine).unwrap(), b"mine");
    assert!(!bench.repository().join("refs/main").exists());

    let error = hub.removal(&Reference::Path(mine)).unwrap_err().to_string();
    assert!(error.contains("file of yours"), "{error}");
}

#[test]
fn remove_clears_away_a_download_that_was_stopped() {
    let bench = Bench::new(&[(FILE, noise(SIZE))]);
    let hub = bench.hub();
    let cancel = AtomicBool::new(false);
    let stop = &mut |p: &Progress| cancel.store(p.done > 500_000, SeqCst);
    hub.pull(&plan(&hub, "o/r").unwrap(), stop, &cancel).unwrap_err();
    let removal = hub.removal(&hub.reference("o/r").unwrap()).unwrap();
    assert!(removal.freed_bytes > 500_000 && removal.files.is_empty());
    assert_eq!(hub.removal(&hub.reference("o/r:q4_k_m").unwrap()).unwrap(), removal);
    let error = hub.removal(&hub.reference("o/r:q8_0").unwrap()).unwrap_err().to_string();
    assert!(error.contains("is not in the cache"), "{error}");
    hub.remove(&removal).unwrap();
    assert!(!bench.repository().exists());
}

#[test]
fn the_python_library_reads_the_cache_and_clears_it() {
    let bench = Bench::new(&[(FILE, noise(1000)), ("sub/m-Q8_0.gguf", noise(2000))]);
    let first = bench.pull("o/r").unwrap();
    bench.pull("o/r:q8_0").unwrap();
    bench.hub().touch(&first);
    let script = format!(
        r#"
try:
    from huggingface_hub import scan_cache_dir, hf_hub_download
except ImportError:
    raise SystemExit(77)
cache = {cache:?}
info = scan_cache_dir(cache)
assert not info.warnings, info.warnings
(repo,) = info.repos
assert repo.repo_id == "o/r" and repo.size_on_disk == 3000, repo
(revision,) = repo.revisions
assert revision.commit_hash == "{COMMIT}" and revision.refs == frozenset(["main"]), revision
path = hf_hub_download("o/r", "{FILE}", cache_dir=cache, local_files_only=True)
assert path == {path:?}, path
hf_hub_download("o/r", "sub/m-Q8_0.gguf", cache_dir=cache, local_files_only=True)
info.delete_revisions("{COMMIT}").execute()
"#,
        cache = bench.cache.path(),
        path = first.files[0],
    );
    let python = std::env::var("PYTHON").unwrap_or("python3".into());
    let run = Command::new(python).env("HF_HUB_OFFLINE", "1").args(["-c", &script]).output();
    let output = match run {
        Ok(output) if output.status.code() != Some(77) => output,
        _ => return eprintln!("skipped: no python3 with huggingface_hub (name one in PYTHON)"),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(bench.hub().list().unwrap(), []);
}
