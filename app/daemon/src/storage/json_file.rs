//! A small JSON document with a format number, replaced as a whole.

use std::fs;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use weave_host::files;

use super::StoreError;

const MODE: u32 = 0o600;

/// `None` if the file does not exist.
pub(super) fn read<T: DeserializeOwned>(
    path: &Path,
    format: u32,
    max_size: u64,
) -> Result<Option<T>, StoreError> {
    let damaged = |what: String| StoreError::Damaged { path: path.to_owned(), what };
    match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StoreError::io("read", path)(e)),
        Ok(meta) if meta.len() > max_size => return Err(damaged("too large".to_owned())),
        Ok(_) => {}
    }
    let text = fs::read(path).map_err(StoreError::io("read", path))?;
    #[derive(Deserialize)]
    struct Header {
        format: u32,
    }
    let header: Header = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
    if header.format != format {
        return Err(StoreError::LaterFormat { path: path.to_owned(), format: header.format });
    }
    serde_json::from_slice(&text).map(Some).map_err(|e| damaged(e.to_string()))
}

pub(super) fn write(path: &Path, content: &impl Serialize) -> Result<(), StoreError> {
    files::write_atomically(path, &encode(path, content)?, MODE).map_err(StoreError::io("write", path))
}

/// Finds out whether [`write()`] would succeed.
pub(super) fn check_writable(path: &Path, content: &impl Serialize) -> Result<(), StoreError> {
    files::check_writable(path, &encode(path, content)?, MODE).map_err(StoreError::io("write", path))
}

fn encode(path: &Path, content: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    let mut text =
        serde_json::to_vec(content).map_err(|e| StoreError::io("encode", path)(io::Error::other(e)))?;
    text.push(b'\n');
    Ok(text)
}
