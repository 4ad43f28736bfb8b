//! Actions of API clients, containers and operators on a host.

use std::collections::BTreeSet;
use std::time::Duration;

use weave_ipam::{HandOver, NO_ID, RequestId, Ring};
use weave_types::PeerName;

use super::cluster::{Cluster, Event, Request, RequestKind};
use super::member::{ContainerState, owned, show_addr};
use super::plans::InitMode;
use crate::host::CrashKind;
use crate::net::HostId;

/// Containers from this number on are no Docker containers: their addresses are released explicitly.
const FIRST_NON_DOCKER: u8 = 3;
/// Number of containers of a host; the last one has no id.
pub(super) const CONTAINERS: u8 = 6;

fn container_id(id: HostId, number: u8) -> String {
    if number + 1 == CONTAINERS { NO_ID.to_owned() } else { format!("{}-c{number}", id.0) }
}

impl Cluster {
    fn add_request(&mut self, id: HostId, kind: RequestKind) -> RequestId {
        self.last_request.0 += 1;
        let request = Request { host: id, kind, since: self.clock(), cancelled: self.member(id).leaving };
        self.requests.insert(self.last_request, request);
        self.last_request
    }

    fn run_container(&mut self, id: HostId, number: u8) {
        let name = container_id(id, number);
        if name != NO_ID {
            let state = self.member_mut(id).containers.entry(name).or_default();
            state.is_container = number < FIRST_NON_DOCKER;
            (state.running, state.died, state.known_stopped) = (true, None, false);
        }
    }

    pub(super) fn allocate(&mut self, id: HostId, number: u8, subnet: usize) {
        if !self.is_running(id) {
            return;
        }
        let subnet = self.plan.subnet(self.member(id).range, subnet);
        let name = container_id(id, number);
        self.run_container(id, number);
        let request = self.add_request(id, RequestKind::Allocate(name.clone(), subnet));
        let is_container = number < FIRST_NON_DOCKER;
        self.with_allocator(id, |a, now| a.allocate(request, name, subnet, is_container, now));
        self.report_started(id, number);
    }

    pub(super) fn claim(&mut self, id: HostId, number: u8, offset: u8, lenient: bool) {
        let name = container_id(id, number);
        if !self.is_running(id) || name == NO_ID {
            return;
        }
        let addr = self.range_of(id).range().start() + u32::from(offset);
        let cidr = self.plan.cidr(addr);
        self.run_container(id, number);
        let request = self.add_request(id, RequestKind::Claim(name.clone(), addr));
        let is_container = number < FIRST_NON_DOCKER;
        self.with_allocator(id, |a, now| a.claim(request, name, cidr, is_container, lenient, now));
        self.report_started(id, number);
    }

    fn report_started(&mut self, id: HostId, number: u8) {
        let name = container_id(id, number);
        if number < FIRST_NON_DOCKER {
            self.with_allocator(id, |a, now| a.handle_container_started(&name, now));
        }
    }

    pub(super) fn prime(&mut self, id: HostId) {
        if self.is_running(id) {
            let request = self.add_request(id, RequestKind::Prime);
            self.with_allocator(id, |a, now| a.prime(request, now));
        }
    }

    /// A client cancels one of the pending requests of a host.
    pub(super) fn cancel(&mut self, id: HostId, which: u8) {
        let pending: Vec<RequestId> =
            self.requests.iter().filter(|(_, r)| r.host == id).map(|(&number, _)| number).collect();
        let Some(&number) = pending.get(usize::from(which) % pending.len().max(1)) else { return };
        let before = self.member(id).allocator.as_ref().map(|a| a.owned().clone());
        if let Some(request) = self.requests.get_mut(&number) {
            request.cancelled = true;
        }
        self.with_allocator(id, |a, now| a.cancel(number, now));
        let Some(allocator) = &self.member(id).allocator else { return };
        let after = allocator.owned();
        assert!(!self.requests.contains_key(&number), "{id}: {number:?} was cancelled, but is not answered");
        assert!(
            before.as_ref() == Some(after),
            "{id}: a cancelled request leaves {after:?}, before {before:?}"
        );
    }

