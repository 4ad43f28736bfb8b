//! Actions of API clients, containers and operators on a host.

use std::collections::BTreeSet;

use weave_ipam::{HandOver, NO_ID, RequestId, Ring};
use weave_types::PeerName;

use super::answers::show;
use super::cluster::{Cluster, Request, RequestKind};
use super::member::{ContainerState, owned};
use super::plans::InitMode;
use crate::host::CrashKind;
use crate::net::HostId;

/// Containers from this number on are no Docker containers: they are released explicitly.
pub(super) const FIRST_LABEL: u8 = 3;
/// Number of containers of a host; the last one stands for "no id".
pub(super) const CONTAINERS: u8 = 6;

pub(super) fn container(id: HostId, number: u8) -> String {
    if number + 1 == CONTAINERS { NO_ID.to_owned() } else { format!("{}-c{number}", id.0) }
}

impl Cluster {
    fn add_request(&mut self, id: HostId, kind: RequestKind) -> RequestId {
        let number = self.new_request();
        let request = Request { host: id, kind, since: self.clock(), cancelled: self.member(id).leaving };
        self.requests.insert(number, request);
        number
    }

    fn run_container(&mut self, id: HostId, number: u8) {
        if container(id, number) != NO_ID {
            let state = self.member_mut(id).containers.entry(container(id, number)).or_default();
            state.is_container = number < FIRST_LABEL;
            (state.running, state.died, state.gone) = (true, None, false);
        }
    }

    pub(super) fn allocate(&mut self, id: HostId, number: u8, subnet: usize) {
        if !self.runs(id) {
            return;
        }
        let subnet = self.plan.subnet(self.member(id).range, subnet);
        let name = container(id, number);
        self.run_container(id, number);
        let request = self.add_request(id, RequestKind::Allocate(name.clone(), subnet));
        let is_container = number < FIRST_LABEL;
        self.call(id, |a, now| a.allocate(request, name, subnet, is_container, now));
        self.report_started(id, number);
    }

    pub(super) fn claim(&mut self, id: HostId, number: u8, offset: u8, lenient: bool) {
        let name = container(id, number);
        if !self.runs(id) || name == NO_ID {
            return;
        }
        let addr = self.range_of(id).range().start() + u32::from(offset);
        let cidr = self.plan.cidr(addr);
        self.run_container(id, number);
        let request = self.add_request(id, RequestKind::Claim(name.clone(), addr));
        let is_container = number < FIRST_LABEL;
        self.call(id, |a, now| a.claim(request, name, cidr, is_container, lenient, now));
        self.report_started(id, number);
    }

    fn report_started(&mut self, id: HostId, number: u8) {
        let name = container(id, number);
        if number < FIRST_LABEL {
            self.call(id, |a, now| a.handle_container_started(&name, now));
        }
    }

    pub(super) fn prime(&mut self, id: HostId) {
        if self.runs(id) {
            let request = self.add_request(id, RequestKind::Prime);
            self.call(id, |a, now| a.prime(request, now));
        }
    }

    /// A client gives up a request.
    pub(super) fn cancel(&mut self, id: HostId, which: u8) {
        let waiting: Vec<RequestId> =
            self.requests.iter().filter(|(_, r)| r.host == id).map(|(&number, _)| number).collect();
        let Some(&number) = waiting.get(usize::from(which) % waiting.len().max(1)) else { return };
        let before = self.member(id).allocator.as_ref().map(|a| a.owned().clone());
        if let Some(request) = self.requests.get_mut(&number) {
            request.cancelled = true;
        }
        self.call(id, |a, now| a.cancel(number, now));
        let Some(allocator) = &self.member(id).allocator else { return };
        if self.requests.contains_key(&number) {
            panic!("host {}: {number:?} was cancelled, but is not answered", id.0);
        }
        if before.as_ref() != Some(allocator.owned()) {
            panic!("host {}: a cancelled request leaves {:?}, before {before:?}", id.0, allocator.owned());
        }
    }

    /// Releases one address, or all, of a container.
    pub(super) fn release(&mut self, id: HostId, number: u8, all: bool) {
        if !self.runs(id) || self.member(id).leaving {
            return;
        }
        let mut name = container(id, number);
        if name == NO_ID {
            // Without an id the address is the name.
            let by_address = |(id, c): (&String, &ContainerState)| {
                c.addrs.iter().any(|&addr| show(addr) == *id).then(|| id.clone())
            };
            let Some(found) = self.member(id).containers.iter().find_map(by_address) else { return };
            name = found;
        }
        self.release_named(id, &name, all);
    }

