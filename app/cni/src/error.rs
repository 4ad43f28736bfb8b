use serde::Serialize;

use crate::Version;

/// Codes of errors. 2.8.1 had 100 for everything but a version that it did not speak, and so it stays; the others belong to requests
/// that it did not know.
pub mod code {
    /// The version of the configuration is not spoken.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// The configuration lacks something.
    pub const INVALID_CONFIG: u32 = 7;
    /// The daemon does not run or does not answer; the same request may succeed later.
    pub const TRY_AGAIN: u32 = 11;
    /// Answer to `STATUS`: `ADD` would fail.
    pub const NOT_AVAILABLE: u32 = 50;
    /// Answer to `STATUS`: `ADD` would fail, and containers may not reach others.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// Everything else.
    pub const OTHER: u32 = 100;
}

/// Why a request fails, as the runtime reads it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}")]
pub struct Error {
    /// See [`code`].
    pub code: u32,
    /// What went wrong.
    pub msg: String,
    /// More about it, or nothing.
    pub details: String,
}

impl Error {
    /// An error without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Error {
        Error { code, msg: msg.into(), details: String::new() }
    }

    pub(crate) fn other(msg: impl Into<String>) -> Error {
        Error::new(code::OTHER, msg)
    }

    /// JSON as the runtime reads it, without a final newline.
    pub fn to_json(&self, version: Version) -> String {
        #[derive(Serialize)]
        struct Content<'a> {
            #[serde(rename = "cniVersion", skip_serializing_if = "Option::is_none")]
            cni_version: Option<&'static str>,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        let Error { code, msg, details } = self;
        crate::json::indented(&Content { cni_version: version.field(), code: *code, msg, details })
    }
}
