//! The plans of mesh simulation: parameters of random runs.

use weave_types::ShortId;

use crate::driver_fault::DriverFault;
use crate::net::Faults;

/// The targets of the peers at the start; the graph is always connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Graph {
    /// The target of each peer is the one before it.
    Line,
    /// A line in which some peers have a second target, so that broadcast trees differ between sources.
    Chords,
}

/// Parameters of random runs.
#[derive(Clone, Debug)]
pub struct Plan {
    pub name: &'static str,
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
    /// Connections can only be made in one direction, and datagrams pass only as answers.
    pub firewalls: bool,
    pub driver_fault: Option<DriverFault>,
}

impl Plan {
    /// A mesh without password on a good network.
    pub fn new(name: &'static str, hosts: u16, length: usize) -> Plan {
        Plan {
            name,
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

pub fn all() -> Vec<Plan> {
    vec![
        Plan::new("mesh of five, plain", 5, 40),
        Plan {
            password: Some("wEaVe"),
            faults: Faults {
                loss: 0.05,
                duplication: 0.02,
                split_stream_randomly: true,
                ..Faults::default()
            },
            ..Plan::new("mesh of four, encrypted, lossy", 4, 40)
        },
        // Frames are relayed over several hops, along trees in a graph with loops.
        Plan {
            discovery: false,
            graph: Graph::Chords,
            ..Plan::new("sparse mesh of eight, without discovery", 8, 40)
        },
        // Short ids have to be given up in favour of lower names.
        Plan { short_id: ShortId::new(77), ..Plan::new("mesh of six that all want one short id", 6, 30) },
        Plan { connection_limit: 3, ..Plan::new("eight peers with three connections each", 8, 30) },
        Plan {
            firewalls: true,
            password: Some("wEaVe"),
            ..Plan::new("five peers behind firewalls, encrypted", 5, 40)
        },
    ]
}
