use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// Environment variables, as an argument for tests.
pub(crate) trait Env {
    /// The value of a variable that is set and UTF-8.
    fn var(&self, name: &str) -> Option<String>;

    /// The value of a variable that is set.
    fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        self.var(name).map(String::into_bytes)
    }
}

/// No variable is set.
pub(crate) struct NoEnv;

impl Env for NoEnv {
    fn var(&self, _name: &str) -> Option<String> {
        None
    }
}

pub(crate) struct ProcessEnv;

impl Env for ProcessEnv {
    fn var(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        std::env::var_os(name).map(OsString::into_vec)
    }
}
