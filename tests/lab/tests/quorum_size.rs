//! The quorum: from peer addresses, from `--init-peer-count`, and with wrong counts.

use std::time::Duration;

use weave_lab::{Host, Lab, Topology, claims};

use crate::common::addresses::*;
use crate::common::*;

weave_lab::claims!("S-9", "S-11", "S-12", "S-22", "I-23", "I-24", "I-27", "I-28");

/// Checks that an allocation waits for other peers and says so.
#[track_caller]
fn waits_for(host: &Host, text: &str) {
    host.sh("ip netns add w 2>/dev/null || true");
    let outcome = assert_command_waits(host, 3, &["attach", "netns:w"]);
    assert!(outcome.stderr.contains(text), "{outcome}");
}

fn resets(hosts: &[&Host]) {
    on_each_host(hosts, |host| drop(host.weave_ok(&["reset"])));
}

#[test]
fn quorum_follows_the_peer_addresses() {
    let Some(lab) = Lab::start("chain", &Topology::hosts(3)) else { return };
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    let [h1, h2, h3] = hosts[..] else { unreachable!() };
    cut_all_links(&lab, &["h1", "h2", "h3"]);
    launch_concurrently(&[(h1, &[]), (h2, &["h1"]), (h3, &["h1", "h2"])]);
    let one = h1.container("one");
    let outcome = h1.weave(&["attach", &one.netns()]);
    assert!(outcome.success() && outcome.took < Duration::from_secs(5), "{outcome}");
    waits_for(h2, "2 of 2 peers must agree (the 1 peer addresses given, and this peer), 1 known");
    waits_for(h3, "2 of 3 peers must agree (the 2 peer addresses given, and this peer), 1 known");
    for host in [h2, h3] {
        assert_eq!(status_field(host, "Status"), "awaiting consensus (quorum: 2, known: 1)");
    }
    // Two that connected to each other first would agree on a division of their own.
    lab.heal("h1", "h2");
    lab.heal("h1", "h3");
    on_each_host(&[h2, h3], |host| drop(allocated_container(host, "later")));
    wait_equal_rings(&hosts, LONG_TIMEOUT);
    assert_unique_addresses(&lab);
    claims(&["S-9"]);

    step("connect and forget change the quorum");
    cut_all_links(&lab, &["h1", "h2", "h3"]);
    resets(&hosts);
    launch(h1, &[], &[]);
    h1.weave_ok(&["connect", "h2", "h3"]);
    waits_for(h1, "2 of 3 peers must agree (the 2 peer addresses given, and this peer), 1 known");
    launch(h2, &[], &["192.0.2.1", "192.0.2.2"]);
    h2.weave_ok(&["connect", "192.0.2.3", "192.0.2.4"]);
    waits_for(h2, "3 of 5 peers must agree (the 4 peer addresses given, and this peer), 1 known");
    launch(h3, &[], &["h1", "h2"]);
    h3.weave_ok(&["forget", "h2"]);
    waits_for(h3, "2 of 2 peers must agree (the 1 peer addresses given, and this peer), 1 known");
    claims(&["S-11"]);
    on_each_host(&[h1, h2], |host| drop(host.weave_ok(&["stop"])));
    launch(h1, &["--init-peer-count", "7"], &[]);
    waits_for(h1, "4 of 7 peers must agree");
    assert_eq!(status_field(h1, "Status"), "awaiting consensus (quorum: 4, known: 1)");
    claims(&["I-24"]);
}

#[test]
fn connected_peer_never_forms_its_own_ring() {
    let Some(lab) = Lab::start("rounds", &Topology::hosts(4)) else { return };
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    let h1 = hosts[0];
    let rounds = if long_tests_enabled() { 13 } else { 2 };

    step("a cluster of one peer with its own address");
    on_each_host(&hosts, |host| {
        for _ in 0..rounds {
            launch(host, &[], &[host.name()]);
            let outcome = host.weave(&["consense"]);
            assert!(outcome.success() && outcome.took < Duration::from_secs(20), "{outcome}");
            host.weave_ok(&["reset"]);
        }
    });
    step("one of three peers with its own address among the three");
    launch(hosts[1], &[], &["h2", "192.0.2.1", "192.0.2.2"]);
    let outcome = assert_command_waits(hosts[1], 6, &["consense"]);
    assert!(outcome.stderr.contains("2 of 3 peers must agree"), "{outcome}");
    hosts[1].weave_ok(&["reset"]);
    claims(&["S-22"]);

    step("a connected peer joins the existing ring, however slow the other peer is");
    launch(h1, &[], &[]);
    h1.weave_ok(&["consense"]);
    let (_c1, _) = allocated_container(h1, "c1");
    let before = ring_entries(h1);
    for round in 0..rounds.max(3) {
        match round {
            0 => cut_from(&lab, h1),
            1 => h1.signal_daemon("STOP"),
            _ => {}
        }
        let joining: Vec<_> = hosts[1..]
            .iter()
            .map(|host| {
                launch(host, &[], &[]);
                host.weave_ok(&["connect", "h1"]);
                host.background(&[weave_lab::weave_binary(), "consense"], false).unwrap()
            })
            .collect();
        if round < 2 {
            for host in &hosts[1..] {
                wait_consensus(host, "waiting", SHORT_TIMEOUT);
                assert_eq!(ipam_page(host).lines().filter(|l| l.contains(" IPs (")).count(), 0);
            }
        }
        match round {
            0 => lab.heal_all(),
            1 => h1.signal_daemon("CONT"),
            _ => {}
        }
        for join in joining {
            assert_eq!(join.finish().unwrap(), "");
        }
        wait_equal_rings(&hosts, LONG_TIMEOUT);
        assert_eq!(ring_entries(h1), before, "there is one ring");
        resets(&hosts[1..]);
    }
    claims(&["S-12"]);
}