    /// Releases one address, or all, of a container.
    pub(super) fn release(&mut self, id: HostId, number: u8, all: bool) {
        if !self.is_running(id) || self.member(id).leaving {
            return;
        }
        let mut name = container_id(id, number);
        if name == NO_ID {
            // Without an id the address is the name.
            let by_address = |(id, c): (&String, &ContainerState)| {
                c.addrs.iter().any(|&addr| show_addr(addr) == *id).then(|| id.clone())
            };
            let Some(found) = self.member(id).containers.iter().find_map(by_address) else { return };
            name = found;
        }
        self.release_named(id, &name, all);
    }

    pub(super) fn release_named(&mut self, id: HostId, name: &str, all: bool) {
        let range = self.range_of(id).range();
        let Some(state) = self.member(id).containers.get(name) else { return };
        let count = if all { state.addrs.len() } else { 1 };
        let released: Vec<u32> = state.addrs.iter().copied().take(count).collect();
        let Some(&first) = released.first() else { return };
        for addr in released {
            self.remove_user(id, name, addr);
        }
        let member = self.member_mut(id);
        member.orphans.retain(|(container, addr)| container != name || !all && *addr != first);
        member.pending_claims.retain(|(container, addr)| container != name || !all && *addr != first);
        let result = self.with_allocator(id, |allocator, now| match all {
            true => allocator.delete(name, now),
            false => allocator.free(name, std::net::IpAddr::V4(first.into()), now),
        });
        if let (Some(Err(error)), true) = (result, range.contains(first)) {
            panic!("{id}: {} of {name} cannot be released: {error}", show_addr(first));
        }
    }

    /// A Docker container ends, or is removed.
    pub(super) fn end_container(&mut self, id: HostId, number: u8, removed: bool) {
        let (name, clock) = (container_id(id, number), self.clock());
        if number >= FIRST_NON_DOCKER {
            return;
        }
        let Some(state) = self.member_mut(id).containers.get_mut(&name) else { return };
        state.running = false;
        state.died.get_or_insert(clock);
        state.known_stopped |= removed;
        for request in self.requests.values_mut().filter(|request| request.host == id) {
            request.cancelled |= match &request.kind {
                RequestKind::Allocate(container, _) | RequestKind::Claim(container, _) => *container == name,
                RequestKind::Prime => false,
            };
        }
        if !self.is_running(id) {
            // The peer finds out at its next start.
            return;
        }
        let member = self.member_mut(id);
        member.pending_claims.retain(|(container, _)| *container != name);
        self.with_allocator(id, |a, now| {
            if removed {
                a.handle_container_destroyed(&name, now)
            } else {
                a.handle_container_died(&name, now)
            }
        });
        // The peer stops to claim addresses again that it lost with its disk.
        self.remove_unrecorded_users(id);
        let pending = self.requests.values().any(|request| request.host == id && request.cancelled);
        assert!(
            !pending || !self.is_running(id) || self.member(id).leaving,
            "{id}: {name} is dead, but a request of it is pending"
        );
    }

    /// A Docker container is started again.
    pub(super) fn restart_container(&mut self, id: HostId, number: u8) {
        let name = container_id(id, number);
        if number < FIRST_NON_DOCKER && self.member(id).containers.contains_key(&name) {
            self.run_container(id, number);
            self.report_started(id, number);
        }
    }

