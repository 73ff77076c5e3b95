//! What is printed where: facts about the terminal, notices, progress, questions, numbers for people.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::args::GlobalArgs;
use crate::{Error, Result};

/// Starts dimmed text on a terminal.
pub const DIM: &str = "\x1b[2m";
/// Ends it.
pub const RESET: &str = "\x1b[0m";

/// How long something may take before its progress is shown.
const PATIENCE: Duration = Duration::from_secs(2);

/// Facts about the terminal, and how much to say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Console {
    /// Standard input is a terminal.
    pub stdin_terminal: bool,
    /// Standard output is a terminal.
    pub stdout_terminal: bool,
    /// Standard error is a terminal.
    pub stderr_terminal: bool,
    /// Colours and dimming are wanted: no NO_COLOR, and a terminal that knows them.
    pub color: bool,
    /// No notices, no progress.
    pub quiet: bool,
    /// Say what is being done.
    pub verbose: bool,
}

impl Console {
    /// Asks the system.
    ///
    /// On Windows this also switches the console to escape codes; its UTF-8 needs no switch, because Rust writes
    /// to a console in UTF-16.
    pub fn detect(global: GlobalArgs) -> Console {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Console {
            stdin_terminal: io::stdin().is_terminal(),
            stdout_terminal: io::stdout().is_terminal(),
            stderr_terminal: io::stderr().is_terminal(),
            color: !no_color && knows_escape_codes(),
            quiet: global.quiet,
            verbose: global.verbose,
        }
    }

    /// Whether to dim on standard output.
    pub fn dims_stdout(&self) -> bool {
        self.stdout_terminal && self.color
    }

    /// Whether to dim on standard error.
    pub fn dims_stderr(&self) -> bool {
        self.stderr_terminal && self.color
    }

    /// Whether a question can be asked and answered.
    pub fn can_ask(&self) -> bool {
        self.stdin_terminal && self.stderr_terminal
    }

    /// A line on standard error, unless quiet. It may quote a file or the hub.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            error_line(harmless(text.as_ref()));
        }
    }

    /// A line on standard error if verbose. It may quote a file.
    pub fn detail(&self, text: impl AsRef<str>) {
        if self.verbose {
            error_line(harmless(text.as_ref()));
        }
    }

    /// Asks a yes-or-no question; only `y` and `yes` are a yes.
    pub fn confirm(&self, question: &str) -> Result<bool> {
        let mut stderr = io::stderr().lock();
        let asked = write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush());
        asked.map_err(|e| Error::io("standard error", e))?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map_err(|e| Error::io("standard input", e))?;
        Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
    }

    /// A bar on standard error that appears once `after` has passed; a line of words where that is no terminal.
    fn bar(&self, label: &'static str, unit: Unit, after: Duration) -> Bar {
        let target = if self.quiet { None } else { Some(self.stderr_terminal) };
        Bar {
            label,
            unit,
            appears: Instant::now() + after,
            terminal: target,
            bar: None,
            said: false,
            missing: None,
        }
    }

    /// The bar of something that is usually quick: it appears after two seconds.
    pub fn slow_bar(&self, label: &'static str, unit: Unit) -> Bar {
        self.bar(label, unit, PATIENCE)
    }

    /// The bar of a download of `missing` bytes: it appears at once, unless all is here.
    pub fn download_bar(&self, missing: u64) -> Bar {
        let mut bar = self.bar("downloading", Unit::Bytes, Duration::ZERO);
        bar.terminal = bar.terminal.filter(|_| missing > 0);
        bar.missing = Some(missing);
        bar
    }
}

/// What a bar counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Tokens.
    Tokens,
}

/// A progress bar that shows itself only if it is worth it, and is gone when dropped.
pub struct Bar {
    label: &'static str,
    unit: Unit,
    appears: Instant,
    /// None: say nothing; else whether standard error is a terminal.
    terminal: Option<bool>,
    bar: Option<ProgressBar>,
    said: bool,
    /// What the words say instead of the total.
    missing: Option<u64>,
}

impl Bar {
    /// So far `done` of `total`.
    pub fn update(&mut self, done: u64, total: u64) {
        if Instant::now() < self.appears {
            return;
        }
        match self.terminal {
            None => {}
            Some(true) => {
                let bar = self.bar.get_or_insert_with(|| new_bar(self.label, self.unit, done, total));
                bar.set_length(total);
                bar.set_position(done);
            }
            Some(false) if !self.said => {
                self.said = true;
                let total = self.missing.unwrap_or(total);
                let total = match self.unit {
                    Unit::Bytes => bytes(total),
                    Unit::Tokens => format!("{total} tokens"),
                };
                error_line(format!("{} {total}…", self.label));
            }
            Some(false) => {}
        }
    }

