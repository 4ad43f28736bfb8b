//! The names of this host: those of its containers, and those that were added by hand. They are registered with the node, stored, and
//! removed when their container ends.
//!
//! ```text
//!  attach, expose, dns-add --> add ----> registry of the node --> other peers, server
//!  detach, hide, dns-remove -> remove -+       ^
//!  events of Docker ------------------+        | at the start, if their containers still run
//!  end of a namespace ----------------+----> NameStore
//! ```
//!
//! Names of Docker's containers end as in 2.8.1, with the report that the container has ended, whoever uses its addresses then.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use weave_dns::{Filter, HostName};
use weave_host::NamespaceId;
use weave_node::Node;
use weave_runtime::{ContainerState, Docker, EXPOSE};
use weave_types::{Cidr, Instant, Now};

use crate::host::{Change, ContainerMonitor, Inventory, NamespaceRef, is_docker_id};
use crate::storage::{NameStore, NamesByContainer, StoreError};

/// Shortest time between two writes of the file.
const WRITE_INTERVAL: Duration = Duration::from_millis(500);
/// Time until a failed write is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// A change of the names of this host.
#[derive(Clone, Debug)]
pub enum NameChange {
    Add {
        name: HostName,
        container: String,
        addrs: Vec<Ipv4Addr>,
    },
    /// A container has been attached, with a name or without.
    Attached {
        container: String,
        /// `None`: not known.
        namespace: Option<NamespaceId>,
        name: Option<HostName>,
        addrs: Vec<Ipv4Addr>,
    },
    Remove(Filter),
    /// A container has ended.
    Ended(String),
}

#[derive(Debug)]
pub(crate) struct LocalNames {
    store: NameStore,
    names: NamesByContainer,
    monitor: ContainerMonitor,
    /// The bridge of the containers.
    bridge: String,
    written: Option<Instant>,
    write_at: Option<Instant>,
}

impl LocalNames {
    /// Reads the stored names.
    pub(crate) fn open(dir: &Path, bridge: &str) -> Result<LocalNames, StoreError> {
        let (store, names) = NameStore::open(dir)?;
        Ok(LocalNames {
            store,
            names,
            monitor: ContainerMonitor::default(),
            bridge: bridge.to_owned(),
            written: None,
            write_at: None,
        })
    }

    /// Registers the stored names, without those of containers that have ended, and of addresses that are not exposed any more.
    pub(crate) fn restore(
        &mut self,
        inventory: Option<&Inventory>,
        exposed: &[Cidr],
        node: &mut Node,
        now: Now,
    ) {
        let before = self.names.len();
        self.names.retain(|container, names| {
            if container == EXPOSE {
                names.retain(|(_, addr)| exposed.iter().any(|cidr| cidr.addr() == *addr));
                return !names.is_empty();
            }
            let of_container = is_docker_id(container) || NamespaceRef::of(container).is_some();
            !of_container || inventory.is_none_or(|i| i.has_container(container, &cidrs(names)))
        });
        if self.names.len() != before || self.store.is_new() {
            self.write(now);
        }
        let Self { names, monitor, .. } = self;
        node.with_registry(now, |registry| {
            for (container, names) in names {
                for (name, addr) in &*names {
                    registry.add(name, container, *addr, now);
                }
                watch(monitor, container);
            }
        });
    }

    /// Makes a change and stores it.
    pub(crate) fn apply(&mut self, change: NameChange, node: &mut Node, now: Now) {
        self.change(change, node, now);
        self.close(now);
    }

    fn change(&mut self, change: NameChange, node: &mut Node, now: Now) {
        match change {
            NameChange::Add { name, container, addrs } => self.add(&name, &container, &addrs, node, now),
            NameChange::Attached { container, namespace, name, addrs } => {
                let moved = namespace.is_some_and(|namespace| {
                    !is_docker_id(&container) && self.monitor.move_to(&container, namespace)
                });
                // Its name led to another namespace before.
                if moved {
                    self.end(&container, node, now);
                }
                self.names.entry(container.clone()).or_default();
                self.changed(now);
                match name {
                    Some(name) => self.add(&name, &container, &addrs, node, now),
                    None => watch(&mut self.monitor, &container),
                }
            }
            NameChange::Remove(filter) => self.remove(&filter, node, now),
            NameChange::Ended(container) => self.end(&container, node, now),
        }
    }

