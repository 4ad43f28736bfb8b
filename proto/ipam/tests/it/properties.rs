//! Rings with conflict-free histories converge to the same owners, in whatever order the peers exchange them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;
use weave_ipam::merge::MergeError;
use weave_ipam::space::{RangeSet, Space};
use weave_ipam::{AddrRange, Entry, Ring};
use weave_types::{Cidr, PeerName};

const SIZE: u32 = 64;

fn peer(n: usize) -> PeerName {
    PeerName::from_number(n as u64 + 1).unwrap()
}

#[derive(Clone, Debug)]
enum Op {
    /// The peer uses its lowest free address and updates its free count.
    Use(usize),
    /// The peer donates a range to another one.
    Donate(usize, usize),
    /// One peer merges the ring of another.
    Merge(usize, usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0usize..4).prop_map(Op::Use),
        (0usize..4, 0usize..4).prop_map(|(a, b)| Op::Donate(a, b)),
        (0usize..4, 0usize..4).prop_map(|(a, b)| Op::Merge(a, b)),
    ]
}

struct World {
    rings: Vec<Ring>,
    spaces: Vec<Space>,
}

impl World {
    fn new() -> World {
        let names: Vec<PeerName> = (0..3).map(peer).collect();
        let mut world = World { rings: Vec::new(), spaces: Vec::new() };
        for n in 0..4 {
            let mut ring = Ring::new(AddrRange::new(256, 256 + SIZE), peer(n));
            // The fourth peer has no ring yet.
            if n < 3 {
                ring.divide(&names);
            }
            let mut space = Space::default();
            space.set_owned(ring.ranges_owned_by(peer(n)));
            world.rings.push(ring);
            world.spaces.push(space);
        }
        world
    }

    fn apply(&mut self, op: &Op) -> Result<(), TestCaseError> {
        let nothing = RangeSet::default();
        match *op {
            Op::Use(n) => {
                self.spaces[n].allocate(self.rings[n].range(), &nothing);
                let free = self.spaces[n].free().clone();
                self.rings[n].report_free(|range| free.count_in(range));
            }
            Op::Donate(n, to) => {
                if n != to
                    && let Some(donation) = self.spaces[n].offer(self.rings[n].range(), &nothing)
                {
                    self.spaces[n].remove(donation);
                    self.rings[n].grant(donation, peer(to));
                    self.rings[n].check().unwrap();
                    let free = self.spaces[n].free().clone();
                    self.rings[n].report_free(|range| free.count_in(range));
                }
            }
            Op::Merge(n, from) => {
                let theirs = self.rings[from].clone();
                let before = self.rings[n].clone();
                let (ring, space) = (&mut self.rings[n], &mut self.spaces[n]);
                let merged = ring.merge(&theirs, |range| space.first_used(range));
                prop_assert!(merged.is_ok(), "{merged:?}");
                let mine = |ring: &Ring| ring.ranges_owned_by(peer(n)).into_iter().collect::<RangeSet>();
                prop_assert!(mine(&before).minus(&mine(ring)).is_empty(), "an own range was lost");
                for old in before.entries() {
                    let new = ring.entries().iter().find(|e| e.token == old.token);
                    prop_assert!(
                        new.is_some_and(|new| new.version >= old.version),
                        "tokens stay, versions rise"
                    );
                }
                ring.check().unwrap();
                prop_assert!(space.set_owned(ring.ranges_owned_by(peer(n))).is_empty());
                // A second merge changes nothing.
                let once = ring.clone();
                let again = ring.merge(&theirs, |range| space.first_used(range));
                prop_assert!(again.is_ok_and(|merged| !merged.updated));
                prop_assert_eq!(&once, &*ring);
            }
        }
        Ok(())
    }
}

/// All addresses of a network.
fn block(cidr: Cidr) -> AddrRange {
    let IpAddr::V4(first) = cidr.addr() else { panic!("{cidr} is not IPv4") };
    AddrRange::new(first.into(), u32::from(first) + (1 << (32 - cidr.prefix())))
}

fn owners(ring: &Ring) -> BTreeMap<u32, PeerName> {
    ring.entries().iter().map(|e| (e.token, e.peer)).collect()
}

