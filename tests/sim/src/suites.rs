//! The plans of the mesh suites: what a run varies.

use weave_types::ShortId;

use crate::driver_fault::DriverFault;
use crate::net::Faults;

/// The targets of the peers at the start; the graph is always connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Graph {
    /// Each peer has the one before it.
    Line,
    /// Some peers have another one as well, so that broadcast trees differ between sources.
    Chords,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub hosts: u16,
    /// Number of transitions.
    pub length: usize,
    pub password: Option<&'static str>,
    pub discovery: bool,
    /// Faults of the network from the start.
    pub faults: Faults,
    pub graph: Graph,
    /// All peers start with this short id.
    pub short_id: Option<ShortId>,
    /// Limit of connections per peer, 0 for none.
    pub connection_limit: usize,
    pub firewalls: bool,
    /// Planted in every host.
    pub driver_fault: Option<DriverFault>,
}

impl Plan {
    /// A mesh without password on a good network.
    pub fn new(hosts: u16, length: usize) -> Plan {
        Plan {
            hosts,
            length,
            password: None,
            discovery: true,
            faults: Faults { split_stream_randomly: true, ..Faults::default() },
            graph: Graph::Line,
            short_id: None,
            connection_limit: 200,
            firewalls: false,
            driver_fault: None,
        }
    }

    /// Whether every peer will be connected to every other.
    pub fn is_complete(&self) -> bool {
        self.discovery && !self.is_limited()
    }

    /// Whether the connection limit prevents a complete mesh.
    pub fn is_limited(&self) -> bool {
        self.connection_limit > 0 && self.connection_limit + 1 < usize::from(self.hosts)
    }
}

/// The names and plans of all suites.
pub fn all() -> [(&'static str, Plan); 6] {
    [
        ("mesh of five, plain", plain()),
        ("mesh of four, encrypted, lossy", encrypted_lossy()),
        ("sparse mesh of eight, without discovery", sparse()),
        ("mesh of six that all want one short id", short_ids()),
        ("eight peers with three connections each", limited()),
        ("five peers behind firewalls, encrypted", firewalls()),
    ]
}

/// Discovery completes the mesh.
pub fn plain() -> Plan {
    Plan::new(5, 40)
}

/// Datagrams are lost and duplicated from the start.
pub fn encrypted_lossy() -> Plan {
    let faults = Faults { loss: 0.05, duplication: 0.02, split_stream_randomly: true, ..Faults::default() };
    Plan { password: Some("wEaVe"), faults, ..Plan::new(4, 40) }
}

/// Frames are relayed over several hops, along trees in a graph with loops.
pub fn sparse() -> Plan {
    Plan { discovery: false, graph: Graph::Chords, ..Plan::new(8, 40) }
}

/// Short ids have to be given up in favour of lower names.
pub fn short_ids() -> Plan {
    Plan { short_id: ShortId::new(77), ..Plan::new(6, 30) }
}

/// No peer may be connected to all others.
pub fn limited() -> Plan {
    Plan { connection_limit: 3, ..Plan::new(8, 30) }
}

/// Connections can only be made in one direction, and datagrams pass only as answers; wall clocks jump.
pub fn firewalls() -> Plan {
    Plan { firewalls: true, password: Some("wEaVe"), ..Plan::new(5, 40) }
}
