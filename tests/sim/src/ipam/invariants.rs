//! What must hold after each input and each transition, and what once everything works again (docs/spec/ipam.md 16).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use weave_ipam::{PendingKind, PendingStatus, WaitReason};
use weave_types::{Instant, PeerName};

use super::answers::{Ask, number_of, show};
use super::calls::owned;
use super::host::Host;
use super::violation;
use super::world::World;
use crate::net::HostId;

/// After 30 s, at the next tick, with a late timer.
const SURELY_RELEASED: Duration = Duration::from_secs(40);

impl World {
    /// After each input of a peer.
    pub(super) fn check_host(&self, id: HostId) {
        let host = self.host(id);
        let Some(allocator) = &host.allocator else { return };
        if let Err(what) = allocator.check_invariants() {
            violation!("host {}: {what}", id.0);
        }
        for (container, record) in allocator.owned() {
            // There may be more on it, which is still to be claimed again: after a power loss that took the word of a release
            // but not the donation of the same address, which is stored better. See `check_books`.
            let stored = host.disk.stored().owned.get(container);
            let held = stored.is_some_and(|stored| {
                stored.is_container == record.is_container
                    && record.cidrs.iter().all(|cidr| stored.cidrs.contains(cidr))
            });
            if !held {
                violation!("host {}: {container} has {record:?}, and the disk does not", id.0);
            }
        }
        if !self.is_large() {
            self.check_single_owner(id);
        }
    }

    /// Nobody else owns what a running peer does.
    pub(super) fn check_single_owner(&self, id: HostId) {
        let host = self.host(id);
        let Some(allocator) = &host.allocator else { return };
        let ours = allocator.ring().ranges_owned_by(host.name);
        for other in self.ids().filter(|&other| other != id) {
            let (view, host) = (self.host(other).view(), self.host(other));
            // Over whole nodes messages are not looked into: whoever heard of a change finds it on the disk of who made it.
            let stored = host.disk.stored().ring.as_ref().filter(|ring| !ring.is_empty());
            let stored = stored.filter(|_| self.nodes.is_some() && !host.destroyed);
            for theirs in view
                .into_iter()
                .chain(stored)
                .filter(|view| view.range() == allocator.ring().range())
                .flat_map(|view| view.ranges_owned_by(host.name))
            {
                let Some(both) =
                    ours.iter().map(|own| own.intersection(theirs)).find(|both| !both.is_empty())
                else {
                    continue;
                };
                if !(both.start()..both.end()).all(|addr| self.contested.contains(&addr)) {
                    violation!("hosts {} and {} both own {both}", id.0, other.0);
                }
            }
        }
    }

    /// After each transition.
    pub(super) fn always(&mut self) {
        for id in self.ids() {
            if self.runs(id) && !self.host(id).leaving {
                self.check_books(id);
                self.check_status(id);
            }
        }
    }

    /// What the peer has written down is what containers use.
    fn check_books(&mut self, id: HostId) {
        let range = self.range_of(id).range();
        let now = self.now(id);
        let Some(allocator) = &self.host(id).allocator else { return };
        let waiting: BTreeSet<(String, u32)> = allocator
            .status(now)
            .pending
            .into_iter()
            .filter_map(|pending| match pending.kind {
                PendingKind::Claim { container, cidr } if pending.request.is_none() => {
                    Some((container, number_of(cidr.addr())))
                }
                _ => None,
            })
            .collect();
        let books: BTreeSet<(String, u32)> = allocator
            .owned()
            .iter()
            .flat_map(|(id, r)| r.cidrs.iter().map(|cidr| (id.clone(), number_of(cidr.addr()))))
            .collect();
        let stored = self.host(id).disk.stored().owned.clone();
        for (container, record) in stored {
            for addr in record.cidrs.iter().map(|cidr| number_of(cidr.addr())) {
                let known = (container.clone(), addr);
                if range.contains(addr) && !books.contains(&known) && !waiting.contains(&known) {
                    violation!("host {}: the disk has {} of {container}, and nobody else", id.0, show(addr));
                }
            }
        }
        let host = self.host(id);
        let mut settled = Vec::new();
        for known in books.iter().filter(|(_, addr)| range.contains(*addr)) {
            let used = host.containers.get(&known.0).is_some_and(|c| c.addrs.contains(&known.1));
            if host.unsettled.contains(known) {
                settled.push(known.clone());
            } else if !used && !host.orphans.contains(known) {
                violation!("host {}: {} of {} is in use by nobody", id.0, show(known.1), known.0);
            }
        }
        for (container, living) in &host.containers {
            for &addr in living.addrs.iter().filter(|addr| range.contains(**addr)) {
                let known = (container.clone(), addr);
                let lost = !books.contains(&known) && !waiting.contains(&known);
                if lost && !self.contested.contains(&addr) && !self.plan.conflicts {
                    violation!("host {}: {} of {container} is forgotten", id.0, show(addr));
                }
            }
            let since = living.died.map(|died| died.max(host.started));
            let overdue = since.is_some_and(|since| self.clock - since > SURELY_RELEASED);
            if overdue && !living.running && living.is_container && !living.addrs.is_empty() {
                violation!("host {}: {container} is dead, and keeps {:?}", id.0, living.addrs);
            }
        }
        for (container, addr) in settled {
            self.take(id, container, addr);
        }
    }

