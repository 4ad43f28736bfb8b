//! Detects the end of containers. What a container is called does not tell: a name or a process that led to a namespace may be gone,
//! or lead to another one, while the namespace and its addresses are still in use. So a container has ended when nothing leads to it
//! and none of its addresses is in use on the bridge.

use std::collections::BTreeMap;
use std::time::Duration;

use weave_host::{Error, NamespaceId, NetNs};
use weave_ipam::Container;
use weave_runtime::ContainerState;
use weave_types::{Cidr, Instant, Now};

use super::inventory::Inventory;
use super::owner::{NamespaceRef, PORT, is_docker_id};

/// Interval between checks. It is shorter than the time for which the addresses of an ended container are kept.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The containers that have addresses, or have asked for some: those of `netns:` and `pid:`, for which there are no events, and
/// Docker's.
#[derive(Debug, Default)]
pub(crate) struct ContainerMonitor {
    containers: BTreeMap<Container, MonitoredContainer>,
    next: Option<Instant>,
}

#[derive(Debug, Default)]
struct MonitoredContainer {
    /// The namespace in which the container was last known to be.
    namespace: Option<NamespaceId>,
    /// The last report about a container of Docker.
    docker: Option<ContainerState>,
    status: Status,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Status {
    #[default]
    Present,
    /// Nothing leads to it, but its addresses are in use, or that is not known.
    Unreachable,
    Ended,
}

/// What became of a container of the monitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It has ended.
    Stopped(Container),
    /// It has been removed, and does not start again.
    Removed(Container),
    /// It has started again, or its addresses are in use after all.
    Started(Container),
    /// These addresses are in use by a container that is called differently.
    Renamed { from: Container, to: Container, cidrs: Vec<Cidr> },
}

impl ContainerMonitor {
    /// Monitors a container; those that are called otherwise are ignored.
    pub(crate) fn add(&mut self, container: &str) {
        let reference = NamespaceRef::of(container);
        if reference.is_none() && !is_docker_id(container) {
            return;
        }
        if self.containers.get(container).is_none_or(|c| c.status == Status::Ended) {
            let namespace = reference.and_then(|r| r.open().ok()).map(|ns| ns.id());
            self.containers.insert(
                container.to_owned(),
                MonitoredContainer { namespace, ..MonitoredContainer::default() },
            );
            if reference.is_some() {
                self.next.get_or_insert(Instant::ORIGIN);
            }
        }
    }

    /// Records the namespace in which a container is about to be attached. Returns whether it was in another one before.
    pub(crate) fn move_to(&mut self, container: &str, namespace: NamespaceId) -> bool {
        self.add(container);
        let Some(monitored) = self.containers.get_mut(container) else { return false };
        let before = monitored.namespace.replace(namespace);
        before.is_some_and(|before| before != namespace)
    }

    /// The monitored containers of `netns:` and `pid:` that were last known to be in this namespace.
    pub(crate) fn containers_in(&self, namespace: NamespaceId) -> Vec<Container> {
        let inside =
            self.containers.iter().filter(|(name, c)| c.namespace == Some(namespace) && !is_docker_id(name));
        inside.map(|(name, _)| name.clone()).collect()
    }

    /// Ends the monitoring of a container of Docker that has no address.
    pub(crate) fn forget_docker(&mut self, container: &str) {
        if is_docker_id(container) {
            self.containers.remove(container);
        }
    }

    /// Applies reports of Docker about its containers.
    pub(crate) fn set_docker_states(&mut self, states: Vec<(Container, ContainerState)>) {
        for (container, state) in states {
            if let Some(monitored) = self.containers.get_mut(&container) {
                monitored.docker = Some(state);
                self.next = Some(Instant::ORIGIN);
            }
        }
    }

