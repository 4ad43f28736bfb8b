//! Whole nodes: the allocators are those of real `Node`s on the mesh world, with its streams, topology, timers and deaths between
//! any two outputs. What they store and answer is noted there in order, and put down here in the same books.

use std::collections::BTreeSet;
use std::time::Duration;

use weave_ipam::{Allocator, Config, Loaded, Output};
use weave_node::{IpamConfig, Node};
use weave_types::{Instant, PeerName};

use super::scenario::{Begin, Graph, Plan, Transition};
use super::violation;
use super::world::World;
use crate::host::{Death, HostOptions, Noted};
use crate::net::{Faults, HostId};

/// Writes of all nodes in a second; about one per protocol message. A second in which five peers connect needs 300.
const MAX_WRITES: u64 = 1_500;
/// In worlds of more hosts not every state between two transitions is looked at.
const LARGE: u16 = 20;
/// Bytes that a peer has written and another, cut off, has not read.
const MAX_QUEUED: usize = 512 * 1024;

/// The mesh, and what it did lately.
pub(super) struct Nodes {
    pub(super) mesh: crate::World,
    /// When the second began, and how many writes there had been.
    second: (Instant, u64),
    /// Most writes in a second, and how many there may be.
    pub(super) most_writes: u64,
    max_writes: u64,
    /// Whose allocator is not as it was when it was last looked at.
    stale: BTreeSet<HostId>,
    /// Most bytes in a stream.
    pub(super) most_queued: usize,
}

impl Nodes {
    pub(super) fn new(seed: u64, plan: &Plan) -> Nodes {
        let faults =
            Faults { rechunk: true, loss: plan.loss, duplication: plan.duplication, ..Faults::default() };
        let mut mesh = crate::World::new(seed, faults);
        let options = HostOptions {
            password: plan.password.map(str::to_owned),
            discovery: plan.graph == Graph::Complete,
            connection_limit: 0,
            late_timers: true,
            sabotage: plan.sabotage,
            ..HostOptions::default()
        };
        for n in 0..plan.hosts {
            mesh.install(HostId(n), options.clone());
        }
        if plan.bridge {
            mesh.add(bridge(plan), options, &[]);
        }
        let max_writes = match plan {
            _ if plan.hosts > LARGE => MAX_WRITES * u64::from(plan.hosts) / 10,
            // Two of them that lack space hand each other what neither can use, as fast as the network can.
            _ if plan.legacy > 1 => MAX_WRITES * 10,
            _ => MAX_WRITES,
        };
        let second = (Instant::ORIGIN, 0);
        Nodes { mesh, second, most_writes: 0, max_writes, stale: BTreeSet::new(), most_queued: 0 }
    }

    fn runs(&self, id: HostId) -> bool {
        self.mesh.host(id).node.is_some()
    }

    /// Counts what is said, second by second, and what is not heard.
    fn count(&mut self) -> Result<(), String> {
        let (now, writes) = (self.mesh.now().mono, self.mesh.counters.tcp_writes);
        if now - self.second.0 >= Duration::from_secs(1) {
            self.second = (now, writes);
            self.most_queued = self.most_queued.max(self.mesh.most_queued());
        }
        let lately = writes - self.second.1;
        self.most_writes = self.most_writes.max(lately);
        if lately > self.max_writes {
            return Err(format!("a storm: {lately} messages within a second"));
        }
        if self.most_queued > MAX_QUEUED {
            return Err(format!("{} bytes wait in one stream", self.most_queued));
        }
        Ok(())
    }
}

/// The host in the middle that allocates nothing.
fn bridge(plan: &Plan) -> HostId {
    HostId(plan.hosts)
}