    /// What is being done now, behind the bar.
    pub fn message(&self, text: impl Into<String>) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.into());
        }
    }

    /// Prints a line above the bar.
    pub fn note(&self, console: &Console, text: impl AsRef<str>) {
        match &self.bar {
            Some(bar) => bar.suspend(|| console.note(text)),
            None => console.note(text),
        }
    }

    /// Takes the bar away; a later update begins a new one, whose speed is that of what comes after.
    pub fn finish(&mut self) {
        if self.bar.take().is_some() {
            clear_bar();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The bar on the screen: there is one at most.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Takes away the bar on the screen, from any thread; whether there was one.
pub(super) fn clear_bar() -> bool {
    let shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(bar) = &shown {
        bar.finish_and_clear();
    }
    shown.is_some()
}

fn new_bar(label: &'static str, unit: Unit, done: u64, total: u64) -> ProgressBar {
    let counts = match unit {
        Unit::Bytes => "{decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}",
        Unit::Tokens => "{pos}/{len} tokens {eta}",
    };
    let template = format!("{{prefix}} [{{bar:30}}] {counts} {{msg}}");
    let style = ProgressStyle::with_template(&template).expect("the template is well-formed");
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
    bar.set_style(style.progress_chars("=> "));
    bar.set_prefix(label);
    // Bytes of an earlier download are not this one's speed: the tick counts them, the reset forgets when.
    bar.set_position(done);
    bar.tick();
    bar.reset_elapsed();
    bar.set_draw_target(ProgressDrawTarget::stderr());
    *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
    bar
}

/// Whether a terminal understands escape codes: all do that are not called dumb.
pub(super) fn knows_escape_codes() -> bool {
    #[cfg(windows)]
    return crossterm::ansi_support::supports_ansi();
    #[cfg(not(windows))]
    return std::env::var_os("TERM").is_none_or(|term| term != "dumb");
}

/// A line on standard error; a closed one is nobody's concern.
pub fn error_line(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
}

/// Prints on standard output.
///
/// # Errors
/// [`Error::Io`]; a closed pipe is told apart by [`is_closed_pipe`].
pub fn print(text: impl AsRef<str>) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_ref().as_bytes()).and_then(|()| stdout.flush()).map_err(stdout_error)
}

/// A failed write to standard output.
pub fn stdout_error(error: io::Error) -> Error {
    Error::io(STDOUT, error)
}

const STDOUT: &str = "standard output";

/// Whether the reader of standard output is gone: no error, only a reason to stop.
pub fn is_closed_pipe(error: &Error) -> bool {
    matches!(error, Error::Io { path, source }
        if path.as_os_str() == STDOUT && source.kind() == io::ErrorKind::BrokenPipe)
}

/// Text of a model as it may go to a terminal: a carriage return before a newline goes, control characters other
/// than newline and tab are shown as U+FFFD, so that no escape code of the model's reaches the terminal.
pub fn harmless(text: &str) -> std::borrow::Cow<'_, str> {
    let harmful = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(harmful) {
        return text.into();
    }
    text.replace("\r\n", "\n").replace(harmful, "\u{FFFD}").into()
}

/// Bytes as the hub and disks count them: "4.7 GB".
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.0} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.0} MB", n as f64 / 1e6),
        _ => format!("{:.1} GB", n as f64 / 1e9),
    }
}

/// Bytes as memory is counted: "6.2" of GiB.
pub fn gib(n: u64) -> String {
    format!("{:.1}", n as f64 / (1u64 << 30) as f64)
}

/// Rows as aligned columns, two spaces apart; the last column is not padded. Cells may quote a file: they stay harmless,
/// and on their line.
pub fn table(rows: &[Vec<String>]) -> String {
    let cell = |cell: &String| harmless(cell).replace(['\n', '\t'], " ");
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(cell).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_in_powers_of_a_thousand() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_500), "2 kB");
        assert_eq!(bytes(12_000_000), "12 MB");
        assert_eq!(bytes(4_683_074_240), "4.7 GB");
        assert_eq!(gib(1 << 31), "2.0");
    }

    #[test]
    fn what_was_here_before_is_not_the_speed_of_a_download() {
        let bar = new_bar("downloading", Unit::Bytes, 1 << 30, 2 << 30);
        std::thread::sleep(Duration::from_millis(1)); // a speed needs some time
        assert_eq!((bar.position(), bar.length(), bar.per_sec()), (1 << 30, Some(2 << 30), 0.0));
        clear_bar();
    }

    #[test]
    fn a_download_of_nothing_shows_no_bar() {
        let console = Console { stderr_terminal: true, ..Console::default() };
        assert_eq!(console.download_bar(0).terminal, None);
        assert_eq!(console.download_bar(1).terminal, Some(true));
    }

    #[test]
    fn columns_are_aligned_and_lines_end_without_spaces() {
        let rows = [vec!["a".into(), "b".into()], vec!["long".into(), String::new()]];
        assert_eq!(table(&rows), "a     b\nlong\n");
    }

    #[test]
    fn a_cell_stays_on_its_line_and_sends_no_escape_codes() {
        assert_eq!(
            table(&[vec!["a\nb".into(), "\x1b[31mred\u{9b}".into()]]),
            "a b  \u{FFFD}[31mred\u{FFFD}\n"
        );
    }

    #[test]
    fn escape_codes_of_a_model_do_not_reach_the_terminal() {
        assert_eq!(harmless("a\x1b[2Jb\n\tc"), "a\u{FFFD}[2Jb\n\tc");
        assert_eq!(harmless("a\r\nb\rc"), "a\nb\u{FFFD}c");
        assert!(matches!(harmless("plain\n"), std::borrow::Cow::Borrowed(_)));
    }

    #[test]
    fn only_a_broken_pipe_of_standard_output_is_a_closed_pipe() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_closed_pipe(&stdout_error(broken())));
        assert!(!is_closed_pipe(&Error::io("a socket", broken())));
        assert!(!is_closed_pipe(&stdout_error(io::ErrorKind::StorageFull.into())));
    }
}
