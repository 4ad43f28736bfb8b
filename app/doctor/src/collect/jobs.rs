//! Jobs that run at the same time, each in a thread of its own, until a deadline.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::facts::Facts;

/// Adds what a job has read.
pub(super) type Update = Box<dyn FnOnce(&mut Facts) + Send>;

/// Jobs that run at the same time.
pub(super) struct Jobs {
    names: BTreeMap<usize, String>,
    sender: Sender<(usize, Update)>,
    receiver: Receiver<(usize, Update)>,
}

impl Jobs {
    pub(super) fn new() -> Jobs {
        let (sender, receiver) = channel();
        Jobs { names: BTreeMap::new(), sender, receiver }
    }

    /// Starts a job. `name` completes "... did not end in time".
    pub(super) fn start(&mut self, name: impl Into<String>, job: impl FnOnce() -> Update + Send + 'static) {
        let (id, name, sender) = (self.names.len(), name.into(), self.sender.clone());
        self.names.insert(id, name);
        // Without a thread, its result is missing at the deadline.
        let _ = std::thread::Builder::new().spawn(move || sender.send((id, job())));
    }

    pub(super) fn wait(mut self, timeout: Duration, facts: &mut Facts) {
        drop(self.sender);
        let deadline = Instant::now() + timeout;
        while !self.names.is_empty() {
            match self.receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((id, update)) => {
                    self.names.remove(&id);
                    update(facts);
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        let seconds = timeout.as_secs();
        facts
            .unread
            .extend(self.names.into_values().map(|name| format!("{name} did not end within {seconds} s")));
    }
}

/// An update by the result of a job that can fail; `step` begins the text about that.
pub(super) fn update<T: Send + 'static, E: std::fmt::Display>(
    step: &str,
    result: Result<T, E>,
    apply: impl FnOnce(&mut Facts, T) + Send + 'static,
) -> Update {
    match result {
        Ok(value) => Box::new(|facts| apply(facts, value)),
        Err(error) => {
            let text = format!("{step} failed: {error}");
            Box::new(|facts| facts.unread.push(text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_hangs_is_named_at_the_deadline() {
        let (mut facts, mut jobs) = (Facts::default(), Jobs::new());
        let (hang, wait) = channel::<()>();
        jobs.start("hanging", move || {
            let _ = wait.recv();
            Box::new(|facts| facts.port = 1)
        });
        jobs.start("ending", || Box::new(|facts| facts.port = 2));
        jobs.wait(Duration::from_millis(50), &mut facts);
        drop(hang);
        assert!(facts.unread.contains(&"hanging did not end within 0 s".to_owned()), "{:?}", facts.unread);
    }
}
