//! Daemons are restarted while containers run.

use weave_lab::{Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("S-1", "S-16", "F-53", "F-54");

#[test]
fn containers_survive_daemon_restarts() {
    let Some(lab) = Lab::start("killed", &Topology::hosts(2)) else { return };
    launch_mesh(&lab, &[]);
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    let members = attach_each(&[h1, h2]);
    let local = h2.container("local");
    local.attach(&["10.2.1.22/24"]);
    let [a, b] = &members[..] else { unreachable!() };
    a.container.reaches(&b.ip, SHORT_TIMEOUT);
    local.reaches(&b.ip, SHORT_TIMEOUT);
    let name = h2.report().unwrap()["Router"]["Name"].clone();
    let (chat, inside) = (a.container.chat(&b.container, &b.ip, 50), local.pinging(&b.ip, 50));

    for round in 0..2 {
        if round == 0 {
            h2.signal_daemon("KILL");
            h2.wait("the end of the daemon", SHORT_TIMEOUT, || h2.daemon_pid().is_none());
        } else {
            h2.weave_ok(&["stop"]);
            assert!(h2.daemon_pid().is_none());
        }
        launch(h2, &[], &["h1"]);
        assert_eq!(h2.report().unwrap()["Router"]["Name"], name, "the same peer");
        h2.wait_established(1, LONG_TIMEOUT);
        a.container.reaches(&b.ip, SHORT_TIMEOUT);
    }
    let (chatter, pings) = (chat.finish(), inside.finish());
    assert!(chatter.broken.is_none(), "the connection of the containers goes on: {chatter:?}");
    println!("longest interruption: {:.1} s", chatter.longest_gap_ms / 1e3);
    assert!(pings.longest_gap_ms < 1500.0, "containers on one host never notice: {pings:?}");
    let [peers_1, peers_2] =
        [h1, h2].map(|h| h.report().unwrap()["Router"]["Peers"].as_array().unwrap().len());
    assert_eq!((peers_1, peers_2), (2, 2));
    claims(&["F-53", "S-16"]);
}

#[test]
fn other_peers_keep_the_place_of_one_that_restarts() {
    let Some(lab) = Lab::start("place", &Topology::hosts(3)) else { return };
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h));
    launch(h1, &[], &[]);
    launch(h2, &[], &["h1"]);
    h3.weave_ok(&["launch", "h1", "h2"]);
    lab.hosts().iter().for_each(|host| host.wait_established(2, LONG_TIMEOUT));
    let members = attach_each(&[h1, h3]);
    let [a, c] = &members[..] else { unreachable!() };
    a.container.reaches(&c.ip, SHORT_TIMEOUT);
    let (chat, pinger) = (a.container.chat(&c.container, &c.ip, 50), a.container.pinging(&c.ip, 10));
    let interrupted = |host: &weave_lab::Host| host.log().matches("its routes are kept").count();

    step("stop and launch");
    h3.weave_ok(&["stop"]);
    h3.weave_ok(&["launch", "h1", "h2"]);
    a.container.reaches(&c.ip, SHORT_TIMEOUT);
    for host in [h1, h2] {
        host.wait_established(2, SHORT_TIMEOUT);
        assert!(host.log().contains("the peer restarts; its routes are kept for 60 s"), "{}", host.log());
    }
    step("SIGKILL under the supervisor");
    let (old, before) = (h3.daemon_pid(), [h1, h2].map(interrupted));
    h3.signal_daemon("KILL");
    h3.wait("the next daemon", SHORT_TIMEOUT, || h3.daemon_pid().filter(|pid| Some(*pid) != old));
    a.container.reaches(&c.ip, SHORT_TIMEOUT);
    for (host, before) in [h1, h2].into_iter().zip(before) {
        host.wait_established(2, SHORT_TIMEOUT);
        assert!(interrupted(host) > before, "{}", host.log());
        assert!(!host.log().contains("Removed unreachable peer"), "{}", host.log());
    }
    let (chatter, pings) = (chat.finish(), pinger.finish());
    assert!(chatter.broken.is_none(), "{chatter:?}");
    assert_eq!(pings.duplicates, 0, "{pings:?}");
    println!("longest interruption of 100 pings a second: {:.2} s", pings.longest_gap_ms / 1e3);

    step("a peer that leaves is forgotten at once");
    h3.weave_ok(&["reset"]);
    for host in [h1, h2] {
        host.wait("h3 to be removed", SHORT_TIMEOUT, || {
            host.log().contains("Removed unreachable peer").then_some(()).ok_or("not yet".to_owned())
        });
    }
}

