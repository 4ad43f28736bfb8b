//! A chain: each peer has the address of the previous one. The middle peer fails, and all hosts lose power.

use std::time::Duration;

use weave_lab::{Host, Lab, Topology, claims, throughout};

use crate::common::addresses::*;
use crate::common::*;

weave_lab::claims!("S-14", "S-15", "I-29");

/// What starts the peer when its machine does.
fn boot(hosts: &[&Host]) {
    on_each_host(hosts, |host| launch(host, &["--resume"], &[]));
}

#[test]
fn chain_without_its_middle_peer() {
    let Some(lab) = Lab::start("middle", &Topology::hosts(3)) else { return };
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    let [a, b, c] = hosts[..] else { unreachable!() };
    launch(a, &[], &[]);
    let (_a1, first) = allocated_container(a, "a1");
    launch(b, &[], &["h1"]);
    launch(c, &[], &["h2"]);
    for host in [b, c] {
        host.weave_ok(&["consense"]);
    }
    for host in &hosts {
        host.wait_established(2, LONG_TIMEOUT);
    }
    let (_b1, _) = allocated_container(b, "b1");
    allocated_container(c, "c1");
    let before = ring_entries(a);
    on_each_host(&hosts, Host::reboot);
    boot(&[a, c]);

    step("discovered peers are not stored: both peers report what is unreachable");
    c.wait("the target to fail", SHORT_TIMEOUT, || {
        let all = c.connections();
        let failing = all.len() == 1 && all[0].remote.starts_with("198.18.0.2:") && all[0].state == "failed";
        if failing && all[0].info.contains("retry: ") { Ok(()) } else { Err(format!("{all:#?}")) }
    });
    let log = c.log();
    assert!(log.contains("no peer is connected, and the only known peer h2 cannot be reached"), "{log}");
    assert!(log.contains("'weave connect <peer>' adds another"), "{log}");
    assert_eq!(ipam_page(c).matches("unreachable!").count(), 2, "{}", ipam_page(c));
    assert_eq!(ipam_page(a).matches("unreachable!").count(), 2, "{}", ipam_page(a));
    throughout("no connection", Duration::from_secs(3), || a.connections().is_empty());
    claims(&["S-14"]);

    step("the first peer goes on with the ring on its disk");
    let (_again, ip) = allocated_container(a, "a2");
    assert_eq!(ip, first, "its container is gone, its space is not");
    assert_eq!(ring_entries(a).len(), before.len());
    assert_eq!(a.log().matches("assuming quorum size").count(), 1);

    step("connected by hand, both find each other again after a power failure");
    a.weave_ok(&["connect", "h3"]);
    a.wait_established(1, Duration::from_secs(60));
    on_each_host(&[a, c], Host::reboot);
    boot(&[a, c]);
    a.wait_established(1, Duration::from_secs(60));
    wait_equal_rings(&[a, c], SHORT_TIMEOUT);
    claims(&["S-15"]);
    boot(&[b]);
    b.wait_established(2, LONG_TIMEOUT);
    wait_equal_rings(&hosts, SHORT_TIMEOUT);
    on_each_host(&hosts, |host| drop(allocated_container(host, "all")));
    assert_unique_addresses(&lab);

    step("a peer that lost its disk forms another ring: the rings are not mixed and data flows");
    let d = [a, c].map(|host| host.container("d"));
    d[0].attach(&["10.9.1.1/24"]);
    d[1].attach(&["10.9.1.3/24"]);
    cut_all_links(&lab, &["h1", "h2", "h3"]);
    let used = allocate(&c.container("c2"));
    a.signal_daemon("KILL");
    a.wait("the end of the daemon", SHORT_TIMEOUT, || a.daemon_pid().is_none());
    a.sh("rm -r /var/lib/weave/*");
    step("with a peer address it waits for that peer, also an unreachable one");
    launch(a, &[], &["h2"]);
    let outcome = assert_command_waits(a, 2, &["consense"]);
    assert!(outcome.stderr.contains("2 of 2 peers must agree"), "{outcome}");
    a.weave_ok(&["stop"]);
    launch(a, &[], &[]);
    let x = a.container("x");
    assert_eq!(x.attach(&[&format!("{used}/12")]), used);
    a.weave_ok(&["connect", "h3"]);
    lab.heal_all();
    step("the new ring's peer reports the conflict and what to do");
    a.wait("the conflict to be reported", LONG_TIMEOUT, || {
        let page = ipam_page(a);
        let reported = page.contains("conflict with ") && page.contains("(h2)") && page.contains("(h3)");
        if reported && page.contains("not handed out") && page.contains("weave reset") {
            Ok(())
        } else {
            Err(page)
        }
    });
    assert!(a.log().contains("conflict with"), "{}", a.log());
    step("disputed addresses are not allocated");
    let outcome = assert_command_waits(a, 1, &["attach", "net:10.44.0.0/14", &a.container("y").netns()]);
    assert!(outcome.stderr.contains("disputed"), "{outcome}");
    d[0].reaches("10.9.1.3", SHORT_TIMEOUT);
    step("reset, as the status page advises, resolves the conflict");
    drop(x);
    a.weave_ok(&["reset"]);
    launch(a, &[], &["h2", "h3"]);
    a.weave_ok(&["consense"]);
    wait_equal_rings(&hosts, LONG_TIMEOUT);
    for host in &hosts {
        allocated_container(host, "end");
        host.wait("the end of the conflict", LONG_TIMEOUT, || {
            let page = ipam_page(host);
            if page.contains("conflict") { Err(page) } else { Ok(()) }
        });
    }
    assert_unique_addresses(&lab);
    claims(&["I-29"]);
}
