use std::io;
use std::path::{Path, PathBuf};

/// Why state cannot be read or written. The text says what an operator can do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {step} {path:?}: {source}")]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error("{path:?} is damaged ({what}); move it away to start with empty state")]
    Damaged { path: PathBuf, what: String },
    #[error(
        "{path:?} was written by a later version (format {format}); use that version or move the file away"
    )]
    LaterFormat { path: PathBuf, format: u32 },
}

impl StoreError {
    /// For `map_err` on an operation with `path`.
    pub(super) fn io(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        let path = path.to_owned();
        move |source| StoreError::Io { step, path, source }
    }
}
