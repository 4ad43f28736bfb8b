//! Start, crash, loss and reinstallation of hosts; repair of the network.

use std::collections::BTreeSet;
use std::time::Duration;

use weave_ipam::{Config, Init, Policy, Subnet};
use weave_node::IpamConfig;
use weave_types::{PeerName, PeerUid};

use super::cluster::{Cluster, Event, RemovedPeer, peer_name};
use super::member::owned;
use super::plans::{InitMode, Topology};
use crate::host::CrashKind;
use crate::net::{Faults, HostId};

impl Cluster {
    /// Starts a peer with what is on its disk.
    pub(super) fn start(&mut self, id: HostId) {
        if self.is_running(id) || self.member(id).destroyed {
            return;
        }
        self.trace(id, || "start".to_owned());
        let clock_offset = self.random_millis(0, 10_000_000);
        let config = self.config(id, self.range_of(id));
        let targets = self.launch_targets(id);
        let clock = self.clock();
        let member = self.member_mut(id);
        member.started = clock;
        member.recent_space_requests.clear();
        member.removals_reported.clear();
        member.reset_versions();
        member.find_orphans();
        let mut loaded = member.disk.stored().clone();
        if member.legacy {
            // 2.8.1 does not store what it has promised (docs/spec/ipam.md 15.11).
            loaded.election = None;
        }
        let running: BTreeSet<String> =
            member.containers.iter().filter(|(_, c)| c.running).map(|(id, _)| id.clone()).collect();
        for container in member.containers.values_mut().filter(|c| !c.running) {
            container.known_stopped = true;
        }
        let in_use: Vec<(String, Vec<u32>, bool)> = member
            .containers
            .iter()
            .filter(|(_, c)| c.running && !c.addrs.is_empty())
            .map(|(id, c)| (id.clone(), c.addrs.iter().copied().collect(), c.is_container))
            .collect();
        let name = member.name;
        let host = self.world.host_mut(id);
        host.name = name;
        host.clock.offset = clock_offset;
        host.allocation = Some(IpamConfig { config, loaded });
        self.world.start(id, &targets);
        self.apply_observations(self.is_large());
        if self.is_running(id) && !self.plan.nodes {
            let others = self.plan.electors().saturating_sub(1);
            self.with_allocator(id, |allocator, now| allocator.handle_target_count(others.into(), now));
        }
        for (container, addrs, is_container) in in_use {
            let cidrs: Vec<_> = addrs.iter().map(|&addr| self.plan.cidr(addr)).collect();
            self.with_allocator(id, |allocator, now| {
                allocator.preclaim(container, &cidrs, is_container, now)
            });
        }
        self.with_allocator(id, |allocator, now| allocator.prune(&running, now));
        if self.is_running(id) {
            self.remove_unrecorded_users(id);
            for container in self.member_mut(id).containers.values_mut() {
                container.known_stopped = false;
            }
        }
        self.update_links();
        if !self.plan.nodes {
            let phase = self.random_millis(0, 30_000);
            self.schedule(phase, Event::Gossip(id, self.incarnation(id)));
        }
    }

    fn config(&self, id: HostId, range: Subnet) -> Config {
        let member = self.member(id);
        // The host fills in the UID of each start.
        let mut config = Config::new(member.name, PeerUid(0), format!("host-{}", id.0), range);
        let electors: Vec<HostId> = self.ids().filter(|id| id.0 < self.plan.electors()).collect();
        config.init = match self.plan.init {
            _ if id.0 >= self.plan.electors() => Init::Observer,
            InitMode::Count => Init::Consensus(Some(electors.len() as u32)),
            InitMode::Targets | InitMode::Chain => Init::Consensus(None),
            InitMode::Seed => Init::Seed(electors.iter().map(|&id| peer_name(id, 0)).collect()),
        };
        if member.legacy {
            config.policy =
                Policy { send_before_persist: self.plan.legacy_sends_before_persist, ..Policy::V2_8_1 };
        }
        config
    }

    /// The peers that a node is launched with.
    fn launch_targets(&self, id: HostId) -> Vec<HostId> {
        if self.plan.hub {
            return vec![self.plan.hub_id()];
        }
        match (self.plan.init, self.plan.topology) {
            (InitMode::Targets, _) => {
                self.ids().filter(|&other| other.0 < self.plan.electors() && other != id).collect()
            }
            (_, Topology::Line) => id.0.checked_sub(1).map(HostId).into_iter().collect(),
            (_, Topology::Star) => (id.0 > 0).then_some(HostId(0)).into_iter().collect(),
            _ => (0..id.0).map(HostId).collect(),
        }
    }

    /// Ends a peer. With its power the host also loses unsynced records and all containers.
    pub(super) fn crash(&mut self, id: HostId, kind: CrashKind) {
        if !self.is_running(id) {
            return;
        }
        self.trace(id, || format!("{kind:?}"));
        let clock = self.clock();
        self.world.crash(id, kind);
        self.allow_duplicates_of_forgotten_donations(id);
        let member = self.member_mut(id);
        member.allocator = None;
        member.pending_claims.clear();
        self.requests.retain(|_, request| request.host != id);
        if kind == CrashKind::PowerLost {
            self.members[usize::from(id.0)].disk.lose_power(clock, &mut self.rng);
            self.remove_containers(id);
        }
        if self.member(id).leaving {
            self.remove_for_good(id);
        }
        self.update_links();
    }

