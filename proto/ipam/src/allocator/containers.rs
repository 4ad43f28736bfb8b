//! Start and end of containers (docs/spec/ipam.md 8.7).

use std::collections::BTreeSet;

use weave_types::{Cidr, Now};

use super::{Allocator, GRACE, LATE_GRACE};
use crate::address::ipv4;
use crate::output::Event;
use crate::owned::Container;

impl Allocator {
    /// A container was started: it keeps its addresses.
    pub fn handle_container_started(&mut self, container: &str, now: Now) {
        self.release_at.remove(container);
        self.finish(now);
    }

    /// A container has stopped. Its requests are cancelled, and its addresses are released after 30 seconds unless it
    /// starts again.
    pub fn handle_container_died(&mut self, container: &str, now: Now) {
        self.cancel_of(container);
        if self.owned.record(container).is_some_and(|record| record.is_container) {
            // Docker may report the end of a container twice.
            self.release_at.entry(container.to_owned()).or_insert(now.mono + GRACE);
        }
        self.finish(now);
    }

    /// A container was removed: its addresses are released immediately.
    pub fn handle_container_destroyed(&mut self, container: &str, now: Now) {
        self.cancel_of(container);
        if self.owned.record(container).is_some_and(|record| record.is_container) {
            self.release_of(container);
        }
        self.finish(now);
    }

    /// Records addresses of `from` under `to`, which is another name of the container that uses them.
    pub fn reassign(&mut self, from: &str, to: &str, cidrs: &[Cidr], now: Now) {
        let Some(is_container) = self.owned.record(from).map(|record| record.is_container) else { return };
        for &cidr in cidrs {
            if let Some(addr) = ipv4(cidr)
                && self.owned.remove(from, addr)
            {
                self.owned.add(to, cidr, is_container);
            }
        }
        // Both exist after a crash in between, and a stored address is read only once.
        self.save_owned(to);
        self.save_owned(from);
        self.finish(now);
    }

    /// Releases the addresses of all containers that are not running. Called once after launch.
    pub fn prune(&mut self, running: &BTreeSet<Container>, now: Now) {
        let gone: Vec<Container> = self
            .owned
            .records()
            .iter()
            .filter(|(id, record)| record.is_container && !running.contains(*id))
            .map(|(id, _)| id.clone())
            .collect();
        for container in gone {
            self.release_of(&container);
        }
        // Containers whose stored addresses still have to be claimed.
        let background: BTreeSet<Container> = self
            .claims
            .iter()
            .filter(|c| c.request.is_none() && c.is_container && !running.contains(&c.container))
            .map(|c| c.container.clone())
            .collect();
        for container in background {
            self.release_of(&container);
        }
        self.finish(now);
    }

    pub(super) fn release_dead(&mut self, now: Now) {
        for at in self.release_at.values_mut().filter(|at| at.is_handled_late(now.mono)) {
            // The container may have started again while this machine was asleep or busy.
            *at = now.mono + LATE_GRACE;
        }
        let long_dead: Vec<Container> = self
            .release_at
            .iter()
            .filter(|&(_, &at)| at <= now.mono)
            .map(|(container, _)| container.clone())
            .collect();
        for container in long_dead {
            self.release_at.remove(&container);
            self.release_of(&container);
        }
    }

    fn release_of(&mut self, container: &str) {
        if let Some(cidrs) = self.release_all(container) {
            self.event(Event::Released { container: container.to_owned(), cidrs });
        }
    }

    fn cancel_of(&mut self, container: &str) {
        self.cancel_allocations(|allocation| allocation.container == container);
        self.cancel_claims(|claim| claim.request.is_some() && claim.container == container);
        if self.drop_background_claims(container, None) {
            self.save_owned(container);
        }
    }
}
