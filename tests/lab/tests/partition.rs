//! A network partition and its end.

use weave_lab::{Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("F-48", "F-50");

#[test]
fn both_halves_keep_working_and_merge() {
    let Some(lab) = Lab::start("halves", &Topology::hosts(4)) else { return };
    launch_mesh(&lab, &[]);
    let members = attach_each(&lab.hosts().iter().collect::<Vec<_>>());
    for (a, b) in ordered_pairs(&members) {
        a.container.reaches(&b.ip, SHORT_TIMEOUT);
    }
    let inside = [members[0].container.pinging("10.2.1.2", 50), members[2].container.pinging("10.2.1.4", 50)];
    for a in ["h1", "h2"] {
        for b in ["h3", "h4"] {
            lab.cut(a, b);
        }
    }
    members[0].container.never_reaches("10.2.1.3");
    for host in lab.hosts() {
        wait_peers(host, 2);
        host.wait_established(1, LONG_TIMEOUT);
    }
    step("both halves carry traffic while separated");
    members[1].container.tcp(&members[0].container, "10.2.1.1", 300_000);
    members[3].container.tcp(&members[2].container, "10.2.1.3", 300_000);
    lab.heal_all();
    for host in lab.hosts() {
        host.wait_established(3, LONG_TIMEOUT);
        wait_peers(host, 4);
    }
    for (a, b) in ordered_pairs(&members) {
        a.container.reaches(&b.ip, SHORT_TIMEOUT);
        a.container.tcp(&b.container, &b.ip, 50_000);
    }
    for pinger in inside {
        let pings = pinger.finish();
        assert!(pings.longest_gap_ms < 1500.0, "inside a half nothing may stop: {pings:?}");
    }
    claims(&["F-50"]);
}

#[test]
fn frozen_peer_is_disconnected() {
    let Some(lab) = Lab::start("frozen", &Topology::hosts(3)) else { return };
    launch_mesh(&lab, &[]);
    let views = || lab.hosts().iter().map(peer_lines).collect::<Vec<_>>();
    weave_lab::eventually("equal views of the peers", SHORT_TIMEOUT, || {
        let views = views();
        if views.windows(2).all(|w| w[0] == w[1]) { Ok(()) } else { Err(format!("{views:#?}")) }
    });
    lab.host("h3").signal_daemon("STOP");
    let start = std::time::Instant::now();
    for host in [lab.host("h1"), lab.host("h2")] {
        wait_peers(host, 2);
    }
    assert!(start.elapsed().as_secs() < 75, "noticed after {:?}", start.elapsed());
    lab.host("h3").signal_daemon("CONT");
    for host in lab.hosts() {
        host.wait_established(2, LONG_TIMEOUT);
    }
    claims(&["F-48"]);
}

/// The peers' own lines of `weave status peers`, sorted.
fn peer_lines(host: &weave_lab::Host) -> Vec<String> {
    let page = host.weave_ok(&["status", "peers"]);
    let mut peers: Vec<String> = page.lines().filter(|l| !l.starts_with(' ')).map(str::to_owned).collect();
    peers.sort();
    peers
}