/// The programs of the kernel forward while no daemon runs, and while the next one starts.
#[test]
fn kernel_forwards_over_a_restart() {
    let Some(lab) = Lab::start("noloss", &Topology::hosts(2)) else { return };
    launch_mesh(&lab, &[]);
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    let members = attach_each(&[h1, h2]);
    let [a, b] = &members[..] else { unreachable!() };
    let local = h2.container("local");
    local.attach(&["10.2.1.22/24"]);
    wait_overlay(h1, "fastdp");
    wait_overlay(h2, "fastdp");
    a.container.reaches(&b.ip, SHORT_TIMEOUT);
    local.reaches(&b.ip, SHORT_TIMEOUT);
    let chat = a.container.chat(&b.container, &b.ip, 10);
    for killed in [false, true] {
        step(if killed { "SIGKILL and launch" } else { "stop and launch" });
        let pingers = [a.container.pinging(&b.ip, 10), local.pinging(&b.ip, 10)];
        if killed {
            h2.signal_daemon("KILL");
            h2.wait("the end of the daemon", SHORT_TIMEOUT, || h2.daemon_pid().is_none());
        } else {
            h2.weave_ok(&["stop"]);
        }
        launch(h2, &[], &["h1"]);
        wait_overlay(h2, "fastdp");
        for pinger in pingers {
            let pings = pinger.finish();
            // The last one may be on its way.
            if pings.received + 1 < pings.sent || pings.duplicates > 0 {
                let counts = [h1, h2].map(|host| {
                    host.report().unwrap()["Router"]["OverlayDiagnostics"]["fastdp"]["Frames"].clone()
                });
                panic!("{pings:?}, frames by {counts:#?}");
            }
        }
    }
    let chatter = chat.finish();
    assert!(chatter.broken.is_none(), "{chatter:?}");
    claims(&["F-54"]);
}

#[test]
fn launch_stop_reset() {
    let Some(lab) = Lab::start("cycle", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let fresh = h1.command_ok(&["ip", "-o", "link"]);
    launch(h1, &[], &[]);
    let status = h1.weave_ok(&["status"]);
    assert!(status.contains("Targets: 0") && status.contains("Name: "), "{status}");
    let sockets = h1.command_ok(&["ss", "-Hlntu"]);
    for protocol in ["tcp", "udp"] {
        assert!(
            sockets.lines().any(|l| l.starts_with(protocol) && l.contains(":6783 ")),
            "{protocol} in {sockets}"
        );
    }
    let c = h1.container("c");
    c.attach(&["10.2.1.1/24"]);
    let name = h1.report().unwrap()["Router"]["Name"].clone();

    h1.weave_ok(&["stop"]);
    assert!(h1.daemon_pid().is_none());
    assert!(c.has_interface(), "containers keep their interface");
    let status = h1.weave(&["status"]);
    assert!(!status.success(), "{status}");
    let twice = h1.weave(&["stop"]);
    assert!(twice.code.is_some(), "{twice}");
    launch(h1, &[], &[]);
    assert_eq!(h1.report().unwrap()["Router"]["Name"], name);

    h1.weave_ok(&["reset"]);
    assert!(!c.has_interface(), "reset takes everything away");
    let links =
        |text: String| text.lines().map(|l| l.split(' ').nth(1).unwrap_or("").to_owned()).collect::<Vec<_>>();
    assert_eq!(links(h1.command_ok(&["ip", "-o", "link"])), links(fresh));
    let rules = h1.sh("for t in filter nat mangle raw; do iptables -w -t $t -S; done");
    assert!(!rules.to_lowercase().contains("weave"), "{rules}");
    h1.weave_ok(&["reset"]);
    claims(&["S-1"]);
}
