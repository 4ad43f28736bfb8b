//! The ledger: the users of each address. Checks every answer of an allocator.

use std::net::IpAddr;
use std::time::Duration;

use weave_ipam::{Answer, Cancelled, NO_ID, Persist, RequestError, RequestId, Ring, Subnet};
use weave_types::Cidr;

use super::cluster::{Cluster, Request, RequestKind};
use super::member::Member;
use crate::net::HostId;

/// Addresses of a dead container are released after this time (docs/spec/ipam.md 8.7).
const RELEASE_DELAY: Duration = Duration::from_secs(30);

impl Cluster {
    pub(super) fn answered(&mut self, id: HostId, number: RequestId, result: Result<Answer, RequestError>) {
        let Some(request) = self.requests.remove(&number).filter(|request| request.host == id) else {
            panic!("host {}: {number:?} is answered, but is not pending: {result:?}", id.0);
        };
        match (request.kind.clone(), result) {
            (RequestKind::Allocate(container, subnet), Ok(Answer::Allocated(cidr))) => {
                self.allocated(id, container, subnet, cidr);
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
                let right = match (&request.kind, &what) {
                    (RequestKind::Allocate(a, _), Cancelled::Allocate(b)) => a == b,
                    (RequestKind::Claim(a, addr), Cancelled::Claim(b, cidr)) => {
                        a == b && number_of(cidr.addr()) == *addr
                    }
                    (RequestKind::Prime, Cancelled::Prime) => true,
                    _ => false,
                };
                if !right {
                    panic!("host {}: {request:?} is answered with {what:?}", id.0);
                }
            }
            (RequestKind::Allocate(_, subnet), Err(RequestError::OutOfBounds { .. }))
                if !subnet.range().overlaps(self.range_of(id).range()) => {}
            (RequestKind::Claim(container, addr), Err(error)) => {
                self.check_claim_error(id, &request, &container, addr, &error)
            }
            (what, result) => panic!("host {}: {what:?} is answered with {result:?}", id.0),
        }
    }

    fn allocated(&mut self, id: HostId, container: String, subnet: Subnet, cidr: Cidr) {
        let addr = number_of(cidr.addr());
        let member = self.member(id);
        let known = (container.clone(), addr);
        let had = member.containers.get(&container).is_some_and(|c| c.addrs.contains(&addr))
            || member.orphans.contains(&known)
            || member.pending_claims.contains(&known);
        if !self.range_of(id).range().contains(addr) {
            // Outside the range only claims are possible.
            let claimed = member
                .disk
                .stored()
                .owned
                .get(&container)
                .is_some_and(|record| record.cidrs.iter().any(|cidr| number_of(cidr.addr()) == addr));
            if !claimed {
                panic!("host {}: {cidr} is allocated, outside the range", id.0);
            }
            return;
        }
        let range = if had { subnet.range() } else { subnet.hosts() };
        if !range.contains(addr) || cidr.prefix() != subnet.prefix() {
            panic!("host {}: {cidr} is no host address of {subnet}", id.0);
        }
        let other = member.containers.get(&container).and_then(|c| {
            c.addrs.iter().copied().find(|&other| container != NO_ID && subnet.range().contains(other))
        });
        if other.is_some() && !had {
            panic!("host {}: {container} gets {cidr}, but has {other:?}", id.0);
        }
        let now = self.now(id);
        let status = member.allocator.as_ref().filter(|_| !had && !member.legacy).map(|a| a.status(now));
        let is_disputed = |status: &weave_ipam::Status| {
            status.conflicts.iter().flat_map(|conflict| &conflict.disputed).any(|range| range.contains(addr))
        };
        if status.as_ref().is_some_and(is_disputed) {
            panic!("host {}: {cidr} is allocated, but disputed: {:?}", id.0, status);
        }
        let (name, view) = (member.name, member.disk.stored().ring.as_ref());
        if view.and_then(|ring| ring.owner_of(addr)) != Some(name) {
            panic!("host {}: {cidr} is allocated, but not owned by the ring on the disk: {view:?}", id.0);
        }
        let container = if container == NO_ID { cidr.addr().to_string() } else { container };
        self.add_user(id, container, addr);
    }

