//! How commands end and what they print: results on stdout, everything else on stderr.

use std::fmt;
use std::io::Write;

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Printed on stderr; without final newline, may be empty.
    pub(crate) message: String,
    /// Exit code.
    pub(crate) code: u8,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl fmt::Display) -> Failure {
        Failure { message: message.to_string(), code }
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::new(1, error)
    }
}

/// Prints a line on stderr. A closed stderr is no error.
pub(crate) fn notice(line: impl fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Prints a result on stdout, exactly as given.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // `weave report | head` does not fail.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|e| Failure::new(1, format_args!("writing to stdout: {e}"))),
    }
}

pub(crate) fn require_root() -> Result<(), Failure> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err(Failure::new(1, "weave must be run as 'root' when run locally; try 'sudo weave ...'"))
    }
}
