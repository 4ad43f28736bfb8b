//! The plans that are run, by `cargo test` as by `find_mutants`.

use weave_types::ShortId;

use crate::net::Faults;
use crate::scenario::{Graph, Plan};

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

/// Short ids have to be given up in favour of lower names.
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