    /// What people are shown is true, and every request that waits is there with its reason.
    fn check_status(&self, id: HostId) {
        let now = self.now(id);
        let host = self.host(id);
        let Some(allocator) = &host.allocator else { return };
        let status = allocator.status(now);
        let total = self.range_of(id).range().size();
        let listed: u32 = status.entries.iter().map(|entry| entry.range.size()).sum();
        if !allocator.ring().is_empty() && listed != total {
            violation!("host {}: entries shown make {listed} addresses of {total}", id.0);
        }
        let own = owned(allocator.ring(), host.name).len() as u32;
        if status.active + status.free != own && !self.plan.conflicts {
            violation!("host {}: {} active and {} free of {own}", id.0, status.active, status.free);
        }
        for (number, request) in self.requests.iter().filter(|(_, request)| request.host == id) {
            let shown = status.pending.iter().find(|pending| pending.request == Some(*number));
            let right = shown.is_some_and(|shown| match (&shown.kind, &request.what) {
                (PendingKind::Prime, Ask::Prime) => true,
                (PendingKind::Allocate { container, subnet }, Ask::Allocate(who, what)) => {
                    container == who && subnet == what
                }
                (PendingKind::Claim { container, cidr }, Ask::Claim(who, addr)) => {
                    container == who && number_of(cidr.addr()) == *addr
                }
                _ => false,
            });
            if !right {
                violation!("host {}: {request:?} waits, and is shown as {shown:?}", id.0);
            }
        }
        for pending in &status.pending {
            if (pending.reason == WaitReason::NoRing) != allocator.ring().is_empty() {
                violation!("host {}: {pending:?}, and the ring is {:?}", id.0, allocator.ring());
            }
            if pending.reason.explain().is_empty() {
                violation!("host {}: no word about {pending:?}", id.0);
            }
        }
    }

    // ---- once everything works again ---------------------------------------------------------------------------

