//! What callers, containers and operators do to a host.

use std::collections::BTreeSet;
use std::time::Duration;

use weave_ipam::{HandOver, NO_ID, RequestId, Ring};
use weave_types::PeerName;

use super::answers::{Ask, Request, show};
use super::violation;
use super::world::{Event, World};
use crate::host::Death;
use crate::net::HostId;

/// From this number on containers are not Docker's: they are released explicitly.
pub(super) const LABELS: u8 = 3;
/// Number of containers of a host; the last stands for "no id".
pub(super) const CONTAINERS: u8 = 6;

/// Name of a host's container.
pub(super) fn container(id: HostId, number: u8) -> String {
    if number + 1 == CONTAINERS { NO_ID.to_owned() } else { format!("{}-c{number}", id.0) }
}

impl World {
    fn ask(&mut self, id: HostId, what: Ask) -> RequestId {
        let number = self.new_request();
        let request = Request { host: id, what, since: self.clock, cancelled: self.host(id).leaving };
        self.requests.insert(number, request);
        number
    }

    /// A container is about to run.
    fn run_container(&mut self, id: HostId, number: u8) {
        if container(id, number) != NO_ID {
            let living = self.host_mut(id).containers.entry(container(id, number)).or_default();
            living.is_container = number < LABELS;
            (living.running, living.died, living.gone) = (true, None, false);
        }
    }

    pub(super) fn allocate(&mut self, id: HostId, number: u8, subnet: usize) {
        if !self.runs(id) {
            return;
        }
        let subnet = self.plan.subnet(self.host(id).range, subnet);
        let name = container(id, number);
        self.run_container(id, number);
        let request = self.ask(id, Ask::Allocate(name.clone(), subnet));
        let is_container = number < LABELS;
        self.call(id, |a, now| a.allocate(request, name, subnet, is_container, now));
        self.tell_started(id, number);
    }

    pub(super) fn claim(&mut self, id: HostId, number: u8, offset: u8, lenient: bool) {
        let name = container(id, number);
        if !self.runs(id) || name == NO_ID {
            return;
        }
        let addr = self.range_of(id).range().start() + u32::from(offset);
        let cidr = self.plan.cidr(addr);
        self.run_container(id, number);
        let request = self.ask(id, Ask::Claim(name.clone(), addr));
        let is_container = number < LABELS;
        self.call(id, |a, now| a.claim(request, name, cidr, is_container, lenient, now));
        self.tell_started(id, number);
    }

    fn tell_started(&mut self, id: HostId, number: u8) {
        let name = container(id, number);
        if number < LABELS {
            self.call(id, |a, now| a.handle_container_started(&name, now));
        }
    }

    pub(super) fn prime(&mut self, id: HostId) {
        if self.runs(id) {
            let request = self.ask(id, Ask::Prime);
            self.call(id, |a, now| a.prime(request, now));
        }
    }

    /// A caller goes away.
    pub(super) fn cancel(&mut self, id: HostId, which: u8) {
        let waiting: Vec<RequestId> =
            self.requests.iter().filter(|(_, r)| r.host == id).map(|(&number, _)| number).collect();
        let Some(&number) = waiting.get(usize::from(which) % waiting.len().max(1)) else { return };
        let before = self.host(id).allocator.as_ref().map(|a| a.owned().clone());
        if let Some(request) = self.requests.get_mut(&number) {
            request.cancelled = true;
        }
        self.call(id, |a, now| a.cancel(number, now));
        let Some(allocator) = &self.host(id).allocator else { return };
        if self.requests.contains_key(&number) {
            violation!("host {}: {number:?} was cancelled and is not answered", id.0);
        }
        if before.as_ref() != Some(allocator.owned()) {
            violation!(
                "host {}: a cancelled request leaves {:?}, before {before:?}",
                id.0,
                allocator.owned()
            );
        }
    }

    /// One address, or all, of a container that is released explicitly.
    pub(super) fn release(&mut self, id: HostId, number: u8, all: bool) {
        if !self.runs(id) || self.host(id).leaving {
            return;
        }
        let mut name = container(id, number);
        if name == NO_ID {
            // Under the address itself.
            let by_address = |(id, c): (&String, &super::host::Living)| {
                c.addrs.iter().any(|&addr| show(addr) == *id).then(|| id.clone())
            };
            let Some(found) = self.host(id).containers.iter().find_map(by_address) else { return };
            name = found;
        }
        self.release_named(id, &name, all);
    }

