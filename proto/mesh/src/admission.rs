use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use weave_types::{ConnectionUid, Instant};

/// Slows accepting down (docs/spec/mesh.md 11.1): bursts of 20, then 20 per second.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// The bucket would be full at this time if nothing were accepted any more.
    full_at: Instant,
}

/// Keeps one address from taking all of it: further connections from there are closed at once, and cost nobody else a
/// place. 2.8.1 has nothing of the kind.
#[derive(Debug)]
pub(crate) struct Admission {
    all: Bucket,
    /// Of those who have connected lately. The common bucket keeps it small.
    sources: BTreeMap<IpAddr, Instant>,
    refused: Option<Instant>,
}

/// One source may connect so often at once,
const SOURCE_CAPACITY: u32 = 15;
/// and then once in this time.
const PER_SOURCE_TOKEN: Duration = Duration::from_millis(250);
/// What a refused connection costs the one who keeps trying, and us.
const REFUSAL: Duration = Duration::from_millis(1);

impl Admission {
    pub(crate) fn new(now: Instant) -> Admission {
        Admission { all: Bucket::new(now), sources: BTreeMap::new(), refused: None }
    }

    /// A connection was accepted from there; whether it may stay.
    pub(crate) fn admit(&mut self, from: IpAddr, now: Instant) -> bool {
        self.sources.retain(|_, full_at| *full_at > now);
        let full_at = self.sources.get(&source(from)).copied().unwrap_or(now);
        if full_at - now > PER_SOURCE_TOKEN * (SOURCE_CAPACITY - 1) {
            self.refused = Some(now);
            return false;
        }
        self.sources.insert(source(from), full_at + PER_SOURCE_TOKEN);
        self.all.take(now);
        true
    }

    /// How long to wait before the next one is accepted.
    pub(crate) fn delay(&self, now: Instant) -> Duration {
        let refusal = if self.refused == Some(now) { REFUSAL } else { Duration::ZERO };
        self.all.delay(now).max(refusal)
    }
}

/// Whoever has an IPv6 address usually has 2^64 of them.
fn source(from: IpAddr) -> IpAddr {
    match from {
        IpAddr::V4(_) => from,
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
    }
}

const CAPACITY: u32 = 20;
const PER_TOKEN: Duration = Duration::from_millis(50);

impl Bucket {
    pub(crate) fn new(now: Instant) -> Bucket {
        Bucket { full_at: now }
    }

    /// A connection was accepted.
    pub(crate) fn take(&mut self, now: Instant) {
        self.full_at = self.full_at.max(now) + PER_TOKEN;
    }

    /// How long to wait until there is a token.
    pub(crate) fn delay(&self, now: Instant) -> Duration {
        (self.full_at - now).saturating_sub(PER_TOKEN * (CAPACITY - 1))
    }
}

/// Which of two connections to the same peer stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Survivor {
    Old,
    New,
    Neither,
}

/// Both ends see the same two numbers, so both keep the same connection (docs/spec/mesh.md 11.3).
pub(crate) fn resolve(old: ConnectionUid, new: ConnectionUid) -> Survivor {
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
    fn bursts_then_a_steady_rate() {
        let mut bucket = Bucket::new(at(0));
        for _ in 0..20 {
            assert_eq!(bucket.delay(at(0)), Duration::ZERO);
            bucket.take(at(0));
        }
        assert_eq!(bucket.delay(at(0)), Duration::from_millis(50));
        assert_eq!(bucket.delay(at(49)), Duration::from_millis(1));
        assert_eq!(bucket.delay(at(50)), Duration::ZERO);
        bucket.take(at(50));
        assert_eq!(bucket.delay(at(50)), Duration::from_millis(50));
        let later = at(50 + 1050);
        for _ in 0..20 {
            assert_eq!(bucket.delay(later), Duration::ZERO, "full again, not fuller");
            bucket.take(later);
        }
        assert!(bucket.delay(later) > Duration::ZERO);
    }

    #[test]
    fn one_source_leaves_room_for_the_others() {
        let mut admission = Admission::new(at(0));
        let [flood, other]: [IpAddr; 2] = ["10.0.0.9".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        let admitted = (0..100).filter(|_| admission.admit(flood, at(0))).count();
        assert_eq!(admitted, 15);
        assert_eq!(admission.delay(at(0)), Duration::from_millis(1), "refusals are cheap, not free");
        assert_eq!(admission.delay(at(1)), Duration::ZERO);
        assert!(admission.admit(other, at(1)));
        // For ten seconds one keeps trying, as often as it can, and another now and then.
        let mut got = [0; 2];
        let mut now = 1;
        while now < 10_000 {
            let who = if now % 500 < 2 { other } else { flood };
            got[usize::from(who == other)] += usize::from(admission.admit(who, at(now)));
            now += (admission.delay(at(now)).as_millis() as u64).max(1);
        }
        assert!((38..=42).contains(&got[0]) && got[1] >= 19, "{got:?}");
        assert!(admission.sources.len() <= 2);
        let [a, b]: [IpAddr; 2] = ["2001:db8::1".parse().unwrap(), "2001:db8::ffff:2".parse().unwrap()];
        let late = at(100_000);
        assert_eq!((0..100).filter(|n| admission.admit([a, b][n % 2], late)).count(), 15);
        assert_eq!(admission.sources.len(), 1);
    }

    /// All ways in which up to three connections between two peers can be added at both ends: never do the ends keep
    /// different ones, and one survives if the lowest number is unique.
    #[test]
    fn both_ends_keep_the_same() {
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
        /// Adds in this order; a connection that either end has closed before is not added any more.
        fn kept(uids: &[u64], order: &[usize], dead: &mut [bool]) -> Option<usize> {
            let mut held: Option<usize> = None;
            for &new in order {
                if dead[new] {
                    continue;
                }
                held = match held {
                    None => Some(new),
                    Some(old) => match resolve(ConnectionUid(uids[old]), ConnectionUid(uids[new])) {
                        Survivor::Old => {
                            dead[new] = true;
                            Some(old)
                        }
                        Survivor::New => {
                            dead[old] = true;
                            Some(new)
                        }
                        Survivor::Neither => {
                            (dead[old], dead[new]) = (true, true);
                            None
                        }
                    },
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
                        // Each end alone, then each told of what the other has closed.
                        for told in [false, true] {
                            let mut dead_a = vec![false; n];
                            let at_a = kept(&uids, &a, &mut dead_a);
                            let mut dead_b = if told { dead_a.clone() } else { vec![false; n] };
                            let at_b = kept(&uids, &b, &mut dead_b);
                            let alive = |held: Option<usize>| held.filter(|&c| !dead_a[c] && !dead_b[c]);
                            if uids.iter().filter(|u| *u == lowest).count() == 1 {
                                assert_eq!(alive(at_a), alive(at_b), "{uids:?} {a:?} {b:?}");
                                assert_eq!(
                                    alive(at_a).map(|c| uids[c]),
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
