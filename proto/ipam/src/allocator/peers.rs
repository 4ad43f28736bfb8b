//! Changes of the topology, removal of peers, and leaving (docs/spec/ipam.md 8.13, 8.14).

use std::collections::BTreeMap;

use weave_types::{Now, PeerName};

use super::{Allocator, StaleFreeCounts};
use crate::output::{Cancelled, HandOver, RemoveError, RequestError};
use crate::ring::TAKEOVER_STEP;
use crate::space::RangeSet;

/// Limit on transfers to the same peer after the first. A range that comes back may have been on its way to this
/// peer; or the other peer is leaving as well and returns it each time.
const MAX_TRANSFERS: u32 = 3;

impl Allocator {
    /// The peers that can be reached, directly or not, with their nicknames; may include this peer. Called after each
    /// change.
    pub fn handle_topology_change(&mut self, reachable: &BTreeMap<PeerName, String>, now: Now) {
        let mut found = false;
        let mut room = self.nickname_room();
        for (&name, nickname) in reachable {
            if self.reachable.get(&name) != Some(nickname) {
                found |= !self.reachable.contains_key(&name);
                self.reachable.insert(name, nickname.clone());
                self.unreachable_since.remove(&name);
                self.met_peer |= name != self.me();
                if name != self.me() && !nickname.is_empty() {
                    self.store_nickname(name, nickname.clone(), &mut room);
                }
            }
        }
        if self.reachable.len() != reachable.len() {
            let lost: Vec<PeerName> =
                self.reachable.keys().copied().filter(|name| !reachable.contains_key(name)).collect();
            for name in lost {
                self.reachable.remove(&name);
                self.allocating.remove(&name);
                self.unreachable_since.insert(name, now.mono);
                self.space_requests.peer_lost(name);
                found = true;
            }
        }
        if found {
            self.retry();
        }
        self.finish(now);
    }

    /// The mesh has removed a peer that was unreachable for long.
    pub fn handle_peer_removed(&mut self, peer: PeerName, now: Now) {
        if !self.ring.owners().contains(&peer) {
            self.nicknames.remove(&peer);
            self.unreachable_since.remove(&peer);
        }
        // Ranges that the peer claimed stay disputed: it may still use them.
        if self.conflicts.get(&peer).is_some_and(|dispute| dispute.ranges.is_empty()) {
            self.conflicts.remove(&peer);
        }
        self.finish(now);
    }

    /// Takes over the ranges of a peer that will not return, given by name or nickname (`weave rmpeer`). Returns the
    /// number of free addresses gained; 0 if there is no such peer. `force`: even if the peer can be reached.
    ///
    /// # Errors
    /// The peer can be reached.
    pub fn remove_peer(&mut self, peer: &str, force: bool, now: Now) -> Result<u32, RemoveError> {
        let Some(peer) = self.find_peer(peer) else { return Ok(0) };
        let owns = self.ring.entries().iter().any(|entry| entry.peer == peer);
        let disputes: Vec<PeerName> = self
            .conflicts
            .iter()
            .filter(|(_, dispute)| dispute.claimant == peer)
            .map(|(&with, _)| with)
            .collect();
        if peer == self.me() || !owns && disputes.is_empty() || self.leaving {
            return Ok(0);
        }
        if self.reachable.contains_key(&peer) && !force {
            return Err(RemoveError::Reachable { peer, nickname: self.nickname(peer) });
        }
        // The removed peer no longer uses the ranges that it claimed.
        disputes.into_iter().for_each(|with| self.resolve_conflict(with));
        if !owns {
            self.retry();
            self.finish(now);
            return Ok(0);
        }
        let before = self.space.free().count();
        self.ring.transfer(peer, self.me(), TAKEOVER_STEP);
        self.ring_updated(false);
        let gained = self.space.free().count().saturating_sub(before);
        self.broadcast(now);
        self.finish(now);
        Ok(gained)
    }

    fn find_peer(&self, text: &str) -> Option<PeerName> {
        let mut others = self.nicknames.iter().filter(|(name, _)| **name != self.me());
        let by_nickname = others.find(|(_, nickname)| *nickname == text);
        by_nickname.map(|(&name, _)| name).or_else(|| text.parse().ok())
    }

    /// Leaves the network for good (`weave reset`): transfers all ranges to another peer and cancels all requests,
    /// including later ones. Ranges that arrive afterwards are transferred, too.
    pub fn leave(&mut self, now: Now) -> HandOver {
        self.leaving = true;
        for (request, _) in std::mem::take(&mut self.primes) {
            self.done(request, Err(RequestError::Cancelled(Cancelled::Prime)));
        }
        self.cancel_claims(|_| true);
        self.cancel_allocations(|_| true);
        self.election_since = None;
        let hand_over = self.transfer_own_ranges(now);
        self.finish(now);
        hand_over
    }

    /// Transfers ranges that arrive while this peer is leaving.
    pub(super) fn transfer_if_leaving(&mut self, now: Now) {
        if self.leaving {
            self.transfer_own_ranges(now);
        }
    }

    fn transfer_own_ranges(&mut self, now: Now) -> HandOver {
        let ranges = self.ring.ranges_owned_by(self.me());
        let addresses = ranges.iter().map(|range| range.size()).sum();
        if addresses == 0 {
            return HandOver::Nothing;
        }
        let back = ranges.iter().any(|&range| self.transferred.count_in(range) > 0);
        let Some(target) = self.transfer_target(back) else {
            let alone = !self.met_peer && self.ring.owners().iter().all(|owner| *owner == self.me());
            return if alone { HandOver::Nothing } else { HandOver::NoPeer { addresses } };
        };
        *self.transfer_targets.entry(target).or_default() += 1;
        ranges.iter().for_each(|&range| self.transferred.insert(range));
        self.concede_disputed();
        // The peer to report: the target if it got any undisputed range, else the claimant.
        let claimant = ranges.first().and_then(|range| self.ring.owner_of(range.start()));
        let peer = if self.ring.owners().contains(&self.me()) { target } else { claimant.unwrap_or(target) };
        self.ring.transfer(self.me(), target, TAKEOVER_STEP);
        self.space.clear();
        self.stale_free_counts = StaleFreeCounts::Nothing;
        self.ring_unsaved = true;
        self.broadcast(now);
        HandOver::To { peer, nickname: self.nickname(peer), addresses }
    }

    /// Gives disputed ranges to their claimant, which may be using them. Another peer would not know of the dispute.
    fn concede_disputed(&mut self) {
        for (claimant, range) in
            self.conflicts.values().flat_map(|d| d.ranges.iter().map(|&r| (d.claimant, r)))
        {
            let mine: RangeSet = self.ring.ranges_owned_by(self.config.name).into_iter().collect();
            if mine.count_in(range) == range.size() {
                self.ring.grant(range, claimant);
            }
        }
    }

    /// The peer that gets all ranges: preferably one that owns something already. It must be reachable and allocate addresses, unlike in
    /// 2.8.1, or no peer would learn of the transfer, or use them. `back`: a range has come back after a transfer.
    fn transfer_target(&self, back: bool) -> Option<PeerName> {
        let me = self.me();
        let there = |name: &PeerName| {
            let given = if back { self.transfer_targets.get(name).copied().unwrap_or(0) } else { 0 };
            *name != me && self.reachable.contains_key(name) && given < MAX_TRANSFERS
        };
        let owners = self.ring.entries().iter().map(|entry| entry.peer);
        owners.chain(self.allocating.iter().copied()).find(there)
    }
}
