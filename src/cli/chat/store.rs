//! Conversations on disk, and files that are the user's alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::set::Changed;
use crate::api::Chat;
use crate::checkpoint::WholeFile;
use crate::cli::text::read_file;
use crate::{Error, Message, Result, Role};

/// A conversation as it is saved: JSON.
#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Saved {
    /// Name of the model that it was held with.
    pub(super) model: String,
    /// What was set; older files do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) settings: Option<Changed>,
    /// The messages, the system message first if there is one.
    pub(super) messages: Vec<Message>,
}

/// What a chat may be saved over.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Over {
    Nothing,
    AChat,
}

/// The folder of saved conversations.
#[derive(Clone)]
pub(super) struct Store {
    folder: PathBuf,
}

impl Store {
    /// Conversations in `folder`, which need not exist yet.
    pub(super) fn new(folder: PathBuf) -> Self {
        Store { folder }
    }

    /// Saves under a name, or to a path (a separator or `.json` in it); gives the file.
    ///
    /// # Errors
    /// Where the name cannot be a file's, the file cannot be written, or is there and must not be replaced; with a cache,
    /// where a file that is none stands in its place.
    pub(super) fn save(&self, name: &str, chat: &Saved, with_cache: bool, over: Over) -> Result<PathBuf> {
        let path = self.path(name)?;
        let cache = cache_path(&path);
        if path.extension().is_some_and(|end| end.eq_ignore_ascii_case("kv")) {
            return Err(Error::file(&path, "such a name is for keys and values: end it in .json"));
        }
        if with_cache && cache.exists() && !is_cache(&cache) {
            return Err(Error::file(&cache, "exists and holds no keys and values: choose another name"));
        }
        if path.exists() && read(&path).is_err() {
            return Err(Error::file(&path, "exists and is no saved chat: choose another name"));
        }
        if path.exists() && over == Over::Nothing {
            let what = format!("is another chat: choose another name, or replace it by /save {name} --force");
            return Err(Error::file(&path, what));
        }
        if let Some(folder) = path.parent().filter(|f| *f == self.folder) {
            fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        }
        let text = serde_json::to_string_pretty(chat).map_err(|e| Error::file(&path, e.to_string()))?;
        // A full disk must not cost the chat that was there.
        write_whole(&path, |mut file| file.write_all(text.as_bytes()))?;
        Ok(path)
    }

    /// Loads what was saved under a name or to a path; with its file.
    ///
    /// # Errors
    /// Where there is none, or the file is no saved chat.
    pub(super) fn load(&self, name: &str) -> Result<(PathBuf, Saved)> {
        let path = self.path(name)?;
        if !path.exists() {
            return Err(Error::file(&path, "there is no such chat: /load in a chat lists the saved ones"));
        }
        let saved = read(&path)?;
        Ok((path, saved))
    }

    /// Deletes what was saved under a name or to a path, with its keys and values; gives the file.
    ///
    /// # Errors
    /// Where there is none, the file cannot be deleted, or is no saved chat; one in the folder may be damaged.
    pub(super) fn remove(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name)?;
        if path.parent() != Some(&self.folder) || !path.exists() {
            self.load(name)?;
        }
        fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        let cache = cache_path(&path);
        if is_cache(&cache) {
            fs::remove_file(&cache).map_err(|e| Error::io(&cache, e))?;
        }
        Ok(path)
    }

    /// The saved chats by name, and when each was saved.
    pub(super) fn list(&self) -> Vec<(String, Option<SystemTime>, Result<Saved>)> {
        let entry = |name: String| {
            let path = self.folder.join(format!("{name}.json"));
            let time = fs::metadata(&path).and_then(|file| file.modified()).ok();
            (name, time, read(&path))
        };
        self.names().into_iter().map(entry).collect()
    }

    /// Names of the saved chats, sorted.
    pub(super) fn names(&self) -> Vec<String> {
        let files = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut names: Vec<String> = files
            .filter_map(|file| file.file_name().to_str()?.strip_suffix(".json").map(str::to_owned))
            .collect();
        names.sort();
        names
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        if name.contains(std::path::is_separator) || name.ends_with(".json") {
            return Ok(expand_home(name));
        }
        // What Windows forbids is refused everywhere, so that names travel.
        if name.starts_with('.') || name.contains(|c: char| c.is_control() || r#"<>:"|?*\"#.contains(c)) {
            return Err(Error::Usage(format!(
                "{name:?} cannot be a file's name: use letters, digits, spaces, - and _"
            )));
        }
        Ok(self.folder.join(format!("{name}.json")))
    }
}

/// Where the keys and values of a saved conversation are: `sums.json.kv` beside `sums.json`.
pub(super) fn cache_path(chat: &Path) -> PathBuf {
    let mut name = chat.as_os_str().to_owned();
    name.push(".kv");
    name.into()
}

