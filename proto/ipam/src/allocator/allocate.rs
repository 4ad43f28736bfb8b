//! Requests for any free address of a subnet (docs/spec/ipam.md 8.4), and releases (8.6).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weave_types::{Cidr, Instant, Now};

use super::Allocator;
use crate::address::{Subnet, ipv4};
use crate::output::{Answer, Cancelled, Event, NO_ID, ReleaseError, RequestError, RequestId};
use crate::owned::{Container, Record};
use crate::space::RangeSet;

/// A request that waits for space.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Allocation {
    pub(super) request: RequestId,
    pub(super) container: Container,
    pub(super) subnet: Subnet,
    pub(super) is_container: bool,
    pub(super) since: Instant,
    /// An [`Event::Waiting`] was emitted for it.
    pub(super) announced: bool,
}

impl Allocator {
    /// Requests an address of `subnet` for a container: the one that it already has there, or a free one. The answer
    /// is an [`Output::Done`](crate::Output::Done) with [`Answer::Allocated`], possibly much later. `is_container`:
    /// the address is released when the container dies.
    pub fn allocate(
        &mut self,
        request: RequestId,
        container: Container,
        subnet: Subnet,
        is_container: bool,
        now: Now,
    ) {
        let allocation =
            Allocation { request, container, subnet, is_container, since: now.mono, announced: false };
        if self.leaving {
            self.done(request, Err(cancelled(allocation)));
        } else {
            match self.try_allocate(&allocation) {
                Some(result) => self.done(request, result),
                None => {
                    self.allocations.push_back(allocation);
                    if self.ring.is_empty() {
                        self.start_election(now);
                    } else {
                        self.request_space(subnet.range());
                    }
                }
            }
        }
        self.finish(now);
    }

    /// The answer, or `None` if space of another peer is needed.
    fn try_allocate(&mut self, allocation: &Allocation) -> Option<Result<Answer, RequestError>> {
        let Allocation { container, subnet, is_container, .. } = allocation;
        let subnet = *subnet;
        if container != NO_ID {
            let existing = self.owned.record(container).and_then(|record| {
                let addrs = record.cidrs.iter().filter_map(|&cidr| ipv4(cidr));
                addrs.into_iter().find(|&addr| subnet.range().contains(addr))
            });
            if let Some(addr) = existing {
                self.release_at.remove(container);
                return Some(Ok(Answer::Allocated(subnet.with_host(addr))));
            }
        }
        if !subnet.range().overlaps(self.config.range.range()) {
            return Some(Err(RequestError::OutOfBounds { subnet, range: self.config.range }));
        }
        let avoid = if self.config.policy.use_disputed { &RangeSet::default() } else { &self.disputed };
        let addr = self.space.allocate(subnet.hosts(), avoid)?;
        let cidr = subnet.with_host(addr);
        let answer = Ok(Answer::Allocated(cidr));
        self.record_address(container, cidr, *is_container);
        self.space_requests.satisfied(subnet.range());
        Some(answer)
    }

    /// Records and stores the owner of an address. An address without a container id is recorded under its own text.
    pub(super) fn record_address(&mut self, container: &str, cidr: Cidr, is_container: bool) {
        let addr_text = cidr.addr().to_string();
        let container = if container == NO_ID { &addr_text } else { container };
        self.owned.add(container, cidr, is_container);
        self.save_owned(container);
        if let Some(addr) = ipv4(cidr) {
            self.mark_free_count_stale(addr);
        }
    }

    pub(super) fn retry_allocations(&mut self) {
        let mut unserved = BTreeSet::new();
        for allocation in std::mem::take(&mut self.allocations) {
            // A container that already has an address is answered even if an earlier request for the same subnet
            // failed.
            match self.try_allocate(&allocation) {
                Some(result) => self.done(allocation.request, result),
                None => {
                    unserved.insert(allocation.subnet.range());
                    self.allocations.push_back(allocation);
                }
            }
        }
        for range in unserved {
            self.request_space(range);
        }
    }

    /// Emits an event for each request that has waited for a tick.
    pub(super) fn announce_waiting(&mut self, now: Now) {
        for index in 0..self.allocations.len() {
            let allocation = &mut self.allocations[index];
            if !std::mem::replace(&mut allocation.announced, true) {
                let (request, waited) = (allocation.request, now.mono - allocation.since);
                self.event(Event::Waiting { request, waited });
            }
        }
    }

    pub(super) fn cancel_allocations(&mut self, which: impl Fn(&Allocation) -> bool) {
        if !self.allocations.iter().any(&which) {
            return;
        }
        let (cancel, keep) = std::mem::take(&mut self.allocations).into_iter().partition(which);
        self.allocations = keep;
        for allocation in cancel {
            self.done(allocation.request, Err(cancelled(allocation)));
        }
    }

    /// The container's addresses in the host range of `subnet`.
    pub fn lookup(&self, container: &str, subnet: Subnet) -> Vec<Cidr> {
        let hosts = subnet.hosts();
        let cidrs = self.owned.record(container).map(|record| record.cidrs.as_slice()).unwrap_or_default();
        cidrs.iter().copied().filter(|&c| ipv4(c).is_some_and(|addr| hosts.contains(addr))).collect()
    }

    /// The addresses of all containers of this host.
    pub fn owned(&self) -> &BTreeMap<Container, Record> {
        self.owned.records()
    }

    /// Releases one address of a container.
    ///
    /// # Errors
    /// The container does not have the address.
    pub fn free(&mut self, container: &str, addr: IpAddr, now: Now) -> Result<(), ReleaseError> {
        let number = match addr {
            IpAddr::V4(addr) => Some(u32::from(addr)),
            IpAddr::V6(_) => None,
        };
        let background = self.drop_background_claims(container, number);
        let removed = number.is_some_and(|addr| self.owned.remove(container, addr));
        if removed || background {
            self.released(container, number.filter(|_| removed));
        }
        self.finish(now);
        if removed || background {
            return Ok(());
        }
        Err(ReleaseError::NotFound { container: container.to_owned(), addr })
    }

    /// Releases all addresses of a container.
    ///
    /// # Errors
    /// The container has no address.
    pub fn delete(&mut self, container: &str, now: Now) -> Result<(), ReleaseError> {
        let released = self.release_all(container).is_some();
        self.finish(now);
        if released { Ok(()) } else { Err(ReleaseError::NoAddresses(container.to_owned())) }
    }

    /// Releases all addresses of a container and returns them.
    pub(super) fn release_all(&mut self, container: &str) -> Option<Vec<Cidr>> {
        let background = self.drop_background_claims(container, None);
        let record = self.owned.remove_all(container);
        if record.is_none() && !background {
            return None;
        }
        self.release_at.remove(container);
        let cidrs = record.unwrap_or_default().cidrs;
        self.released(container, cidrs.iter().filter_map(|&cidr| ipv4(cidr)));
        Some(cidrs)
    }

    /// Finishes a release: stores it, adds the addresses to the free space, and retries waiting requests.
    fn released(&mut self, container: &str, addrs: impl IntoIterator<Item = u32>) {
        self.save_owned(container);
        for addr in addrs {
            // An address outside the range does not belong to the space.
            if self.space.release(addr) {
                self.mark_free_count_stale(addr);
            }
        }
        if !self.allocations.is_empty() || !self.claims.is_empty() {
            self.retry();
        }
    }
}

fn cancelled(allocation: Allocation) -> RequestError {
    RequestError::Cancelled(Cancelled::Allocate(allocation.container))
}
