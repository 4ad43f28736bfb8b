//! Requests that may wait for other peers: on a terminal the reason is printed, and also when a signal ends the wait.

use std::io::IsTerminal;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;
use nix::sys::signal::Signal;
use weave_api::{Client, ClientError, Response};

use crate::signals::Signals;
use crate::{Failure, notice};

/// After this time the reason is printed on a terminal.
const PROGRESS_DELAY: Duration = Duration::from_millis(700);
/// Interval between checks for an answer or a signal.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Interval between requests for the reason.
const REASON_INTERVAL: Duration = Duration::from_secs(2);
const REASON_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no result.
pub(crate) enum Problem {
    /// The daemon refused the request, or cannot be reached.
    Client(ClientError),
    /// A signal ended the wait; the text says what it waited for.
    Interrupted(Failure),
}

/// A client, and what its requests wait for.
pub(crate) struct Waiter<'a> {
    client: &'a Client,
    what: String,
}

impl<'a> Waiter<'a> {
    /// `what` completes "waiting for ...".
    pub(crate) fn new(client: &'a Client, what: &str) -> Waiter<'a> {
        Waiter { client, what: what.to_owned() }
    }

    /// Why the daemon has no answer yet; may be empty.
    fn reason(&self) -> String {
        let text =
            self.client.clone().with_timeout(REASON_TIMEOUT).get("/ipinfo/waiting").unwrap_or_default();
        text.trim_end().to_owned()
    }
}

/// Sends a request and returns the body of a successful answer. After a signal the process is expected to end soon, which closes the
/// connection and with it cancels the request.
pub(crate) fn call(
    waiter: &Waiter<'_>,
    step: &str,
    send: impl FnOnce(&Client) -> Result<Response, ClientError> + Send + 'static,
) -> Result<String, Problem> {
    weave_host::fault_injection::io_fail_point(&format_args!("asking the daemon: {step}"))
        .map_err(|e| Problem::Interrupted(e.into()))?;
    let signals = Signals::block(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]).ok();
    let (answer, result) = mpsc::channel();
    let client = waiter.client.clone();
    std::thread::spawn(move || answer.send(send(&client)));
    let begin = Instant::now();
    let terminal = std::io::stderr().is_terminal();
    let (mut printed, mut print_at) = (String::new(), PROGRESS_DELAY);
    let answer = loop {
        match result.recv_timeout(POLL_INTERVAL) {
            Ok(answer) => break answer,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(Problem::Interrupted(Failure::new(1, "the call ended without an answer")));
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        if let Some(signal) = signals.as_ref().and_then(|s| s.next(PollTimeout::ZERO).ok()?) {
            let reason = waiter.reason();
            let mut text = format!("interrupted while waiting for {}", waiter.what);
            reason.lines().for_each(|line| text.push_str(&format!("\n  waiting for {line}")));
            return Err(Problem::Interrupted(Failure::new(128 + signal as u8, text)));
        }
        if terminal && begin.elapsed() > print_at {
            print_at = begin.elapsed() + REASON_INTERVAL;
            let reason = waiter.reason();
            // A reason that differs only in its numbers is not printed again.
            let constant: String = reason.chars().filter(|c| !c.is_ascii_digit()).collect();
            if !reason.is_empty() && constant != printed {
                reason.lines().for_each(|line| notice(format_args!("waiting for {line}")));
                printed = constant;
            }
        }
    };
    answer.and_then(Response::accept).map_err(Problem::Client)
}
