//! The ledger: what each request was answered, who uses which address, and what must hold then.

use std::net::IpAddr;
use std::time::Duration;

use weave_ipam::{Answer, Cancelled, NO_ID, Persist, RequestError, RequestId, Ring, Subnet};
use weave_types::{Cidr, Instant};

use super::host::Host;
use super::violation;
use super::world::World;
use crate::net::HostId;

/// A container that is dead for so long may lose its addresses (docs/spec/ipam.md 8.7).
const GRACE: Duration = Duration::from_secs(30);

/// What somebody waits for.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) host: HostId,
    pub(super) what: Ask,
    pub(super) since: Instant,
    /// It may be answered "cancelled".
    pub(super) cancelled: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ask {
    Allocate(String, Subnet),
    Claim(String, u32),
    Prime,
}

impl World {
    /// A request is answered.
    pub(super) fn answered(&mut self, id: HostId, number: RequestId, result: Result<Answer, RequestError>) {
        let Some(request) = self.requests.remove(&number).filter(|request| request.host == id) else {
            violation!("host {}: {number:?} is answered, and nobody waits: {result:?}", id.0);
        };
        match (request.what.clone(), result) {
            (Ask::Allocate(container, subnet), Ok(Answer::Allocated(cidr))) => {
                self.allocated(id, container, subnet, cidr);
            }
            (Ask::Claim(container, addr), Ok(Answer::Claimed { settled: true })) => {
                if self.range_of(id).range().contains(addr) {
                    self.take(id, container, addr);
                }
            }
            (Ask::Claim(container, addr), Ok(Answer::Claimed { settled: false })) => {
                self.host_mut(id).unsettled.insert((container, addr));
            }
            (Ask::Prime, Ok(Answer::Primed)) if self.host(id).is_ready() => {}
            (_, Err(RequestError::Cancelled(what))) if request.cancelled => {
                let right = match (&request.what, &what) {
                    (Ask::Allocate(a, _), Cancelled::Allocate(b)) => a == b,
                    (Ask::Claim(a, addr), Cancelled::Claim(b, cidr)) => {
                        a == b && number_of(cidr.addr()) == *addr
                    }
                    (Ask::Prime, Cancelled::Prime) => true,
                    _ => false,
                };
                if !right {
                    violation!("host {}: {request:?} is answered with {what:?}", id.0);
                }
            }
            (Ask::Allocate(_, subnet), Err(RequestError::OutOfBounds { .. }))
                if !subnet.range().overlaps(self.range_of(id).range()) => {}
            (Ask::Claim(container, addr), Err(error)) => self.refused(id, &request, &container, addr, &error),
            (what, result) => violation!("host {}: {what:?} is answered with {result:?}", id.0),
        }
    }

    fn allocated(&mut self, id: HostId, container: String, subnet: Subnet, cidr: Cidr) {
        let addr = number_of(cidr.addr());
        let host = self.host(id);
        let known = (container.clone(), addr);
        let had = host.containers.get(&container).is_some_and(|c| c.addrs.contains(&addr))
            || host.orphans.contains(&known)
            || host.unsettled.contains(&known);
        if !self.range_of(id).range().contains(addr) {
            // Outside the range it has what it claimed there.
            let claimed = host
                .disk
                .stored()
                .owned
                .get(&container)
                .is_some_and(|record| record.cidrs.iter().any(|cidr| number_of(cidr.addr()) == addr));
            if !claimed {
                violation!("host {}: {cidr} is given out, outside the range", id.0);
            }
            return;
        }
        let range = if had { subnet.range() } else { subnet.hosts() };
        if !range.contains(addr) || cidr.prefix() != subnet.prefix() {
            violation!("host {}: {cidr} is no address of a host of {subnet}", id.0);
        }
        let other = host.containers.get(&container).and_then(|c| {
            c.addrs.iter().copied().find(|&other| container != NO_ID && subnet.range().contains(other))
        });
        if other.is_some() && !had {
            violation!("host {}: {container} gets {cidr}, and has {other:?}", id.0);
        }
        let now = self.now(id);
        let status = host.allocator.as_ref().filter(|_| !had && !host.legacy).map(|a| a.status(now));
        let in_doubt = |status: &weave_ipam::Status| {
            status.conflicts.iter().flat_map(|conflict| &conflict.disputed).any(|range| range.contains(addr))
        };
        if status.as_ref().is_some_and(in_doubt) {
            violation!("host {}: {cidr} is given out, and is in doubt: {:?}", id.0, status);
        }
        let (name, view) = (host.name, host.disk.stored().ring.as_ref());
        if view.and_then(|ring| ring.owner_of(addr)) != Some(name) {
            violation!("host {}: {cidr} is given out, and is not ours on the disk: {view:?}", id.0);
        }
        let container = if container == NO_ID { cidr.addr().to_string() } else { container };
        self.take(id, container, addr);
    }

