use std::collections::HashMap;
use std::sync::OnceLock;

use rand::{Rng, RngExt};
use weave_types::PeerName;

use crate::topology::Topology;

/// Routes of data and gossip, computed from one state of the topology (docs/spec/mesh.md 9). All peers compute the same
/// routes from the same topology.
///
/// A snapshot, which can be shared with the threads that forward packets. Broadcast trees are computed at the first use.
///
/// There are two graphs: *all* has an edge from P to Q if P reports a connection to Q; *established* only if both
/// report it and have verified the data path.
#[derive(Debug)]
pub struct Routes {
    /// Ascending, so that indices have the order of the names.
    names: Box<[PeerName]>,
    own: u32,
    established: Table,
    all: Table,
    /// For each neighbour, the number of destinations behind it in the graph *all* (docs/spec/mesh.md 7.7).
    weights: Box<[(PeerName, u32)]>,
    /// Neighbours to which we have verified the data path, ascending.
    direct: Box<[u32]>,
}

#[derive(Debug)]
struct Table {
    edges: Edges,
    /// The next hop by destination, or [`START`] or [`UNREACHABLE`].
    unicast: Box<[u32]>,
    /// A search that has found so many nodes has found all.
    reachable: usize,
    /// The next hops of broadcasts by source.
    broadcast: Box<[OnceLock<Box<[PeerName]>>]>,
}

/// Adjacency lists in one array: the neighbours of `i` are `targets[starts[i]..starts[i + 1]]`, ascending.
#[derive(Debug, PartialEq, Eq)]
struct Edges {
    starts: Box<[u32]>,
    targets: Box<[u32]>,
}

/// The search did not reach this node.
const UNREACHABLE: u32 = u32::MAX;
/// This node is the start of the search.
const START: u32 = u32::MAX - 1;

impl Routes {
    pub(crate) fn compute(topology: &Topology) -> Routes {
        Routes::from_graph(Graph::of(topology))
    }

    /// Like `compute`, but returns `None` if the routes would not change.
    pub(crate) fn recompute(&self, topology: &Topology) -> Option<Routes> {
        let graph = Graph::of(topology);
        let same = graph.own == self.own
            && graph.names == self.names
            && graph.all == self.all.edges
            && graph.established == self.established.edges
            && graph.direct == self.direct;
        if same { None } else { Some(Routes::from_graph(graph)) }
    }

    fn from_graph(graph: Graph) -> Routes {
        let Graph { names, own, all, established, direct } = graph;
        let established = Table::new(established, own);
        // A search from this peer reaches as many nodes as one from any of them, because an edge leads both ways. Not so here:
        let all = Table { reachable: names.len(), ..Table::new(all, own) };
        let weights = weights(&all.unicast, &names);
        Routes { names, own, established, all, weights, direct }
    }

    /// Next hop for data to `dst`; `None` if it is unreachable, and for this peer.
    pub fn unicast(&self, dst: PeerName) -> Option<PeerName> {
        self.next_hop(&self.established, dst)
    }

    /// Like [`Routes::unicast`], but data for a neighbour is sent to it as soon as our end of the connection is
    /// established. The table requires that the neighbour reports this as well, which 2.8.1 does a second later. Such
    /// data has reached its destination, so there cannot be a loop. Broadcasts follow the table, since all peers must
    /// use the same tree.
    pub fn unicast_or_direct(&self, dst: PeerName) -> Option<PeerName> {
        let direct = || self.direct.binary_search(&self.index(dst)?).ok().map(|_| dst);
        self.unicast(dst).or_else(direct)
    }

    /// Next hop for gossip to `dst`; `None` if it is unreachable, and for this peer.
    pub fn unicast_all(&self, dst: PeerName) -> Option<PeerName> {
        self.next_hop(&self.all, dst)
    }

    /// Next hops of broadcast data from `src`.
    pub fn broadcast(&self, src: PeerName) -> &[PeerName] {
        self.broadcast_hops(&self.established, src)
    }

    /// Next hops of broadcast gossip from `src`.
    pub fn broadcast_all(&self, src: PeerName) -> &[PeerName] {
        self.broadcast_hops(&self.all, src)
    }

