//! Whether packets that a kernel or a network card cuts from one large send arrive as single packets do (docs/spec/data-plane.md 4.11).
//!
//! ```text
//!   burst --+-- segmented probe: one send that is cut into SEGMENTS packets
//!           +-- plain probe: one packet that is sent as it is
//!
//!   round:  bursts until every segment has arrived once                                         -> segmentation works
//!           or until plain probes have arrived again and again, and one of the segments never   -> segmentation is broken
//!           or until MAX_BURSTS have shown neither                                              -> nothing is concluded
//! ```
//!
//! Some kernels, drivers and cards corrupt or lose such packets without an error (docs/limits.md). Silence alone shows nothing, as with
//! the search for the path MTU (module `udp::pmtu`): a plain probe goes the same way at the same time, and only its answers are evidence.
//! Answers that arrive together count once, and nothing counts if this peer handles its own timers late.

use std::collections::VecDeque;
use std::time::Duration;

use weave_types::Instant;

/// Packets of a segmented probe.
pub(crate) const SEGMENTS: u8 = 4;
const ALL_SEGMENTS: u8 = (1 << SEGMENTS) - 1;

/// Bytes of the body of a control message that says which packets of a probe have arrived.
const ANSWER: usize = 6;

/// Interval between bursts until [`MIN_BURSTS`] have been sent, and afterwards.
const BURST_INTERVAL: Duration = Duration::from_millis(250);
const SLOW_BURST_INTERVAL: Duration = Duration::from_secs(1);
/// How many plain probes must have been answered before a segment counts as lost, if each is answered.
const MIN_BURSTS: u32 = 8;
/// The same if some are not: then packets are lost for other reasons as well.
const EVIDENCE_UNDER_LOSS: u32 = 12;
/// A round ends without a result after so many.
const MAX_BURSTS: u32 = 30;
/// Answers that follow each other faster were delayed together.
const MIN_ANSWER_INTERVAL: Duration = Duration::from_millis(10);
/// A timer that is handled so late shows that this peer has been too busy to handle answers in time.
const MAX_LATENESS: Duration = Duration::from_millis(100);
/// Interval between rounds while segmentation works and data is sent.
const TEST_INTERVAL: Duration = Duration::from_secs(120);
/// Interval between rounds while it is broken: doubled for each round in a row that has found it so.
const MIN_RETRY_INTERVAL: Duration = Duration::from_secs(30);
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(600);

/// What the owner must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Send the segmented probe with this number, and if that was possible the plain probe with the next number.
    Burst(u32),
    /// Do not let packets be segmented on this path.
    Broken,
    /// Packets may be segmented again.
    Works,
}

/// Which packets of a probe have arrived. The neighbour says so for each batch of them that it receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArrivedSegments {
    /// Number of the probe.
    pub number: u32,
    /// The first packet that has arrived, counted from 0.
    pub first: u8,
    /// How many have arrived.
    pub count: u8,
}

impl ArrivedSegments {
    /// The body of the control message.
    pub(crate) fn encode(&self) -> Vec<u8> {
        [&self.number.to_be_bytes()[..], &[self.first, self.count]].concat()
    }

    pub(crate) fn decode(body: &[u8]) -> Option<ArrivedSegments> {
        let &[a, b, c, d, first, count] = <&[u8; ANSWER]>::try_from(body).ok()?;
        Some(ArrivedSegments { number: u32::from_be_bytes([a, b, c, d]), first, count })
    }
}

/// What has arrived of the neighbour's latest burst, so that a burst that arrives whole needs one answer.
#[derive(Debug, Default)]
pub(crate) struct ArrivedBurst {
    number: u32,
    /// A bit for each segment.
    segments: u8,
    plain: bool,
}

impl ArrivedBurst {
    /// Packets of a probe have arrived. Returns the answers: one when the last segment arrives; else, when the plain probe shows that no
    /// more are to be expected, what has arrived until then and each packet that comes later.
    pub(crate) fn handle(&mut self, packets: ArrivedSegments) -> Vec<ArrivedSegments> {
        let ArrivedSegments { number, first, count } = packets;
        if self.number != number / 2 {
            *self = ArrivedBurst { number: number / 2, ..ArrivedBurst::default() };
        }
        if number % 2 == 1 {
            self.plain = true;
            if self.segments == ALL_SEGMENTS {
                return Vec::new();
            }
            let arrived = (0..SEGMENTS).filter(|index| self.segments & 1 << index != 0);
            let segment = |first| ArrivedSegments { number: number - 1, first, count: 1 };
            return arrived.map(segment).chain([packets]).collect();
        }
        let before = self.segments;
        self.segments |= bits(first, count);
        if self.segments == ALL_SEGMENTS && before != ALL_SEGMENTS {
            vec![ArrivedSegments { number, first: 0, count: SEGMENTS }]
        } else if self.plain {
            vec![packets]
        } else {
            Vec::new()
        }
    }
}

/// A bit for each of these segments.
fn bits(first: u8, count: u8) -> u8 {
    (first..first.saturating_add(count).min(SEGMENTS)).fold(0, |bits, index| bits | 1 << index)
}