    /// Somebody uses an address from now on.
    pub(super) fn take(&mut self, id: HostId, container: String, addr: u32) {
        let host = self.host(id);
        if !host
            .disk
            .stored()
            .owned
            .get(&container)
            .is_some_and(|record| record.cidrs.iter().any(|cidr| number_of(cidr.addr()) == addr))
        {
            violation!("host {}: {} of {container} is not on the disk", id.0, show(addr));
        }
        let host = self.host_mut(id);
        host.orphans.remove(&(container.clone(), addr));
        host.unsettled.remove(&(container.clone(), addr));
        let living = host.containers.entry(container.clone()).or_default();
        living.addrs.insert(addr);
        if container == show(addr) {
            living.running = true;
        }
        let users = self.ledger.entry(addr).or_default();
        users.insert((id, container));
        if users.len() > 1 && !self.contested.contains(&addr) {
            violation!("{} is used twice: {users:?}", show(addr));
        }
        self.last_used.insert(addr, self.clock);
    }

    /// Somebody no longer uses it.
    pub(super) fn give_back(&mut self, id: HostId, container: &str, addr: u32) {
        if let Some(living) = self.host_mut(id).containers.get_mut(container) {
            living.addrs.remove(&addr);
        }
        if let Some(users) = self.ledger.get_mut(&addr) {
            if users.remove(&(id, container.to_owned())) {
                self.last_used.insert(addr, self.clock);
            }
            if users.is_empty() {
                self.ledger.remove(&addr);
            }
        }
    }

    /// All containers of a host are gone.
    pub(super) fn lose_containers(&mut self, id: HostId) {
        for (container, living) in std::mem::take(&mut self.host_mut(id).containers) {
            for addr in living.addrs {
                self.give_back(id, &container, addr);
            }
        }
    }

    /// Of a container that does not run: addresses that its peer does not know, or was still trying to claim.
    pub(super) fn drop_unknown(&mut self, id: HostId) {
        let host = self.host(id);
        let Some(allocator) = &host.allocator else { return };
        let books = allocator.owned();
        let on_the_books = |container: &String, addr: u32| {
            let cidrs = books.get(container).map(|record| record.cidrs.as_slice()).unwrap_or_default();
            cidrs.iter().any(|cidr| number_of(cidr.addr()) == addr)
        };
        let stopped = host.containers.iter().filter(|(_, c)| c.is_container && !c.running);
        let lost: Vec<(String, u32)> = stopped
            .flat_map(|(id, c)| c.addrs.iter().map(|&addr| (id.clone(), addr)))
            .filter(|(id, addr)| !on_the_books(id, *addr))
            .collect();
        for (container, addr) in lost {
            self.give_back(id, &container, addr);
        }
    }

