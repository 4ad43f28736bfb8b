//! Start with stored state, or with a new ring (docs/spec/ipam.md 9).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand_chacha::ChaCha12Rng;
use weave_types::Now;

use super::claim::Claim;
use super::donate::SpaceRequests;
use super::{Allocator, StaleFreeCounts};
use crate::address::ipv4;
use crate::config::{Config, Init};
use crate::output::{DiscardReason, Event, Output, Persist};
use crate::owned::{Container, Owned, Record};
use crate::paxos::{Election, ElectorId, Paxos};
use crate::persist::Loaded;
use crate::ring::Ring;
use crate::space::{RangeSet, Space};

impl Allocator {
    /// Starts a peer. Stored state is used if it belongs to the same name and range (docs/spec/ipam.md 9), else
    /// discarded. `rng` chooses among donors.
    pub fn new(config: Config, rng: ChaCha12Rng, loaded: Loaded, now: Now) -> Allocator {
        let range = config.range.range();
        let mut allocator = Allocator {
            ring: Ring::new(range, config.name),
            stale_free_counts: StaleFreeCounts::Nothing,
            space: Space::default(),
            owned: Owned::default(),
            elector: ElectorId { name: config.name, uid: config.uid },
            paxos: None,
            election_since: None,
            targets: 0,
            warned_quorum: false,
            ring_unsaved: false,
            saved_election: None,
            nicknames: BTreeMap::from([(config.name, config.nickname.clone())]),
            reachable: BTreeMap::new(),
            unreachable_since: BTreeMap::new(),
            allocating: BTreeSet::new(),
            met_peer: false,
            conflicts: BTreeMap::new(),
            disputed: RangeSet::default(),
            release_at: BTreeMap::new(),
            primes: VecDeque::new(),
            claims: VecDeque::new(),
            allocations: VecDeque::new(),
            space_requests: SpaceRequests::default(),
            next_tick: None,
            leaving: false,
            transferred: RangeSet::default(),
            transfer_targets: BTreeMap::new(),
            outputs: VecDeque::new(),
            config,
            rng,
        };
        allocator.load(loaded, now);
        if let (true, Init::Seed(seeds)) = (allocator.ring.is_empty(), allocator.config.init.clone()) {
            allocator.create_ring(&seeds, now);
        }
        allocator.finish(now);
        allocator
    }

    fn load(&mut self, loaded: Loaded, now: Now) {
        let Loaded { ring, election, owned } = loaded;
        if let Some(why) = self.discard_reason(ring.as_ref()) {
            // Without a ring, the stored addresses in use and promises of an election stay valid.
            if why != DiscardReason::NoRing {
                self.output(Output::Persist(Persist::Clear));
                self.event(Event::LoadedDiscarded(why));
                self.join_election(None);
                return;
            }
            if ring.is_some() {
                self.event(Event::LoadedDiscarded(why));
            }
            self.join_election(election);
            self.load_owned(owned, now);
        } else if let Some(ring) = ring {
            self.ring = ring;
            self.space.set_owned(self.ring.ranges_owned_by(self.me()));
            self.stale_free_counts = StaleFreeCounts::All;
            if election.is_some() {
                self.output(Output::Persist(Persist::Election(None)));
            }
            self.load_owned(owned, now);
            let ours = self.space.free().count() + self.space.used().count();
            self.event(Event::LoadedRing { owned: ours });
        }
    }

    /// Why the stored ring cannot be used.
    fn discard_reason(&self, ring: Option<&Ring>) -> Option<DiscardReason> {
        let Some(ring) = ring else { return Some(DiscardReason::NoRing) };
        if ring.peer() != self.me() {
            return Some(DiscardReason::Name(ring.peer()));
        }
        if ring.range() != self.config.range.range() {
            return Some(DiscardReason::Range(ring.range()));
        }
        if ring.is_empty() {
            return Some(DiscardReason::NoRing);
        }
        ring.check().err().map(|error| DiscardReason::Invalid(error.to_string()))
    }

    /// Takes part in elections, except as an observer.
    fn join_election(&mut self, election: Option<Election>) {
        self.saved_election.clone_from(&election);
        if self.config.init == Init::Observer {
            return;
        }
        let range = self.config.range.range();
        let stored = election.filter(|e| e.elector.name == self.me() && e.range == range);
        self.paxos = Some(match stored {
            Some(election) => {
                self.elector = election.elector;
                Paxos::resume(election)
            }
            None => Paxos::new(self.elector),
        });
    }

    /// Restores addresses in use. Addresses in own ranges are used, addresses outside the range are only recorded,
    /// and all others have to be claimed again.
    fn load_owned(&mut self, owned: BTreeMap<Container, Record>, now: Now) {
        let universe = self.config.range.range();
        for (container, record) in owned {
            let Record { is_container, cidrs } = &record;
            if cidrs.is_empty() {
                continue;
            }
            for &cidr in cidrs {
                let Some(addr) = ipv4(cidr) else { continue };
                if self.owned.holder(addr).is_some() {
                    continue;
                }
                if !universe.contains(addr) || self.space.claim(addr) {
                    self.owned.add(&container, cidr, *is_container);
                } else {
                    self.claims.push_back(Claim::background(container.clone(), cidr, *is_container, now));
                }
            }
        }
    }
}
