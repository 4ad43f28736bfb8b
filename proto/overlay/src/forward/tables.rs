use std::sync::Arc;

use weave_switch::ForwardingTable;

use crate::sleeve::{Session, SleevePath};

/// A connection as data threads see it.
#[derive(Clone, Debug)]
pub struct Neighbour {
    /// Keys and counters. The session's remote name identifies the neighbour, both as next hop and as sender of datagrams.
    pub session: Arc<Session>,
    /// Whether the mesh has accepted the connection. Before that only heartbeats are accepted: the neighbour may have
    /// accepted it already, and its first heartbeat carries its UDP address. (2.8.1 loses that heartbeat, which delays the
    /// connection by 500 ms.)
    pub confirmed: bool,
    /// How to reach the neighbour by sleeve.
    pub path: SleevePath,
    /// The overlay that frames are sent with. Datagrams of every overlay are accepted at any time
    /// (docs/spec/data-plane.md 3.2).
    pub overlay: Overlay,
}

/// An overlay that user space sends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overlay {
    /// The UDP encapsulation of 2.8.1.
    Sleeve,
}

/// The state that the data path reads: an immutable snapshot, replaced as a whole.
#[derive(Clone, Debug)]
pub struct Tables {
    /// Number of the snapshot, counted up for each publication.
    pub generation: u64,
    /// Where MACs and peers are.
    pub forwarding: ForwardingTable,
    /// The longest IP packet that the local bridge accepts.
    pub local_mtu: usize,
    neighbours: Vec<Arc<Neighbour>>,
}

impl Tables {
    /// Creates a snapshot with an unlimited local MTU. Of several neighbours of the same name the last is used.
    pub fn new(generation: u64, forwarding: ForwardingTable, mut neighbours: Vec<Arc<Neighbour>>) -> Tables {
        neighbours.reverse();
        neighbours.sort_by_key(|n| n.session.remote());
        neighbours.dedup_by_key(|n| n.session.remote());
        Tables { generation, forwarding, local_mtu: usize::MAX, neighbours }
    }

    /// Sets the MTU of the local bridge.
    pub fn with_local_mtu(self, local_mtu: usize) -> Tables {
        Tables { local_mtu, ..self }
    }

    /// All neighbours, ordered by name.
    pub fn neighbours(&self) -> &[Arc<Neighbour>] {
        &self.neighbours
    }
}
