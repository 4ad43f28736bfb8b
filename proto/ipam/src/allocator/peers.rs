//! Peers that come and go, and our own leave (docs/spec/ipam.md 8.13, 8.14).

use std::collections::BTreeMap;

use weave_types::{Now, PeerName};

use super::{Allocator, Stale};
use crate::output::{Cancelled, HandOver, RemoveError, RequestError};
use crate::ring::TAKEOVER_STEP;
use crate::space::RangeSet;

/// So often what comes back is given to the same peer again. It may have been on its way to us; or the peer is leaving as
/// well, and gives it back for as long as we do.
const MAX_BEQUESTS: u32 = 3;

impl Allocator {
    /// Which peers can be reached, directly or not; with their nicknames. Ourself may be among them. To be called whenever
    /// that changes.
    pub fn handle_topology_change(&mut self, reachable: &BTreeMap<PeerName, String>, now: Now) {
        let mut found = false;
        for (&name, nickname) in reachable {
            if self.reachable.get(&name) != Some(nickname) {
                found |= !self.reachable.contains_key(&name);
                self.reachable.insert(name, nickname.clone());
                self.lost_sight.remove(&name);
                if name != self.me() && !nickname.is_empty() {
                    self.nicknames.insert(name, nickname.clone());
                }
            }
        }
        if self.reachable.len() != reachable.len() {
            let lost: Vec<PeerName> =
                self.reachable.keys().copied().filter(|name| !reachable.contains_key(name)).collect();
            for name in lost {
                self.reachable.remove(&name);
                self.lost_sight.insert(name, now.mono);
                self.asks.lost(name);
                found = true;
            }
        }
        if found {
            self.retry(now);
        }
        self.finish(now);
    }

    /// The mesh has forgotten a peer.
    pub fn handle_peer_removed(&mut self, peer: PeerName, now: Now) {
        if !self.ring.owners().contains(&peer) {
            self.nicknames.remove(&peer);
            self.lost_sight.remove(&peer);
        }
        // What it disputed stays in doubt: it may be using it.
        if self.conflicts.get(&peer).is_some_and(|doubt| doubt.ranges.is_empty()) {
            self.conflicts.remove(&peer);
        }
        self.finish(now);
    }

    /// Takes over what a peer owns that is gone for good, by name or nickname. Returns by how many our free addresses have
    /// become more; 0 if there is no such peer. `force`: even if it can be reached.
    ///
    /// # Errors
    /// It can be reached.
    pub fn remove_peer(&mut self, peer: &str, force: bool, now: Now) -> Result<u32, RemoveError> {
        let Some(peer) = self.resolve(peer) else { return Ok(0) };
        let owns = self.ring.entries().iter().any(|entry| entry.peer == peer);
        let disputes: Vec<PeerName> = self
            .conflicts
            .iter()
            .filter(|(_, doubt)| doubt.claimant == peer)
            .map(|(&with, _)| with)
            .collect();
        if peer == self.me() || !owns && disputes.is_empty() || self.leaving {
            return Ok(0);
        }
        if self.reachable.contains_key(&peer) && !force {
            return Err(RemoveError::Reachable { peer, nickname: self.nickname(peer) });
        }
        // What is said to be its own nobody uses any more.
        disputes.into_iter().for_each(|with| self.agreed(with));
        if !owns {
            self.retry(now);
            self.finish(now);
            return Ok(0);
        }
        let before = self.space.free().count();
        self.ring.transfer(peer, self.me(), TAKEOVER_STEP);
        self.ring_updated(false, now);
        let gained = self.space.free().count().saturating_sub(before);
        self.broadcast(now);
        self.finish(now);
        Ok(gained)
    }

    fn resolve(&self, text: &str) -> Option<PeerName> {
        let mut others = self.nicknames.iter().filter(|(name, _)| **name != self.me());
        let by_nickname = others.find(|(_, nickname)| *nickname == text);
        by_nickname.map(|(&name, _)| name).or_else(|| text.parse().ok())
    }

    /// We leave for good (`weave reset`): hands our ranges over and cancels all requests, later ones too. Whatever still
    /// arrives for us is handed on.
    pub fn leave(&mut self, now: Now) -> HandOver {
        self.leaving = true;
        for (request, _) in std::mem::take(&mut self.primes) {
            self.done(request, Err(RequestError::Cancelled(Cancelled::Prime)));
        }
        self.cancel_claims(|_| true);
        self.cancel_allocations(|_| true);
        self.waiting = None;
        let hand_over = self.bequeath(now);
        self.finish(now);
        hand_over
    }

    /// Gives to another peer what is ours, when we are leaving.
    pub(super) fn hand_on(&mut self, now: Now) {
        if self.leaving {
            self.bequeath(now);
        }
    }

    fn bequeath(&mut self, now: Now) -> HandOver {
        let ranges = self.ring.ranges_owned_by(self.me());
        let addresses = ranges.iter().map(|range| range.size()).sum();
        if addresses == 0 {
            return HandOver::Nothing;
        }
        let back = ranges.iter().any(|&range| self.bequeathed.count_in(range) > 0);
        let Some(heir) = self.heir(back) else { return HandOver::NoPeer { addresses } };
        *self.heirs.entry(heir).or_default() += 1;
        ranges.iter().for_each(|&range| self.bequeathed.insert(range));
        self.give_in();
        // Who is told of: the one that gets what is not in doubt, if there is such.
        let claimant = ranges.first().and_then(|range| self.ring.owner_of(range.start()));
        let peer = if self.ring.owners().contains(&self.me()) { heir } else { claimant.unwrap_or(heir) };
        self.ring.transfer(self.me(), heir, TAKEOVER_STEP);
        self.space.clear();
        self.stale = Stale::Nothing;
        self.ring_unsaved = true;
        self.broadcast(now);
        HandOver::To { peer, nickname: self.nickname(peer), addresses }
    }

    /// Gives what is in doubt to who says that it is its own: it may be using it, which anybody else would not know.
    fn give_in(&mut self) {
        for (claimant, range) in
            self.conflicts.values().flat_map(|d| d.ranges.iter().map(|&r| (d.claimant, r)))
        {
            let mine: RangeSet = self.ring.ranges_owned_by(self.config.name).into_iter().collect();
            if mine.count_in(range) == range.size() {
                self.ring.grant(range, claimant);
            }
        }
    }

    /// Who is there to take over what is ours: rather one that owns something already. 2.8.1 also names one that it cannot
    /// reach; nobody would hear of it. `back`: it is not the first time.
    fn heir(&self, back: bool) -> Option<PeerName> {
        let me = self.me();
        let there = |name: &PeerName| {
            let given = if back { self.heirs.get(name).copied().unwrap_or(0) } else { 0 };
            *name != me && self.reachable.contains_key(name) && given < MAX_BEQUESTS
        };
        let owners = self.ring.entries().iter().map(|entry| entry.peer);
        owners.chain(self.reachable.keys().copied()).find(there)
    }
}
