//! A few fixed peers, and many observers that join and leave.

use std::time::Duration;

use weave_lab::{Host, Lab, Topology, claims, throughout};

use crate::common::addresses::*;
use crate::common::*;

weave_lab::claims!("S-27", "S-28", "S-29", "S-30", "A-3", "A-6", "A-8", "A-11", "I-21", "I-22", "P-7");

#[test]
fn observers_join_and_leave() {
    let observers = if long_tests_enabled() { 20 } else { 6 };
    let Some(lab) = Lab::start("observers", &Topology::hosts(3 + observers)) else { return };
    let _monitor = DuplicateAddressMonitor::of(&lab);
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    let (fixed, dynamic) = hosts.split_at(3);
    let list = ["h1", "h2", "h3"];

    step("one fixed peer and any number of observers are no majority");
    launch(fixed[0], &[], &list);
    launch(dynamic[0], &["--ipalloc-init=observer"], &list);
    dynamic[1].weave_ok(&["launch", "--no-restart", "h1", "h2", "h3", "--observer"]);
    for host in &dynamic[..2] {
        host.wait_established(2, LONG_TIMEOUT);
    }
    claims(&["S-30", "A-6"]);
    let (c1, c4) = (fixed[0].container("c1"), dynamic[0].container("c4"));
    let outcome = assert_command_waits(fixed[0], 2, &["attach", &c1.netns()]);
    assert!(outcome.stderr.contains("1 known"), "{outcome}");
    let outcome = assert_command_waits(dynamic[0], 6, &["attach", &c4.netns()]);
    assert!(outcome.stderr.contains("observer"), "{outcome}");
    assert_eq!(status_field(dynamic[0], "Status"), "priming");
    step("observers without the fixed peers form no ring");
    for a in ["h4", "h5"] {
        for b in list {
            lab.cut(a, b);
        }
    }
    if long_tests_enabled() {
        let nothing = || {
            (status_field(dynamic[0], "Status"), ipam_page(dynamic[1])) == ("priming".into(), String::new())
        };
        throughout("no ring", Duration::from_secs(120), nothing);
    }
    assert_command_waits(dynamic[0], 12, &["attach", &c4.netns()]);
    assert_eq!(
        (status_field(dynamic[0], "Status"), ipam_page(dynamic[1])),
        ("priming".into(), String::new())
    );
    lab.heal_all();
    let weave = weave_lab::weave_binary();
    let waits = dynamic[0].background(&[weave, "attach", &c4.netns()], false).unwrap();
    launch(fixed[1], &[], &list);
    let ip = waits.finish().unwrap();
    assert!(ip.starts_with("10."), "{ip}");
    claims(&["A-8", "S-28", "I-21", "I-22"]);
    launch(fixed[2], &[], &list);

    std::thread::scope(|scope| {
        for host in &dynamic[2..] {
            scope.spawn(|| launch(host, &["--ipalloc-init", "observer"], &list));
        }
    });
    claims(&["S-27", "A-3"]);
    std::thread::scope(|scope| {
        for host in &hosts {
            scope.spawn(|| attach_many(host, "m", 3));
        }
    });
    assert_unique_addresses(&lab);
    step("half of the peers leave concurrently and the others get their space");
    let leaving = &dynamic[dynamic.len() / 2..];
    std::thread::scope(|scope| {
        for host in leaving {
            scope.spawn(|| host.weave_ok(&["reset"]));
        }
    });
    let staying: Vec<&Host> = hosts[..hosts.len() - leaving.len()].to_vec();
    for host in &staying {
        host.wait("only existing peers to own space", LONG_TIMEOUT, || {
            let page = ipam_page(host);
            let gone = page.contains("unreachable!") || page.lines().count() > staying.len();
            if gone { Err(page) } else { Ok(()) }
        });
    }
    wait_equal_rings(&staying, LONG_TIMEOUT);
    for host in &fixed[..3] {
        assert_eq!(host.weave_ok(&["status", "targets"]), "h1\nh2\nh3\n");
    }
    assert_unique_addresses(&lab);
    claims(&["S-29", "A-11"]);
}

#[test]
fn peer_without_ipam_relays_gossip() {
    let Some(lab) = Lab::start("without", &Topology::hosts(3)) else { return };
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h));
    lab.cut("h1", "h3");
    launch(h1, &[], &[]);
    launch(h2, &["--ipalloc-range="], &["h1"]);
    launch(h3, &[], &["h2"]);
    for (host, n) in [(h1, 1), (h2, 2), (h3, 1)] {
        host.wait_established(n, LONG_TIMEOUT);
    }
    step("the peer in the middle has no IPAM and relays gossip");
    h1.weave_ok(&["prime"]);
    h3.weave_ok(&["prime"]);
    let ((c1, ip1), (c3, ip3)) = (allocated_container(h1, "c"), allocated_container(h3, "c"));
    wait_equal_rings(&[h1, h3], LONG_TIMEOUT);
    c1.reaches(&ip3, SHORT_TIMEOUT);
    c3.reaches(&ip1, SHORT_TIMEOUT);
    let c2 = h2.container("c2");
    let outcome = h2.weave(&["attach", &c2.netns()]);
    assert!(!outcome.success() && outcome.took < Duration::from_secs(5), "{outcome}");
    assert_eq!(outcome.stderr, "IP address allocation must be enabled to use 'net:'\n");
    assert_eq!(c2.attach(&["10.2.1.2/24"]), "10.2.1.2");
    assert_eq!(ipam_page(h2), "");
    let outcome = h2.weave(&["prime"]);
    assert!(outcome.code == Some(4) && outcome.stderr.contains("is off"), "{outcome}");
    assert_unique_addresses(&lab);
    claims(&["P-7"]);
}
