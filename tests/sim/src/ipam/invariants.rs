//! Invariants after each input and each transition, and after all faults have ended (docs/spec/ipam.md 16).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use weave_ipam::{PendingKind, PendingStatus, WaitReason};
use weave_types::{Instant, PeerName};

use super::answers::{number_of, show};
use super::cluster::{Cluster, RequestKind};
use super::member::{Member, owned};
use crate::net::HostId;

/// Addresses of a dead container are released after 30 s, at the next tick, which may be late.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(40);

impl Cluster {
    /// Invariants after each input of a peer.
    pub(super) fn check_member(&self, id: HostId) {
        let member = self.member(id);
        let Some(allocator) = &member.allocator else { return };
        if let Err(what) = allocator.check_invariants() {
            panic!("host {}: {what}", id.0);
        }
        for (container, record) in allocator.owned() {
            // The disk may have more, which is claimed again: a power loss may take back a release, but not the donation of the
            // same address, which is synced. See `check_records`.
            let stored = member.disk.stored().owned.get(container);
            let held = stored.is_some_and(|stored| {
                stored.is_container == record.is_container
                    && record.cidrs.iter().all(|cidr| stored.cidrs.contains(cidr))
            });
            if !held {
                panic!("host {}: {container} has {record:?}, which is not on the disk", id.0);
            }
        }
        if !self.is_large() {
            self.check_single_owner(id);
        }
    }

    /// No two peers own the same address.
    pub(super) fn check_single_owner(&self, id: HostId) {
        let member = self.member(id);
        let Some(allocator) = &member.allocator else { return };
        let ours = allocator.ring().ranges_owned_by(member.name);
        for other in self.ids().filter(|&other| other != id) {
            let (view, member) = (self.member(other).view(), self.member(other));
            // Messages of whole nodes are not decoded; instead each change must be on the disk of its author.
            let stored = member.disk.stored().ring.as_ref().filter(|ring| !ring.is_empty());
            let stored = stored.filter(|_| self.plan.nodes && !member.destroyed);
            for theirs in view
                .into_iter()
                .chain(stored)
                .filter(|view| view.range() == allocator.ring().range())
                .flat_map(|view| view.ranges_owned_by(member.name))
            {
                let Some(both) =
                    ours.iter().map(|own| own.intersection(theirs)).find(|both| !both.is_empty())
                else {
                    continue;
                };
                if !(both.start()..both.end()).all(|addr| self.contested.contains(&addr)) {
                    panic!("hosts {} and {} both own {both}", id.0, other.0);
                }
            }
        }
    }

    /// Invariants after each transition.
    pub(super) fn check_always(&mut self) {
        for id in self.ids() {
            if self.runs(id) && !self.member(id).leaving {
                self.check_records(id);
                self.check_status(id);
            }
        }
    }

    /// The records of a peer are the addresses that containers use.
    fn check_records(&mut self, id: HostId) {
        let range = self.range_of(id).range();
        let now = self.now(id);
        let Some(allocator) = &self.member(id).allocator else { return };
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
        let records: BTreeSet<(String, u32)> = allocator
            .owned()
            .iter()
            .flat_map(|(id, r)| r.cidrs.iter().map(|cidr| (id.clone(), number_of(cidr.addr()))))
            .collect();
        let stored = self.member(id).disk.stored().owned.clone();
        for (container, record) in stored {
            for addr in record.cidrs.iter().map(|cidr| number_of(cidr.addr())) {
                let known = (container.clone(), addr);
                if range.contains(addr) && !records.contains(&known) && !waiting.contains(&known) {
                    panic!(
                        "host {}: the disk has {} of {container}, the allocator does not",
                        id.0,
                        show(addr)
                    );
                }
            }
        }
        let member = self.member(id);
        let mut settled_claims = Vec::new();
        for known in records.iter().filter(|(_, addr)| range.contains(*addr)) {
            let used = member.containers.get(&known.0).is_some_and(|c| c.addrs.contains(&known.1));
            if member.pending_claims.contains(known) {
                settled_claims.push(known.clone());
            } else if !used && !member.orphans.contains(known) {
                panic!("host {}: {} of {} has no user", id.0, show(known.1), known.0);
            }
        }
        for (container, state) in &member.containers {
            for &addr in state.addrs.iter().filter(|addr| range.contains(**addr)) {
                let known = (container.clone(), addr);
                let lost = !records.contains(&known) && !waiting.contains(&known);
                if lost && !self.contested.contains(&addr) && !self.plan.conflicts {
                    panic!("host {}: {} of {container} has no record", id.0, show(addr));
                }
            }
            let since = state.died.map(|died| died.max(member.started));
            let overdue = since.is_some_and(|since| self.clock() - since > RELEASE_TIMEOUT);
            if overdue && !state.running && state.is_container && !state.addrs.is_empty() {
                panic!("host {}: {container} is dead, but keeps {:?}", id.0, state.addrs);
            }
        }
        for (container, addr) in settled_claims {
            self.add_user(id, container, addr);
        }
    }

