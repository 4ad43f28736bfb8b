//! Agreement, once, on the peers among which the range is first divided (docs/spec/ipam.md 5).
//!
//! Single-value basic Paxos over gossip: every elector is proposer, acceptor and learner, and the only message is what
//! its sender knows. Two things differ from 2.8.1, and neither can be seen on the wire:
//!
//! * Votes are counted by the proposal that was accepted, as in the literature. 2.8.1 counts by the proposal in which the
//!   value was first chosen; electors that accepted that value at different times then add up to a "quorum" that no
//!   single proposal ever had, and two quorums can decide differently (found with three electors).
//! * What an elector promised and accepted is stored with its id before anybody is told, and a restarted elector
//!   goes on with it. In 2.8.1 it comes back as an additional one.

use std::collections::{BTreeMap, BTreeSet};

use weave_types::{PeerName, PeerUid};

use crate::address::AddrRange;

/// One elector: a peer, in one incarnation or as long as its election is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ElectorId {
    /// The peer.
    pub name: PeerName,
    /// Which incarnation.
    pub uid: PeerUid,
}

/// A proposal; ordered by round, then proposer. The default, of round 0, stands for none and comes before all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ProposalId {
    /// Higher than all that the proposer had seen.
    pub round: u64,
    /// Who proposes.
    pub proposer: ElectorId,
}

impl ProposalId {
    /// Whether it is one.
    pub fn is_valid(self) -> bool {
        self.round > 0
    }
}

/// A value that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct AcceptedValue {
    /// The peers, in any order; some may be there twice.
    pub value: Vec<PeerName>,
    /// The proposal in which it was first chosen.
    pub origin: ProposalId,
}

/// What one elector has promised and accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct ElectorState {
    /// It takes part in no proposal before this one.
    pub promise: ProposalId,
    /// The last proposal that it accepted.
    pub accepted: ProposalId,
    /// The value of that.
    pub value: AcceptedValue,
}

/// What electors are known to have promised and accepted: the message.
pub type Knowledge = BTreeMap<ElectorId, ElectorState>;

/// What an elector must not forget.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Election {
    /// What is to be divided. A promise of one election says nothing in that of another range.
    pub range: AddrRange,
    /// Who we are in it.
    pub elector: ElectorId,
    /// What we have promised and accepted.
    pub state: ElectorState,
}

/// More are not taken in: memory must not depend on what a peer makes up.
const MAX_ELECTORS: usize = 65_536;
const MAX_ROUND: u64 = 1 << 62;

/// One elector.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Paxos {
    own: ElectorId,
    quorum: u32,
    knows: Knowledge,
}

impl Paxos {
    /// An elector that knows nothing.
    pub fn new(own: ElectorId) -> Paxos {
        Paxos { own, quorum: 0, knows: Knowledge::new() }
    }

    /// One that goes on after a restart.
    pub fn resume(election: Election) -> Paxos {
        let mut paxos = Paxos::new(election.elector);
        paxos.knows.insert(election.elector, election.state);
        paxos
    }

    /// Who we are.
    pub fn own(&self) -> ElectorId {
        self.own
    }

    /// How many must agree; 0 before the first proposal of our own.
    pub fn quorum(&self) -> u32 {
        self.quorum
    }

    /// Changes how many must agree.
    pub fn set_quorum(&mut self, quorum: u32) {
        self.quorum = quorum;
    }

    /// What we know: the message.
    pub fn knowledge(&self) -> &Knowledge {
        &self.knows
    }

    /// What we must not forget of the election over `range`; `None` before the first promise.
    pub fn election(&self, range: AddrRange) -> Option<Election> {
        let state = self.knows.get(&self.own)?.clone();
        Some(Election { range, elector: self.own, state })
    }

    /// Takes over what is newer in a message; true if anything is.
    pub fn update(&mut self, received: &Knowledge) -> bool {
        let mut changed = false;
        for (node, theirs) in received {
            // Nobody has proposed so often: what would follow could not be numbered.
            if theirs.promise.round.max(theirs.accepted.round) > MAX_ROUND {
                continue;
            }
            if self.knows.len() >= MAX_ELECTORS && !self.knows.contains_key(node) {
                continue;
            }
            let Some(ours) = self.knows.get_mut(node) else {
                self.knows.insert(*node, theirs.clone());
                changed = true;
                continue;
            };
            if ours.promise < theirs.promise {
                ours.promise = theirs.promise;
                changed = true;
            }
            if ours.accepted < theirs.accepted {
                ours.accepted = theirs.accepted;
                ours.value = theirs.value.clone();
                changed = true;
            }
        }
        changed
    }

    /// Begins a round of our own, in which `quorum` electors must agree.
    pub fn propose(&mut self, quorum: u32) {
        self.quorum = quorum;
        let highest = self.knows.values().map(|c| c.promise.round.max(c.accepted.round)).max().unwrap_or(0);
        let promise = ProposalId { round: highest.saturating_add(1), proposer: self.own };
        self.knows.entry(self.own).or_default().promise = promise;
        if quorum == 1 {
            self.think();
        }
    }

    /// Promises and accepts what there is to; true if our state changed.
    pub fn think(&mut self) -> bool {
        let before = self.knows.get(&self.own).cloned();
        let mut own = before.clone().unwrap_or_default();
        let promises = self.knows.values().map(|c| c.promise);
        own.promise = promises.max().unwrap_or_default();
        self.knows.insert(self.own, own.clone());

        if own.promise.proposer == self.own && own.promise.is_valid() && self.quorum > 0 {
            let agreed = || self.knows.values().filter(|c| c.promise == own.promise);
            if agreed().count() >= self.quorum as usize {
                let bound = agreed().filter(|c| c.accepted.is_valid()).max_by_key(|c| c.accepted);
                own.value = match bound {
                    Some(bound) => bound.value.clone(),
                    None => AcceptedValue {
                        value: self.knows.keys().map(|node| node.name).collect(),
                        origin: own.promise,
                    },
                };
                own.accepted = own.promise;
                self.knows.insert(self.own, own.clone());
            }
        }
        if let Some(asked) = self.knows.values().find(|c| c.accepted.is_valid() && c.accepted == own.promise)
        {
            own.accepted = asked.accepted;
            own.value = asked.value.clone();
        }
        let changed = before.is_none_or(|before| {
            (before.promise, before.accepted, before.value.origin)
                != (own.promise, own.accepted, own.value.origin)
        });
        self.knows.insert(self.own, own);
        changed
    }

    /// The value that a quorum has accepted in one proposal: the peers, sorted, each once.
    pub fn consensus(&self) -> Option<Vec<PeerName>> {
        if self.quorum == 0 {
            return None;
        }
        let mut votes: BTreeMap<ProposalId, u32> = BTreeMap::new();
        for state in self.knows.values().filter(|c| c.accepted.is_valid()) {
            let count = votes.entry(state.accepted).or_default();
            *count += 1;
            if *count >= self.quorum {
                let peers: BTreeSet<PeerName> = state.value.value.iter().copied().collect();
                return Some(peers.into_iter().collect());
            }
        }
        None
    }
}
