//! The daemon as a process of its own, with or without a supervisor above it.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weave_daemon::config::LogFile;
use weave_host::fault_injection;

use super::files;
use super::manager::{LaunchRequest, ServiceManager};
use crate::Failure;

/// A daemon that is stopped is killed after this time.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Process<'a> {
    request: &'a LaunchRequest<'a>,
    log: LogFile,
    child: Option<Child>,
    /// Whether it was killed once, and started again.
    restarted: bool,
    note: Option<String>,
}

impl<'a> Process<'a> {
    pub(super) fn new(request: &'a LaunchRequest<'a>, note: Option<String>) -> Process<'a> {
        let log = request.config.log_file.clone().unwrap_or_else(|| LogFile {
            path: format!("{}.log", request.named("/var/log/weave")).into(),
            max_size: 0,
            keep: 0,
        });
        Process { request, log, child: None, restarted: false, note }
    }
}

impl ServiceManager for Process<'_> {
    fn start(&mut self) -> Result<(), Failure> {
        // No file of the caller stays open. What the daemon prints before it opens its log goes there, too.
        let path = &self.log.path;
        let log = fault_injection::io_fail_point(&"opening the log file")
            .and_then(|()| std::fs::OpenOptions::new().create(true).append(true).open(path));
        let log = log.map_err(|e| files::failed("open the log file", path, &e))?;
        let second = log.try_clone()?;
        let mut options = self.request.options();
        options.set("log-file", path.to_string_lossy());
        let supervise = self.request.restart && self.request.parsed.text("service") != Some("none");
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("supervise")
            .args(supervise.then_some("--restart"))
            .args(options.canonical())
            .arg("--")
            .args(&self.request.parsed.rest)
            .env_remove("WEAVE_PASSWORD")
            .env_remove("NOTIFY_SOCKET")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::from(log))
            .stderr(Stdio::from(second));
        let child = fault_injection::io_fail_point(&"starting the daemon")
            .and_then(|()| command.spawn())
            .map_err(|e| Failure::new(1, format_args!("cannot start the daemon: {e}")))?;
        self.child = Some(child);
        Ok(())
    }

    fn exit_reason(&mut self) -> Result<Option<String>, Failure> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let log = self.log.path.display();
        let Some(status) = child.try_wait()? else { return Ok(None) };
        // Another process killed it; the next start completes what it began.
        if status.signal() == Some(Signal::SIGKILL as i32) && !std::mem::replace(&mut self.restarted, true) {
            self.start()?;
            return Ok(None);
        }
        Ok(Some(format!("the daemon ended before it was ready ({status}); see {log}")))
    }

    fn roll_back(&mut self) {
        let Some(child) = &mut self.child else { return };
        let Ok(pid) = i32::try_from(child.id()) else { return };
        let deadline = Instant::now() + STOP_TIMEOUT;
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        while let Ok(None) = child.try_wait() {
            if Instant::now() > deadline {
                let _ = child.kill();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn note(&self) -> Option<String> {
        self.note.clone()
    }
}
