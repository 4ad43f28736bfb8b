//! The latest probes of a path: when they were sent, and which were answered.

use std::collections::VecDeque;
use std::time::Duration;

use weave_types::Instant;

/// The answer to an older probe is ignored.
const MAX_PROBES: usize = 64;
/// How far back a [`PathQuality`] looks.
const WINDOW: Duration = Duration::from_secs(30);
/// A probe that has not been answered for this time counts as lost.
const LOSS_TIMEOUT: Duration = Duration::from_secs(1);
/// The round trip is the mean of so many answers.
const AVERAGED: u32 = 5;

/// What the probes of the last 30 seconds have shown about a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathQuality {
    /// The mean of the latest round trips, five at most; `None` if no probe was answered.
    pub round_trip: Option<Duration>,
    /// Probes that were answered or lost.
    pub probes: u32,
    /// Those that were not answered within a second.
    pub lost: u32,
}

#[derive(Debug)]
struct Probe {
    sent_at: Instant,
    round_trip: Option<Duration>,
}

#[derive(Debug, Default)]
pub(super) struct Probes {
    /// Number of the latest one.
    number: u32,
    /// The latest one is last.
    latest: VecDeque<Probe>,
}

impl Probes {
    /// A probe is sent. Returns its number.
    pub(super) fn send(&mut self, now: Instant) -> u32 {
        if self.latest.len() == MAX_PROBES {
            self.latest.pop_front();
        }
        self.latest.push_back(Probe { sent_at: now, round_trip: None });
        self.number = self.number.wrapping_add(1);
        self.number
    }

    /// Handles an answer. Returns its round trip; `None` if there was no such probe, or it is too old.
    pub(super) fn handle_answer(&mut self, number: u32, now: Instant) -> Option<Duration> {
        let age = usize::try_from(self.number.wrapping_sub(number)).ok()?;
        let index = self.latest.len().checked_sub(age + 1)?;
        let probe = self.latest.get_mut(index)?;
        let round_trip = now.saturating_since(probe.sent_at);
        probe.round_trip.get_or_insert(round_trip);
        Some(round_trip)
    }

    pub(super) fn quality(&self, now: Instant) -> PathQuality {
        let (mut answered, mut lost) = (0, 0);
        let (mut sum, mut summed) = (Duration::ZERO, 0);
        for probe in self.latest.iter().rev() {
            let age = now.saturating_since(probe.sent_at);
            match probe.round_trip {
                _ if age > WINDOW => break,
                Some(round_trip) => {
                    answered += 1;
                    if summed < AVERAGED {
                        sum += round_trip;
                        summed += 1;
                    }
                }
                None => lost += u32::from(age >= LOSS_TIMEOUT),
            }
        }
        PathQuality { round_trip: sum.checked_div(summed), probes: answered + lost, lost }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_origin(Duration::from_millis(ms))
    }

    #[test]
    fn round_trip_and_loss_of_the_last_half_minute() {
        let mut probes = Probes::default();
        assert_eq!(probes.quality(at(0)), PathQuality::default());
        // One in a second; every fourth is lost, the others take 10 ms, at last 20 ms.
        for n in 0..40u64 {
            let number = probes.send(at(n * 1000));
            if n % 4 != 3 {
                let delay = if n < 30 { 10 } else { 20 };
                assert_eq!(
                    probes.handle_answer(number, at(n * 1000 + delay)),
                    Some(Duration::from_millis(delay))
                );
            }
        }
        // 39 is not answered either, but it was sent just now.
        let quality = probes.quality(at(39_500));
        let round_trip = Some(Duration::from_millis(20));
        assert_eq!(quality, PathQuality { round_trip, probes: 29, lost: 7 });
        assert_eq!(probes.quality(at(40_000)).lost, 7 + 1);
        assert_eq!(probes.quality(at(90_000)), PathQuality::default());
    }

    #[test]
    fn answers_without_a_probe_are_ignored() {
        let mut probes = Probes::default();
        assert_eq!(probes.handle_answer(0, at(1)), None);
        assert_eq!(probes.handle_answer(1, at(1)), None);
        let first = probes.send(at(0));
        assert_eq!(probes.handle_answer(first + 1, at(1)), None);
        for _ in 0..MAX_PROBES {
            probes.send(at(10));
        }
        assert_eq!(probes.handle_answer(first, at(20)), None, "too old");
        assert_eq!(probes.handle_answer(first + 1, at(20)), Some(Duration::from_millis(10)));
        // The kernel and the daemon of the neighbour may both answer.
        assert_eq!(probes.handle_answer(first + 1, at(25)), Some(Duration::from_millis(15)));
        assert_eq!(probes.quality(at(30)).round_trip, Some(Duration::from_millis(10)));
    }
}
