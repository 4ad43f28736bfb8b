//! Pid files that are locked while their process lives, so that a stale one is never believed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use weave_host::faults;

/// A lock that is still held after this time is somebody's.
const PATIENCE: Duration = Duration::from_millis(50);
const PAUSE: Duration = Duration::from_millis(5);

/// A pid file held by this process. The lock ends with the process, however it ends; the file goes when this is dropped.
#[derive(Debug)]
pub struct PidFile {
    lock: Flock<File>,
    path: PathBuf,
}

/// Why a pid file cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The other process lives.
    #[error("{path:?} is held by process {pid}")]
    Held {
        /// Its pid; 0 if it has not written it yet.
        pid: i32,
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error("cannot write pid file {path:?}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl PidFile {
    /// Locks `path` and writes our pid into it.
    ///
    /// # Errors
    /// Another process holds it, or it cannot be written.
    pub fn take(path: &Path) -> Result<PidFile, LockError> {
        let io = |source| LockError::Io { path: path.to_owned(), source };
        let mut patience = PATIENCE;
        loop {
            faults::io_point(&"taking a pid file").map_err(io)?;
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .mode(0o644)
                .open(path)
                .map_err(io)?;
            let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                // Whoever asks for the holder holds it for a moment.
                Err((_, Errno::EWOULDBLOCK)) if !patience.is_zero() => {
                    std::thread::sleep(PAUSE);
                    patience = patience.saturating_sub(PAUSE);
                    continue;
                }
                Err((mut file, Errno::EWOULDBLOCK)) => {
                    return Err(LockError::Held { pid: read_pid(&mut file), path: path.to_owned() });
                }
                Err((_, errno)) => return Err(io(errno.into())),
            };
            // Its holder may have removed it between our opening and our locking it.
            if !is_at(&lock, path) {
                continue;
            }
            // From here on the file goes if something fails.
            let mut held = PidFile { lock, path: path.to_owned() };
            faults::io_point(&"writing a pid file").map_err(io)?;
            held.lock.set_len(0).map_err(io)?;
            held.lock.rewind().map_err(io)?;
            held.lock.write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(io)?;
            return Ok(held);
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // While it is still locked: the next one makes its own.
        if is_at(&self.lock, &self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether `path` leads to this very file.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// The pid of the process that holds `path`; `None` if nobody does. A holder that has not written its pid yet is not
/// seen.
pub fn holder(path: &Path) -> Option<i32> {
    let mut file = File::open(path).ok()?;
    let pid = read_pid(&mut file);
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_free) => None,
        Err((_, Errno::EWOULDBLOCK)) => (pid > 0).then_some(pid),
        Err(_) => None,
    }
}

fn read_pid(file: &mut File) -> i32 {
    let mut text = String::new();
    let _ = file.take(32).read_to_string(&mut text);
    text.trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weave.pid");
        assert_eq!(holder(&path), None);
        let me = i32::try_from(std::process::id()).unwrap();
        let held = PidFile::take(&path).unwrap();
        assert_eq!(holder(&path), Some(me));
        assert!(matches!(PidFile::take(&path), Err(LockError::Held { pid, .. }) if pid == me));
        drop(held);
        assert!(!path.exists(), "it goes with its holder");
        std::fs::write(&path, "1\n").unwrap();
        assert_eq!(holder(&path), None, "a stale file is nobody's");
        assert!(PidFile::take(&path).is_ok());
        assert!(matches!(PidFile::take(&dir.path().join("no/such")), Err(LockError::Io { .. })));
    }

    #[test]
    fn whoever_looks_does_not_keep_others_from_starting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weave.pid");
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    std::fs::write(&path, "1\n").unwrap();
                    holder(&path);
                }
            });
            let refused = (0..500).find_map(|_| PidFile::take(&path).err());
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(refused.is_none(), "{refused:?}");
        });
    }

    #[test]
    fn a_file_that_another_has_put_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weave.pid");
        let first = PidFile::take(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = PidFile::take(&path).unwrap();
        drop(first);
        assert!(path.exists());
        assert!(holder(&path).is_some());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_longer_stale_pid_leaves_no_digits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weave.pid");
        std::fs::write(&path, "4194304999999\n").unwrap();
        let _held = PidFile::take(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }
}
