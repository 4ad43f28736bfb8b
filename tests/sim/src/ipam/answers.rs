//! The model of who uses which address, and the checks of every answer of an allocator.

use std::time::Duration;

use weave_ipam::{Answer, Cancelled, NO_ID, Persist, RequestError, RequestId, Ring, Subnet};
use weave_types::Cidr;

use super::cluster::{Cluster, Request, RequestKind};
use super::member::{addr_to_u32, addrs_of, is_recorded, show_addr};
use crate::net::HostId;

/// Addresses of a dead container are released after this time (docs/spec/ipam.md 8.7).
const RELEASE_DELAY: Duration = Duration::from_secs(30);

impl Cluster {
    pub(super) fn handle_answer(
        &mut self,
        id: HostId,
        number: RequestId,
        result: Result<Answer, RequestError>,
    ) {
        let Some(request) = self.requests.remove(&number).filter(|request| request.host == id) else {
            panic!("{id}: {number:?} is answered, but is not pending: {result:?}");
        };
        match (request.kind.clone(), result) {
            (RequestKind::Allocate(container, subnet), Ok(Answer::Allocated(cidr))) => {
                self.handle_allocation(id, container, subnet, cidr);
            }
            (RequestKind::Claim(container, addr), Ok(Answer::Claimed { settled: true })) => {
                if self.range_of(id).range().contains(addr) {
                    self.add_user(id, container, addr);
                }
            }
            (RequestKind::Claim(container, addr), Ok(Answer::Claimed { settled: false })) => {
                self.member_mut(id).pending_claims.insert((container, addr));
            }
            (RequestKind::Prime, Ok(Answer::Primed)) if self.member(id).is_ready() => {}
            (_, Err(RequestError::Cancelled(what))) if request.cancelled => {
                let matches_request = match (&request.kind, &what) {
                    (RequestKind::Allocate(a, _), Cancelled::Allocate(b)) => a == b,
                    (RequestKind::Claim(a, addr), Cancelled::Claim(b, cidr)) => {
                        a == b && addr_to_u32(cidr.addr()) == *addr
                    }
                    (RequestKind::Prime, Cancelled::Prime) => true,
                    _ => false,
                };
                assert!(matches_request, "{id}: {request:?} is answered with {what:?}");
            }
            (RequestKind::Allocate(_, subnet), Err(RequestError::OutOfBounds { .. }))
                if !subnet.range().overlaps(self.range_of(id).range()) => {}
            (RequestKind::Claim(container, addr), Err(error)) => {
                self.check_claim_error(id, &request, &container, addr, &error)
            }
            (what, result) => panic!("{id}: {what:?} is answered with {result:?}"),
        }
    }

    fn handle_allocation(&mut self, id: HostId, container: String, subnet: Subnet, cidr: Cidr) {
        let addr = addr_to_u32(cidr.addr());
        let member = self.member(id);
        let assignment = (container.clone(), addr);
        let had = member.uses(&container, addr)
            || member.orphans.contains(&assignment)
            || member.pending_claims.contains(&assignment);
        if !self.range_of(id).range().contains(addr) {
            // Outside the range only claims are possible.
            let claimed = is_recorded(&member.disk.stored().owned, &container, addr);
            assert!(claimed, "{id}: {cidr} is allocated, outside the range");
            return;
        }
        let range = if had { subnet.range() } else { subnet.hosts() };
        assert!(
            range.contains(addr) && cidr.prefix() == subnet.prefix(),
            "{id}: {cidr} is no host address of {subnet}"
        );
        let other = member.containers.get(&container).and_then(|c| {
            c.addrs.iter().copied().find(|&other| container != NO_ID && subnet.range().contains(other))
        });
        assert!(other.is_none() || had, "{id}: {container} gets {cidr}, but has {other:?}");
        if !had && !member.legacy {
            let conflicts = self.conflicts_of(id);
            let disputed = conflicts.iter().flat_map(|c| &c.disputed).any(|range| range.contains(addr));
            assert!(!disputed, "{id}: {cidr} is allocated, but disputed: {conflicts:?}");
        }
        let view = member.disk.stored().ring.as_ref();
        assert!(
            view.and_then(|ring| ring.owner_of(addr)) == Some(member.name),
            "{id}: {cidr} is allocated, but not owned by the ring on the disk: {view:?}"
        );
        let container = if container == NO_ID { cidr.addr().to_string() } else { container };
        self.add_user(id, container, addr);
    }

    /// Registers a user of an address.
    pub(super) fn add_user(&mut self, id: HostId, container: String, addr: u32) {
        let clock = self.clock();
        let member = self.member_mut(id);
        assert!(
            is_recorded(&member.disk.stored().owned, &container, addr),
            "{id}: {} of {container} is not on the disk",
            show_addr(addr)
        );
        member.orphans.remove(&(container.clone(), addr));
        member.pending_claims.remove(&(container.clone(), addr));
        let state = member.containers.entry(container.clone()).or_default();
        state.addrs.insert(addr);
        if container == show_addr(addr) {
            state.running = true;
        }
        let users = self.users.entry(addr).or_default();
        users.insert((id, container));
        assert!(
            users.len() == 1 || self.duplicates_allowed.contains(&addr),
            "{} has two users: {users:?}",
            show_addr(addr)
        );
        self.last_used.insert(addr, clock);
    }

