//! Limits what is logged about MACs: a container can use any number of them.

use std::collections::BTreeMap;
use std::time::Duration;

use weave_types::{Instant, PeerName};

/// Lines about the MACs of one peer in each period; the others are summed up at its end.
const LINES: u64 = 20;
const PERIOD: Duration = Duration::from_secs(10);

/// What happened to the MACs of one peer in a period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MacCounts {
    pub(crate) discovered: u64,
    pub(crate) expired: u64,
    lines: u64,
}

#[derive(Debug, Default)]
pub(crate) struct MacLog {
    /// The peers with an event in this period, which are peers of the topology.
    peers: BTreeMap<PeerName, MacCounts>,
    ends_at: Option<Instant>,
}

impl MacLog {
    /// Whether a line is logged about a MAC that was discovered at this peer, or moved there. Otherwise it is counted.
    pub(crate) fn discovered(&mut self, peer: PeerName, now: Instant) -> bool {
        self.admit(peer, now, |counts| &mut counts.discovered)
    }

    /// The same for a MAC that has expired.
    pub(crate) fn expired(&mut self, peer: PeerName, now: Instant) -> bool {
        self.admit(peer, now, |counts| &mut counts.expired)
    }

    fn admit(&mut self, peer: PeerName, now: Instant, count: fn(&mut MacCounts) -> &mut u64) -> bool {
        self.ends_at.get_or_insert(now + PERIOD);
        let counts = self.peers.entry(peer).or_default();
        let admitted = counts.lines < LINES;
        if admitted {
            counts.lines += 1;
        } else {
            *count(counts) += 1;
        }
        admitted
    }

    pub(crate) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.ends_at.map(|at| (at, "summary of MACs"))
    }

    /// The counts of a period that has ended, of peers with more than the logged lines.
    pub(crate) fn take_summaries(&mut self, now: Instant) -> Vec<(PeerName, MacCounts)> {
        if self.ends_at.is_none_or(|at| now < at) {
            return Vec::new();
        }
        self.ends_at = None;
        let peers = std::mem::take(&mut self.peers).into_iter();
        peers.filter(|(_, counts)| counts.discovered + counts.expired > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_macs_is_summed_up() {
        let at = |s| Instant::from_origin(Duration::from_secs(s));
        let [flood, other] = [1, 2].map(|n| PeerName::from_bytes([0x7a, 0, 0, 0, 0, n]));
        let mut log = MacLog::default();
        assert_eq!((log.poll_timeout(), log.take_summaries(at(0))), (None, Vec::new()));
        assert_eq!((0..100_000).filter(|_| log.discovered(flood, at(1))).count(), LINES as usize);
        assert!(log.discovered(other, at(2)), "others are logged");
        assert_eq!((0..50).filter(|_| log.expired(flood, at(3))).count(), 0);
        assert_eq!(log.poll_timeout().map(|(at, _)| at), Some(at(11)));
        assert_eq!(log.take_summaries(at(10)), []);
        let counts = MacCounts { discovered: 100_000 - LINES, expired: 50, lines: LINES };
        assert_eq!(log.take_summaries(at(11)), [(flood, counts)]);
        assert_eq!(log.poll_timeout(), None);
        assert!(log.discovered(flood, at(11)));
    }
}
