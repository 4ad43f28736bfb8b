use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// A point in monotonic time, as the distance from an origin that the driver chooses: the start of the process or of a
/// simulation. Unlike `std::time::Instant` it can be made from a number, as a simulated clock needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(Duration);

impl Instant {
    /// The origin of this clock.
    pub const ORIGIN: Instant = Instant(Duration::ZERO);

    /// The instant `since_origin` after the origin.
    pub const fn from_origin(since_origin: Duration) -> Instant {
        Instant(since_origin)
    }

    /// Time passed since the origin.
    pub const fn since_origin(self) -> Duration {
        self.0
    }

    /// Time passed since `earlier`; zero if that lies in the future.
    pub fn saturating_since(self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The instant `by` earlier, but not before the origin.
    pub fn saturating_sub(self, by: Duration) -> Instant {
        Instant(self.0.saturating_sub(by))
    }

    /// The latest multiple of `grid` since the origin that is not later. Timers on a grid expire together.
    pub fn floor(self, grid: Duration) -> Instant {
        let beyond = self.0.as_nanos().checked_rem(grid.as_nanos()).unwrap_or_default();
        // Shorter than a grid, which is a `Duration` itself.
        Instant(self.0 - Duration::from_nanos(u64::try_from(beyond).unwrap_or_default()))
    }
}

/// A timer that is handled so long after it was due shows that this machine was asleep or busy.
const MAX_LATENESS: Duration = Duration::from_millis(500);

impl Instant {
    /// Whether a timer that was due at this time is handled so late that silence until `now` shows nothing: what has arrived meanwhile may
    /// still wait for this machine (docs/spec/mesh.md 20).
    pub fn is_handled_late(self, now: Instant) -> bool {
        now.saturating_since(self) >= MAX_LATENESS
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, by: Duration) -> Instant {
        Instant(self.0.saturating_add(by))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, by: Duration) {
        *self = *self + by;
    }
}

impl Sub<Instant> for Instant {
    type Output = Duration;

    /// Saturating: see [`Instant::saturating_since`].
    fn sub(self, earlier: Instant) -> Duration {
        self.saturating_since(earlier)
    }
}

/// The current time, which the driver passes to a state machine with each input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time, for timers.
    pub mono: Instant,
    /// Wall-clock time since the Unix epoch, for messages and for people. It may jump.
    pub wall: Duration,
}

impl Now {
    /// Wall-clock time at `at`, provided that the clock is not set in between.
    pub fn wall_at(&self, at: Instant) -> Duration {
        if at >= self.mono {
            self.wall.saturating_add(at - self.mono)
        } else {
            self.wall.saturating_sub(self.mono - at)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_on_a_grid() {
        let at = |ms| Instant::ORIGIN + Duration::from_millis(ms);
        let grid = Duration::from_millis(500);
        assert_eq!([0, 499, 500, 1234].map(|ms| at(ms).floor(grid)), [at(0), at(0), at(500), at(1000)]);
        assert_eq!(at(1234).floor(Duration::ZERO), at(1234));
    }
}
