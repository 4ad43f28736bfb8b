//! Pid files that are locked while their process lives, so that a stale one is recognised.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use weave_host::fault_injection;

/// A process that was killed releases its lock and its ports within this time.
pub const EXIT_TIMEOUT: Duration = Duration::from_secs(1);
/// Readers of the holder lock the file for a moment. A caller that starts a process after another one was killed waits
/// before ([`stays_held`]): a process that waited here for longer could start after a `weave reset`.
const LOCK_TIMEOUT: Duration = Duration::from_millis(50);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A pid file held by this process. The lock ends with the process, however it ends; the file goes when this is dropped.
#[derive(Debug)]
pub struct PidFile {
    lock: Flock<File>,
    path: PathBuf,
}

/// Why a pid file cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
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
    pub fn take(path: &Path) -> Result<PidFile, PidFileError> {
        let io = |source| PidFileError::Io { path: path.to_owned(), source };
        let deadline = Instant::now() + LOCK_TIMEOUT;
        fault_injection::io_fail_point(&"taking a pid file").map_err(io)?;
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .mode(0o644)
                .open(path)
                .map_err(io)?;
            let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((_, Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                    std::thread::sleep(POLL_INTERVAL);
                    continue;
                }
                Err((mut file, Errno::EWOULDBLOCK)) => {
                    return Err(PidFileError::Held { pid: read_pid(&mut file), path: path.to_owned() });
                }
                Err((_, errno)) => return Err(io(errno.into())),
            };
            // Its holder may have removed it between our opening and our locking it.
            if !is_at(&lock, path) {
                continue;
            }
            wait_for_exit(read_pid(&mut lock), Instant::now() + EXIT_TIMEOUT);
            // From here on the file goes if something fails.
            let mut held = PidFile { lock, path: path.to_owned() };
            fault_injection::io_fail_point(&"writing a pid file").map_err(io)?;
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

/// The pid of the process that holds `path`; `None` if no process holds it, or the one that does has not written its pid yet.
pub fn holder(path: &Path) -> Option<i32> {
    let mut file = File::open(path).ok()?;
    let pid = read_pid(&mut file);
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Err((_, Errno::EWOULDBLOCK)) => (pid > 0).then_some(pid),
        _ => None,
    }
}

/// Whether `path` is held, and still is after the time that a killed process needs to end.
pub fn stays_held(path: &Path) -> bool {
    let deadline = Instant::now() + EXIT_TIMEOUT;
    while holder(path).is_some() {
        if Instant::now() >= deadline {
            return true;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    false
}

fn read_pid(file: &mut File) -> i32 {
    let mut text = String::new();
    let _ = file.take(32).read_to_string(&mut text);
    text.trim().parse().unwrap_or(0)
}

/// Waits until a process that has released its lock has ended, because it may release its ports after that. The pid may
/// belong to another process by now, so there is a deadline.
fn wait_for_exit(pid: i32, deadline: Instant) {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    while pid > 0 && pid != own && kill(Pid::from_raw(pid), None).is_ok() && Instant::now() < deadline {
        std::thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pid of no process.
    const STALE: &str = "2147483647\n";

    #[test]
    fn only_one_process_holds_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weave.pid");
        assert_eq!(holder(&path), None);
        let me = i32::try_from(std::process::id()).unwrap();
        let held = PidFile::take(&path).unwrap();
        assert_eq!(holder(&path), Some(me));
        assert!(matches!(PidFile::take(&path), Err(PidFileError::Held { pid, .. }) if pid == me));
        drop(held);
        assert!(!path.exists(), "the file is removed by its holder");
        std::fs::write(&path, STALE).unwrap();
        assert_eq!(holder(&path), None, "a stale file is not held");
        assert!(PidFile::take(&path).is_ok());
        assert!(matches!(PidFile::take(&dir.path().join("no/such")), Err(PidFileError::Io { .. })));
    }

    #[test]
    fn killed_process_is_waited_for() {
        use std::os::unix::process::CommandExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weave.pid");
        for _ in 0..20 {
            // Holds the lock as a daemon does: flock(1) has it in a descriptor of its own and of its child.
            let mut child = std::process::Command::new("flock")
                .args([path.as_os_str(), "sleep".as_ref(), "60".as_ref()])
                .process_group(0)
                .spawn()
                .unwrap();
            while !matches!(
                Flock::lock(
                    File::open(&path).unwrap_or_else(|_| File::open("/dev/null").unwrap()),
                    FlockArg::LockSharedNonblock
                ),
                Err((_, Errno::EWOULDBLOCK))
            ) {
                std::thread::yield_now();
            }
            let group = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
            std::fs::write(&path, format!("{group}\n")).unwrap();
            let reaper = std::thread::spawn(move || child.wait());
            nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).unwrap();
            assert!(!stays_held(&path));
            let taken = PidFile::take(&path);
            assert!(taken.is_ok(), "{taken:?}");
            reaper.join().unwrap().unwrap();
        }
    }

    #[test]
    fn reading_the_holder_does_not_prevent_a_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weave.pid");
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    std::fs::write(&path, STALE).unwrap();
                    holder(&path);
                }
            });
            let refused = (0..500).find_map(|_| PidFile::take(&path).err());
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(refused.is_none(), "{refused:?}");
        });
    }

    #[test]
    fn file_of_another_process_is_not_removed() {
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
    fn longer_stale_pid_is_overwritten_completely() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weave.pid");
        std::fs::write(&path, "4194304999999\n").unwrap();
        let _held = PidFile::take(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }
}
