//! Who is connected to whom, and what becomes of messages.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha12Rng;
use weave_types::{Instant, PeerName};

use super::scenario::{Graph, Plan};
use super::world::{Event, World};
use crate::net::HostId;

/// What goes from one peer to another.
#[derive(Clone, Debug)]
pub(super) enum Message {
    /// For the receiver alone; it may have been relayed.
    Unicast { src: PeerName, payload: Vec<u8> },
    /// For everybody, by way of a neighbour.
    Broadcast { src: PeerName, payload: Vec<u8> },
    /// All that a neighbour knows.
    Gossip(Vec<u8>),
}

/// The connections between hosts.
pub(super) struct Network {
    /// Which connections there could be.
    pub(super) graph: Graph,
    /// Chance that a message is lost.
    pub(super) loss: f64,
    /// Chance that it arrives twice.
    pub(super) duplication: f64,
    /// Chance that it takes several seconds.
    pub(super) slow: f64,
    hosts: u16,
    cuts: BTreeSet<(HostId, HostId)>,
    /// Nothing gets from the first to the second, though they are connected.
    mutes: BTreeSet<(HostId, HostId)>,
    dropped: BTreeMap<(HostId, HostId), Instant>,
    links: BTreeSet<(HostId, HostId)>,
}

impl Network {
    pub(super) fn new(plan: &Plan) -> Network {
        Network {
            graph: plan.graph,
            loss: plan.loss,
            duplication: plan.duplication,
            slow: plan.slow,
            hosts: plan.hosts,
            cuts: BTreeSet::new(),
            mutes: BTreeSet::new(),
            dropped: BTreeMap::new(),
            links: BTreeSet::new(),
        }
    }

    /// All faults are over.
    pub(super) fn heal(&mut self) {
        (self.loss, self.duplication, self.slow) = (0.0, 0.0, 0.0);
        self.graph = Graph::Complete;
        self.cuts.clear();
        self.mutes.clear();
        self.dropped.clear();
    }

    pub(super) fn set_cut(&mut self, a: HostId, b: HostId, cut: bool) {
        if cut {
            self.cuts.insert(pair(a, b));
        } else {
            self.cuts.remove(&pair(a, b));
            self.mutes.remove(&(a, b));
            self.mutes.remove(&(b, a));
        }
    }

    pub(super) fn mute(&mut self, from: HostId, to: HostId) {
        self.mutes.insert((from, to));
    }

    pub(super) fn drop_link(&mut self, a: HostId, b: HostId, until: Instant) {
        self.dropped.insert(pair(a, b), until);
    }

    pub(super) fn neighbours(&self, of: HostId) -> Vec<HostId> {
        (0..self.hosts).map(HostId).filter(|&id| id != of && self.links.contains(&pair(id, of))).collect()
    }

    /// All hosts that can be reached from one, with the one before them on the way.
    fn tree(&self, root: HostId) -> BTreeMap<HostId, HostId> {
        let mut parents = BTreeMap::from([(root, root)]);
        let mut frontier = VecDeque::from([root]);
        while let Some(at) = frontier.pop_front() {
            for next in self.neighbours(at) {
                if let Entry::Vacant(place) = parents.entry(next) {
                    place.insert(at);
                    frontier.push_back(next);
                }
            }
        }
        parents
    }

    pub(super) fn reachable(&self, from: HostId) -> BTreeSet<HostId> {
        self.tree(from).into_keys().collect()
    }

    pub(super) fn path(&self, from: HostId, to: HostId) -> bool {
        self.links.contains(&pair(from, to)) || self.tree(from).contains_key(&to)
    }

    /// To whom a broadcast of `root` goes on from one host.
    pub(super) fn children(&self, root: HostId, at: HostId) -> Vec<HostId> {
        self.tree(root).into_iter().filter(|&(to, by)| by == at && to != at).map(|(to, _)| to).collect()
    }

    /// When a message arrives: never, once or twice.
    pub(super) fn fate(&self, from: HostId, to: HostId, rng: &mut ChaCha12Rng) -> Vec<Duration> {
        if self.mutes.contains(&(from, to)) || rng.random_bool(self.loss) {
            return Vec::new();
        }
        let copies = if rng.random_bool(self.duplication) { 2 } else { 1 };
        (0..copies)
            .map(|_| {
                let most = if rng.random_bool(self.slow) { 15_000 } else { 20 };
                Duration::from_millis(rng.random_range(1..most))
            })
            .collect()
    }

    fn is_edge(&self, a: HostId, b: HostId) -> bool {
        match self.graph {
            Graph::Complete => true,
            Graph::Line => a.0.abs_diff(b.0) == 1,
            Graph::Star => a.0 == 0 || b.0 == 0,
        }
    }
}

fn pair(a: HostId, b: HostId) -> (HostId, HostId) {
    (a.min(b), a.max(b))
}

impl World {
    /// Brings connections in line with who runs and what is cut.
    pub(super) fn relink(&mut self) {
        if self.nodes.is_some() {
            return;
        }
        let mut links = BTreeSet::new();
        for a in self.ids().filter(|&id| self.runs(id)) {
            for b in self.ids().filter(|&id| id > a && self.runs(id)) {
                let net = &self.network;
                let dropped = net.dropped.get(&(a, b)).is_some_and(|&until| until > self.clock);
                if net.is_edge(a, b) && !net.cuts.contains(&(a, b)) && !dropped {
                    links.insert((a, b));
                }
            }
        }
        if links == self.network.links {
            return;
        }
        let new: Vec<_> = links.difference(&self.network.links).copied().collect();
        self.network.links = links;
        for (a, b) in new {
            let (there, back) = (self.millis(1, 300), self.millis(1, 300));
            self.schedule(there, Event::Greet(a, b));
            self.schedule(back, Event::Greet(b, a));
        }
        for id in self.ids() {
            if self.runs(id) {
                let incarnation = self.host(id).incarnation;
                let after = self.millis(1, 1500);
                self.schedule(after, Event::Topology(id, incarnation));
            }
        }
    }

    /// A peer hears who can be reached, and who is gone for good.
    pub(super) fn tell_topology(&mut self, id: HostId) {
        let reachable: BTreeMap<PeerName, String> = self
            .network
            .reachable(id)
            .into_iter()
            .map(|other| (self.host(other).name, format!("host-{}", other.0)))
            .collect();
        let gone: Vec<PeerName> = self
            .graves
            .iter()
            .map(|grave| grave.name)
            .filter(|name| !self.host(id).told_gone.contains(name))
            .collect();
        self.call(id, |allocator, now| allocator.handle_topology_change(&reachable, now));
        for name in gone {
            self.host_mut(id).told_gone.insert(name);
            self.call(id, |allocator, now| allocator.handle_peer_removed(name, now));
        }
    }
}
