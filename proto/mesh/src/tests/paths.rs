//! Connections whose data path fails.

use std::time::Duration;

use weave_types::{ConnectionId, PeerName};

use super::harness::{Net, default_config};
use crate::test_support::peer;

fn conn(net: &Net, at: usize, to: PeerName) -> ConnectionId {
    net.hosts[at].mesh.by_peer[&to]
}

fn set_path(net: &mut Net, at: usize, to: usize, works: bool) {
    let conn = conn(net, at, peer(to as u64 + 1));
    net.with(
        at,
        |mesh, _, now| if works { mesh.handle_path_up(conn, now) } else { mesh.handle_path_down(conn, now) },
    );
}

fn full_mesh(n: usize) -> Net {
    let mut net = Net::new(n, default_config);
    let others: Vec<String> = (1..n).map(super::harness::ip).collect();
    net.connect(0, &others.iter().map(String::as_str).collect::<Vec<_>>());
    net.run_s(20);
    net.assert_converged();
    assert!((0..n).all(|i| net.neighbours(i).len() == n - 1));
    net
}

#[test]
fn failed_path_is_routed_around_at_once_and_by_all() {
    let mut net = full_mesh(4);
    set_path(&mut net, 0, 1, false);
    let via = |net: &Net, from: usize, to: usize| net.hosts[from].mesh.routes().unicast(peer(to as u64 + 1));
    assert!(via(&net, 0, 1).is_some_and(|via| via != peer(2)), "at once: {:?}", via(&net, 0, 1));
    net.run(Duration::from_millis(200));
    for (from, to) in [(0, 1), (1, 0)] {
        let hop = via(&net, from, to).unwrap();
        assert!([peer(3), peer(4)].contains(&hop), "{from} to {to} by {hop}");
        let gossip = net.hosts[0].mesh.routes().unicast_all(peer(2));
        assert_ne!(gossip, Some(peer(2)), "gossip as well");
    }
    assert_eq!(net.hosts[1].tested_paths.len(), 1, "the other end is asked to test");
    // The connection itself goes on, and carries traffic again when its path works.
    net.run_s(30);
    assert_eq!(net.hosts[0].mesh.terminations, 0);
    set_path(&mut net, 0, 1, true);
    assert_eq!(via(&net, 0, 1), Some(peer(2)), "as soon as this end uses it");
    net.run_s(2);
    net.assert_converged();
    assert_eq!(net.neighbours(0).len(), 3);
}

#[test]
fn only_route_is_kept() {
    let mut net = full_mesh(2);
    set_path(&mut net, 0, 1, false);
    assert_eq!(net.neighbours(0), [peer(2)]);
    net.run_s(5);
    net.assert_converged();
}

#[test]
fn silent_peer_is_not_forgotten_when_all_routes_to_it_fail() {
    let mut net = full_mesh(4);
    let before: Vec<u64> = (0..3).map(|i| net.hosts[i].mesh.topology.own_peer().version).collect();
    for at in 0..3 {
        set_path(&mut net, at, 3, false);
    }
    net.run_s(10);
    for (host, before) in net.hosts.iter().zip(before) {
        let name = host.mesh.name();
        assert!(host.removed.is_empty(), "{name} has removed {:?}", host.removed);
        let versions = host.mesh.topology.own_peer().version - before;
        assert!(versions <= 4, "{name} has changed its record {versions} times");
        assert!(host.mesh.routes().unicast(peer(4)).is_some());
    }
    for at in 0..3 {
        set_path(&mut net, at, 3, true);
    }
    net.run_s(5);
    net.assert_converged();
    assert!((0..4).all(|i| net.neighbours(i).len() == 3));
}

#[test]
fn other_route_that_ends_brings_the_connection_back() {
    let mut net = full_mesh(3);
    set_path(&mut net, 0, 1, false);
    set_path(&mut net, 1, 0, false);
    net.run_s(2);
    assert_eq!(net.neighbours(0), [peer(3)]);
    net.stop_process(2);
    net.run_s(12);
    assert_eq!(net.neighbours(0), [peer(2)]);
    assert_eq!(net.neighbours(1), [peer(1)]);
}

#[test]
fn connection_that_ends_while_withdrawn_leaves_nothing() {
    let mut net = full_mesh(3);
    set_path(&mut net, 0, 1, false);
    let failed = conn(&net, 0, peer(2));
    net.with(0, |mesh, _, now| mesh.handle_overlay_failed(failed, "silence".to_owned(), now));
    assert!(net.hosts[0].mesh.failed_paths.is_empty());
    // A new connection begins with a path that works.
    net.run_s(60);
    net.assert_converged();
    assert_eq!(net.neighbours(0).len(), 2);
}
