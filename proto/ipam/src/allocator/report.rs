//! The status of the allocator (docs/spec/ipam.md 12).

use std::collections::BTreeMap;
use std::time::Duration;

use weave_types::{Now, PeerName};

use super::Allocator;
use super::claim::Claim;
use crate::address::{AddrRange, Subnet, ipv4};
use crate::gossip_error::NamedPeer;
use crate::output::QuorumSource;
use crate::status::{
    ConflictStatus, ElectionStatus, EntryStatus, OwnerStatus, PendingKind, PendingStatus, State, Status,
    WaitReason,
};

impl Allocator {
    /// Everything that the status page, the report and the metrics show.
    pub fn status(&self, now: Now) -> Status {
        // A peer that is gone has no effect on this one, unless it may use addresses that this peer has.
        let current = self
            .conflicts
            .iter()
            .filter(|(peer, dispute)| !dispute.ranges.is_empty() || self.is_reachable(**peer));
        let conflicts = current.map(|(&peer, dispute)| ConflictStatus {
            peer: self.named(peer),
            conflict: dispute.conflict.clone(),
            since: now.mono - dispute.since,
            disputed: dispute.ranges.clone(),
        });
        Status {
            state: self.current_state(),
            range: self.config.range,
            default_subnet: self.config.default_subnet,
            active: self.space.used().count(),
            free: self.space.free().count(),
            election: self.election_status(now),
            seeds: self.ring.seeds().iter().map(|&name| self.named(name)).collect(),
            entries: self.entries(),
            owners: self.owners(now),
            pending: self.pending(now),
            conflicts: conflicts.collect(),
            shutting_down: self.leaving,
        }
    }

    fn current_state(&self) -> State {
        if self.ring.is_empty() {
            return match (self.election_since, &self.paxos) {
                (None, _) => State::Idle,
                (Some(_), Some(_)) => State::Electing,
                (Some(_), None) => State::Priming,
            };
        }
        if !self.ring.entries().iter().any(|entry| self.is_reachable(entry.peer)) {
            State::AllUnreachable
        } else if self.allocations.is_empty() {
            State::Ready
        } else {
            State::WaitingForSpace
        }
    }

    fn election_status(&self, now: Now) -> Option<ElectionStatus> {
        let waited = now.mono - self.election_since.filter(|_| self.ring.is_empty())?;
        let mut electors: Vec<PeerName> =
            self.paxos.iter().flat_map(|paxos| paxos.knowledge().keys().map(|node| node.name)).collect();
        electors.dedup();
        let named = |names: &mut dyn Iterator<Item = PeerName>| -> Vec<NamedPeer> {
            names.map(|name| self.named(name)).collect()
        };
        let present = named(&mut electors.iter().copied().filter(|&name| self.is_reachable(name)));
        let absent = named(&mut electors.iter().copied().filter(|&name| !self.is_reachable(name)));
        let others = self.reachable.keys().copied().filter(|name| *name != self.me());
        let silent = named(&mut others.filter(|name| !electors.contains(name)));
        let quorum = self.paxos.as_ref().map_or(0, |paxos| paxos.quorum());
        let present_count = u32::try_from(present.len()).unwrap_or(u32::MAX);
        Some(ElectionStatus {
            elector: self.paxos.is_some(),
            quorum,
            known: self.paxos.as_ref().map_or(0, |paxos| paxos.knowledge().len() as u32),
            missing: quorum.saturating_sub(present_count),
            present,
            absent,
            silent,
            source: if self.paxos.is_some() { self.source() } else { QuorumSource::Observer },
            waited,
        })
    }

    fn entries(&self) -> Vec<EntryStatus> {
        let mut entries = Vec::new();
        for (index, entry) in self.ring.entries().iter().enumerate() {
            for range in self.ring.ranges_of(index) {
                entries.push(EntryStatus {
                    range,
                    peer: entry.peer,
                    nickname: self.nickname(entry.peer),
                    reachable: self.is_reachable(entry.peer),
                    version: entry.version,
                    free: entry.free,
                });
            }
        }
        entries.sort_by_key(|entry| entry.range);
        entries
    }