    /// The status is correct, and lists every pending request with a reason.
    fn check_status(&self, id: HostId) {
        let now = self.now(id);
        let member = self.member(id);
        let Some(allocator) = &member.allocator else { return };
        let status = allocator.status(now);
        let total = self.range_of(id).range().size();
        let listed: u32 = status.entries.iter().map(|entry| entry.range.size()).sum();
        if !allocator.ring().is_empty() && listed != total {
            panic!("host {}: the status lists {listed} addresses of {total}", id.0);
        }
        let own = owned(allocator.ring(), member.name).len() as u32;
        if status.active + status.free != own && !self.plan.conflicts {
            panic!("host {}: {} active and {} free of {own}", id.0, status.active, status.free);
        }
        for (number, request) in self.requests.iter().filter(|(_, request)| request.host == id) {
            let shown = status.pending.iter().find(|pending| pending.request == Some(*number));
            let right = shown.is_some_and(|shown| match (&shown.kind, &request.kind) {
                (PendingKind::Prime, RequestKind::Prime) => true,
                (PendingKind::Allocate { container, subnet }, RequestKind::Allocate(who, what)) => {
                    container == who && subnet == what
                }
                (PendingKind::Claim { container, cidr }, RequestKind::Claim(who, addr)) => {
                    container == who && number_of(cidr.addr()) == *addr
                }
                _ => false,
            });
            if !right {
                panic!("host {}: {request:?} is pending, but shown as {shown:?}", id.0);
            }
        }
        for pending in &status.pending {
            if (pending.reason == WaitReason::NoRing) != allocator.ring().is_empty() {
                panic!("host {}: {pending:?}, but the ring is {:?}", id.0, allocator.ring());
            }
            if pending.reason.explain().is_empty() {
                panic!("host {}: no explanation of {pending:?}", id.0);
            }
        }
    }

    /// Ends all faults, starts all peers that were not removed, and checks that every request is answered and every address can
    /// be allocated.
    pub(super) fn check_eventually(&mut self) {
        self.heal();
        let moved = self.members.iter().any(|member| member.range > 0);
        for id in self.ids() {
            self.member_mut(id).objected_at = None;
            if moved && self.member(id).range == 0 && !self.member(id).destroyed {
                self.kill(id, crate::host::CrashKind::Killed);
                self.member_mut(id).range = 1;
            }
            self.start(id);
        }
        self.update_links();
        self.reconnect_nodes();
        let running: Vec<HostId> =
            self.ids().filter(|&id| self.runs(id) && !self.member(id).leaving).collect();
        let Some(&first) = running.first() else { return };
        let healed = self.clock();
        self.prime(first);
        let electors = running
            .iter()
            .filter(|id| id.0 < self.plan.electors() && self.member(**id).installation == 0)
            .count();
        let possible = electors > usize::from(self.plan.electors() / 2);
        if !self.wait(Duration::from_secs(400), |cluster| cluster.agree() || cluster.has_dispute()) {
            if !possible && !running.iter().any(|&id| self.member(id).is_ready()) {
                return;
            }
            if self.objected_since(healed) {
                self.check_dispute_reported();
                return;
            }
            panic!("no agreement: {}", self.views());
        }
        self.check_always();
        if self.has_dispute() {
            self.check_dispute_reported();
            return;
        }
        if !self.take_over_removed_peers() {
            self.check_dispute_reported();
            return;
        }
        self.release_orphans();
        // By then claims are answered, addresses of dead containers released, and pending requests served.
        self.run_for(Duration::from_secs(60));
        // Free space is announced by gossip only (docs/spec/ipam.md 6.3), so donors may be found some rounds later; requests are
        // served in the end (16.3, L2 and L3).
        self.wait(Duration::from_secs(60), |cluster| {
            cluster.agree() && cluster.request_without_reason().is_none()
        });
        self.check_always();
        self.end_disputes_with_removed_peers();
        if self.has_dispute() {
            self.check_dispute_reported();
            return;
        }
        if let Some(what) = self.request_without_reason() {
            panic!("{what}");
        }
        self.fill();
        self.check_quiet();
    }

