//! The peers of a cluster, and the model with which their names are compared.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use weave_dns::{Entry, Filter, HostName, Registry};
use weave_node::Node;
use weave_types::Now;

use super::plans::NamePlan;
use crate::host::{CrashKind, Host, HostOptions};
use crate::invariants::wait_for_convergence;
use crate::net::{Faults, HostId};
use crate::world::{World, addresses};

/// Names that containers have. The first two differ only in case.
pub(super) const NAMES: [&str; 5] =
    ["web.weave.local", "WEB.weave.local", "db.weave.local", "Cache.Weave.Local", "a.b.weave.local"];

/// Longest time until all peers agree after the topology has converged: a few rounds of periodic gossip.
const AGREEMENT_TIMEOUT: Duration = Duration::from_secs(150);
/// Longest time until a change is known on all connected peers.
const PROPAGATION_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time until the names of a peer that has joined are known; timers may be three seconds late.
const JOIN_TIMEOUT: Duration = Duration::from_secs(4);
/// Time in which a peer that is off is missed.
const LOSS_TIMEOUT: Duration = Duration::from_secs(100);

/// A name that the driver of a peer has registered: the name in lower case, the container, the address.
type Registration = (String, u8, Ipv4Addr);

/// Peers that exchange names.
pub struct NameCluster {
    plan: NamePlan,
    pub world: World,
    /// What the containers of each host have.
    registered: BTreeMap<HostId, BTreeSet<Registration>>,
}

fn host_name(text: &str) -> HostName {
    HostName::parse(text).unwrap_or_else(|error| panic!("{error}"))
}

fn address(host: HostId, number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 32, host.0 as u8, number)
}

impl NameCluster {
    /// All hosts of a plan, started.
    pub fn new(seed: u64, plan: &NamePlan) -> NameCluster {
        let faults = Faults { split_stream_randomly: true, ..Faults::default() };
        let mut cluster =
            NameCluster { plan: plan.clone(), world: World::new(seed, faults), registered: BTreeMap::new() };
        for id in cluster.ids() {
            let domain = (!plan.without_names || id.0 != 1).then_some("weave.local");
            let options = HostOptions {
                domain,
                discovery: plan.discovery,
                late_timers: true,
                ..HostOptions::default()
            };
            cluster.world.add_stopped(id, options);
            let host = cluster.world.host_mut(id);
            host.legacy = id.0 < plan.legacy;
            if id.0 + 1 == plan.hosts {
                host.clock.wall_error = plan.wall_error;
            }
            let previous: Vec<HostId> = id.0.checked_sub(1).map(HostId).into_iter().collect();
            cluster.world.start(id, &previous);
            cluster.registered.insert(id, BTreeSet::new());
        }
        cluster
    }

    fn ids(&self) -> impl Iterator<Item = HostId> + use<> {
        (0..self.plan.hosts).map(HostId)
    }

    fn has_names(&self, id: HostId) -> bool {
        self.world.host(id).node.as_ref().is_some_and(|node| node.registry().is_some())
    }

    fn registered(&mut self, id: HostId) -> &mut BTreeSet<Registration> {
        self.registered.entry(id).or_default()
    }

    fn with_registry(&mut self, id: HostId, input: impl FnOnce(&mut Registry, Now)) {
        self.world.with_node(id, |node, now| {
            node.with_registry(now, |registry| input(registry, now));
        });
    }

    pub(super) fn add(&mut self, id: HostId, name: usize, container: u8, number: u8) {
        if self.has_names(id) {
            let (name, addr) = (host_name(NAMES[name]), address(id, number));
            self.registered(id).insert((name.as_str().to_lowercase(), container, addr));
            self.with_registry(id, |registry, now| {
                assert!(registry.add(&name, &container.to_string(), addr, now));
            });
        }
    }

    /// Removes a name of one container or of all, or all names of a container. A container may end while the peer is down.
    pub(super) fn remove(&mut self, id: HostId, name: Option<usize>, container: Option<u8>) {
        let name = name.map(|name| host_name(NAMES[name]));
        let lower = name.as_ref().map(|name| name.as_str().to_lowercase());
        self.registered(id).retain(|(n, c, _)| {
            lower.as_ref().is_some_and(|lower| lower != n)
                || container.is_some_and(|container| container != *c)
        });
        let filter = Filter { name, container: container.map(|c| c.to_string()), addr: None };
        self.with_registry(id, |registry, now| {
            registry.remove(&filter, now);
        });
    }

    pub(super) fn crash(&mut self, id: HostId, kind: CrashKind) {
        self.world.crash(id, kind);
    }

    /// Starts a peer; its driver registers the names of containers that still run.
    pub(super) fn start(&mut self, id: HostId) {
        if self.world.host(id).node.is_none() {
            self.world.start(id, &[]);
            for (name, container, addr) in self.registered(id).clone() {
                let name = host_name(&name);
                self.with_registry(id, |registry, now| {
                    assert!(registry.add(&name, &container.to_string(), addr, now));
                });
            }
        }
    }

    pub(super) fn reset_connections(&mut self) {
        self.world.reset_connections();
    }

    pub(super) fn run_for(&mut self, time: Duration) {
        self.world.run_for(time);
    }

