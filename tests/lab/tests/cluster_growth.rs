//! A fixed cluster that is incomplete at first, grows, and loses power; and an observer that has addresses of newer peers only.

use std::collections::BTreeSet;
use std::time::Duration;

use weave_lab::{Host, Lab, Topology, claims, throughout};

use crate::common::addresses::*;
use crate::common::*;

weave_lab::claims!("S-8", "S-24", "S-25", "S-26", "S-31", "A-4", "A-5", "A-7", "A-9", "I-12");

#[test]
fn cluster_grows_and_survives_power_loss() {
    let Some(lab) = Lab::start("growth", &Topology::hosts(8)) else { return };
    let _observer = DuplicateAddressMonitor::of(&lab);
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    let [h1, h2, h3, h4, h5, h6, h7, h8] = hosts[..] else { unreachable!() };
    let list: &[&str] = &["h1", "h2", "h3", "h4", "h5"];
    let weave = weave_lab::weave_binary();

    step("two of five peers are too few, three are enough");
    launch_concurrently(&[(h1, list), (h2, list)]);
    h1.wait_established(1, LONG_TIMEOUT);
    let c1 = h1.container("c1");
    let outcome = assert_command_waits(h1, 1, &["attach", &c1.netns()]);
    assert!(outcome.stderr.contains("3 of 5 peers must agree"), "{outcome}");
    assert!(outcome.stderr.contains("at least 1 more needed"), "{outcome}");
    assert_eq!(status_field(h1, "Status"), "awaiting consensus (quorum: 3, known: 2)");
    for absent in ["198.18.0.4:6783", "198.18.0.5:6783"] {
        shows_failing(h1, absent, "refused");
    }
    let waits = h1.background(&[weave, "attach", &c1.netns()], false).unwrap();
    launch(h3, &[], list);
    let ip1 = waits.finish().unwrap().trim().to_owned();
    claims(&["S-31"]);

    step("a late voter owns nothing until it asks");
    launch(h4, &[], list);
    assert_eq!(h4.weave_ok(&["consense"]), "");
    wait_equal_rings(&[h1, h4], SHORT_TIMEOUT);
    assert!(ipam_page(h4).lines().all(|l| !l.contains("(h4)")), "{}", ipam_page(h4));

    step("one peer is added as the guide says, then two concurrently");
    let add = |host: &Host| {
        launch(host, &[], list);
        assert_eq!(host.weave_ok(&["consense"]), "");
    };
    add(h6);
    let existing = [h1, h2, h3, h4];
    existing.iter().for_each(|host| drop(host.weave_ok(&["connect", "h6"])));
    let (_c6, ip6) = allocated_container(h6, "c6");
    std::thread::scope(|scope| {
        for host in [h5, h7] {
            scope.spawn(move || {
                add(host);
                allocated_container(host, "c");
            });
        }
    });
    existing.iter().for_each(|host| drop(host.weave_ok(&["connect", "h7"])));
    wait_equal_rings(&[h1, h2, h3, h5, h6, h7], SHORT_TIMEOUT);
    claims(&["S-26"]);

    step("an observer launched with addresses of newer and of absent peers");
    h8.command_ok(&["ip", "link", "set", "eth0", "down"]);
    let addresses = ["h6", "h7", "192.0.2.9", "nowhere.invalid"];
    launch(h8, &["--ipalloc-init=observer"], &addresses);
    assert_eq!(ipam_page(h8), "");
    let c8 = h8.container("c8");
    let waits = h8.background(&[weave, "attach", &c8.netns()], false).unwrap();
    h8.command_ok(&["ip", "link", "set", "eth0", "up"]);
    let ip8 = waits.finish().unwrap().trim().to_owned();
    wait_equal_rings(&hosts, LONG_TIMEOUT);
    claims(&["A-5", "A-9"]);
    shows_failing(h8, "192.0.2.9:6783", "");
    shows_failing(h8, "nowhere.invalid", "");
    for host in &hosts {
        host.wait_established(7, LONG_TIMEOUT);
    }
    assert_eq!(targets(h8), ["192.0.2.9", "h6", "h7", "nowhere.invalid"], "those that are not there too");
    claims(&["A-4"]);

    step("a separated peer with space allocates, one without says why it waits");
    [h4, h8].iter().for_each(|host| isolate(&lab, host));
    for host in [h4, h8] {
        host.wait("the others to be disconnected", LONG_TIMEOUT, || {
            ipam_page(host).matches("unreachable!").count() >= 3
        });
    }
    allocated_container(h8, "alone");
    let c4 = h4.container("c4");
    let outcome = assert_command_waits(h4, 2, &["attach", &c4.netns()]);
    assert!(
        outcome.stderr.contains("free space belongs to") && outcome.stderr.contains("reconnect it"),
        "{outcome}"
    );
    let waits = h4.background(&[weave, "attach", &c4.netns()], false).unwrap();
    // Three minutes with LAB_LONG=1.
    if long_tests_enabled() {
        let alone = || h8.connections().iter().all(|c| c.state != "established");
        throughout("alone", Duration::from_secs(180), alone);
    }
    lab.heal_all();
    waits.finish().unwrap();
    claims(&["S-24"]);
    // This happens without any command.
    h8.wait_established(7, Duration::from_secs(60));

    step("after a crash of the observer running containers keep their addresses");
    let name = |host: &Host| host.report().unwrap()["Router"]["Name"].clone();
    let before: Vec<_> = hosts.iter().map(|h| (name(h), targets(h))).collect();
    h8.signal_daemon("KILL");
    h8.wait("the end of the daemon", SHORT_TIMEOUT, || h8.daemon_pid().is_none());
    launch(h8, &["--resume"], &[]);
    assert_eq!(allocate(&c8), ip8);
    c8.reaches(&ip6, LONG_TIMEOUT);

    step("power failure of all hosts except h1");
    on_each_host(&hosts[1..], Host::reboot);
    on_each_host(&hosts[1..], |host| launch(host, &["--resume"], &[]));
    for host in &hosts {
        host.wait_established(7, LONG_TIMEOUT);
    }
    assert_eq!(hosts.iter().map(|h| (name(h), targets(h))).collect::<Vec<_>>(), before);
    wait_equal_rings(&hosts, LONG_TIMEOUT);
    on_each_host(&hosts, |host| drop(allocated_container(host, "again")));
    assert!(assert_unique_addresses(&lab).contains_key(&ip1));
    claims(&["S-25", "A-7"]);

    step("there was one election and one division of the range");
    let mut divisions = BTreeSet::new();
    for host in &hosts {
        assert!(host.report().unwrap()["IPAM"]["Paxos"].is_null());
        let log = host.log();
        divisions.extend(log.lines().filter_map(|l| l.split_once("first among ")).map(|(_, s)| s.to_owned()));
        let elections = log.lines().filter(|l| l.contains("assuming quorum size")).count();
        assert!(elections <= 1, "{elections} elections on {}", host.name());
    }
    assert_eq!(divisions.len(), 1, "{divisions:?}");
    claims(&["I-12"]);
}