    pub(super) fn release_named(&mut self, id: HostId, name: &str, all: bool) {
        let range = self.range_of(id).range();
        let has = self.member(id).containers.get(name).map(|c| c.addrs.clone()).unwrap_or_default();
        let lost: Vec<u32> =
            if all { has.iter().copied().collect() } else { has.iter().copied().take(1).collect() };
        let Some(&first) = lost.first() else { return };
        for &addr in &lost {
            self.remove_user(id, name, addr);
        }
        let member = self.member_mut(id);
        member.orphans.retain(|(container, addr)| container != name || !all && *addr != first);
        member.pending_claims.retain(|(container, addr)| container != name || !all && *addr != first);
        let result = self.call(id, |allocator, now| match all {
            true => allocator.delete(name, now),
            false => allocator.free(name, std::net::IpAddr::V4(first.into()), now),
        });
        if let (Some(Err(error)), true) = (result, range.contains(first)) {
            panic!("host {}: {} of {name} cannot be released: {error}", id.0, show(first));
        }
    }

    /// A Docker container ends; with `gone` it is removed as well.
    pub(super) fn container_ends(&mut self, id: HostId, number: u8, gone: bool) {
        let (name, clock) = (container(id, number), self.clock());
        if number >= FIRST_LABEL {
            return;
        }
        let Some(state) = self.member_mut(id).containers.get_mut(&name) else { return };
        state.running = false;
        state.died.get_or_insert(clock);
        state.gone |= gone;
        for request in self.requests.values_mut().filter(|request| request.host == id) {
            request.cancelled |= match &request.kind {
                RequestKind::Allocate(container, _) | RequestKind::Claim(container, _) => *container == name,
                RequestKind::Prime => false,
            };
        }
        if !self.runs(id) {
            // The peer finds out at its next start.
            return;
        }
        let member = self.member_mut(id);
        member.pending_claims.retain(|(container, _)| *container != name);
        self.call(id, |a, now| {
            if gone { a.handle_container_destroyed(&name, now) } else { a.handle_container_died(&name, now) }
        });
        // Addresses that the peer was still claiming again after the loss of its disk are given up.
        self.drop_unknown(id);
        let left = self.requests.values().any(|request| request.host == id && request.cancelled);
        if left && self.runs(id) && !self.member(id).leaving {
            panic!("host {}: {name} is dead, but a request of it is pending", id.0);
        }
    }

    /// A Docker container is started again.
    pub(super) fn container_starts(&mut self, id: HostId, number: u8) {
        let name = container(id, number);
        if number < FIRST_LABEL && self.member(id).containers.contains_key(&name) {
            self.run_container(id, number);
            self.report_started(id, number);
        }
    }

    /// `weave reset`.
    pub(super) fn reset(&mut self, id: HostId) {
        if !self.runs(id) || self.member(id).leaving {
            return;
        }
        self.lose_containers(id);
        for request in self.requests.values_mut().filter(|request| request.host == id) {
            request.cancelled = true;
        }
        self.member_mut(id).leaving = true;
        let hand_over = self.call(id, |a, now| a.leave(now));
        self.trace(id, || format!("leaves: {hand_over:?}"));
        if let (Some(HandOver::To { peer, .. }), true) = (&hand_over, self.runs(id)) {
            let there = self.member(id).view().is_some_and(|ring| ring.owners().contains(peer));
            if !there {
                panic!("host {}: hands over to {peer}, which owns nothing then", id.0);
            }
        }
        if self.requests.values().any(|request| request.host == id) && self.runs(id) {
            panic!("host {}: leaves with pending requests", id.0);
        }
        self.finish_reset_later(id);
    }

    /// `weave rmpeer` of a removed peer.
    pub(super) fn remove_peer(&mut self, by: HostId, which: u8) {
        let Some(ring) = self.member(by).view().filter(|_| self.member(by).is_ready()) else { return };
        if self.member(by).leaving || self.removed_peers.is_empty() {
            return;
        }
        let name = self.removed_peers[usize::from(which) % self.removed_peers.len()].name;
        let taken: Vec<u32> =
            ring.entries().iter().filter(|entry| entry.peer == name).map(|entry| entry.token).collect();
        let disputed = self.disputed(by, ring, name);
        if !disputed.is_empty() {
            if !self.plan.double_takeover {
                return;
            }
            self.contested.extend(&disputed);
        }
        let reachable = self.by_name(name).is_some();
        let contested = !disputed.is_empty();
        let result = self.call(by, |a, now| a.remove_peer(&name.to_string(), false, now));
        if let (Some(Ok(_)), false, true) = (&result, contested, self.runs(by)) {
            self.check_takeover(by, &taken);
        }
        if let (Some(Err(error)), false) = (&result, reachable) {
            // A peer that has just died may still be reported as reachable.
            let known = self.links.reachable(by).iter().any(|&id| self.member(id).name == name);
            if known {
                panic!("host {}: {error}", by.0);
            }
        }
    }

