//! Repositories of safetensors: pulled, found, loaded and removed by name, as those of GGUF files are.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use pensive::checkpoint::Checkpoint;
use pensive::hub::{Hub, Plan, Progress};
use pensive::{Model, Options};

use super::common::server::COMMIT;
use super::tiny::{self, Files};
use super::{Bench, names, noise, plan};

/// A hub with these files and, beside them, weights that are not to be pulled.
fn bench(files: &Files) -> Bench {
    let mut all = files.clone();
    let others = [
        "README.md",
        "consolidated.safetensors",
        "model-00003-of-00003.safetensors",
        "original/config.json",
        "original/model.safetensors",
        "pytorch_model.bin",
    ];
    all.extend(others.map(|name| (name, noise(100))));
    Bench::new(&all)
}

fn size(files: &Files) -> u64 {
    files.iter().map(|(_, bytes)| bytes.len() as u64).sum()
}

fn without(files: &Files, name: &str) -> Files {
    files.iter().filter(|(path, _)| *path != name).cloned().collect()
}

fn error<T: std::fmt::Debug>(result: pensive::Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_pull_brings_config_vocabulary_and_weights_and_gives_their_folder() {
    for files in [tiny::repository(), tiny::split()].into_iter().flatten() {
        let bench = bench(&files);
        let plan = plan(&bench.hub(), "o/r").unwrap();
        let paths: Vec<&str> = plan.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, files.iter().map(|(path, _)| *path).collect::<Vec<_>>());
        assert_eq!((plan.total_bytes(), plan.quantization.as_deref()), (size(&files), None));
        assert_eq!(names(bench.cache.path()), [""; 0]);

        let located = bench.pull("o/r").unwrap();
        assert_eq!(located.files, [bench.repository().join("snapshots").join(COMMIT)]);
        let mut here = names(&located.files[0]);
        here.sort();
        let mut wanted: Vec<&str> = paths;
        wanted.sort();
        assert_eq!(here, wanted);
        for (path, bytes) in &files {
            assert_eq!(fs::read(located.files[0].join(path)).unwrap(), *bytes, "{path}");
        }
        assert_eq!(bench.find("O/R").as_ref(), Some(&located));
        let served = bench.server.served();
        assert_eq!(bench.pull("o/r").unwrap(), located);
        assert_eq!(bench.server.served(), served, "a second pull downloads nothing");
    }
}

#[test]
fn a_repository_with_gguf_files_is_what_it_was() {
    let Some(mut files) = tiny::repository() else { return };
    files.push(("m-Q4_K_M.gguf", noise(1000)));
    let bench = bench(&files);
    assert!(bench.pull("o/r").unwrap().files[0].ends_with("m-Q4_K_M.gguf"));
    assert_eq!(bench.server.served(), 1000);
}

#[test]
fn files_outside_lfs_are_checked_by_gits_hash() {
    let Some(files) = tiny::split() else { return };
    let bench = bench(&files);
    bench.server.state.git.store(true, SeqCst);
    bench.server.state.wrong_bytes.store(true, SeqCst);
    let message = error(plan(&bench.hub(), "o/r"));
    assert!(
        message.contains("model.safetensors.index.json") && message.contains("not the hub's"),
        "{message}"
    );
    bench.server.state.wrong_bytes.store(false, SeqCst);
    assert!(bench.pull("o/r").is_ok());
}

#[test]
fn a_damaged_index_is_found_and_fetched_anew_where_that_is_asked_for() {
    let Some(files) = tiny::split() else { return };
    let bench = bench(&files);
    let index = bench.pull("o/r").unwrap().files[0].join("model.safetensors.index.json");
    let whole = fs::read(&index).unwrap();
    fs::write(&index, vec![b'['; whole.len()]).unwrap();
    let plan = Plan { verify: true, ..plan(&bench.hub(), "o/r").unwrap() };
    bench.hub().pull(&plan, &mut |_| {}, &AtomicBool::new(false)).unwrap();
    assert!(fs::read(&index).unwrap() == whole);
}

