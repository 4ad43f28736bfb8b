//! Gossip of the complete state, sent and received (docs/spec/ipam.md 8.11).

use weave_types::{Now, PeerName};

use super::{Allocator, Dispute};
use crate::address::AddrRange;
use crate::gossip_error::{Conflict, GossipError, Malformed};
use crate::merge::MergeError;
use crate::message::{StateMessage, Unicast};
use crate::output::{Event, Output};
use crate::ring::Ring;

/// Limits on what is kept of received messages: memory must not depend on what a peer sends.
const MAX_NICKNAME: usize = 1024;
/// Bytes of all nicknames, each with [`NICKNAME_COST`]: they are part of every message, whose size is limited too.
const MAX_NICKNAME_BYTES: usize = 1 << 20;
const NICKNAME_COST: usize = 32;
const MAX_CONFLICTS: usize = 1024;
/// Peers that are named in a conflict about seeds; a ring may have any number of them.
const MAX_NAMED_SEEDS: usize = 16;
/// Ranges of a conflict. Further ones are joined, which disputes the addresses between them as well.
const MAX_DISPUTED_RANGES: usize = 256;

impl Allocator {
    /// Handles the complete state of a neighbour. Nothing is passed on.
    ///
    /// # Errors
    /// The message was not merged. After [`GossipError::Malformed`] the connection should be closed; a
    /// [`GossipError::Conflict`] is kept in [`Status::conflicts`](crate::Status::conflicts) until it is resolved.
    pub fn handle_gossip(&mut self, payload: &[u8], now: Now) -> Result<Option<Vec<u8>>, GossipError> {
        let state = StateMessage::decode(payload)?;
        let result = self.receive(None, state, now);
        self.finish(now);
        result.map(|()| None)
    }

    /// Handles a broadcast of `src`. Returns the message to pass on in its place: this peer's complete state.
    ///
    /// # Errors
    /// As [`handle_gossip`](Allocator::handle_gossip); nothing is passed on.
    pub fn handle_broadcast(
        &mut self,
        src: PeerName,
        payload: &[u8],
        now: Now,
    ) -> Result<Option<Vec<u8>>, GossipError> {
        let state = StateMessage::decode(payload)?;
        let result = self.receive(Some(src), state, now);
        let relay = result.is_ok().then(|| self.encode_state(now));
        self.finish(now);
        result.map(|()| relay)
    }

    /// Handles a message of `src` to this peer. Unknown kinds are ignored.
    ///
    /// # Errors
    /// As [`handle_gossip`](Allocator::handle_gossip).
    pub fn handle_unicast(&mut self, src: PeerName, payload: &[u8], now: Now) -> Result<(), GossipError> {
        let result = match Unicast::decode(payload)? {
            None => Ok(()),
            Some(Unicast::Request(range)) => {
                self.handle_space_request(src, range, now);
                Ok(())
            }
            Some(Unicast::State(state)) => {
                let result = self.receive(Some(src), state, now);
                self.answered(src, None, false);
                result
            }
            Some(Unicast::Denied(range)) => {
                self.handle_claim_denied(src, range);
                self.answered(src, Some(range), true);
                Ok(())
            }
        };
        self.finish(now);
        result
    }

    /// The complete state, for periodic gossip. Outputs that it depends on are queued first.
    pub fn state(&mut self, now: Now) -> Vec<u8> {
        let bytes = self.encode_state(now);
        self.finish(now);
        bytes
    }

    /// Merges a message of this channel into an earlier one that is still queued. Each contains the complete state,
    /// so the later one replaces the earlier one.
    pub fn merge(queued: &mut Vec<u8>, more: &[u8]) {
        more.clone_into(queued);
    }

    fn state_message(&self, now: Now) -> StateMessage {
        StateMessage {
            now: i64::try_from(now.wall.as_secs()).unwrap_or(i64::MAX),
            nicknames: self.nicknames.clone(),
            paxos: self.paxos.as_ref().map(|paxos| paxos.knowledge().clone()),
            ring: (!self.ring.is_empty()).then(|| self.ring.clone()),
            range: self.ring.is_empty().then(|| self.config.range.range()),
        }
    }

