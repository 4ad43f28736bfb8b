use std::time::Duration;

use crate::time::Instant;

/// Limits how often something happens: a burst of events, then one per interval. Starts full.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    burst: u32,
    interval: Duration,
    /// The bucket is full from this time on if no token is taken before. One value, so that no refill has to be counted.
    full_at: Instant,
}

impl TokenBucket {
    /// A bucket of `burst` tokens, of which one is replaced per `interval`.
    pub const fn new(burst: u32, interval: Duration) -> TokenBucket {
        TokenBucket { burst, interval, full_at: Instant::ORIGIN }
    }

    /// Takes a token if there is one.
    pub fn try_take(&mut self, now: Instant) -> bool {
        let available = self.delay(now).is_zero();
        if available {
            self.take(now);
        }
        available
    }

    /// Takes a token. Without one the bucket goes into debt, which lengthens the next [`TokenBucket::delay`].
    pub fn take(&mut self, now: Instant) {
        self.full_at = self.full_at.max(now) + self.interval;
    }

    /// Time until there is a token; zero if there is one now.
    pub fn delay(&self, now: Instant) -> Duration {
        (self.full_at - now).saturating_sub(self.interval * self.burst.saturating_sub(1))
    }

    /// Whether a bucket that was created now would be the same.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_origin(Duration::from_millis(ms))
    }

    #[test]
    fn a_burst_is_followed_by_a_steady_rate() {
        let mut bucket = TokenBucket::new(20, Duration::from_millis(50));
        assert_eq!((0..100).filter(|_| bucket.try_take(at(0))).count(), 20);
        assert_eq!(bucket.delay(at(0)), Duration::from_millis(50));
        assert_eq!(bucket.delay(at(49)), Duration::from_millis(1));
        assert!(!bucket.try_take(at(49)) && bucket.try_take(at(50)));
        assert_eq!(bucket.delay(at(50)), Duration::from_millis(50));
        assert!(!bucket.is_full(at(1049)) && bucket.is_full(at(1050)));
        assert_eq!(
            (0..100).filter(|_| bucket.try_take(at(1_000_000))).count(),
            20,
            "it never holds more than a burst"
        );
    }

    #[test]
    fn debt_lengthens_the_delay() {
        let mut bucket = TokenBucket::new(1, Duration::from_millis(50));
        (0..3).for_each(|_| bucket.take(at(0)));
        assert_eq!(bucket.delay(at(0)), Duration::from_millis(150));
    }
}
