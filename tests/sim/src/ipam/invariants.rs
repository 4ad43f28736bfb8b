//! Invariants after each input and each transition, and after all faults have ended (docs/spec/ipam.md 16).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use weave_ipam::{Container, PendingKind, PendingStatus, Record, WaitReason};
use weave_node::Node;
use weave_types::{Instant, PeerName};

use super::cluster::{Cluster, RequestKind};
use super::member::{Member, addr_to_u32, addrs_of, owned, show_addr};
use crate::host::CrashKind;
use crate::net::HostId;

/// Addresses of a dead container are released after 30 s, at the next tick, which may be late.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(40);

impl Cluster {
    /// Invariants after each input of a peer.
    pub(super) fn check_member(&self, id: HostId) {
        let member = self.member(id);
        let Some(allocator) = &member.allocator else { return };
        allocator.check_invariants().unwrap_or_else(|violation| panic!("{id}: {violation}"));
        for (container, record) in allocator.owned() {
            // The disk may have more, which is claimed again: a power loss may take back a release, but not the donation of the
            // same address, which is synced. See `check_records`.
            let stored = member.disk.stored().owned.get(container);
            let persisted = stored.is_some_and(|stored| {
                stored.is_container == record.is_container
                    && record.cidrs.iter().all(|cidr| stored.cidrs.contains(cidr))
            });
            assert!(persisted, "{id}: {container} has {record:?}, which is not on the disk");
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
            // Messages between nodes are not decoded and compared with the disk; instead the ring on the disk must agree as well.
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
                let allowed = (both.start()..both.end()).all(|addr| self.duplicates_allowed.contains(&addr));
                assert!(allowed, "{id} and {other} both own {both}");
            }
        }
    }

    /// Invariants after each transition.
    pub(super) fn check_always(&mut self) {
        for id in self.ids() {
            if self.is_running(id) && !self.member(id).leaving {
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
        let claiming: BTreeSet<(String, u32)> = allocator
            .status(now)
            .pending
            .into_iter()
            .filter_map(|pending| match pending.kind {
                PendingKind::Claim { container, cidr } if pending.request.is_none() => {
                    Some((container, addr_to_u32(cidr.addr())))
                }
                _ => None,
            })
            .collect();
        let in_range = |records: &BTreeMap<Container, Record>| -> BTreeSet<(String, u32)> {
            let assignments =
                records.iter().flat_map(|(id, record)| addrs_of(record).map(|addr| (id.clone(), addr)));
            assignments.filter(|(_, addr)| range.contains(*addr)).collect()
        };
        let member = self.member(id);
        let recorded = in_range(allocator.owned());
        for stored in in_range(&member.disk.stored().owned) {
            let known = recorded.contains(&stored) || claiming.contains(&stored);
            let (container, addr) = stored;
            assert!(known, "{id}: the disk has {} of {container}, the allocator does not", show_addr(addr));
        }
        for (container, addr) in recorded.difference(&member.pending_claims) {
            assert!(
                member.uses(container, *addr) || member.orphans.contains(&(container.clone(), *addr)),
                "{id}: {} of {container} has no user",
                show_addr(*addr)
            );
        }
        for (container, state) in &member.containers {
            for &addr in state.addrs.iter().filter(|addr| range.contains(**addr)) {
                let used = (container.clone(), addr);
                assert!(
                    recorded.contains(&used)
                        || claiming.contains(&used)
                        || self.duplicates_allowed.contains(&addr)
                        || self.plan.conflicts,
                    "{id}: {} of {container} has no record",
                    show_addr(addr)
                );
            }
            let since = state.died.map(|died| died.max(member.started));
            let overdue = since.is_some_and(|since| self.clock() - since > RELEASE_TIMEOUT);
            assert!(
                !overdue || state.running || !state.is_container || state.addrs.is_empty(),
                "{id}: {container} is dead, but keeps {:?}",
                state.addrs
            );
        }
        let settled_claims: Vec<_> = recorded.intersection(&member.pending_claims).cloned().collect();
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
        assert!(
            allocator.ring().is_empty() || listed == total,
            "{id}: the status lists {listed} addresses of {total}"
        );
        let own = owned(allocator.ring(), member.name).len() as u32;
        let (active, free) = (status.active, status.free);
        assert!(
            active + free == own || self.plan.conflicts,
            "{id}: {active} active and {free} free of {own}"
        );
        for (number, request) in self.requests.iter().filter(|(_, request)| request.host == id) {
            let shown = status.pending.iter().find(|pending| pending.request == Some(*number));
            let correct = shown.is_some_and(|shown| match (&shown.kind, &request.kind) {
                (PendingKind::Prime, RequestKind::Prime) => true,
                (PendingKind::Allocate { container, subnet }, RequestKind::Allocate(by, requested)) => {
                    container == by && subnet == requested
                }
                (PendingKind::Claim { container, cidr }, RequestKind::Claim(by, addr)) => {
                    container == by && addr_to_u32(cidr.addr()) == *addr
                }
                _ => false,
            });
            assert!(correct, "{id}: {request:?} is pending, but shown as {shown:?}");
        }
        for pending in &status.pending {
            assert!(
                (pending.reason == WaitReason::NoRing) == allocator.ring().is_empty(),
                "{id}: {pending:?}, but the ring is {:?}",
                allocator.ring()
            );
            assert!(!pending.reason.explain().is_empty(), "{id}: no explanation of {pending:?}");
        }
    }

    /// Ends all faults, starts all peers that were not removed, and checks that every request is answered and every address can
    /// be allocated. Where a conflict remains, which the plan allows, a peer must report it.
    pub(super) fn check_eventually(&mut self) {
        self.heal();
        let range_changed = self.members.iter().any(|member| member.range > 0);
        for id in self.ids() {
            self.member_mut(id).legacy_conflict_at = None;
            if range_changed && self.member(id).range == 0 && !self.member(id).destroyed {
                self.crash(id, CrashKind::Killed);
                self.member_mut(id).range = 1;
            }
            self.start(id);
        }
        self.update_links();
        self.reconnect_nodes();
        let running: Vec<HostId> =
            self.ids().filter(|&id| self.is_running(id) && !self.member(id).leaving).collect();
        let Some(&first) = running.first() else { return };
        let healed = self.clock();
        self.prime(first);
        let electors = running
            .iter()
            .filter(|id| id.0 < self.plan.electors() && self.member(**id).installation == 0)
            .count();
        let quorum_exists = electors > usize::from(self.plan.electors() / 2);
        if !self.wait_until(Duration::from_secs(400), |cluster| cluster.agree() || cluster.has_conflict()) {
            if !quorum_exists && !running.iter().any(|&id| self.member(id).is_ready()) {
                return;
            }
            if self.legacy_conflict_since(healed) {
                self.check_conflict_reported();
                return;
            }
            panic!("no agreement: {}", self.views());
        }
        self.check_always();
        if self.has_conflict() || !self.take_over_removed_peers() {
            self.check_conflict_reported();
            return;
        }
        self.release_orphans();
        // By then claims are answered, addresses of dead containers released, and pending requests served.
        self.run_for(Duration::from_secs(60));
        // Free space is announced by gossip only (docs/spec/ipam.md 6.3), so donors may be found some rounds later; requests are
        // served in the end (16.3, L2 and L3).
        self.wait_until(Duration::from_secs(60), |cluster| {
            cluster.agree() && cluster.servable_request().is_none()
        });
        self.check_always();
        self.end_conflicts_with_removed_peers();
        if self.has_conflict() {
            self.check_conflict_reported();
            return;
        }
        let servable = self.servable_request();
        assert!(servable.is_none(), "{}", servable.unwrap_or_default());
        self.check_all_addresses_can_be_allocated();
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
    fn has_conflict(&self) -> bool {
        self.plan.double_takeover && self.ids().any(|id| !self.conflicts_of(id).is_empty())
    }

    /// Whether a legacy peer has ended itself or a connection since then, in a plan where it may do so forever: it cannot report a
    /// conflict otherwise.
    fn legacy_conflict_since(&self, then: Instant) -> bool {
        self.plan.double_takeover
            && self.members.iter().any(|member| member.legacy_conflict_at.is_some_and(|when| when >= then))
    }

    pub(super) fn conflicts_of(&self, id: HostId) -> Vec<weave_ipam::ConflictStatus> {
        let now = self.now(id);
        self.member(id).allocator.as_ref().map(|a| a.status(now).conflicts).unwrap_or_default()
    }

    /// The rings of all peers, for the text of a failure.
    pub(super) fn views(&self) -> String {
        let line = |id: HostId| {
            let member = self.member(id);
            let Some(allocator) = &member.allocator else { return format!("\n  {id} is down") };
            let mut text = format!("\n  {id} ({}):", member.name);
            for entry in allocator.ring().entries() {
                let owner = self.by_name(entry.peer).map_or("removed".to_owned(), |id| id.0.to_string());
                let offset = entry.token - self.range_of(id).range().start();
                let _ = write!(text, " +{offset}={owner} v{} free {};", entry.version, entry.free);
            }
            text
        };
        self.ids().map(line).collect()
    }

    /// Lets time pass, with gossip among all neighbours every ten seconds, until the condition holds; false if it does not hold
    /// within `limit`.
    pub(super) fn wait_until(&mut self, limit: Duration, holds: impl Fn(&Cluster) -> bool) -> bool {
        let end = self.clock() + limit;
        while self.clock() < end {
            self.run_for(Duration::from_secs(5));
            if holds(self) {
                return true;
            }
            // Legacy peers may have ended themselves.
            for id in self.ids().take(self.plan.legacy.into()) {
                self.start(id);
            }
            self.run_for(Duration::from_secs(5));
            for from in self.ids() {
                for to in self.links.neighbours(from) {
                    self.send_state(from, to);
                }
            }
        }
        holds(self)
    }

    /// Every address with two users is reported as a conflict by one of them.
    pub(super) fn check_conflict_reported(&self) {
        for (addr, users) in self.users.iter().filter(|(_, users)| users.len() > 1) {
            let reports = |id: HostId| {
                self.member(id).legacy_conflict_at.is_some() || !self.conflicts_of(id).is_empty()
            };
            assert!(
                users.iter().any(|(id, _)| reports(*id)),
                "{} has two users, and none of {users:?} reports it",
                show_addr(*addr)
            );
        }
    }

    /// Takes over the space of all removed peers; false if a legacy peer has detected a conflict.
    fn take_over_removed_peers(&mut self) -> bool {
        for _ in 0..self.removed_peers.len() + 1 {
            let known: BTreeSet<PeerName> =
                self.ids().filter(|&id| !self.member(id).destroyed).map(|id| self.member(id).name).collect();
            let Some(by) = self.ids().find(|&id| self.member(id).is_ready()) else { return true };
            let owners = self.member(by).view().map(|ring| ring.owners()).unwrap_or_default();
            let Some(&removed) = owners.difference(&known).next() else { return true };
            // No message in transit may have newer knowledge of the removed peer than the others have.
            self.lose_messages();
            self.await_removed_peers_forgotten();
            // All peers agree now, so only later conflicts count.
            let agreed = self.clock();
            let result = self.with_allocator(by, |a, now| a.remove_peer(&removed.to_string(), false, now));
            let view = self.member(by).view().map(|ring| ring.owners()).unwrap_or_default();
            assert!(
                matches!(result, Some(Ok(_))) && !view.contains(&removed),
                "{by}: the space of {removed} cannot be taken over: {result:?}"
            );
            // Connections that were cut may be dialled again after the longest interval only, which is six minutes.
            if !self.wait_until(Duration::from_secs(400), Cluster::agree) {
                if self.legacy_conflict_since(agreed) {
                    return false;
                }
                panic!("no agreement after a takeover of {removed}: {}", self.views());
            }
        }
        true
    }

    /// `weave rmpeer` ends conflicts with removed peers.
    fn end_conflicts_with_removed_peers(&mut self) {
        let removed: BTreeSet<PeerName> = self.removed_peers.iter().map(|peer| peer.name).collect();
        for id in self.ids() {
            let conflicts = self.conflicts_of(id);
            let claimants = conflicts.iter().filter_map(|c| c.conflict.claimant());
            for claimant in claimants.filter(|claimant| removed.contains(claimant)) {
                self.with_allocator(id, |a, now| a.remove_peer(&claimant.to_string(), false, now).is_ok());
            }
        }
    }

    /// Releases the records of clients that never received their answer.
    fn release_orphans(&mut self) {
        for id in self.ids() {
            for (container, addr) in std::mem::take(&mut self.member_mut(id).orphans) {
                let addr = std::net::IpAddr::V4(addr.into());
                // The record may not exist any more, or its claim may have failed.
                self.with_allocator(id, |a, now| a.free(&container, addr, now).is_ok());
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
            let used: BTreeSet<u32> = allocator.owned().values().flat_map(addrs_of).collect();
            let own = owned(allocator.ring(), member.name);
            usable.extend(own.into_iter().filter(|addr| within.contains(*addr) && !used.contains(addr)));
        }
        usable
    }

    /// Describes a pending request that could be served, if there is one.
    fn servable_request(&self) -> Option<String> {
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
                            show_addr(addr),
                            self.views()
                        ));
                    }
                }
                RequestKind::Claim(..) => {
                    return Some(format!("{request:?} is never answered: {pending:?}{}", self.views()));
                }
                RequestKind::Prime => return Some(format!("{request:?} is pending, but there is a ring")),
            }
        }
        None
    }

    /// Every address of the range can be allocated from every host; then one more request waits until an address is released.
    fn check_all_addresses_can_be_allocated(&mut self) {
        let hosts: Vec<HostId> =
            self.ids().filter(|&id| self.is_running(id) && !self.member(id).leaving).collect();
        let Some(&first) = hosts.first() else { return };
        let range = self.range_of(first).hosts();
        // Every second run requests all addresses from one host.
        let requesters = if self.world.counters.events.is_multiple_of(2) { hosts.len() } else { 1 };
        let mut requested = 0;
        let mut free = self.usable(range).len();
        while free > 0 {
            for n in 0..free {
                requested += 1;
                self.request_one(hosts[n % requesters], requested);
            }
            let is_ours = |kind: &RequestKind| matches!(kind, RequestKind::Allocate(container, _) if container.contains("fill"));
            let served = self.wait_until(Duration::from_secs(600), |cluster| {
                let pending = cluster.requests.values().any(|request| is_ours(&request.kind));
                !pending || cluster.usable(range).is_empty()
            });
            assert!(served, "not served: {:?}{}", self.requests, self.views());
            // Donations may still be in transit.
            self.run_for(Duration::from_secs(1));
            let left = self.usable(range).len();
            if left >= free {
                break;
            }
            free = left;
        }
        let used = self.users.keys().filter(|addr| range.contains(**addr)).count();
        let unused = range.size() as usize - used;
        // Legacy peers may have ended themselves.
        let with_legacy = self.ids().any(|id| self.member(id).legacy && !self.member(id).destroyed);
        assert!(
            unused == 0 || with_legacy,
            "{unused} addresses cannot be allocated: {:?}{}",
            self.users,
            self.views()
        );
        // One more request waits. Nothing is donated to it, not even the first and last address, which it could not use.
        let nothing_to_donate = !with_legacy && self.requests.is_empty();
        let donations = self.donations;
        self.request_one(hosts[0], requested + 1);
        self.run_for(Duration::from_secs(12));
        self.check_always();
        let new_donations = self.donations - donations;
        assert!(
            !nothing_to_donate || new_donations == 0,
            "{new_donations} donations, although no address is free: {}",
            self.views()
        );
        assert!(
            with_legacy || !self.requests.is_empty(),
            "all addresses are used, but one more is allocated: {:?}",
            self.users
        );
        let Some((&addr, users)) = self.users.iter().rev().find(|(addr, _)| range.contains(**addr)) else {
            return;
        };
        let Some((id, container)) = users.first().cloned() else { return };
        if !self.is_running(id) || self.member(id).range != self.member(first).range {
            return;
        }
        let pending = self.requests.len();
        self.release_named(id, &container, true);
        let served = |cluster: &Cluster| cluster.requests.len() < pending || cluster.requests.is_empty();
        let served = pending == 0 || with_legacy || self.wait_until(Duration::from_secs(100), served);
        assert!(
            served,
            "{} was released, but not allocated to a pending request: {:?}{}",
            show_addr(addr),
            self.requests,
            self.views()
        );
        self.check_always();
    }

    fn request_one(&mut self, id: HostId, number: u32) {
        self.start(id);
        self.allocate_named(id, format!("{}-fill-{number}", id.0));
    }

    /// In a minute without inputs no ring changes, and nodes send no more than their timers require. A request may be pending.
    pub(super) fn check_quiet(&mut self) {
        const MINUTE: Duration = Duration::from_secs(60);
        /// Per end of a connection: seven heartbeats, three MTU tests or answers, three digests, and all gossip: three times with a
        /// fast clock, relayed seven and a half times in a star.
        const TIMERS: usize = 21;
        /// Per pending request and donor, every five seconds: a request, a denial, and one of them relayed.
        const SPACE_REQUESTS: usize = 12 * 3;
        if !self.plan.nodes {
            return;
        }
        // 2.8.1 asks random donors, and may receive space at any time; two such peers donate to each other what neither can use.
        let legacy_pending = self.requests.values().any(|request| self.member(request.host).legacy);
        // Path MTU tests and earlier messages finish first.
        self.run_for(MINUTE);
        let rings = |cluster: &Cluster| -> Vec<_> {
            cluster.members.iter().map(|member| member.view().cloned()).collect()
        };
        let minute = |cluster: &mut Cluster| {
            let (before, writes) = (rings(cluster), cluster.world.counters.tcp_writes);
            cluster.run_for(MINUTE);
            (before, (cluster.world.counters.tcp_writes - writes) as usize)
        };
        let (mut before, mut sent) = minute(self);
        if rings(self) != before {
            // A release may be announced by gossip in the first half minute, used in the second, and the remaining space announced in
            // the third.
            (before, sent) = minute(self);
        }
        assert!(
            rings(self) == before || legacy_pending,
            "rings change in a quiet minute: {before:?}{}",
            self.views()
        );
        let connections: usize = self.world.nodes().map(Node::connection_count).sum();
        let bound = TIMERS * connections + SPACE_REQUESTS * self.requests.len() * self.members.len();
        assert!(
            sent <= bound || legacy_pending,
            "{sent} messages in a quiet minute, expected at most {bound}: {:?}",
            self.requests
        );
    }
}