fn cut_from(lab: &Lab, host: &Host) {
    lab.hosts()
        .iter()
        .filter(|h| h.name() != host.name())
        .for_each(|other| lab.cut(host.name(), other.name()));
}

#[test]
fn wrong_peer_counts() {
    let Some(lab) = Lab::start("counts", &Topology::hosts(4)) else { return };
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    let [h1, h2, h3, h4] = hosts[..] else { unreachable!() };
    let weave = weave_lab::weave_binary();
    let launch_all = |count: &str| {
        let all = ["--init-peer-count", count, "h1", "h2", "h3", "h4"];
        let calls: Vec<(&Host, &[&str])> = hosts.iter().map(|h| (*h, &all[..])).collect();
        launch_concurrently(&calls);
    };

    step("with a count of two, separated halves of four peers form two rings");
    for (a, b) in [("h1", "h3"), ("h1", "h4"), ("h2", "h3"), ("h2", "h4")] {
        lab.cut(a, b);
    }
    launch_all("2");
    on_each_host(&hosts, |host| drop(allocated_container(host, "c")));
    wait_equal_rings(&[h1, h2], SHORT_TIMEOUT);
    wait_equal_rings(&[h3, h4], SHORT_TIMEOUT);
    assert_ne!(ring_entries(h1), ring_entries(h3));
    resets(&hosts);

    step("with a count of four, three peers are needed and the last one joins");
    launch_all("4");
    for host in &hosts {
        host.wait_established(1, LONG_TIMEOUT);
        waits_for(host, "3 of 4 peers must agree");
    }
    let waits = h4.background(&[weave, "attach", "netns:w"], false).unwrap();
    lab.heal("h1", "h3");
    lab.heal("h2", "h3");
    on_each_host(&[h1, h2, h3], |host| drop(allocated_container(host, "d")));
    lab.heal_all();
    waits.finish().unwrap();
    wait_equal_rings(&hosts, LONG_TIMEOUT);
    assert_unique_addresses(&lab);
    claims(&["I-27"]);

    step("counts have no effect once there is a ring");
    on_each_host(&[h1, h4], |host| {
        host.weave_ok(&["stop"]);
        launch(host, &["--init-peer-count", "1"], &["h2", "h3"]);
        host.wait_established(3, LONG_TIMEOUT);
    });
    resets(&[h3]);
    launch(h3, &["--init-peer-count", "1"], &["h1", "h2"]);
    h3.wait_established(3, LONG_TIMEOUT);
    on_each_host(&[h1, h3, h4], |host| drop(allocated_container(host, "e")));
    wait_equal_rings(&hosts, LONG_TIMEOUT);
    assert_unique_addresses(&lab);
    for host in &hosts {
        assert!(!ipam_page(host).contains("conflict"), "{}", ipam_page(host));
    }
    claims(&["I-28"]);
    resets(&hosts);

    step("a count of five for three peers works");
    let all: &[&str] = &["--init-peer-count", "5", "h1", "h2", "h3"];
    launch_concurrently(&[(h1, all), (h2, all)]);
    h1.wait_established(1, LONG_TIMEOUT);
    waits_for(h1, "3 of 5 peers must agree (the peer count given at launch, 5)");
    let waits = h1.background(&[weave, "attach", "netns:w"], false).unwrap();
    launch_concurrently(&[(h3, all)]);
    waits.finish().unwrap();
    on_each_host(&[h2, h3], |host| drop(allocated_container(host, "f")));
    wait_equal_rings(&[h1, h2, h3], SHORT_TIMEOUT);
    assert_unique_addresses(&lab);
    claims(&["I-23"]);
}
