//! Outputs of allocators: what is stored, sent and received, and what must hold for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt;
use weave_ipam::message::{StateMessage, Unicast};
use weave_ipam::{Event as IpamEvent, GossipError, Output, Persist};
use weave_types::PeerName;

use super::cluster::{Cluster, Event};
use super::links::Message;
use super::trace::{show_message, show_output};
use crate::net::HostId;

/// Interval of a peer's periodic gossip (docs/spec/ipam.md 17).
const GOSSIP_INTERVAL: Duration = Duration::from_secs(30);
/// Requests for space that a peer may send in five seconds. If every answer led to a request, it would send 250 to a donor
/// that answers at once.
const MAX_SPACE_REQUESTS: usize = 100;

impl Cluster {
    pub(super) fn handle_output(&mut self, id: HostId, output: Output) {
        self.trace(id, || show_output(&output));
        match output {
            Output::Persist(persist) => {
                self.handle_release(id, &persist);
                let clock = self.clock();
                let member = self.member_mut(id);
                member.disk.write(&persist, clock);
                if matches!(persist, Persist::Clear) {
                    member.reset_versions();
                }
            }
            Output::Unicast { to, payload } => {
                self.check_unicast(id, &payload);
                if let Some(to) = self.by_name(to).filter(|&to| self.links.is_reachable(id, to)) {
                    let src = self.member(id).name;
                    self.transmit(id, to, &Message::Unicast { src, payload });
                }
            }
            Output::Broadcast(payload) => {
                self.check_state(id, &decode(&payload));
                let src = self.member(id).name;
                self.relay_broadcast(id, src, &payload);
            }
            Output::Done(request, result) => self.handle_answer(id, request, result),
            Output::Event(event) => self.handle_event(id, event),
        }
    }

    fn handle_event(&mut self, id: HostId, event: IpamEvent) {
        match event {
            IpamEvent::RingEstablished { seeds } => {
                let range = self.range_of(id);
                let first = self.decided_seeds.entry(range).or_insert_with(|| seeds.clone());
                assert!(*first == seeds, "two decisions for {range}: {first:?}, and on {id} {seeds:?}");
            }
            // 2.8.1 aborts when it loses part of its own space: the host crashes at the next output.
            IpamEvent::Yielded { .. } if self.member(id).legacy => {
                self.member_mut(id).legacy_conflict_at = Some(self.clock());
            }
            IpamEvent::Conflict { conflict, .. } if !self.plan.conflicts => {
                panic!("{id}: conflict without cause: {conflict}")
            }
            IpamEvent::Donated { .. } => self.donations += 1,
            IpamEvent::PreclaimFailed { container, cidr, error } => {
                self.handle_preclaim_failure(id, &container, cidr, &error);
            }
            _ => {}
        }
    }

    pub(super) fn gossip_periodically(&mut self, id: HostId, incarnation: u32) {
        let neighbours = self.links.neighbours(id);
        if !neighbours.is_empty() {
            let to = neighbours[self.rng.random_range(0..neighbours.len())];
            self.send_state(id, to);
        }
        self.schedule(GOSSIP_INTERVAL, Event::Gossip(id, incarnation));
    }

    /// Sends the complete state to a neighbour.
    pub(super) fn send_state(&mut self, from: HostId, to: HostId) {
        let Some(payload) = self.with_allocator(from, |allocator, now| allocator.state(now)) else { return };
        if self.is_running(from) {
            self.check_state(from, &decode(&payload));
            self.transmit(from, to, &Message::Gossip(payload));
        }
    }

    /// Sends a broadcast on along the tree of its source.
    fn relay_broadcast(&mut self, at: HostId, src: PeerName, payload: &[u8]) {
        let Some(root) = self.by_name(src) else { return };
        for to in self.links.next_hops(root, at) {
            self.transmit(at, to, &Message::Broadcast { src, payload: payload.to_vec() });
        }
    }

    fn transmit(&mut self, from: HostId, to: HostId, message: &Message) {
        for delay in self.world.net.message_delays(from, to) {
            self.schedule(delay, Event::Deliver { from, to, message: message.clone() });
        }
    }

    pub(super) fn deliver(&mut self, from: HostId, to: HostId, message: &Message) {
        if !self.is_running(to) || self.is_running(from) && !self.links.is_reachable(from, to) {
            return;
        }
        self.trace(to, || format!("<- {} {}", from.0, show_message(message)));
        let result = self.with_allocator(to, |allocator, now| match message {
            Message::Unicast { src, payload } => allocator.handle_unicast(*src, payload, now).map(|()| None),
            Message::Broadcast { src, payload } => {
                allocator.handle_broadcast(*src, payload, now).map(|relay| relay.map(|bytes| (*src, bytes)))
            }
            Message::Gossip(payload) => allocator.handle_gossip(payload, now).map(|news| {
                assert!(news.is_none(), "periodic gossip is relayed");
                None
            }),
        });
        let alive = self.is_running(to);
        match result {
            Some(Ok(relay)) => {
                if let (true, Some((src, bytes))) = (alive, relay) {
                    self.check_state(to, &decode(&bytes));
                    self.relay_broadcast(to, src, &bytes);
                }
                if let (true, Message::Gossip(payload)) = (alive, message) {
                    self.check_known_gossip(to, payload);
                }
            }
            None => {}
            Some(Err(GossipError::Malformed(error))) => {
                panic!("{to} rejects a message of a correct peer: {error}")
            }
            Some(Err(error)) if !self.plan.conflicts => {
                panic!("{to}: conflict without cause: {error}")
            }
            Some(Err(_)) if self.member(to).legacy => {
                // 2.8.1 ends the connection over which the message came.
                self.member_mut(to).legacy_conflict_at = Some(self.clock());
                let pause = self.random_millis(1000, 10_000);
                self.links.end_connection(from, to, self.clock() + pause);
                self.schedule(pause, Event::Reconnect);
                self.update_links();
            }
            Some(Err(_)) => {}
        }
    }