/// Whether a file holds keys and values that were saved.
pub(super) fn is_cache(path: &Path) -> bool {
    File::open(path).and_then(Chat::is_cache).unwrap_or(false)
}

fn read(path: &Path) -> Result<Saved> {
    let saved: Saved = serde_json::from_str(&read_file(path)?)
        .map_err(|e| Error::file(path, format!("is no saved chat: {e}")))?;
    if let Some(i) = saved.messages.iter().skip(1).position(|m| m.role == Role::System) {
        return Err(Error::file(
            path,
            format!("messages[{}]: a system message can only be the first", i + 1),
        ));
    }
    Ok(saved)
}

/// `~/x` as a path in the user's home.
pub(super) fn expand_home(path: &str) -> PathBuf {
    match path.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with(std::path::is_separator)) {
        Some(rest) => match etcetera::home_dir() {
            Ok(home) => home.join(rest.trim_start_matches(std::path::is_separator)),
            Err(_) => path.into(),
        },
        None => path.into(),
    }
}

/// Writes a file that only its owner can read, and that is there as a whole or as it was before.
///
/// # Errors
/// Where it cannot be written.
pub(super) fn write_whole(path: &Path, write: impl FnOnce(&File) -> io::Result<()>) -> Result<()> {
    let written = WholeFile::create(path, 0).and_then(|whole| {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            whole.file().set_permissions(fs::Permissions::from_mode(0o600))?;
        }
        write(whole.file())?;
        whole.keep()
    });
    written.map_err(|e| Error::io(path, e))
}

/// Writes a file that only its owner can read.
///
/// # Errors
/// Where it cannot be written.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let io = |e| Error::io(path, e);
    let mut file = open_private(OpenOptions::new().write(true).truncate(true), path).map_err(io)?;
    file.write_all(bytes).map_err(io)
}

