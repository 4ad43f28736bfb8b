//! When heartbeats of an overlay are due, and when their absence counts (docs/spec/data-plane.md 4.4, 5.3).

use std::time::Duration;

use weave_types::Instant;

/// Interval of heartbeats until the neighbour acknowledges one.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// Replaces [`RETRY_INTERVAL`] between neighbours with fast heartbeats, and doubles with each heartbeat: the first ones may arrive
/// before the neighbour knows the connection.
const FIRST_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// Interval of heartbeats of an established connection.
const INTERVAL: Duration = Duration::from_secs(10);
/// Replaces [`INTERVAL`] between neighbours that both announce it in the handshake, so that traffic takes another route sooner.
const FAST_INTERVAL: Duration = Duration::from_secs(2);
/// Silence counts after so many intervals.
const TIMEOUT_INTERVALS: u32 = 6;
/// Heartbeats of established connections are due at multiples of this time, so that they wake this peer once.
const GRID: Duration = Duration::from_millis(500);
/// The intervals of the heartbeats of one connection by one overlay.
#[derive(Debug)]
pub(crate) struct Heartbeats {
    /// Whether both ends have announced fast heartbeats.
    fast: bool,
    /// Heartbeats are no longer repeated in order to be acknowledged.
    settled: bool,
    retry: Duration,
}

impl Heartbeats {
    /// How long to wait for the first heartbeat.
    pub(crate) const FIRST_TIMEOUT: Duration = INTERVAL.saturating_mul(TIMEOUT_INTERVALS);

    pub(crate) fn new() -> Heartbeats {
        Heartbeats { fast: false, settled: false, retry: RETRY_INTERVAL }
    }

    pub(crate) fn fast() -> Heartbeats {
        Heartbeats { fast: true, retry: FIRST_RETRY_INTERVAL, ..Heartbeats::new() }
    }

    /// From now on heartbeats only show that the path works.
    pub(crate) fn settle(&mut self) {
        self.settled = true;
    }

    pub(crate) fn interval(&self) -> Duration {
        match self.settled {
            true if self.fast => FAST_INTERVAL,
            true => INTERVAL,
            false => self.retry,
        }
    }

    /// When the heartbeat after one that is sent now is due.
    pub(crate) fn next(&mut self, now: Instant) -> Instant {
        let due = now + self.interval();
        self.retry = (self.retry * 2).min(RETRY_INTERVAL);
        if self.settled { due.floor(GRID) } else { due }
    }

    /// How long after a heartbeat silence counts.
    pub(crate) fn timeout(&self) -> Duration {
        (if self.fast { FAST_INTERVAL } else { INTERVAL }) * TIMEOUT_INTERVALS
    }
}