    /// Whether all running peers have the same ring, and no legacy peer, which may still have other knowledge, is down.
    pub(super) fn agree(&self) -> bool {
        let awaited = |member: &Member| member.legacy && !member.destroyed && member.allocator.is_none();
        if self.members.iter().any(awaited) {
            return false;
        }
        let mut rings = self.ids().filter_map(|id| self.member(id).allocator.as_ref()).map(|a| a.ring());
        let Some(first) = rings.next() else { return true };
        let key = |ring: &weave_ipam::Ring| -> Vec<(u32, PeerName)> {
            ring.entries().iter().map(|e| (e.token, e.peer)).collect()
        };
        !first.is_empty() && rings.all(|ring| ring.seeds() == first.seeds() && key(ring) == key(first))
    }

    /// Whether a peer reports a conflict, in a plan where conflicts are possible.
    fn has_dispute(&self) -> bool {
        self.plan.double_takeover && self.ids().any(|id| !self.conflicts_of(id).is_empty())
    }

    /// Whether a legacy peer has ended itself or a connection since then, in a plan where it may do so forever: it has no other way
    /// to report a conflict.
    fn objected_since(&self, then: Instant) -> bool {
        self.plan.double_takeover
            && self.members.iter().any(|member| member.objected_at.is_some_and(|when| when >= then))
    }

    pub(super) fn conflicts_of(&self, id: HostId) -> Vec<weave_ipam::ConflictStatus> {
        let now = self.now(id);
        self.member(id).allocator.as_ref().map(|a| a.status(now).conflicts).unwrap_or_default()
    }

    pub(super) fn views(&self) -> String {
        let line = |id: HostId| {
            let member = self.member(id);
            let Some(allocator) = &member.allocator else { return format!("\n  host {} is down", id.0) };
            let mut text = format!("\n  host {} ({}):", id.0, member.name);
            for entry in allocator.ring().entries() {
                let owner = self.by_name(entry.peer).map_or("removed".to_owned(), |id| id.0.to_string());
                let offset = entry.token - self.range_of(id).range().start();
                let _ = write!(text, " +{offset}={owner} v{} free {};", entry.version, entry.free);
            }
            text
        };
        self.ids().map(line).collect()
    }

    /// Lets time pass, with gossip among all neighbours every ten seconds, until the condition holds.
    pub(super) fn wait(&mut self, most: Duration, until: impl Fn(&Cluster) -> bool) -> bool {
        let end = self.clock() + most;
        while self.clock() < end {
            self.run_for(Duration::from_secs(5));
            if until(self) {
                return true;
            }
            // Legacy peers may have ended themselves.
            for id in self.ids() {
                if self.member(id).legacy {
                    self.start(id);
                }
            }
            self.run_for(Duration::from_secs(5));
            for from in self.ids() {
                for to in self.links.neighbours(from) {
                    self.send_state(from, to);
                }
            }
        }
        until(self)
    }

    /// Every address with two users is reported as a conflict by one of them.
    pub(super) fn check_dispute_reported(&self) {
        for (addr, users) in self.ledger.iter().filter(|(_, users)| users.len() > 1) {
            if !users
                .iter()
                .any(|(id, _)| self.member(*id).objected_at.is_some() || !self.conflicts_of(*id).is_empty())
            {
                panic!("{} has two users, and none of {users:?} reports it", show(*addr));
            }
        }
    }

    /// Takes over the space of all removed peers; false if a legacy peer objects.
    fn take_over_removed_peers(&mut self) -> bool {
        for _ in 0..self.removed_peers.len() + 1 {
            let known: BTreeSet<PeerName> =
                self.ids().filter(|&id| !self.member(id).destroyed).map(|id| self.member(id).name).collect();
            let Some(by) = self.ids().find(|&id| self.member(id).is_ready()) else { return true };
            let owners = self.member(by).view().map(|ring| ring.owners()).unwrap_or_default();
            let Some(&dead) = owners.difference(&known).next() else { return true };
            // Then no message in transit knows more of the removed peer than the others do.
            self.lose_messages();
            self.await_removed_peers_forgotten();
            // All peers agree now, so only later objections count.
            let agreed = self.clock();
            let result = self.call(by, |a, now| a.remove_peer(&dead.to_string(), false, now));
            let view = self.member(by).view().map(|ring| ring.owners()).unwrap_or_default();
            if !matches!(result, Some(Ok(_))) || view.contains(&dead) {
                panic!("host {}: the space of {dead} cannot be taken over: {result:?}", by.0);
            }
            if !self.wait(Duration::from_secs(200), Cluster::agree) {
                if self.objected_since(agreed) {
                    return false;
                }
                panic!("no agreement after a takeover of {dead}: {}", self.views());
            }
        }
        true
    }