    pub(super) fn release_named(&mut self, id: HostId, name: &str, all: bool) {
        let range = self.range_of(id).range();
        let has = self.host(id).containers.get(name).map(|c| c.addrs.clone()).unwrap_or_default();
        let lost: Vec<u32> =
            if all { has.iter().copied().collect() } else { has.iter().copied().take(1).collect() };
        let Some(&first) = lost.first() else { return };
        for &addr in &lost {
            self.give_back(id, name, addr);
        }
        let host = self.host_mut(id);
        host.orphans.retain(|(container, addr)| container != name || !all && *addr != first);
        host.unsettled.retain(|(container, addr)| container != name || !all && *addr != first);
        let result = self.call(id, |allocator, now| match all {
            true => allocator.delete(name, now),
            false => allocator.free(name, std::net::IpAddr::V4(first.into()), now),
        });
        if let (Some(Err(error)), true) = (result, range.contains(first)) {
            violation!("host {}: {} of {name} cannot be released: {error}", id.0, show(first));
        }
    }

    /// A Docker container ends; `gone`: and is removed.
    pub(super) fn container_ends(&mut self, id: HostId, number: u8, gone: bool) {
        let (name, clock) = (container(id, number), self.clock);
        if number >= LABELS {
            return;
        }
        let Some(living) = self.host_mut(id).containers.get_mut(&name) else { return };
        living.running = false;
        living.died.get_or_insert(clock);
        living.gone |= gone;
        for request in self.requests.values_mut().filter(|request| request.host == id) {
            request.cancelled |= match &request.what {
                Ask::Allocate(container, _) | Ask::Claim(container, _) => *container == name,
                Ask::Prime => false,
            };
        }
        if !self.runs(id) {
            // Nobody hears of it; at the next start it does not run.
            return;
        }
        let host = self.host_mut(id);
        host.unsettled.retain(|(container, _)| *container != name);
        self.call(id, |a, now| {
            if gone { a.handle_container_destroyed(&name, now) } else { a.handle_container_died(&name, now) }
        });
        // What it had before its peer lost the disk, and was not certain of yet, is not claimed any more.
        self.drop_unknown(id);
        let left = self.requests.values().any(|request| request.host == id && request.cancelled);
        if left && self.runs(id) && !self.host(id).leaving {
            violation!("host {}: {name} is dead, and a request of it goes on", id.0);
        }
    }

    /// A Docker container is started again.
    pub(super) fn container_starts(&mut self, id: HostId, number: u8) {
        let name = container(id, number);
        if number < LABELS && self.host(id).containers.contains_key(&name) {
            self.run_container(id, number);
            self.tell_started(id, number);
        }
    }

    // ---- operators --------------------------------------------------------------------------------------------

    /// `weave reset`.
    pub(super) fn reset(&mut self, id: HostId) {
        if !self.runs(id) || self.host(id).leaving {
            return;
        }
        self.lose_containers(id);
        for request in self.requests.values_mut().filter(|request| request.host == id) {
            request.cancelled = true;
        }
        self.host_mut(id).leaving = true;
        let hand_over = self.call(id, |a, now| a.leave(now));
        self.trace(id, || format!("leaves: {hand_over:?}"));
        if let (Some(HandOver::To { peer, .. }), true) = (&hand_over, self.runs(id)) {
            let there = self.host(id).view().is_some_and(|ring| ring.owners().contains(peer));
            if !there {
                violation!("host {}: hands over to {peer}, who has nothing then", id.0);
            }
        }
        if self.requests.values().any(|request| request.host == id) && self.runs(id) {
            violation!("host {}: leaves with requests unanswered", id.0);
        }
        let incarnation = self.host(id).incarnation;
        self.schedule(Duration::from_millis(500), Event::Gone(id, incarnation));
    }

    /// `weave rmpeer` of one that is gone for good.
    pub(super) fn remove_peer(&mut self, by: HostId, which: u8) {
        let Some(ring) = self.host(by).view().filter(|_| self.host(by).is_ready()) else { return };
        if self.host(by).leaving || self.graves.is_empty() {
            return;
        }
        let name = self.graves[usize::from(which) % self.graves.len()].name;
        let taken: Vec<u32> =
            ring.entries().iter().filter(|entry| entry.peer == name).map(|entry| entry.token).collect();
        let disputed = self.disputed(by, ring, name);
        if !disputed.is_empty() {
            if !self.plan.contest {
                return;
            }
            self.contested.extend(&disputed);
        }
        let reachable = self.of_name(name).is_some();
        let contested = !disputed.is_empty();
        let result = self.call(by, |a, now| a.remove_peer(&name.to_string(), false, now));
        if let (Some(Ok(_)), false, true) = (&result, contested, self.runs(by)) {
            self.check_takeover(by, &taken);
        }
        if let (Some(Err(error)), false) = (&result, reachable) {
            // Who has died may still be thought reachable for a moment.
            let known = self.network.reachable(by).iter().any(|&id| self.host(id).name == name);
            if known {
                violation!("host {}: {error}", by.0);
            }
        }
    }

