//! The plans that are run, by `cargo test` as by `find_mutants`.

use weave_types::ShortId;

use crate::driver_fault::DriverFault;
use crate::net::Faults;

/// Who is targets of whom at the start. Always connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Graph {
    /// Each of the one before it.
    Line,
    /// Each of the one before it, and some of one more: trees differ from source to source.
    Chords,
}

/// What a suite varies.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Number of hosts.
    pub hosts: u16,
    /// Number of transitions.
    pub length: usize,
    /// Shared password of all peers.
    pub password: Option<&'static str>,
    /// Whether peers connect to peers that they only heard of.
    pub discovery: bool,
    /// Faults of the network from the start.
    pub faults: Faults,
    /// Targets at the start.
    pub graph: Graph,
    /// All peers start with this short id.
    pub short_id: Option<ShortId>,
    /// Most connections of a peer, 0 for any number.
    pub connection_limit: usize,
    /// Whether there are firewalls.
    pub firewalls: bool,
    /// A mistake planted in every driver.
    pub driver_fault: Option<DriverFault>,
}

impl Plan {
    /// A plain mesh of so many peers on a good network.
    pub fn new(hosts: u16, length: usize) -> Plan {
        Plan {
            hosts,
            length,
            password: None,
            discovery: true,
            faults: Faults { rechunk: true, ..Faults::default() },
            graph: Graph::Line,
            short_id: None,
            connection_limit: 200,
            firewalls: false,
            driver_fault: None,
        }
    }

    /// Whether every peer ends up connected to every other.
    pub fn is_complete(&self) -> bool {
        self.discovery && !self.is_limited()
    }

    /// Whether some peers may not have as many connections as they want.
    pub fn is_limited(&self) -> bool {
        self.connection_limit > 0 && self.connection_limit + 1 < usize::from(self.hosts)
    }
}

/// Every suite: its name and its plan.
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
    let faults = Faults { loss: 0.05, duplication: 0.02, rechunk: true, ..Faults::default() };
    Plan { password: Some("wEaVe"), faults, ..Plan::new(4, 40) }
}

/// Frames are relayed over several hops, along trees in a graph with loops.
pub fn sparse() -> Plan {
    Plan { discovery: false, graph: Graph::Chords, ..Plan::new(8, 40) }
}

/// Short ids have to be given up in favour of lower addresses.
pub fn short_ids() -> Plan {
    Plan { short_id: ShortId::new(77), ..Plan::new(6, 30) }
}

/// Nobody may be connected to everybody.
pub fn limited() -> Plan {
    Plan { connection_limit: 3, ..Plan::new(8, 30) }
}

/// Connections can only be made in one direction, and datagrams pass only as answers; wall clocks jump.
pub fn firewalls() -> Plan {
    Plan { firewalls: true, password: Some("wEaVe"), ..Plan::new(5, 40) }
}