    /// Registers a user of an address.
    pub(super) fn add_user(&mut self, id: HostId, container: String, addr: u32) {
        let member = self.member(id);
        if !member
            .disk
            .stored()
            .owned
            .get(&container)
            .is_some_and(|record| record.cidrs.iter().any(|cidr| number_of(cidr.addr()) == addr))
        {
            panic!("host {}: {} of {container} is not on the disk", id.0, show(addr));
        }
        let member = self.member_mut(id);
        member.orphans.remove(&(container.clone(), addr));
        member.pending_claims.remove(&(container.clone(), addr));
        let state = member.containers.entry(container.clone()).or_default();
        state.addrs.insert(addr);
        if container == show(addr) {
            state.running = true;
        }
        let clock = self.clock();
        let users = self.ledger.entry(addr).or_default();
        users.insert((id, container));
        if users.len() > 1 && !self.contested.contains(&addr) {
            panic!("{} has two users: {users:?}", show(addr));
        }
        self.last_used.insert(addr, clock);
    }

    /// Removes a user of an address.
    pub(super) fn remove_user(&mut self, id: HostId, container: &str, addr: u32) {
        if let Some(state) = self.member_mut(id).containers.get_mut(container) {
            state.addrs.remove(&addr);
        }
        let clock = self.clock();
        if let Some(users) = self.ledger.get_mut(&addr) {
            if users.remove(&(id, container.to_owned())) {
                self.last_used.insert(addr, clock);
            }
            if users.is_empty() {
                self.ledger.remove(&addr);
            }
        }
    }

    pub(super) fn lose_containers(&mut self, id: HostId) {
        for (container, state) in std::mem::take(&mut self.member_mut(id).containers) {
            for addr in state.addrs {
                self.remove_user(id, &container, addr);
            }
        }
    }

    /// Removes stopped containers as users of addresses that their peer does not know, or was still trying to claim.
    pub(super) fn drop_unknown(&mut self, id: HostId) {
        let member = self.member(id);
        let Some(allocator) = &member.allocator else { return };
        let records = allocator.owned();
        let is_recorded = |container: &String, addr: u32| {
            let cidrs = records.get(container).map(|record| record.cidrs.as_slice()).unwrap_or_default();
            cidrs.iter().any(|cidr| number_of(cidr.addr()) == addr)
        };
        let stopped = member.containers.iter().filter(|(_, c)| c.is_container && !c.running);
        let lost: Vec<(String, u32)> = stopped
            .flat_map(|(id, c)| c.addrs.iter().map(|&addr| (id.clone(), addr)))
            .filter(|(id, addr)| !is_recorded(id, *addr))
            .collect();
        for (container, addr) in lost {
            self.remove_user(id, &container, addr);
        }
    }

    /// Handles addresses that a new record of a container does not contain any more: only dead containers may lose addresses.
    pub(super) fn released_by(&mut self, id: HostId, persist: &Persist) {
        let Persist::Owned { container, record } = persist else { return };
        let kept: Vec<u32> =
            record.iter().flat_map(|record| record.cidrs.iter().map(|cidr| number_of(cidr.addr()))).collect();
        let (clock, grace) = (self.clock(), self.sim.host(id).clock.at_least(RELEASE_DELAY));
        let Some(state) = self.member(id).containers.get(container) else { return };
        let lost: Vec<u32> = state.addrs.iter().copied().filter(|addr| !kept.contains(addr)).collect();
        let dead = state.gone || state.died.is_some_and(|died| clock - died >= grace);
        for addr in lost {
            // After the loss of a disk an address that is not recorded yet is not released.
            let known = self
                .member(id)
                .disk
                .stored()
                .owned
                .get(container)
                .is_some_and(|record| record.cidrs.iter().any(|cidr| number_of(cidr.addr()) == addr));
            if known && !dead && !self.contested.contains(&addr) {
                panic!("host {}: {} of {container} is released: {persist:?}", id.0, show(addr));
            }
            if known || dead {
                self.remove_user(id, container, addr);
            }
        }
    }

