//! Whether the path to a neighbour works, decided within a second of its failure (docs/spec/data-plane.md 4.10).
//!
//! ```text
//!            data moves            nothing of the neighbour arrives
//!   Asleep ------------> Watching -----------------------------------> Testing: a probe at each tick
//!     ^                   |    ^                                        |    |
//!     +-- no data for 3 s +    +---- anything of the neighbour arrives -+    | three probes and 400 ms
//!                              |                                             v
//!                              +-- every probe answered for the hold time -- Down: a probe at each tick
//! ```
//!
//! Paths that carry data are watched; others are tested when nothing has arrived for a while ([`Liveness::listen`], [`Liveness::test_idle`]). A peer that receives data and sends none says at each tick that it is there, so that
//! probes are needed only in silence. Lateness is no evidence: the time before a tick that comes late does not count, and a peer whose
//! ticks come late multiplies its failure timeout, and so do its neighbours.

use std::fmt;
use std::time::Duration;

use weave_types::Instant;

use crate::traffic::TrafficCounts;

mod frame;
mod probes;

pub use frame::{LIVENESS_FRAME, LivenessFrame, LivenessKind};
pub use probes::PathQuality;

use probes::Probes;

/// Interval between two looks at a path that carries data.
pub const TICK: Duration = Duration::from_millis(150);
/// How long a path is watched after the last data.
const WATCH_PERIOD: Duration = Duration::from_secs(3);
/// A path fails only if so many probes are not answered, of which the last one has had this time and two round trips.
const MIN_PROBES: u32 = 3;
const ANSWER_TIMEOUT: Duration = Duration::from_millis(100);
/// How long a path that has failed must work again before it is used: doubled for each of its failures that is not forgotten.
const MIN_HOLD: Duration = Duration::from_secs(1);
const MAX_HOLD: Duration = Duration::from_secs(60);
/// How much of the time before a test of a path that was asleep counts as silence: nobody has been asked in it.
const MAX_UNASKED: Duration = Duration::from_secs(4);
/// How long a path has to work until one of its failures is forgotten.
const FORGET_INTERVAL: Duration = Duration::from_secs(60);

/// A tick that comes so much later than it was due shows that this machine is slow.
const LATE: Duration = Duration::from_millis(75);
const MAX_SLOWNESS: u8 = 8;
/// Ticks in time after which the slowness falls by one.
const RECOVERY_TICKS: u32 = 20;

/// How slow this peer is: the factor for failure timeouts, from 1 to 8 (the local health multiplier of Lifeguard, arXiv 1707.00788).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slowness {
    factor: u8,
    in_time: u32,
    /// The time since the tick before the latest one, if that came late: what did not arrive in it shows nothing.
    lost: Duration,
}

impl Default for Slowness {
    fn default() -> Slowness {
        Slowness { factor: 1, in_time: 0, lost: Duration::ZERO }
    }
}

impl Slowness {
    /// A tick that was due at `due` is handled.
    pub fn handle_tick(&mut self, due: Instant, now: Instant) {
        let lateness = now.saturating_since(due);
        self.lost = if lateness >= LATE { TICK + lateness } else { Duration::ZERO };
        if self.is_late() {
            self.factor = (self.factor * 2).min(MAX_SLOWNESS);
            self.in_time = 0;
        } else if self.factor > 1 {
            self.in_time += 1;
            if self.in_time == RECOVERY_TICKS {
                self.factor -= 1;
                self.in_time = 0;
            }
        }
    }

    /// Whether the latest tick came late.
    fn is_late(&self) -> bool {
        !self.lost.is_zero()
    }

    /// The factor, which the neighbours are told.
    pub fn factor(&self) -> u8 {
        self.factor
    }
}

/// What to send, and what has been decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send a probe with this number.
    Probe(u32),
    /// Say that this peer is there.
    KeepAlive,
    /// The path has failed.
    Down,
    /// The path works again.
    Up,
    /// No data moves: watch until some does.
    Sleep,
}