    /// Stores everything that the next message contains. With [`send_before_persist`](crate::Policy), the ring is
    /// stored after the message.
    fn save_before_sending(&mut self) {
        if !self.config.policy.send_before_persist {
            self.save_ring();
        }
        self.save_election();
    }

    fn encode_state(&mut self, now: Now) -> Vec<u8> {
        self.save_before_sending();
        self.state_message(now).encode()
    }

    pub(super) fn broadcast(&mut self, now: Now) {
        let bytes = self.encode_state(now);
        self.output(Output::Broadcast(bytes));
        self.save_ring();
    }

    pub(super) fn send_state(&mut self, to: PeerName, now: Now) {
        self.save_before_sending();
        let payload = Unicast::State(self.state_message(now)).encode();
        self.output(Output::Unicast { to, payload });
        self.save_ring();
    }

    /// How many bytes of nicknames may be stored besides those that are.
    pub(super) fn nickname_room(&self) -> usize {
        MAX_NICKNAME_BYTES
            .saturating_sub(self.nicknames.values().map(|nickname| nickname_cost(nickname)).sum())
    }

    /// Stores a nickname if there is room for it.
    pub(super) fn store_nickname(&mut self, name: PeerName, nickname: String, room: &mut usize) {
        let available = *room + self.nicknames.get(&name).map_or(0, |nickname| nickname_cost(nickname));
        let cost = nickname_cost(&nickname);
        if nickname.len() <= MAX_NICKNAME && cost <= available {
            *room = available - cost;
            self.nicknames.insert(name, nickname);
        }
    }

    fn receive(&mut self, from: Option<PeerName>, state: StateMessage, now: Now) -> Result<(), GossipError> {
        let mut room = self.nickname_room();
        for (name, nickname) in state.nicknames {
            // A peer's own nickname is not taken from others.
            if name != self.me() {
                self.store_nickname(name, nickname, &mut room);
            }
        }
        let ours = self.config.range.range();
        let foreign = state.range.filter(|&range| range != ours && state.ring.is_none());
        match (foreign, from) {
            (Some(received), Some(from)) => {
                self.record_conflict(from, Conflict::Range { received, ours }, Vec::new(), now);
            }
            (None, Some(from)) if state.range == Some(ours) => self.resolve_conflict(from),
            _ => {}
        }
        match (state.ring, state.paxos) {
            (Some(ring), _) => return self.receive_ring(&ring, now),
            (None, _) if !self.ring.is_empty() => {
                // A peer without a ring gets this one; in gossip the sender is not known.
                if let Some(from) = from {
                    self.send_state(from, now);
                }
            }
            // An election over another range has a different result.
            (None, _) if foreign.is_some() => {}
            (None, Some(knowledge)) => {
                let Some(paxos) = &mut self.paxos else { return Ok(()) };
                if paxos.update(&knowledge) {
                    if paxos.promise_and_accept() {
                        self.broadcast(now);
                    }
                    self.check_consensus(now);
                }
            }
            // An observer asks for an election.
            (None, None) if self.paxos.is_some() && from.is_some() => self.start_election(now),
            (None, None) => {}
        }
        Ok(())
    }