/// The test of one path by one overlay.
#[derive(Debug, Default)]
pub(crate) struct SegmentationTest {
    broken: bool,
    /// Whether any round has ended.
    tested: bool,
    /// Rounds in a row that have found segmentation broken.
    failures: u32,
    /// Number of the next burst.
    burst: u32,
    round: Option<Round>,
    /// When the next round is due: only if data is sent while segmentation works.
    next_at: Option<Instant>,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Round {
    /// Number of its first burst.
    first: u32,
    /// Bursts sent since the evidence began, and in all.
    bursts: u32,
    total: u32,
    /// Plain probes that were answered, those answered together counted once.
    evidence: u32,
    counted_at: Option<Instant>,
    /// A bit for each segment that has arrived.
    arrived: u8,
    due: Instant,
}

impl SegmentationTest {
    /// Starts a round. To be called when the path has been found to work, with the time in which the neighbour has answered so far.
    pub(crate) fn start(&mut self, round_trip: Duration, now: Instant) {
        if self.round.is_none() {
            let round = Round {
                first: self.burst,
                bursts: 0,
                total: 0,
                evidence: 0,
                counted_at: None,
                arrived: 0,
                due: now,
            };
            self.next_at = None;
            self.send_burst(round, BURST_INTERVAL.max(round_trip * 2), now);
        }
    }

    /// Starts a round if one is due. To be called from time to time while data is sent.
    pub(crate) fn handle_traffic(&mut self, now: Instant) {
        if self.next_at.is_some_and(|at| now >= at) {
            self.start(Duration::ZERO, now);
        }
    }

    /// The neighbour does not answer probes: segmentation is used as if it worked.
    pub(crate) fn end_round(&mut self, now: Instant) {
        self.conclude(false, now);
    }

    /// The kernel has refused to segment, what it was given before or a probe: takes this for the result of a round.
    pub(crate) fn handle_refused(&mut self, now: Instant) {
        if !self.broken || self.round.is_some() {
            self.conclude(true, now);
        }
    }

    /// The neighbour has received packets of a probe.
    pub(crate) fn handle_arrived(&mut self, arrived: ArrivedSegments, now: Instant) {
        let ArrivedSegments { number, first, count } = arrived;
        let Some(round) = &mut self.round else { return };
        let burst = (number / 2).wrapping_sub(round.first);
        if burst >= round.total {
            return;
        }
        if number % 2 == 1 {
            if round.counted_at.is_none_or(|at| now.saturating_since(at) >= MIN_ANSWER_INTERVAL) {
                round.counted_at = Some(now);
                round.evidence += 1;
            }
            return;
        }
        round.arrived |= bits(first, count);
        if round.arrived == ALL_SEGMENTS {
            self.conclude(false, now);
        }
    }

    /// Whether segmentation is broken.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether any round has ended.
    pub(crate) fn is_tested(&self) -> bool {
        self.tested
    }

    pub(crate) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let round = self.round.as_ref().map(|round| round.due);
        let at = round.or(self.next_at.filter(|_| self.broken))?;
        Some((at, "segmentation test"))
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let Some(mut round) = self.round.take_if(|round| now >= round.due) else {
            if self.broken {
                self.handle_traffic(now);
            }
            return;
        };
        if now.saturating_since(round.due) > MAX_LATENESS {
            (round.bursts, round.evidence) = (0, 0);
        } else if round.bursts >= MIN_BURSTS && round.evidence >= round.bursts.min(EVIDENCE_UNDER_LOSS) {
            return self.conclude(true, now);
        }
        if round.total < MAX_BURSTS {
            let is_early = round.total + 1 < MIN_BURSTS;
            self.send_burst(round, if is_early { BURST_INTERVAL } else { SLOW_BURST_INTERVAL }, now);
        } else {
            self.tested = true;
            self.next_at = Some(now + self.interval());
        }
    }

    /// The next output, or `None` when there is none left.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Sends a burst, and the next one after `interval`.
    fn send_burst(&mut self, mut round: Round, interval: Duration, now: Instant) {
        self.outputs.push_back(Output::Burst(self.burst.wrapping_mul(2)));
        // The half of the numbers is enough for more than a century.
        self.burst = (self.burst + 1) % (u32::MAX / 2);
        round.bursts += 1;
        round.total += 1;
        round.due = now + interval;
        self.round = Some(round);
    }

    fn conclude(&mut self, broken: bool, now: Instant) {
        self.round = None;
        self.tested = true;
        match (self.broken, broken) {
            (_, true) => self.failures += 1,
            (false, false) => self.failures = 0,
            (true, false) => {}
        }
        if std::mem::replace(&mut self.broken, broken) != broken {
            self.outputs.push_back(if broken { Output::Broken } else { Output::Works });
        }
        self.next_at = Some(now + self.interval());
    }

    fn interval(&self) -> Duration {
        if !self.broken {
            return TEST_INTERVAL;
        }
        (MIN_RETRY_INTERVAL * 2u32.pow(self.failures.saturating_sub(1).min(8))).min(MAX_RETRY_INTERVAL)
    }
}

#[cfg(test)]
mod tests;