/// The state of one path.
#[derive(Debug)]
pub(crate) struct Liveness {
    state: State,
    counts: TrafficCounts,
    /// When data last moved.
    data_at: Instant,
    probes: Probes,
    round_trip: Duration,
    /// What the neighbour said of its slowness.
    remote_slowness: u8,
    /// Failures that are not forgotten.
    failures: u32,
    changed_at: Instant,
    /// When anything of the neighbour was last noticed.
    heard_at: Instant,
    /// The path is tested although no data moves: the first probe will be answered.
    is_idle: bool,
    /// [`TrafficCounts::heard`] at the latest call of [`listen`](Liveness::listen).
    listened: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Asleep,
    Watching,
    Testing {
        since: Instant,
        probes: u32,
    },
    Down {
        /// When the first of the probes was answered that have all been answered since.
        works_since: Option<Instant>,
        answered_at: Instant,
        /// From when on silence counts.
        silent_from: Instant,
    },
}

impl Liveness {
    /// A path that has just been found to work, with its counters.
    pub(crate) fn new(now: Instant) -> Liveness {
        Liveness {
            state: State::Asleep,
            counts: TrafficCounts::default(),
            data_at: now,
            probes: Probes::default(),
            round_trip: Duration::ZERO,
            remote_slowness: 1,
            failures: 0,
            changed_at: now,
            heard_at: now,
            is_idle: false,
            listened: None,
        }
    }

    /// Whether [`handle_tick`](Liveness::handle_tick) is to be called.
    pub(crate) fn is_awake(&self) -> bool {
        self.state != State::Asleep
    }

    /// Whether the path has failed.
    pub(crate) fn is_down(&self) -> bool {
        matches!(self.state, State::Down { .. })
    }

    /// When anything of the neighbour was last noticed.
    pub(crate) fn heard_at(&self) -> Instant {
        self.heard_at
    }

    /// Whether probes are sent, because nothing of the neighbour arrives.
    pub(crate) fn is_silent(&self) -> bool {
        match self.state {
            State::Testing { probes, .. } => !self.is_idle || probes > 1,
            State::Down { .. } => true,
            State::Asleep | State::Watching => false,
        }
    }

    /// Why the path to `remote` is not used, for people; `None` if it is.
    pub(crate) fn problem(&self, remote: impl fmt::Display, now: Instant) -> Option<String> {
        let State::Down { works_since, .. } = self.state else { return None };
        let worked = works_since.map_or(Duration::ZERO, |since| now.saturating_since(since));
        let hold = self.hold_time().saturating_sub(worked).as_secs_f32();
        Some(format!(
            "the path to {remote} has failed: another one is used, if there is any, until it has worked for {hold:.0} s"
        ))
    }

    fn hold_time(&self) -> Duration {
        (MIN_HOLD * 2u32.pow(self.failures.saturating_sub(1).min(8))).min(MAX_HOLD)
    }

    /// Data moves on a path that was asleep.
    pub(crate) fn wake(&mut self, counts: TrafficCounts, now: Instant) {
        if self.state == State::Asleep {
            self.state = State::Watching;
            self.is_idle = false;
            if counts.heard != self.counts.heard {
                self.heard_at = now;
            }
            self.counts = counts;
            self.data_at = now;
        }
    }

    /// Tests the path at the next ticks if no data moves and nothing of the neighbour has arrived since the latest call. A call that comes
    /// late shows nothing.
    pub(crate) fn listen(&mut self, counts: TrafficCounts, is_late: bool, now: Instant) {
        let before = self.listened.replace(counts.heard);
        if before != Some(counts.heard) || is_late {
            self.heard_at = now;
        }
        if before == Some(counts.heard) && !is_late {
            self.test_idle(counts, now);
        }
    }

    /// Something of the neighbour has arrived.
    pub(crate) fn note_heard(&mut self, now: Instant) {
        self.heard_at = now;
    }

    /// Tests the path at the next ticks, unless it is watched.
    pub(crate) fn test_idle(&mut self, counts: TrafficCounts, now: Instant) {
        if self.state == State::Asleep {
            self.begin_test(State::Testing { since: now, probes: 0 }, counts, now);
            self.is_idle = true;
        }
    }

    fn begin_test(&mut self, state: State, counts: TrafficCounts, now: Instant) {
        self.state = state;
        self.counts = counts;
        self.heard_at = now.min(self.heard_at.max(now.saturating_sub(MAX_UNASKED)));
    }

    /// Returns the number of a probe that is to be sent in order to measure the path; `None` while it is tested, which needs probes anyway.
    #[must_use]
    pub(crate) fn measure(&mut self, now: Instant) -> Option<u32> {
        matches!(self.state, State::Asleep | State::Watching).then(|| self.probes.send(now))
    }

