//! The first ring of a network: peers one by one, concurrently, with a peer count, with seed names.

use std::time::Duration;

use weave_lab::{Host, Lab, Topology, claims};

use crate::common::addresses::*;
use crate::common::*;

weave_lab::claims!(
    "S-6", "S-7", "S-17", "S-21", "S-23", "S-24", "S-32", "S-33", "A-1", "A-12", "A-13", "A-14", "I-1",
    "I-13", "I-14", "I-15", "I-16", "I-18", "I-19", "I-20", "I-30", "I-31", "I-36", "I-37", "P-5", "P-8",
    "P-9", "P-13", "P-15", "P-18"
);

#[test]
fn peers_launched_one_by_one_share_a_ring() {
    let Some(lab) = Lab::start("oneafter", &Topology::hosts(3)) else { return };
    let _observer = DuplicateAddressMonitor::of(&lab);
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h));
    launch(h1, &[], &[]);
    h1.weave_ok(&["consense"]);
    let (c1, ip1) = allocated_container(h1, "c1");

    step("a peer that cannot reach the others waits and says for what");
    lab.cut("h1", "h2");
    launch(h2, &[], &["h1"]);
    assert_eq!(status_field(h2, "Consensus"), "deferred");
    let outcome = assert_command_waits(h2, 3, &["consense"]);
    assert!(outcome.stderr.contains("2 of 2 peers must agree"), "{outcome}");
    assert!(
        status_field(h2, "Status").starts_with("awaiting consensus (quorum: 2, known: 1)"),
        "{}",
        status_field(h2, "Status")
    );
    let consense = h2.background(&[weave_lab::weave_binary(), "consense"], false).unwrap();
    lab.heal("h1", "h2");
    assert_eq!(consense.finish().unwrap(), "");
    wait_equal_rings(&[h1, h2], SHORT_TIMEOUT);
    claims(&["S-7"]);
    launch(h3, &[], &["h1", "h2:6783"]);
    h3.weave_ok(&["prime"]);
    assert_eq!(h3.weave_ok(&["status", "targets"]), "h1\nh2:6783\n");
    claims(&["S-6"]);
    wait_equal_rings(&[h1, h2, h3], SHORT_TIMEOUT);

    step("many concurrent allocations on all hosts");
    let addresses: Vec<String> = std::thread::scope(|scope| {
        let runs: Vec<_> = lab.hosts().iter().map(|h| scope.spawn(|| attach_many(h, "m", 60))).collect();
        runs.into_iter().flat_map(|r| r.join().unwrap()).collect()
    });
    let seen = assert_unique_addresses(&lab);
    assert_eq!(seen.len(), 181);
    assert!(addresses.iter().all(|a| seen.contains_key(a) && a.starts_with("10.")));
    let (c3, ip3) = allocated_container(h3, "c3");
    c1.reaches(&ip3, SHORT_TIMEOUT);
    c3.reaches(&ip1, SHORT_TIMEOUT);
    claims(&["I-1"]);

    step("a peer that lost its disk gets its space back from the others");
    let before = ring_entries(h3);
    h3.weave_ok(&["stop"]);
    h3.sh("rm -r /var/lib/weave/*");
    launch(h3, &[], &["h1"]);
    h3.weave_ok(&["prime"]);
    h3.wait("the same shares as before", LONG_TIMEOUT, || {
        let now = ring_entries(h3);
        if now == before { Ok(()) } else { Err(format!("{now:?}")) }
    });
    allocated_container(h3, "c4");
    assert_unique_addresses(&lab);
    claims(&["P-13"]);

    step("rmpeer of a reachable and of an unknown peer");
    h1.wait_established(2, LONG_TIMEOUT);
    let outcome = h1.weave(&["rmpeer", "h3"]);
    assert!(!outcome.success() && outcome.stderr.contains("reachable"), "{outcome}");
    let unknown = h1.weave_ok(&["rmpeer", "00:00:00:00:00:99"]);
    assert_eq!(unknown, "0 IPs taken over from 00:00:00:00:00:99\n");
    claims(&["P-18"]);

    step("the space of a dead host is taken over by the script of the guide");
    h3.reboot();
    for host in [h1, h2] {
        host.wait("h3 to be disconnected", LONG_TIMEOUT, || ipam_page(host).contains("unreachable!"));
    }
    claims(&["A-12"]);
    let script = weave_lab::guide_script("ipam", "reclaim");
    let weave = weave_lab::weave_binary();
    let directory = std::path::Path::new(weave).parent().unwrap().display().to_string();
    let output = h1.sh(&format!("PATH={directory}:$PATH\n{script}"));
    assert!(output.contains(" IPs taken over from "), "{output}");
    h2.wait("h3 to own no space", SHORT_TIMEOUT, || {
        !ipam_page(h2).contains("unreachable!") && ipam_page(h2).lines().count() == 2
    });
    assert_eq!(h1.sh(&format!("PATH={directory}:$PATH\n{script}")), "", "nothing is left to do");
    claims(&["A-13", "P-15"]);

    step("reset hands the space over, or says that no peer took it");
    h2.weave_ok(&["reset"]);
    h1.wait("h1 to own all", SHORT_TIMEOUT, || ipam_page(h1).contains("1048576 IPs (100.0% of total)"));
    let left = h2.command(&["ls", "/var/lib/weave", "/run/weave"]).stdout;
    assert_eq!(left, "");
    assert!(h2.weave(&["reset"]).success());
    claims(&["S-17"]);
    launch(h2, &[], &["h1"]);
    h2.weave_ok(&["prime"]);
    allocated_container(h2, "c5");
    lab.cut("h1", "h2");
    h2.wait("h1 to be disconnected", LONG_TIMEOUT, || ipam_page(h2).contains("unreachable!"));
    let outcome = h2.weave(&["reset"]);
    assert!(
        outcome.success() && outcome.stderr.contains("no other peer was reachable to take over"),
        "{outcome}"
    );
    claims(&["A-14"]);
}