    /// The versions of a takeover are higher than all that others have received from the removed peer.
    fn check_takeover(&self, by: HostId, taken: &[u32]) {
        let Some(ring) = self.member(by).view() else { return };
        let others = self.ids().filter(|&id| id != by).filter_map(|id| self.member(id).view());
        for view in others.filter(|view| view.range() == ring.range()) {
            for theirs in view.entries().iter().filter(|entry| taken.contains(&entry.token)) {
                let ours = ring.entries().iter().find(|entry| entry.token == theirs.token);
                if ours.is_none_or(|ours| ours.version <= theirs.version) {
                    panic!("host {} takes over with {ours:?}, and {} knows {theirs:?}", by.0, view.peer());
                }
            }
        }
    }

    /// The addresses of a takeover about which another peer has, or may have, newer knowledge.
    fn disputed(&self, by: HostId, ring: &Ring, victim: PeerName) -> BTreeSet<u32> {
        let ours = ring.ranges_owned_by(victim);
        let newest = ring.entries().iter().filter(|e| e.peer == victim).map(|e| e.version).max().unwrap_or(0);
        let others = self.ids().filter(|&id| id != by).filter_map(|id| self.member(id).view());
        let mut disputed = BTreeSet::new();
        for view in others.chain(self.removed_peers.iter().filter_map(|removed| removed.ring.as_ref())) {
            if view.range() != ring.range() || view.is_empty() {
                continue;
            }
            let ahead = view.entries().iter().any(|e| e.peer == victim && e.version > newest + 90);
            for range in &ours {
                for addr in range.start()..range.end() {
                    if ahead || view.owner_of(addr) != Some(victim) {
                        disputed.insert(addr);
                    }
                }
            }
        }
        disputed
    }

    /// The peer crashes and its disk is lost, but only if all others have its complete ring (docs/spec/ipam.md 16.2, A5). The
    /// containers continue to run.
    pub(super) fn lose_disk(&mut self, id: HostId) {
        self.kill(id, CrashKind::Killed);
        let known = self.plan.init != InitMode::Seed
            && !self.member(id).destroyed
            && self.others_have_rings(id)
            && self.all_know(id, self.member(id).disk.stored().ring.as_ref());
        if known {
            self.lose_messages();
            self.wipe_disk(id);
        }
    }

    /// Whether there are other peers, and all have a ring of the same range.
    pub(super) fn others_have_rings(&self, id: HostId) -> bool {
        let mut others = self.ids().filter(|&other| other != id && !self.member(other).destroyed).peekable();
        others.peek().is_some()
            && others.all(|other| {
                let view = self.member(other).view();
                let stored =
                    self.member(other).disk.stored().ring.as_ref().is_some_and(|ring| !ring.is_empty());
                view.is_some_and(|ring| ring.range() == self.range_of(id).range()) && stored
            })
    }

    /// Whether all peers have the same entries of a peer. After the loss of its disk the peer would otherwise reuse versions that
    /// some of them have seen (docs/spec/ipam.md 16.2, A5).
    pub(super) fn all_know(&self, id: HostId, ring: Option<&Ring>) -> bool {
        let name = self.member(id).name;
        let Some(ring) = ring else { return false };
        let own = owned(ring, name);
        let entries = |view: &Ring| -> Vec<_> {
            view.entries().iter().filter(|e| e.peer == name).map(|e| (e.token, e.version, e.free)).collect()
        };
        let others = self.ids().filter(|&other| other != id);
        let running = others.flat_map(|other| {
            let member = self.member(other);
            [member.view(), member.disk.stored().ring.as_ref()].into_iter().flatten()
        });
        // Gossip of a removed node may still be relayed.
        let left =
            self.removed_peers.iter().filter(|_| self.plan.nodes).filter_map(|removed| removed.ring.as_ref());
        let mut views = running.chain(left);
        let Some(first) = views.next() else { return true };
        owned(first, name) == own && views.all(|view| entries(view) == entries(first))
    }

    /// Restarts a peer with the next range.
    pub(super) fn change_range(&mut self, id: HostId) {
        let next = self.member(id).range + 1;
        let ready = self.ids().all(|id| self.member(id).range > 0 || self.member(id).view().is_some());
        if next >= self.plan.ranges.len() || self.member(id).destroyed || !ready {
            return;
        }
        self.kill(id, CrashKind::Killed);
        self.member_mut(id).range = next;
        self.start(id);
    }

    /// A container that is released explicitly requests an address of the whole range.
    pub(super) fn allocate_label(&mut self, id: HostId, name: String) {
        let subnet = self.range_of(id);
        let state = self.member_mut(id).containers.entry(name.clone()).or_default();
        state.running = true;
        let request = self.add_request(id, RequestKind::Allocate(name.clone(), subnet));
        self.call(id, |a, now| a.allocate(request, name, subnet, false, now));
    }
}