    fn check_claim_error(
        &mut self,
        id: HostId,
        request: &Request,
        who: &str,
        addr: u32,
        error: &RequestError,
    ) {
        let member = self.member(id);
        let others = |member: &Member| {
            let used = member.containers.iter().any(|(id, c)| id != who && c.addrs.contains(&addr));
            used || member.orphans.iter().chain(&member.pending_claims).any(|(id, a)| id != who && *a == addr)
        };
        let right = match error {
            RequestError::InUse { .. } | RequestError::Owned { .. } => {
                others(member) || !self.range_of(id).range().contains(addr)
            }
            RequestError::OtherPeer { unreachable: true, .. } => {
                self.clock() - request.since >= self.sim.host(id).clock.at_least(Duration::from_secs(20))
            }
            // 2.8.1 takes a denial of a whole subnet for an answer to every claim in it (`Policy::denial_fails_all_claims`).
            RequestError::OtherPeer { unreachable: false, .. } if self.member(id).legacy => true,
            RequestError::OtherPeer { peer, unreachable: false, .. } => match self.by_name(*peer) {
                Some(owner) if !self.member(owner).legacy && owner != id => {
                    let member = self.member(owner);
                    let recently = self.last_used.get(&addr).is_some_and(|&at| at >= request.since);
                    let owns = member.view().is_some_and(|ring| ring.owner_of(addr) == Some(*peer));
                    let idle = !recently
                        && !self.ledger.contains_key(&addr)
                        && !member.orphans.iter().chain(&member.pending_claims).any(|(_, a)| *a == addr);
                    !(owns && idle && self.runs(owner) && !member.leaving)
                        || self.plan.conflicts
                        || member.started >= request.since
                }
                _ => true,
            },
            _ => false,
        };
        // Only the owner can deny a claim; with 2.8.1 any peer does. One input of a node may contain an answer and then a newer ring.
        let named = match error {
            RequestError::OtherPeer { peer, .. } if !member.legacy => {
                let owns = |ring: &Ring| ring.owner_of(addr) == Some(*peer);
                member.view().is_none_or(owns) || member.ring_before.as_ref().is_some_and(owns)
            }
            _ => true,
        };
        if !right || !named {
            panic!("host {}: the claim of {who} for {} fails: {error}", id.0, show(addr));
        }
    }

    pub(super) fn preclaim_failed(&mut self, id: HostId, container: &str, cidr: Cidr, error: &RequestError) {
        let addr = number_of(cidr.addr());
        let member = self.member_mut(id);
        member.pending_claims.remove(&(container.to_owned(), addr));
        member.orphans.remove(&(container.to_owned(), addr));
        let live = member.containers.get(container).is_some_and(|c| c.addrs.contains(&addr));
        let again =
            member.disk.stored().owned.get(container).is_some_and(|record| record.cidrs.contains(&cidr));
        if live && !again && !self.contested.contains(&addr) && !self.plan.conflicts {
            panic!("host {}: {container} loses {cidr}: {error}", id.0);
        }
    }
}

impl Member {
    /// Collects the addresses on the disk that no container uses.
    pub(super) fn find_orphans(&mut self) {
        self.orphans.clear();
        for (container, record) in &self.disk.stored().owned {
            for cidr in &record.cidrs {
                let addr = number_of(cidr.addr());
                if !self.containers.get(container).is_some_and(|c| c.addrs.contains(&addr)) {
                    self.orphans.insert((container.clone(), addr));
                }
            }
        }
    }
}

pub(super) fn number_of(addr: IpAddr) -> u32 {
    match addr {
        IpAddr::V4(addr) => addr.into(),
        IpAddr::V6(_) => 0,
    }
}

pub(super) fn show(addr: u32) -> String {
    std::net::Ipv4Addr::from(addr).to_string()
}
