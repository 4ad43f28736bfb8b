//! Hosts change their addresses, restart, or are copies of each other.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use weave_types::PeerUid;

use super::harness::Net;
use crate::test_support::peer;

fn seconds(n: f64) -> Duration {
    Duration::from_secs_f64(n)
}

/// The first two of `n` peers, of which the second or the first has dialled.
fn two(n: usize, second_dials: bool) -> Net {
    let mut net = Net::new(n, |_, _| {});
    if second_dials {
        net.connect(1, &["10.0.0.1"])
    } else {
        net.connect(0, &["10.0.0.2"])
    }
    net.run_s(70);
    net
}

#[test]
fn peer_that_moved_dials_at_once_even_if_it_had_not_dialled_before() {
    for second_dials in [true, false] {
        let mut net = two(2, second_dials);
        let old = net.move_host(1, "10.9.9.9".parse().unwrap());
        net.with(1, |mesh, _, now| mesh.handle_network_change(&BTreeSet::from([old]), now));
        assert_eq!(net.neighbours(1), [], "the connection from the old address has ended");
        assert_eq!(net.logged(1, "this host has lost its address 10.0.0.2"), 1);
        net.run(seconds(0.05));
        assert!(net.logged(0, "->[10.9.9.9:") > 0, "it has dialled: {:#?}", net.hosts[1].events);
        // If the connection numbers are in favour of the broken connection, that is tested first.
        net.run(seconds(7.5));
        net.assert_converged();
        assert_eq!(net.hosts[0].mesh.status(net.time()).connections[0].address.ip(), net.hosts[1].ip);
    }
}

#[test]
fn change_of_the_network_makes_all_paths_be_tested() {
    let mut net = Net::new(3, |_, _| {});
    net.connect(0, &["10.0.0.2", "10.0.0.3"]);
    net.run_s(70);
    net.with(0, |mesh, _, now| mesh.handle_network_change(&BTreeSet::new(), now));
    let all: Vec<_> = net.hosts[0].setups.keys().copied().collect();
    assert_eq!((net.hosts[0].tested_paths.clone(), all.len()), (all, 2));
}

#[test]
fn tunnel_from_another_address_makes_the_connection_be_tested() {
    let mut net = two(2, true);
    net.move_host(1, "10.9.9.9".parse().unwrap());
    let conn = *net.hosts[0].setups.keys().next().unwrap();
    net.with(0, |mesh, _, now| mesh.probe(conn, now));
    net.run(seconds(1.6));
    assert_eq!(net.neighbours(0), []);
    // A test of a connection that works changes nothing.
    let mut net = two(2, true);
    let conn = *net.hosts[0].setups.keys().next().unwrap();
    net.with(0, |mesh, _, now| mesh.probe(conn, now));
    net.run_s(10);
    assert_eq!((net.neighbours(0).len(), net.logged(0, "shutting down")), (1, 0));
}

#[test]
fn host_that_takes_over_the_address_of_a_target_is_dialled() {
    let mut net = two(3, false);
    let old = net.move_host(1, "10.9.9.9".parse().unwrap());
    net.with(1, |mesh, _, now| mesh.handle_network_change(&BTreeSet::from([old]), now));
    net.run_s(10);
    assert_eq!(net.neighbours(0), [peer(2)]);
    net.hosts[2].ip = old;
    net.run_s(60);
    assert_eq!(net.neighbours(0), [peer(2), peer(3)], "{:#?}", net.hosts[0].events);
}

#[test]
fn two_hosts_behind_one_address_are_both_dialled() {
    // The third has dialled the first, whose target is the address of the third, where the second answers.
    let mut net = Net::new(3, |_, _| {});
    let router: IpAddr = "10.0.0.3".parse().unwrap();
    net.hosts[2].forwarded_to = Some(1);
    net.connect(2, &["10.0.0.1"]);
    net.run_s(10);
    net.connect(0, &[&router.to_string()]);
    net.run_s(5);
    assert_eq!(net.neighbours(0), [peer(2), peer(3)], "{:#?}", net.hosts[0].events);
    net.run_s(600);
    assert_eq!(net.neighbours(0), [peer(2), peer(3)]);
}

#[test]
fn copy_of_a_host_is_refused_while_the_first_one_lives() {
    // The second peer is connected to the third. The first has the name of the second and dials the third.
    let adjust = |i: usize, config: &mut crate::Config| {
        if i == 0 {
            config.name = peer(2);
            config.uid = PeerUid(999);
        }
    };
    let mut net = Net::new(3, adjust);
    net.connect(1, &["10.0.0.3"]);
    net.run_s(10);
    let ended = net.logged(2, "connection deleted");
    net.connect(0, &["10.0.0.3"]);
    net.run_s(120);
    assert_eq!((net.neighbours(2), net.neighbours(1)), (vec![peer(2)], vec![peer(3)]));
    assert_eq!(net.logged(2, "connection deleted"), ended, "{:#?}", net.hosts[2].events);
    assert_eq!(net.hosts[1].mesh.name_conflict(), None);
    let conflict = net.hosts[0].mesh.name_conflict().unwrap();
    assert!(conflict.contains("another host has our name (h2 at 10.0.0.2:"), "{conflict}");
    let target = net.hosts[0].mesh.status(net.time()).targets.remove(0);
    assert!(target.last_error.unwrap().contains("weave reset"));
    assert!(net.logged(2, "another host has the name") >= 1);
    // When the first one is gone, the other one is let in.
    net.stop_process(1);
    net.run_s(400);
    assert_eq!(net.neighbours(2), [peer(2)]);
    assert_eq!(net.hosts[0].mesh.name_conflict(), None);
}

#[test]
fn copy_that_dials_the_first_one_knows_that_it_is_the_second() {
    let mut net = Net::new(3, |i, config| config.name = peer(if i == 0 { 2 } else { i as u64 + 1 }));
    net.connect(1, &["10.0.0.3"]);
    net.run_s(10);
    net.connect(0, &["10.0.0.2"]);
    net.run_s(10);
    assert!(net.hosts[0].mesh.name_conflict().is_some_and(|text| text.contains("--name")));
    assert_eq!(net.hosts[1].mesh.name_conflict(), None);
    assert_eq!(net.neighbours(1), [peer(3)]);
}