    fn receive_ring(&mut self, theirs: &Ring, now: Now) -> Result<(), GossipError> {
        if self.reachable.contains_key(&theirs.peer()) {
            self.allocating.insert(theirs.peer());
        }
        let was_empty = self.ring.is_empty();
        let space = &self.space;
        let merged = self.ring.merge(theirs, |range| space.first_used(range));
        let (conflict, disputed) = match merged {
            Ok(merged) => {
                let tie = self.ring.break_ties(theirs);
                self.ring_unsaved |= merged.changed || tie.changed;
                match tie.conceded.or_else(|| self.ring.find_overlooked(theirs)) {
                    Some((conflict, disputed)) => {
                        self.record_conflict(theirs.peer(), conflict, disputed, now);
                    }
                    None => self.resolve_conflict(theirs.peer()),
                }
                if merged.updated {
                    self.forget_nicknames();
                    self.ring_updated(was_empty);
                    self.transfer_if_leaving(now);
                }
                if tie.raised {
                    self.ring_unsaved = true;
                    self.broadcast(now);
                }
                return Ok(());
            }
            Err(MergeError::Invalid(error)) => return Err(Malformed::Ring(error).into()),
            Err(MergeError::Seeds) => {
                let named = |names: &[PeerName]| {
                    names.iter().take(MAX_NAMED_SEEDS).map(|&name| self.named(name)).collect()
                };
                let received = named(theirs.seeds());
                (Conflict::Seeds { received, ours: named(self.ring.seeds()) }, Vec::new())
            }
            Err(MergeError::Range) => {
                (Conflict::Range { received: theirs.range(), ours: self.ring.range() }, Vec::new())
            }
            // The free addresses reported for an entry may exceed its size because part of it is this peer's.
            Err(MergeError::Conflict { conflict: conflict @ Conflict::Result(_), disputed }) => {
                self.ring.find_overlooked(theirs).unwrap_or((conflict, disputed))
            }
            Err(MergeError::Conflict { conflict, disputed }) => (conflict, disputed),
        };
        self.record_conflict(theirs.peer(), conflict.clone(), disputed, now);
        Err(GossipError::Conflict(conflict))
    }

    fn record_conflict(&mut self, peer: PeerName, conflict: Conflict, ranges: Vec<AddrRange>, now: Now) {
        let known = self.conflicts.get(&peer);
        if known.is_none() && self.conflicts.len() >= MAX_CONFLICTS {
            return;
        }
        let since = known.map_or(now.mono, |known| known.since);
        if known.is_none_or(|known| known.conflict != conflict) {
            self.event(Event::Conflict { peer, conflict: conflict.clone() });
        }
        let claimant = conflict.claimant().unwrap_or(peer);
        let ranges = join_beyond(MAX_DISPUTED_RANGES, ranges);
        self.conflicts.insert(peer, Dispute { conflict, claimant, since, ranges });
        self.update_disputed();
    }

    pub(super) fn resolve_conflict(&mut self, peer: PeerName) {
        if self.conflicts.remove(&peer).is_some() {
            self.event(Event::ConflictOver { peer });
            self.update_disputed();
        }
    }

    pub(super) fn update_disputed(&mut self) {
        self.disputed = self.conflicts.values().flat_map(|dispute| dispute.ranges.iter().copied()).collect();
    }

    /// Forgets nicknames of peers that neither own anything nor can be reached (docs/spec/ipam.md 6.4).
    fn forget_nicknames(&mut self) {
        let owners = self.ring.owners();
        let (me, reachable) = (self.config.name, &self.reachable);
        self.nicknames.retain(|name, _| *name == me || owners.contains(name) || reachable.contains_key(name));
    }
}

fn nickname_cost(nickname: &str) -> usize {
    nickname.len() + NICKNAME_COST
}

/// At most `max` ranges that cover the same addresses, and perhaps others.
fn join_beyond(max: usize, ranges: Vec<AddrRange>) -> Vec<AddrRange> {
    let joined = |chunk: &[AddrRange]| {
        let start = chunk.iter().map(|range| range.start()).min();
        let end = chunk.iter().map(|range| range.end()).max();
        start.zip(end).map(|(start, end)| AddrRange::new(start, end))
    };
    ranges.chunks(ranges.len().div_ceil(max).max(1)).filter_map(joined).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_beyond_the_limit_are_joined() {
        let ranges: Vec<_> = (0..1000).map(|n| AddrRange::single(n * 2)).collect();
        assert_eq!(join_beyond(1000, ranges.clone()), ranges);
        let joined = join_beyond(MAX_DISPUTED_RANGES, ranges.clone());
        assert!(joined.len() <= MAX_DISPUTED_RANGES);
        assert!(ranges.iter().all(|single| joined.iter().any(|range| range.contains(single.start()))));
        assert!(join_beyond(MAX_DISPUTED_RANGES, Vec::new()).is_empty());
    }
}
