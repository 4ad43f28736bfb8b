use std::time::Duration;

use weave_types::Instant;

use crate::sys;

/// Translates the clock of programs to that of the daemon.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// The daemon's origin on the programs' clock, in nanoseconds.
    origin: u64,
}

impl Clock {
    pub(crate) fn new(origin: std::time::Instant) -> Clock {
        let elapsed = u64::try_from(origin.elapsed().as_nanos()).unwrap_or_default();
        Clock { origin: sys::monotonic_nanos().saturating_sub(elapsed) }
    }

    /// Times before the origin, from an earlier process, become the origin.
    pub(crate) fn instant(&self, nanos: u64) -> Instant {
        Instant::from_origin(Duration::from_nanos(nanos.saturating_sub(self.origin)))
    }

    pub(crate) fn nanos(&self, at: Instant) -> u64 {
        let since = u64::try_from(at.since_origin().as_nanos()).unwrap_or(u64::MAX);
        self.origin.saturating_add(since)
    }
}
