fn main() -> std::process::ExitCode {
    pensive::cli::main()
}
