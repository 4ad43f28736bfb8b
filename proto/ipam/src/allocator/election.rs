//! The first division of the range (docs/spec/ipam.md 5, 8.12).

use weave_types::{Now, PeerName};

use super::{Allocator, Stale, quorum_source};
use crate::output::{Event, Output, Persist, QuorumSource};

impl Allocator {
    /// Number of peer addresses that we have been given and that are not known to lead to ourself: a guess at the number
    /// of electors. To be called before the first request, and whenever that changes.
    pub fn handle_target_count(&mut self, others: u32, now: Now) {
        let before = self.quorum();
        self.targets = others;
        let quorum = self.quorum();
        if let Some(paxos) = self.paxos.as_mut().filter(|paxos| paxos.quorum() > 0) {
            // 2.8.1 reckons once, when the election begins. An address may turn out to be our own right after that, and
            // the election would wait for a peer that does not exist.
            paxos.set_quorum(quorum);
        }
        if self.waiting.is_some() && quorum < before {
            self.propose(now);
        }
        self.finish(now);
    }

    pub(super) fn source(&self) -> QuorumSource {
        quorum_source(&self.config.init, self.targets)
    }

    pub(super) fn quorum(&self) -> u32 {
        self.source().quorum()
    }

    /// Begins an election, unless there is a ring or it goes on already.
    pub(super) fn establish(&mut self, now: Now) {
        if self.leaving || !self.ring.is_empty() || self.waiting.is_some() {
            return;
        }
        self.waiting = Some(now.mono);
        let (quorum, source) = (self.quorum(), self.source());
        self.event(Event::Electing { quorum, source });
        self.propose(now);
    }

    /// Begins a round. An observer asks those who vote to do so.
    pub(super) fn propose(&mut self, now: Now) {
        let quorum = self.quorum();
        if let Some(paxos) = &mut self.paxos {
            paxos.propose(quorum);
        }
        self.broadcast(now);
        self.conclude(now);
    }

    /// Makes the ring if there is agreement.
    pub(super) fn conclude(&mut self, now: Now) {
        let Some(paxos) = &self.paxos else { return };
        let known = u32::try_from(paxos.knowledge().len()).unwrap_or(u32::MAX);
        let quorum = paxos.quorum();
        let seeds = paxos.consensus();
        if quorum > 0 && u64::from(known) >= 2 * u64::from(quorum) && !self.warned_quorum {
            self.warned_quorum = true;
            self.event(Event::QuorumTooSmall { quorum, known });
        }
        if let Some(seeds) = seeds {
            self.create_ring(&seeds, now);
        }
    }

    pub(super) fn create_ring(&mut self, seeds: &[PeerName], now: Now) {
        self.ring.divide(seeds);
        if self.ring.is_empty() {
            // An agreement on nobody is none.
            self.ring.seeds.clear();
            return;
        }
        self.ring_updated(true, now);
        self.broadcast(now);
    }

    /// The ring has changed: stores it, brings the space in line, and serves who waits (docs/spec/ipam.md 8.2).
    pub(super) fn ring_updated(&mut self, is_new: bool, now: Now) {
        self.waiting = None;
        self.paxos = None;
        self.ring_unsaved = true;
        self.save_ring();
        if self.saved_election.take().is_some() {
            self.output(Output::Persist(Persist::Election(None)));
        }
        let lost = self.space.set_owned(self.ring.ranges_owned_by(self.me())).count();
        self.stale = Stale::All;
        if lost > 0 {
            self.event(Event::Yielded { addresses: lost });
        }
        if is_new {
            let seeds = self.ring.seeds().to_vec();
            self.event(Event::RingEstablished { seeds });
        }
        self.update_disputed();
        self.retry(now);
    }
}
