//! Detects the end of containers that are only a namespace or a process, since there are no events for them.

use std::collections::BTreeMap;
use std::time::Duration;

use weave_host::{Error, NamespaceId, NetNs};
use weave_ipam::Container;
use weave_types::{Instant, Now};

/// Interval between checks. It is shorter than the time for which the addresses of an ended container are kept.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The containers of `netns:` and `pid:` that have addresses, or have asked for some.
#[derive(Debug, Default)]
pub(crate) struct ContainerMonitor {
    containers: BTreeMap<Container, MonitoredContainer>,
    next: Option<Instant>,
}

#[derive(Debug)]
struct MonitoredContainer {
    /// The namespace in which the container was first found.
    namespace: Option<NamespaceId>,
    gone: bool,
}

/// A container of the monitor has stopped, or has started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Stopped(Container),
    Started(Container),
}

impl ContainerMonitor {
    /// Monitors a container; those other than `netns:` and `pid:` are ignored.
    pub(crate) fn add(&mut self, container: &str) {
        if let Some(reference) = NamespaceRef::of(container)
            && self.containers.get(container).is_none_or(|w| w.gone)
        {
            let namespace = reference.open().ok().map(|ns| ns.id());
            self.containers.insert(container.to_owned(), MonitoredContainer { namespace, gone: false });
            self.next.get_or_insert(Instant::ORIGIN);
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    pub(crate) fn is_due(&self, now: Now) -> bool {
        self.next.is_some_and(|at| at <= now.mono)
    }

    /// Checks all containers. A stopped one stays on the list until [`ContainerMonitor::retain`] removes it.
    pub(crate) fn check(&mut self, now: Now) -> Vec<Change> {
        let host = NetNs::current().ok().map(|ns| ns.id());
        let mut changes = Vec::new();
        for (container, watched) in &mut self.containers {
            let Some(reference) = NamespaceRef::of(container) else { continue };
            let gone = match reference.open() {
                Ok(ns) => match reference {
                    // The pid may belong to another process by now.
                    NamespaceRef::Pid(_) => {
                        Some(ns.id()) == host || watched.namespace.is_some_and(|known| known != ns.id())
                    }
                    NamespaceRef::Named(_) => false,
                },
                // With any other error the container may still exist, so its addresses must not be released.
                Err(error) => matches!(error, Error::NamespaceGone(_)),
            };
            if gone != watched.gone {
                watched.gone = gone;
                let container = container.clone();
                changes.push(if gone { Change::Stopped(container) } else { Change::Started(container) });
            }
        }
        self.next = (!self.containers.is_empty()).then(|| now.mono + CHECK_INTERVAL);
        changes
    }

    /// Removes stopped containers without an address.
    pub(crate) fn retain(&mut self, has_address: impl Fn(&str) -> bool) {
        self.containers.retain(|container, watched| !watched.gone || has_address(container));
        if self.containers.is_empty() {
            self.next = None;
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) enum NamespaceRef<'a> {
    Named(&'a str),
    Pid(u32),
}

impl NamespaceRef<'_> {
    pub(crate) fn of(container: &str) -> Option<NamespaceRef<'_>> {
        if let Some(name) = container.strip_prefix("netns:") {
            return Some(NamespaceRef::Named(name));
        }
        container.strip_prefix("pid:")?.parse().ok().map(NamespaceRef::Pid)
    }

    pub(crate) fn open(self) -> Result<NetNs, Error> {
        match self {
            NamespaceRef::Named(name) => NetNs::named(name),
            NamespaceRef::Pid(pid) => NetNs::of_process(pid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        let mono = Instant::from_origin(Duration::from_secs(seconds));
        Now { mono, wall: Duration::from_secs(seconds) }
    }

    #[test]
    fn only_namespaces_and_processes_are_monitored() {
        let mut monitor = ContainerMonitor::default();
        for container in ["weave:expose", "c1", "0123456789ab", "pid:x", "10.32.0.5"] {
            monitor.add(container);
        }
        assert_eq!(monitor.poll_timeout(), None);
        monitor.add("netns:weave-no-such-namespace");
        assert!(monitor.is_due(at(0)));
        let gone = Change::Stopped("netns:weave-no-such-namespace".to_owned());
        assert_eq!(monitor.check(at(1)), std::slice::from_ref(&gone));
        assert_eq!(monitor.check(at(6)), [], "reported once");
        assert!(!monitor.is_due(at(7)) && monitor.is_due(at(11)));
        // A container that requests an address again is monitored again.
        monitor.add("netns:weave-no-such-namespace");
        assert_eq!(monitor.check(at(12)), [gone]);
        monitor.retain(|_| false);
        assert_eq!(monitor.poll_timeout(), None);
    }

    #[test]
    fn a_process_of_the_host_is_no_container() {
        let mut monitor = ContainerMonitor::default();
        let container = format!("pid:{}", std::process::id());
        monitor.add(&container);
        assert_eq!(monitor.check(at(1)), [Change::Stopped(container)]);
    }
}
