//! `weave supervise [--restart] <arguments of weave daemon>`: the process that `weave launch` leaves running where neither systemd nor
//! Docker runs the daemon.
//!
//! It starts a session of its own and in it the daemon. With `--restart` it stays: it starts the daemon again after a crash, and
//! passes signals on. The daemon's state is on disk. `launch` creates a file that makes the first daemon use its arguments instead;
//! the daemon removes it when it is ready.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weave_daemon::{log, pid_file};

use crate::env::Env;
use crate::options;
use crate::signals::Signals;
use crate::{Failure, args, commands};

/// Delay before the second restart; it doubles with each restart up to [`MAX_RESTART_DELAY`]. The first one is not delayed: containers
/// wait for it.
const MIN_RESTART_DELAY: Duration = Duration::from_millis(100);
const MAX_RESTART_DELAY: Duration = Duration::from_secs(30);
/// After a crash of a daemon that ran this long the delay begins again: starting it again and again costs little then, and frames pass
/// most of the time.
const STABLE_TIME: Duration = Duration::from_secs(3);

pub(crate) fn run(args: &[String], env: &dyn Env) -> Result<(), Failure> {
    let (restart, args) = match args.split_first() {
        Some((first, rest)) if first == "--restart" => (true, rest),
        _ => (false, args),
    };
    let parsed = args::parse(commands::daemon(), args)?;
    let config = options::config(&parsed, env, "")?;
    // Fails only if this process leads a group already, and then it has no terminal.
    let _ = nix::unistd::setsid();
    if !restart {
        weave_host::fault_injection::io_fail_point(&"becoming the daemon")?;
        return Err(Command::new(std::env::current_exe()?).arg("daemon").args(args).exec().into());
    }
    // The daemon inherits the mask and clears it.
    let signals = Signals::block(&[Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD])?;
    if let Some(file) = &config.log_file {
        log::to_file(file)?;
    }
    let _lock = pid_file::PidFile::take(&config.run_dir.join("supervisor.pid"))?;

    let never_ready = config.fresh_file();
    let (mut delay, mut killed) = (Duration::ZERO, false);
    loop {
        let begin = Instant::now();
        weave_host::fault_injection::io_fail_point(&"starting the daemon")?;
        let mut child = Command::new(std::env::current_exe()?).arg("daemon").args(args).spawn()?;
        let (status, signalled) = wait_for_child(&mut child, &signals)?;
        if signalled || status.success() {
            return Ok(());
        }
        if never_ready.exists() {
            if status.signal() == Some(Signal::SIGKILL as i32) && !std::mem::replace(&mut killed, true) {
                // Another process killed it; the next_signal start completes what it began.
                continue;
            }
            // It was never ready, and has reported the reason to `launch`.
            return Err(Failure::new(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1), ""));
        }
        if begin.elapsed() >= STABLE_TIME {
            delay = Duration::ZERO;
        }
        let when = if delay.is_zero() { "now".to_owned() } else { format!("in {delay:?}") };
        log::line("WARN", &format!("the daemon ended ({status}); starting it again {when}"));
        if wait_or_signal(&signals, delay)? {
            return Ok(());
        }
        delay = (delay * 2).clamp(MIN_RESTART_DELAY, MAX_RESTART_DELAY);
    }
}

/// Waits for the child's end; also returns whether a signal asked for it.
fn wait_for_child(child: &mut Child, signals: &Signals) -> Result<(std::process::ExitStatus, bool), Failure> {
    let mut signalled = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, signalled));
        }
        // SIGCHLD ends the wait; SIGHUP has no meaning without a terminal.
        if let Some(signal @ (Signal::SIGTERM | Signal::SIGINT)) = signals.next(PollTimeout::NONE)? {
            signalled = true;
            let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
        }
    }
}

/// Waits for `time`; returns `true` if a signal asks this process to end.
fn wait_or_signal(signals: &Signals, time: Duration) -> Result<bool, Failure> {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        // Rounded up: a timeout of 0 ms would not wait.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        if let Some(Signal::SIGTERM | Signal::SIGINT) = signals.next(timeout)? {
            return Ok(true);
        }
    }
}