impl World {
    /// Lets time pass.
    pub(super) fn run_nodes_until(&mut self, end: Instant) {
        loop {
            let Some(nodes) = &mut self.nodes else { return };
            let theirs = nodes.mesh.next_event().filter(|&at| at <= end);
            let ours = self.next_event().filter(|&at| at <= end);
            let Some(nodes) = &mut self.nodes else { return };
            match (theirs, ours) {
                (None, None) => break,
                (Some(at), other) if other.is_none_or(|other| at <= other) => {
                    nodes.mesh.step();
                    self.clock = nodes.mesh.now().mono;
                    self.events += 1;
                    if let Err(what) = nodes.count() {
                        violation!("{what}");
                    }
                    self.absorb();
                }
                (_, at) => {
                    let at = at.unwrap_or(end);
                    nodes.mesh.advance(at);
                    self.clock = self.clock.max(at);
                    self.handle_next();
                }
            }
        }
        if let Some(nodes) = &mut self.nodes {
            nodes.mesh.advance(end);
        }
        self.clock = end;
        self.look_at_all();
    }

    /// Whether there are too many hosts to look at all the time.
    pub(super) fn is_large(&self) -> bool {
        self.plan.hosts > LARGE
    }

    /// Looks at those that were not looked at while time passed.
    fn look_at_all(&mut self) {
        let Some(nodes) = &mut self.nodes else { return };
        let stale = std::mem::take(&mut nodes.stale);
        nodes.mesh.touched.extend(stale);
        self.absorb_from(false);
    }

    /// An input of a running node's allocator, and all that comes of it.
    pub(super) fn call_node<R>(&mut self, id: HostId, input: impl FnOnce(&mut Allocator) -> R) -> Option<R> {
        let mut result = None;
        let nodes = self.nodes.as_mut()?;
        nodes.mesh.with_node(id, |node, now| result = node.with_allocator(now, input));
        self.absorb_from(false);
        result
    }

    /// Takes note of what nodes have done, in the order in which they did it.
    pub(super) fn absorb(&mut self) {
        self.absorb_from(self.is_large());
    }

    /// `lazily`: looks only at those that have put out something.
    fn absorb_from(&mut self, lazily: bool) {
        let Some(nodes) = &mut self.nodes else { return };
        let noted = std::mem::take(&mut nodes.mesh.noted);
        let mut touched = std::mem::take(&mut nodes.mesh.touched);
        let mut changed: BTreeSet<HostId> = noted.iter().map(|(id, _)| *id).collect();
        if lazily {
            nodes.stale.extend(touched.difference(&changed));
            touched.clone_from(&changed);
        }
        for id in touched {
            let Some(now) = nodes.mesh.host(id).node.as_ref().and_then(Node::allocator) else { continue };
            let host = &mut self.hosts[usize::from(id.0)];
            if host.allocator.as_ref() == Some(now) {
                continue;
            }
            let last = host.allocator.replace(now.clone());
            if !last.as_ref().is_some_and(|last| last.ring() == now.ring() && last.owned() == now.owned()) {
                changed.insert(id);
                host.before = last.map(|last| last.ring().clone());
            }
        }
        for (id, noted) in &noted {
            if let Noted::Died(_, last) = noted {
                self.host_mut(*id).allocator = Some((**last).clone());
            }
        }
        for (id, noted) in noted {
            match noted {
                Noted::Persist(persist) => self.perform(id, Output::Persist(persist)),
                Noted::Done(request, result) => self.answered(id, request, result),
                Noted::Event(event) => self.said(id, event),
                // 2.8.1 does not talk to those who contradict it.
                Noted::Refused(_) if self.host(id).legacy && self.plan.conflicts => {
                    self.host_mut(id).protested = Some(self.clock);
                }
                Noted::Refused(why) => violation!("host {} ends a connection to {why}", id.0),
                Noted::Died(death, _) => self.kill(id, death),
            }
        }
        for id in changed {
            self.host_mut(id).before = None;
            if self.runs(id) {
                self.check_host(id);
            }
        }
    }

    /// Whom a peer is told of when it is launched.
    fn targets(&self, id: HostId) -> Vec<HostId> {
        if self.plan.bridge {
            return vec![bridge(&self.plan)];
        }
        match (self.plan.begin, self.plan.graph) {
            (Begin::Targets, _) => {
                self.ids().filter(|&other| other.0 < self.plan.electors() && other != id).collect()
            }
            (_, Graph::Line) => id.0.checked_sub(1).map(HostId).into_iter().collect(),
            (_, Graph::Star) => (id.0 > 0).then_some(HostId(0)).into_iter().collect(),
            _ => (0..id.0).map(HostId).collect(),
        }
    }

