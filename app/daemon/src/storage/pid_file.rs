//! Pid files that are locked while their process lives, so that a stale one is never believed. One whose process has been killed
//! and has not quite ended is waited for: it lets go of lock and ports within milliseconds.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use weave_host::fault_injection;

/// A lock that is still held after this time is somebody's.
const LOCK_TIMEOUT: Duration = Duration::from_millis(50);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// A killed process that has not ended by then hangs in the kernel.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);
/// In the kernel's flags of a task: it lets go of what it has.
const PF_EXITING: u64 = 4;

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
        let mut remaining = LOCK_TIMEOUT;
        wait_for_exit(path);
        loop {
            fault_injection::io_fail_point(&"taking a pid file").map_err(io)?;
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
                Err((_, Errno::EWOULDBLOCK)) if !remaining.is_zero() => {
                    std::thread::sleep(POLL_INTERVAL);
                    remaining = remaining.saturating_sub(POLL_INTERVAL);
                    continue;
                }
                Err((mut file, Errno::EWOULDBLOCK)) => {
                    let pid = read_pid(&mut file);
                    if is_exiting(pid) {
                        wait_for_exit(path);
                        remaining = LOCK_TIMEOUT;
                        continue;
                    }
                    return Err(PidFileError::Held { pid, path: path.to_owned() });
                }
                Err((_, errno)) => return Err(io(errno.into())),
            };
            // Its holder may have removed it between our opening and our locking it.
            if !is_at(&lock, path) {
                continue;
            }
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

/// The pid of the process that holds `path`; `None` if nobody does. A holder that has not written its pid yet is not
/// seen; one that has been killed is waited for until it has let go of everything.
pub fn holder(path: &Path) -> Option<i32> {
    wait_for_exit(path);
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

/// Returns when the process that the file names is not about to end, or takes too long.
fn wait_for_exit(path: &Path) {
    let pid = File::open(path).map_or(0, |mut file| read_pid(&mut file));
    let deadline = Instant::now() + EXIT_TIMEOUT;
    while is_exiting(pid) && Instant::now() < deadline {
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Whether the process has been killed, or is ending by itself, and some thread of it may still hold files.
fn is_exiting(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")).map(|t| t.flatten().map(|t| t.path()))
    else {
        return false;
    };
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    pid > 0
        && threads.into_iter().any(|thread| {
            let stat = read(thread.join("stat"));
            // The name in parentheses may contain anything.
            let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
            let alive = fields.next().is_some_and(|state| !matches!(state, "Z" | "X"));
            let ending =
                fields.nth(5).and_then(|f| f.parse::<u64>().ok()).is_some_and(|f| f & PF_EXITING != 0);
            alive && (ending || is_killed(&read(thread.join("status"))))
        })
}

/// Whether SIGKILL waits for a thread, or for all of them (proc(5), `SigPnd` and `ShdPnd`).
fn is_killed(status: &str) -> bool {
    let masks = status.lines().filter_map(|l| l.strip_prefix("SigPnd:").or(l.strip_prefix("ShdPnd:")));
    let kill = 1 << (nix::libc::SIGKILL - 1);
    masks.filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok()).any(|mask| mask & kill != 0)
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
        assert!(matches!(PidFile::take(&path), Err(PidFileError::Held { pid, .. }) if pid == me));
        drop(held);
        assert!(!path.exists(), "it goes with its holder");
        std::fs::write(&path, "1\n").unwrap();
        assert_eq!(holder(&path), None, "a stale file is nobody's");
        assert!(PidFile::take(&path).is_ok());
        assert!(matches!(PidFile::take(&dir.path().join("no/such")), Err(PidFileError::Io { .. })));
    }

    #[test]
    fn the_killed_are_waited_for() {
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
            nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).unwrap();
            let taken = PidFile::take(&path);
            assert!(taken.is_ok(), "{taken:?}");
            child.wait().unwrap();
        }
        assert!(
            !is_exiting(i32::try_from(std::process::id()).unwrap())
                && !is_exiting(0)
                && !is_exiting(i32::MAX)
        );
        assert!(is_killed("Name:\tx\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n"));
        assert!(!is_killed(
            "SigPnd:\t0000000000000000\nShdPnd:\t0000000000004000\nSigBlk:\t0000000000000100\n"
        ));
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