    /// All faults are over, and everybody is there again who is not gone for good.
    pub(super) fn eventually(&mut self) {
        self.network.heal();
        self.heal_nodes();
        let moved = self.hosts.iter().any(|host| host.range > 0);
        for id in self.ids() {
            self.host_mut(id).fuse = None;
            self.host_mut(id).protested = None;
            if moved && self.host(id).range == 0 && !self.host(id).destroyed {
                self.kill(id, crate::host::Death::Killed);
                self.host_mut(id).range = 1;
            }
            self.start(id);
        }
        self.relink();
        self.reconnect_nodes();
        let running: Vec<HostId> = self.ids().filter(|&id| self.runs(id) && !self.host(id).leaving).collect();
        let Some(&first) = running.first() else { return };
        let healed = self.clock;
        self.prime(first);
        let electors = running
            .iter()
            .filter(|id| id.0 < self.plan.electors() && self.host(**id).generation == 0)
            .count();
        let possible = electors > usize::from(self.plan.electors() / 2);
        if !self.wait(Duration::from_secs(400), |world| world.agree() || world.divided()) {
            if !possible && !running.iter().any(|&id| self.host(id).is_ready()) {
                return;
            }
            if self.protested_since(healed) {
                self.check_divided();
                return;
            }
            violation!("no agreement: {}", self.views());
        }
        self.always();
        if self.divided() {
            self.check_divided();
            return;
        }
        if !self.take_over_the_dead() {
            self.check_divided();
            return;
        }
        self.forget_the_lost();
        // Old claims have their answer, the dead are released, those who wait have been served.
        self.run_for(Duration::from_secs(60));
        // How many addresses are free is told with gossip alone (docs/spec/ipam.md 6.3), so whom to ask may be known a few rounds
        // later; that they are had in the end is what is promised (16.3, L2 and L3).
        self.wait(Duration::from_secs(60), |world| world.agree() && world.waits_in_vain().is_none());
        self.always();
        self.end_disputes_with_the_dead();
        if self.divided() {
            self.check_divided();
            return;
        }
        if let Some(what) = self.waits_in_vain() {
            violation!("{what}");
        }
        self.fill();
        self.check_quiet();
    }

    /// Whether all running peers have the same ring, and none that behaves like 2.8.1 has ended itself and is still to say what
    /// it knows.
    pub(super) fn agree(&self) -> bool {
        let awaited = |host: &Host| host.legacy && !host.destroyed && host.allocator.is_none();
        if self.hosts.iter().any(awaited) {
            return false;
        }
        let mut rings = self.ids().filter_map(|id| self.host(id).allocator.as_ref()).map(|a| a.ring());
        let Some(first) = rings.next() else { return true };
        let key = |ring: &weave_ipam::Ring| -> Vec<(u32, PeerName)> {
            ring.entries().iter().map(|e| (e.token, e.peer)).collect()
        };
        !first.is_empty() && rings.all(|ring| ring.seeds() == first.seeds() && key(ring) == key(first))
    }

    /// Whether somebody has told of a conflict, in a plan where there may be one.
    fn divided(&self) -> bool {
        self.plan.contest && self.ids().any(|id| !self.conflicts_of(id).is_empty())
    }

    /// Whether one that behaves like 2.8.1 has not agreed with the others since then, in a plan where that may be for ever:
    /// it has no other way to tell of a conflict.
    fn protested_since(&self, then: Instant) -> bool {
        self.plan.contest && self.hosts.iter().any(|host| host.protested.is_some_and(|when| when >= then))
    }

    pub(super) fn conflicts_of(&self, id: HostId) -> Vec<weave_ipam::ConflictStatus> {
        let now = self.now(id);
        self.host(id).allocator.as_ref().map(|a| a.status(now).conflicts).unwrap_or_default()
    }

    pub(super) fn views(&self) -> String {
        let line = |id: HostId| {
            let host = self.host(id);
            let Some(allocator) = &host.allocator else { return format!("\n  host {} is down", id.0) };
            let mut text = format!("\n  host {} ({}):", id.0, host.name);
            for entry in allocator.ring().entries() {
                let owner = self.of_name(entry.peer).map_or("gone".to_owned(), |id| id.0.to_string());
                let offset = entry.token - self.range_of(id).range().start();
                let _ = write!(text, " +{offset}={owner} v{} free {};", entry.version, entry.free);
            }
            text
        };
        self.ids().map(line).collect()
    }

    /// Lets time pass, with gossip among all every ten seconds, until something holds.
    pub(super) fn wait(&mut self, most: Duration, until: impl Fn(&World) -> bool) -> bool {
        let end = self.clock + most;
        while self.clock < end {
            self.run_for(Duration::from_secs(5));
            if until(self) {
                return true;
            }
            // 2.8.1, which may have ended itself.
            for id in self.ids() {
                if self.host(id).legacy {
                    self.start(id);
                }
            }
            self.run_for(Duration::from_secs(5));
            for from in self.ids() {
                for to in self.network.neighbours(from) {
                    self.tell(from, to);
                }
            }
        }
        until(self)
    }