    /// Without a stored donation 2.8.1 owns the donated addresses again after a crash. It also reuses versions that it had sent but not
    /// stored, so that others ignore its changes.
    fn allow_duplicates_of_forgotten_donations(&mut self, id: HostId) {
        let member = self.member(id);
        let (Some(allocator), Some(stored)) = (&member.allocator, &member.disk.stored().ring) else { return };
        if !member.legacy || !self.plan.legacy_sends_before_persist {
            return;
        }
        let kept = owned(allocator.ring(), member.name);
        let mut forgotten: BTreeSet<u32> = owned(stored, member.name).difference(&kept).copied().collect();
        let ends = stored.entries().iter().skip(1).map(|next| next.token).chain([stored.range().end()]);
        for (entry, end) in stored.entries().iter().zip(ends).filter(|(entry, _)| entry.peer == member.name) {
            let sent = allocator.ring().entries().iter().find(|sent| sent.token == entry.token);
            if sent.is_some_and(|sent| sent.version > entry.version) {
                forgotten.extend(entry.token..end);
            }
        }
        self.duplicates_allowed.extend(forgotten);
    }

    /// A host fails for good, without a reset.
    pub(super) fn destroy_host(&mut self, id: HostId) {
        self.crash(id, CrashKind::Killed);
        self.remove_for_good(id);
    }

    /// Removes the host with its disk and its containers.
    pub(super) fn remove_for_good(&mut self, id: HostId) {
        if self.member(id).destroyed {
            return;
        }
        let ring = self.member(id).view().cloned();
        self.world.crash(id, CrashKind::Killed);
        self.requests.retain(|_, request| request.host != id);
        self.remove_containers(id);
        self.wipe_disk(id);
        let member = self.member_mut(id);
        member.destroyed = true;
        member.allocator = None;
        member.leaving = false;
        member.pending_claims.clear();
        member.orphans.clear();
        let name = member.name;
        self.removed_peers.push(RemovedPeer { name, ring });
        self.update_links();
    }

    pub(super) fn wipe_disk(&mut self, id: HostId) {
        self.member_mut(id).disk.wipe();
        self.world.host_mut(id).lose_disk();
    }

    /// A destroyed host is installed again: under its old name if that cannot mislead any peer, otherwise under a new one.
    pub(super) fn reinstall(&mut self, id: HostId) {
        if !self.member(id).destroyed || !self.others_have_rings(id) {
            return;
        }
        let name = self.member(id).name;
        let removed = self.removed_peers.iter().position(|peer| peer.name == name);
        let reusable = removed.filter(|&removed| {
            self.plan.init != InitMode::Seed && self.all_know(id, self.removed_peers[removed].ring.as_ref())
        });
        if let Some(removed) = reusable {
            self.lose_messages();
            self.removed_peers.remove(removed);
        }
        let member = self.member_mut(id);
        member.destroyed = false;
        if reusable.is_none() {
            member.installation += 1;
            member.name = peer_name(id, member.installation);
        }
        self.start(id);
    }

    /// Ends all faults of the network, and cancels planned crashes.
    pub(super) fn heal(&mut self) {
        self.links.heal();
        self.world.net.heal_all();
        self.world.end_load();
        self.world.net.faults = Faults { split_stream_randomly: true, ..Faults::default() };
        for id in self.ids() {
            self.world.host_mut(id).cancel_crash();
        }
        self.update_links();
    }

    /// Connects all nodes to all others at once: the targets with which a node was launched may have been removed.
    pub(super) fn reconnect_nodes(&mut self) {
        for id in self.ids() {
            let others = self.ids().filter(|&other| other != id && self.is_running(other));
            let targets = if self.plan.hub { self.launch_targets(id) } else { others.collect() };
            let targets = crate::world::addresses(&targets);
            self.world.connect(id, &targets);
            self.apply_observations(self.is_large());
        }
    }

    /// The targets of a running node, as a user sees them.
    pub(super) fn current_targets(&self, id: HostId) -> Vec<String> {
        let node = self.world.host(id).node.as_ref();
        let targets = node.map(|node| node.status(self.now(id)).mesh.targets).unwrap_or_default();
        targets.into_iter().map(|target| target.address.to_string()).collect()
    }

    /// Lets time pass until no node is connected to a removed peer any more.
    pub(super) fn await_removed_peers_forgotten(&mut self) {
        /// The timeout of a connection, and some time for the topology to change.
        const FORGET_TIMEOUT: Duration = Duration::from_secs(70);
        let removed: BTreeSet<PeerName> = self.removed_peers.iter().map(|peer| peer.name).collect();
        let end = self.clock() + FORGET_TIMEOUT;
        let known = |cluster: &Cluster| {
            cluster.world.hosts().any(|(&id, host)| {
                let status = host.node.as_ref().map(|node| node.status(cluster.now(id)));
                status.is_some_and(|s| s.mesh.peers.iter().any(|peer| removed.contains(&peer.label.name)))
            })
        };
        while self.clock() < end && known(self) {
            self.run_for(Duration::from_secs(1));
        }
    }
}
