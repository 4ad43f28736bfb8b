//! Requests for any address of a subnet (docs/spec/ipam.md 8.4), and releases (8.6).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weave_types::{Cidr, Instant, Now};

use super::Allocator;
use crate::address::{Subnet, ipv4};
use crate::output::{Answer, Cancelled, Container, Event, NO_ID, ReleaseError, RequestError, RequestId};
use crate::owned::Record;
use crate::space::RangeSet;

/// A request that waits.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Allocation {
    pub(super) request: RequestId,
    pub(super) container: Container,
    pub(super) subnet: Subnet,
    pub(super) is_container: bool,
    pub(super) since: Instant,
    /// It has been said that it waits.
    pub(super) announced: bool,
}

impl Allocator {
    /// Asks for an address of `subnet` for a container: that which it has there, or a new one. Answered by
    /// [`Output::Done`](crate::Output::Done) with [`Answer::Allocated`], maybe much later. `is_container`: the
    /// container's death releases it.
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
                        self.establish(now);
                    } else {
                        self.ask_for(subnet.range());
                    }
                }
            }
        }
        self.finish(now);
    }

    /// The answer, if there is one without the help of others.
    fn try_allocate(&mut self, allocation: &Allocation) -> Option<Result<Answer, RequestError>> {
        let Allocation { container, subnet, is_container, .. } = allocation;
        let subnet = *subnet;
        if container != NO_ID {
            let has = self.owned.record(container).and_then(|record| {
                let addrs = record.cidrs.iter().filter_map(|&cidr| ipv4(cidr));
                addrs.into_iter().find(|&addr| subnet.range().contains(addr))
            });
            if let Some(addr) = has {
                self.dead.remove(container);
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
        self.file(container, cidr, *is_container);
        self.asks.progress(subnet.range());
        Some(answer)
    }

    /// Writes down who has an address. Without an id it is filed under itself.
    pub(super) fn file(&mut self, container: &str, cidr: Cidr, is_container: bool) {
        let own_name = cidr.addr().to_string();
        let container = if container == NO_ID { &own_name } else { container };
        self.owned.add(container, cidr, is_container);
        self.save_owned(container);
        if let Some(addr) = ipv4(cidr) {
            self.touch(addr);
        }
    }

    pub(super) fn retry_allocations(&mut self, _now: Now) {
        let mut without = BTreeSet::new();
        for allocation in std::mem::take(&mut self.allocations) {
            // Of those that want the same, the first one that fails speaks for all; but one may have what it wants.
            match self.try_allocate(&allocation) {
                Some(result) => self.done(allocation.request, result),
                None => {
                    without.insert(allocation.subnet.range());
                    self.allocations.push_back(allocation);
                }
            }
        }
        for range in without {
            self.ask_for(range);
        }
    }

    /// Says of those that have waited for a tick that they do.
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

    /// The container's addresses among the hosts of `subnet`. Never waits, changes nothing.
    pub fn lookup(&self, container: &str, subnet: Subnet) -> Vec<Cidr> {
        let hosts = subnet.hosts();
        let cidrs = self.owned.record(container).map(|record| record.cidrs.as_slice()).unwrap_or_default();
        cidrs.iter().copied().filter(|&c| ipv4(c).is_some_and(|addr| hosts.contains(addr))).collect()
    }

    /// Who has which addresses.
    pub fn owned(&self) -> &BTreeMap<Container, Record> {
        self.owned.records()
    }

    /// Releases one address.
    ///
    /// # Errors
    /// The container does not have it.
    pub fn free(&mut self, container: &str, addr: IpAddr, now: Now) -> Result<(), ReleaseError> {
        let number = match addr {
            IpAddr::V4(addr) => Some(u32::from(addr)),
            IpAddr::V6(_) => None,
        };
        let unasked = self.drop_unasked(container, number);
        let removed = number.is_some_and(|addr| self.owned.remove(container, addr));
        if removed || unasked {
            self.released(container, number.filter(|_| removed), now);
        }
        self.finish(now);
        if removed || unasked {
            return Ok(());
        }
        Err(ReleaseError::NotFound { container: container.to_owned(), addr })
    }

    /// Releases all addresses of a container.
    ///
    /// # Errors
    /// It has none.
    pub fn delete(&mut self, container: &str, now: Now) -> Result<(), ReleaseError> {
        let released = self.release_all(container, now).is_some();
        self.finish(now);
        if released { Ok(()) } else { Err(ReleaseError::NoAddresses(container.to_owned())) }
    }

    /// Releases what a container has; gives what that was.
    pub(super) fn release_all(&mut self, container: &str, now: Now) -> Option<Vec<Cidr>> {
        let unasked = self.drop_unasked(container, None);
        let record = self.owned.remove_all(container);
        if record.is_none() && !unasked {
            return None;
        }
        self.dead.remove(container);
        let cidrs = record.unwrap_or_default().cidrs;
        self.released(container, cidrs.iter().filter_map(|&cidr| ipv4(cidr)), now);
        Some(cidrs)
    }

    /// After addresses were taken off the books: stores that, makes them free, and serves who waits for them.
    fn released(&mut self, container: &str, addrs: impl IntoIterator<Item = u32>, now: Now) {
        self.save_owned(container);
        for addr in addrs {
            // Outside the range it is just forgotten.
            if self.space.release(addr) {
                self.touch(addr);
            }
        }
        if !self.allocations.is_empty() || !self.claims.is_empty() {
            self.retry(now);
        }
    }
}

fn cancelled(allocation: Allocation) -> RequestError {
    RequestError::Cancelled(Cancelled::Allocate(allocation.container))
}
