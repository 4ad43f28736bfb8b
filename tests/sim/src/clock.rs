//! The clocks of a host. The monotonic clock has an offset and a wrong speed; the wall clock has an error.

use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha12Rng;
use weave_types::{Instant, Now};

/// The correct speed.
const NOMINAL_SPEED: u64 = 1_000_000;
/// The correct wall-clock time at the start: 2026-01-01.
const START: Duration = Duration::from_secs(1_767_225_600);

/// Difference between the clocks of a host and the time of the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clock {
    /// The monotonic clock is ahead by this.
    pub(crate) offset: Duration,
    /// Error of the wall clock, seconds.
    pub(crate) wall_error: i64,
    /// Seconds that the monotonic clock counts in a million seconds.
    pub(crate) speed: u64,
}

impl Default for Clock {
    fn default() -> Clock {
        Clock { offset: Duration::ZERO, wall_error: 0, speed: NOMINAL_SPEED }
    }
}

impl Clock {
    /// The time on the host at a time of the simulation.
    pub(crate) fn read(&self, at: Instant) -> Now {
        let right = START + at.since_origin();
        let error = Duration::from_secs(self.wall_error.unsigned_abs());
        let wall = if self.wall_error < 0 { right.saturating_sub(error) } else { right + error };
        let counted = scaled(at.since_origin(), self.speed, NOMINAL_SPEED);
        Now { mono: Instant::from_origin(counted) + self.offset, wall }
    }

    /// The time of the simulation at which the monotonic clock reaches `mono`; never earlier, at most a nanosecond later.
    pub(crate) fn time_of(&self, mono: Instant) -> Instant {
        let counted = mono.since_origin().saturating_sub(self.offset);
        let rounding = if self.speed == NOMINAL_SPEED { Duration::ZERO } else { Duration::from_nanos(1) };
        Instant::from_origin(scaled(counted, NOMINAL_SPEED, self.speed) + rounding)
    }

    /// The shortest duration that the clock of the host measures as `time`.
    pub(crate) fn at_least(&self, time: Duration) -> Duration {
        scaled(time, NOMINAL_SPEED, self.speed)
    }

    /// A clock with a random error of its speed.
    pub(crate) fn drifting(max_error_ppm: u64, rng: &mut ChaCha12Rng) -> Clock {
        Clock {
            speed: rng.random_range(NOMINAL_SPEED - max_error_ppm..=NOMINAL_SPEED + max_error_ppm),
            ..Clock::default()
        }
    }
}

/// A random delay of a timer: usually below 100 ms, sometimes seconds.
pub(crate) fn random_timer_delay(rng: &mut ChaCha12Rng) -> Duration {
    let end = if rng.random_bool(0.05) { 3000 } else { 100 };
    Duration::from_millis(rng.random_range(1..end))
}

/// `time * to / from`, computed with 64 bits, which is faster than with 128.
fn scaled(time: Duration, to: u64, from: u64) -> Duration {
    if to == from {
        return time;
    }
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos((nanos / from).saturating_mul(to).saturating_add(nanos % from * to / from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_are_at_most_two_nanoseconds_late() {
        for speed in [950_000, 999_999, 1_000_000, 1_000_001, 1_050_000] {
            let clock = Clock { offset: Duration::from_millis(12_345), wall_error: -5, speed };
            for nanos in [0, 1, 999, 30_000_000_000, 123_456_789_012_345] {
                let due = Instant::from_origin(clock.offset + Duration::from_nanos(nanos));
                let at = clock.time_of(due);
                assert!(clock.read(at).mono >= due, "{speed} {nanos}");
                assert!(clock.read(at).mono - due <= Duration::from_nanos(2), "{speed} {nanos}");
            }
        }
    }
}