    /// What probes have shown about the path.
    pub(crate) fn quality(&self, now: Instant) -> PathQuality {
        self.probes.quality(now)
    }

    /// Tests the path at the next tick, whether or not data moves.
    pub(crate) fn test(&mut self, counts: TrafficCounts, now: Instant) {
        self.is_idle = false;
        if self.state == State::Asleep {
            self.begin_test(State::Watching, counts, now);
        }
        self.data_at = now;
    }

    /// Handles a frame of the neighbour. Returns the number of a probe, which is to be answered.
    #[must_use]
    pub(crate) fn handle_frame(&mut self, frame: LivenessFrame, now: Instant) -> Option<u32> {
        self.remote_slowness = frame.slowness.clamp(1, MAX_SLOWNESS);
        match frame.kind {
            LivenessKind::Probe => return Some(frame.number),
            LivenessKind::Answer => self.handle_answer(frame.number, now),
            LivenessKind::KeepAlive => {}
        }
        None
    }

    fn handle_answer(&mut self, number: u32, now: Instant) {
        let Some(sample) = self.probes.handle_answer(number, now) else { return };
        self.round_trip = sample.max(self.round_trip * 7 / 8);
        if let State::Down { works_since, answered_at, silent_from } = &mut self.state {
            works_since.get_or_insert(now);
            (*answered_at, *silent_from) = (now, now);
        }
    }

    /// Looks at the path: `counts` are those of its [`Traffic`](crate::Traffic).
    pub(crate) fn handle_tick(
        &mut self,
        counts: TrafficCounts,
        slowness: &Slowness,
        now: Instant,
    ) -> impl Iterator<Item = Action> + use<> {
        let before = std::mem::replace(&mut self.counts, counts);
        let (sent, received) = (counts.sent != before.sent, counts.received != before.received);
        if sent || received {
            self.data_at = now;
            self.is_idle = false;
        }
        self.heard_at =
            if counts.heard == before.heard { now.min(self.heard_at + slowness.lost) } else { now };
        let timeout = self.failure_timeout(slowness);
        let mut decided = None;
        let mut probing = false;
        match self.state {
            State::Asleep => return [None, None].into_iter().flatten(),
            State::Down { mut works_since, answered_at, mut silent_from } => {
                probing = true;
                if slowness.is_late() {
                    silent_from = now;
                } else if now.saturating_since(silent_from) >= timeout {
                    works_since = None;
                }
                self.state = State::Down { works_since, answered_at, silent_from };
                if works_since.is_some_and(|since| answered_at.saturating_since(since) >= self.hold_time()) {
                    self.state = State::Watching;
                    self.changed_at = now;
                    decided = Some(Action::Up);
                    probing = false;
                }
            }
            _ if counts.heard != before.heard => self.state = State::Watching,
            State::Watching if now.saturating_since(self.data_at) < WATCH_PERIOD => {
                self.state = State::Testing { since: now, probes: 1 };
                probing = true;
            }
            State::Watching => {}
            State::Testing { since, probes } if slowness.is_late() => {
                self.state = State::Testing { since: now.min(since + slowness.lost), probes };
                probing = true;
            }
            State::Testing { since, probes }
                if probes >= MIN_PROBES && now.saturating_since(since) >= timeout =>
            {
                let forgotten = now.saturating_since(self.changed_at).as_secs() / FORGET_INTERVAL.as_secs();
                self.failures =
                    self.failures.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX)) + 1;
                self.changed_at = now;
                self.state = State::Down { works_since: None, answered_at: now, silent_from: now };
                decided = Some(Action::Down);
                probing = true;
            }
            State::Testing { since, probes } => {
                self.state = State::Testing { since, probes: probes + 1 };
                probing = true;
            }
        }
        let send = if probing {
            Some(Action::Probe(self.probes.send(now)))
        } else if received && !sent {
            Some(Action::KeepAlive)
        } else if self.state == State::Watching && now.saturating_since(self.data_at) >= WATCH_PERIOD {
            self.state = State::Asleep;
            Some(Action::Sleep)
        } else {
            None
        };
        [decided, send].into_iter().flatten()
    }

    fn failure_timeout(&self, slowness: &Slowness) -> Duration {
        let answer = ANSWER_TIMEOUT.max(self.round_trip * 2);
        (TICK * (MIN_PROBES - 1) + answer) * u32::from(slowness.factor.max(self.remote_slowness))
    }
}

#[cfg(test)]
mod tests;