    fn add(&mut self, name: &HostName, container: &str, addrs: &[Ipv4Addr], node: &mut Node, now: Now) {
        for addr in addrs {
            if node.with_registry(now, |registry| registry.add(name, container, *addr, now)) == Some(true) {
                self.names.entry(container.to_owned()).or_default().insert((name.clone(), *addr));
                self.changed(now);
            }
        }
        watch(&mut self.monitor, container);
    }

    fn remove(&mut self, filter: &Filter, node: &mut Node, now: Now) {
        node.with_registry(now, |registry| registry.remove(filter, now));
        for (container, names) in &mut self.names {
            if filter.container.as_ref().is_none_or(|c| c == container) {
                names.retain(|(name, addr)| {
                    filter.name.as_ref().is_some_and(|n| n != name) || filter.addr.is_some_and(|a| a != *addr)
                });
            }
        }
        // A container that was attached stays known to have no name.
        self.names.retain(|container, names| {
            !names.is_empty() || is_docker_id(container) || NamespaceRef::of(container).is_some()
        });
        self.changed(now);
    }

    /// Removes all names of a container.
    fn end(&mut self, container: &str, node: &mut Node, now: Now) {
        if self.names.remove(container).is_some_and(|names| !names.is_empty()) {
            tracing::info!("the names of {container} are removed, it has ended");
        }
        let filter = Filter { container: Some(container.to_owned()), addr: None, name: None };
        node.with_registry(now, |registry| registry.remove(&filter, now));
        self.changed(now);
    }

    /// Containers that are known to have names, or to have none.
    pub(crate) fn containers(&self) -> impl Iterator<Item = &String> {
        self.names.keys()
    }

