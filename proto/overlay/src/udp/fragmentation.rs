//! The test whether the neighbour receives fragmented datagrams (docs/spec/data-plane.md 4.6).

use std::time::Duration;

use weave_types::Instant;

const INTERVAL: Duration = Duration::from_secs(300);
/// A test consists of 41 fragments and is easily lost: it is repeated before it counts as failed.
const TIMEOUT: Duration = Duration::from_secs(1);
const ATTEMPTS: u32 = 4;
/// The next test after one that shows nothing.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// Each test but the first is followed by an MTU test of this size and the number of the attempt, which every path carries unfragmented and
/// no search uses.
const CONTROL: usize = 40;

/// What the owner must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Send a datagram that has to be fragmented, then an MTU test of this size if there is one.
    Send(Option<usize>),
    /// Log that fragments do not arrive any more.
    ReportLoss,
}

/// The state of the test. The latest result remains valid until a test is answered or has failed four times. (2.8.1 assumes failure for that
/// time.)
#[derive(Debug, Default)]
pub(super) struct FragmentationTest {
    passed: bool,
    /// Tests sent since the latest result.
    attempts: u32,
    /// How many of these, from the second one on, were followed by a datagram that the neighbour acknowledged before the next test.
    acknowledged: u32,
    next_at: Option<Instant>,
}

impl FragmentationTest {
    /// The latest result; `false` before the first one.
    pub(super) fn has_passed(&self) -> bool {
        self.passed
    }

    /// Begins, or repeats, a test.
    pub(super) fn start(&mut self, now: Instant) -> Action {
        self.attempts += 1;
        self.next_at = Some(now + TIMEOUT);
        Action::Send((self.attempts > 1).then_some(CONTROL + self.attempts as usize))
    }

    /// The neighbour has acknowledged an MTU test of this size.
    pub(super) fn handle_ack(&mut self, size: usize) {
        let is_latest = size == CONTROL + self.attempts as usize;
        if is_latest && self.acknowledged + 2 == self.attempts {
            self.acknowledged += 1;
        }
    }

    /// The neighbour has received a test. A late answer counts too: it replaces an earlier negative result.
    pub(super) fn handle_received(&mut self, now: Instant) {
        self.finish(true, now);
    }

    pub(super) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.next_at.map(|at| (at, "UDP fragmentation test"))
    }

    /// Silence of the neighbour shows nothing about fragments, nor does silence while this machine was asleep or busy.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Option<Action> {
        let due = self.next_at.filter(|at| now >= *at)?;
        if due.is_handled_late(now) {
            (self.attempts, self.acknowledged) = (0, 0);
        }
        if self.attempts < ATTEMPTS {
            return Some(self.start(now));
        }
        if self.acknowledged + 1 < self.attempts {
            (self.attempts, self.acknowledged) = (0, 0);
            self.next_at = Some(now + RETRY_INTERVAL);
            return None;
        }
        let passed = self.passed;
        self.finish(false, now);
        passed.then_some(Action::ReportLoss)
    }

    fn finish(&mut self, passed: bool, now: Instant) {
        *self = FragmentationTest { passed, attempts: 0, acknowledged: 0, next_at: Some(now + INTERVAL) };
    }
}
