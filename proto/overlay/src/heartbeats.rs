//! When heartbeats of an overlay are due, and when their absence counts (docs/spec/data-plane.md 4.4, 5.3).

use std::time::Duration;

use weave_types::Instant;

/// Interval of heartbeats until the neighbour acknowledges one.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// Replaces [`RETRY_INTERVAL`] between peers of this version, and doubles with each heartbeat: the first ones may arrive before the
/// neighbour knows the connection.
const FIRST_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// Interval of heartbeats of an established connection, and how many intervals of silence count.
const INTERVAL: (Duration, u32) = (Duration::from_secs(10), 6);
/// The same between peers of this version, which test the path: heartbeats only keep NAT entries.
const TESTED_INTERVAL: (Duration, u32) = (Duration::from_secs(20), 6);
/// The same for heartbeats of full size between peers of this version: nothing else shows that the path does not carry such packets any
/// more.
const FULL_SIZE_INTERVAL: (Duration, u32) = (Duration::from_secs(5), 3);

/// The intervals of the heartbeats of one connection by one overlay.
#[derive(Debug)]
pub(crate) struct Heartbeats {
    interval: (Duration, u32),
    /// Heartbeats are no longer repeated in order to be acknowledged.
    settled: bool,
    retry: Duration,
}

impl Heartbeats {
    /// How long to wait for the first heartbeat.
    pub(crate) const FIRST_TIMEOUT: Duration = INTERVAL.0.saturating_mul(INTERVAL.1);

    /// With a peer of 2.8.1.
    pub(crate) fn new() -> Heartbeats {
        Heartbeats { interval: INTERVAL, settled: false, retry: RETRY_INTERVAL }
    }

    /// Between peers of this version.
    pub(crate) fn quick() -> Heartbeats {
        Heartbeats { interval: TESTED_INTERVAL, retry: FIRST_RETRY_INTERVAL, ..Heartbeats::new() }
    }

    /// Between peers of this version, if each heartbeat is as long as the longest packet.
    pub(crate) fn of_full_size() -> Heartbeats {
        Heartbeats { interval: FULL_SIZE_INTERVAL, ..Heartbeats::quick() }
    }

    /// From now on heartbeats only show that the path works.
    pub(crate) fn settle(&mut self) {
        self.settled = true;
    }

    pub(crate) fn interval(&self) -> Duration {
        if self.settled { self.interval.0 } else { self.retry }
    }

    /// When the heartbeat after one that is sent now is due. Those of established connections are due at multiples of their interval, so
    /// that they wake this peer together, and a neighbour gets those of several overlays together.
    pub(crate) fn next(&mut self, now: Instant) -> Instant {
        let due = now + self.interval();
        self.retry = (self.retry * 2).min(RETRY_INTERVAL);
        if self.settled { due.floor(self.interval.0) } else { due }
    }

    /// How long after a heartbeat silence counts.
    pub(crate) fn timeout(&self) -> Duration {
        self.interval.0 * self.interval.1
    }
}