#[test]
fn peers_launched_concurrently_share_a_ring() {
    let Some(lab) = Lab::start("allatonce", &Topology::hosts(3)) else { return };
    let _observer = DuplicateAddressMonitor::of(&lab);
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    let [h1, h2, _h3] = [hosts[0], hosts[1], hosts[2]];
    let list: &[&str] = &["h1", "h2", "h3"];
    launch_concurrently(&[(hosts[0], list), (hosts[1], list), (hosts[2], list)]);
    for host in &hosts {
        host.wait_established(2, LONG_TIMEOUT);
        let ourself =
            host.connections().iter().filter(|c| c.info.contains("cannot connect to ourself")).count();
        assert_eq!(ourself, 1, "{:#?}", host.connections());
    }
    claims(&["S-21"]);
    h2.weave_ok(&["consense"]);
    for host in &hosts {
        wait_consensus(host, "achieved", SHORT_TIMEOUT);
    }
    for host in &hosts {
        assert_eq!(host.weave_ok(&["prime"]), "");
    }
    wait_equal_rings(&hosts, SHORT_TIMEOUT);
    claims(&["S-23", "A-1"]);

    step("separated peers allocate from their own space");
    for host in &hosts {
        attach_many(host, "o", 1);
    }
    cut_all_links(&lab, list);
    for host in &hosts {
        wait_peers(host, 1);
        attach_many(host, "p", 10);
        host.weave_ok(&["detach", "netns:p3"]);
        host.sh("ip netns del p3");
    }
    for host in &hosts {
        attach_many(host, "q", 5);
    }
    assert_unique_addresses(&lab);
    claims(&["S-24", "I-36"]);
    lab.heal_all();
    for host in &hosts {
        host.wait_established(2, LONG_TIMEOUT);
        attach_many(host, "r", 5);
    }
    assert_unique_addresses(&lab);
    for host in &hosts {
        assert!(!ipam_page(host).contains("conflict") && !host.log().contains("conflict"), "{}", host.log());
    }
    claims(&["I-37", "P-5"]);

    step("a cluster of one peer with its own address");
    h1.weave_ok(&["reset"]);
    launch(h1, &[], &["h1"]);
    let outcome = h1.weave(&["consense"]);
    assert!(outcome.success() && outcome.took < Duration::from_secs(20), "{outcome}");
}

#[test]
fn allocation_waits_for_a_majority() {
    let Some(lab) = Lab::start("majority", &Topology::hosts(3)) else { return };
    let _observer = DuplicateAddressMonitor::of(&lab);
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h));
    launch(h1, &[], &["h2", "h3"]);
    let (c1, c2) = (h1.container("c1"), h1.container("c2"));
    let outcome = assert_command_waits(h1, 2, &["attach", &c1.netns()]);
    assert!(
        outcome
            .stderr
            .contains("2 of 3 peers must agree (the 2 peer addresses given, and this peer), 1 known"),
        "{outcome}"
    );
    assert!(outcome.stderr.contains("at least 1 more needed"), "{outcome}");
    assert!(!c1.has_interface());
    assert_eq!(status_field(h1, "Status"), "awaiting consensus (quorum: 2, known: 1)");
    assert_eq!(status_field(h1, "Consensus"), "waiting");
    claims(&["I-18"]);
    let weave = weave_lab::weave_binary();
    let waiting = [
        h1.background(&[weave, "attach", &c1.netns()], false).unwrap(),
        h1.background(&[weave, "attach", "10.32.5.5/12", &c2.netns()], false).unwrap(),
    ];
    h1.wait("both to wait", SHORT_TIMEOUT, || {
        let page = h1.report()?;
        let of = |key: &str| page["IPAM"][key].as_array().map_or(0, Vec::len);
        if of("PendingAllocates") == 1 && of("PendingClaims") == 1 {
            Ok(())
        } else {
            Err(page["IPAM"].to_string())
        }
    });
    launch(h2, &[], &["h1", "h3"]);
    let results: Vec<String> = waiting.map(|w| w.finish().unwrap()).into();
    assert!(results[0].starts_with("10.") && results[1] == "10.32.5.5\n", "{results:?}");
    wait_consensus(h2, "achieved", SHORT_TIMEOUT);
    claims(&["I-13", "I-19", "I-20"]);
    launch(h3, &[], &["h1", "h2"]);
    h3.weave_ok(&["prime"]);
    allocated_container(h3, "c3");
    wait_equal_rings(&[h1, h2, h3], SHORT_TIMEOUT);
    assert_unique_addresses(&lab);
    claims(&["I-14"]);

    step("the first peer comes back with the current list of peers");
    let before = owned_by(h1);
    h1.weave_ok(&["stop"]);
    h1.sh("ip netns del c2");
    launch(h1, &[], &["h2", "h3"]);
    h1.weave_ok(&["prime"]);
    wait_equal_rings(&[h1, h2, h3], LONG_TIMEOUT);
    assert!(before.contains("netns:c1") && owned_by(h1).contains("netns:c1"), "{}", owned_by(h1));
    assert_unique_addresses(&lab);
    claims(&["I-30"]);

    step("a waiting command ends when the daemon ends");
    for host in [h2, h3] {
        host.weave_ok(&["reset"]);
    }
    h1.weave_ok(&["reset"]);
    launch(h1, &[], &["h2", "h3"]);
    let waits = h1.background(&[weave, "consense"], false).unwrap();
    wait_consensus(h1, "waiting", SHORT_TIMEOUT);
    h1.signal_daemon("KILL");
    let error = waits.finish().unwrap_err().to_string();
    assert!(error.contains("failed"), "{error}");
    claims(&["I-31"]);
}