    /// `weave rmpeer` ends disputes with removed peers.
    fn end_disputes_with_removed_peers(&mut self) {
        let removed: BTreeSet<PeerName> = self.removed_peers.iter().map(|peer| peer.name).collect();
        for id in self.ids() {
            let conflicts = self.conflicts_of(id);
            for claimant in conflicts
                .iter()
                .filter_map(|c| c.conflict.claimant())
                .filter(|claimant| removed.contains(claimant))
            {
                self.call(id, |a, now| a.remove_peer(&claimant.to_string(), false, now).is_ok());
            }
        }
    }

    /// Releases the records of clients that never received their answer.
    fn release_orphans(&mut self) {
        for id in self.ids() {
            for (container, addr) in std::mem::take(&mut self.member_mut(id).orphans) {
                let addr = std::net::IpAddr::V4(addr.into());
                // The record may not exist any more, or its claim may have failed.
                self.call(id, |a, now| a.free(&container, addr, now).is_ok());
            }
        }
    }

    /// Free addresses that a peer could allocate.
    fn usable(&self, within: weave_ipam::AddrRange) -> Vec<u32> {
        let mut usable = Vec::new();
        for id in self.ids() {
            let member = self.member(id);
            let Some(allocator) = member.allocator.as_ref().filter(|_| !member.leaving && !member.legacy)
            else {
                continue;
            };
            let used: BTreeSet<u32> = allocator
                .owned()
                .values()
                .flat_map(|r| r.cidrs.iter().map(|cidr| number_of(cidr.addr())))
                .collect();
            let own = owned(allocator.ring(), member.name);
            usable.extend(own.into_iter().filter(|addr| within.contains(*addr) && !used.contains(addr)));
        }
        usable
    }

    /// Describes a pending request that could be served.
    fn request_without_reason(&self) -> Option<String> {
        for (number, request) in &self.requests {
            let now = self.now(request.host);
            let member = self.member(request.host);
            let status = member.allocator.as_ref().map(|a| a.status(now));
            let pending: Option<PendingStatus> =
                status.and_then(|s| s.pending.into_iter().find(|pending| pending.request == Some(*number)));
            match &request.kind {
                // 2.8.1 picks a random donor at each tick, weighted by free space, usable or not (docs/spec/ipam.md 6.5): the number of
                // attempts has no bound.
                RequestKind::Allocate(..) if member.legacy => {}
                RequestKind::Allocate(_, subnet) => {
                    let usable = self.usable(subnet.hosts());
                    if let Some(&addr) = usable.first() {
                        return Some(format!(
                            "{request:?} is pending, but {} is free: {pending:?}{}",
                            show(addr),
                            self.views()
                        ));
                    }
                }
                RequestKind::Claim(_, addr) => {
                    let views = self.views();
                    return Some(format!("claim of {} is never answered: {pending:?}{views}", show(*addr)));
                }
                RequestKind::Prime => return Some(format!("{request:?} is pending, but there is a ring")),
            }
        }
        None
    }