/// Cuts a host off from all others.
fn isolate(lab: &Lab, host: &Host) {
    lab.hosts()
        .iter()
        .filter(|h| h.name() != host.name())
        .for_each(|other| lab.cut(host.name(), other.name()));
}

fn targets(host: &Host) -> Vec<String> {
    host.weave_ok(&["status", "targets"]).lines().map(str::to_owned).collect()
}

/// Waits until `status connections` shows why a target is not connected, and when the next attempt is.
#[track_caller]
fn shows_failing(host: &Host, target: &str, reason: &str) {
    host.wait("a target to be shown as failing", SHORT_TIMEOUT, || {
        let all = host.connections();
        let failing = |c: &weave_lab::Connection| {
            c.remote.starts_with(target)
                && c.state == "failed"
                && c.info.contains(reason)
                && c.info.contains("retry: ")
        };
        if all.iter().any(failing) { Ok(()) } else { Err(format!("{all:#?}")) }
    });
}

/// Row S-8 with real hosts; runs with random failures are in `tests/sim/tests/simulation/scripted.rs`.
#[test]
fn peers_join_one_by_one_while_links_fail() {
    let Some(lab) = Lab::start("onebyone", &Topology::hosts(5)) else { return };
    let _observer = DuplicateAddressMonitor::of(&lab);
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    let names: Vec<&str> = hosts.iter().map(|host| host.name()).collect();
    for (n, host) in hosts.iter().enumerate() {
        launch(host, &[], &names[..n]);
        assert_eq!(host.weave_ok(&["consense"]), "");
        allocated_container(host, "c");
        // The link of the last two peers is down while the next one is added; the previous link is up again.
        lab.heal_all();
        if n > 0 {
            lab.cut(names[n - 1], names[n]);
        }
    }
    lab.heal_all();
    wait_equal_rings(&hosts, LONG_TIMEOUT);
    on_each_host(&hosts, |host| drop(allocated_container(host, "again")));
    assert_unique_addresses(&lab);
    claims(&["S-8"]);
}