    /// What a peer stores about a container tells that addresses were released: only of those that are dead.
    pub(super) fn released_by(&mut self, id: HostId, persist: &Persist) {
        let Persist::Owned { container, record } = persist else { return };
        let kept: Vec<u32> =
            record.iter().flat_map(|record| record.cidrs.iter().map(|cidr| number_of(cidr.addr()))).collect();
        let (clock, grace) = (self.clock, self.host(id).time.at_least(GRACE));
        let Some(living) = self.host(id).containers.get(container) else { return };
        let lost: Vec<u32> = living.addrs.iter().copied().filter(|addr| !kept.contains(addr)).collect();
        let dead = living.gone || living.died.is_some_and(|died| clock - died >= grace);
        for addr in lost {
            // What is not known here yet after the disk was lost is not released.
            let known = self
                .host(id)
                .disk
                .stored()
                .owned
                .get(container)
                .is_some_and(|record| record.cidrs.iter().any(|cidr| number_of(cidr.addr()) == addr));
            if known && !dead && !self.contested.contains(&addr) {
                violation!("host {}: {} of {container} is released: {persist:?}", id.0, show(addr));
            }
            if known || dead {
                self.give_back(id, container, addr);
            }
        }
    }

    fn refused(&mut self, id: HostId, request: &Request, who: &str, addr: u32, error: &RequestError) {
        let host = self.host(id);
        let others = |host: &Host| {
            let used = host.containers.iter().any(|(id, c)| id != who && c.addrs.contains(&addr));
            used || host.orphans.iter().chain(&host.unsettled).any(|(id, a)| id != who && *a == addr)
        };
        let right = match error {
            RequestError::InUse { .. } | RequestError::Owned { .. } => {
                others(host) || !self.range_of(id).range().contains(addr)
            }
            RequestError::OtherPeer { unreachable: true, .. } => {
                self.clock - request.since >= host.time.at_least(Duration::from_secs(20))
            }
            // 2.8.1 takes a denial of a whole subnet for an answer to every claim in it (`Policy::denial_fails_all_claims`).
            RequestError::OtherPeer { unreachable: false, .. } if self.host(id).legacy => true,
            RequestError::OtherPeer { peer, unreachable: false, .. } => match self.of_name(*peer) {
                Some(owner) if !self.host(owner).legacy && owner != id => {
                    let host = self.host(owner);
                    let recently = self.last_used.get(&addr).is_some_and(|&at| at >= request.since);
                    let owns = host.view().is_some_and(|ring| ring.owner_of(addr) == Some(*peer));
                    let idle = !recently
                        && !self.ledger.contains_key(&addr)
                        && !host.orphans.iter().chain(&host.unsettled).any(|(_, a)| *a == addr);
                    !(owns && idle && self.runs(owner) && !host.leaving)
                        || self.plan.conflicts
                        || host.started >= request.since
                }
                _ => true,
            },
            _ => false,
        };
        // Only the owner can tell; of 2.8.1 anybody may. One input of a node may hold an answer and then a newer ring.
        let named = match error {
            RequestError::OtherPeer { peer, .. } if !host.legacy => {
                let owns = |ring: &Ring| ring.owner_of(addr) == Some(*peer);
                host.view().is_none_or(owns) || host.before.as_ref().is_some_and(owns)
            }
            _ => true,
        };
        if !right || !named {
            violation!("host {}: {who} is refused {}: {error}", id.0, show(addr));
        }
    }

    /// Something in use was claimed in vain.
    pub(super) fn preclaim_failed(&mut self, id: HostId, container: &str, cidr: Cidr, error: &RequestError) {
        let addr = number_of(cidr.addr());
        let host = self.host_mut(id);
        host.unsettled.remove(&(container.to_owned(), addr));
        host.orphans.remove(&(container.to_owned(), addr));
        let live = host.containers.get(container).is_some_and(|c| c.addrs.contains(&addr));
        let again =
            host.disk.stored().owned.get(container).is_some_and(|record| record.cidrs.contains(&cidr));
        if live && !again && !self.contested.contains(&addr) && !self.plan.conflicts {
            violation!("host {}: {container} loses {cidr}: {error}", id.0);
        }
    }
}

impl Host {
    /// What is on the disk and nobody knows of: of containers that were never told, or are dead.
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

/// An IPv4 address as a number.
pub(super) fn number_of(addr: IpAddr) -> u32 {
    match addr {
        IpAddr::V4(addr) => addr.into(),
        IpAddr::V6(_) => 0,
    }
}

pub(super) fn show(addr: u32) -> String {
    std::net::Ipv4Addr::from(addr).to_string()
}