    /// Every address of the range can be allocated from every host; then one more request waits until an address is released.
    fn fill(&mut self) {
        let hosts: Vec<HostId> = self.ids().filter(|&id| self.runs(id) && !self.member(id).leaving).collect();
        let Some(&first) = hosts.first() else { return };
        let range = self.range_of(first);
        let pick = if self.event_count().is_multiple_of(2) { hosts.len() } else { 1 };
        let mut label = 0;
        let mut free = self.usable(range.hosts()).len();
        while free > 0 {
            for n in 0..free {
                label += 1;
                self.fill_one(hosts[n % pick], label);
            }
            if !self
                .wait(Duration::from_secs(600), |cluster| cluster.all_filled() || cluster.none_free(range))
            {
                panic!("not served: {:?}{}", self.requests, self.views());
            }
            // Donations may still be in transit.
            self.run_for(Duration::from_secs(1));
            let left = self.usable(range.hosts()).len();
            if left >= free {
                break;
            }
            free = left;
        }
        let unused = range.hosts().size() as usize - self.used_in(range);
        // Legacy peers may have ended themselves.
        let with_legacy = self.ids().any(|id| self.member(id).legacy && !self.member(id).destroyed);
        if unused > 0 && !with_legacy {
            panic!("{unused} addresses cannot be allocated: {:?}{}", self.ledger, self.views());
        }
        // One more request waits. Nothing is donated to it, not even the first and last address, which it could not use.
        let nothing_to_donate = !with_legacy && self.requests.is_empty();
        let given = self.donations;
        label += 1;
        self.fill_one(hosts[0], label);
        self.run_for(Duration::from_secs(12));
        self.check_always();
        if nothing_to_donate && self.donations > given {
            panic!("{} donations, although no address is free: {}", self.donations - given, self.views());
        }
        if !with_legacy && self.requests.is_empty() {
            panic!("all addresses are used, but one more is allocated: {:?}", self.ledger);
        }
        let Some((&addr, users)) = self.ledger.iter().rev().find(|(addr, _)| range.hosts().contains(**addr))
        else {
            return;
        };
        let Some((id, container)) = users.first().cloned() else { return };
        if !self.runs(id) || self.member(id).range != self.member(first).range {
            return;
        }
        let waiting = self.requests.len();
        self.release_named(id, &container, true);
        let served = |cluster: &Cluster| cluster.requests.len() < waiting || cluster.requests.is_empty();
        if waiting > 0 && !with_legacy && !self.wait(Duration::from_secs(100), served) {
            panic!(
                "{} was released, but not allocated to a pending request: {:?}{}",
                show(addr),
                self.requests,
                self.views()
            );
        }
        self.check_always();
    }

    fn fill_one(&mut self, id: HostId, label: u32) {
        self.start(id);
        self.allocate_label(id, format!("{}-fill-{label}", id.0));
    }

    fn all_filled(&self) -> bool {
        let fills = |ask: &RequestKind| matches!(ask, RequestKind::Allocate(container, _) if container.contains("fill"));
        !self.requests.values().any(|request| fills(&request.kind))
    }

    fn none_free(&self, range: weave_ipam::Subnet) -> bool {
        self.usable(range.hosts()).is_empty()
    }

    fn used_in(&self, range: weave_ipam::Subnet) -> usize {
        self.ledger.keys().filter(|addr| range.hosts().contains(**addr)).count()
    }

    /// In a minute without inputs no ring changes, and nodes send no more than their timers require. A request may be pending.
    pub(super) fn check_quiet(&mut self) {
        const MINUTE: Duration = Duration::from_secs(60);
        /// Per end of a connection: seven heartbeats, three MTU tests or answers, three digests, and all gossip: three times with a
        /// fast clock, relayed seven and a half times in a star.
        const TIMERS: usize = 21;
        /// Per pending request and donor, every five seconds: request, denial, and a relayed one.
        const SPACE_REQUESTS: usize = 12 * 3;
        if !self.plan.nodes {
            return;
        }
        let writes = |cluster: &Cluster| cluster.sim.counters.tcp_writes;
        // 2.8.1 asks random donors, and may receive space at any time; two such peers donate to each other what neither can use.
        let legacy_pending = self.requests.values().any(|request| self.member(request.host).legacy);
        // Path MTU tests and earlier messages finish first.
        self.run_for(MINUTE);
        let rings = |cluster: &Cluster| -> Vec<_> {
            cluster.members.iter().map(|member| member.view().cloned()).collect()
        };
        let minute = |cluster: &mut Cluster| {
            let (before, known) = (writes(cluster), rings(cluster));
            cluster.run_for(MINUTE);
            (known, (writes(cluster) - before) as usize)
        };
        let (mut known, mut sent) = minute(self);
        if rings(self) != known {
            // A release may be announced by gossip in the first half minute, used in the second, and the remaining space announced in
            // the third.
            (known, sent) = minute(self);
        }
        if rings(self) != known && !legacy_pending {
            panic!("rings change in a quiet minute: {known:?}{}", self.views());
        }
        let hosts = self.sim.hosts();
        let connections: usize =
            hosts.filter_map(|(_, host)| host.node.as_ref()).map(|node| node.connection_count()).sum();
        let bound = TIMERS * connections + SPACE_REQUESTS * self.requests.len() * self.members.len();
        if sent > bound && !legacy_pending {
            panic!("{sent} messages in a quiet minute, expected at most {bound}: {:?}", self.requests);
        }
    }
}