    /// Two took over the same peer: whatever is used twice, somebody tells so.
    pub(super) fn check_divided(&self) {
        for (addr, users) in self.ledger.iter().filter(|(_, users)| users.len() > 1) {
            if !users
                .iter()
                .any(|(id, _)| self.host(*id).protested.is_some() || !self.conflicts_of(*id).is_empty())
            {
                violation!("{} is used twice, and none of {users:?} says so", show(*addr));
            }
        }
    }

    /// The space of those that are gone for good can be had again; false if one that behaves like 2.8.1 objects.
    fn take_over_the_dead(&mut self) -> bool {
        for _ in 0..self.graves.len() + 1 {
            let known: BTreeSet<PeerName> =
                self.ids().filter(|&id| !self.host(id).destroyed).map(|id| self.host(id).name).collect();
            let Some(by) = self.ids().find(|&id| self.host(id).is_ready()) else { return true };
            let owners = self.host(by).view().map(|ring| ring.owners()).unwrap_or_default();
            let Some(&dead) = owners.difference(&known).next() else { return true };
            // Nothing is on its way any more, so nothing is known to nobody but the dead.
            self.lose_messages();
            self.await_forgetting();
            // All agree here: an earlier objection says nothing about what follows.
            let agreed = self.clock;
            let result = self.call(by, |a, now| a.remove_peer(&dead.to_string(), false, now));
            let view = self.host(by).view().map(|ring| ring.owners()).unwrap_or_default();
            if !matches!(result, Some(Ok(_))) || view.contains(&dead) {
                violation!("host {}: the space of {dead} cannot be taken over: {result:?}", by.0);
            }
            if !self.wait(Duration::from_secs(200), World::agree) {
                if self.protested_since(agreed) {
                    return false;
                }
                violation!("no agreement after a takeover of {dead}: {}", self.views());
            }
        }
        true
    }

    /// What those had said that are gone for good is forgotten where somebody says so.
    fn end_disputes_with_the_dead(&mut self) {
        let gone: BTreeSet<PeerName> = self.graves.iter().map(|grave| grave.name).collect();
        for id in self.ids() {
            let conflicts = self.conflicts_of(id);
            for rival in conflicts
                .iter()
                .filter_map(|c| c.conflict.claimant())
                .filter(|claimant| gone.contains(claimant))
            {
                self.call(id, |a, now| a.remove_peer(&rival.to_string(), false, now).is_ok());
            }
        }
    }

    /// Callers that were never answered give up: what is on the books for them is released.
    fn forget_the_lost(&mut self) {
        for id in self.ids() {
            for (container, addr) in std::mem::take(&mut self.host_mut(id).orphans) {
                let addr = std::net::IpAddr::V4(addr.into());
                // It may be gone, or was only a claim that failed.
                self.call(id, |a, now| a.free(&container, addr, now).is_ok());
            }
        }
    }

    /// Addresses of hosts that are not used by anybody, of what a peer may hand out.
    fn usable(&self, within: weave_ipam::AddrRange) -> Vec<u32> {
        let mut usable = Vec::new();
        for id in self.ids() {
            let host = self.host(id);
            let Some(allocator) = host.allocator.as_ref().filter(|_| !host.leaving && !host.legacy) else {
                continue;
            };
            let used: BTreeSet<u32> = allocator
                .owned()
                .values()
                .flat_map(|r| r.cidrs.iter().map(|cidr| number_of(cidr.addr())))
                .collect();
            let own = owned(allocator.ring(), host.name);
            usable.extend(own.into_iter().filter(|addr| within.contains(*addr) && !used.contains(addr)));
        }
        usable
    }