    fn owners(&self, now: Now) -> Vec<OwnerStatus> {
        let mut sums: BTreeMap<PeerName, (u32, u32)> = BTreeMap::new();
        for (index, entry) in self.ring.entries().iter().enumerate() {
            let sum = sums.entry(entry.peer).or_default();
            sum.0 = sum.0.saturating_add(self.ring.size_of(index));
            sum.1 = sum.1.saturating_add(entry.free);
        }
        let mut owners: Vec<OwnerStatus> = sums
            .into_iter()
            .map(|(peer, (addresses, free))| OwnerStatus {
                peer,
                nickname: self.nickname(peer),
                addresses,
                free,
                ours: peer == self.me(),
                reachable: self.is_reachable(peer),
                unreachable_for: self.unreachable_for(peer, now),
            })
            .collect();
        owners.sort_by_key(|owner| !owner.ours);
        owners
    }

    fn unreachable_for(&self, peer: PeerName, now: Now) -> Option<Duration> {
        self.unreachable_since.get(&peer).map(|&since| now.mono - since)
    }

    fn pending(&self, now: Now) -> Vec<PendingStatus> {
        let primes = self.primes.iter().map(|&(request, since)| PendingStatus {
            request: Some(request),
            kind: PendingKind::Prime,
            waited: now.mono - since,
            reason: WaitReason::NoRing,
        });
        let claims = self.claims.iter().map(|claim| PendingStatus {
            request: claim.request,
            kind: PendingKind::Claim { container: claim.container.clone(), cidr: claim.cidr },
            waited: now.mono - claim.since,
            reason: self.wait_reason_of_claim(claim, now),
        });
        // The reason is computed once per subnet: thousands of requests may wait for the same one.
        let mut reasons: BTreeMap<Subnet, WaitReason> = BTreeMap::new();
        let mut pending: Vec<PendingStatus> = primes.chain(claims).collect();
        for allocation in &self.allocations {
            let subnet = allocation.subnet;
            let reason =
                reasons.entry(subnet).or_insert_with(|| self.wait_reason_of_allocation(subnet, now)).clone();
            pending.push(PendingStatus {
                request: Some(allocation.request),
                kind: PendingKind::Allocate { container: allocation.container.clone(), subnet },
                waited: now.mono - allocation.since,
                reason,
            });
        }
        pending
    }

    fn wait_reason_of_claim(&self, claim: &Claim, now: Now) -> WaitReason {
        let owner = ipv4(claim.cidr).and_then(|addr| self.ring.owner_of(addr));
        match owner {
            None => WaitReason::NoRing,
            Some(owner) if owner == self.me() => WaitReason::Disputed,
            Some(owner) => WaitReason::Owner {
                peer: self.named(owner),
                reachable: self.is_reachable(owner),
                unreachable_for: self.unreachable_for(owner, now),
            },
        }
    }

    fn wait_reason_of_allocation(&self, subnet: Subnet, now: Now) -> WaitReason {
        if self.ring.is_empty() {
            return WaitReason::NoRing;
        }
        let range: AddrRange = subnet.range();
        let refused = self.space_requests.denied(range);
        let (mut asked, mut unreachable, mut denied) = (Vec::new(), Vec::new(), Vec::new());
        for &peer in self.ring.candidates(range).keys() {
            let named = self.named(peer);
            if !self.is_reachable(peer) {
                unreachable.push((named, self.unreachable_for(peer, now)));
            } else if refused.contains(&peer) {
                denied.push(named);
            } else {
                asked.push(named);
            }
        }
        let free = self.space.free();
        let disputed = self.disputed.within(subnet.hosts()).map(|part| free.count_in(part)).sum();
        WaitReason::Space { asked, unreachable, denied, disputed }
    }
}
