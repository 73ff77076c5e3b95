//! The binary as a test runs it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A home of its own, so that no file or variable of this machine plays a part.
pub struct Home(TempDir);

impl Home {
    pub fn new() -> Self {
        Home(TempDir::new().expect("a temporary folder"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// `pensive` with these arguments, nothing on standard input, no network.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pensive"));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if ["PENSIVE_", "HF_", "HUGGING", "XDG_", "TRANSFORMERS_"].iter().any(|p| name.starts_with(p)) {
                command.env_remove(name);
            }
        }
        command
            .args(args)
            .env("HOME", self.path())
            .env("USERPROFILE", self.path())
            .env("HF_HOME", self.path().join("hf"))
            .env("HF_HUB_OFFLINE", "1")
            .env("XDG_CONFIG_HOME", self.path().join("config"))
            .env("XDG_STATE_HOME", self.path().join("state"))
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Answer {
        Answer::of(self.command(args).output().expect("pensive runs"))
    }

    pub fn run_with_stdin(&self, args: &[&str], stdin: &[u8]) -> Answer {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("pensive runs");
        // A command that fails early does not read what it is given.
        let _ = child.stdin.take().expect("stdin is piped").write_all(stdin);
        Answer::of(child.wait_with_output().expect("pensive ends"))
    }

    /// Writes a file, gives its path.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.path().join(name);
        std::fs::write(&path, text).expect("a temporary file");
        path.to_str().expect("a UTF-8 path").to_owned()
    }
}

/// What a command printed, and its exit code.
#[derive(Debug)]
pub struct Answer {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Answer {
    pub fn of(output: Output) -> Self {
        Answer {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("UTF-8 on stdout"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8 on stderr"),
        }
    }

    /// It failed with this code, one line on stderr that holds these words, and nothing on stdout.
    /// What a busy machine makes last two seconds may have said so first (`loading 97 MB…`).
    #[track_caller]
    pub fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        let said: Vec<&str> = self.stderr.lines().filter(|line| !line.ends_with('…')).collect();
        let [error] = said[..] else { panic!("not one line: {self:?}") };
        assert!(error.starts_with("pensive: "), "{self:?}");
        for word in words {
            assert!(error.contains(word), "{word:?} is not in {self:?}");
        }
    }

    /// It succeeded; what it printed.
    #[track_caller]
    pub fn succeeds(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert!(!self.stdout.contains('\x1b'), "escape codes where no terminal is: {self:?}");
        &self.stdout
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.succeeds()).expect("JSON on stdout")
    }
}

/// Value and origin of a setting.
pub fn setting(config: &serde_json::Value, name: &str) -> (serde_json::Value, String) {
    let setting = &config["settings"][name];
    (setting["value"].clone(), setting["origin"].as_str().unwrap_or_default().to_owned())
}
