//! Network namespaces for tests. They disappear with their last descriptor.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace with loopback up.
pub(crate) struct Namespace(File);

impl Namespace {
    /// Creates a namespace; `None`, with a message, without the rights to do so.
    pub(crate) fn new() -> Option<Namespace> {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net").map_err(|_| nix::Error::ENOENT)
        });
        match made.join().expect("the thread does not panic") {
            Ok(file) => {
                let namespace = Namespace(file);
                namespace.sh("ip link set lo up");
                Some(namespace)
            }
            Err(error) => {
                eprintln!("SKIPPED: cannot make a network namespace: {error}");
                None
            }
        }
    }

    /// Runs `work` on a thread inside the namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = || {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("entering our own namespace");
                work()
            };
            scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs shell commands inside the namespace; they must succeed.
    pub(crate) fn sh(&self, script: &str) -> String {
        self.run(|| {
            let output = Command::new("sh").args(["-e", "-c", script]).output().expect("sh exists");
            assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    /// A path for `ip link set .. netns`.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}