    /// The peers on the way of data from one peer to another, with both ends, as those peers compute it from the same topology. Where no
    /// data passes the way is that of gossip. Empty if there is none.
    pub fn path(&self, from: PeerName, to: PeerName) -> Vec<PeerName> {
        let (Some(mut at), Some(end)) = (self.index(from), self.index(to)) else { return Vec::new() };
        let hop = |table: &Table, at: u32| {
            let (reached, found) = table.edges.search(at, end, table.reachable);
            reached.then(|| found[end as usize])
        };
        let mut path = vec![from];
        while at != end {
            match hop(&self.established, at).or_else(|| hop(&self.all, at)) {
                Some(next) if path.len() < self.names.len() => at = next,
                _ => return Vec::new(),
            }
            path.push(self.names[at as usize]);
        }
        path
    }

    /// Whether the topology contains the peer, reachable or not.
    pub fn knows(&self, peer: PeerName) -> bool {
        self.index(peer).is_some()
    }

    /// Name of this peer.
    pub fn own(&self) -> PeerName {
        self.names[self.own as usize]
    }

    /// Every destination that data can reach, ascending, with its next hop, which is [`PeerName::UNKNOWN`] for this peer.
    pub fn unicast_table(&self) -> impl Iterator<Item = (PeerName, PeerName)> + '_ {
        self.table(&self.established)
    }

    /// Every destination that gossip can reach, ascending, with its next hop, which is [`PeerName::UNKNOWN`] for this
    /// peer.
    pub fn unicast_all_table(&self) -> impl Iterator<Item = (PeerName, PeerName)> + '_ {
        self.table(&self.all)
    }

    /// The next hops of broadcast data computed so far, ascending by source.
    pub fn broadcast_table(&self) -> impl Iterator<Item = (PeerName, &[PeerName])> + '_ {
        let cached = self.names.iter().zip(&self.established.broadcast);
        cached.filter_map(|(&name, tree)| Some((name, &**tree.get()?)))
    }

    /// For each neighbour but `except`, the number of destinations for which it is the next hop of gossip, ascending by
    /// name.
    pub fn neighbour_weights(&self, except: Option<PeerName>) -> impl Iterator<Item = (PeerName, u32)> + '_ {
        self.weights.iter().copied().filter(move |(name, _)| Some(*name) != except)
    }

    /// Number of neighbours to which gossip is sent (docs/spec/mesh.md 7.7).
    pub fn gossip_neighbours(&self, except: Option<PeerName>) -> usize {
        let reached = self.all.unicast.iter().filter(|&&hop| hop != UNREACHABLE).count();
        let logarithmic = (2.0 * (reached as f64).log2()) as usize;
        logarithmic.min(self.neighbour_weights(except).count())
    }

    /// Chooses distinct neighbours for gossip at random, with probabilities proportional to their weights.
    pub(crate) fn random_neighbours(&self, except: Option<PeerName>, rng: &mut impl Rng) -> Vec<PeerName> {
        let mut left: Vec<(PeerName, u32)> = self.neighbour_weights(except).collect();
        let mut total: u32 = left.iter().map(|(_, w)| w).sum();
        let count = self.gossip_neighbours(except);
        let mut chosen = Vec::with_capacity(count);
        while chosen.len() < count {
            let mut ticket = rng.random_range(0..total);
            let winner = left.iter().position(|&(_, weight)| {
                let hit = ticket < weight;
                ticket = ticket.saturating_sub(weight);
                hit
            });
            let (name, weight) = left.remove(winner.expect("the ticket is below the sum of the weights"));
            total -= weight;
            chosen.push(name);
        }
        chosen
    }

    fn index(&self, peer: PeerName) -> Option<u32> {
        self.names.binary_search(&peer).ok().map(|i| i as u32)
    }

    fn next_hop(&self, table: &Table, dst: PeerName) -> Option<PeerName> {
        let hop = table.unicast[self.index(dst)? as usize];
        self.names.get(hop as usize).copied()
    }

    fn table<'a>(&'a self, table: &'a Table) -> impl Iterator<Item = (PeerName, PeerName)> + 'a {
        let entries = self.names.iter().zip(&table.unicast).filter(|&(_, &hop)| hop != UNREACHABLE);
        entries.map(|(&dst, &hop)| (dst, self.names.get(hop as usize).copied().unwrap_or(PeerName::UNKNOWN)))
    }

    fn broadcast_hops<'a>(&'a self, table: &'a Table, src: PeerName) -> &'a [PeerName] {
        let Some(index) = self.index(src) else { return &[] };
        table.broadcast[index as usize].get_or_init(|| {
            let (reached, found) = table.edges.search(index, self.own, table.reachable);
            if !reached {
                return Box::default();
            }
            let own = table.edges.of(self.own).iter();
            own.filter(|&&n| found[n as usize] == UNREACHABLE).map(|&n| self.names[n as usize]).collect()
        })
    }
}