    /// Gossip that was merged once changes nothing the second time.
    fn check_known_gossip(&mut self, id: HostId, payload: &[u8]) {
        if self.member(id).legacy || !self.rng.random_bool(0.1) {
            return;
        }
        let outputs = self.member(id).outputs;
        let merged = self.with_allocator(id, |allocator, now| {
            let before = allocator.ring().clone();
            let result = allocator.handle_gossip(payload, now);
            (*allocator.ring() == before, result)
        });
        let unchanged = merged == Some((true, Ok(None))) && self.member(id).outputs == outputs;
        assert!(unchanged || !self.is_running(id), "{id}: known gossip changes something: {merged:?}");
    }

    /// Bounds the number of requests for space.
    fn check_unicast(&mut self, id: HostId, payload: &[u8]) {
        match Unicast::decode(payload) {
            Ok(Some(Unicast::State(state))) => self.check_state(id, &state),
            Ok(Some(Unicast::Request(_))) => {
                let clock = self.clock();
                let member = self.member_mut(id);
                let recent = &mut member.recent_space_requests;
                recent.push_back(clock);
                while recent.front().is_some_and(|&at| clock - at > Duration::from_secs(5)) {
                    recent.pop_front();
                }
                assert!(
                    recent.len() <= MAX_SPACE_REQUESTS || member.legacy,
                    "{id}: {} requests for space in five seconds",
                    recent.len()
                );
            }
            Ok(Some(Unicast::Denied(_))) => {}
            other => panic!("{id} sends {other:?}"),
        }
    }

    /// No message depends on what is not on the disk.
    fn check_state(&mut self, id: HostId, state: &StateMessage) {
        let member = self.member_mut(id);
        let stored = member.disk.stored();
        if let Some(ring) = &state.ring {
            let known = stored.ring.as_ref().is_some_and(|r| r.entries() == ring.entries());
            assert!(known || member.legacy, "{id} sends a ring that is not on its disk: {ring:?}");
            assert!(ring.peer() == member.name, "{id} sends the ring of {}", ring.peer());
            for entry in ring.entries() {
                let last = member.versions.insert(entry.token, entry.version);
                let decreases = last.is_some_and(|last| last > entry.version) && !member.legacy;
                assert!(!decreases, "{id}: version decreases from {last:?} in {entry:?}");
            }
            assert!(
                member.versions.len() == ring.entries().len(),
                "{id}: a token has vanished: {ring:?}, was {:?}",
                member.versions
            );
        }
        let Some(knowledge) = state.paxos.as_ref().filter(|_| !member.legacy) else { return };
        let elector = member.allocator.as_ref().and_then(|allocator| allocator.paxos());
        match &stored.election {
            Some(election) if knowledge.get(&election.elector) != Some(&election.state) => {
                panic!("{id} promises what is not on its disk: {knowledge:?}")
            }
            None if elector.is_some_and(|paxos| knowledge.contains_key(&paxos.own())) => {
                panic!("{id} promises, and has no election on its disk: {knowledge:?}")
            }
            _ => {}
        }
    }

    /// Updates the connections between allocators after a change of the network or of the running hosts.
    pub(super) fn update_links(&mut self) {
        if self.plan.nodes {
            return;
        }
        let clock = self.clock();
        let running: Vec<HostId> = self.ids().filter(|&id| self.is_running(id)).collect();
        let mut connected = BTreeSet::new();
        for (n, &a) in running.iter().enumerate() {
            for &b in &running[n + 1..] {
                if self.links.may_connect(a, b, clock) && self.world.net.connected(a, b) {
                    connected.insert((a, b));
                }
            }
        }
        let Some(new) = self.links.replace(connected) else { return };
        for (a, b) in new {
            let (there, back) = (self.random_millis(1, 300), self.random_millis(1, 300));
            self.schedule(there, Event::GossipOnConnect(a, b));
            self.schedule(back, Event::GossipOnConnect(b, a));
        }
        for id in running {
            let delay = self.random_millis(1, 1500);
            self.schedule(delay, Event::TopologyChange(id, self.incarnation(id)));
        }
    }

    /// Reports to a peer which others are reachable, and which were removed.
    pub(super) fn report_topology(&mut self, id: HostId) {
        let reachable: BTreeMap<PeerName, String> = self
            .links
            .reachable(id)
            .into_iter()
            .map(|other| (self.member(other).name, format!("host-{}", other.0)))
            .collect();
        let removed: Vec<PeerName> = self
            .removed_peers
            .iter()
            .map(|peer| peer.name)
            .filter(|name| !self.member(id).removals_reported.contains(name))
            .collect();
        self.with_allocator(id, |allocator, now| allocator.handle_topology_change(&reachable, now));
        for name in removed {
            self.member_mut(id).removals_reported.insert(name);
            self.with_allocator(id, |allocator, now| allocator.handle_peer_removed(name, now));
        }
    }
}

fn decode(payload: &[u8]) -> StateMessage {
    StateMessage::decode(payload).unwrap_or_else(|error| panic!("a peer sends malformed state: {error}"))
}