fn ignore_free(ring: &Ring) -> Vec<(u32, PeerName, u32)> {
    ring.entries().iter().map(|e| (e.token, e.peer, e.version)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn all_views_converge(ops in prop::collection::vec(op(), 0..80)) {
        let mut world = World::new();
        for op in &ops {
            world.apply(op)?;
            let mut all = RangeSet::default();
            for (space, ring) in world.spaces.iter().zip(&world.rings) {
                for range in space.used().iter().chain(space.free().iter()) {
                    prop_assert_eq!(all.count_in(range), 0, "two peers have one address");
                    all.insert(range);
                }
                prop_assert!(ring.check().is_ok());
            }
        }

        // Merging two views in either order gives the same ring, except for free counts.
        let merged = |a: usize, b: usize| {
            let observer = peer(9);
            let as_seen = |ring: &Ring| Ring::from_parts(ring.range(), observer, ring.entries().to_vec(), ring.seeds().to_vec());
            let mut ring = as_seen(&world.rings[a]);
            ring.merge(&world.rings[b], |_| None).map(|_| ring)
        };
        for (a, b) in [(0, 1), (1, 2), (0, 2), (3, 0)] {
            let (one, two) = (merged(a, b).unwrap(), merged(b, a).unwrap());
            prop_assert_eq!(ignore_free(&one), ignore_free(&two));
        }

        for _ in 0..3 {
            for n in 0..4 {
                for from in 0..4 {
                    world.apply(&Op::Merge(n, from))?;
                }
            }
        }
        for ring in &world.rings[1..] {
            prop_assert_eq!(owners(ring), owners(&world.rings[0]));
        }
    }

    /// The networks of a peer contain each of its addresses once, are ascending, and no two of them could be joined.
    #[test]
    fn networks_cover_exactly_and_are_fewest(
        tokens in prop::collection::btree_map(0u32..64, 0usize..3, 0..12),
    ) {
        let range = AddrRange::new(256, 256 + SIZE);
        let entries = tokens.iter().map(|(&token, &owner)| Entry { token: 256 + token, peer: peer(owner), version: 0, free: 0 });
        let ring = Ring::from_parts(range, peer(0), entries.collect(), Vec::new());
        for n in 0..4 {
            let blocks: Vec<AddrRange> = ring.networks_of(peer(n)).into_iter().map(block).collect();
            let addresses: Vec<u32> = blocks.iter().flat_map(|b| b.start()..b.end()).collect();
            let owned: Vec<u32> =
                (range.start()..range.end()).filter(|&a| ring.owner_of(a) == Some(peer(n))).collect();
            prop_assert_eq!(addresses, owned);
            for pair in blocks.windows(2) {
                let one = pair[0].end() == pair[1].start() && pair[0].size() == pair[1].size();
                prop_assert!(!one || !pair[0].start().is_multiple_of(2 * pair[0].size()), "{:?}", blocks);
            }
        }
    }

    /// For any received ring: no panic, no change after an error, and addresses in use keep their owner.
    #[test]
    fn hostile_rings_are_safe(
        mine in prop::collection::btree_map(0u32..16, (0usize..3, 0u32..4), 1..6),
        theirs in prop::collection::vec((0u32..18, 0usize..3, 0u32..5, 0u32..8), 0..8),
        used in prop::collection::btree_set(0u32..16, 0..4),
        sorted in any::<bool>(),
    ) {
        let range = AddrRange::new(0, 16);
        let entries = mine.iter().map(|(&token, &(owner, version))| Entry { token, peer: peer(owner), version, free: 0 });
        let mut ring = Ring::from_parts(range, peer(0), entries.collect(), Vec::new());
        let mut received: Vec<Entry> = theirs
            .iter()
            .map(|&(token, owner, version, free)| Entry { token, peer: peer(owner), version, free })
            .collect();
        if sorted {
            received.sort_by_key(|e| e.token);
            received.dedup_by_key(|e| e.token);
        }
        let received = Ring::from_parts(range, peer(1), received, Vec::new());
        let owned: RangeSet = ring.ranges_owned_by(peer(0)).into_iter().collect();
        let used: Vec<u32> = used.into_iter().filter(|&a| owned.contains(a)).collect();
        let first_used = |range: AddrRange| used.iter().copied().find(|&a| range.contains(a));
        let before = ring.clone();
        match ring.merge(&received, first_used) {
            Ok(_) => {
                prop_assert!(ring.check().is_ok());
                let owned: RangeSet = ring.ranges_owned_by(peer(0)).into_iter().collect();
                prop_assert!(used.iter().all(|&a| owned.contains(a)));
            }
            Err(error) => {
                prop_assert_eq!(&ring, &before);
                if let MergeError::Conflict { disputed, .. } = error {
                    prop_assert!(disputed.iter().all(|r| owned.count_in(*r) == r.size()));
                }
            }
        }
    }
}