impl Table {
    fn new(edges: Edges, own: u32) -> Table {
        let (_, unicast) = edges.search(own, UNREACHABLE, edges.starts.len() - 1);
        let broadcast = unicast.iter().map(|_| OnceLock::new()).collect();
        let reachable = unicast.iter().filter(|hop| **hop != UNREACHABLE).count();
        Table { edges, unicast: unicast.into(), reachable, broadcast }
    }
}

impl Edges {
    fn of(&self, node: u32) -> &[u32] {
        let node = node as usize;
        &self.targets[self.starts[node] as usize..self.starts[node + 1] as usize]
    }

    /// Searches breadth first, each frontier in ascending order, until it visits `stop` (docs/spec/mesh.md 9.1), or would find no other node
    /// until then, because there are only so many. Returns whether it reaches `stop`, and for each node the first hop from `start`.
    fn search(&self, start: u32, stop: u32, reachable: usize) -> (bool, Vec<u32>) {
        let mut found = vec![UNREACHABLE; self.starts.len() - 1];
        let mut left = reachable.saturating_sub(1);
        found[start as usize] = START;
        let mut frontier = vec![start];
        let mut next = Vec::new();
        while !frontier.is_empty() {
            frontier.sort_unstable();
            for &node in &frontier {
                if node == stop {
                    return (true, found);
                } else if left == 0 {
                    let reaches = found.get(stop as usize).is_some_and(|hop| *hop != UNREACHABLE);
                    return (reaches, found);
                }
                for &to in self.of(node) {
                    if found[to as usize] == UNREACHABLE {
                        found[to as usize] = if node == start { to } else { found[node as usize] };
                        left = left.saturating_sub(1);
                        next.push(to);
                    }
                }
            }
            frontier.clear();
            std::mem::swap(&mut frontier, &mut next);
        }
        (false, found)
    }
}

fn weights(unicast_all: &[u32], names: &[PeerName]) -> Box<[(PeerName, u32)]> {
    let mut counts = vec![0u32; names.len()];
    for &hop in unicast_all {
        if let Some(count) = counts.get_mut(hop as usize) {
            *count += 1;
        }
    }
    names.iter().copied().zip(counts).filter(|&(_, count)| count > 0).collect()
}

struct Graph {
    names: Box<[PeerName]>,
    own: u32,
    all: Edges,
    established: Edges,
    direct: Box<[u32]>,
}

impl Graph {
    fn of(topology: &Topology) -> Graph {
        let names: Box<[PeerName]> = topology.peers().map(|(name, _)| name).collect();
        let indices: HashMap<PeerName, u32> =
            names.iter().enumerate().map(|(i, &name)| (name, i as u32)).collect();
        let own = indices[&topology.own()];

        // Connections are ascending by name, so the targets of each node are ascending by index.
        let mut starts = Vec::with_capacity(names.len() + 1);
        let mut targets: Vec<u32> = Vec::new();
        let mut flags: Vec<bool> = Vec::new();
        starts.push(0);
        for (_, peer) in topology.peers() {
            for connection in &peer.connections {
                if let Some(&to) = indices.get(&connection.peer) {
                    targets.push(to);
                    flags.push(connection.established);
                }
            }
            starts.push(targets.len() as u32);
        }
        let all = Edges { starts: starts.into(), targets: targets.into() };

        let confirmed = |from: u32, to: u32| {
            let Ok(at) = all.of(from).binary_search(&to) else { return false };
            flags[all.starts[from as usize] as usize + at]
        };
        let mut starts = Vec::with_capacity(names.len() + 1);
        let mut targets = Vec::new();
        starts.push(0);
        for from in 0..names.len() as u32 {
            let own_flags = &flags[all.starts[from as usize] as usize..];
            for (&to, &established) in all.of(from).iter().zip(own_flags) {
                if established && confirmed(to, from) {
                    targets.push(to);
                }
            }
            starts.push(targets.len() as u32);
        }
        let established = Edges { starts: starts.into(), targets: targets.into() };
        let own_flags = &flags[all.starts[own as usize] as usize..];
        let direct = all.of(own).iter().zip(own_flags).filter(|(_, established)| **established);
        let direct = direct.map(|(&to, _)| to).collect();
        Graph { names, own, all, established, direct }
    }
}
