//! The life of containers (docs/spec/ipam.md 8.7).

use std::collections::BTreeSet;

use weave_types::Now;

use super::{Allocator, GRACE};
use crate::output::{Container, Event};

impl Allocator {
    /// A container runs (again): it keeps its addresses.
    pub fn handle_container_started(&mut self, container: &str, now: Now) {
        self.dead.remove(container);
        self.finish(now);
    }

    /// A container has ended: its requests are cancelled, its addresses released in 30 seconds unless it starts again.
    pub fn handle_container_died(&mut self, container: &str, now: Now) {
        self.cancel_of(container);
        if self.owned.record(container).is_some_and(|record| record.is_container) {
            // Docker may tell it twice.
            self.dead.entry(container.to_owned()).or_insert(now.mono);
        }
        self.finish(now);
    }

    /// A container is gone for good: its addresses are released.
    pub fn handle_container_destroyed(&mut self, container: &str, now: Now) {
        self.cancel_of(container);
        if self.owned.record(container).is_some_and(|record| record.is_container) {
            self.release_of(container, now);
        }
        self.finish(now);
    }

    /// Releases the addresses of all containers but those that run: once after launch.
    pub fn prune(&mut self, running: &BTreeSet<Container>, now: Now) {
        let gone: Vec<Container> = self
            .owned
            .records()
            .iter()
            .filter(|(id, record)| record.is_container && !running.contains(*id))
            .map(|(id, _)| id.clone())
            .collect();
        for container in gone {
            self.release_of(&container, now);
        }
        // Those whose addresses are still to be claimed again.
        let unasked: BTreeSet<Container> = self
            .claims
            .iter()
            .filter(|c| c.request.is_none() && c.is_container && !running.contains(&c.container))
            .map(|c| c.container.clone())
            .collect();
        for container in unasked {
            self.release_of(&container, now);
        }
        self.finish(now);
    }

    pub(super) fn release_dead(&mut self, now: Now) {
        let long_dead: Vec<Container> = self
            .dead
            .iter()
            .filter(|&(_, &died)| now.mono - died >= GRACE)
            .map(|(container, _)| container.clone())
            .collect();
        for container in long_dead {
            self.dead.remove(&container);
            self.release_of(&container, now);
        }
    }

    fn release_of(&mut self, container: &str, now: Now) {
        if let Some(cidrs) = self.release_all(container, now) {
            self.event(Event::Released { container: container.to_owned(), cidrs });
        }
    }

    fn cancel_of(&mut self, container: &str) {
        self.cancel_allocations(|allocation| allocation.container == container);
        self.cancel_claims(|claim| claim.request.is_some() && claim.container == container);
        if self.drop_unasked(container, None) {
            self.save_owned(container);
        }
    }
}
