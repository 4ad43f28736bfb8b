//! Connections and messages between allocators that run without nodes, with the guarantees that the mesh gives.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use weave_types::{Instant, PeerName};

use super::plans::Topology;
use crate::net::HostId;

/// A message of one peer to another.
#[derive(Clone, Debug)]
pub(super) enum Message {
    /// For one receiver; other hosts may relay it.
    Unicast { src: PeerName, payload: Vec<u8> },
    /// For all peers, along the tree of its source.
    Broadcast { src: PeerName, payload: Vec<u8> },
    /// The complete state of a neighbour.
    Gossip(Vec<u8>),
}

pub(super) struct Links {
    pub(super) topology: Topology,
    hosts: u16,
    /// Pairs of which one peer has ended the connection, and the time until which they are not connected again.
    ended: BTreeMap<(HostId, HostId), Instant>,
    connected: BTreeSet<(HostId, HostId)>,
}

impl Links {
    pub(super) fn new(hosts: u16, topology: Topology) -> Links {
        Links { topology, hosts, ended: BTreeMap::new(), connected: BTreeSet::new() }
    }

    /// Lets all hosts be connected to all others.
    pub(super) fn heal(&mut self) {
        self.topology = Topology::Complete;
        self.ended.clear();
    }

    pub(super) fn end_connection(&mut self, a: HostId, b: HostId, until: Instant) {
        self.ended.insert(pair(a, b), until);
    }

    /// Whether the two may be connected now.
    pub(super) fn may_connect(&self, a: HostId, b: HostId, now: Instant) -> bool {
        let possible = match self.topology {
            Topology::Complete => true,
            Topology::Line => a.0.abs_diff(b.0) == 1,
            Topology::Star => a.0 == 0 || b.0 == 0,
        };
        possible && self.ended.get(&pair(a, b)).is_none_or(|&until| until <= now)
    }

    /// Replaces all connections; returns the new ones, or `None` if nothing changes.
    pub(super) fn replace(&mut self, connected: BTreeSet<(HostId, HostId)>) -> Option<Vec<(HostId, HostId)>> {
        if connected == self.connected {
            return None;
        }
        let new = connected.difference(&self.connected).copied().collect();
        self.connected = connected;
        Some(new)
    }

    pub(super) fn neighbours(&self, of: HostId) -> Vec<HostId> {
        (0..self.hosts).map(HostId).filter(|&id| id != of && self.connected.contains(&pair(id, of))).collect()
    }

    /// All reachable hosts, each with its predecessor on the path from the root.
    fn tree(&self, root: HostId) -> BTreeMap<HostId, HostId> {
        let mut parents = BTreeMap::from([(root, root)]);
        let mut frontier = VecDeque::from([root]);
        while let Some(at) = frontier.pop_front() {
            for next in self.neighbours(at) {
                if let Entry::Vacant(entry) = parents.entry(next) {
                    entry.insert(at);
                    frontier.push_back(next);
                }
            }
        }
        parents
    }

    pub(super) fn reachable(&self, from: HostId) -> BTreeSet<HostId> {
        self.tree(from).into_keys().collect()
    }

    pub(super) fn is_reachable(&self, from: HostId, to: HostId) -> bool {
        self.connected.contains(&pair(from, to)) || self.tree(from).contains_key(&to)
    }

    /// The hosts to which one host sends a broadcast of `root` on.
    pub(super) fn next_hops(&self, root: HostId, at: HostId) -> Vec<HostId> {
        self.tree(root).into_iter().filter(|&(to, by)| by == at && to != at).map(|(to, _)| to).collect()
    }
}

fn pair(a: HostId, b: HostId) -> (HostId, HostId) {
    (a.min(b), a.max(b))
}