    /// A request that waits without reason.
    fn waits_in_vain(&self) -> Option<String> {
        for (number, request) in &self.requests {
            let now = self.now(request.host);
            let host = self.host(request.host);
            let status = host.allocator.as_ref().map(|a| a.status(now));
            let pending: Option<PendingStatus> =
                status.and_then(|s| s.pending.into_iter().find(|pending| pending.request == Some(*number)));
            match &request.what {
                // 2.8.1 throws dice at each tick whom to ask, weighted by what somebody has, be it of use there or not (6.5):
                // for how long it asks in vain has no bound.
                Ask::Allocate(..) if host.legacy => {}
                Ask::Allocate(_, subnet) => {
                    let usable = self.usable(subnet.hosts());
                    if let Some(&addr) = usable.first() {
                        return Some(format!(
                            "{request:?} waits, and {} is free: {pending:?}{}",
                            show(addr),
                            self.views()
                        ));
                    }
                }
                Ask::Claim(_, addr) => {
                    let views = self.views();
                    return Some(format!("claim of {} is never answered: {pending:?}{views}", show(*addr)));
                }
                Ask::Prime => return Some(format!("the ring is there, and {request:?} goes on")),
            }
        }
        None
    }

    /// Every address of the range can be had from everywhere; then a request waits, and is served when one is released.
    fn fill(&mut self) {
        let hosts: Vec<HostId> = self.ids().filter(|&id| self.runs(id) && !self.host(id).leaving).collect();
        let Some(&first) = hosts.first() else { return };
        let range = self.range_of(first);
        let pick = if self.events.is_multiple_of(2) { hosts.len() } else { 1 };
        let mut label = 0;
        let mut free = self.usable(range.hosts()).len();
        while free > 0 {
            for n in 0..free {
                label += 1;
                self.fill_one(hosts[n % pick], label);
            }
            if !self.wait(Duration::from_secs(600), |world| world.all_filled() || world.none_free(range)) {
                violation!("not served: {:?}{}", self.requests, self.views());
            }
            // What was just given away is nobody's until the other hears of it.
            self.run_for(Duration::from_secs(1));
            let left = self.usable(range.hosts()).len();
            if left >= free {
                break;
            }
            free = left;
        }
        let unused = range.hosts().size() as usize - self.used_in(range);
        // 2.8.1 may have ended itself.
        let doubtful = self.ids().any(|id| self.host(id).legacy && !self.host(id).destroyed);
        if unused > 0 && !doubtful {
            violation!("{unused} addresses cannot be had: {:?}{}", self.ledger, self.views());
        }
        // One more waits, and does not ask without end. Nor is anything given to it: it could not use the ends of its subnet.
        let useless = !doubtful && self.requests.is_empty();
        let given = self.donations;
        label += 1;
        self.fill_one(hosts[0], label);
        self.run_for(Duration::from_secs(12));
        self.always();
        if useless && self.donations > given {
            violation!(
                "nobody has anything to give, and {} times it is: {}",
                self.donations - given,
                self.views()
            );
        }
        if !doubtful && self.requests.is_empty() {
            violation!("all addresses are used, and one more is given out: {:?}", self.ledger);
        }
        let Some((&addr, users)) = self.ledger.iter().rev().find(|(addr, _)| range.hosts().contains(**addr))
        else {
            return;
        };
        let Some((id, container)) = users.first().cloned() else { return };
        if !self.runs(id) || self.host(id).range != self.host(first).range {
            return;
        }
        let waiting = self.requests.len();
        self.release_named(id, &container, true);
        let served = |world: &World| world.requests.len() < waiting || world.requests.is_empty();
        if waiting > 0 && !doubtful && !self.wait(Duration::from_secs(100), served) {
            violation!(
                "{} was released, and nobody gets it: {:?}{}",
                show(addr),
                self.requests,
                self.views()
            );
        }
        self.always();
    }

    fn fill_one(&mut self, id: HostId, label: u32) {
        self.start(id);
        self.fill_request(id, format!("{}-fill-{label}", id.0));
    }

    fn all_filled(&self) -> bool {
        let fills = |ask: &Ask| matches!(ask, Ask::Allocate(container, _) if container.contains("fill"));
        !self.requests.values().any(|request| fills(&request.what))
    }

    fn none_free(&self, range: weave_ipam::Subnet) -> bool {
        self.usable(range.hosts()).is_empty()
    }

    fn used_in(&self, range: weave_ipam::Subnet) -> usize {
        self.ledger.keys().filter(|addr| range.hosts().contains(**addr)).count()
    }
}