    /// Who takes over is believed by everybody, whatever they have heard of the dead that the taker has not.
    fn check_takeover(&self, by: HostId, taken: &[u32]) {
        let Some(ring) = self.host(by).view() else { return };
        let others = self.ids().filter(|&id| id != by).filter_map(|id| self.host(id).view());
        for view in others.filter(|view| view.range() == ring.range()) {
            for theirs in view.entries().iter().filter(|entry| taken.contains(&entry.token)) {
                let ours = ring.entries().iter().find(|entry| entry.token == theirs.token);
                if ours.is_none_or(|ours| ours.version <= theirs.version) {
                    violation!(
                        "host {} takes over with {ours:?}, and {} knows {theirs:?}",
                        by.0,
                        view.peer()
                    );
                }
            }
        }
    }

    /// Of what one peer would take over from another, the addresses of which somebody knows better, or might.
    fn disputed(&self, by: HostId, ring: &Ring, victim: PeerName) -> BTreeSet<u32> {
        let ours = ring.ranges_owned_by(victim);
        let newest = ring.entries().iter().filter(|e| e.peer == victim).map(|e| e.version).max().unwrap_or(0);
        let others = self.ids().filter(|&id| id != by).filter_map(|id| self.host(id).view());
        let mut disputed = BTreeSet::new();
        for view in others.chain(self.graves.iter().filter_map(|grave| grave.ring.as_ref())) {
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

    /// A host is destroyed without a word.
    pub(super) fn demolish(&mut self, id: HostId) {
        self.kill(id, Death::Killed);
        self.destroy(id);
    }

    /// A host's disk is lost and its peer with it; its containers run on. Only where others know all that it did, so
    /// that it cannot be misled when it comes back (docs/spec/ipam.md 16.2, A5).
    pub(super) fn lose_disk(&mut self, id: HostId) {
        self.kill(id, Death::Killed);
        let known = self.plan.begin != super::scenario::Begin::Seed
            && !self.host(id).destroyed
            && self.others_have_rings(id)
            && self.all_know(id, self.host(id).disk.stored().ring.as_ref());
        if known {
            self.lose_messages();
            self.host_mut(id).disk.wipe();
            self.wipe_node(id);
        }
    }

    /// Whether all others of the same range have a ring, and there are any.
    pub(super) fn others_have_rings(&self, id: HostId) -> bool {
        let mut others = self.ids().filter(|&other| other != id && !self.host(other).destroyed).peekable();
        others.peek().is_some()
            && others.all(|other| {
                let view = self.host(other).view();
                let stored =
                    self.host(other).disk.stored().ring.as_ref().is_some_and(|ring| !ring.is_empty());
                view.is_some_and(|ring| ring.range() == self.range_of(id).range()) && stored
            })
    }

    /// Whether everybody sees in the same way what a peer owns, and at the same versions: were one of them behind, and heard
    /// first when the peer has lost its own view, it would change things at versions that the others know already (docs/spec/ipam.md
    /// 16.2, A5).
    pub(super) fn all_know(&self, id: HostId, ring: Option<&Ring>) -> bool {
        let name = self.host(id).name;
        let Some(ring) = ring else { return false };
        let own = owned(ring, name);
        let entries = |view: &Ring| -> Vec<_> {
            view.entries().iter().filter(|e| e.peer == name).map(|e| (e.token, e.version, e.free)).collect()
        };
        let others = self.ids().filter(|&other| other != id);
        let running = others.flat_map(|other| {
            let host = self.host(other);
            [host.view(), host.disk.stored().ring.as_ref()].into_iter().flatten()
        });
        // What a node said before it left may be on its way still, at one that passes it on.
        let left =
            self.graves.iter().filter(|_| self.nodes.is_some()).filter_map(|grave| grave.ring.as_ref());
        let mut views = running.chain(left);
        let Some(first) = views.next() else { return true };
        owned(first, name) == own && views.all(|view| entries(view) == entries(first))
    }

    /// A host is given another range: it starts afresh there.
    pub(super) fn change_range(&mut self, id: HostId) {
        let next = self.host(id).range + 1;
        let ready = self.ids().all(|id| self.host(id).range > 0 || self.host(id).view().is_some());
        if next >= self.plan.ranges.len() || self.host(id).destroyed || !ready {
            return;
        }
        self.kill(id, Death::Killed);
        self.host_mut(id).range = next;
        self.start(id);
    }
}

/// The addresses that a peer owns by a ring.
pub(super) fn owned(ring: &Ring, name: PeerName) -> BTreeSet<u32> {
    ring.ranges_owned_by(name).iter().flat_map(|range| range.start()..range.end()).collect()
}

impl World {
    /// One more container, of the range's own subnet.
    pub(super) fn fill_request(&mut self, id: HostId, name: String) {
        let subnet = self.range_of(id);
        let living = self.host_mut(id).containers.entry(name.clone()).or_default();
        living.running = true;
        let request = self.ask(id, Ask::Allocate(name.clone(), subnet));
        self.call(id, |a, now| a.allocate(request, name, subnet, false, now));
    }
}
