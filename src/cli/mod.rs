//! The command line: one file a command; rendering apart from doing.

/// Runs the command line; the exit code is 0 for success, 2 for wrong usage, 130 after Ctrl-C, 1 for anything else.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