    /// `weave reset`.
    pub(super) fn reset(&mut self, id: HostId) {
        if !self.is_running(id) || self.member(id).leaving {
            return;
        }
        self.remove_containers(id);
        for request in self.requests.values_mut().filter(|request| request.host == id) {
            request.cancelled = true;
        }
        self.member_mut(id).leaving = true;
        let hand_over = self.with_allocator(id, |a, now| a.leave(now));
        self.trace(id, || format!("leaves: {hand_over:?}"));
        if self.is_running(id) {
            if let Some(HandOver::To { peer, .. }) = &hand_over {
                let owns = self.member(id).view().is_some_and(|ring| ring.owners().contains(peer));
                assert!(owns, "{id}: hands over to {peer}, which owns nothing then");
            }
            let pending = self.requests.values().any(|request| request.host == id);
            assert!(!pending, "{id}: leaves with pending requests");
        }
        // The host is removed a moment after it has handed over its space.
        self.schedule(Duration::from_millis(500), Event::ResetFinished(id, self.incarnation(id)));
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
        if !disputed.is_empty() && !self.plan.double_takeover {
            return;
        }
        self.duplicates_allowed.extend(&disputed);
        let returned = self.by_name(name).is_some();
        let result = self.with_allocator(by, |a, now| a.remove_peer(&name.to_string(), false, now));
        match result {
            Some(Ok(_)) if disputed.is_empty() && self.is_running(by) => self.check_takeover(by, &taken),
            Some(Err(error)) if !returned => {
                // A peer that has just died may still be reported as reachable.
                let known = self.links.reachable(by).iter().any(|&id| self.member(id).name == name);
                assert!(!known, "{by}: {error}");
            }
            _ => {}
        }
    }

    /// The versions of a takeover are higher than those that others have received from the removed peer.
    fn check_takeover(&self, by: HostId, taken: &[u32]) {
        let Some(ring) = self.member(by).view() else { return };
        let others = self.ids().filter(|&id| id != by).filter_map(|id| self.member(id).view());
        for view in others.filter(|view| view.range() == ring.range()) {
            for theirs in view.entries().iter().filter(|entry| taken.contains(&entry.token)) {
                let ours = ring.entries().iter().find(|entry| entry.token == theirs.token);
                assert!(
                    ours.is_some_and(|ours| ours.version > theirs.version),
                    "{by} takes over with {ours:?}, and {} knows {theirs:?}",
                    view.peer()
                );
            }
        }
    }

    /// The addresses of a takeover about which another peer has, or may have, newer knowledge.
    fn disputed(&self, by: HostId, ring: &Ring, removed: PeerName) -> BTreeSet<u32> {
        let ours = ring.ranges_owned_by(removed);
        let newest =
            ring.entries().iter().filter(|e| e.peer == removed).map(|e| e.version).max().unwrap_or(0);
        let others = self.ids().filter(|&id| id != by).filter_map(|id| self.member(id).view());
        let mut disputed = BTreeSet::new();
        for view in others.chain(self.removed_peers.iter().filter_map(|peer| peer.ring.as_ref())) {
            if view.range() != ring.range() || view.is_empty() {
                continue;
            }
            let ahead = view.entries().iter().any(|e| e.peer == removed && e.version > newest + 90);
            for range in &ours {
                for addr in range.start()..range.end() {
                    if ahead || view.owner_of(addr) != Some(removed) {
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
        self.crash(id, CrashKind::Killed);
        let recoverable = self.plan.init != InitMode::Seed
            && !self.member(id).destroyed
            && self.others_have_rings(id)
            && self.all_know(id, self.member(id).disk.stored().ring.as_ref());
        if recoverable {
            self.lose_messages();
            self.wipe_disk(id);
        }
    }

    /// Whether there are other peers, and all have a ring of the same range.
    pub(super) fn others_have_rings(&self, id: HostId) -> bool {
        let mut others = self.ids().filter(|&other| other != id && !self.member(other).destroyed).peekable();
        others.peek().is_some()
            && others.all(|other| {
                let member = self.member(other);
                let stored = member.disk.stored().ring.as_ref().is_some_and(|ring| !ring.is_empty());
                stored && member.view().is_some_and(|ring| ring.range() == self.range_of(id).range())
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
        let removed = self.removed_peers.iter().filter(|_| self.plan.nodes);
        let mut views = running.chain(removed.filter_map(|peer| peer.ring.as_ref()));
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
        self.crash(id, CrashKind::Killed);
        self.member_mut(id).range = next;
        self.start(id);
    }

    /// A user of addresses that is no Docker container requests an address of the whole range.
    pub(super) fn allocate_named(&mut self, id: HostId, name: String) {
        let subnet = self.range_of(id);
        let state = self.member_mut(id).containers.entry(name.clone()).or_default();
        state.running = true;
        let request = self.add_request(id, RequestKind::Allocate(name.clone(), subnet));
        self.with_allocator(id, |a, now| a.allocate(request, name, subnet, false, now));
    }
}
