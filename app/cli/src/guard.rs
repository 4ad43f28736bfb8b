//! Commands that change the host in their own process have a second one, which sees to it that what they began is finished.
//!
//! The process that the user started only waits; its child, the worker, does the work. Whichever of the two is killed, the other
//! one is left: without the first the worker goes on to its end, and if the worker is killed the command is done once more, as
//! the next such command would do it. A call that still waits for the daemon ends with the process that the user knows.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getppid};
use weave_host::critical;

use crate::{Failure, notice};

/// Commands that change the host themselves. The others have the daemon do it, in one piece.
const COMMANDS: [&str; 4] = ["attach", "detach", "launch", "reset"];
/// Of these, the ones that wait for the daemon before they change anything.
const WAITING: [&str; 2] = ["attach", "detach"];
/// What a worker is called, up to its parent's process id and a bracket.
const WORKER: &str = "weave (of ";
/// A signal for both of a terminal's processes has reached the worker by then.
const GRACE: Duration = Duration::from_millis(200);

/// Runs a command in a worker. `None`: it is not one of these, or this is the worker.
pub(crate) fn run(program: &str, args: &[String]) -> Option<ExitCode> {
    let command = args.iter().find(|a| *a != "--local")?;
    if !COMMANDS.contains(&command.as_str()) || !nix::unistd::geteuid().is_root() {
        return None;
    }
    if let Some(parent) = program.strip_prefix(WORKER).and_then(|rest| rest.strip_suffix(')')) {
        if WAITING.contains(&command.as_str()) {
            begin_waiting(parent);
        }
        return None;
    }
    // Without a second process it is done in this one.
    let first = watch(&mut worker(args)).ok()?;
    let status = match first.signal().and_then(|n| Signal::try_from(n).ok()) {
        Some(Signal::SIGKILL) => {
            notice(format_args!("weave {command} was killed, and is done again"));
            let mut again = worker(args);
            // A test's plan is for the first.
            again.env_remove("WEAVE_FAULT");
            watch(&mut again)
        }
        _ => Ok(first),
    };
    Some(match status {
        Ok(status) => ExitCode::from(code(status)),
        Err(e) => {
            let failure =
                Failure::new(1, format_args!("weave {command} was killed, and cannot be done again: {e}"));
            notice(&failure.message);
            ExitCode::from(failure.code)
        }
    })
}

/// As a shell would tell it.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or(status.signal().map(|n| 128 + n)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

fn begin_waiting(parent: &str) {
    let _ = critical::end_with_parent();
    if getppid().to_string() != parent {
        // It has ended already: nobody waits for this any more.
        std::process::exit(128 + Signal::SIGTERM as i32);
    }
}

fn worker(args: &[String]) -> Command {
    // The path is gone if the program was replaced meanwhile.
    let own = std::env::current_exe().ok().filter(|path| path.exists());
    let mut command = Command::new(own.unwrap_or_else(|| "/proc/self/exe".into()));
    command.arg0(format!("{WORKER}{})", std::process::id())).args(args);
    command
}

/// Starts it and waits for its end. Signals to end go on to it.
fn watch(command: &mut Command) -> io::Result<ExitStatus> {
    let mut child = command.spawn()?;
    let mut set = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD].into_iter().for_each(|s| set.add(s));
    // Only now, or the child would have them blocked, too.
    let fd = set
        .thread_block()
        .and_then(|()| SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK));
    let Ok(fd) = fd else { return child.wait() };
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        let Some(signal) = next(&fd, PollTimeout::NONE) else { continue };
        if signal != Signal::SIGCHLD && !ends(&mut child, &fd)? {
            let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
            // It may have ended this moment.
            let _ = kill(pid, signal);
        }
    }
}

/// Whether the child ends within the grace.
fn ends(child: &mut Child, fd: &SignalFd) -> io::Result<bool> {
    let grace = PollTimeout::try_from(GRACE).unwrap_or(PollTimeout::ZERO);
    while child.try_wait()?.is_none() {
        if next(fd, grace) != Some(Signal::SIGCHLD) {
            return Ok(child.try_wait()?.is_some());
        }
    }
    Ok(true)
}

fn next(fd: &SignalFd, patience: PollTimeout) -> Option<Signal> {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, patience).ok()?;
    let info = fd.read_signal().ok()??;
    Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()
}