    pub(super) fn start_node(&mut self, id: HostId, config: Config, loaded: Loaded) {
        let targets = self.targets(id);
        let host = self.host(id);
        let (name, time, legacy) = (host.name, host.time, host.legacy);
        let Some(nodes) = &mut self.nodes else { return };
        let peer = nodes.mesh.host_mut(id);
        (peer.name, peer.clock, peer.legacy) = (name, time, legacy);
        peer.allocation = Some(IpamConfig { config, loaded });
        nodes.mesh.start(id, &targets);
        self.absorb();
    }

    /// A peer dies, if it has not yet.
    pub(super) fn end_node(&mut self, id: HostId, death: Death) {
        if let Some(nodes) = self.nodes.as_mut().filter(|nodes| nodes.runs(id)) {
            match death {
                Death::Killed => nodes.mesh.crash(id),
                Death::PowerLost => nodes.mesh.lose_power(id),
            }
        }
    }

    /// What the mesh had stored on a host is lost.
    pub(super) fn wipe_node(&mut self, id: HostId) {
        if let Some(nodes) = &mut self.nodes {
            nodes.mesh.host_mut(id).lose_disk();
        }
    }

    pub(super) fn reset_connections(&mut self) {
        if let Some(nodes) = &mut self.nodes {
            nodes.mesh.reset_connections();
            self.absorb();
        }
    }

    /// All faults are over.
    pub(super) fn heal_nodes(&mut self) {
        let ids: Vec<HostId> = self.ids().collect();
        let Some(nodes) = &mut self.nodes else { return };
        nodes.mesh.net.heal_all();
        nodes.mesh.net.faults = Faults { rechunk: true, ..Faults::default() };
        ids.iter().for_each(|&id| nodes.mesh.host_mut(id).survive());
    }

    /// The link between two hosts goes down.
    pub(super) fn cut(&mut self, a: HostId, b: HostId) {
        if let Some(nodes) = &mut self.nodes {
            nodes.mesh.net.set_cut(a, b, true);
        }
    }

    /// The addresses that a running peer was told of, as a user sees them.
    pub(super) fn targets_of(&self, id: HostId) -> Vec<String> {
        let node = self.nodes.as_ref().and_then(|nodes| nodes.mesh.host(id).node.as_ref());
        let targets = node.map(|node| node.status(self.now(id)).mesh.targets).unwrap_or_default();
        targets.into_iter().map(|target| target.address.to_string()).collect()
    }

    /// Everybody is told of everybody, and dials at once: of the few targets of the start any may be gone for good.
    pub(super) fn reconnect_nodes(&mut self) {
        for id in self.ids() {
            let others = self.ids().filter(|&other| other != id && self.runs(other));
            let targets = if self.plan.bridge { self.targets(id) } else { others.collect() };
            let targets = crate::world::names(&targets);
            if let Some(nodes) = &mut self.nodes {
                nodes.mesh.with_node(id, |node, now| drop(node.connect(&targets, false, now)));
                self.absorb();
            }
        }
    }