    /// Removes a user of an address.
    pub(super) fn remove_user(&mut self, id: HostId, container: &str, addr: u32) {
        if let Some(state) = self.member_mut(id).containers.get_mut(container) {
            state.addrs.remove(&addr);
        }
        let clock = self.clock();
        if let Some(users) = self.users.get_mut(&addr) {
            if users.remove(&(id, container.to_owned())) {
                self.last_used.insert(addr, clock);
            }
            if users.is_empty() {
                self.users.remove(&addr);
            }
        }
    }

    pub(super) fn remove_containers(&mut self, id: HostId) {
        for (container, state) in std::mem::take(&mut self.member_mut(id).containers) {
            for addr in state.addrs {
                self.remove_user(id, &container, addr);
            }
        }
    }

    /// Removes stopped containers as users of addresses that their peer does not know, or was still trying to claim.
    pub(super) fn remove_unrecorded_users(&mut self, id: HostId) {
        let member = self.member(id);
        let Some(allocator) = &member.allocator else { return };
        let stopped = member.containers.iter().filter(|(_, c)| c.is_container && !c.running);
        let lost: Vec<(String, u32)> = stopped
            .flat_map(|(id, c)| c.addrs.iter().map(|&addr| (id.clone(), addr)))
            .filter(|(id, addr)| !is_recorded(allocator.owned(), id, *addr))
            .collect();
        for (container, addr) in lost {
            self.remove_user(id, &container, addr);
        }
    }

    /// Handles addresses that a new record of a container does not contain any more: only dead containers may lose addresses.
    pub(super) fn handle_release(&mut self, id: HostId, persist: &Persist) {
        let Persist::Owned { container, record } = persist else { return };
        let kept: Vec<u32> = record.iter().flat_map(addrs_of).collect();
        let (clock, delay) = (self.clock(), self.world.host(id).clock.at_least(RELEASE_DELAY));
        let Some(state) = self.member(id).containers.get(container) else { return };
        let lost: Vec<u32> = state.addrs.iter().copied().filter(|addr| !kept.contains(addr)).collect();
        let dead = state.known_stopped || state.died.is_some_and(|died| clock - died >= delay);
        for addr in lost {
            // After the loss of a disk an address that is not recorded yet is not released.
            let recorded = is_recorded(&self.member(id).disk.stored().owned, container, addr);
            assert!(
                !recorded || dead || self.duplicates_allowed.contains(&addr),
                "{id}: {} of {container} is released: {persist:?}",
                show_addr(addr)
            );
            if recorded || dead {
                self.remove_user(id, container, addr);
            }
        }
    }

    fn check_claim_error(
        &mut self,
        id: HostId,
        request: &Request,
        container: &str,
        addr: u32,
        error: &RequestError,
    ) {
        let member = self.member(id);
        let plausible = match error {
            RequestError::InUse { .. } | RequestError::Owned { .. } => {
                let mut unused = member.orphans.iter().chain(&member.pending_claims);
                member.containers.iter().any(|(other, c)| other != container && c.addrs.contains(&addr))
                    || unused.any(|(other, a)| other != container && *a == addr)
                    || !self.range_of(id).range().contains(addr)
            }
            RequestError::OtherPeer { unreachable: true, .. } => {
                self.clock() - request.since >= self.world.host(id).clock.at_least(Duration::from_secs(20))
            }
            // In 2.8.1 the denial of a whole subnet fails every claim in it (`Policy::denial_fails_all_claims`).
            RequestError::OtherPeer { unreachable: false, .. } if member.legacy => true,
            RequestError::OtherPeer { peer, unreachable: false, .. } => match self.by_name(*peer) {
                Some(owner) if !self.member(owner).legacy && owner != id => {
                    let member = self.member(owner);
                    let recently_used = self.last_used.get(&addr).is_some_and(|&at| at >= request.since);
                    let owns = member.view().is_some_and(|ring| ring.owner_of(addr) == Some(*peer));
                    let idle = !recently_used
                        && !self.users.contains_key(&addr)
                        && !member.orphans.iter().chain(&member.pending_claims).any(|(_, a)| *a == addr);
                    !(owns && idle && self.is_running(owner) && !member.leaving)
                        || self.plan.conflicts
                        || member.started >= request.since
                }
                _ => true,
            },
            _ => false,
        };
        // Only the owner can deny a claim; to 2.8.1 any peer can. One input of a node may contain an answer and then a newer ring.
        let owner_answered = match error {
            RequestError::OtherPeer { peer, .. } if !member.legacy => {
                let owns = |ring: &Ring| ring.owner_of(addr) == Some(*peer);
                member.view().is_none_or(owns) || member.ring_before.as_ref().is_some_and(owns)
            }
            _ => true,
        };
        assert!(
            plausible && owner_answered,
            "{id}: the claim of {container} for {} fails: {error}",
            show_addr(addr)
        );
    }

    pub(super) fn handle_preclaim_failure(
        &mut self,
        id: HostId,
        container: &str,
        cidr: Cidr,
        error: &RequestError,
    ) {
        let addr = addr_to_u32(cidr.addr());
        let member = self.member_mut(id);
        member.pending_claims.remove(&(container.to_owned(), addr));
        member.orphans.remove(&(container.to_owned(), addr));
        let record = member.disk.stored().owned.get(container);
        let recorded_again = record.is_some_and(|record| record.cidrs.contains(&cidr));
        let loses = member.uses(container, addr) && !recorded_again;
        let conflict = self.plan.conflicts || self.duplicates_allowed.contains(&addr);
        assert!(!loses || conflict, "{id}: {container} loses {cidr}: {error}");
    }
}
