//! What survives a restart: one small JSON file, replaced as a whole.
//!
//! ```text
//! /var/lib/weave/peer.json   {"format":1,"name":"8a:..","targets":["h2"],"short_id":7,"version_ceiling":4096}
//! ```
//!
//! A write goes to a temporary file that is synced, renamed over the old one, and made final by syncing the directory:
//! after a crash at any point the file is the old one or the new one. The state of another peer name counts for the
//! targets only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weave_host::fault_injection;
use weave_types::{PeerName, ShortId};

/// Name of the file in the state directory.
pub const FILE_NAME: &str = "peer.json";
/// Layout of the file; a daemon refuses what a later one wrote.
const FORMAT: u32 = 1;
/// No state is nearly as large.
const MAX_SIZE: u64 = 16 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    format: u32,
    name: Option<String>,
    #[serde(default)]
    targets: Vec<String>,
    /// Peers that the last start that took its arguments was given; `targets` are later.
    #[serde(default)]
    launched_with: Option<Vec<String>>,
    #[serde(default)]
    short_id: Option<u16>,
    #[serde(default)]
    version_ceiling: u64,
    #[serde(default, skip_serializing_if = "Original::is_empty")]
    original: Original,
}

/// What was taken over from 2.8.1. It is the host's, whatever the peer's name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Original {
    /// Digest of its database.
    pub digest: Option<String>,
    /// File of its database.
    pub path: Option<PathBuf>,
    /// Its set-up, in the words of `weave bridge-type`.
    pub bridge: Option<String>,
}

impl Original {
    fn is_empty(&self) -> bool {
        *self == Original::default()
    }
}

/// The file and its content.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    state: State,
    /// The directory was not there before.
    created: bool,
}

/// Why the state cannot be read or written. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The kernel refused.
    #[error("cannot {step} {path:?}: {source}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Not our file, or damaged.
    #[error("{path:?} is damaged ({what}); move it away to start with empty state")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A later version's.
    #[error(
        "{path:?} was written by a later version (format {format}); use that version or move the file away"
    )]
    Later {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
}

impl Store {
    /// Opens the state in `dir` for the peer `name`; makes the directory. Tries to write, so that a read-only or full
    /// disk is found out before anything depends on it, but changes nothing yet.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open(dir: &Path, name: PeerName) -> Result<Store, StoreError> {
        let created = !dir.exists();
        let step = |step, path: &Path, source| StoreError::Io { step, path: path.to_owned(), source };
        fault_injection::io_fail_point(&"making the state directory")
            .and_then(|()| fs::DirBuilder::new().recursive(true).mode(0o700).create(dir))
            .map_err(|e| step("create directory", dir, e))?;
        let mut state = read(&dir.join(FILE_NAME))?.unwrap_or_default();
        if state.name.as_deref() != Some(name.to_string().as_str()) {
            (state.short_id, state.version_ceiling) = (None, 0);
        }
        state.name = Some(name.to_string());
        state.format = FORMAT;
        let store = Store { dir: dir.to_owned(), state, created };
        let temporary = store.write_temporary()?;
        fs::remove_file(&temporary).map_err(|e| step("remove", &temporary, e))?;
        Ok(store)
    }

    /// Takes the directory back if it was made here and nothing was stored.
    pub fn abandon(self) {
        if self.created {
            // Only an empty one goes.
            let _ = fs::remove_dir(&self.dir);
        }
    }

    /// Peers to connect to, as typed.
    pub fn targets(&self) -> &[String] {
        &self.state.targets
    }

    /// Whether the last run was started with these peers: another start with them continues it, with the stored targets
    /// instead (docs/spec/cli.md 4.4).
    pub fn continues(&self, peers: &[String]) -> bool {
        self.state.launched_with.as_deref() == Some(peers)
    }

    /// Notes what this run was started with.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn set_launched_with(&mut self, peers: &[String]) -> Result<(), StoreError> {
        if self.continues(peers) {
            return Ok(());
        }
        self.state.launched_with = Some(peers.to_vec());
        self.write()
    }

    /// What was taken over from 2.8.1.
    pub fn original(&self) -> &Original {
        &self.state.original
    }

    /// What is stored in `dir` about 2.8.1, without opening the state for a peer.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn read_original(dir: &Path) -> Result<Original, StoreError> {
        Ok(read(&dir.join(FILE_NAME))?.unwrap_or_default().original)
    }

    /// Replaces it.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn set_original(&mut self, original: Original) -> Result<(), StoreError> {
        self.state.original = original;
        self.write()
    }

    /// Our short id of the last run.
    pub fn short_id(&self) -> Option<ShortId> {
        self.state.short_id.and_then(ShortId::new)
    }

    /// The version that a new run begins at.
    pub fn version_ceiling(&self) -> u64 {
        self.state.version_ceiling
    }

    /// Replaces the targets. What failed to be written goes out with the next change.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn set_targets(&mut self, targets: Vec<String>) -> Result<(), StoreError> {
        self.state.targets = targets;
        self.write()
    }

    /// Replaces the short id.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn set_short_id(&mut self, id: ShortId) -> Result<(), StoreError> {
        self.state.short_id = Some(id.get());
        self.write()
    }

    /// Raises the ceiling; it never sinks.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn set_version_ceiling(&mut self, ceiling: u64) -> Result<(), StoreError> {
        self.state.version_ceiling = self.state.version_ceiling.max(ceiling);
        self.write()
    }

    fn write(&self) -> Result<(), StoreError> {
        let temporary = self.write_temporary()?;
        let path = self.dir.join(FILE_NAME);
        let replaced = fault_injection::io_fail_point(&"replacing the state")
            .and_then(|()| fs::rename(&temporary, &path));
        if let Err(e) = replaced {
            let _ = fs::remove_file(&temporary);
            return Err(failed("replace", &path)(e));
        }
        fault_injection::io_fail_point(&"syncing the state").map_err(failed("sync directory", &self.dir))?;
        File::open(&self.dir).and_then(|d| d.sync_all()).map_err(failed("sync directory", &self.dir))
    }

    /// The state in a file beside the real one, synced.
    fn write_temporary(&self) -> Result<PathBuf, StoreError> {
        let temporary = self.dir.join(".peer.json.new");
        fault_injection::io_fail_point(&"writing the state").map_err(failed("write", &temporary))?;
        let mut text =
            serde_json::to_vec(&self.state).map_err(|e| failed("encode", &temporary)(io::Error::other(e)))?;
        text.push(b'\n');
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(failed("write", &temporary))?;
        let written = file.write_all(&text).map_err(failed("write", &temporary));
        if let Err(e) = written.and_then(|()| file.sync_all().map_err(failed("sync", &temporary))) {
            // On a full disk it would take what little room there is.
            let _ = fs::remove_file(&temporary);
            return Err(e);
        }
        Ok(temporary)
    }
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { step, path, source }
}