    /// In a minute in which nothing happens no ring changes, and not more is said than timers ask for; a request may wait for space.
    pub(super) fn check_quiet(&mut self) {
        const MINUTE: Duration = Duration::from_secs(60);
        /// Per end of a connection: seven heartbeats, three MTU tests or answers, three digests, and the gossip of all, three
        /// times where a clock is fast, which in a star is said seven times and a half.
        const TIMERS: usize = 21;
        /// Per request that waits and host that is asked, every five seconds: question, answer, and one that passes it on.
        const ASKING: usize = 12 * 3;
        let writes = |world: &World| world.nodes.as_ref().map_or(0, |nodes| nodes.mesh.counters.tcp_writes);
        if self.nodes.is_none() {
            return;
        }
        // 2.8.1 throws dice whom to ask, and may be given space at any time; two of them feed each other what neither can use.
        let diced = self.requests.values().any(|request| self.host(request.host).legacy);
        // Tests of the path MTU, and what was said before, come to their end.
        self.run_for(MINUTE);
        let rings =
            |world: &World| -> Vec<_> { world.hosts.iter().map(|host| host.view().cloned()).collect() };
        let minute = |world: &mut World| {
            let (before, known) = (writes(world), rings(world));
            world.run_for(MINUTE);
            (known, (writes(world) - before) as usize)
        };
        let (mut known, mut said) = minute(self);
        if rings(self) != known {
            // A release may have been told with the gossip of the first half minute, served with that of the second, and what is
            // free then told with that of the third.
            (known, said) = minute(self);
        }
        if rings(self) != known && !diced {
            violation!("rings change in a quiet minute: {known:?}{}", self.views());
        }
        let hosts = self.nodes.iter().flat_map(|nodes| nodes.mesh.hosts());
        let connections: usize =
            hosts.filter_map(|(_, host)| host.node.as_ref()).map(|node| node.connection_count()).sum();
        let bound = TIMERS * connections + ASKING * self.requests.len() * self.hosts.len();
        if said > bound && !diced {
            violation!("{said} messages in a quiet minute, expected at most {bound}: {:?}", self.requests);
        }
    }

    /// Lets time pass until nobody counts on the dead any more.
    pub(super) fn await_forgetting(&mut self) {
        /// Time-out of a connection, and a little.
        const FORGOTTEN: Duration = Duration::from_secs(70);
        let dead: BTreeSet<PeerName> = self.graves.iter().map(|grave| grave.name).collect();
        let end = self.clock + FORGOTTEN;
        let counts = |world: &World| {
            let Some(nodes) = &world.nodes else { return false };
            let mut hosts = nodes.mesh.hosts();
            hosts.any(|(&id, host)| {
                let status = host.node.as_ref().map(|node| node.status(nodes.mesh.now_at(id)));
                status.is_some_and(|s| s.mesh.peers.iter().any(|p| dead.contains(&p.label.name)))
            })
        };
        while self.clock < end && counts(self) {
            self.run_for(Duration::from_secs(1));
        }
    }

    /// What happens to the network or to the power; false if it is something else.
    pub(super) fn apply_to_nodes(&mut self, transition: Transition) -> bool {
        // Where all goes by way of one host, others have no links to be cut.
        let bridged = |a: HostId, b: HostId| if self.plan.bridge && a != b { bridge(&self.plan) } else { b };
        let transition = match transition {
            Transition::Cut(a, b) => Transition::Cut(a, bridged(a, b)),
            Transition::Heal(a, b) => Transition::Heal(a, bridged(a, b)),
            Transition::Mute(a, b) => Transition::Mute(a, bridged(a, b)),
            other => other,
        };
        let Some(nodes) = &mut self.nodes else { return false };
        let mesh = &mut nodes.mesh;
        match transition {
            Transition::Cut(a, b) => mesh.net.set_cut(a, b, true),
            Transition::Heal(a, b) => mesh.net.set_cut(a, b, false),
            Transition::Mute(a, b) => mesh.net.mute(a, b),
            Transition::Loss(percent) => mesh.net.faults.loss = f64::from(percent) / 100.0,
            // Streams overtake each other by seconds.
            Transition::Slow(percent) => {
                mesh.net.faults.jitter = Duration::from_millis(100 * u64::from(percent));
            }
            Transition::CrashAfter(a, outputs) => mesh.host_mut(a).die_after(outputs, Death::Killed),
            Transition::PowerLossAfter(a, outputs) => mesh.host_mut(a).die_after(outputs, Death::PowerLost),
            Transition::WallClock(a, seconds) => {
                mesh.host_mut(a).clock.wall_error += i64::from(seconds);
                self.host_mut(a).time.wall_error += i64::from(seconds);
            }
            _ => return false,
        }
        true
    }
}
