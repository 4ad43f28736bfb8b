//! What peers say about themselves, and what we say (docs/spec/ipam.md 8.11).

use weave_types::{Now, PeerName};

use super::{Allocator, Dispute};
use crate::address::AddrRange;
use crate::gossip_error::{Conflict, GossipError, Malformed};
use crate::merge::MergeError;
use crate::message::{StateMessage, Unicast};
use crate::output::{Event, Output};
use crate::ring::Ring;

/// Longer nicknames are not kept, nor more than so many: memory must not depend on what a peer makes up.
const MAX_NICKNAME: usize = 1024;
const MAX_NICKNAMES: usize = 65_536;
const MAX_CONFLICTS: usize = 1024;

impl Allocator {
    /// State that a neighbour knows. What it returns is to be passed on: nothing.
    ///
    /// # Errors
    /// The message was not merged. [`GossipError::Malformed`]: the connection should be closed.
    pub fn handle_gossip(&mut self, payload: &[u8], now: Now) -> Result<Option<Vec<u8>>, GossipError> {
        let state = StateMessage::decode(payload)?;
        let result = self.receive(None, state, now);
        self.finish(now);
        result.map(|()| None)
    }

    /// A message from `src` for everybody. What it returns is to be passed on in its place: all that we know.
    ///
    /// # Errors
    /// As [`handle_gossip`](Allocator::handle_gossip); nothing is passed on then.
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

    /// A message from `src` for us. Of an unknown kind, it is ignored.
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
                self.answered(src, None, false, now);
                result
            }
            Some(Unicast::Denied(range)) => {
                self.claims_denied(src, range);
                self.answered(src, Some(range), true, now);
                Ok(())
            }
        };
        self.finish(now);
        result
    }

    /// All that we know, for gossip. What it depends on is put out first.
    pub fn state(&mut self, now: Now) -> Vec<u8> {
        let bytes = self.encode_state(now);
        self.finish(now);
        bytes
    }

    /// Adds a later message of this channel to one that could not be sent yet. Both are all that we know, so the later one
    /// is enough.
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

    /// Stores what a message is about to say.
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

    fn receive(&mut self, from: Option<PeerName>, state: StateMessage, now: Now) -> Result<(), GossipError> {
        for (name, nickname) in state.nicknames {
            let fits = nickname.len() <= MAX_NICKNAME && self.nicknames.len() < MAX_NICKNAMES;
            // Our own we know best.
            if fits && name != self.me() {
                self.nicknames.insert(name, nickname);
            }
        }
        let ours = self.config.range.range();
        let foreign = state.range.filter(|&range| range != ours && state.ring.is_none());
        match (foreign, from) {
            (Some(received), Some(from)) => {
                self.disagreed(from, Conflict::Range { received, ours }, Vec::new(), now);
            }
            (None, Some(from)) if state.range == Some(ours) => self.agreed(from),
            _ => {}
        }
        match (state.ring, state.paxos) {
            (Some(ring), _) => return self.receive_ring(&ring, now),
            (None, _) if !self.ring.is_empty() => {
                // Who has no ring gets ours, if we know who that is.
                if let Some(from) = from {
                    self.send_state(from, now);
                }
            }
            // Electors of another range agree on something else.
            (None, _) if foreign.is_some() => {}
            (None, Some(knowledge)) => {
                let Some(paxos) = &mut self.paxos else { return Ok(()) };
                if paxos.update(&knowledge) {
                    if paxos.think() {
                        self.broadcast(now);
                    }
                    self.conclude(now);
                }
            }
            // An observer wants an election.
            (None, None) if self.paxos.is_some() && from.is_some() => self.establish(now),
            (None, None) => {}
        }
        Ok(())
    }

    fn receive_ring(&mut self, theirs: &Ring, now: Now) -> Result<(), GossipError> {
        let was_empty = self.ring.is_empty();
        let space = &self.space;
        let merged = self.ring.merge(theirs, |range| space.first_used(range));
        let (conflict, disputed) = match merged {
            Ok(merged) => {
                let tie = self.ring.break_ties(theirs);
                self.ring_unsaved |= merged.changed || tie.settled;
                match tie.lost.or_else(|| self.ring.overlooked_by(theirs)) {
                    Some((conflict, disputed)) => {
                        self.disagreed(theirs.peer(), conflict, disputed, now);
                    }
                    None => self.agreed(theirs.peer()),
                }
                if merged.updated {
                    self.forget_nicknames();
                    self.ring_updated(was_empty, now);
                    self.hand_on(now);
                }
                if tie.won {
                    self.ring_unsaved = true;
                    self.broadcast(now);
                }
                return Ok(());
            }
            Err(MergeError::Fault(fault)) => return Err(Malformed::Ring(fault).into()),
            Err(MergeError::Seeds) => {
                let named = |names: &[PeerName]| names.iter().map(|&name| self.named(name)).collect();
                let received = named(theirs.seeds());
                (Conflict::Seeds { received, ours: named(self.ring.seeds()) }, Vec::new())
            }
            Err(MergeError::Range) => {
                (Conflict::Range { received: theirs.range(), ours: self.ring.range() }, Vec::new())
            }
            // Somebody has more free addresses than there is room for, because part of them is ours.
            Err(MergeError::Conflict { conflict: conflict @ Conflict::Result(_), disputed }) => {
                self.ring.overlooked_by(theirs).unwrap_or((conflict, disputed))
            }
            Err(MergeError::Conflict { conflict, disputed }) => (conflict, disputed),
        };
        self.disagreed(theirs.peer(), conflict.clone(), disputed, now);
        Err(GossipError::Conflict(conflict))
    }

    // ---- conflicts --------------------------------------------------------------------------------------------

    fn disagreed(&mut self, peer: PeerName, conflict: Conflict, ranges: Vec<AddrRange>, now: Now) {
        let known = self.conflicts.get(&peer);
        if known.is_none() && self.conflicts.len() >= MAX_CONFLICTS {
            return;
        }
        let since = known.map_or(now.mono, |known| known.since);
        if known.is_none_or(|known| known.conflict != conflict) {
            self.event(Event::Conflict { peer, conflict: conflict.clone() });
        }
        let claimant = conflict.claimant().unwrap_or(peer);
        self.conflicts.insert(peer, Dispute { conflict, claimant, since, ranges });
        self.update_disputed();
    }

    pub(super) fn agreed(&mut self, peer: PeerName) {
        if self.conflicts.remove(&peer).is_some() {
            self.event(Event::ConflictOver { peer });
            self.update_disputed();
        }
    }

    pub(super) fn update_disputed(&mut self) {
        self.disputed = self.conflicts.values().flat_map(|doubt| doubt.ranges.iter().copied()).collect();
    }

    /// Those of peers that neither own anything nor are there (docs/spec/ipam.md 6.4).
    fn forget_nicknames(&mut self) {
        let owners = self.ring.owners();
        let (me, reachable) = (self.config.name, &self.reachable);
        self.nicknames.retain(|name, _| *name == me || owners.contains(name) || reachable.contains_key(name));
    }
}
