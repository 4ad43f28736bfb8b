//! Targets of connections: launch, connect, forget, discovery.

use std::time::Duration;

use weave_lab::{Lab, Topology, claims, throughout};

use crate::common::*;

weave_lab::claims!("S-13", "S-18", "S-19", "S-20", "S-21", "F-41", "F-45");

#[test]
fn peer_list_may_contain_the_own_address() {
    let Some(lab) = Lab::start("fixed", &Topology::hosts(3)) else { return };
    std::thread::scope(|scope| {
        for host in lab.hosts() {
            scope.spawn(move || launch(host, &[], &["h1", "h2", "h3"]));
        }
    });
    for host in lab.hosts() {
        host.wait_established(2, LONG_TIMEOUT);
        host.wait("the own address to be reported", SHORT_TIMEOUT, || {
            let own: Vec<_> = host
                .connections()
                .into_iter()
                .filter(|c| c.info.contains("cannot connect to ourself"))
                .collect();
            if own.len() == 1 { Ok(()) } else { Err(format!("{own:?}")) }
        });
        let targets = host.weave_ok(&["status", "targets"]);
        assert_eq!(targets.lines().collect::<Vec<_>>(), ["h1", "h2", "h3"]);
    }
    claims(&["S-21"]);
}

#[test]
fn one_address_is_enough_to_join() {
    let Some(lab) = Lab::start("join", &Topology::hosts(4)) else { return };
    let hosts = lab.hosts();
    launch(&hosts[0], &[], &[]);
    launch(&hosts[1], &[], &["h1"]);
    launch(&hosts[2], &[], &["h1"]);
    hosts[2].wait_established(2, LONG_TIMEOUT);
    launch(&hosts[3], &[], &["198.18.0.2:6783"]);
    for host in hosts {
        host.wait_established(3, LONG_TIMEOUT);
    }
    assert_eq!(hosts[3].weave_ok(&["status", "targets"]).trim(), "198.18.0.2:6783");
    claims(&["F-41"]);
}

#[test]
fn connect_persists_until_forget() {
    let Some(lab) = Lab::start("forget", &Topology::hosts(3)) else { return };
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h));
    launch(h1, &[], &[]);
    launch(h2, &[], &[]);
    launch(h3, &[], &[]);
    h1.weave_ok(&["connect", "h2", "h3"]);
    h1.wait_established(2, LONG_TIMEOUT);
    let targets = || h1.weave_ok(&["status", "targets"]).lines().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(targets(), ["h2", "h3"]);

    step("after a crash connected peers are connected again");
    h1.signal_daemon("KILL");
    h1.wait("the end of the daemon", SHORT_TIMEOUT, || h1.daemon_pid().is_none());
    h1.weave_ok(&["launch", "--no-restart", "--resume"]);
    assert_eq!(targets(), ["h2", "h3"]);
    h1.wait_established(2, LONG_TIMEOUT);
    claims(&["S-13"]);

    step("forget keeps the connection, but a lost peer is not tried again");
    h1.weave_ok(&["forget", "h3"]);
    assert_eq!(targets(), ["h2"]);
    assert_eq!(h1.connections().iter().filter(|c| c.state == "established").count(), 2);
    h3.weave_ok(&["reset"]);
    for host in [h1, h2] {
        wait_peers(host, 2);
    }
    let attempts = lab.wire().capture("h3");
    h1.signal_daemon("KILL");
    h1.wait("the end of the daemon", SHORT_TIMEOUT, || h1.daemon_pid().is_none());
    h1.weave_ok(&["launch", "--no-restart", "--resume"]);
    h1.wait_established(1, LONG_TIMEOUT);
    assert_eq!(targets(), ["h2"]);
    // h2 discovered h3, and h1 has forgotten it: no connection is tried, for as long as two retries take.
    throughout("one connection", Duration::from_secs(8), || h1.connections().len() == 1);
    let seen = attempts.finish();
    let to_h3 = seen
        .frames()
        .iter()
        .filter(|f| f.get(30..34) == Some(&[198, 18, 0, 3]) && f.get(23) == Some(&6))
        .count();
    assert_eq!(to_h3, 0, "TCP packets to the forgotten peer");
    claims(&["S-18", "S-19", "F-45"]);
}

#[test]
fn retries_back_off() {
    let Some(lab) = Lab::start("backoff", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    launch(h1, &[], &[]);
    launch(h2, &[], &["h1"]);
    h2.wait_established(1, LONG_TIMEOUT);
    h1.weave_ok(&["reset"]);
    h2.wait("a failed attempt", LONG_TIMEOUT, || {
        h2.connections()
            .iter()
            .any(|c| c.state == "failed" && c.info.contains("refused") && c.info.contains("retry"))
    });
    throughout("the target", Duration::from_secs(10), || h2.weave_ok(&["status", "targets"]).trim() == "h1");
    let attempts = h2.log().lines().filter(|l| l.contains("attempting connection")).count();
    assert!(attempts < 12, "{attempts} attempts");
    claims(&["S-20"]);
}