    /// Applies reports of Docker about its containers.
    pub(crate) fn set_docker_states(
        &mut self,
        states: &[(String, ContainerState)],
        node: &mut Node,
        now: Now,
    ) {
        for (container, state) in states {
            if *state != ContainerState::Running && self.names.contains_key(container) {
                self.end(container, node, now);
            }
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        [self.write_at, self.monitor.poll_timeout()].into_iter().flatten().min()
    }

    pub(crate) fn handle_timeout(&mut self, node: &mut Node, now: Now) {
        if self.monitor.is_due(now) {
            let owned = |container: &str| self.names.get(container).map(cidrs).unwrap_or_default();
            let scan = || Inventory::take(&self.bridge, None).ok();
            let changes = self.monitor.check(now, owned, scan);
            self.monitor.retain(|container| self.names.contains_key(container));
            for change in changes {
                match change {
                    Change::Stopped(container) | Change::Removed(container) => {
                        self.end(&container, node, now);
                    }
                    Change::Started(_) => {}
                    Change::Renamed { from, to, cidrs } => self.rename(&from, &to, &cidrs, node, now),
                }
            }
            self.monitor.retain(|container| self.names.contains_key(container));
        }
        if self.write_at.is_some_and(|at| at <= now.mono) {
            self.write(now);
        }
    }

    /// The namespace is still in use, but is called differently.
    fn rename(&mut self, from: &str, to: &str, cidrs: &[Cidr], node: &mut Node, now: Now) {
        let Some(names) = self.names.get(from) else { return };
        let moved = names.iter().filter(|(_, addr)| cidrs.iter().any(|cidr| cidr.addr() == *addr));
        let moved: Vec<_> = moved.cloned().collect();
        for (name, addr) in moved {
            self.add(&name, to, &[addr], node, now);
            let filter = Filter { container: Some(from.to_owned()), addr: Some(addr), name: Some(name) };
            self.remove(&filter, node, now);
        }
        if self.names.get(from).is_some_and(|names| names.is_empty()) {
            self.names.remove(from);
        }
    }

    fn changed(&mut self, now: Now) {
        let earliest = self.written.map_or(now.mono, |written| written + WRITE_INTERVAL);
        self.write_at.get_or_insert(earliest.max(now.mono));
    }

    /// A failing disk must not stop the network, so an error is logged and the write is tried again.
    fn write(&mut self, now: Now) {
        self.written = Some(now.mono);
        self.write_at = None;
        if let Err(e) = self.store.write(&self.names) {
            tracing::error!("names are not saved and are lost at a restart, retrying: {e}");
            self.write_at = Some(now.mono + RETRY_INTERVAL);
        }
    }

    /// Writes what has changed.
    pub(crate) fn close(&mut self, now: Now) {
        if self.write_at.is_some() {
            self.write(now);
        }
    }
}

/// Whether a container runs. In doubt it does; one that is not Docker's is monitored once it has a name.
pub(crate) fn may_run(docker: Option<&Docker>, container: &str) -> bool {
    let Some(docker) = docker.filter(|_| is_docker_id(container)) else { return true };
    docker.inspect(container).map_or(true, |info| info.is_some_and(|info| info.is_running()))
}

/// The end of a container of Docker is reported by Docker.
fn watch(monitor: &mut ContainerMonitor, container: &str) {
    if !is_docker_id(container) {
        monitor.add(container);
    }
}

fn cidrs(names: &std::collections::BTreeSet<(HostName, Ipv4Addr)>) -> Vec<Cidr> {
    names.iter().filter_map(|(_, addr)| Cidr::new(IpAddr::V4(*addr), 32)).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha12Rng;
    use weave_dns::RegistryConfig;
    use weave_types::{PeerName, PeerUid};

    use super::*;

    const NOW: Now = Now { mono: Instant::ORIGIN, wall: Duration::from_secs(1_700_000_000) };

    fn name(text: &str) -> HostName {
        HostName::parse(text).unwrap()
    }

    fn node() -> Node {
        let own: PeerName = "01:00:00:00:00:0a".parse().unwrap();
        let mesh = weave_mesh::Config::new(own, "host-a".to_owned(), PeerUid(7));
        let dns = Some(RegistryConfig { own, domain: name("weave.local") });
        Node::new(weave_node::Config { mesh, ipam: None, dns }, ChaCha12Rng::seed_from_u64(1), NOW)
    }

    fn live(node: &Node, texts: &[&str]) -> Vec<bool> {
        let names = node.registry().unwrap().names();
        texts.iter().map(|text| !names.addresses(name(text).key()).is_empty()).collect()
    }

    #[test]
    fn names_end_with_their_containers_and_are_restored() {
        let dir = tempfile::tempdir().unwrap();
        let mut node = node();
        let mut local = LocalNames::open(dir.path(), "weave").unwrap();
        let (ends, stays) = ("a".repeat(64), "b".repeat(64));
        let addr = |n| Ipv4Addr::new(10, 32, 0, n);
        for (container, text, n) in [
            (ends.as_str(), "ends.weave.local", 1),
            (&stays, "stays.weave.local", 2),
            ("weave:extern", "ext.weave.local", 3),
            (EXPOSE, "host.weave.local", 4),
            ("weave:extern", "outside.example.com", 5),
        ] {
            let change =
                NameChange::Add { name: name(text), container: container.to_owned(), addrs: vec![addr(n)] };
            local.apply(change, &mut node, NOW);
        }
        let all = ["ends.weave.local", "stays.weave.local", "ext.weave.local", "host.weave.local"];
        assert_eq!(live(&node, &all), [true; 4]);
        let states = [(ends.clone(), ContainerState::Stopped), (stays.clone(), ContainerState::Running)];
        local.set_docker_states(&states, &mut node, NOW);
        assert_eq!(live(&node, &all), [false, true, true, true]);
        let quiet = NameChange::Attached {
            container: "c".repeat(64),
            namespace: None,
            name: None,
            addrs: vec![addr(6)],
        };
        local.apply(quiet, &mut node, NOW);
        local.close(NOW);

        for (exposed, expected) in [(Some("10.32.0.4/24"), true), (None, false)] {
            let mut node = self::node();
            let mut local = LocalNames::open(dir.path(), "weave").unwrap();
            let exposed: Vec<Cidr> = exposed.iter().map(|cidr| cidr.parse().unwrap()).collect();
            local.restore(None, &exposed, &mut node, NOW);
            assert_eq!(live(&node, &all), [false, true, true, expected]);
            assert!(
                local.containers().any(|container| *container == "c".repeat(64)),
                "attached without a name"
            );
        }
    }

    #[test]
    fn a_failed_write_is_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let mut node = node();
        let mut local = LocalNames::open(&state, "weave").unwrap();
        let change = NameChange::Add {
            name: name("a.weave.local"),
            container: "x".into(),
            addrs: vec![Ipv4Addr::LOCALHOST],
        };
        local.apply(change, &mut node, NOW);
        std::fs::create_dir(&state).unwrap();
        let later = Now { mono: NOW.mono + RETRY_INTERVAL, ..NOW };
        assert_eq!(local.poll_timeout(), Some(later.mono));
        local.handle_timeout(&mut node, later);
        assert_eq!(
            (local.poll_timeout(), LocalNames::open(&state, "weave").unwrap().names),
            (None, local.names)
        );
    }
}
