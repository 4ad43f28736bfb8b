//! `weave supervise [--restart] <arguments of weave daemon>`: what `weave launch` leaves running.
//!
//! A session of its own, and in it the daemon. With `--restart` this process stays: it starts the daemon again when it
//! crashes, and passes signals on. What the daemon knew is on disk; the file by which `launch` tells the first one to
//! take its arguments is gone once that has been ready.

use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use weave_daemon::{log, pid_file};

use crate::options::{self, Env};
use crate::{Failure, args, commands};

/// Wait before the first new start; doubled with each, up to the limit.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait.
const LAST_WAIT: Duration = Duration::from_secs(30);
/// A daemon that ran this long is new trouble when it crashes.
const STABLE: Duration = Duration::from_secs(60);

pub(crate) fn run(args: &[String], env: &dyn Env) -> Result<(), Failure> {
    let (restart, args) = match args.split_first() {
        Some((first, rest)) if first == "--restart" => (true, rest),
        _ => (false, args),
    };
    let parsed = args::parse(commands::daemon(), args)?;
    let config = options::config(&parsed, env, "")?;
    // Only fails if we lead a group already, and then nobody's terminal is ours.
    let _ = nix::unistd::setsid();
    if !restart {
        // Nothing to supervise: become the daemon.
        weave_host::fault_injection::io_fail_point(&"becoming the daemon")?;
        return Err(Command::new(std::env::current_exe()?).arg("daemon").args(args).exec().into());
    }
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        signals.add(signal);
    }
    // The daemon inherits the mask and clears it.
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    if let Some(file) = &config.log_file {
        log::to_file(file)?;
    }
    let _lock = pid_file::PidFile::take(&config.run_dir.join("supervisor.pid"))?;

    let never_ready = config.fresh_file();
    let (mut delay, mut killed) = (FIRST_WAIT, false);
    loop {
        let begin = Instant::now();
        weave_host::fault_injection::io_fail_point(&"starting the daemon")?;
        let mut child = Command::new(std::env::current_exe()?).arg("daemon").args(args).spawn()?;
        let (status, told_to_end) = attend(&mut child, &signals)?;
        if told_to_end || status.success() {
            return Ok(());
        }
        if never_ready.exists() {
            if status.signal() == Some(Signal::SIGKILL as i32) && !std::mem::replace(&mut killed, true) {
                // Nobody's reason; the next one completes what it began.
                continue;
            }
            // It never was ready: whoever launched it has the reason.
            return Err(Failure::new(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1), ""));
        }
        if begin.elapsed() >= STABLE {
            delay = FIRST_WAIT;
        }
        log::line("WARN", &format!("the daemon ended ({status}); starting it again in {delay:?}"));
        if pause(&signals, delay)? {
            return Ok(());
        }
        delay = (delay * 2).min(LAST_WAIT);
    }
}

/// Waits for the child's end; whether we were told to end it.
fn attend(child: &mut Child, signals: &SignalFd) -> Result<(std::process::ExitStatus, bool), Failure> {
    let mut told = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, told));
        }
        if let Some(signal) = next(signals, None)? {
            told = true;
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
            let _ = kill(pid, signal);
        }
    }
}

/// Sleeps; `true` if told to end meanwhile.
fn pause(signals: &SignalFd, time: Duration) -> Result<bool, Failure> {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        if next(signals, Some(left))?.is_some() {
            return Ok(true);
        }
    }
}

/// The next signal that asks us to end; `None` at the timeout or when it may pay to look at the child.
fn next(signals: &SignalFd, timeout: Option<Duration>) -> Result<Option<Signal>, Failure> {
    let timeout = match timeout {
        None => PollTimeout::NONE,
        Some(t) => PollTimeout::try_from(t + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
    };
    let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(e) => return Err(e.into()),
    }
    while let Some(info) = signals.read_signal()? {
        // A hang-up has no meaning without a terminal; a child's end is looked for by the caller.
        let signal = Signal::try_from(i32::try_from(info.ssi_signo).unwrap_or(0));
        if let Ok(signal @ (Signal::SIGTERM | Signal::SIGINT)) = signal {
            return Ok(Some(signal));
        }
    }
    Ok(None)
}
