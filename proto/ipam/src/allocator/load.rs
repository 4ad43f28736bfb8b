//! The start: what was stored, or a first ring (docs/spec/ipam.md 9).

use std::collections::{BTreeMap, VecDeque};

use rand_chacha::ChaCha12Rng;
use weave_types::Now;

use super::claim::Claim;
use super::donate::Asks;
use super::{Allocator, Stale, is_empty, node_of};
use crate::address::ipv4;
use crate::config::{Config, Init};
use crate::output::{Container, DiscardReason, Event, Output, Persist};
use crate::owned::{Owned, Record};
use crate::paxos::{Election, Paxos};
use crate::persist::Loaded;
use crate::ring::Ring;
use crate::space::{RangeSet, Space};

impl Allocator {
    /// A peer at its start. What was stored is used if it is of the same name and range (docs/spec/ipam.md 9). `rng` breaks ties
    /// among donors.
    pub fn new(config: Config, rng: ChaCha12Rng, loaded: Loaded, now: Now) -> Allocator {
        let range = config.range.range();
        let mut allocator = Allocator {
            ring: Ring::new(range, config.name),
            stale: Stale::Nothing,
            space: Space::default(),
            owned: Owned::default(),
            node: node_of(&config, config.uid),
            paxos: None,
            waiting: None,
            targets: 0,
            warned_quorum: false,
            ring_unsaved: false,
            saved_election: None,
            nicknames: BTreeMap::from([(config.name, config.nickname.clone())]),
            reachable: BTreeMap::new(),
            lost_sight: BTreeMap::new(),
            conflicts: BTreeMap::new(),
            disputed: RangeSet::default(),
            dead: BTreeMap::new(),
            primes: VecDeque::new(),
            claims: VecDeque::new(),
            allocations: VecDeque::new(),
            asks: Asks::default(),
            next_tick: None,
            leaving: false,
            bequeathed: RangeSet::default(),
            heirs: BTreeMap::new(),
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
        if let Some(why) = self.refusal(ring.as_ref()) {
            // Without a ring, addresses in use are still in use, and a promise is a promise.
            if why != DiscardReason::NoRing {
                self.output(Output::Persist(Persist::Clear));
                self.event(Event::LoadedDiscarded(why));
                self.vote(None);
                return;
            }
            if ring.is_some() {
                self.event(Event::LoadedDiscarded(why));
            }
            self.vote(election);
            self.load_owned(owned, now);
        } else if let Some(ring) = ring {
            self.ring = ring;
            self.space.set_owned(self.ring.ranges_owned_by(self.me()));
            self.stale = Stale::All;
            if election.is_some() {
                self.output(Output::Persist(Persist::Election(None)));
            }
            self.load_owned(owned, now);
            let ours = self.space.free().count() + self.space.used().count();
            self.event(Event::LoadedRing { owned: ours });
        }
    }

    /// Why a stored ring cannot be used.
    fn refusal(&self, ring: Option<&Ring>) -> Option<DiscardReason> {
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
        ring.check().err().map(|fault| DiscardReason::Invalid(fault.to_string()))
    }

    /// Takes part in elections, unless we are an observer.
    fn vote(&mut self, election: Option<Election>) {
        self.saved_election.clone_from(&election);
        if self.config.init == Init::Observer {
            return;
        }
        let range = self.config.range.range();
        let stored = election.filter(|e| e.elector.name == self.me() && e.range == range);
        self.paxos = Some(match stored {
            Some(election) => {
                self.node = election.elector;
                Paxos::resume(election)
            }
            None => Paxos::new(self.node),
        });
    }

    /// Addresses in use: those that are ours by the ring are used, those outside the range are only remembered, and the
    /// others have to be claimed again.
    fn load_owned(&mut self, owned: BTreeMap<Container, Record>, now: Now) {
        let universe = self.config.range.range();
        for (container, record) in owned {
            let Record { is_container, cidrs } = &record;
            if is_empty(&record) {
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
                    self.claims.push_back(Claim::unasked(container.clone(), cidr, *is_container, now));
                }
            }
        }
    }
}
