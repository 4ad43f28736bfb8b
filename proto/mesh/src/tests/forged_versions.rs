//! A member sends forged topology records of other peers.

use std::time::Duration;

use weave_types::PeerUid;

use super::harness::Net;
use crate::gossip::{GossipKind, PeerSelection};
use crate::test_support::{peer, record, rng};
use crate::topology::max_version;
use crate::update::PeerRecord;

/// Three peers in a line, and a fourth that is connected to the first, sends a forged record of one of the others, and leaves.
/// Returns whether the first one believed it for a time.
fn forge(victim: usize, uid: PeerUid, version: impl Fn(Duration) -> u64) -> bool {
    let mut net = Net::new(4, |_, config| config.discovery = false);
    for (from, to) in [(1, "10.0.0.1"), (2, "10.0.0.2"), (3, "10.0.0.1")] {
        net.connect(from, &[to]);
    }
    net.run_s(10);
    net.assert_converged();
    net.with(3, |mesh, _, now| {
        let (name, version) = (peer(victim as u64 + 1), version(now.wall));
        let forged = PeerRecord { uid, version, nickname: "gone".into(), ..record(name, Vec::new()) };
        mesh.topology.merge(vec![forged], u64::MAX, &mut rng(1));
        mesh.push_topology(peer(1), GossipKind::Neighbour, PeerSelection::Some([name].into()), now);
    });
    net.run(Duration::from_millis(6));
    let believed = &*net.hosts[0].mesh.peer(peer(victim as u64 + 1)).unwrap().nickname == "gone";
    assert_eq!(net.logged(0, "impossible version"), usize::from(!believed));
    net.run_s(3);
    net.stop_process(3);
    net.run_s(31);
    net.assert_converged();
    for host in &net.hosts[..3] {
        assert!(host.mesh.peers().all(|(_, known)| &*known.nickname != "gone"));
        assert!(net.logged(0, "impossible versions") <= 1 && net.logged(1, "impossible versions") == 0);
    }
    believed
}

#[test]
fn forged_records_do_not_outlive_the_peer_that_sent_them() {
    for victim in [1, 2] {
        for uid in [PeerUid(1), PeerUid(u64::MAX)] {
            for version in [(1 << 63) - 1, 1 << 63, u64::MAX] {
                assert!(!forge(victim, uid, |_| version), "{version}");
            }
            assert!(!forge(victim, uid, |wall| max_version(wall) + 1_000_000));
            // A version that is possible is believed until the victim has heard of it.
            assert!(forge(victim, uid, max_version));
        }
        // The forged record has the UID of the victim.
        let uid = super::harness::config(victim).uid;
        assert!(forge(victim, uid, |_| 1 << 40));
    }
}
