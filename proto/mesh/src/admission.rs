use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use weave_types::{ConnectionUid, Instant, TokenBucket};

/// Limits how fast connections are accepted, in total (docs/spec/mesh.md 11.1) and per source address. 2.8.1 has no limit
/// per source, so one host can use up the total.
#[derive(Debug)]
pub(crate) struct Admission {
    total: TokenBucket,
    /// Sources that have connected recently. The limit in total keeps the map small.
    sources: BTreeMap<IpAddr, TokenBucket>,
    last_refusal: Option<Instant>,
}

const TOTAL_BURST: u32 = 20;
const TOTAL_INTERVAL: Duration = Duration::from_millis(50);
const SOURCE_BURST: u32 = 15;
const SOURCE_INTERVAL: Duration = Duration::from_millis(250);
/// Pause of the listener after a refused connection, so that a refusal costs the remote more than us.
const REFUSAL_DELAY: Duration = Duration::from_millis(1);

impl Admission {
    pub(crate) fn new() -> Admission {
        let total = TokenBucket::new(TOTAL_BURST, TOTAL_INTERVAL);
        Admission { total, sources: BTreeMap::new(), last_refusal: None }
    }

    /// Decides whether a connection that was accepted from this address may stay.
    pub(crate) fn admit(&mut self, from: IpAddr, now: Instant) -> bool {
        self.sources.retain(|_, bucket| !bucket.is_full(now));
        let new = || TokenBucket::new(SOURCE_BURST, SOURCE_INTERVAL);
        let admitted = self.sources.entry(source(from)).or_insert_with(new).try_take(now);
        if admitted {
            self.total.take(now);
        } else {
            self.last_refusal = Some(now);
        }
        admitted
    }

    /// How long the listener waits before it accepts the next connection.
    pub(crate) fn delay(&self, now: Instant) -> Duration {
        let refusal = if self.last_refusal == Some(now) { REFUSAL_DELAY } else { Duration::ZERO };
        self.total.delay(now).max(refusal)
    }
}

/// An IPv6 host usually has a /64 of addresses, which count as one source.
fn source(from: IpAddr) -> IpAddr {
    match from {
        IpAddr::V4(_) => from,
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
    }
}

/// Which of two connections to the same peer is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Survivor {
    Old,
    New,
    Neither,
}

/// Decides by numbers that both ends know, so that both keep the same connection (docs/spec/mesh.md 11.3).
pub(crate) fn resolve_duplicate(old: ConnectionUid, new: ConnectionUid) -> Survivor {
    match new.cmp(&old) {
        std::cmp::Ordering::Less => Survivor::New,
        std::cmp::Ordering::Greater => Survivor::Old,
        std::cmp::Ordering::Equal => Survivor::Neither,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_origin(Duration::from_millis(ms))
    }

    #[test]
    fn a_flooding_source_does_not_exclude_others() {
        let mut admission = Admission::new();
        let [flood, other]: [IpAddr; 2] = ["10.0.0.9".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        let admitted = (0..100).filter(|_| admission.admit(flood, at(0))).count();
        assert_eq!(admitted, 15);
        assert_eq!(admission.delay(at(0)), Duration::from_millis(1), "a refusal delays the next accept");
        assert_eq!(admission.delay(at(1)), Duration::ZERO);
        assert!(admission.admit(other, at(1)));
        // For ten seconds one source connects as often as it can, and another one twice per second.
        let mut admitted_of = [0; 2];
        let mut now = 1;
        while now < 10_000 {
            let from = if now % 500 < 2 { other } else { flood };
            admitted_of[usize::from(from == other)] += usize::from(admission.admit(from, at(now)));
            now += (admission.delay(at(now)).as_millis() as u64).max(1);
        }
        assert!((38..=42).contains(&admitted_of[0]) && admitted_of[1] >= 19, "{admitted_of:?}");
        assert!(admission.sources.len() <= 2);
        let [a, b]: [IpAddr; 2] = ["2001:db8::1".parse().unwrap(), "2001:db8::ffff:2".parse().unwrap()];
        let late = at(100_000);
        assert_eq!((0..100).filter(|n| admission.admit([a, b][n % 2], late)).count(), 15);
        assert_eq!(admission.sources.len(), 1);
    }

    /// Tries all orders in which up to three connections between two peers can be added at the two ends.
    #[test]
    fn both_ends_keep_the_same_duplicate() {
        fn orders(n: usize) -> Vec<Vec<usize>> {
            if n == 0 {
                return vec![Vec::new()];
            }
            let shorter = orders(n - 1);
            shorter
                .iter()
                .flat_map(|o| (0..=o.len()).map(|i| [&o[..i], &[n - 1], &o[i..]].concat()))
                .collect()
        }
        /// Adds connections in this order, except those that one end has closed, and returns the one that is kept.
        fn kept(uids: &[u64], order: &[usize], closed: &mut [bool]) -> Option<usize> {
            let mut held: Option<usize> = None;
            for &new in order {
                if closed[new] {
                    continue;
                }
                held = match held {
                    None => Some(new),
                    Some(old) => {
                        match resolve_duplicate(ConnectionUid(uids[old]), ConnectionUid(uids[new])) {
                            Survivor::Old => {
                                closed[new] = true;
                                Some(old)
                            }
                            Survivor::New => {
                                closed[old] = true;
                                Some(new)
                            }
                            Survivor::Neither => {
                                (closed[old], closed[new]) = (true, true);
                                None
                            }
                        }
                    }
                };
            }
            held
        }
        let mut cases = 0;
        for n in 1..=3usize {
            for code in 0..3u64.pow(n as u32) {
                let uids: Vec<u64> = (0..n as u32).map(|i| code / 3u64.pow(i) % 3).collect();
                let lowest = uids.iter().min().unwrap();
                for a in orders(n) {
                    for b in orders(n) {
                        // First each end alone, then the second end knows what the first one has closed.
                        for closed_known in [false, true] {
                            let mut closed_a = vec![false; n];
                            let at_a = kept(&uids, &a, &mut closed_a);
                            let mut closed_b = if closed_known { closed_a.clone() } else { vec![false; n] };
                            let at_b = kept(&uids, &b, &mut closed_b);
                            let open = |held: Option<usize>| held.filter(|&c| !closed_a[c] && !closed_b[c]);
                            if uids.iter().filter(|u| *u == lowest).count() == 1 {
                                assert_eq!(open(at_a), open(at_b), "{uids:?} {a:?} {b:?}");
                                assert_eq!(
                                    open(at_a).map(|c| uids[c]),
                                    Some(*lowest),
                                    "{uids:?} {a:?} {b:?}"
                                );
                                cases += 1;
                            }
                        }
                    }
                }
            }
        }
        assert!(cases > 500, "{cases}");
    }
}