    /// The own entries of each peer that is up are those that its driver has registered, and it serves them.
    pub(super) fn check_always(&self) {
        for id in self.ids().filter(|id| self.has_names(*id)) {
            let own: BTreeSet<Registration> = self
                .entries(id)
                .into_iter()
                .filter(|entry| entry.origin == Host::name(id) && entry.is_live())
                .map(|entry| {
                    let container = entry.container.parse().unwrap_or(u8::MAX);
                    (entry.hostname.to_lowercase(), container, entry.addr)
                })
                .collect();
            assert_eq!(own, self.registered[&id], "own names of {id}");
            for (name, _, addr) in &own {
                let served = self.world.host(id).names.addresses(host_name(name).key()).contains(addr);
                assert!(served, "{id} does not serve its own {name} at {addr}");
            }
        }
    }

    fn entries(&self, id: HostId) -> Vec<Entry> {
        let registry = self.world.host(id).node.as_ref().and_then(|node| node.registry());
        registry.map(|registry| registry.entries().cloned().collect()).unwrap_or_default()
    }

    /// Number of tombstones at all peers.
    pub(super) fn tombstones(&self) -> usize {
        self.ids().flat_map(|id| self.entries(id)).filter(|entry| !entry.is_live()).count()
    }

    /// Where the names that a peer serves differ from those of all peers that are up.
    fn difference(&self) -> Option<String> {
        let mut expected: BTreeMap<&str, Vec<Ipv4Addr>> = BTreeMap::new();
        for (id, list) in &self.registered {
            if self.has_names(*id) {
                list.iter().for_each(|(name, _, addr)| expected.entry(name).or_default().push(*addr));
            }
        }
        for id in self.ids().filter(|id| self.has_names(*id)) {
            let names = &self.world.host(id).names;
            for name in NAMES {
                let name = host_name(name);
                let mut served = names.addresses(name.key()).to_vec();
                served.sort();
                let mut wanted = expected.get(&*name.as_str().to_lowercase()).cloned().unwrap_or_default();
                wanted.sort();
                if served != wanted {
                    return Some(format!("{id} serves {name} at {served:?} instead of {wanted:?}"));
                }
            }
        }
        None
    }

    fn wait_for_agreement(&mut self, limit: Duration, after: &str) {
        let end = self.world.clock() + limit;
        while let Some(difference) = self.difference() {
            assert!(self.world.clock() < end, "{limit:?} after {after}: {difference}");
            self.run_for(Duration::from_millis(50));
        }
    }

    /// Ends all faults and checks what holds then.
    pub(super) fn check_eventually(&mut self) {
        self.world.net.heal_all();
        self.world.end_load();
        self.world.net.faults = Faults { split_stream_randomly: true, ..Faults::default() };
        for id in self.ids() {
            self.world.host_mut(id).cancel_crash();
            self.start(id);
        }
        for n in 1..self.plan.hosts {
            self.world.connect(HostId(n), &addresses(&[HostId(n - 1)]));
        }
        wait_for_convergence(&mut self.world, false);
        self.wait_for_agreement(AGREEMENT_TIMEOUT, "all faults have ended");
        self.check_always();
        self.check_quiet();
        self.check_propagation();
        self.check_restart();
    }

    /// Nothing changes any more, and peers know each entry in the same state.
    fn check_quiet(&mut self) {
        let ids: Vec<HostId> = self.ids().collect();
        let published = |cluster: &NameCluster| -> Vec<u64> {
            ids.iter().map(|id| cluster.world.host(*id).names_published).collect()
        };
        let before = published(self);
        let writes = self.world.counters.tcp_writes;
        self.run_for(Duration::from_secs(60));
        assert_eq!(published(self), before, "names change in a quiet minute");
        let writes = self.world.counters.tcp_writes - writes;
        let most = 60 * u64::from(self.plan.hosts).pow(2);
        assert!(writes <= most, "message storm: {writes} messages in a quiet minute");
        assert_eq!(self.difference(), None);
        let registries = self.world.nodes().filter_map(Node::registry);
        let digests: BTreeSet<u64> = registries.map(Registry::digest).collect();
        assert!(digests.len() <= 1, "peers know live entries in different states: {digests:?}");
    }

    /// A change is known everywhere within a second.
    fn check_propagation(&mut self) {
        for id in self.ids().filter(|id| self.has_names(*id)).collect::<Vec<_>>() {
            // The second time it is registered again.
            for _ in 0..2 {
                self.remove(id, Some(2), None);
                self.wait_for_agreement(PROPAGATION_TIMEOUT, "the removal of a name");
                self.add(id, 2, 0, 200);
                self.wait_for_agreement(PROPAGATION_TIMEOUT, "the registration of a name");
            }
        }
    }

    /// Peers forget the names of a peer that is gone, and know those that it registers when it is back.
    fn check_restart(&mut self) {
        let last = HostId(self.plan.hosts - 1);
        self.crash(last, CrashKind::PowerLost);
        self.wait_for_agreement(LOSS_TIMEOUT, "the loss of a peer");
        self.remove(last, Some(2), None);
        self.start(last);
        let peers = usize::from(self.plan.hosts);
        let is_known = |world: &World| world.nodes().all(|node| node.peer_count() == peers);
        assert!(self.world.run_until(Duration::from_secs(120), is_known), "{last} is not known again");
        // 2.8.1 may drop the names because they arrive before the topology; they come again with periodic gossip.
        let limit = if self.plan.legacy > 0 { AGREEMENT_TIMEOUT } else { JOIN_TIMEOUT };
        self.wait_for_agreement(limit, "the restart of a peer");
        self.check_always();
    }
}