/// Opens, and creates, a file that only its owner can read.
pub(super) fn open_private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.create(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
        let file = options.mode(0o600).open(path)?;
        // The mode above holds only for a file that is new.
        if file.metadata()?.permissions().mode() & 0o077 != 0 {
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
        }
        Ok(file)
    }
    // Elsewhere the folder's rights decide: on Windows the profile is the user's alone.
    #[cfg(not(unix))]
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat() -> Saved {
        let mut answer = Message::assistant("4 \u{1f600}\n");
        answer.thought = Some("2 + 2".into());
        let messages = vec![Message::system("Be brief."), Message::user("2 + 2?\tnow"), answer];
        Saved { model: "deepseek-r1:1.5b".into(), settings: None, messages }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("chats"));
        (folder, store)
    }

    #[test]
    fn what_is_saved_under_a_name_is_loaded_and_listed() {
        let (_folder, store) = store();
        assert_eq!(store.names(), Vec::<String>::new());
        store.save("sums", &chat(), false, Over::AChat).unwrap();
        store.save("a b", &chat(), false, Over::AChat).unwrap();
        assert_eq!(store.load("sums").unwrap().1, chat());
        assert_eq!(store.names(), ["a b", "sums"]);
    }

    #[test]
    fn a_name_with_a_separator_or_json_is_a_path() {
        let (folder, store) = store();
        let path = folder.path().join("elsewhere.json");
        assert_eq!(store.save(path.to_str().unwrap(), &chat(), false, Over::AChat).unwrap(), path);
        assert_eq!(store.load(path.to_str().unwrap()).unwrap(), (path, chat()));
        assert_eq!(store.names(), Vec::<String>::new());
    }

    #[cfg(unix)]
    #[test]
    fn a_saved_chat_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let (_folder, store) = store();
        let path = store.save("secret", &chat(), false, Over::AChat).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn saving_again_replaces_a_chat_but_never_another_file() {
        let (folder, store) = store();
        store
            .save("sums", &Saved { model: "m".into(), settings: None, messages: vec![] }, false, Over::AChat)
            .unwrap();
        store.save("sums", &chat(), false, Over::AChat).unwrap();
        assert_eq!(store.load("sums").unwrap().1, chat());

        let other = folder.path().join("package.json");
        fs::write(&other, "{\"name\": 1}").unwrap();
        let error = store.save(other.to_str().unwrap(), &chat(), false, Over::AChat).unwrap_err().to_string();
        assert!(error.contains("package.json: exists and is no saved chat"), "{error}");
        assert_eq!(fs::read_to_string(&other).unwrap(), "{\"name\": 1}");
    }

    #[test]
    fn saving_touches_no_file_but_the_chat_s() {
        let (folder, store) = store();
        for beside in ["x.json.part", "x.json.kv.part", ".x.json"] {
            fs::write(folder.path().join(beside), "mine").unwrap();
        }
        store.save(folder.path().join("x.json").to_str().unwrap(), &chat(), false, Over::AChat).unwrap();
        write_whole(&folder.path().join("x.json.kv"), |mut file| file.write_all(b"keys")).unwrap();
        let failed = write_whole(&folder.path().join("x.json.kv"), |_| Err(io::Error::other("full")));
        assert!(failed.unwrap_err().to_string().ends_with("x.json.kv: full"));
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("x.json.kv"), "keys", "what failed leaves what was there");
        assert_eq!(["x.json.part", "x.json.kv.part", ".x.json"].map(read), ["mine"; 3]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 5);
    }

    #[test]
    fn another_chat_is_not_replaced_unless_asked() {
        let (_folder, store) = store();
        store.save("sums", &chat(), false, Over::Nothing).unwrap();
        let other = Saved { model: "m".into(), settings: None, messages: vec![] };
        let error = store.save("sums", &other, false, Over::Nothing).unwrap_err().to_string();
        assert!(error.ends_with("choose another name, or replace it by /save sums --force"), "{error}");
        assert_eq!(store.load("sums").unwrap().1, chat());
        store.save("sums", &other, false, Over::AChat).unwrap();
        assert_eq!(store.load("sums").unwrap().1, other);
    }

    #[test]
    fn a_chat_is_removed_with_its_keys_and_values_and_no_other_file_is() {
        let (folder, store) = store();
        let path = store.save("sums", &chat(), false, Over::Nothing).unwrap();
        fs::write(cache_path(&path), "pensive sequence 2\n").unwrap();
        store.remove("sums").unwrap();
        assert!(!path.exists() && !cache_path(&path).exists());
        assert!(store.remove("sums").unwrap_err().to_string().contains("there is no such chat"));
        // a damaged one in the folder can go, elsewhere it may be anything
        fs::write(&path, "{\"model\"").unwrap();
        fs::write(cache_path(&path), "mine").unwrap();
        store.remove("sums").unwrap();
        assert!(!path.exists() && cache_path(&path).exists());
        let other = folder.path().join("package.json");
        fs::write(&other, "{}").unwrap();
        assert!(store.remove(other.to_str().unwrap()).unwrap_err().to_string().contains("is no saved chat"));
        assert!(other.exists());
    }

    #[test]
    fn a_chat_that_was_saved_without_settings_is_loaded() {
        let (folder, store) = store();
        let path = folder.path().join("old.json");
        fs::write(&path, r#"{"model":"m","messages":[{"role":"user","content":"a"}]}"#).unwrap();
        assert_eq!(store.load(path.to_str().unwrap()).unwrap().1.settings, None);
    }

    #[test]
    fn keys_and_values_are_saved_over_nothing_else() {
        let (folder, store) = store();
        let (x, kv) = (folder.path().join("x.json"), folder.path().join("x.json.kv"));
        let save =
            |path: &Path, with_cache| store.save(path.to_str().unwrap(), &chat(), with_cache, Over::AChat);
        let error = save(&kv, false).unwrap_err().to_string();
        assert!(error.contains("x.json.kv: such a name is for keys and values"), "{error}");
        fs::write(&kv, "mine").unwrap();
        let error = save(&x, true).unwrap_err().to_string();
        assert!(error.contains("x.json.kv: exists and holds no keys and values"), "{error}");
        assert!(!x.exists(), "nothing is written");
        save(&x, false).unwrap();
        fs::write(&kv, "pensive sequence 1\n").unwrap();
        save(&x, true).unwrap();
    }

    #[test]
    fn a_bad_name_or_file_is_an_error_that_says_why() {
        let (folder, store) = store();
        for name in ["..", "a:b", "what?", "a\tb"] {
            assert!(
                store
                    .save(name, &chat(), false, Over::AChat)
                    .unwrap_err()
                    .to_string()
                    .contains("cannot be a file's name")
            );
        }
        let nowhere = folder.path().join("none").join("x.json");
        let error =
            store.save(nowhere.to_str().unwrap(), &chat(), false, Over::AChat).unwrap_err().to_string();
        assert!(error.contains("x.json: "), "{error}");
        assert!(store.load("none").unwrap_err().to_string().contains("there is no such chat"));

        let path = folder.path().join("x.json");
        let load = |text: &[u8]| {
            fs::write(&path, text).unwrap();
            store.load(path.to_str().unwrap()).unwrap_err().to_string()
        };
        assert!(load(b"{\"model\": \"m\"}").contains("missing field `messages`"));
        assert!(load(b"\xff").contains("is not UTF-8 text (byte 0)"));
        let late =
            r#"{"model":"m","messages":[{"role":"user","content":"a"},{"role":"system","content":"b"}]}"#;
        assert!(load(late.as_bytes()).contains("messages[1]: a system message can only be the first"));
    }

    #[test]
    fn a_tilde_stands_for_the_home_folder() {
        let home = etcetera::home_dir().unwrap();
        assert_eq!(expand_home("~/a b"), home.join("a b"));
        assert_eq!(expand_home("~"), home);
        assert_eq!(expand_home("~other/x"), PathBuf::from("~other/x"));
        assert_eq!(expand_home("./x"), PathBuf::from("./x"));
    }
}
