//! The clocks of a host. Its monotonic clock began some time ago and runs too fast or too slow; its wall clock is wrong.

use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha12Rng;
use weave_types::{Instant, Now};

/// The right speed.
const RIGHT: u64 = 1_000_000;
/// What the wall clocks say at the start, were they right: 2026-01-01.
const START: Duration = Duration::from_secs(1_767_225_600);

/// How the clocks of one host differ from the time of the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clock {
    /// The monotonic clock is ahead by this, were it of the right speed.
    pub(crate) ahead: Duration,
    /// The wall clock is ahead by so many seconds.
    pub(crate) wall_error: i64,
    /// What the monotonic clock counts in a million seconds: 1,000,000 if its speed is right.
    pub(crate) speed: u64,
}

impl Default for Clock {
    fn default() -> Clock {
        Clock { ahead: Duration::ZERO, wall_error: 0, speed: RIGHT }
    }
}

impl Clock {
    /// What the host's clocks say at a time of the simulation.
    pub(crate) fn read(&self, at: Instant) -> Now {
        let right = START + at.since_origin();
        let error = Duration::from_secs(self.wall_error.unsigned_abs());
        let wall = if self.wall_error < 0 { right.saturating_sub(error) } else { right + error };
        let counted = scaled(at.since_origin(), self.speed, RIGHT);
        Now { mono: Instant::from_origin(counted) + self.ahead, wall }
    }

    /// When the host's monotonic clock says so, or a nanosecond later.
    pub(crate) fn when(&self, mono: Instant) -> Instant {
        let counted = mono.since_origin().saturating_sub(self.ahead);
        let exact = if self.speed == RIGHT { Duration::ZERO } else { Duration::from_nanos(1) };
        Instant::from_origin(scaled(counted, RIGHT, self.speed) + exact)
    }

    /// How long something takes, at the shortest, of which the host's own clock says that it takes so long.
    pub(crate) fn at_least(&self, time: Duration) -> Duration {
        scaled(time, RIGHT, self.speed)
    }

    /// A clock whose speed is wrong by up to so many parts in a million.
    pub(crate) fn drifting(most: u64, rng: &mut ChaCha12Rng) -> Clock {
        Clock { speed: rng.random_range(RIGHT - most..=RIGHT + most), ..Clock::default() }
    }
}

/// How late a timer fires: mostly a little, now and then very late.
pub(crate) fn lateness(rng: &mut ChaCha12Rng) -> Duration {
    let most = if rng.random_bool(0.05) { 3000 } else { 100 };
    Duration::from_millis(rng.random_range(1..most))
}

/// `time * by / of`, in 64 bits: this is done at every step.
fn scaled(time: Duration, by: u64, of: u64) -> Duration {
    if by == of {
        return time;
    }
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos((nanos / of).saturating_mul(by).saturating_add(nanos % of * by / of))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_is_not_early() {
        for speed in [950_000, 999_999, 1_000_000, 1_000_001, 1_050_000] {
            let clock = Clock { ahead: Duration::from_millis(12_345), wall_error: -5, speed };
            for nanos in [0, 1, 999, 30_000_000_000, 123_456_789_012_345] {
                let due = Instant::from_origin(clock.ahead + Duration::from_nanos(nanos));
                let at = clock.when(due);
                assert!(clock.read(at).mono >= due, "{speed} {nanos}");
                assert!(clock.read(at).mono - due <= Duration::from_nanos(2), "{speed} {nanos}");
            }
        }
    }
}
