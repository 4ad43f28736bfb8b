//! One agreement on the peers among which the range is first divided (docs/spec/ipam.md 5).
//!
//! Single-value basic Paxos over gossip: every elector is proposer, acceptor and learner, and the only message is the
//! sender's knowledge. Two things differ from 2.8.1, both invisible on the wire:
//!
//! * Votes are counted by the accepted proposal, as in the literature. 2.8.1 counts by the proposal in which the value
//!   was first chosen. Electors that accepted the value in different proposals then form a quorum that no single
//!   proposal had, and two quorums can decide differently (found with three electors).
//! * An elector stores its promises and accepted values with its id before it sends them, and a restarted elector
//!   resumes them. In 2.8.1 it returns as an additional elector (docs/spec/ipam.md 15.11).

use std::collections::{BTreeMap, BTreeSet};

use weave_types::{PeerName, PeerUid};

use crate::address::AddrRange;

/// Identifies an elector: a peer and its UID when the election began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ElectorId {
    /// The peer's name.
    pub name: PeerName,
    /// The peer's UID at the start of the election.
    pub uid: PeerUid,
}

/// A proposal; ordered by round, then proposer. The default, of round 0, means none and orders before all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ProposalId {
    /// Higher than all rounds that the proposer had seen.
    pub round: u64,
    /// The elector that made the proposal.
    pub proposer: ElectorId,
}

impl ProposalId {
    /// Whether this is a proposal, not the default.
    pub fn is_valid(self) -> bool {
        self.round > 0
    }
}

/// A value that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct AcceptedValue {
    /// The peers, in any order; repetitions are allowed.
    pub value: Vec<PeerName>,
    /// The proposal in which the value was first chosen.
    pub origin: ProposalId,
}

/// What one elector has promised and accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct ElectorState {
    /// The elector accepts no proposal before this one.
    pub promise: ProposalId,
    /// The last proposal that it accepted.
    pub accepted: ProposalId,
    /// The value of the accepted proposal.
    pub value: AcceptedValue,
}

/// The known states of all electors: the content of a message.
pub type Knowledge = BTreeMap<ElectorId, ElectorState>;

/// What an elector must not forget.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Election {
    /// The range to divide. Promises for another range have no meaning here.
    pub range: AddrRange,
    /// This peer's identity in the election.
    pub elector: ElectorId,
    /// This peer's promise and accepted value.
    pub state: ElectorState,
}

/// Limit on electors and rounds of received messages: memory must not depend on what a peer sends.
const MAX_ELECTORS: usize = 65_536;
const MAX_ROUND: u64 = 1 << 62;

/// An elector.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Paxos {
    own: ElectorId,
    quorum: u32,
    knowledge: Knowledge,
}

impl Paxos {
    /// An elector without knowledge.
    pub fn new(own: ElectorId) -> Paxos {
        Paxos { own, quorum: 0, knowledge: Knowledge::new() }
    }

    /// An elector that resumes an election after a restart.
    pub fn resume(election: Election) -> Paxos {
        let mut paxos = Paxos::new(election.elector);
        paxos.knowledge.insert(election.elector, election.state);
        paxos
    }

    /// This elector's identity.
    pub fn own(&self) -> ElectorId {
        self.own
    }

    /// Number of electors that must agree; 0 before the first own proposal.
    pub fn quorum(&self) -> u32 {
        self.quorum
    }

    /// Changes the number of electors that must agree.
    pub fn set_quorum(&mut self, quorum: u32) {
        self.quorum = quorum;
    }

    /// The known states of all electors: the message to send.
    pub fn knowledge(&self) -> &Knowledge {
        &self.knowledge
    }

    /// What must be stored of the election over `range`; `None` before the first promise.
    pub fn election(&self, range: AddrRange) -> Option<Election> {
        let state = self.knowledge.get(&self.own)?.clone();
        Some(Election { range, elector: self.own, state })
    }

    /// Merges newer parts of a received message; returns whether there were any.
    pub fn update(&mut self, received: &Knowledge) -> bool {
        let mut changed = false;
        for (node, theirs) in received {
            // A round near the maximum would leave no number for the next one.
            if theirs.promise.round.max(theirs.accepted.round) > MAX_ROUND {
                continue;
            }
            if self.knowledge.len() >= MAX_ELECTORS && !self.knowledge.contains_key(node) {
                continue;
            }
            let Some(ours) = self.knowledge.get_mut(node) else {
                self.knowledge.insert(*node, theirs.clone());
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

    /// Starts a round in which `quorum` electors must agree.
    pub fn propose(&mut self, quorum: u32) {
        self.quorum = quorum;
        let highest =
            self.knowledge.values().map(|c| c.promise.round.max(c.accepted.round)).max().unwrap_or(0);
        let promise = ProposalId { round: highest.saturating_add(1), proposer: self.own };
        self.knowledge.entry(self.own).or_default().promise = promise;
        if quorum == 1 {
            self.promise_and_accept();
        }
    }

    /// Promises and accepts what the known states require; returns whether the own state changed.
    pub fn promise_and_accept(&mut self) -> bool {
        let before = self.knowledge.get(&self.own).cloned();
        let mut own = before.clone().unwrap_or_default();
        let promises = self.knowledge.values().map(|c| c.promise);
        own.promise = promises.max().unwrap_or_default();
        self.knowledge.insert(self.own, own.clone());

        if own.promise.proposer == self.own && own.promise.is_valid() && self.quorum > 0 {
            // With a quorum of promises, the proposal is the last value that one of these electors accepted, else all
            // known electors.
            let agreed = || self.knowledge.values().filter(|c| c.promise == own.promise);
            if agreed().count() >= self.quorum as usize {
                let bound = agreed().filter(|c| c.accepted.is_valid()).max_by_key(|c| c.accepted);
                own.value = match bound {
                    Some(bound) => bound.value.clone(),
                    None => AcceptedValue {
                        value: self.knowledge.keys().map(|elector| elector.name).collect(),
                        origin: own.promise,
                    },
                };
                own.accepted = own.promise;
                self.knowledge.insert(self.own, own.clone());
            }
        }
        if let Some(proposed) =
            self.knowledge.values().find(|c| c.accepted.is_valid() && c.accepted == own.promise)
        {
            own.accepted = proposed.accepted;
            own.value = proposed.value.clone();
        }
        let changed = before.is_none_or(|before| {
            (before.promise, before.accepted, before.value.origin)
                != (own.promise, own.accepted, own.value.origin)
        });
        self.knowledge.insert(self.own, own);
        changed
    }

    /// The value that a quorum accepted in one proposal: the peers, sorted, without repetitions.
    pub fn consensus(&self) -> Option<Vec<PeerName>> {
        if self.quorum == 0 {
            return None;
        }
        let mut votes: BTreeMap<ProposalId, u32> = BTreeMap::new();
        for state in self.knowledge.values().filter(|c| c.accepted.is_valid()) {
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
