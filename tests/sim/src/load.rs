//! Machines that are slow for a while: inputs and timers of the host wait, and are handled late, in their order.

use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha12Rng;
use weave_types::Instant;

/// Datagrams that the kernel keeps for a process that does not run; further ones are lost.
const RECEIVE_QUEUE: usize = 4096;
/// Nothing else happens at the end of a pause: what has waited is handled before what comes then.
const ODD: Duration = Duration::from_nanos(1);
/// Longest time between two pauses of a slow machine.
const MAX_BETWEEN_PAUSES: u64 = 500;
const MIN_BETWEEN_PAUSES: Duration = Duration::from_millis(1);

/// What else a host does.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// The peer does not run before this time.
    paused_until: Instant,
    /// The next pause begins with the first input after this time.
    next_pause: Instant,
    /// Until when there are pauses, and how long they are at most.
    slow_until: Instant,
    longest: Duration,
    waiting: usize,
}

impl Load {
    /// The peer does not run for this time, if it runs.
    pub(crate) fn pause(&mut self, time: Duration, now: Instant) {
        if self.paused_until <= now {
            self.paused_until = now + time + ODD;
            self.next_pause = self.next_pause.max(self.paused_until + MIN_BETWEEN_PAUSES);
        }
    }

    /// Again and again for this time, the peer does not run for up to `longest`.
    pub(crate) fn slow_down(&mut self, time: Duration, longest: Duration, now: Instant) {
        (self.slow_until, self.longest) = (now + time, longest);
        self.next_pause = self.paused_until + MIN_BETWEEN_PAUSES;
    }

    /// No further pauses begin. What waits at present has to wait on, or it would be overtaken.
    pub(crate) fn end(&mut self) {
        self.slow_until = Instant::ORIGIN;
    }

    pub(crate) fn busy_until(&mut self, now: Instant, rng: &mut ChaCha12Rng) -> Option<Instant> {
        if self.paused_until <= now && self.next_pause <= now && now < self.slow_until {
            let longest = u64::try_from(self.longest.as_millis()).unwrap_or(u64::MAX);
            self.paused_until = now + Duration::from_millis(rng.random_range(1..=longest.max(1))) + ODD;
            let between = Duration::from_millis(rng.random_range(1..MAX_BETWEEN_PAUSES));
            self.next_pause = self.paused_until + between;
        }
        if self.paused_until > now {
            return Some(self.paused_until);
        }
        self.waiting = 0;
        None
    }

    /// Whether the kernel keeps one more datagram until the process runs.
    pub(crate) fn keeps_datagram(&mut self) -> bool {
        self.waiting += 1;
        self.waiting <= RECEIVE_QUEUE
    }
}
