//! Calls that may wait for other peers: a person is shown what is waited for, and whoever breaks one off is told why it waited.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use weave_api::{Client, ClientError};

use crate::{Failure, notice};

/// After this long a person is told what is waited for.
const PATIENCE: Duration = Duration::from_millis(700);
/// How often it is looked for an answer, and how often for the reason.
const LOOK: Duration = Duration::from_millis(20);
const ASK: Duration = Duration::from_secs(2);
/// Longest wait for the reason.
const REASON: Duration = Duration::from_secs(2);

/// Why there is no good answer.
pub(crate) enum Problem {
    /// The daemon said so, or cannot be reached.
    Client(ClientError),
    /// Somebody broke it off; the text says what it waited for.
    BrokenOff(Failure),
}

/// Whom to ask, and what is waited for.
pub(crate) struct Waiter<'a> {
    client: &'a Client,
    what: String,
}

impl<'a> Waiter<'a> {
    /// `what`: as in "waiting for ...".
    pub(crate) fn new(client: &'a Client, what: &str) -> Waiter<'a> {
        Waiter { client, what: what.to_owned() }
    }

    /// Why the daemon has no answer yet; empty if it does not say.
    fn reason(&self) -> String {
        let text = self.client.clone().impatient(REASON).get("/ipinfo/waiting").unwrap_or_default();
        text.trim_end().to_owned()
    }
}

/// One call; its body if the status is good. The connection is closed, and with it the request given up, when a signal ends the
/// wait: its process ends soon.
pub(crate) fn call(
    waiter: &Waiter<'_>,
    method: &'static str,
    path: &str,
    form: &[(&str, &str)],
) -> Result<String, Problem> {
    weave_host::fault_injection::io_fail_point(&format_args!("asking the daemon: {method} {path}"))
        .map_err(|e| Problem::BrokenOff(e.into()))?;
    let signals = if weave_host::critical::entered() { None } else { Signals::block() };
    let (answer, result) = mpsc::channel();
    let client = waiter.client.clone();
    let owned: Vec<_> = form.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let path = path.to_owned();
    std::thread::spawn(move || {
        let form: Vec<_> = owned.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let _ = answer.send(client.request(method, &path, &[], &form));
    });
    let begin = Instant::now();
    let terminal = std::io::stderr().is_terminal();
    let (mut told, mut ask_at) = (String::new(), PATIENCE);
    let answer = loop {
        match result.recv_timeout(LOOK) {
            Ok(answer) => break answer,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(Problem::BrokenOff(Failure::new(1, "the call ended without an answer")));
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        if let Some(signal) = signals.as_ref().and_then(Signals::next) {
            let reason = waiter.reason();
            let mut text = format!("broken off while waiting for {}", waiter.what);
            reason.lines().for_each(|line| text.push_str(&format!("\n  waiting for {line}")));
            return Err(Problem::BrokenOff(Failure::new(128 + signal, text)));
        }
        if terminal && begin.elapsed() > ask_at {
            ask_at = begin.elapsed() + ASK;
            let reason = waiter.reason();
            // The seconds change all the time, what they belong to does not.
            let constant: String = reason.chars().filter(|c| !c.is_ascii_digit()).collect();
            if !reason.is_empty() && constant != told {
                reason.lines().for_each(|line| notice(format_args!("waiting for {line}")));
                told = constant;
            }
        }
    };
    match answer.map_err(Problem::Client)? {
        answer if (200..300).contains(&answer.status) => Ok(answer.body),
        answer if answer.status == 404 => Err(Problem::Client(ClientError::NotFound)),
        answer => Err(Problem::Client(ClientError::Refused { status: answer.status, body: answer.body })),
    }
}

/// SIGINT and SIGTERM, held back while a call waits.
struct Signals {
    fd: SignalFd,
    before: SigSet,
}

impl Signals {
    fn block() -> Option<Signals> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGHUP);
        let before = SigSet::thread_get_mask().ok()?;
        set.thread_block().ok()?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).ok()?;
        Some(Signals { fd, before })
    }

    /// Its number, if one has come.
    fn next(&self) -> Option<u8> {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).ok()?;
        let info = self.fd.read_signal().ok()??;
        u8::try_from(info.ssi_signo).ok()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}
