//! The program itself; everything is in the library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    weave_cli::main()
}