#[test]
fn a_second_pull_takes_up_what_a_stopped_one_left() {
    for files in [tiny::repository(), tiny::split()].into_iter().flatten() {
        let bench = bench(&files);
        let (last, bytes) = files.last().unwrap();
        let before = size(&files) - bytes.len() as u64;
        let cancel = AtomicBool::new(false);
        let stop = &mut |p: &Progress| cancel.store(p.file == *last && p.done > before, SeqCst);
        let hub = bench.hub();
        let first = plan(&hub, "o/r").unwrap();
        assert!(error(hub.pull(&first, stop, &cancel)).contains("goes on"));
        assert_eq!(bench.find("o/r"), None);
        let why = hub.list().unwrap()[0].runnable.clone().unwrap_err();
        let (here, of) = (files.len() - 1, files.len());
        assert!(why.contains(&format!("{here} of {of} files are here")), "{why}");

        let missing = plan(&hub, "o/r").unwrap().missing_bytes();
        assert!(missing < bytes.len() as u64, "{missing}");
        let asked = bench.server.seen_files().len();
        let located = bench.pull("o/r").unwrap();
        assert_eq!(fs::read(located.files[0].join(last)).unwrap(), *bytes);
        let again = &bench.server.seen_files()[asked..];
        let ranges: Vec<bool> = again.iter().map(|seen| seen.range.is_some()).collect();
        assert_eq!((ranges, again[0].path.ends_with(last)), (vec![true], true));
    }
}

#[test]
fn a_checkpoint_that_lacks_a_file_is_an_error_that_names_it() {
    let Some(files) = tiny::split() else { return };
    for name in ["model-00002-of-00002.safetensors", "tokenizer.json"] {
        let message = error(plan(&bench(&without(&files, name)).hub(), "o/r"));
        assert!(message.contains(&format!("its checkpoint lacks {name}")), "{message}");
    }
    // in the cache it is as if it were not there
    let bench = bench(&files);
    let located = bench.pull("o/r").unwrap();
    for name in ["model-00002-of-00002.safetensors", "tokenizer.json", "config.json"] {
        let file = located.files[0].join(name);
        let link = fs::read_link(&file).unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(bench.find("o/r"), None, "{name}");
        bench.pull("o/r").unwrap();
        assert_eq!(fs::read_link(&file).unwrap(), link);
    }
}

#[test]
fn names_that_lead_out_of_the_folder_are_refused() {
    let Some(files) = tiny::split() else { return };
    let index = "model.safetensors.index.json";
    for name in ["../s.safetensors", "/tmp/s.safetensors", "..", "sub/s.safetensors", "pytorch_model.bin"] {
        let mut files = without(&files, index);
        let text = serde_json::json!({ "weight_map": { "a": name } }).to_string();
        files.extend([(index, text.into()), ("../s.safetensors", noise(9))]);
        let bench = bench(&files);
        let message = error(plan(&bench.hub(), "o/r"));
        assert!(message.contains(index) && message.contains(&format!("'{name}'")), "{message}");
        assert_eq!(names(bench.cache.path()), [""; 0]);
    }
}

#[test]
fn a_quantization_of_safetensors_is_answered_with_how_to_quantize_them() {
    let Some(files) = tiny::repository() else { return };
    let bench = bench(&files);
    let words = |message: &str, flag: &str| {
        assert!(message.contains("o/r holds safetensors") && message.contains(flag), "{message}");
        assert!(!message.contains('\n'));
    };
    words(&error(plan(&bench.hub(), "o/r:q4_k_m")), "--quantize q4_k_m");
    words(&error(plan(&bench.hub(), "o/r:q8_0")), "--quantize q8_0");
    words(&error(plan(&bench.hub(), "o/r:ud-q4_k_xl")), "--quantize q4_k_m");
    bench.pull("o/r").unwrap();
    assert_eq!(bench.find("o/r:q8_0"), None, "the hub may have it");
    let offline = Hub::new(bench.settings().offline(true));
    words(&error(offline.find(&offline.reference("o/r:q8_0").unwrap())), "--quantize q8_0");
}

#[test]
fn safetensors_are_listed_by_their_repository_with_the_size_of_all_files() {
    let Some(files) = tiny::split() else { return };
    let bench = bench(&files);
    let located = bench.pull("o/r").unwrap();
    let hub = bench.hub();
    hub.touch(&located);
    let list = hub.list().unwrap();
    assert_eq!(list.len(), 1);
    let model = &list[0];
    assert_eq!((model.name.as_str(), model.runnable.clone(), model.bytes), ("o/r", Ok(()), size(&files)));
    assert_eq!((model.architecture.as_deref(), &model.files), (Some("qwen2"), &located.files));
    assert!(model.last_used.is_some());
}

