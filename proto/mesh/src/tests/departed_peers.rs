//! Records of peers that have left, or that nobody is connected to yet.

use std::time::Duration;

use weave_types::Now;

use super::harness::{Net, default_config, line};
use crate::gossip::{GossipKind, PeerSelection};
use crate::mesh::Mesh;
use crate::test_support::{connection, peer, record, rng};

const STRANGER: u64 = 9;

fn send_record_of_stranger(mesh: &mut Mesh, now: Now) {
    mesh.topology.merge(vec![record(peer(STRANGER), Vec::new())], u64::MAX, &mut rng(1));
    mesh.push_topology(peer(2), GossipKind::Neighbour, PeerSelection::Some([peer(STRANGER)].into()), now);
}

/// The version of the stranger's record at a host; 0 if it is only mentioned.
fn version(net: &Net, host: usize) -> Option<u64> {
    net.hosts[host].mesh.peer(peer(STRANGER)).map(|known| known.version)
}

#[test]
fn records_of_unreachable_peers_are_relayed_when_somebody_is_connected_to_them() {
    let mut net = line(3, default_config);
    net.run_s(20);
    net.assert_converged();
    // It has left: the second peer removes it after a second, and the third does not hear of it.
    net.with(0, |mesh, _, now| send_record_of_stranger(mesh, now));
    net.run(Duration::from_millis(500));
    assert_eq!((version(&net, 1), version(&net, 2)), (Some(1), None));
    net.run_s(5);
    assert_eq!((version(&net, 1), version(&net, 2)), (None, None));
    // Its record arrives before that of the first peer, which is connected to it.
    net.with(0, |mesh, _, now| send_record_of_stranger(mesh, now));
    net.run(Duration::from_millis(300));
    assert_eq!((version(&net, 1), version(&net, 2)), (Some(1), None));
    net.with(0, |mesh, _, now| {
        mesh.topology.connect(connection(peer(STRANGER), true));
        mesh.push_topology(peer(2), GossipKind::Neighbour, PeerSelection::Some([peer(1)].into()), now);
    });
    net.run(Duration::from_millis(500));
    assert_eq!((version(&net, 1), version(&net, 2)), (Some(1), Some(1)));
}
