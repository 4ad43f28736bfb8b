use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// A point in monotonic time: the distance from an origin that the driver chose (process start, or the start of a
/// simulation). Only differences mean anything. Unlike `std::time::Instant` it can be made from a number, so that a
/// simulator owns it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(Duration);

impl Instant {
    /// The origin of this clock.
    pub const ORIGIN: Instant = Instant(Duration::ZERO);

    /// The instant that lies `since_origin` after the origin.
    pub const fn from_origin(since_origin: Duration) -> Instant {
        Instant(since_origin)
    }

    /// Distance from the origin.
    pub const fn since_origin(self) -> Duration {
        self.0
    }

    /// Time passed since `earlier`; zero if that lies in the future.
    pub fn saturating_since(self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
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

/// What time it is, as every machine is told with every input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time, for timers.
    pub mono: Instant,
    /// Wall-clock time since the Unix epoch, for what the wire or a person sees. It may jump.
    pub wall: Duration,
}

impl Now {
    /// What the wall clock will show at `at`, if nobody sets it meanwhile.
    pub fn wall_at(&self, at: Instant) -> Duration {
        if at >= self.mono {
            self.wall.saturating_add(at - self.mono)
        } else {
            self.wall.saturating_sub(self.mono - at)
        }
    }
}