#[test]
fn the_original_of_a_catalog_model_has_the_catalogs_entry() {
    let Some(files) = tiny::repository() else { return };
    let bench = bench(&files);
    let snapshot = bench.cache.path().join("models--deepseek-ai--DeepSeek-R1-Distill-Qwen-1.5B/snapshots/c0");
    fs::create_dir_all(&snapshot).unwrap();
    for (name, bytes) in &files {
        fs::write(snapshot.join(name), bytes).unwrap();
    }
    let located = bench.find("deepseek-ai/deepseek-r1-distill-qwen-1.5b@c0").unwrap();
    assert_eq!(located.entry.unwrap().name, "deepseek-r1:1.5b");
    assert_eq!(located.files, [snapshot]);
    assert_eq!(bench.hub().list().unwrap()[0].licence.as_deref(), Some("MIT + Apache-2.0"));
}

#[test]
fn remove_frees_safetensors_and_leaves_nothing_behind() {
    let Some(files) = tiny::split() else { return };
    let bench = bench(&files);
    let hub = bench.hub();
    hub.touch(&bench.pull("o/r").unwrap());
    let removal = hub.removal(&hub.reference("o/r").unwrap()).unwrap();
    assert_eq!((removal.files.len(), removal.freed_bytes), (files.len(), size(&files)));
    hub.remove(&removal).unwrap();
    assert!(!bench.repository().exists());
}

#[test]
fn remove_clears_away_the_whole_of_a_pull_that_was_stopped() {
    for files in [tiny::repository(), tiny::split()].into_iter().flatten() {
        let bench = bench(&files);
        let hub = bench.hub();
        let cancel = AtomicBool::new(false);
        let last = files.last().unwrap().0;
        let stop = &mut |p: &Progress| cancel.store(p.file == last, SeqCst);
        hub.pull(&plan(&hub, "o/r").unwrap(), stop, &cancel).unwrap_err();
        let removal = hub.removal(&hub.reference("o/r").unwrap()).unwrap();
        assert_eq!(removal.files.len(), files.len() - 1);
        hub.remove(&removal).unwrap();
        assert!(!bench.repository().exists());
    }
}

/// Not a test of its own: the process that the next test starts, without a network.
#[test]
fn helper_that_loads_by_name() {
    let Ok(folder) = std::env::var("PENSIVE_TEST_FOLDER") else { return };
    let model = Model::builder("o/r").load().unwrap();
    assert_eq!((model.path(), model.architecture()), (Path::new(&folder), "qwen2"));
    let by_path = Model::builder(&folder).load().unwrap();
    assert_eq!(model.sha256(|_, _| ()).unwrap(), by_path.sha256(|_, _| ()).unwrap());
    let answer = |model: &Model| {
        let mut options = Options::default();
        (options.max_tokens, options.seed) = (Some(8), Some(1));
        let mut generation = model.generate("ab", &options).unwrap();
        generation.by_ref().for_each(drop);
        generation.stats().tokens
    };
    assert_eq!(answer(&model), answer(&by_path));
    assert!(!answer(&model).is_empty());
}

#[test]
fn a_pulled_repository_is_loaded_by_its_name_without_a_network() {
    for files in [tiny::repository(), tiny::split()].into_iter().flatten() {
        let bench = bench(&files);
        let folder = bench.pull("o/r").unwrap().files.remove(0);
        assert_eq!(Checkpoint::open(&folder).unwrap().files[0].parent(), Some(&*folder));
        let seen = bench.server.state.seen.lock().unwrap().len();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "safetensors::helper_that_loads_by_name"])
            .env("HF_HUB_CACHE", bench.cache.path())
            .env("HF_ENDPOINT", bench.server.endpoint())
            .env("HF_HUB_OFFLINE", "1")
            .env("PENSIVE_TEST_FOLDER", &folder)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        assert_eq!(bench.server.state.seen.lock().unwrap().len(), seen);
    }
}