fn read(path: &Path) -> Result<Option<State>, StoreError> {
    let io = |source| StoreError::Io { step: "read", path: path.to_owned(), source };
    let damaged = |what: String| StoreError::Damaged { path: path.to_owned(), what };
    match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
        Ok(meta) if meta.len() > MAX_SIZE => return Err(damaged("too large".to_owned())),
        Ok(_) => {}
    }
    let text = fs::read(path).map_err(io)?;
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    let head: Head = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
    if head.format != FORMAT {
        return Err(StoreError::Later { path: path.to_owned(), format: head.format });
    }
    serde_json::from_slice(&text).map(Some).map_err(|e| damaged(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: u64) -> PeerName {
        PeerName::from_number(n).unwrap()
    }

    #[test]
    fn comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made");
        let store = Store::open(&path, name(1)).unwrap();
        assert_eq!((store.targets(), store.short_id(), store.version_ceiling()), (&[][..], None, 0));
        store.abandon();
        assert!(!path.exists(), "nothing was stored");
        let mut store = Store::open(&path, name(1)).unwrap();
        store.set_targets(vec!["h2".into(), "h3:7000".into()]).unwrap();
        store.set_short_id(ShortId::new(0).unwrap()).unwrap();
        store.set_version_ceiling(4096).unwrap();
        store.set_version_ceiling(7).unwrap();
        store.abandon();
        let store = Store::open(&path, name(1)).unwrap();
        assert_eq!(store.targets(), ["h2", "h3:7000"]);
        assert_eq!((store.short_id(), store.version_ceiling()), (ShortId::new(0), 4096));
        let other = Store::open(&path, name(2)).unwrap();
        assert_eq!(other.targets(), ["h2", "h3:7000"], "where to connect is not the name's");
        assert_eq!((other.short_id(), other.version_ceiling()), (None, 0));
    }

    #[test]
    fn a_crash_while_writing_leaves_the_old_state() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path(), name(1)).unwrap();
        store.set_targets(vec!["h2".into()]).unwrap();
        let good = fs::read(dir.path().join(FILE_NAME)).unwrap();
        // Before the rename only the temporary file is touched: cut it anywhere.
        for cut in 0..good.len() {
            fs::write(dir.path().join(".peer.json.new"), &good[..cut]).unwrap();
            assert_eq!(Store::open(dir.path(), name(1)).unwrap().targets(), ["h2"]);
        }
    }

    #[test]
    fn a_damaged_file_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        for text in ["", "{", "[]", "{\"format\":1,\"targets\":3}", "\0\0\0"] {
            fs::write(&path, text).unwrap();
            let error = Store::open(dir.path(), name(1)).unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. }), "{text}: {error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        fs::write(&path, "{\"format\":9,\"new\":[]}").unwrap();
        let error = Store::open(dir.path(), name(1)).unwrap_err();
        assert!(matches!(error, StoreError::Later { format: 9, .. }), "{error}");
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Store::open(&file, name(1)).unwrap_err();
        assert!(error.to_string().starts_with("cannot create directory"), "{error}");
    }

    #[test]
    fn a_failed_write_goes_out_with_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path(), name(1)).unwrap();
        // A directory in the way of the temporary file fails for root, too.
        let temporary = dir.path().join(".peer.json.new");
        fs::create_dir(&temporary).unwrap();
        assert!(store.set_targets(vec!["h2".into()]).is_err());
        fs::remove_dir(&temporary).unwrap();
        store.set_version_ceiling(5).unwrap();
        assert_eq!(Store::open(dir.path(), name(1)).unwrap().targets(), ["h2"]);
    }
}