fn owned_by(host: &Host) -> String {
    host.command_ok(&["curl", "-sS", "http://127.0.0.1:6784/ip"])
}

#[test]
fn init_peer_count_sets_the_quorum() {
    let Some(lab) = Lab::start("count", &Topology::hosts(3)) else { return };
    let _observer = DuplicateAddressMonitor::of(&lab);
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h));
    launch(h1, &["--init-peer-count", "3"], &[]);
    launch(h2, &["-initpeercount=3"], &["h3"]);
    h3.weave_ok(&["launch", "h2", "--no-restart", "--initpeercount", "3"]);
    let (_c2, _) = allocated_container(h2, "c2");
    let (_c3, _) = allocated_container(h3, "c3");
    let c1 = h1.container("c1");
    let outcome = assert_command_waits(h1, 2, &["attach", &c1.netns()]);
    assert!(
        outcome.stderr.contains("2 of 3 peers must agree (the peer count given at launch, 3), 1 known"),
        "{outcome}"
    );
    claims(&["I-16"]);
    h2.weave_ok(&["connect", "h1"]);
    let ip = allocate(&c1);
    wait_equal_rings(&[h1, h2, h3], SHORT_TIMEOUT);
    assert!(assert_unique_addresses(&lab).contains_key(&ip));
    claims(&["I-15", "P-8", "P-9"]);
}

#[test]
fn separated_seed_peers_share_a_ring() {
    let Some(lab) = Lab::start("seeds", &Topology::hosts(4)) else { return };
    let observer = DuplicateAddressMonitor::of(&lab);
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    cut_all_links(&lab, &["h1", "h2", "h3", "h4"]);
    for (i, host) in hosts[..3].iter().enumerate() {
        let name = format!("::{}", i + 1);
        launch(host, &["--name", &name, "--ipam-seed", "::1,::2,::3"], &["h1", "h2", "h3"]);
        // No peer is asked or waited for.
        let (_c, _ip) = allocated_container(host, "c");
    }
    assert_unique_addresses(&lab);
    for (a, b) in [("h1", "h2"), ("h1", "h3"), ("h2", "h3")] {
        lab.heal(a, b);
    }
    for host in &hosts[..3] {
        host.wait_established(2, LONG_TIMEOUT);
        allocated_container(host, "d");
    }
    assert_unique_addresses(&lab);
    wait_equal_rings(&hosts[..3], LONG_TIMEOUT);
    for host in &hosts[..3] {
        assert!(!ipam_page(host).contains("conflict"), "{}", ipam_page(host));
    }
    claims(&["S-32"]);

    drop(observer);

    step("another seed list makes another cluster with the same addresses: both report the conflict");
    launch(hosts[3], &["--name", "::4", "--ipam-seed", "::4,::5"], &["h1"]);
    let (_c, ip4) = allocated_container(hosts[3], "c");
    lab.heal("h1", "h4");
    for host in [hosts[0], hosts[3]] {
        host.wait("the conflict to be reported", LONG_TIMEOUT, || {
            let page = ipam_page(host);
            let reported = page.contains("seeded by different peers") && page.contains("weave reset");
            if reported { Ok(()) } else { Err(page) }
        });
    }
    allocated_container(hosts[0], "e");
    allocated_container(hosts[3], "e");
    assert!(hosts[0].daemon_pid().is_some() && !ip4.is_empty());
    let data = [hosts[0], hosts[3]].map(|host| host.container("data"));
    data[0].attach(&["10.9.1.1/24"]);
    data[1].attach(&["10.9.1.4/24"]);
    data[1].reaches("10.9.1.1", SHORT_TIMEOUT);
    claims(&["S-33"]);
}