    /// The monitored containers of Docker.
    pub(crate) fn docker_containers(&self) -> Vec<Container> {
        self.containers.keys().filter(|container| is_docker_id(container)).cloned().collect()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    pub(crate) fn is_due(&self, now: Now) -> bool {
        self.next.is_some_and(|at| at <= now.mono)
    }

    /// Checks all containers. `owned` tells their addresses; `scan` finds the addresses in use, and is called only if nothing leads to a
    /// container. One that has ended stays on the list until [`ContainerMonitor::retain`] removes it.
    pub(crate) fn check(
        &mut self,
        now: Now,
        owned: impl Fn(&str) -> Vec<Cidr>,
        scan: impl FnOnce() -> Option<Inventory>,
    ) -> Vec<Change> {
        let host = NetNs::current().ok().map(|ns| ns.id());
        let mut changes = Vec::new();
        let mut lost = Vec::new();
        let mut again = false;
        for (container, monitored) in &mut self.containers {
            match monitored.leads_to_it(container, host) {
                Some(true) => {
                    let before = std::mem::take(&mut monitored.status);
                    if before == Status::Ended {
                        changes.push(Change::Started(container.clone()));
                    }
                }
                Some(false) => lost.push(container.clone()),
                // In doubt it is there.
                None => {}
            }
            again |= NamespaceRef::of(container).is_some();
        }
        let inventory = if lost.iter().any(|container| !owned(container).is_empty()) { scan() } else { None };
        for container in lost {
            again = true;
            let cidrs = owned(&container);
            // Of an address in use the user is not known if the scan failed.
            let users = inventory.as_ref().map_or_else(BTreeMap::new, |i| i.users(&container, &cidrs));
            let in_use = !users.is_empty() || (inventory.is_none() && !cidrs.is_empty());
            let Some(monitored) = self.containers.get_mut(&container) else { continue };
            let before = monitored.status;
            monitored.status = if in_use { Status::Unreachable } else { Status::Ended };
            match (before, in_use) {
                (Status::Ended, true) => changes.push(Change::Started(container.clone())),
                (_, false) if monitored.docker == Some(ContainerState::Removed) => {
                    changes.push(Change::Removed(container.clone()));
                }
                (Status::Present | Status::Unreachable, false) => {
                    changes.push(Change::Stopped(container.clone()))
                }
                _ => {}
            }
            for (to, cidrs) in users {
                if to != container {
                    if !is_docker_id(&container) {
                        changes.push(Change::Renamed { from: container.clone(), to, cidrs });
                    }
                } else if !container.starts_with(PORT) {
                    // Its name leads to another namespace, to which it has been attached since.
                    monitored.namespace = None;
                    monitored.status = Status::Present;
                }
            }
        }
        self.next = again.then(|| now.mono + CHECK_INTERVAL);
        changes
    }

    /// Removes ended containers without an address, and those whose addresses are recorded under another name.
    pub(crate) fn retain(&mut self, has_address: impl Fn(&str) -> bool) {
        self.containers.retain(|container, c| c.status == Status::Present || has_address(container));
        if self.containers.is_empty() {
            self.next = None;
        }
    }

    /// Containers to which nothing leads any more, and what that means for their addresses.
    pub(crate) fn lost(&self) -> impl Iterator<Item = (&Container, &'static str)> {
        self.containers.iter().filter_map(|(container, monitored)| match monitored.status {
            Status::Present => None,
            Status::Ended => Some((container, "it has ended, and they are released 30 s later")),
            Status::Unreachable => Some((container, "it cannot be found, but an interface still uses them")),
        })
    }
}

impl MonitoredContainer {
    /// Whether its name still leads to it. `None`: not known.
    fn leads_to_it(&mut self, container: &str, host: Option<NamespaceId>) -> Option<bool> {
        let Some(reference) = NamespaceRef::of(container) else {
            return self
                .docker
                .map(|state| matches!(state, ContainerState::Running | ContainerState::Restarting));
        };
        match reference.open() {
            // The pid may belong to another process by now.
            Ok(ns) if matches!(reference, NamespaceRef::Pid(_)) && Some(ns.id()) == host => Some(false),
            Ok(ns) => Some(*self.namespace.get_or_insert(ns.id()) == ns.id()),
            Err(Error::NamespaceGone(_)) => Some(false),
            // The container may still exist.
            Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::inventory::InUse;

    fn at(seconds: u64) -> Now {
        let mono = Instant::from_origin(Duration::from_secs(seconds));
        Now { mono, wall: Duration::from_secs(seconds) }
    }

    /// A check in which each container has the address 10.32.0.1, and that address is in use by `user`.
    fn check(monitor: &mut ContainerMonitor, seconds: u64, user: Option<&str>) -> Vec<Change> {
        let cidrs = vec!["10.32.0.1/12".parse().unwrap()];
        let in_use = user.map(|user| InUse { cidrs: cidrs.clone(), ..InUse::new(user) });
        let inventory = Inventory::of(in_use.into_iter().collect());
        monitor.check(at(seconds), |_| cidrs.clone(), || Some(inventory))
    }

    #[test]
    fn the_end_of_a_namespace_is_reported_once() {
        let mut monitor = ContainerMonitor::default();
        for container in ["weave:expose", "c1", "0123456789ab", "pid:x", "10.32.0.5"] {
            monitor.add(container);
        }
        assert_eq!(monitor.poll_timeout(), None);
        monitor.add("netns:weave-no-such-namespace");
        assert!(monitor.is_due(at(0)));
        let gone = Change::Stopped("netns:weave-no-such-namespace".to_owned());
        assert_eq!(check(&mut monitor, 1, None), std::slice::from_ref(&gone));
        assert_eq!(check(&mut monitor, 6, None), []);
        assert!(!monitor.is_due(at(7)) && monitor.is_due(at(11)));
        // A container that requests an address again is monitored again.
        monitor.add("netns:weave-no-such-namespace");
        assert_eq!(check(&mut monitor, 12, None), [gone]);
        monitor.retain(|_| false);
        assert_eq!(monitor.poll_timeout(), None);
    }

    #[test]
    fn a_process_of_the_host_is_no_container() {
        let mut monitor = ContainerMonitor::default();
        let container = format!("pid:{}", std::process::id());
        monitor.add(&container);
        assert_eq!(check(&mut monitor, 1, None), [Change::Stopped(container)]);
    }

    #[test]
    fn addresses_in_use_outlive_the_name_of_their_container() {
        let mut monitor = ContainerMonitor::default();
        let from = "netns:weave-no-such-namespace".to_owned();
        monitor.add(&from);
        let cidrs = vec!["10.32.0.1/12".parse().unwrap()];
        let renamed = Change::Renamed { from: from.clone(), to: "pid:7".to_owned(), cidrs: cidrs.clone() };
        assert_eq!(check(&mut monitor, 1, Some("pid:7")), [renamed]);
        // The addresses in use are not known.
        assert_eq!(monitor.check(at(6), |_| cidrs.clone(), || None), []);
        assert_eq!(monitor.lost().count(), 1);
        assert_eq!(check(&mut monitor, 11, None), [Change::Stopped(from.clone())]);
        assert_eq!(check(&mut monitor, 16, Some(&from)), [Change::Started(from.clone())]);
        monitor.retain(|_| false);
        assert_eq!(monitor.docker_containers(), Vec::<String>::new());
    }

    #[test]
    fn a_container_that_stays_in_its_namespace_is_not_moved() {
        let mut monitor = ContainerMonitor::default();
        let own = NetNs::current().unwrap().id();
        let path = "netns:/proc/self/ns/net";
        assert!(!monitor.move_to(path, own), "known for the first time");
        assert!(!monitor.move_to(path, own));
        assert_eq!(check(&mut monitor, 1, Some("pid:7")), []);
    }

    #[test]
    fn containers_of_docker_end_when_docker_says_so() {
        let mut monitor = ContainerMonitor::default();
        let id = "a".repeat(64);
        monitor.add(&id);
        assert_eq!((monitor.poll_timeout(), monitor.docker_containers()), (None, vec![id.clone()]));
        let report = |monitor: &mut ContainerMonitor, state, seconds, user| {
            monitor.set_docker_states(vec![(id.clone(), state), ("b".repeat(64), state)]);
            assert!(monitor.is_due(at(seconds)));
            check(monitor, seconds, user)
        };
        assert_eq!(report(&mut monitor, ContainerState::Running, 1, None), []);
        assert_eq!(monitor.poll_timeout(), None);
        assert_eq!(
            report(&mut monitor, ContainerState::Stopped, 2, Some("pid:7")),
            [],
            "its network is shared"
        );
        assert!(monitor.is_due(at(7)), "looked at again");
        assert_eq!(check(&mut monitor, 7, None), [Change::Stopped(id.clone())]);
        assert_eq!(report(&mut monitor, ContainerState::Running, 8, None), [Change::Started(id.clone())]);
        // Docker may wait for a minute before it starts the container again.
        assert_eq!(report(&mut monitor, ContainerState::Restarting, 9, None), []);
        assert_eq!((monitor.poll_timeout(), check(&mut monitor, 100, None)), (None, vec![]));
        assert_eq!(report(&mut monitor, ContainerState::Stopped, 101, None), [Change::Stopped(id.clone())]);
        assert_eq!(
            report(&mut monitor, ContainerState::Restarting, 102, None),
            [Change::Started(id.clone())]
        );
        assert_eq!(report(&mut monitor, ContainerState::Removed, 103, None), [Change::Removed(id.clone())]);
    }
}
