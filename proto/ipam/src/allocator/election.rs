//! The first division of the range (docs/spec/ipam.md 5, 8.12).

use weave_types::{Now, PeerName};

use super::{Allocator, StaleFreeCounts};
use crate::config::Init;
use crate::output::{Event, Output, Persist, QuorumSource};

impl Allocator {
    /// The number of configured peer addresses that are not known to be this peer's own: an estimate of the number of
    /// other electors. Called before the first request and after each change.
    pub fn handle_target_count(&mut self, others: u32, now: Now) {
        let before = self.quorum();
        self.targets = others;
        let quorum = self.quorum();
        if let Some(paxos) = self.paxos.as_mut().filter(|paxos| paxos.quorum() > 0) {
            // 2.8.1 computes the quorum once, when the election begins. An address may turn out to be this peer's own
            // right after that, and the election would wait for a peer that does not exist.
            paxos.set_quorum(quorum);
        }
        if self.election_since.is_some() && quorum < before {
            self.propose(now);
        }
        self.finish(now);
    }

    pub(super) fn source(&self) -> QuorumSource {
        match self.config.init {
            Init::Consensus(Some(count)) => QuorumSource::Count(count),
            Init::Consensus(None) | Init::Seed(_) => QuorumSource::Targets(self.targets),
            Init::Observer => QuorumSource::Observer,
        }
    }

    pub(super) fn quorum(&self) -> u32 {
        self.source().quorum()
    }

    /// Starts an election unless there is a ring or one is running.
    pub(super) fn start_election(&mut self, now: Now) {
        if self.leaving || !self.ring.is_empty() || self.election_since.is_some() {
            return;
        }
        self.election_since = Some(now.mono);
        let (quorum, source) = (self.quorum(), self.source());
        self.event(Event::Electing { quorum, source });
        self.propose(now);
    }

    /// Starts a round of the election. From an observer, the broadcast makes electors start one.
    pub(super) fn propose(&mut self, now: Now) {
        let quorum = self.quorum();
        if let Some(paxos) = &mut self.paxos {
            paxos.propose(quorum);
        }
        self.broadcast(now);
        self.check_consensus(now);
    }

    /// Creates the ring if there is consensus.
    pub(super) fn check_consensus(&mut self, now: Now) {
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
            // A value without peers cannot be divided among them.
            self.ring.seeds.clear();
            return;
        }
        self.ring_updated(true);
        self.broadcast(now);
    }

    /// Applies a change of the ring: stores it, updates the space, and retries waiting requests (docs/spec/ipam.md
    /// 8.2).
    pub(super) fn ring_updated(&mut self, is_new: bool) {
        self.election_since = None;
        self.paxos = None;
        self.ring_unsaved = true;
        self.save_ring();
        if self.saved_election.take().is_some() {
            self.output(Output::Persist(Persist::Election(None)));
        }
        let lost = self.space.set_owned(self.ring.ranges_owned_by(self.me())).count();
        self.stale_free_counts = StaleFreeCounts::All;
        if lost > 0 {
            self.event(Event::Yielded { addresses: lost });
        }
        if is_new {
            let seeds = self.ring.seeds().to_vec();
            self.event(Event::RingEstablished { seeds });
        }
        self.update_disputed();
        self.retry();
    }
}
